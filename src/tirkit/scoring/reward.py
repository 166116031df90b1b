"""Rewards: pure functions of (trajectory, task) that say what they are the sum of."""

from collections.abc import Callable
from dataclasses import dataclass

from tirkit.scoring.calls import r_correct
from tirkit.scoring.match import Verdict, verdict
from tirkit.text.dialects import Dialect
from tirkit.types import RewardBreakdown, RewardTerm, StopReason, Task, Trajectory, Turn

RewardFn = Callable[[Trajectory, Task], RewardBreakdown]


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
