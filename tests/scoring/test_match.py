from collections.abc import Callable
from decimal import Decimal

import pytest

from tirkit.scoring.match import Verdict, answer_f1, answers_equal, exact_match, number, outcome, verdict
from tirkit.text.dialects import Dialect
from tirkit.types import StopReason, Task, ToolCall, Trajectory, Turn

CALL = ToolCall(name="A", arguments={"x": 1})


@pytest.mark.parametrize(
    ("gold", "predicted", "equal"),
    [
        ("5", "5.0", True),
        ("1234.5", "1,234.50", True),
        ("0.3", "0.30000000000000004", True),
        ("-5", "5", False),
        ("5", "-5", False),
        ("1e3", "1000", True),
        ("1e999", "1e998", False),
        ("0", "0.0", True),
        ("0", "1e-12", False),
        ("5", "5 6 7", False),
        ("5", "5 apples", False),
        ("The Hague", "the hague.", True),
        ("Oslo", "Oslo, Bergen", False),
        ("Oslo", "", False),
        ("", "", False),
        ("", " ", False),
        ("+", "-", False),
        ("1/2", "12", False),
        ("1/2", "1-2", False),
        ("1/2", "1 2", False),
        ("x+1", "x-1", False),
        ("x+1", "x + 1", True),
        ("a<b", "a>b", False),
        ("C++", "C", False),
        ("C++", "c++", True),
        ("2^10", "2 10", False),
        ("<5", "5", False),
        ("Spider-Man", "spider man", True),
        ("Oslo", "- **Oslo**", True),
        ("10 km/h", "10 km / h", True),
        ("١", "1", False),
    ],
)
def test_answers_equal(gold: str, predicted: str, equal: bool) -> None:
    assert answers_equal(gold, predicted) is equal
    assert exact_match(gold, predicted) == float(equal)


def test_number() -> None:
    for text in ("", ".", "+", "e5", "1,23", "1_000", "nan", "inf", "0x1", "1e9999"):
        assert number(text) is None
    assert number(" -1,234.5e-1 ") == Decimal("-123.45")


def test_f1() -> None:
    # 2 shared words of 2 and 3: 2 * 2 / 5
    assert answer_f1("new york", "New York City") == pytest.approx(0.8)
    assert answer_f1("oslo", "the oslo") == 1
    assert answer_f1("", "") == answer_f1("oslo", "") == answer_f1("oslo", "Call A with x = 1.") == 0


@pytest.mark.parametrize(
    ("texts", "stop", "expected"),
    [
        ([[CALL], "21"], StopReason.ANSWERED, Verdict.RIGHT),
        ([[CALL], "22"], StopReason.ANSWERED, Verdict.WRONG),
        ([[CALL, CALL], "21"], StopReason.ANSWERED, Verdict.WRONG),
        (["21"], StopReason.ANSWERED, Verdict.WRONG),
        ([[CALL]], StopReason.MAX_TURNS, Verdict.WRONG),
        ([[CALL], "21"], StopReason.MAX_TOKENS, Verdict.WRONG),
        ([[CALL], "20 21 22"], StopReason.ANSWERED, Verdict.WRONG),
        ([], StopReason.MALFORMED, Verdict.WRONG),
        ([], StopReason.POLICY_FAILED, Verdict.UNSCORED),
    ],
)
def test_verdict(
    texts: list[str | list[ToolCall]],
    stop: StopReason,
    expected: Verdict,
    make_task: Callable[..., Task],
    attempt: Callable[..., Trajectory],
) -> None:
    dialect = Dialect()
    printed = [dialect.print_answer(t) if isinstance(t, str) else dialect.print_calls(t) for t in texts]
    assert verdict(attempt(printed, dialect, stop), make_task([CALL], answer="21")) is expected


def test_verdict_judges_only_what_the_task_gives(
    make_task: Callable[..., Task], attempt: Callable[..., Trajectory]
) -> None:
    dialect = Dialect()
    answered = attempt([dialect.print_calls([CALL]), "<answer>21</answer>"], dialect)
    task = make_task([CALL])
    assert verdict(answered, task) is Verdict.RIGHT
    assert verdict(answered, task.model_copy(update={"gold_rounds": None})) is Verdict.UNSCORED
    assert verdict(answered, task.model_copy(update={"gold_rounds": None, "answer": "21"})) is Verdict.RIGHT
    calls_only = attempt([dialect.print_calls([CALL])], dialect, StopReason.CALLS_COMPLETE)
    assert verdict(calls_only, make_task([CALL], calls_only=True)) is Verdict.RIGHT
    assert verdict(attempt(["Call A with x = 1."], dialect, StopReason.MALFORMED), make_task()) is Verdict.WRONG


def answered(text: str) -> Trajectory:
    turn = Turn(text=f"<answer>{text}</answer>", answer=text)
    return Trajectory(task_id="t", prompt=(), turns=(turn,), stop=StopReason.ANSWERED)


@pytest.mark.parametrize(
    ("reply", "f1", "right"),
    [
        ("Lois Weber", 1, True),
        (r"\boxed{the lois weber.}", 1, True),
        ("L. Weber", 0.5, True),  # 1 shared word of 2 and 2: 2 * 1 / 4
        ("Lois Weber or Ida May Park", 0.5, True),  # 2 of 2 and 6: 2 * 2 / 8
        ("Who directed it? Lois Weber or Ida May Park", 4 / 11, False),
        ("Ida May Park", 0, False),
        ("", 0, False),
        (r"\boxed{}", 0, False),
    ],
)
def test_questions_are_judged_by_f1(reply: str, f1: float, right: bool) -> None:
    task = Task(id="t", prompt=(), answer="Florence Weber", other_answers=("Lois Weber",), comparison="qa")
    assert outcome(answered(reply), task) == pytest.approx(f1)
    assert verdict(answered(reply), task) is (Verdict.RIGHT if right else Verdict.WRONG)
    exact = task.model_copy(update={"comparison": "exact"})
    assert verdict(answered(reply), exact) is (Verdict.RIGHT if f1 == 1 else Verdict.WRONG)
    assert outcome(answered(reply), exact) == float(f1 == 1)


def test_outcome_needs_the_end_and_the_calls(make_task: Callable[..., Task]) -> None:
    task = make_task([CALL], answer="Oslo", comparison="qa")
    assert outcome(answered("Oslo"), task) == 0  # the call is missing
    plain = task.model_copy(update={"gold_rounds": None})
    assert outcome(answered("Oslo"), plain) == 1
    assert outcome(answered("Oslo").model_copy(update={"stop": StopReason.MAX_TOKENS}), plain) == 0
