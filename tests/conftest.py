"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real tool-use data: $TIRKIT_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("TIRKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real tool-use data not found at {folder}; set TIRKIT_DATA to its folder")
    return folder
