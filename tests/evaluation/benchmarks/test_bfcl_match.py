"""Our comparison with BFCL's possible answers, by hand and against the authors' checker."""

from pathlib import Path
from typing import Any

import pytest

from tirkit.evaluation.benchmarks.agreement import agreement_table, compare
from tirkit.evaluation.benchmarks.base import CaseAttempt, Score
from tirkit.evaluation.benchmarks.bfcl import BFCL, accepted_values, language, own_problem, totals
from tirkit.evaluation.benchmarks.bfcl_match import calls_problem
from tirkit.evaluation.benchmarks.bfcl_official import official_problem
from tirkit.evaluation.benchmarks.bfcl_source import print_source, read_source
from tirkit.evaluation.metrics import Item
from tirkit.types import StopReason, ToolCall, Trajectory


def problem(schema: dict[str, Any], accepted: list[Any], value: Any, required: bool = True) -> str:
    document = {"name": "f", "parameters": {"properties": {"x": schema}, "required": ["x"] if required else []}}
    arguments = {} if value is ... else {"x": value}
    return calls_problem([document], [ToolCall(name="f", arguments=arguments)], [{"f": {"x": accepted}}])


TEXT, WHOLE, REAL, FLAG = ({"type": kind} for kind in ("string", "integer", "float", "boolean"))
TEXTS, DICT = {"type": "array", "items": {"type": "string"}}, {"type": "dict"}
DICTS = {"type": "array", "items": {"type": "dict"}}


@pytest.mark.parametrize(
    ("schema", "accepted", "value", "why"),
    [
        (TEXT, ["New York, NY"], "new york ny", ""),  # case, spaces and commas do not count
        (TEXT, ["don't"], 'don"t', ""),
        (TEXT, ["New York"], "York", "wrong value"),
        (TEXT, ["5"], 5, "wrong type"),
        (WHOLE, [5], 5, ""),
        (WHOLE, [5], 6, "wrong value"),
        (WHOLE, [1], True, "wrong type"),
        (WHOLE, [5], 5.0, "wrong type"),
        (REAL, [5.0], 5, ""),  # an integer may stand for a float
        (REAL, [5], 5, ""),
        (FLAG, [True], True, ""),
        (FLAG, [True], "true", "wrong type"),
        (WHOLE, ["n"], "n", ""),  # the answer names a variable
        (WHOLE, ["n"], "N", "wrong value"),  # and a variable has a case
        (TEXTS, [["a b", "c"]], ["A-B", "c"], ""),
        (TEXTS, [["a", "c"]], ["c", "a"], "wrong value"),
        (TEXTS, [["a"]], [1], "wrong type"),
        (TEXTS, [["a"], ""], [], ""),  # what may be left out may be empty
        (DICT, [{"a": [1, 2], "b": ["x", ""]}], {"a": 2}, ""),
        (DICT, [{"a": [1, 2], "b": ["x", ""]}], {"a": 3}, "wrong value"),
        (DICT, [{"a": [1]}], {"a": 1, "b": 1}, "wrong value"),
        (DICT, [{"a": [1], "b": ["x"]}], {"a": 1}, "wrong value"),
        (DICTS, [[{"a": [1]}, {"a": [2]}]], [{"a": 1}, {"a": 2}], ""),
        (DICTS, [[{"a": [1]}, {"a": [2]}]], [{"a": 2}, {"a": 1}], "wrong value"),
        (DICTS, [[{"a": [1]}]], [{"a": 1}, {"a": 1}], "wrong value"),
        (TEXT, ["a"], ..., "required parameter missing"),
    ],
)
def test_values_are_compared_as_bfcl_does(schema: dict[str, Any], accepted: list[Any], value: Any, why: str) -> None:
    assert problem(schema, accepted, value) == why


def test_what_may_be_left_out_and_what_not() -> None:
    assert problem(TEXT, ["a", ""], ..., required=False) == ""
    assert problem(TEXT, ["a"], ..., required=False) == "expected parameter missing"


def test_calls_match_in_any_order_and_each_once() -> None:
    document = {"name": "f", "parameters": {"properties": {"x": WHOLE}, "required": ["x"]}}
    one, two = ToolCall(name="f", arguments={"x": 1}), ToolCall(name="f", arguments={"x": 2})
    answers = [{"f": {"x": [1]}}, {"f": {"x": [2]}}]
    assert calls_problem([document], [two, one], answers) == ""
    assert calls_problem([document], [one, one], answers) == "wrong value"
    assert calls_problem([document], [one], answers) == "wrong number of calls"
    assert calls_problem([document], [one, ToolCall(name="g", arguments={"x": 2})], answers) == "wrong tool"
    assert calls_problem([document], [ToolCall(name="f", arguments={"x": 1, "y": 1})], answers[:1]) == (
        "unexpected parameter"
    )


@pytest.mark.parametrize(
    ("text", "kind", "inner", "spoken", "value"),
    [
        ("5", "integer", None, "java", 5),
        ("5L", "long", None, "java", 5),
        ("5", "long", None, "java", "5"),  # no literal of that type: it may be a variable
        ("1.5f", "float", None, "java", 1.5),
        ("true", "boolean", None, "java", True),
        ("new int[]{1, 2}", "Array", "integer", "java", [1, 2]),
        ('new ArrayList<>(Arrays.asList("a, b", "c"))', "ArrayList", "String", "java", ["a, b", "c"]),
        ("new ArrayList<>()", "ArrayList", "String", "java", []),
        ('new HashMap<String, Integer>() {{ put("a", 1); }}', "HashMap", None, "java", {"a": 1}),
        ("5n", "Bigint", None, "javascript", 5),
        ("'a'", "String", None, "javascript", "a"),
        ("[1.5, 2]", "array", "float", "javascript", [1.5, 2.0]),
        ("[[1, 2], [3]]", "array", "array", "javascript", [[1, 2], [3]]),
        ("{a: 'x, y', b: [1]}", "dict", None, "javascript", {"a": "x, y", "b": [1]}),
        ("store", "dict", None, "javascript", "store"),
    ],
)
def test_source_code_is_read(text: str, kind: str, inner: str | None, spoken: Any, value: Any) -> None:
    assert read_source(text, kind, inner, spoken) == value


@pytest.mark.parametrize(
    ("value", "kind", "inner", "spoken"),
    [
        (7, "long", None, "java"),
        (1.5, "float", None, "java"),
        (False, "boolean", None, "java"),
        ([1, 2], "ArrayList", "long", "java"),
        (["a", "b c"], "Array", "String", "java"),
        ({"a": 1, "b": "x"}, "HashMap", None, "java"),
        (7, "Bigint", None, "javascript"),
        (["a", "b"], "array", "String", "javascript"),
        ({"a": 1, "b": ["x"]}, "dict", None, "javascript"),
    ],
)
def test_what_is_printed_is_read_back(value: Any, kind: str, inner: str | None, spoken: Any) -> None:
    assert read_source(print_source(value, kind, inner, spoken), kind, inner, spoken) == value


def result(category: str, right: float, place: int = 0) -> CaseAttempt:
    name = f"{category}_{place}"
    return CaseAttempt(
        case_id=name,
        category=category,
        score=Score(right=right),
        item=Item(task_id=name, metrics={}, stop=StopReason.CALLS_COMPLETE),
        trajectory=Trajectory(task_id=name, prompt=(), turns=(), stop=StopReason.CALLS_COMPLETE),
    )


def test_the_overall_is_the_leaderboards() -> None:
    results = [
        *(
            result(name, right)
            for name, right in [("simple_python", 1), ("simple_java", 0), ("simple_javascript", 0.5)]
        ),
        *(result(name, 1) for name in ("multiple", "parallel")),
        result("parallel_multiple", 0),
        *(result("live_simple", 1, i) for i in range(3)),
        result("live_multiple", 0),
        result("irrelevance", 1),
        result("live_irrelevance", 0),
        result("live_relevance", 1),
    ]
    found = totals(results)
    # non-live: (mean of three simple = 0.5, 1, 1, 0) / 4; live: 3 of 4 cases; irrelevance: mean of two categories
    assert found["non-live"] == pytest.approx(0.625)
    assert found["live"] == pytest.approx(0.75)
    assert found["irrelevance"] == pytest.approx(0.5)
    assert found["relevance"] == 1.0
    assert found["multi-turn"] is None
    # 0.1 (0.625 + 0.75 + 0.5), multi-turn and agentic count 0; of what was run: (0.625 + 0.75 + 0.5) / 3
    assert found["overall (leaderboard)"] == pytest.approx(0.1875)
    assert found["overall of what was run"] == pytest.approx(0.625)
    # a category that was not run counts 0 for the leaderboard: simple_python alone gives 1 / 3 / 4 * 0.1
    assert totals(results[:1])["overall (leaderboard)"] == pytest.approx(1 / 120)


def test_the_authors_checker_agrees(shared_data: Path) -> None:
    pytest.importorskip("bfcl_eval", reason="the official checker is not installed: pip install --no-deps bfcl-eval")
    cases = BFCL.load(shared_data).cases
    found = compare(cases, own_problem, official_problem(language), accepted_values, num_mutants=5)
    assert found.num_compared > 3000
    assert found.both_right > 1000
    # JavaScript: the authors read `{a: 1} and more` as the object it begins with; we want the text to be a literal.
    explained = {("simple_javascript", "text off", "wrong type", "right")}
    assert found.classes().keys() <= explained, agreement_table({"bfcl-eval": found})


def test_the_authors_scorer_proves_itself_too(shared_data: Path) -> None:
    pytest.importorskip("bfcl_eval", reason="the official checker is not installed: pip install --no-deps bfcl-eval")
    assert BFCL.official is not None
    official = BFCL.official()
    for case in BFCL.load(shared_data, limit=20).cases:
        calls = case.task.gold_calls or ()
        trajectory = Trajectory(task_id=case.task.id, prompt=(), turns=(), stop=StopReason.CALLS_COMPLETE)
        assert official(trajectory, case) == BFCL.score(trajectory, case), calls
