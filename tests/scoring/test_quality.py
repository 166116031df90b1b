"""The golden tests of AutoTraj's trajectory score; numbers worked by hand."""

import math

import pytest

from tirkit.scoring.quality import (
    Decision,
    QualityScore,
    QualitySettings,
    count_words,
    decide,
    find_references,
    hedge_words,
    length_score,
    repetition_score,
    score_group,
)
from tirkit.text.dialects import Dialect
from tirkit.types import Message, Mode, StopReason, Task, ToolCall, ToolErrorKind, ToolResult, Trajectory, Turn

TASK = Task(id="t", prompt=(), answer="5")
KEEP, REPAIR, LEAVE = Decision


def attempt(*texts: str, reply: str = "", mode: Mode | None = None, stop: StopReason = StopReason.ANSWERED):
    """An attempt that writes `texts`; after all but the last of them a tool says `reply`."""
    turns = []
    for i, text in enumerate(texts):
        read = Dialect().parse(text)
        back = (Message(role="tool", content=reply),) if i < len(texts) - 1 else ()
        turns.append(Turn(text=text, calls=read.calls, answer=read.answer, problems=read.problems, reply=back))
    return Trajectory(task_id="t", prompt=(), turns=tuple(turns), stop=stop, mode=mode)


def thought(*words: str, answer: str = "5") -> Trajectory:
    return attempt(f"<think>\n{' '.join(words)}\n</think>\n<answer>{answer}</answer>")


def made(total: float, right: bool | None = True, well_formed: float = 1.0) -> QualityScore:
    return QualityScore(
        right=right,
        hesitation=1,
        length=None,
        repetition=1,
        tool_efficiency=None,
        tool_error_rate=None,
        well_formed=well_formed,
        words=1,
        reference_words=None,
        total=total,
    )


@pytest.mark.parametrize(("ratio", "score"), [(1, 1), (1.25, 0.8825), (1.5, 0.6065), (2, 0.1353), (3, 0.0003)])
def test_length(ratio: float, score: float) -> None:
    assert length_score(int(100 * ratio), 100) == pytest.approx(score, abs=5e-5)


def test_shorter_is_punished_unless_one_sided() -> None:
    assert length_score(50, 100) == pytest.approx(math.exp(-0.5))
    assert length_score(50, 100, one_sided=True) == 1
    assert length_score(150, 100, one_sided=True) == length_score(150, 100)


def test_the_reference_is_the_shortest_right_attempt_of_its_mode() -> None:
    # words with the answer: 3, 2 (wrong), 5
    scores = score_group([thought("a", "b"), thought("a", answer="6"), thought("a", "b", "c", "d")], TASK)
    assert [score.words for score in scores] == [3, 2, 5]
    assert {score.reference_words for score in scores} == {3}
    # 5/3 - 1 = 2/3: exp(-8/9); 2/3 - 1 = -1/3: exp(-2/9)
    assert scores[2].length == pytest.approx(math.exp(-8 / 9))
    assert scores[1].length == pytest.approx(math.exp(-2 / 9))
    assert scores[0].total == 1
    assert scores[2].total == pytest.approx(0.7 + 0.3 * math.exp(-8 / 9))
    think = attempt("[think]<think>a b c</think><answer>5</answer>", mode="think")
    short = attempt("[no_think]<answer>5</answer>", mode="no_think")
    # lengths are 4 and 1, and each is the shortest of its own mode
    assert [s.reference_words for s in score_group([think, short, think, short], TASK)] == [4, 1, 4, 1]


def test_unscored_length_leaves_the_other_weights() -> None:
    repeated = ("a", "b", "c", "x", "a", "b", "c")  # 6 3-grams with the answer, two of them the same: e = 4/6
    (lone,) = score_group([thought(*repeated)], TASK)
    assert lone.length is lone.reference_words is None
    assert lone.total == pytest.approx((0.4 + 0.3 * 4 / 6) / 0.7)
    wrong = score_group([thought("a", answer="6"), thought("b", answer="7")], TASK)
    assert [(score.right, score.length, score.total) for score in wrong] == [(False, None, 1)] * 2


def test_repairs_are_measured_against_frozen_references() -> None:
    originals = [thought("a", "b"), thought("a", "b", "c", "d")]
    references = find_references(originals, TASK, QualitySettings(), [True, True])
    (repaired,) = score_group([thought("a")], TASK, references=references)
    assert repaired.reference_words == 3
    assert repaired.length == pytest.approx(math.exp(-2 / 9))
    (one_sided,) = score_group([thought("a")], TASK, QualitySettings(length="one_sided"), references=references)
    assert one_sided.length == 1


@pytest.mark.parametrize(
    "word", ["maybe", "unsure", "guess", "seems", "perhaps", "probably", "might", "likely", "recheck", "Maybe,"]
)
def test_a_hedge_in_a_thought_costs(word: str) -> None:
    both = score_group([thought("so", word, "five"), thought("so", "it", "is")], TASK)
    assert both[0].hesitation == 0
    assert both[0].total <= 0.6
    assert both[1].total == 1


def test_no_hedge_in_results_calls_answers_or_longer_words() -> None:
    call = '<tool_call>\n{"name": "maybe", "arguments": {"x": "perhaps"}}\n</tool_call>'
    told = attempt(call, "<think>\nmighty unlikely seemsly\n</think>\n<answer>5</answer>", reply="maybe 5, probably")
    assert hedge_words(told) == ()
    assert score_group([told], TASK)[0].hesitation == 1
    assert hedge_words(told, "all") == ("maybe", "perhaps")
    assert hedge_words(attempt("<think>I might", stop=StopReason.MALFORMED)) == ("might",)  # not closed


def test_repetition() -> None:
    assert repetition_score([["a", "a", "a", "a", "a"]]) == 1  # five words
    assert repetition_score([["a", "a", "a", "a", "a", "a"]]) == 0
    assert repetition_score([["a", "b", "c", "d", "e", "f"]]) == 1
    assert repetition_score([["a", "b", "c"], ["a", "b", "d"]]) == 1  # no 3-gram over the end of a turn
    assert repetition_score([["a"], ["b"]] * 5) == 1  # no 3-gram at all


def test_tool_turns_count_only_if_asked_for() -> None:
    told = attempt('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "<answer>5</answer>", reply="x " * 9)
    assert count_words(told) == 4 + 1
    assert score_group([told], TASK)[0].repetition == 1
    settings = QualitySettings(tool_turns=True)
    assert count_words(told, settings) == 4 + 9 + 1
    # 3-grams: 2 of the call, 7 x 3 of the result: 7 of 9 repeated
    assert score_group([told], TASK, settings)[0].repetition == pytest.approx(2 / 9)


def test_terms_beside_the_score() -> None:
    call = ToolCall(name="f")
    fine, failed = ToolResult(name="f", content="5"), ToolResult(name="f", content="no", error=ToolErrorKind.RAISED)
    turns = tuple(Turn(text="", calls=(call,), results=(result,)) for result in (fine, failed, failed, fine))
    task = TASK.model_copy(update={"gold_rounds": ((call,), (call,))})
    done = Trajectory(
        task_id="t", prompt=(), turns=(*turns, Turn(text="", answer="5", problems=("x",))), stop=StopReason.ANSWERED
    )
    (score,) = score_group([done], task)
    # 2 calls needed, 4 used; 2 of 4 failed
    assert (score.tool_efficiency, score.tool_error_rate, score.well_formed, score.total) == (0.5, 0.5, 0, 1)
    weighted = QualitySettings(tool_efficiency=1, tool_success=1, well_formed=0.3)
    # no words, so e = 1: (0.4 + 0.3 + 0.5 + 0.5 + 0) / 3
    assert score_group([done], task, weighted)[0].total == pytest.approx(1.7 / 3)
    # without gold calls: as many as the right attempt that makes the fewest
    both = score_group([done, thought("a")], TASK)
    assert [score.tool_efficiency for score in both] == [0, 1]


def test_keep_rule_and_its_boundaries() -> None:
    assert decide([made(0.90), made(1.0), made(0.95, right=False)]) == (KEEP, KEEP, REPAIR)
    assert decide([made(0.899999), made(1.0)]) == (REPAIR, KEEP)
    assert decide([made(0.86), made(0.5)]) == (KEEP, REPAIR)
    assert decide([made(0.859999), made(0.5)]) == (REPAIR, REPAIR)
    assert decide([made(0.87), made(0.87)]) == (KEEP, REPAIR)  # the first of equals
    assert decide([made(1.0, well_formed=0), made(0.88)]) == (REPAIR, KEEP)  # the format gate
    assert decide([made(1.0, right=None)]) == (LEAVE,)
    assert decide([]) == ()


def test_boundaries_are_decimal_numbers() -> None:
    # e = 2/3 of six 3-grams: 0.4 + 0.3 + 0.2 is 0.9, not 0.8999…
    words = ["a", "b", "c", "x", "a", "b", "c"]
    scores = score_group([thought(*words), thought(*words)], TASK)
    assert [score.total for score in scores] == [0.9, 0.9]
    assert decide(scores) == (KEEP, KEEP)


def test_an_empty_answer_is_wrong_and_a_failed_attempt_unscored() -> None:
    assert [s.right for s in score_group([attempt("<answer></answer>"), thought("a", answer="15")], TASK)] == [
        False
    ] * 2
    silent = Trajectory(task_id="t", prompt=(), turns=(), stop=StopReason.POLICY_FAILED)
    assert decide(score_group([silent], TASK)) == (LEAVE,)


def test_success_known_from_elsewhere() -> None:
    open_task = Task(id="t", prompt=())
    attempts = [thought("a"), thought("a", "b", "c")]
    assert [s.right for s in score_group(attempts, open_task)] == [None, None]
    known = score_group(attempts, open_task, right=[True, False])
    assert [(s.right, s.reference_words) for s in known] == [(True, 2), (False, 2)]
