"""Agreement of tool calls with the gold calls (TInR, arXiv 2604.10788, reward and metrics). Types: strict unless told.

What counts as predicted: all calls of the trajectory. Where a call block could not be read, down to the last line, as
calls of known tools, nothing counts: it could hide anything. `None` stands for that below. In the same way a malformed
selection selects nothing.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import cast

from scipy.optimize import linear_sum_assignment  # pyright: ignore

from tirkit.text.dialects import CALL_PROBLEM, UNKNOWN_TOOL
from tirkit.text.schema import Equality, canonical, canonical_value
from tirkit.types import Task, ToolCall, Trajectory

_SCORES: tuple[str, ...] = ("id_em", "id_f1", "call_em", "tool_accuracy", "parameter_accuracy", "joint_accuracy")


def jaccard(a: Iterable[str], b: Iterable[str]) -> float:
    """Multiset Jaccard |a ∩ b| / (|a| + |b| − |a ∩ b|), in [0, 1]; 1 where both are empty."""
    a, b = Counter(a), Counter(b)
    shared = (a & b).total()
    union = a.total() + b.total() - shared
    return shared / union if union else 1.0


def r_tool(gold: Sequence[ToolCall], predicted: Sequence[ToolCall]) -> float:
    """Jaccard of the called tools, in [0, 1]."""
    return jaccard((call.name for call in gold), (call.name for call in predicted))


def r_param(gold: Sequence[ToolCall], predicted: Sequence[ToolCall]) -> float:
    """Mean over the gold calls of the Jaccard of the arguments with those of the predicted call assigned to it.

    Calls are assigned one to one within a tool, so that the sum is largest (the paper: greedily). In [0, 1]; ValueError
    without gold calls, where it has no meaning.
    """
    if not gold:
        raise ValueError("parameter agreement needs gold calls")
    return sum(_best_sum(*pair) for pair in _by_tool(gold, predicted)) / len(gold)


def r_correct(trajectory: Trajectory, task: Task) -> float:
    """R_correct in [0, 2]: r_tool + r_param, 0 where a call can't be read.

    A task that needs no tool: 2 iff nothing was selected, nothing called and the reply is not empty, all of which a
    single well-formed reply is. ValueError where the task's calls are not what is judged.
    """
    gold = _gold(task)
    if not gold:
        return 2.0 * calls_right(trajectory, task)
    predicted = predicted_calls(trajectory)
    return r_tool(gold, predicted) + r_param(gold, predicted) if predicted else 0.0


def calls_right(trajectory: Trajectory, task: Task, equality: Equality = "strict") -> bool:
    """Whether the calls equal the gold calls, in any order; true where the task's calls are not judged."""
    if task.gold_calls is None:
        return True
    if not task.gold_calls:
        return len(trajectory.turns) == 1 and bool(trajectory.answer) and not trajectory.turns[0].problems
    predicted = predicted_calls(trajectory)
    if predicted is None:
        return False
    gold, made = (Counter(canonical(call, equality) for call in calls) for calls in (task.gold_calls, predicted))
    return gold == made


def call_scores(trajectory: Trajectory, task: Task) -> dict[str, float]:
    """The paper's metrics of one attempt, each in [0, 1]. ValueError where the task's calls are not judged.

    id_em, id_f1: the chosen tools. call_em: the calls. tool_accuracy: the called tools. parameter_accuracy: the
    arguments, whichever tool got them. joint_accuracy: both of the last two. parameter_given_tool (only where the
    called tools are right): the calls. valid_json (only where a call block was written): every line is a call, of
    whatever tool.
    """
    gold, predicted = _gold(task), predicted_calls(trajectory)
    if not gold:
        right = float(calls_right(trajectory, task))
        scores = dict.fromkeys(_SCORES, right)
    else:
        wanted = [name for calls in task.gold_rounds or () for name in _distinct(calls)]
        chosen = chosen_tools(trajectory)
        tools = predicted is not None and _equal((c.name for c in gold), (c.name for c in predicted))
        parameters = predicted is not None and _equal(_arguments(gold), _arguments(predicted))
        scores = {
            "id_em": float(_equal(wanted, chosen)),
            "id_f1": multiset_f1(wanted, chosen),
            "call_em": float(calls_right(trajectory, task)),
            "tool_accuracy": float(tools),
            "parameter_accuracy": float(parameters),
            "joint_accuracy": float(tools and parameters),
        }
        if tools:
            scores["parameter_given_tool"] = scores["call_em"]
    if predicted is None or predicted:
        scores["valid_json"] = float(not any(map(_is_bad_json, _problems(trajectory))))
    return scores


def multiset_f1(a: Iterable[str], b: Iterable[str]) -> float:
    """2 |a ∩ b| / (|a| + |b|) of two multisets, in [0, 1]; 1 where both are empty."""
    a, b = Counter(a), Counter(b)
    size = a.total() + b.total()
    return 2 * (a & b).total() / size if size else 1.0


def recalled(trajectory: Trajectory, task: Task, names: Collection[str]) -> tuple[float, float] | None:
    """(share of the gold calls to tools in `names` whose tool was called, share that was made exactly).

    Judged call by call, so that a task with seen and unseen tools counts in both. None where there are no such calls.
    """
    gold = [call for call in task.gold_calls or () if call.name in names]
    if not gold:
        return None
    made = predicted_calls(trajectory) or ()
    tools = Counter(call.name for call in gold) & Counter(call.name for call in made)
    calls = Counter(map(canonical, gold)) & Counter(map(canonical, made))
    return tools.total() / len(gold), calls.total() / len(gold)


def predicted_calls(trajectory: Trajectory) -> tuple[ToolCall, ...] | None:
    """All calls, None where a call block could not be read."""
    unreadable = any(problem.startswith(CALL_PROBLEM) for problem in _problems(trajectory))
    return None if unreadable else trajectory.calls


def _problems(trajectory: Trajectory) -> Iterator[str]:
    return (problem for turn in trajectory.turns for problem in turn.problems)


def _is_bad_json(problem: str) -> bool:
    # Without an index an unknown name is read like any other; with one it must not count as unreadable either.
    return problem.startswith(CALL_PROBLEM) and not UNKNOWN_TOOL.match(problem)


def chosen_tools(trajectory: Trajectory) -> list[str]:
    """The tools an attempt chose: those it selected, or, where it selected none, those each of its turns called."""
    selected = [name for turn in trajectory.turns if not turn.problems for name in turn.selected]
    readable = predicted_calls(trajectory) is not None
    return selected or [name for turn in trajectory.turns if readable for name in _distinct(turn.calls)]


def _gold(task: Task) -> tuple[ToolCall, ...]:
    if task.gold_calls is None:
        raise ValueError(f"task {task.id!r} has no gold calls to score against")
    return task.gold_calls


def _distinct(calls: Iterable[ToolCall]) -> list[str]:
    return list(dict.fromkeys(call.name for call in calls))


def _equal(a: Iterable[str], b: Iterable[str]) -> bool:
    return sorted(a) == sorted(b)


def _arguments(calls: Iterable[ToolCall]) -> list[str]:
    return [canonical_value(call.arguments) for call in calls]


def _items(call: ToolCall) -> list[str]:
    return [f"{name}={canonical_value(value)}" for name, value in call.arguments.items()]


def _by_tool(
    gold: Sequence[ToolCall], predicted: Sequence[ToolCall]
) -> Iterable[tuple[list[ToolCall], list[ToolCall]]]:
    for name in _distinct(gold):
        yield [call for call in gold if call.name == name], [call for call in predicted if call.name == name]


def _best_sum(gold: list[ToolCall], predicted: list[ToolCall]) -> float:
    """The largest sum of agreements over one-to-one assignments of the calls of one tool."""
    agreement = [[jaccard(_items(g), _items(p)) for p in predicted] for g in gold]
    if len(gold) == 1 or len(predicted) <= 1:  # by far the most frequent: no assignment to solve
        return max((value for row in agreement for value in row), default=0.0)
    rows, columns = cast(tuple[list[int], list[int]], linear_sum_assignment(agreement, maximize=True))
    return sum(agreement[row][column] for row, column in zip(rows, columns, strict=True))
