"""Rewards: pure functions of (trajectory, task) that say what they are the sum of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tirkit.scoring.calls import r_correct
from tirkit.scoring.match import Verdict, outcome, verdict
from tirkit.text.dialects import Dialect
from tirkit.types import RewardBreakdown, RewardTerm, StopReason, Task, Trajectory, Turn

RewardFn = Callable[[Trajectory, Task], RewardBreakdown]
ScoreFn = Callable[[Trajectory, Task], float | None]
"""A trajectory's normalised score ŝ in (-1, 1) by a reward model; None where it gives none."""
Bonus = Literal["right", "partial", "signed"]


def r_format(trajectory: Trajectory, dialect: Dialect, task: Task) -> float:
    """R_format in {0, 1}: every turn well-formed, its blocks in order, once a round, nothing after the end.

    A round is a selection (where the dialect has one), then calls of tools selected in that round only. Rounds are
    followed by one answer; with `calls_only` the calls may be the end. Where there are gold calls, calls are required.
    """
    return float(_well_formed(trajectory, dialect, task) and not (task.gold_calls and not _rounds(trajectory)))


@dataclass(frozen=True)
class TinrReward:
    """R = R_format + R_correct in [0, 3] (TInR, arXiv 2604.10788). A `RewardFn`.

    *Ours*: where a task has an answer and no gold call (none is needed, or calls are not judged), R_correct is 2 iff
    the attempt succeeded. ValueError where a task has neither calls nor an answer to judge.
    """

    dialect: Dialect

    def __call__(self, trajectory: Trajectory, task: Task) -> RewardBreakdown:
        """The terms `format` and `calls`."""
        form = r_format(trajectory, self.dialect, task)
        return RewardBreakdown(
            terms=(RewardTerm(name="format", value=form), RewardTerm(name="calls", value=_correct(trajectory, task)))
        )


@dataclass(frozen=True)
class TrajectoryReward:
    """AutoTraj's combined reward (arXiv 2601.23032), range [-1, 1 + weight]. A `RewardFn`.

        R = -1                                        bad format or no answer
        R = R_out + weight * 1[right] * max(0, ŝ)     else: "right" (*ours*, the default)
        R = R_out + weight * 1[R_out > 0] * max(0, ŝ)       "partial": as released, a sliver of F1 gets the bonus too
        R = R_out + weight * 1[right] * ŝ                   "signed": a bad trajectory loses a part of its reward

    Where the scorer gives no score (or NaN) ŝ is 0 and the term `scorer_failed` is 1. The scorer is asked only where
    its score counts.
    """

    dialect: Dialect
    scorer: ScoreFn
    weight: float = 0.2
    bonus: Bonus = "right"

    def __call__(self, trajectory: Trajectory, task: Task) -> RewardBreakdown:
        """The terms `format` (0 or -1), `outcome` (R_out), `bonus` and, with weight 0, `scorer_failed`."""
        well_formed = bool(r_format(trajectory, self.dialect, task))
        value = outcome(trajectory, task) if well_formed else 0.0
        right = well_formed and verdict(trajectory, task) is Verdict.RIGHT
        counts = value > 0 if self.bonus == "partial" else right
        score, failed = _score(self.scorer if counts else None, trajectory, task)
        bonus = score if self.bonus == "signed" else max(0.0, score)
        return RewardBreakdown(
            terms=(
                RewardTerm(name="format", value=0.0 if well_formed else -1.0),
                RewardTerm(name="outcome", value=value),
                RewardTerm(name="bonus", value=bonus, weight=self.weight),
                RewardTerm(name="scorer_failed", value=failed, weight=0.0),
            )
        )


def mode_right(trajectory: Trajectory, task: Task) -> bool:
    """Right as AutoTool counts: the gold calls, lenient; no call where none is needed; with an answer, the verdict.

    ValueError where a task has neither calls nor an answer to judge.
    """
    if task.gold_calls is None and task.answer is None:
        raise ValueError(f"task {task.id!r} has neither gold calls nor an answer to judge by")
    return verdict(trajectory, task, "lenient" if task.answer is None else "strict") is Verdict.RIGHT


@dataclass(frozen=True)
class ModeReward:
    """AutoTool's table (arXiv 2603.13348) after a format gate (*ours*): R in {-1, -0.5, 0.5, 1}. A `RewardFn`.

        malformed, or no mode tag   -1
        R = s * (2 * right - 1)     s = 1 without thinking, 0.5 with it

    So thinking pays iff p_think > 2 * p_no_think - 0.5. Right: see `mode_right`, also for its ValueError.
    """

    dialect: Dialect

    def __call__(self, trajectory: Trajectory, task: Task) -> RewardBreakdown:
        """The terms `format` (0 or -1), `mode` and, with weight 0, `right`."""
        right, well_formed = mode_right(trajectory, task), _has_form(trajectory, self.dialect, task)
        value = _scale(trajectory) * (1.0 if right else -1.0)
        return RewardBreakdown(
            terms=(
                RewardTerm(name="format", value=0.0 if well_formed else -1.0),
                RewardTerm(name="mode", value=value if well_formed else 0.0),
                RewardTerm(name="right", value=float(right), weight=0.0),
            )
        )


@dataclass(frozen=True)
class UnifiedReward:
    """The reward of all three methods together (*ours*). A `RewardFn`.

        malformed, or no mode tag where there are modes   -1
        R = s * (2q - 1) + weight * 1[right] * max(0, ŝ)

    s as in `ModeReward`. q in [0, 1]: TInR's agreement R_correct / 2, or R_out where the task has an answer and no gold
    call. The bonus counts where the verdict is right, not for partial agreement. In [-1, 1 + weight] without thinking,
    [-0.5, 0.5 + weight] with it. With q in {0, 1} and no bonus this is AutoTool's table (strict equality of calls).
    Without a scorer there is no bonus.
    """

    dialect: Dialect
    scorer: ScoreFn | None = None
    weight: float = 0.2

    def __call__(self, trajectory: Trajectory, task: Task) -> RewardBreakdown:
        """The terms `format` (0 or -1), `agreement`, `bonus` and, with weight 0, `scorer_failed` and `right`."""
        right, well_formed = verdict(trajectory, task) is Verdict.RIGHT, _has_form(trajectory, self.dialect, task)
        value = _scale(trajectory) * (2 * _agreement(trajectory, task) - 1) if well_formed else 0.0
        score, failed = _score(self.scorer if right and well_formed else None, trajectory, task)
        return RewardBreakdown(
            terms=(
                RewardTerm(name="format", value=0.0 if well_formed else -1.0),
                RewardTerm(name="agreement", value=value),
                RewardTerm(name="bonus", value=max(0.0, score), weight=self.weight),
                RewardTerm(name="scorer_failed", value=failed, weight=0.0),
                RewardTerm(name="right", value=float(right), weight=0.0),
            )
        )


def _scale(trajectory: Trajectory) -> float:
    return 0.5 if trajectory.mode == "think" else 1.0


def _score(scorer: ScoreFn | None, trajectory: Trajectory, task: Task) -> tuple[float, float]:
    """The scorer's score, and 1 where it gave none; 0 and 0 without a scorer."""
    given = scorer(trajectory, task) if scorer else 0.0
    failed = given is None or given != given
    return 0.0 if given is None or failed else given, float(failed)


def _agreement(trajectory: Trajectory, task: Task) -> float:
    if not task.gold_calls and task.answer is not None:
        return outcome(trajectory, task)
    return r_correct(trajectory, task) / 2


def _correct(trajectory: Trajectory, task: Task) -> float:
    if not task.gold_calls and task.answer is not None:
        return 2.0 * (verdict(trajectory, task) is Verdict.RIGHT)
    return r_correct(trajectory, task)


def _has_form(trajectory: Trajectory, dialect: Dialect, task: Task) -> bool:
    """The gate of rewards by mode: form alone. A reply where calls were needed is wrong, not malformed."""
    return _well_formed(trajectory, dialect, task) and (trajectory.mode is not None or not dialect.modes)


def _well_formed(trajectory: Trajectory, dialect: Dialect, task: Task) -> bool:
    """Whether an attempt is complete rounds and one answer; see `r_format`."""
    turns, rounds = trajectory.turns, _rounds(trajectory)
    if not turns or any(turn.problems for turn in turns) or not _are_rounds(rounds, dialect):
        return False
    if len(rounds) < len(turns):
        return trajectory.stop is StopReason.ANSWERED
    return task.calls_only and trajectory.stop is StopReason.CALLS_COMPLETE


def _rounds(trajectory: Trajectory) -> tuple[Turn, ...]:
    """The turns without the answer they may end with."""
    turns = trajectory.turns
    return turns[:-1] if turns and _answers(turns[-1]) else turns


def _answers(turn: Turn) -> bool:
    return turn.answer is not None and not turn.selected and not turn.calls


def _are_rounds(turns: tuple[Turn, ...], dialect: Dialect) -> bool:
    """Whether the turns are complete rounds and nothing else."""
    if any(turn.answer is not None for turn in turns):
        return False
    if not dialect.selects:
        return all(turn.calls for turn in turns)
    pairs = list(zip(turns[::2], turns[1::2], strict=False))
    return len(turns) % 2 == 0 and all(_is_round(selection, call) for selection, call in pairs)


def _is_round(selection: Turn, call: Turn) -> bool:
    called = {c.name for c in call.calls}
    return bool(selection.selected and called) and not selection.calls and called <= set(selection.selected)
