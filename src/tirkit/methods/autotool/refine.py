"""Which tasks reinforcement learning gets: AutoTool's data refinement, the largest effect in its ablation.

A cheap run over the pool leaves, by task and round (epoch), the mean reward of a group, its share of right attempts and
its spread. Then

    too easy or too hard (success over all rounds >= 0.95 or <= 0.05): each is dropped with probability 1/2
    no group of the task ever had two different rewards:               dropped, it never taught anything
    of the rest: the smallest detrended variance of the reward across rounds first, until `fraction` of the pool is kept

The paper (arXiv 2603.13348) takes Var(r) = Σ (r_k - μ)² / (n - 1). *Ours*: of what is left after a straight line
through the rounds, with n - 2 for n - 1, so that a task on which the policy gets better does not pass for a noisy one.
Degenerate: two rounds lie on a line and have variance 0. At most half of what is kept is too easy or too hard.
"""

import random
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

from tirkit.rollout.loop import stable_seed
from tirkit.types import Record, RewardBreakdown

Reason = Literal["kept", "kept: easy", "kept: hard", "easy", "hard", "no spread", "variance"]


class Round(Record):
    """A group in one round: its mean reward, its share of right attempts, its largest minus its smallest reward."""

    reward: float
    success: float
    spread: float


class Refined(Record):
    """What became of a task and why; the reason is what it is kept or dropped for."""

    task_id: str
    success: float
    variance: float
    reason: Reason

    @property
    def kept(self) -> bool:
        """Whether reinforcement learning gets it."""
        return self.reason.startswith("kept")


def round_of(rewards: Sequence[RewardBreakdown], right: str = "right") -> Round:
    """The round of one group; `right` names the reward term that says which attempts are right."""
    totals = [reward.total for reward in rewards]
    successes = [term.value for reward in rewards for term in reward.terms if term.name == right]
    if len(successes) != len(rewards):
        raise ValueError(f"refinement needs a reward term {right!r} that says which attempts are right")
    return Round(reward=fmean(totals), success=fmean(successes), spread=max(totals) - min(totals))


def refine(
    history: Mapping[str, Sequence[Round]],
    fraction: float = 1 / 3,
    easy: float = 0.95,
    hard: float = 0.05,
    drop: float = 0.5,
    seed: int = 0,
) -> list[Refined]:
    """One record a task of `history`, in its order; each draw follows from (seed, task id). ValueError: no round."""
    found = {task_id: _measured(task_id, rounds, easy, hard) for task_id, rounds in history.items()}
    room = round(fraction * len(found))
    draws = {task_id: random.Random(stable_seed(seed, task_id)).random() for task_id in found}
    extremes = sorted((name for name, r in found.items() if r.reason in ("easy", "hard")), key=draws.__getitem__)
    chosen = [name for name in extremes if draws[name] >= drop][: room // 2]
    rest = sorted((r.variance, draws[name], name) for name, r in found.items() if r.reason == "variance")
    chosen += [name for _, _, name in rest[: room - len(chosen)]]
    reasons: dict[Reason, Reason] = {"easy": "kept: easy", "hard": "kept: hard", "variance": "kept"}
    for name in chosen:
        found[name] = found[name].model_copy(update={"reason": reasons[found[name].reason]})
    return list(found.values())


def _measured(task_id: str, rounds: Sequence[Round], easy: float, hard: float) -> Refined:
    """The record of a task as if it were dropped."""
    if not rounds:
        raise ValueError(f"task {task_id!r} has no round to be judged by")
    success = fmean(r.success for r in rounds)
    reason: Reason = "variance"
    if success >= easy or success <= hard:
        reason = "easy" if success >= easy else "hard"
    elif not any(r.spread for r in rounds):
        reason = "no spread"
    variance = detrended_variance([r.reward for r in rounds])
    return Refined(task_id=task_id, success=success, variance=variance, reason=reason)


def detrended_variance(rewards: Sequence[float]) -> float:
    """Σ (r_k - line_k)² / (n - 2), the line by least squares; 0 for fewer than three.

    >>> detrended_variance([0.0, 0.5, 1.0]), detrended_variance([0.0, 1.0, 0.0])  # line 1/3: residuals -1/3, 2/3, -1/3
    (0.0, 0.6666666666666667)
    """
    n = len(rewards)
    if n < 3:
        return 0.0
    centre, mean = (n - 1) / 2, fmean(rewards)
    slope = sum((k - centre) * (r - mean) for k, r in enumerate(rewards)) / sum((k - centre) ** 2 for k in range(n))
    return sum((r - mean - slope * (k - centre)) ** 2 for k, r in enumerate(rewards)) / (n - 2)
