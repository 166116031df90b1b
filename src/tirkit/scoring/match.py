"""Is an attempt right? Exact match, F1, equality of numbers and expressions, and the verdict.

"Unscored" is not "wrong". An empty answer is never right, and no rule looks for the target inside a longer reply.
"""

import re
from collections import Counter
from decimal import Decimal
from enum import StrEnum

from tirkit.scoring.calls import calls_right
from tirkit.scoring.maths import expressions_equal
from tirkit.text.answers import answer_operators, answer_words, normalise_answer, unbox
from tirkit.text.schema import Equality
from tirkit.types import StopReason, Task, Trajectory

_NUMBER = re.compile(r"[-+]?(?:\d{1,400}|\d{1,3}(?:,\d{3}){1,130})?(?:\.\d{0,400})?(?:[eE][-+]?\d{1,3})?", re.ASCII)
_TOLERANCE = Decimal("1e-9")  # relative: forgives how a float was printed, nothing else
_FINISHED = (StopReason.ANSWERED, StopReason.CALLS_COMPLETE)
QA_F1 = 0.5  # from here on an answer to a question counts as right


class Verdict(StrEnum):
    """Whether an attempt succeeded; `UNSCORED` where nothing says what right would be, or no attempt was made."""

    RIGHT = "right"
    WRONG = "wrong"
    UNSCORED = "unscored"


def verdict(trajectory: Trajectory, task: Task, equality: Equality = "strict") -> Verdict:
    """Task success: the attempt ended by itself, with the gold calls where they are judged and the answer if given."""
    judged = task.gold_calls is not None or task.answer is not None
    if not judged or trajectory.stop is StopReason.POLICY_FAILED:
        return Verdict.UNSCORED
    right = trajectory.stop in _FINISHED and calls_right(trajectory, task, equality) and answer_right(trajectory, task)
    return Verdict.RIGHT if right else Verdict.WRONG


def answer_right(trajectory: Trajectory, task: Task) -> bool:
    """Whether the final reply is one of the targets, by the task's comparison; true where the task has none."""
    if task.answer is None:
        return True
    equal = {"exact": answers_equal, "maths": maths_equal, "qa": qa_equal}[task.comparison]
    return trajectory.answer is not None and any(equal(gold, trajectory.answer) for gold in task.answers)


def outcome(trajectory: Trajectory, task: Task) -> float:
    """R_out in [0, 1] (AutoTraj, arXiv 2601.23032): the best F1 for "qa", else 1 where the answer is right, else 0.

    0 where the calls are judged and are not the gold calls, and where the attempt did not end by itself.
    """
    if trajectory.stop not in _FINISHED or not calls_right(trajectory, task):
        return 0.0
    if task.comparison == "qa" and task.answer is not None:
        return max(qa_f1(gold, trajectory.answer or "") for gold in task.answers)
    return float(answer_right(trajectory, task))


def answers_equal(gold: str, predicted: str) -> bool:
    """Two numbers: equal up to a relative 1e-9. Otherwise: the same words, and the same operators between operands.

    `\\boxed{}` counts by what it holds.

    >>> answers_equal("1234", "1,234.0"), answers_equal("Oslo", "oslo."), answers_equal("3", "1 2 3 4")
    (True, True, False)
    >>> answers_equal("x+1", "x - 1"), answers_equal("x+1", "x + 1"), answers_equal("Spider-Man", "spider man")
    (False, True, True)
    """
    gold, predicted = unbox(gold), unbox(predicted)
    if not predicted:
        return False
    one, other = number(gold), number(predicted)
    if one is not None and other is not None:
        return abs(one - other) <= _TOLERANCE * max(abs(one), abs(other))
    same_words = normalise_answer(gold) == normalise_answer(predicted)
    return same_words and answer_operators(gold) == answer_operators(predicted)


def maths_equal(gold: str, predicted: str) -> bool:
    """Equal as text, numbers or mathematical expressions (math_verify, 2 s at most).

    Raises `MathsError` where math-verify is needed and not installed.
    """
    gold, predicted = unbox(gold), unbox(predicted)
    if not predicted or gold == predicted:
        return bool(predicted)
    if number(gold) is not None and number(predicted) is not None:
        return answers_equal(gold, predicted)
    # Words are no way to compare formulas: "x + 1" and "x - 1" have the same ones.
    return expressions_equal(gold, predicted)


def qa_equal(gold: str, predicted: str) -> bool:
    """Equal as answers, or sharing words with an F1 of at least 0.5."""
    return qa_f1(gold, predicted) >= QA_F1


def qa_f1(gold: str, predicted: str) -> float:
    """1 where the answers are equal, else the F1 of their words."""
    gold, predicted = unbox(gold), unbox(predicted)
    return 1.0 if answers_equal(gold, predicted) else answer_f1(gold, predicted)


def exact_match(gold: str, predicted: str) -> float:
    """1 where the answers are equal, else 0."""
    return float(answers_equal(gold, predicted))


def answer_f1(gold: str, predicted: str) -> float:
    """F1 of the words of two answers (SQuAD), in [0, 1]; 0 where one has none."""
    a, b = Counter(answer_words(gold)), Counter(answer_words(predicted))
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def number(text: str) -> Decimal | None:
    """The number `text` is, None where it is none. Thousands may be set off by commas."""
    text = text.strip()
    if not _NUMBER.fullmatch(text) or not any(c.isdigit() for c in re.split("[eE]", text)[0]):
        return None
    return Decimal(text.replace(",", ""))
