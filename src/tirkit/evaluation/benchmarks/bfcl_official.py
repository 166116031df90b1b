"""BFCL's own checker, from the package `bfcl-eval`, used without the 148 packages that it depends on.

Install it with `pip install --no-deps bfcl-eval mpmath`. Its list of models, which imports every client library, is
replaced by a stub while the checker is imported: all the checker wants of it is whether dots in names were replaced.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

from tirkit.evaluation.benchmarks.base import BenchmarkError, Case, Score, ScoreFn
from tirkit.types import ToolCall, Trajectory

NAME = "bfcl-eval"
_MODEL = "tirkit"
_STUBBED = "bfcl_eval.constants.model_config"


def official_scorer(
    judge: Callable[[Trajectory, Case, Callable[[Sequence[ToolCall], Case], str]], Score],
    language: Callable[[str], str],
) -> ScoreFn:
    """Scores as the leaderboard does. Raises BenchmarkError where the package is not installed."""
    problem = official_problem(language)
    return lambda trajectory, case: judge(trajectory, case, problem)


def official_problem(language: Callable[[str], str]) -> Callable[[Sequence[ToolCall], Case], str]:
    """Why calls are wrong, in the checker's own word; "" where they are right."""
    checker, languages = _import_checker()

    def problem(calls: Sequence[ToolCall], case: Case) -> str:
        gold: Any = case.gold
        found = checker(
            gold["function"],
            [{call.name: call.arguments} for call in calls],
            gold["ground_truth"],
            languages[language(case.task.kind).upper()],
            case.task.kind,
            _MODEL,
        )
        return "" if found["valid"] else str(found["error_type"])

    return problem


def import_turns() -> tuple[Any, Any]:
    """(what runs calls on the multi-turn environments, the multi-turn checker). BenchmarkError where not installed."""
    _want()
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import (  # type: ignore[import-not-found]
        multi_turn_checker,
    )
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import (  # type: ignore[import-not-found]
        execute_multi_turn_func_call,
    )

    return execute_multi_turn_func_call, multi_turn_checker


def forget(name: str) -> None:
    """Let go of the environments made under `name`: the package keeps them among the globals of a module."""
    kept = vars(sys.modules["bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils"])
    for key in [key for key in kept if key.startswith(f"{name}_")]:
        del kept[key]


def _stub_models() -> ModuleType:
    """A module in place of the package's list of models."""
    stub = ModuleType(_STUBBED)
    stub.MODEL_CONFIG_MAPPING = {_MODEL: SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
    return stub


def _import_checker() -> tuple[Any, Any]:
    _want()
    before = sys.modules.get(_STUBBED)
    sys.modules[_STUBBED] = before or _stub_models()
    try:
        from bfcl_eval.constants.enums import Language  # type: ignore[import-not-found]
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # type: ignore[import-not-found]
    finally:
        if before is None:
            del sys.modules[_STUBBED]
    return ast_checker, Language


def _want() -> None:
    if importlib.util.find_spec("bfcl_eval") is None:
        raise BenchmarkError(
            "BFCL's official checker is not installed: `pip install --no-deps bfcl-eval mpmath`, or do without it"
        )
