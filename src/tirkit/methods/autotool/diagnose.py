"""Early warning of mode collapse: the policy stops thinking although thinking works, or works better and better.

Plain GRPO on tool use does this (AutoTool, arXiv 2603.13348). On its own a falling think rate says nothing: thinking
may have become needless. A few rollouts that are made to think tell the two apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CURES = (
    "advantages without std (rl.std_normalised = false), an entropy floor on the mode token (rl.entropy), "
    "or thinking forced on some rollouts (rl.guard)"
)


@dataclass(frozen=True)
class ModeProbe:
    """The policy at one step. `think_accuracy`: of `num_forced` rollouts that were made to think.

    `no_think_accuracy`: of as many that were made not to, where that was measured.
    """

    step: int
    think_rate: float
    think_accuracy: float
    num_forced: int
    no_think_accuracy: float | None = None

    @property
    def thinking_pays(self) -> bool:
        """By the reward table p_think > 2 p_no_think - 0.5; true where it is not known."""
        return self.no_think_accuracy is None or self.think_accuracy > 2 * self.no_think_accuracy - 0.5


def collapse_warning(history: Sequence[ModeProbe], window: int = 2, fall: float = 0.3) -> str | None:
    """What to tell the user, None while there is nothing to tell.

    Means over `window` probes are compared: the newest against the one at which the think rate was highest. It warns
    where the think rate fell by the share `fall` and more, the accuracy of forced thinking did not fall by more than
    one standard error of the difference, and thinking still pays.
    """
    windows = [_mean(history[end - window : end]) for end in range(window, len(history) + 1)]
    if not windows:
        return None
    peak, now = max(windows, key=lambda w: w.think_rate), windows[-1]
    if now.think_rate > (1 - fall) * peak.think_rate or not now.thinking_pays:
        return None
    if now.think_accuracy < peak.think_accuracy - _standard_error(peak, now):
        return None
    better = "rose" if now.think_accuracy > peak.think_accuracy else "stayed"
    return (
        f"step {now.step}: thinking is being unlearnt although it works: since step {peak.step} the think rate fell "
        f"{peak.think_rate:.2f} → {now.think_rate:.2f} while accuracy when made to think {better} "
        f"{peak.think_accuracy:.2f} → {now.think_accuracy:.2f} ({now.num_forced} rollouts); what helps: {CURES}"
    )


def _mean(probes: Sequence[ModeProbe]) -> ModeProbe:
    """One probe for several, at the step of the last; the number of its rollouts is theirs together."""
    short = [probe.no_think_accuracy for probe in probes if probe.no_think_accuracy is not None]
    return ModeProbe(
        step=probes[-1].step,
        think_rate=sum(probe.think_rate for probe in probes) / len(probes),
        think_accuracy=sum(probe.think_accuracy for probe in probes) / len(probes),
        num_forced=sum(probe.num_forced for probe in probes),
        no_think_accuracy=sum(short) / len(short) if short else None,
    )


def _standard_error(one: ModeProbe, other: ModeProbe) -> float:
    """Of the difference of two accuracies; each counts as if one more was right and one more wrong, never 0."""
    variances = []
    for probe in (one, other):
        n = probe.num_forced + 2
        p = (probe.think_accuracy * probe.num_forced + 1) / n
        variances.append(p * (1 - p) / n)
    return math.sqrt(sum(variances))
