"""The entropy controller of AutoTool (arXiv 2603.13348), and what it is compared with, as one code with other settings.

Each *term* lifts the entropy of some trajectories towards a target, with a coefficient β that may adapt:

    loss  -=  1/N Σ_i Σ_k β_k · 1{term k covers i} · 1{H_ik <= target_k} · H_ik        the gate is detached
    β_k   <-  clamp(β_k - η_k · (mean of H_ik over the trajectories it covers - target_k), 0, β_max)

H_ik is the mean over the tokens that trajectory i sampled of the full-vocabulary entropy in nats, or the entropy of its
mode token alone. N counts the trajectories of the step. Means are over the whole step, on all processes; where a term
covers no trajectory its β stays as it is. A malformed trajectory is covered by no term.

    as published          decoupled(short, long)    no-think: β_s fixed; think: β_l adapts
    static                the same with rate 0, or bonus(coefficient): all trajectories, no gate
    unified adaptive      unified()                 one coefficient, one target, all trajectories
    Skywork-OR1           skywork()                 the coefficient moves by a fixed step (arXiv 2505.22312)
    mode-token floor      mode_floor()              *ours*: only the decision whether to think, over all trajectories

Assumption: raising entropy below the target keeps exploring alive. Degenerate: the clamp at 0 is ours; without it β
goes negative while entropy is high, and later *lowers* it. With all coefficients 0 and rate 0 nothing changes.
Letters: K terms, R trajectories of a micro-batch, N their trained tokens in one line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tirkit.types import Mode


@dataclass(frozen=True)
class EntropyTerm:
    """One coefficient. `over`: the trajectories it covers. `tokens`: whose entropy: all sampled, or the mode token.

    `coefficient`: β at the start. `target`: nats; a trajectory above it gets no bonus (inf: no gate). `rate`: η, 0 for
    a fixed β. `step`: β moves by η times the distance from the target, or by η whatever the distance ("sign").
    `maximum`: of an adaptive β. ValueError where these do not go together.
    """

    over: Literal["all", "think", "no_think"] = "all"
    tokens: Literal["all", "mode"] = "all"
    coefficient: float = 0.0
    target: float = math.inf
    rate: float = 0.0
    step: Literal["proportional", "sign"] = "proportional"
    maximum: float = 0.1

    def __post_init__(self) -> None:
        if self.coefficient < 0 or self.rate < 0:
            raise ValueError(f"entropy term {self.name}: coefficient and rate must not be negative")
        if self.rate and not (math.isfinite(self.target) and self.coefficient <= self.maximum):
            raise ValueError(
                f"entropy term {self.name}: an adaptive coefficient needs a finite target and a start within its "
                f"maximum {self.maximum}; target = {self.target}, coefficient = {self.coefficient}"
            )

    @property
    def name(self) -> str:
        """What its metrics are called: "think", or "all_mode_token"."""
        return self.over if self.tokens == "all" else f"{self.over}_mode_token"

    def covers(self, mode: Mode | None, well_formed: bool, mode_trained: bool) -> bool:
        """Whether a trajectory counts; `mode_trained`: its mode tag is a token that is trained."""
        if not well_formed or (self.tokens == "mode" and not (mode and mode_trained)):
            return False
        return self.over in ("all", mode)

    def moved(self, coefficient: float, mean: float) -> float:
        """β after a step in which the trajectories covered had the mean entropy `mean`."""
        if not self.rate:
            return coefficient
        gap = mean - self.target
        change = self.rate * (gap if self.step == "proportional" else math.copysign(float(gap != 0), gap))
        return min(max(coefficient - change, 0.0), self.maximum)


@dataclass(frozen=True)
class EntropyState:
    """The coefficients β, in the order of the terms."""

    coefficients: tuple[float, ...] = ()


@dataclass(frozen=True)
class EntropyControl:
    """Any number of terms, no two of the same name; their bonuses add up."""

    terms: tuple[EntropyTerm, ...]

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"two entropy terms are over the same trajectories and tokens: {names}")

    @property
    def adapts(self) -> bool:
        """Whether any coefficient moves."""
        return any(term.rate for term in self.terms)

    def start(self) -> EntropyState:
        """The state before the first step."""
        return EntropyState(tuple(term.coefficient for term in self.terms))

    def advance(self, state: EntropyState, sums: Sequence[float], counts: Sequence[float]) -> EntropyState:
        """The state after a step in which each term covered `counts` trajectories, their entropies adding to `sums`."""
        moved = [
            term.moved(beta, total / count) if count else beta
            for term, beta, total, count in zip(self.terms, state.coefficients, sums, counts, strict=True)
        ]
        return EntropyState(tuple(moved))


def trajectory_entropies(entropy_N: Tensor, row_N: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Mean over each trajectory's tokens, and the entropy of its first one; both (R,), 0 where it has no token.

    `row_N` says whose each token is; those of one trajectory stand together and in order.
    """
    first_N = torch.ones_like(row_N, dtype=torch.bool)
    first_N[1:] = row_N[1:] != row_N[:-1]
    zeros_R = entropy_N.new_zeros(num_rows)
    count_R = zeros_R.index_add(0, row_N, torch.ones_like(entropy_N)).clamp(min=1)
    return zeros_R.index_add(0, row_N, entropy_N) / count_R, zeros_R.index_add(0, row_N, entropy_N * first_N)


def entropy_bonus(
    control: EntropyControl, state: EntropyState, *, mean_R: Tensor, first_R: Tensor, covered_KR: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Σ_i Σ_k β_ik H_ik, to be divided by the number of trajectories; and (K,) sums for `advance` and for the log.

    Metrics: "entropy", the sum of H_ik over covered trajectories, "covered", their number, "open", how many of them
    are at or below the target. The gradient goes through `mean_R` and `first_R` only.
    """
    value_KR = torch.stack([first_R if term.tokens == "mode" else mean_R for term in control.terms])
    target_K1 = mean_R.new_tensor([[term.target] for term in control.terms])
    beta_K1 = mean_R.new_tensor([[beta] for beta in state.coefficients])
    open_KR = covered_KR & (value_KR.detach() <= target_K1)
    metrics = {
        "entropy": (value_KR.detach() * covered_KR).sum(1),
        "covered": covered_KR.sum(1),
        "open": open_KR.sum(1),
    }
    return (beta_K1 * open_KR * value_KR).sum(), metrics


def bonus(coefficient: float) -> EntropyControl | None:
    """A fixed bonus on the entropy of every trajectory; None for 0."""
    return EntropyControl((EntropyTerm(coefficient=coefficient),)) if coefficient else None


def decoupled(
    short: float = 0.0,
    long: float = 1e-2,
    short_target: float = 0.1,
    long_target: float = 0.2,
    rate: float = 2e-3,
    maximum: float = 0.1,
) -> EntropyControl:
    """As published: β_s = `short` is fixed, β_l begins at `long` and adapts; `rate`, `maximum`, the start are ours."""
    return EntropyControl(
        (
            EntropyTerm("no_think", coefficient=short, target=short_target),
            EntropyTerm("think", coefficient=long, target=long_target, rate=rate, maximum=maximum),
        )
    )


def unified(coefficient: float = 1e-2, target: float = 0.2, rate: float = 2e-3, maximum: float = 0.1) -> EntropyControl:
    """One adaptive coefficient and one target for all trajectories."""
    return EntropyControl((EntropyTerm(coefficient=coefficient, target=target, rate=rate, maximum=maximum),))


def skywork(coefficient: float = 0.0, target: float = 0.2, rate: float = 5e-4, maximum: float = 5e-3) -> EntropyControl:
    """Skywork-OR1's controller: up by `rate` below the target, down above it. There the gate is the batch's, here each
    trajectory has its own, as in the other arms.
    """
    return EntropyControl((EntropyTerm("all", "all", coefficient, target, rate, "sign", maximum),))


def mode_floor(
    coefficient: float = 0.1, target: float = 0.3, rate: float = 0.05, maximum: float = 1.0
) -> EntropyControl:
    """*Ours*: keeps the choice of the mode open (at most ln 2 = 0.69 nats), and leaves the reasoning alone."""
    return EntropyControl((EntropyTerm("all", "mode", coefficient, target, rate, maximum=maximum),))
