"""ACEBench's rules by hand, and against the authors' checker."""

from pathlib import Path
from typing import Any

import pytest

from tirkit.evaluation.benchmarks.acebench import ACEBENCH, NORMAL, accepted_values, own_problem, totals
from tirkit.evaluation.benchmarks.acebench_match import calls_problem, same_calls
from tirkit.evaluation.benchmarks.acebench_official import official_problem
from tirkit.evaluation.benchmarks.agreement import agreement_table, compare
from tirkit.evaluation.benchmarks.base import Case, CaseAttempt, Score
from tirkit.evaluation.metrics import Item
from tirkit.types import StopReason, ToolCall, Trajectory, Turn

TEXT, WHOLE, FLAG, TEXTS = (
    {"type": "string"},
    {"type": "integer"},
    {"type": "boolean"},
    {"type": "array", "items": {"type": "string"}},
)
OBJECT = {"type": "object", "properties": {}}


def judged(schema: dict[str, Any], answer: Any, value: Any) -> tuple[str, bool]:
    document = {"name": "f", "parameters": {"properties": {"x": schema}, "required": ["x"]}}
    call = ToolCall(name="f", arguments={"x": value})
    return calls_problem([document], [call], {"f": {"x": answer}}), same_calls([call], {"f": {"x": answer}})


@pytest.mark.parametrize(
    ("schema", "answer", "value", "why", "same"),
    [
        (TEXT, "New York", "new-york", "", True),
        (TEXT, "York", "New York", "", False),  # it is enough to contain the answer
        (TEXT, "New York", "York", "wrong value", False),
        (TEXT, "5", 5, "wrong type", False),
        (WHOLE, 5, 6, "", False),  # numbers and booleans are compared by type alone
        (WHOLE, 5, "5", "wrong type", False),
        (FLAG, True, False, "", False),
        (FLAG, True, "true", "", False),
        (TEXTS, ["a", "b c"], ["A", "b.c"], "", True),
        (TEXTS, ["a", "b"], ["b", "a"], "wrong value", False),
        (OBJECT, {"a": 1, "b": {"c": "x"}}, {"a": 1, "b": {"c": "X."}}, "", True),
        (OBJECT, {"a": 1}, {"a": 2}, "wrong value", False),
        (OBJECT, {"a": 1}, {"a": 12}, "", False),  # the answer's text is contained
        (OBJECT, {"a": 1}, {"a": 1, "b": 1}, "wrong value", False),
        (OBJECT, {"a": ["b c"]}, {"a": ["b c"]}, "wrong value", True),  # white space was taken out: out of reach
    ],
)
def test_values(schema: dict[str, Any], answer: Any, value: Any, why: str, same: bool) -> None:
    assert judged(schema, answer, value) == (why, same)


def test_calls_of_one_tool_have_suffixes_and_may_leave_out_what_is_not_required() -> None:
    document = {"name": "f", "parameters": {"properties": {"x": TEXT, "y": TEXT}, "required": ["x"]}}
    answer = {"f_1": {"x": "a", "y": "c"}, "f_2": {"x": "b"}}
    one, two = ToolCall(name="f", arguments={"x": "a"}), ToolCall(name="f", arguments={"x": "b"})
    assert calls_problem([document], [two, one], answer) == ""
    assert not same_calls([two, one], answer)
    assert same_calls([two, ToolCall(name="f", arguments={"x": "a", "y": "c"})], answer)
    assert calls_problem([document], [one, one], answer) == "wrong value"
    assert calls_problem([document], [one], answer) == "wrong number of calls"
    assert calls_problem([document], [one, ToolCall(name="g")], answer) == "wrong tools"


def reply(case: Case, text: str) -> float:
    turn = Turn(text=text, answer=text)
    made = Trajectory(task_id=case.task.id, prompt=(), turns=(turn,), stop=StopReason.ANSWERED)
    return ACEBENCH.score(made, case).right


def test_a_refusal_says_why_and_nothing_else(tiny_data: Path) -> None:
    cases = {case.task.kind: case for case in ACEBENCH.load(tiny_data).cases}
    missing = cases["special_incomplete"]
    assert reply(missing, "Missing necessary parameters (nights) for the api (room_book)") == 1
    assert reply(missing, "Missing necessary parameters (who) for the api (room_book)") == 0
    assert reply(missing, "How many nights, for room_book?") == 0
    both = "Missing necessary parameters (nights) for the api (room_book), or the limitations of the function"
    assert reply(missing, both) == 0  # right for the authors, and for every other task as well
    assert reply(cases["special_irrelevant"], "Due to the limitations of the function, I cannot.") == 1


def result(category: str, right: float, group: str = "") -> CaseAttempt:
    item = Item(task_id="x", metrics={}, stop=StopReason.ANSWERED)
    made = Trajectory(task_id="x", prompt=(), turns=(), stop=StopReason.ANSWERED)
    return CaseAttempt(
        case_id="x", category=category, group=group, score=Score(right=right), item=item, trajectory=made
    )


def test_the_overall_counts_categories_alike_and_conversations_as_a_whole() -> None:
    adjust = "normal_multi_turn_user_adjust"
    results = [
        *(result("normal_atom_bool", right) for right in (1, 1, 0, 0)),
        *(result(adjust, right, "a") for right in (1, 0)),
        *(result(adjust, 1, "b") for _ in range(3)),
        result("special_irrelevant", 1),
        result("special_incomplete", 0),
    ]
    found = totals(results)
    assert found["multi-turn"] == 0.5  # conversation a: wrong; b: right
    assert found["normal"] == 0.5  # (0.5 + 0.5) / 2
    assert found["special"] == 0.5
    assert found["overall without agent"] == pytest.approx(0.5)


def test_the_authors_checker_agrees(shared_data: Path, acebench_checkout: Path) -> None:
    cases = ACEBENCH.load(shared_data, categories=NORMAL).cases
    found = compare(cases, own_problem, official_problem(acebench_checkout), accepted_values, num_mutants=5)
    assert found.num_compared > 1500
    assert not found.disagreements, agreement_table({"acebench": found})
