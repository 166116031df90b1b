from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tirkit.scoring.calls import call_scores, calls_right, jaccard, multiset_f1, r_correct, r_param, r_tool, recalled
from tirkit.text.dialects import Dialect
from tirkit.types import StopReason, Task, ToolCall, Trajectory

DONE = StopReason.CALLS_COMPLETE


def call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)  # type: ignore[arg-type]


A1, A2 = call("A", x=1), call("A", x=2)
TABLE = [
    # gold, predicted, R_correct: the table of the method's page
    ([call("A", x=1, y=2)], [call("A", x=1, y=2)], 2),
    ([call("A", x=1), call("B")], [call("B"), call("A", x=1)], 2),
    # items {x=1, y=2} and {x=1, y=3}: 1 shared of 3
    ([call("A", x=1, y=2)], [call("A", x=1, y=3)], 1 + 1 / 3),
    ([A1], [A1, call("B")], 1 / 2 + 1),
    ([A1, A2], [A1], 1 / 2 + 1 / 2),
    ([A1], [call("B", x=1)], 0),
    ([call("A")], [call("A", z=1)], 1),
    ([A1], [call("A", x="1")], 1),
    # beyond the table
    ([A1], [call("A", x=True)], 1),
    ([A1], [call("A", x=1.0)], 1),
    ([A1, A1], [A1], 1 / 2 + 1 / 2),
    # greedy gives the first gold call the first best prediction: the best assignment crosses over.
    # gold g0 {p, q}, g1 {p}; predicted p0 {p}, p1 {p, q}: g0-p1 = 1, g1-p0 = 1
    ([call("A", p=1, q=1), call("A", p=1)], [call("A", p=1), call("A", p=1, q=1)], 2),
    # g0 {p, q, r}, g1 {p, q}; p0 {p, q}, p1 {s}: greedy g0-p0 = 2/3, then g1-p1 = 0; best g0-p1 + g1-p0 = 0 + 1
    ([call("A", p=1, q=1, r=1), call("A", p=1, q=1)], [call("A", p=1, q=1), call("A", s=1)], 1 + 1 / 2),
]


@pytest.mark.parametrize(("gold", "predicted", "value"), TABLE)
def test_r_correct(
    gold: list[ToolCall],
    predicted: list[ToolCall],
    value: float,
    make_task: Callable[..., Task],
    attempt: Callable[..., Trajectory],
    dialect: Dialect,
) -> None:
    trajectory = attempt([dialect.print_calls(predicted)], dialect, DONE)
    assert r_correct(trajectory, make_task(gold)) == pytest.approx(value, abs=1e-9)
    assert r_tool(gold, predicted) + r_param(gold, predicted) == pytest.approx(value, abs=1e-9)
    assert calls_right(trajectory, make_task(gold)) == (value == 2)


# The last turn of an attempt at "A(x=1)" that deserves nothing, and why.
WORTHLESS = {
    "empty": "",
    "truncated": '<tool_call>\n{"name": "<<A>>", "arguments": {"x": 1}}',
    "echo": "Call A with x = 1.",
    "malformed": '<tool_call>\n{"name": "<<A>>", "arguments": {"x": 1}\n</tool_call>',
    "malformed beside right": '<tool_call>\n{"name": "<<A>>", "arguments": {"x": 1}}\n{"name"\n</tool_call>',
    "unknown beside right": '<tool_call>\n{"name": "<<A>>", "arguments": {"x": 1}}\n'
    '{"name": "<<Z>>", "arguments": {}}\n</tool_call>',
    "unknown selected beside right": "<tool_token>\n<<A>>\n<<Z>>\n</tool_token>",
    "both values": '<tool_call>\n{"name": "<<A>>", "arguments": {"x": 2, "x": 1}}\n</tool_call>',
    "no call": "<answer>A(x=1)</answer>",
}


@pytest.mark.parametrize("why", WORTHLESS)
def test_worthless_attempts_score_nothing(
    why: str, make_task: Callable[..., Task], attempt: Callable[..., Trajectory], dialect: Dialect
) -> None:
    trajectory = attempt([WORTHLESS[why]], dialect)
    assert r_correct(trajectory, make_task([A1])) == 0
    scores = call_scores(trajectory, make_task([A1]))
    assert scores.pop("valid_json", 0.0) == (why == "unknown beside right")  # which is well-written JSON all the same
    assert set(scores.values()) == {0.0}
    assert not calls_right(trajectory, make_task([A1]))


def test_no_turns_score_nothing(make_task: Callable[..., Task], attempt: Callable[..., Trajectory]) -> None:
    for task in (make_task([A1]), make_task()):
        trajectory = attempt([], Dialect(), StopReason.POLICY_FAILED)
        assert r_correct(trajectory, task) == 0
        assert set(call_scores(trajectory, task).values()) == {0.0}


def test_every_answer_at_once(
    make_task: Callable[..., Task], attempt: Callable[..., Trajectory], dialect: Dialect
) -> None:
    """The paper's r_param does not see superfluous calls; only r_tool does. Every yes-or-no score is 0."""
    everything = [call(name, x=x) for name in "ABCD" for x in range(5)]
    trajectory = attempt([dialect.print_selection("ABCD"), dialect.print_calls(everything)], dialect, DONE)
    scores = call_scores(trajectory, make_task([A1]))
    assert r_correct(trajectory, make_task([A1])) == pytest.approx(1 / 20 + 1)
    # chosen A B C D, wanted A: 2 * 1 / (4 + 1)
    assert scores.pop("id_f1") == pytest.approx(0.4)
    assert scores.pop("valid_json") == 1.0
    assert set(scores.values()) == {0.0}


def test_a_call_of_an_unknown_tool_is_no_bad_json(
    make_task: Callable[..., Task], attempt: Callable[..., Trajectory], dialect: Dialect
) -> None:
    def valid_json(block: str) -> float:
        return call_scores(attempt([f"<tool_call>\n{block}\n</tool_call>"], dialect), make_task([A1]))["valid_json"]

    assert valid_json('{"name": "<<Z>>", "arguments": {}}') == 1.0
    assert valid_json('{"name": "<<Z>>", "arguments": {}') == 0.0
    assert valid_json("") == 0.0


@pytest.mark.parametrize(
    ("texts", "value"),
    [
        (["<answer>Hello.</answer>"], 2),
        ([""], 0),
        (["<answer></answer>"], 0),
        (["<tool_token>\n<<A>>\n</tool_token>", "<answer>Hello.</answer>"], 0),
        (["<tool_token>\n<<Z>>\n</tool_token>", "<answer>Hello.</answer>"], 0),
        (["<tool_token>\n<<Z>>\n</tool_token><answer>Hello.</answer>"], 0),
        (['<tool_call>\n{"name": "<<A>>", "arguments": {}}\n</tool_call>', "<answer>Hello.</answer>"], 0),
        (['<tool_call>\n{"name": \n</tool_call>', "<answer>Hello.</answer>"], 0),
    ],
)
def test_no_tool_needed(
    texts: list[str], value: float, make_task: Callable[..., Task], attempt: Callable[..., Trajectory], dialect: Dialect
) -> None:
    trajectory = attempt(texts, dialect)
    assert r_correct(trajectory, make_task()) == value
    assert call_scores(trajectory, make_task())["call_em"] == value / 2


def test_scores_by_hand(make_task: Callable[..., Task], attempt: Callable[..., Trajectory], dialect: Dialect) -> None:
    def scores(*texts: str, gold: Task) -> dict[str, float]:
        return call_scores(attempt(texts, dialect, DONE), gold)

    gold = make_task([A1, A2, call("B", y=1)], [call("B", y=2)])  # wanted: A, B in round 1, B in round 2
    first = [dialect.print_selection("AB"), dialect.print_calls([call("B", y=1), A2, A1])]
    second = [dialect.print_selection("B"), dialect.print_calls([call("B", y=2)])]
    assert set(scores(*first, *second, gold=gold).values()) == {1.0}
    half = scores(*first, gold=gold)
    # chosen A, B; wanted A, B, B: F1 = 2 * 2 / 5
    assert half == {
        "id_em": 0,
        "id_f1": 0.8,
        "call_em": 0,
        "tool_accuracy": 0,
        "parameter_accuracy": 0,
        "joint_accuracy": 0,
        "valid_json": 1,
    }
    # right parameters, wrong tool, and the other way round
    wrong_tool = scores(dialect.print_calls([call("B", x=1)]), gold=make_task([A1]))
    assert (wrong_tool["parameter_accuracy"], wrong_tool["tool_accuracy"], wrong_tool["joint_accuracy"]) == (1, 0, 0)
    assert "parameter_given_tool" not in wrong_tool
    wrong_value = scores(dialect.print_calls([A2]), gold=make_task([A1]))
    assert (wrong_value["parameter_accuracy"], wrong_value["tool_accuracy"], wrong_value["id_em"]) == (0, 1, 1)
    assert wrong_value["parameter_given_tool"] == 0
    # parameters swapped between tools: both sums right, the calls wrong
    swapped = scores(dialect.print_calls([call("A", x=2), call("B", x=1)]), gold=make_task([A1, call("B", x=2)]))
    assert (swapped["joint_accuracy"], swapped["call_em"], swapped["parameter_given_tool"]) == (1, 0, 0)


def test_a_retried_selection_counts_once(
    make_task: Callable[..., Task], attempt: Callable[..., Trajectory], dialect: Dialect
) -> None:
    texts = ["<tool_token>\n<<A>>\n<<Z>>\n</tool_token>", dialect.print_selection("A"), dialect.print_calls([A1])]
    assert call_scores(attempt(texts, dialect, DONE), make_task([A1]))["id_em"] == 1


def test_multisets() -> None:
    assert jaccard("aab", "abb") == pytest.approx(2 / 4)  # shared a, b; 3 + 3 - 2
    assert jaccard("", "") == 1
    assert jaccard("a", "") == 0
    assert multiset_f1("aab", "ab") == pytest.approx(4 / 5)
    assert multiset_f1("", "") == 1


def test_what_has_no_meaning_is_refused(attempt: Callable[..., Trajectory]) -> None:
    unjudged = Task(id="t9", prompt=(), answer="5")
    with pytest.raises(ValueError, match="'t9' has no gold calls"):
        r_correct(attempt(["<answer>5</answer>"], Dialect()), unjudged)
    with pytest.raises(ValueError, match="needs gold calls"):
        r_param([], [])


few_calls = st.lists(
    st.builds(
        ToolCall,
        name=st.sampled_from("AB"),
        arguments=st.dictionaries(st.sampled_from("xy"), st.sampled_from([1, 2, True]), max_size=2),
    ),
    min_size=1,
    max_size=4,
)


@given(few_calls, few_calls, st.randoms(use_true_random=False))
def test_bounds_and_order(gold: list[ToolCall], predicted: list[ToolCall], random: object) -> None:
    value = r_tool(gold, predicted) + r_param(gold, predicted)
    assert 0 <= value <= 2
    random.shuffle(predicted)  # type: ignore[attr-defined]
    assert r_tool(gold, predicted) + r_param(gold, predicted) == pytest.approx(value)
    random.shuffle(gold)  # type: ignore[attr-defined]
    assert r_tool(gold, gold[::-1]) + r_param(gold, gold[::-1]) == 2


def test_recall_is_judged_call_by_call(
    make_task: Callable[..., Task], attempt: Callable[..., Trajectory], dialect: Dialect
) -> None:
    # gold A(x=1) twice, made once: 1/2 and 1/2; gold B(x=2) once, called with other arguments: 1 and 0
    task = make_task([A1, A1, call("B", x=2)])
    made = attempt([dialect.print_selection(("A", "B")), dialect.print_calls([A1, call("B", x=3)])], dialect, DONE)
    assert recalled(made, task, {"A"}) == (0.5, 0.5)
    assert recalled(made, task, {"B"}) == (1.0, 0.0)
    assert recalled(made, task, {"A", "B"}) == pytest.approx((2 / 3, 1 / 3))
    assert recalled(made, task, {"C"}) is None
