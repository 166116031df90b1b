"""ACEBench's own checker and scenarios, from a checkout of its repository (it is no package)."""

import copy
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tirkit.evaluation.benchmarks.acebench_match import unspaced
from tirkit.evaluation.benchmarks.base import BenchmarkError, Case
from tirkit.types import ToolCall


def from_checkout(checkout: Path, module: str, name: str) -> Any:
    """What `module` of the checkout calls `name`; nothing of it stays among the modules that are imported.

    BenchmarkError without a checkout.
    """
    root = module.partition(".")[0]
    if not (checkout / root).is_dir():
        raise BenchmarkError(
            f"no checkout of https://github.com/ACEBench/ACEBench at {checkout}: put it, or a link to it, there"
        )
    sys.path.insert(0, str(checkout))
    try:
        return getattr(importlib.import_module(module), name)
    finally:
        sys.path.remove(str(checkout))
        for imported in [key for key in sys.modules if key.partition(".")[0] == root]:
            del sys.modules[imported]


def official_problem(checkout: Path) -> Callable[[Sequence[ToolCall], Case], str]:
    """Why calls are wrong, in the checker's own word; "" where they are right. BenchmarkError without a checkout."""
    checker = from_checkout(checkout, "model_eval.checker", "normal_checker")

    def problem(calls: Sequence[ToolCall], case: Case) -> str:
        gold: Any = case.gold
        answers = gold["ground_truth"] if isinstance(gold["ground_truth"], list) else [gold["ground_truth"]]
        made = [{call.name: unspaced(call.arguments)} for call in calls]  # as its reader leaves them
        found = [checker(gold["function"], made, copy.deepcopy(answer), "", case.task.kind) for answer in answers]
        return "" if any(one["valid"] for one in found) else str(found[0]["error_type"] or "wrong")

    return problem
