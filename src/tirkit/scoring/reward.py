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
    turns = trajectory.turns
    if not turns or any(turn.problems for turn in turns):
        return 0.0
    rounds = turns[:-1] if _answers(turns[-1]) else turns
    if rounds is turns and not (task.calls_only and trajectory.stop is StopReason.CALLS_COMPLETE):
        return 0.0
    if rounds is not turns and trajectory.stop is not StopReason.ANSWERED:
        return 0.0
    if task.gold_calls and not rounds:
        return 0.0
    return float(_are_rounds(rounds, dialect))


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
        score, failed = 0.0, 0.0
        if value > 0 if self.bonus == "partial" else right:
            given = self.scorer(trajectory, task)
            failed = float(given is None or given != given)
            score = 0.0 if given is None or failed else given
        bonus = score if self.bonus == "signed" else max(0.0, score)
        return RewardBreakdown(
            terms=(
                RewardTerm(name="format", value=0.0 if well_formed else -1.0),
                RewardTerm(name="outcome", value=value),
                RewardTerm(name="bonus", value=bonus, weight=self.weight),
                RewardTerm(name="scorer_failed", value=failed, weight=0.0),
            )
        )


def _correct(trajectory: Trajectory, task: Task) -> float:
    if not task.gold_calls and task.answer is not None:
        return 2.0 * (verdict(trajectory, task) is Verdict.RIGHT)
    return r_correct(trajectory, task)


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
