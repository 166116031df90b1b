"""Fixtures of the benchmarks' tests."""

from pathlib import Path

import pytest

from tirkit.embedded.model import build_tokenizer
from tirkit.evaluation.benchmarks.acebench_agent import CHECKOUT
from tirkit.text.render import Renderer

collect_ignore = ["data"]  # scenarios in the form of ACEBench's are imported as such, from their own folder


@pytest.fixture(scope="session")
def tiny_data() -> Path:
    """A few items in the form of each benchmark's files, written for these tests."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    return Renderer(build_tokenizer(["user assistant tool system name arguments what is the of"], size=300))


@pytest.fixture
def acebench_checkout(shared_data: Path) -> Path:
    """The authors' repository, in the folder of the data."""
    folder = shared_data / "acebench" / CHECKOUT
    if not (folder / "model_inference").is_dir():
        pytest.skip(f"no checkout of https://github.com/ACEBench/ACEBench at {folder}")
    return folder
