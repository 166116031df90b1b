"""The table over seeds, worked by hand."""

import pytest

from examples import study
from tirkit.evaluation.metrics import Item
from tirkit.types import StopReason


def item(name: str, kind: str, success: float | None, tokens: float) -> Item:
    metrics = {"success": success, "output_tokens": tokens}
    return Item(task_id=name, kind=kind, metrics=metrics, stop=StopReason.ANSWERED)


def test_means_leave_out_what_nobody_judged() -> None:
    items = [item("a", "sum", 1.0, 10), item("b", "sum", None, 20), item("c", "call", 0.0, 60)]
    found = study.means(items, {"easy": ["call"], "hard": ["sum", "other"]})
    assert found["all"]["success"] == pytest.approx(0.5)
    assert found["hard"] == {"success": 1.0, "think_rate": None, "output_tokens": 15.0, "prompt_tokens": None}
    assert found["easy"]["success"] == 0.0


def test_cells_are_over_seeds_and_differences_within_them() -> None:
    ours = {1: {"all": {"success": 0.90}}, 2: {"all": {"success": 0.80}}, 3: {"all": {"success": 0.5}}}
    base = {1: {"all": {"success": 0.80}}, 2: {"all": {"success": 0.68}}}
    # 70 and 90: mean 80; standard error 10; t(0.975, 1) = 12.706.
    assert study.cell({1: {"all": {"success": 0.7}}, 2: {"all": {"success": 0.9}}}, "all", "success") == "80.0 ± 127.1"
    # Seed 3 is not in both; +10 and +12: mean 11, standard error 1.
    assert study.cell(ours, "all", "success", base) == "+11.0 ± 12.7"
    assert study.cell({1: {"all": {"success": None}}}, "all", "success") == "–"


def test_the_arm_itself_is_no_row_of_its_differences() -> None:
    arms = {name: {1: {"all": {"success": 0.5}, "run": {"seconds": 2.0}}} for name in ("a", "b")}
    lines = study.table(arms, ["all"], "a").splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| b | 1 | +0.0 | – |")
