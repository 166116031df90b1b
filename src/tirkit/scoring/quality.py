"""The quality of a trajectory, beyond right or wrong (AutoTraj, arXiv 2601.23032), and what to do with it.

    z  is it right?                    a gate: decides with S what happens to the trajectory, and is no part of S
    c  hesitation     0 where a thought holds a hedge word, else 1
    ℓ  length         exp(-2 (L / L* - 1)²), L in words, L* the shortest right attempt at the query in that mode
    e  repetition     1 - share of the 3-gram occurrences that belong to a repeated 3-gram
    S  = (0.4 c + 0.3 ℓ + 0.3 e) / (sum of the weights of what is scored)

Words are what the policy wrote, without the strings that structure it; what tools handed back is left out (*ours*). L*
is frozen before any repair. ℓ is unscored where no attempt is right, or where there is just one (*ours*).
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from tirkit.scoring.match import Verdict, verdict
from tirkit.text.control import CONTROL_STRINGS, THINK_CLOSE, THINK_OPEN
from tirkit.types import Mode, Record, StopReason, Task, Trajectory

HEDGES = frozenset({"maybe", "unsure", "guess", "seems", "perhaps", "probably", "might", "likely", "recheck"})
MIN_WORDS = 6  # below, nothing counts as repeated

_CONTROL = re.compile("|".join(map(re.escape, CONTROL_STRINGS)))
_THOUGHT = re.compile(rf"{THINK_OPEN}(.*?)(?:{THINK_CLOSE}|\Z)", re.DOTALL)
_LETTERS = re.compile(r"[^\W\d_]+")


class Decision(StrEnum):
    """What becomes of a trajectory. `LEAVE`: nothing says what right would be, so it is neither kept nor repaired."""

    KEEP = "keep"
    REPAIR = "repair"
    LEAVE = "leave"


@dataclass(frozen=True)
class QualitySettings:
    """Weights of S, and the thresholds on it.

    `length="one_sided"`: attempts up to L* long all score 1, so that a repair is not punished for being shorter.
    `tool_turns`: results and documents count as words, as in the authors' release. `hedges_in`: "thoughts", or all that
    the policy wrote, for logs without thoughts. `keep_all` and `keep_best` are inclusive, `accept_poor` and
    `accept_wrong` (repairs of right but poor, and of wrong attempts) strict.
    """

    hesitation: float = 0.4
    length_weight: float = 0.3
    repetition: float = 0.3
    tool_efficiency: float = 0.0
    tool_success: float = 0.0
    well_formed: float = 0.0
    length: Literal["two_sided", "one_sided"] = "two_sided"
    tool_turns: bool = False
    hedges_in: Literal["thoughts", "all"] = "thoughts"
    keep_all: float = 0.90
    keep_best: float = 0.86
    accept_poor: float = 0.86
    accept_wrong: float = 0.80


class QualityScore(Record):
    """One trajectory's score; every dimension is in [0, 1], higher is better, None where it is unscored.

    `tool_efficiency` is 1 where as many calls were made as needed (of two numbers the smaller over the larger),
    `tool_error_rate` the share of calls that gave an error (S takes 1 minus it), `total` is S.
    """

    right: bool | None
    hesitation: float
    length: float | None
    repetition: float
    tool_efficiency: float | None
    tool_error_rate: float | None
    well_formed: float
    words: int
    reference_words: int | None
    total: float


@dataclass(frozen=True)
class References:
    """What attempts at a query are measured against: L* by mode, and the number of calls needed (None: unknown)."""

    words: Mapping[Mode | None, int]
    calls: int | None


def score_group(
    trajectories: Sequence[Trajectory],
    task: Task,
    settings: QualitySettings | None = None,
    *,
    references: References | None = None,
    right: Sequence[bool | None] | None = None,
) -> tuple[QualityScore, ...]:
    """The scores of all attempts at one task, in their order.

    references: those of the original attempts, for repairs; otherwise taken from `trajectories`.
    right: what is known of their success from elsewhere (a log); otherwise their verdicts.
    """
    settings = settings or QualitySettings()
    right = [is_right(t, task) for t in trajectories] if right is None else right
    references = references or find_references(trajectories, task, settings, right)
    return tuple(_score(t, z, references, settings) for t, z in zip(trajectories, right, strict=True))


def is_right(trajectory: Trajectory, task: Task) -> bool | None:
    """z; None where nothing can judge it."""
    judged = verdict(trajectory, task)
    return None if judged is Verdict.UNSCORED else judged is Verdict.RIGHT


def find_references(
    trajectories: Sequence[Trajectory],
    task: Task,
    settings: QualitySettings,
    right: Sequence[bool | None],
    min_attempts: int = 2,
) -> References:
    """L* of the modes with at least `min_attempts`, and the calls needed: the gold's, or the fewest of a right one."""
    attempts = Counter(t.mode for t in trajectories)
    words: dict[Mode | None, int] = {}
    for trajectory, z in zip(trajectories, right, strict=True):
        if z and attempts[trajectory.mode] >= min_attempts:
            length = count_words(trajectory, settings)
            words[trajectory.mode] = min(length, words.get(trajectory.mode, length))
    used = [len(t.calls) for t, z in zip(trajectories, right, strict=True) if z]
    needed = min(used, default=None) if task.gold_calls is None else len(task.gold_calls)
    return References(words, needed)


def decide(scores: Sequence[QualityScore], settings: QualitySettings | None = None) -> tuple[Decision, ...]:
    """The keep rule, over the right and well-formed attempts at one query; every other judged one is repaired.

    min S >= 0.90: keep all of them; else max S >= 0.86: keep the best (the first of equals), repair the rest; else
    repair all.
    """
    settings = settings or QualitySettings()
    good = [i for i, score in enumerate(scores) if score.right and score.well_formed == 1]
    kept: list[int] = []
    if good:
        best = max(good, key=lambda i: (scores[i].total, -i))
        if min(scores[i].total for i in good) >= settings.keep_all:
            kept = good
        elif scores[best].total >= settings.keep_best:
            kept = [best]
    judged = (Decision.LEAVE if score.right is None else Decision.REPAIR for score in scores)
    return tuple(Decision.KEEP if i in kept else decision for i, decision in enumerate(judged))


def length_score(words: int, reference: int, one_sided: bool = False) -> float:
    """ℓ = exp(-2 (L / L* - 1)²); `one_sided`: 1 where L <= L*.

    >>> [round(length_score(words, 4), 4) for words in (4, 5, 6, 8, 12)]
    [1.0, 0.8825, 0.6065, 0.1353, 0.0003]
    """
    excess = (words - reference) / max(reference, 1)
    return 1.0 if one_sided and excess <= 0 else math.exp(-2 * excess**2)


def repetition_score(pieces: Sequence[Sequence[str]]) -> float:
    """e of words in pieces (turns); no 3-gram reaches over the end of a piece.

    Of "a b c", "b c x", "c x a", "x a b", "a b c" two are the same one:

    >>> repetition_score(["a b c x a b c".split()])
    0.6
    """
    grams = Counter(gram for words in pieces for gram in zip(words, words[1:], words[2:], strict=False))
    if sum(map(len, pieces)) < MIN_WORDS or not grams:
        return 1.0
    return 1.0 - sum(count for count in grams.values() if count > 1) / grams.total()


def hedge_words(trajectory: Trajectory, where: Literal["thoughts", "all"] = "thoughts") -> tuple[str, ...]:
    """The hedge words in the policy's thoughts (or in all it wrote), each once, sorted; whole words only."""
    texts = [turn.text for turn in trajectory.turns]
    if where == "thoughts":
        texts = [thought for text in texts for thought in _THOUGHT.findall(text)]
    return tuple(sorted(HEDGES.intersection(word for text in texts for word in _LETTERS.findall(text.lower()))))


def count_words(trajectory: Trajectory, settings: QualitySettings | None = None) -> int:
    """L: the words of a trajectory."""
    return sum(map(len, _pieces(trajectory, settings or QualitySettings())))


def _pieces(trajectory: Trajectory, settings: QualitySettings) -> list[list[str]]:
    texts: list[str] = []
    for turn in trajectory.turns:
        texts.append(_CONTROL.sub(" ", turn.text))
        texts += [message.content for message in turn.reply if settings.tool_turns]
    return [text.split() for text in texts]


def _score(trajectory: Trajectory, right: bool | None, refs: References, settings: QualitySettings) -> QualityScore:
    pieces = _pieces(trajectory, settings)
    words, reference = sum(map(len, pieces)), refs.words.get(trajectory.mode)
    one_sided = settings.length == "one_sided"
    used, results = len(trajectory.calls), [result for turn in trajectory.turns for result in turn.results]
    errors = sum(result.error is not None for result in results) / len(results) if results else None
    efficiency = None if refs.calls is None else _ratio(used, refs.calls)
    hesitation = 0.0 if hedge_words(trajectory, settings.hedges_in) else 1.0
    length = None if reference is None else length_score(words, reference, one_sided)
    repetition, formed = repetition_score(pieces), _well_formed(trajectory)
    total = _mean(
        (hesitation, settings.hesitation),
        (length, settings.length_weight),
        (repetition, settings.repetition),
        (efficiency, settings.tool_efficiency),
        (None if errors is None else 1 - errors, settings.tool_success),
        (formed, settings.well_formed),
    )
    return QualityScore(
        right=right,
        hesitation=hesitation,
        length=length,
        repetition=repetition,
        tool_efficiency=efficiency,
        tool_error_rate=errors,
        well_formed=formed,
        words=words,
        reference_words=reference,
        total=total,
    )


def _mean(*terms: tuple[float | None, float]) -> float:
    """The weighted mean of what is scored; 0 where nothing is. Rounded, so that thresholds mean decimal numbers."""
    scored = [(value, weight) for value, weight in terms if value is not None]
    weights = sum(weight for _, weight in scored)
    return round(sum(value * weight for value, weight in scored) / weights, 9) if weights else 0.0


def _ratio(one: int, other: int) -> float:
    return min(one, other) / max(one, other) if one != other else 1.0


def _well_formed(trajectory: Trajectory) -> float:
    """1 where every turn could be read without a problem and the attempt ended by itself."""
    whole = trajectory.stop in (StopReason.ANSWERED, StopReason.CALLS_COMPLETE)
    return float(whole and not any(turn.problems for turn in trajectory.turns))
