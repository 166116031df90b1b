"""Fixtures of the benchmarks' tests."""

from pathlib import Path

import pytest

from tirkit.embedded.model import build_tokenizer
from tirkit.text.render import Renderer


@pytest.fixture(scope="session")
def tiny_data() -> Path:
    """A few items in the form of each benchmark's files, written for these tests."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    return Renderer(build_tokenizer(["user assistant tool system name arguments what is the of"], size=300))
