import pickle
from collections.abc import Callable

import pytest

from tirkit.scoring.reward import Bonus, TinrReward, TrajectoryReward, r_format
from tirkit.text.dialects import Dialect
from tirkit.types import StopReason, Task, ToolCall, Trajectory

MakeTask, Attempt = Callable[..., Task], Callable[..., Trajectory]
A, B = ToolCall(name="A", arguments={"x": 1}), ToolCall(name="B")
SELECT_A, SELECT_AB = "<tool_token>\n<<A>>\n</tool_token>", "<tool_token>\n<<A>>\n<<B>>\n</tool_token>"
CALL_A = '<tool_call>\n{"name": "<<A>>", "arguments": {"x": 1}}\n</tool_call>'
CALL_B = '<tool_call>\n{"name": "<<B>>", "arguments": {}}\n</tool_call>'
CALL_AA = CALL_A.replace("</tool_call>", '{"name": "<<A>>", "arguments": {"x": 2}}\n</tool_call>')
ANSWER = "<answer>21</answer>"
ANSWERED, COMPLETE, MAX_TURNS, MALFORMED = (
    StopReason.ANSWERED,
    StopReason.CALLS_COMPLETE,
    StopReason.MAX_TURNS,
    StopReason.MALFORMED,
)


@pytest.mark.parametrize(
    ("texts", "stop", "value"),
    [
        ([SELECT_A, CALL_A, ANSWER], ANSWERED, 1),
        ([SELECT_A, CALL_A, SELECT_A, CALL_A, ANSWER], ANSWERED, 1),
        ([SELECT_AB, CALL_A, ANSWER], ANSWERED, 1),  # selected and not called: costs precision, not form
        ([SELECT_A, CALL_AA, ANSWER], ANSWERED, 1),  # one selection, called twice
        ([SELECT_A, CALL_A], MAX_TURNS, 0),  # no answer
        ([SELECT_A, CALL_A], COMPLETE, 0),  # an executed task must be answered
        ([ANSWER], ANSWERED, 0),  # calls are missing
        ([SELECT_A, ANSWER], ANSWERED, 0),
        ([CALL_A, ANSWER], ANSWERED, 0),
        ([CALL_A, SELECT_A, ANSWER], ANSWERED, 0),
        ([SELECT_A, SELECT_A, CALL_A, ANSWER], ANSWERED, 0),
        ([SELECT_A, CALL_A, CALL_A, ANSWER], ANSWERED, 0),
        ([SELECT_A, CALL_B, ANSWER], ANSWERED, 0),  # called without selecting
        ([SELECT_AB, CALL_A, SELECT_A, CALL_B, ANSWER], ANSWERED, 0),  # selected, but not in that round
        ([SELECT_A, CALL_A, ANSWER, ANSWER], ANSWERED, 0),
        ([SELECT_A, CALL_A, ANSWER, SELECT_A, CALL_A], ANSWERED, 0),
        ([SELECT_A, CALL_A, ANSWER + " bye"], MALFORMED, 0),
        ([SELECT_A + CALL_A, ANSWER], ANSWERED, 0),
        ([SELECT_A, CALL_A + ANSWER], ANSWERED, 0),
        ([SELECT_A, ANSWER + CALL_A], ANSWERED, 0),
        ([], StopReason.POLICY_FAILED, 0),
        ([""], MALFORMED, 0),
        ([SELECT_A, CALL_A[:-9]], StopReason.MAX_TOKENS, 0),
        (["Call A with x = 1."], MALFORMED, 0),
    ],
)
def test_format_in_two_steps(
    texts: list[str], stop: StopReason, value: float, dialect: Dialect, make_task: MakeTask, attempt: Attempt
) -> None:
    assert r_format(attempt(texts, dialect, stop), dialect, make_task([A])) == value


@pytest.mark.parametrize(
    ("texts", "stop", "value"),
    [
        ([CALL_A, ANSWER], ANSWERED, 1),
        ([CALL_A, CALL_B, ANSWER], ANSWERED, 1),
        ([CALL_A], MAX_TURNS, 0),
        ([ANSWER, CALL_A], ANSWERED, 0),
        ([SELECT_A, CALL_A, ANSWER], ANSWERED, 0),
    ],
)
def test_format_in_one_step(
    texts: list[str], stop: StopReason, value: float, dialect: Dialect, make_task: MakeTask, attempt: Attempt
) -> None:
    one_step = Dialect(dialect.index, two_step=False)
    assert r_format(attempt(texts, one_step, stop), one_step, make_task([A])) == value


def test_format_of_tasks_about_the_calls_only(dialect: Dialect, make_task: MakeTask, attempt: Attempt) -> None:
    task = make_task([A], calls_only=True)
    assert r_format(attempt([SELECT_A, CALL_A], dialect, COMPLETE), dialect, task) == 1
    assert r_format(attempt([SELECT_A, CALL_A], dialect, MAX_TURNS), dialect, task) == 0
    assert r_format(attempt([SELECT_A], dialect, COMPLETE), dialect, task) == 0
    assert r_format(attempt([ANSWER], dialect), dialect, task) == 0


def test_format_without_a_tool(dialect: Dialect, make_task: MakeTask, attempt: Attempt) -> None:
    for task in (make_task(), make_task(calls_only=True), Task(id="t", prompt=(), answer="21")):
        assert r_format(attempt([ANSWER], dialect), dialect, task) == 1
        assert r_format(attempt(["21"], dialect, MALFORMED), dialect, task) == 0


def test_format_with_thinking_required(dialect: Dialect, make_task: MakeTask, attempt: Attempt) -> None:
    strict = Dialect(dialect.index, think="required")
    thought = "<think>\nhm\n</think>\n"
    texts = [thought + SELECT_A, CALL_A, thought + ANSWER]
    assert r_format(attempt(texts, strict), strict, make_task([A])) == 1
    for without in (0, 2):
        fewer = [text.removeprefix(thought) if i == without else text for i, text in enumerate(texts)]
        assert r_format(attempt(fewer, strict), strict, make_task([A])) == 0


def test_tinr_reward(dialect: Dialect, make_task: MakeTask, attempt: Attempt) -> None:
    reward = pickle.loads(pickle.dumps(TinrReward(dialect)))
    task = make_task([A], answer="21")

    def terms(*texts: str, task: Task = task) -> dict[str, float]:
        return {term.name: term.value * term.weight for term in reward(attempt(texts, dialect), task).terms}

    assert terms(SELECT_A, CALL_A, ANSWER) == {"format": 1, "calls": 2}
    assert terms(CALL_A, SELECT_A, ANSWER) == {"format": 0, "calls": 2}  # the release gives this 3
    assert terms(SELECT_AB, CALL_B, ANSWER) == {"format": 1, "calls": 0}
    assert terms("") == {"format": 0, "calls": 0}
    assert terms(ANSWER, task=make_task()) == {"format": 1, "calls": 2}
    assert terms(ANSWER, task=make_task(answer="21")) == {"format": 1, "calls": 2}
    assert terms(ANSWER, task=make_task(answer="22")) == {"format": 1, "calls": 0}
    assert terms(SELECT_A, CALL_A, ANSWER, task=make_task(answer="21")) == {"format": 1, "calls": 0}
    assert reward(attempt([SELECT_A, CALL_A, ANSWER], dialect), task).total == 3


def test_tinr_reward_of_an_answer_without_gold_calls(dialect: Dialect, attempt: Attempt) -> None:
    task = Task(id="t", prompt=(), answer="21")
    assert TinrReward(dialect)(attempt([ANSWER], dialect), task).total == 3
    assert TinrReward(dialect)(attempt(["<answer>22</answer>"], dialect), task).total == 1
    with pytest.raises(ValueError, match="no gold calls"):
        TinrReward(dialect)(attempt([ANSWER], dialect), Task(id="t", prompt=()))


BONUSES: tuple[Bonus, ...] = ("right", "partial", "signed")


class Constant:
    """A scorer that gives every trajectory the same score, and counts how often it is asked."""

    def __init__(self, score: float | None):
        self.score, self.asked = score, 0

    def __call__(self, trajectory: Trajectory, task: Task) -> float | None:
        self.asked += 1
        return self.score


# F1 against "w b c d": of "b c d x" 2 * 3 / 8, of "b c d" 2 * 3 / 7 (both right), of "b" 2 * 1 / 5 (wrong)
@pytest.mark.parametrize(
    ("reply", "score", "right", "partial", "signed"),
    [
        ("malformed", 0.9, -1, -1, -1),
        ("", 0.9, -1, -1, -1),
        ("x y", 0.9, 0, 0, 0),
        ("b c d x", -0.5, 0.75, 0.75, 0.65),
        ("b c d", -0.5, 6 / 7, 6 / 7, 6 / 7 - 0.1),
        ("b c d", 0.5, 6 / 7 + 0.1, 6 / 7 + 0.1, 6 / 7 + 0.1),
        ("b", 0.5, 0.4, 0.5, 0.4),
        ("b", -0.5, 0.4, 0.4, 0.4),
        ("w b c d", -0.999, 1, 1, 1 - 0.1998),
        ("w b c d", 0.999, 1.1998, 1.1998, 1.1998),
        ("w b c d", None, 1, 1, 1),
        ("w b c d", float("nan"), 1, 1, 1),
    ],
)
def test_trajectory_reward_table(
    reply: str, score: float | None, right: float, partial: float, signed: float, attempt: Attempt
) -> None:
    task = Task(id="t", prompt=(), answer="w b c d", comparison="qa")
    text = "plain text" if reply == "malformed" else f"<answer>{reply}</answer>"
    stop = StopReason.MALFORMED if reply in ("malformed", "") else StopReason.ANSWERED
    made = attempt([text], Dialect(), stop)
    totals = [TrajectoryReward(Dialect(), Constant(score), bonus=bonus)(made, task).total for bonus in BONUSES]
    assert totals == pytest.approx([right, partial, signed])


def test_trajectory_reward_counts_failures_and_asks_no_more_than_needed(attempt: Attempt) -> None:
    task = Task(id="t", prompt=(), answer="5")
    good, bad = attempt(["<answer>5</answer>"], Dialect()), attempt(["<answer>6</answer>"], Dialect())
    silent = Constant(None)
    breakdown = TrajectoryReward(Dialect(), silent)(good, task)
    assert {term.name: term.value for term in breakdown.terms} == {
        "format": 0,
        "outcome": 1,
        "bonus": 0,
        "scorer_failed": 1,
    }
    assert TrajectoryReward(Dialect(), silent)(bad, task).total == 0
    assert silent.asked == 1


def test_one_call_too_many_is_malformed(attempt: Attempt) -> None:
    calls = [f'<tool_call>\n{{"name": "f", "arguments": {{"x": {i}}}}}\n</tool_call>' for i in range(4)]
    over = attempt(calls, Dialect(), StopReason.MAX_CALLS)
    task = Task(id="t", prompt=(), answer="5")
    assert TrajectoryReward(Dialect(), Constant(1.0))(over, task).total == -1
