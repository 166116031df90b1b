"""Seal-Tools: which of 4,076 tools, with which arguments; a value may name the result of an earlier call.

Asked with the question alone; the tools are the pool, retrieved (the paper's setting) or remembered. Right: exactly
the gold calls, in any order. The paper's numbers, precision, recall and F1 of tools and of parameters over all
questions, are counted as its script does: a call is compared with the first gold call of that tool.
"""

from collections.abc import Sequence
from pathlib import Path

from tirkit.evaluation.benchmarks.base import Benchmark, Case, CaseResult, Loaded, Score, Source, Totals, mean
from tirkit.evaluation.benchmarks.parts import category_means, f1
from tirkit.scoring.calls import calls_right, predicted_calls
from tirkit.tools.catalogue import load_catalogue
from tirkit.tools.questions import load_tasks
from tirkit.types import ToolCall, Trajectory

KINDS = ("single", "several", "nested")
_PARTS = ("dev.jsonl", "test_in_domain.jsonl", "test_out_domain.jsonl")


def read(folder: Path) -> Loaded:
    """Cases of the question files there are; their tools are all of tool.jsonl."""
    catalogue = load_catalogue(folder / "tool.jsonl")
    files = [load_tasks(folder / part, catalogue.by_name) for part in _PARTS if (folder / part).exists()]
    issues = (*catalogue.issues, *(issue for file in files for issue in file.issues))
    return Loaded(tuple(Case(task) for file in files for task in file.tasks), catalogue.tools, issues)


def score(trajectory: Trajectory, case: Case) -> Score:
    """Right: all calls equal the gold calls. The counts of the paper's script are among the values."""
    calls, gold = predicted_calls(trajectory), case.task.gold_calls or ()
    right = calls_right(trajectory, case.task)
    why = "" if right else "unreadable call" if calls is None else "no call" if not calls else _why(gold, calls)
    return Score(right=float(right), why=why, values=_counts(gold, calls or ()) | {"format": float(bool(calls))})


def _why(gold: Sequence[ToolCall], calls: Sequence[ToolCall]) -> str:
    same = sorted(call.name for call in gold) == sorted(call.name for call in calls)
    return "wrong parameters" if same else "wrong tools"


def _counts(gold: Sequence[ToolCall], calls: Sequence[ToolCall]) -> dict[str, float]:
    first = {call.name: call for call in reversed(gold)}
    hits = [call for call in calls if call.name in first]
    same = sum(
        str(value) == str(first[call.name].arguments[name])
        for call in hits
        for name, value in call.arguments.items()
        if name in first[call.name].arguments
    )
    return {
        "tool_hit": float(len(hits)),
        "tool_gold": float(len(gold)),
        "tool_predicted": float(len(calls)),
        "parameter_hit": float(same),
        "parameter_gold": float(sum(len(call.arguments) for call in gold)),
        "parameter_predicted": float(sum(len(call.arguments) for call in calls)),
    }


def totals(results: Sequence[CaseResult]) -> Totals:
    """Exact match by kind, and the paper's format accuracy and F1."""
    readable = mean(r.model_copy(update={"score": Score(right=r.score.values["format"])}) for r in results)
    return {
        **category_means(results),
        "format": readable,
        "tool F1": f1(results, "tool"),
        "parameter F1": f1(results, "parameter"),
    }


SEAL_TOOLS = Benchmark(
    name="seal-tools",
    folder="seal_tools",
    source=Source("https://github.com/fairyshine/Seal-Tools", "ce753ecd60ed08dd376984035de531ab8421f1c6", "Apache-2.0"),
    categories=KINDS,
    prompting="the question alone; documents retrieved from the pool of 4,076 tools, or none",
    read=read,
    score=score,
    totals=totals,
    shared_tools=True,
)
