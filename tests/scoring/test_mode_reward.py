"""AutoTool's reward table and the unified reward, by hand."""

import itertools
import pickle
from collections.abc import Callable

import pytest

from tirkit.scoring.reward import ModeReward, UnifiedReward, mode_right
from tirkit.text.dialects import Dialect
from tirkit.types import Mode, StopReason, Task, ToolCall, Trajectory

MakeTask, Attempt = Callable[..., Task], Callable[..., Trajectory]
A, B = ToolCall(name="A", arguments={"x": 1}), ToolCall(name="B")
CALL_A = '<tool_call>\n{"name": "A", "arguments": {"x": 1}}\n</tool_call>'
CALL_A2 = CALL_A.replace("1", "2")
CALL_AB = CALL_A.replace("</tool_call>", '{"name": "B", "arguments": {}}\n</tool_call>')
ANSWER, OTHER = "<answer>21</answer>", "<answer>22</answer>"
COMPLETE, MALFORMED = StopReason.CALLS_COMPLETE, StopReason.MALFORMED
PLAIN = Dialect(modes=True)  # tools by name, no selection


@pytest.fixture
def played(attempt: Attempt) -> Callable[..., Trajectory]:
    def play(texts: list[str], mode: Mode | None = "no_think", stop: StopReason = StopReason.ANSWERED) -> Trajectory:
        return attempt(texts, PLAIN, stop).model_copy(update={"mode": mode})

    return play


@pytest.mark.parametrize(
    ("texts", "stop", "right", "form"),
    [
        ([CALL_A], COMPLETE, True, True),
        ([CALL_A.replace("1", "1.0")], COMPLETE, True, True),  # lenient
        ([CALL_A2], COMPLETE, False, True),
        ([CALL_AB], COMPLETE, False, True),  # one call too many
        ([ANSWER], StopReason.ANSWERED, False, True),  # no call: wrong, not malformed
        ([CALL_A[:-12]], MALFORMED, False, False),
        ([CALL_A + " bye"], MALFORMED, False, False),
        ([], StopReason.MAX_TOKENS, False, False),
    ],
)
def test_the_table(
    texts: list[str], stop: StopReason, right: bool, form: bool, make_task: MakeTask, played: Callable[..., Trajectory]
) -> None:
    task = make_task([A], calls_only=True)
    for mode, scale in (("no_think", 1.0), ("think", 0.5)):
        reward = ModeReward(PLAIN)(played(texts, mode, stop), task)
        assert reward.total == ((scale if right else -scale) if form else -1.0)
        terms = {term.name: term.value for term in reward.terms}
        assert terms == {"format": float(form) - 1, "mode": reward.total if form else 0.0, "right": float(right)}
    # without a tag there is no telling what it is worth, where there are modes
    assert ModeReward(PLAIN)(played(texts, None, stop), task).total == -1.0


def test_right_without_gold_calls_and_with_an_answer(make_task: MakeTask, played: Callable[..., Trajectory]) -> None:
    nothing_to_call = make_task()
    assert mode_right(played([ANSWER]), nothing_to_call)
    assert not mode_right(played([CALL_A, ANSWER]), nothing_to_call)
    both = make_task([A], answer="21")  # the verdict: calls (strict) and answer
    assert mode_right(played([CALL_A, ANSWER]), both)
    assert not mode_right(played([CALL_A, OTHER]), both)
    assert not mode_right(played([CALL_A2, ANSWER]), both)
    assert not mode_right(played([CALL_A.replace("1", "1.0"), ANSWER]), both)
    answer_only = both.model_copy(update={"gold_rounds": None})
    assert mode_right(played([CALL_A2, ANSWER]), answer_only)
    with pytest.raises(ValueError, match="neither gold calls nor an answer"):
        mode_right(played([ANSWER]), answer_only.model_copy(update={"answer": None}))


def test_thinking_pays_exactly_by_the_threshold_rule(make_task: MakeTask, played: Callable[..., Trajectory]) -> None:
    """Mean reward of either mode at success rates p: thinking is better iff p_think > 2 p_no_think - 0.5."""
    task = make_task([A], calls_only=True)

    def mean(mode: Mode, p: float) -> float:
        right, wrong = (ModeReward(PLAIN)(played([text], mode, COMPLETE), task).total for text in (CALL_A, CALL_A2))
        return p * right + (1 - p) * wrong

    rates = [i / 20 for i in range(21)]
    for p_think, p_short in itertools.product(rates, rates):
        # 0.5 (2 p_t - 1) against 2 p_n - 1; by hand: p_t = 0.9 and p_n = 0.65 give 0.4 against 0.3
        gap = p_think - (2 * p_short - 0.5)
        assert mean("think", p_think) - mean("no_think", p_short) == pytest.approx(gap, abs=1e-9)


def half(trajectory: Trajectory, task: Task) -> float:
    return 0.5


def nothing(trajectory: Trajectory, task: Task) -> None:
    return None


@pytest.mark.parametrize(
    ("texts", "mode", "want"),
    [
        # q = 1, s = 1: 1 * (2 - 1) + 0.2 * 0.5; thinking: 0.5 + 0.1
        ([CALL_A, ANSWER], "no_think", {"format": 0, "agreement": 1, "bonus": 0.5, "right": 1, "total": 1.1}),
        ([CALL_A, ANSWER], "think", {"format": 0, "agreement": 0.5, "bonus": 0.5, "right": 1, "total": 0.6}),
        # the tool is right, its only argument wrong: R_correct = 1 + 0, q = 1/2, 2q - 1 = 0, and no bonus
        ([CALL_A2, ANSWER], "no_think", {"format": 0, "agreement": 0, "bonus": 0, "right": 0, "total": 0}),
        # A and B called for A: Jaccard of tools 1/2, arguments 1: R_correct = 1.5, q = 3/4, 2q - 1 = 0.5, halved
        ([CALL_AB, ANSWER], "think", {"format": 0, "agreement": 0.25, "bonus": 0, "right": 0, "total": 0.25}),
        ([ANSWER], "think", {"format": 0, "agreement": -0.5, "bonus": 0, "right": 0, "total": -0.5}),
        ([CALL_A], "think", {"format": -1, "agreement": 0, "bonus": 0, "right": 0, "total": -1}),  # no answer
        ([CALL_A, ANSWER], None, {"format": -1, "agreement": 0, "bonus": 0, "right": 1, "total": -1}),
    ],
)
def test_unified_by_hand(
    texts: list[str], mode: Mode | None, want: dict[str, float], make_task: MakeTask, played: Callable[..., Trajectory]
) -> None:
    stop = StopReason.ANSWERED if texts[-1] == ANSWER else StopReason.MAX_TURNS
    reward = UnifiedReward(PLAIN, half)(played(texts, mode, stop), make_task([A]))
    assert reward.total == pytest.approx(want.pop("total"))
    assert {term.name: term.value for term in reward.terms} == pytest.approx(want | {"scorer_failed": 0})


def test_unified_takes_the_outcome_where_there_is_an_answer_and_no_gold_call(played: Callable[..., Trajectory]) -> None:
    task = Task(id="t", prompt=(), answer="cold green tea", comparison="qa")
    # F1 of "green tea": 2 * 2 / (3 + 2) = 0.8, at least 0.5, so it counts as right; 2q - 1 = 0.6
    reward = UnifiedReward(PLAIN, half)(played(["<answer>green tea</answer>"], "think"), task)
    assert reward.total == pytest.approx(0.5 * 0.6 + 0.2 * 0.5)


def test_unified_without_scorer_or_score(make_task: MakeTask, played: Callable[..., Trajectory]) -> None:
    right = played([CALL_A, ANSWER])
    assert UnifiedReward(PLAIN)(right, make_task([A])).total == 1.0
    failed = UnifiedReward(PLAIN, nothing)(right, make_task([A]))
    assert failed.total == 1.0
    assert {term.name: term.value for term in failed.terms}["scorer_failed"] == 1.0


def test_unified_without_modes_is_the_plain_reward(make_task: MakeTask, played: Callable[..., Trajectory]) -> None:
    assert UnifiedReward(Dialect())(played([CALL_A, ANSWER], None), make_task([A])).total == 1.0


def test_rewards_travel_to_other_processes() -> None:
    assert pickle.loads(pickle.dumps(ModeReward(PLAIN))) == ModeReward(PLAIN)
    assert pickle.loads(pickle.dumps(UnifiedReward(PLAIN, half))) == UnifiedReward(PLAIN, half)
