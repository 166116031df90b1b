"""Small parts that several benchmarks share: earlier turns as messages, counts of agreement, choosing tools."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tirkit.evaluation.benchmarks.base import Case, CaseResult, Score, Totals, average, by_category, mean, records
from tirkit.scoring.calls import predicted_calls
from tirkit.text.control import CONTROL_STRINGS
from tirkit.text.dialects import Dialect
from tirkit.tools.lines import FileIssue
from tirkit.types import Message, ToolCall, Trajectory

_PLAIN = Dialect()


def ground_truths(path: Path, issues: list[FileIssue]) -> dict[str, Any]:
    """Answers by id from a file of {"id", "ground_truth"} records."""
    values: list[Any] = [record.value for record in records(path, issues)]
    return {value["id"]: value["ground_truth"] for value in values}


def said(text: str) -> Message:
    """An earlier reply of the assistant, as our dialect writes replies."""
    spells = any(control in text for control in CONTROL_STRINGS)
    return Message(role="assistant", content=text if spells or not text.strip() else _PLAIN.print_answer(text.strip()))


def called(calls: Sequence[ToolCall]) -> Message:
    """Earlier calls of the assistant, as our dialect writes calls."""
    return Message(role="assistant", content=_PLAIN.print_calls(calls))


def agreement(gold: Iterable[Hashable], predicted: Iterable[Hashable], prefix: str) -> dict[str, float]:
    """Counts of two multisets: {prefix_hit, prefix_gold, prefix_predicted}; `f1` adds them up."""
    a, b = Counter(gold), Counter(predicted)
    return {
        f"{prefix}_hit": float((a & b).total()),
        f"{prefix}_gold": float(a.total()),
        f"{prefix}_predicted": float(b.total()),
    }


def f1(results: Iterable[CaseResult], prefix: str) -> float | None:
    """2 hits / (gold + predicted) over all results; None where there are none."""
    values = [result.score.values for result in results]
    total = sum(v[f"{prefix}_gold"] + v[f"{prefix}_predicted"] for v in values)
    return 2 * sum(v[f"{prefix}_hit"] for v in values) / total if total else None


def category_means(results: Sequence[CaseResult]) -> Totals:
    """The mean of each category, and of all cases."""
    return {**{name: mean(found) for name, found in by_category(results).items()}, "all": mean(results)}


def value_mean(results: Iterable[CaseResult], name: str) -> float | None:
    """Mean of a value that the scorer gives."""
    return average(result.score.values.get(name) for result in results)


def chosen_right(trajectory: Trajectory, case: Case) -> Score:
    """Whether the tools called are the gold ones, each at least once and no other; arguments are not judged."""
    gold = {call.name for call in case.task.gold_calls or ()}
    calls = predicted_calls(trajectory)
    names = {call.name for call in calls or ()}
    why = "unreadable call" if calls is None else "no call" if not names else "other tools" if names != gold else ""
    return Score(right=float(not why), why=why, values=agreement(gold, names, "tool"))
