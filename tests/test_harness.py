"""The benchmarks' harness: whose turn it is, what it makes of the seconds, whose memory it tells."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def load() -> Any:
    """benchmarks/harness.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("harness_under_test", ROOT / "benchmarks" / "harness.py")
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


harness = load()


class Clock:
    """Wall and CPU seconds, moved by hand."""

    def __init__(self) -> None:
        self.wall, self.cpu = 100.0, 7.0

    def arm(self, name: str, turns: list[str], seconds: list[float]) -> Any:
        """An arm whose n-th run takes the n-th of `seconds`, half of them on the CPU."""
        left = iter(seconds)

        def run() -> None:
            took = next(left)
            self.wall, self.cpu = self.wall + took, self.cpu + took / 2
            turns.append(name)

        return harness.Arm(name, run)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(perf_counter=lambda: clock.wall, process_time=lambda: clock.cpu)
    monkeypatch.setattr(harness, "time", fake)
    return clock


def test_arms_take_turns_after_one_run_each_to_warm_up(clock: Clock) -> None:
    turns: list[str] = []
    ours = clock.arm("ours", turns, [1000, 4, 1, 2])
    peer = clock.arm("peer", turns, [1000, 8, 16, 9])
    first, second = harness.compare("t", [ours, peer], repeats=3)
    assert turns == ["ours", "peer"] * 4
    # The first runs (1000 s) do not count: ours 4, 1, 2 → median 2, from 1 to 4; peer 8, 16, 9 → 9, from 8 to 16.
    assert first == harness.Timing("ours", median_s=2, low_s=1, high_s=4, repeats=3, cpu_s=1)
    assert second == harness.Timing("peer", median_s=9, low_s=8, high_s=16, repeats=3, cpu_s=4.5)


def test_the_median_of_an_even_number_lies_between_the_middle_two(clock: Clock) -> None:
    (timing,) = harness.compare("t", [clock.arm("ours", [], [0, 1, 3, 10, 2])], repeats=4)
    assert (timing.median_s, timing.cpu_s) == (2.5, 1.25)  # of 1, 2, 3, 10


def test_memory_is_that_of_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    mega = 2**20
    ballast = "x" * (400 * mega)  # ours, so it must not be told
    assert harness.peak_memory("operator:mul", "x", 64 * mega) == pytest.approx(64, abs=4)  # "x" * 64 Mi
    del ballast


def test_results_become_a_table_and_can_be_read_again(tmp_path: Path) -> None:
    timings = [harness.Timing("ours", 2, 1, 4, 3, 1.5), harness.Timing("peer", 9, 8, 16, 3, 8)]
    result = harness.Result("b", "s", timings, {"ours": 10.0}, limit_s=1.6, notes="n", items=100, unit="tokens")
    page = harness.write_results([result], tmp_path, tmp_path / "page.md")
    rows = [line for line in page.splitlines() if line.startswith("| s ")]
    assert rows == [
        "| s | ours | 2 (1 … 4) | 1.5 | 1.00 | 50 | 10 |",  # 100 tokens in 2 s
        "| s | peer | 9 (8 … 16) | 8 | 4.50 | 11 |  |",  # 9 / 2
        "| s | *limit: ours takes 1.25 × it* | 1.6 |  | 0.80 |  |  |",  # 2 / 1.6; 1.6 / 2
    ]
    # What an earlier call wrote stays beside what a later one does.
    again = harness.write_results([harness.Result("a", "s", timings)], tmp_path, tmp_path / "page.md")
    assert again.index("## a") < again.index("## b")
    assert "| s | peer | 9 (8 … 16) | 8 | 4.50 | 11 |  |" in again
