"""Choosing tokens: a row's n-th token follows from its logits, its request's seed and n alone, whatever is beside it.

Letters: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tirkit.rollout.allow import Constraint
from tirkit.rollout.policy import GenerateRequest, Generation
from tirkit.text.render import Renderer


@dataclass(eq=False)
class Row:
    """One turn being written, and the constraint's state in it.

    The n-th token is drawn with the n-th uniform of a generator seeded by the request, or is what it must begin with.
    """

    key: int
    request: GenerateRequest
    temperature: float
    state: Any = None
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None

    def __post_init__(self) -> None:
        self.uniforms = np.random.default_rng(self.request.seed).random(max(1, self.request.max_new_tokens))


@dataclass(frozen=True)
class Sampler:
    """Extends rows by what their logits say; see TransformersPolicy for the fields.

    `temperature` is that of rows whose request has none of its own.
    """

    renderer: Renderer
    temperature: float
    allow: Constraint | None = None

    def row(self, key: int, request: GenerateRequest) -> Row:
        """A turn with nothing written."""
        temperature = self.temperature if request.temperature is None else request.temperature
        return Row(key, request, temperature, self.allow.begin(request) if self.allow else None)

    def extend(self, rows: Sequence[Row], logits_BV: Tensor) -> None:
        """One token more a row, with its log-prob under the policy; sets `finish` where it was the last."""
        logps_BV = (logits_BV.float() / _divisor(rows, logits_BV)).log_softmax(-1)
        scores_BV = logps_BV
        if self.allow and any(row.state for row in rows):
            scores_BV = self.allow.mask(logps_BV, [row.state for row in rows])
        tokens_B = self._choose(rows, scores_BV)
        starting = [b for b, row in enumerate(rows) if len(row.ids) < len(row.request.begin)]
        if starting:
            begin = [rows[b].request.begin[len(rows[b].ids)] for b in starting]
            tokens_B[starting] = torch.tensor(begin, device=tokens_B.device)
        logps_B = logps_BV.gather(-1, tokens_B[:, None])[:, 0]
        for row, token, logp in zip(rows, tokens_B.tolist(), logps_B.tolist(), strict=True):
            self._append(row, token, logp)

    def _choose(self, rows: Sequence[Row], scores_BV: Tensor) -> Tensor:
        greedy = [b for b, row in enumerate(rows) if row.temperature == 0]
        if len(greedy) == len(rows):
            return scores_BV.argmax(-1)
        uniforms = [row.uniforms[len(row.ids)] for row in rows]
        tokens_B = sample(scores_BV, torch.tensor(uniforms, dtype=torch.float64, device=scores_BV.device))
        if greedy:
            tokens_B[greedy] = scores_BV[greedy].argmax(-1)
        return tokens_B

    def _append(self, row: Row, token: int, logp: float) -> None:
        row.ids.append(token)
        row.logps.append(logp)
        if self.allow:
            row.state = self.allow.next(row.state, token)
        if token == self.renderer.end_of_turn_id:
            row.finish = "stop"
        elif len(row.ids) >= row.request.max_new_tokens:
            row.finish = "length"

    def generation(self, row: Row) -> Generation:
        """The finished turn."""
        assert row.finish
        return Generation(tuple(row.ids), tuple(row.logps), self.renderer.decode(row.ids), row.finish)


def _divisor(rows: Sequence[Row], logits_BV: Tensor) -> Tensor | float:
    """What logits are divided by: a number where all rows share a temperature, as in training, else (B, 1)."""
    divisors = [row.temperature or 1.0 for row in rows]
    if len(set(divisors)) == 1:
        return divisors[0]
    return torch.tensor(divisors, device=logits_BV.device)[:, None]


def sample(logps_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Tokens drawn by inverting the distribution function at `uniforms_B` in [0, 1); probability 0 is never drawn.

    Summed in float64: over 150,000 entries float32 loses the tail.
    """
    cumulative_BV = logps_BV.exp().cumsum(-1, dtype=torch.float64)
    targets_B1 = (uniforms_B * cumulative_BV[:, -1])[:, None]
    return torch.searchsorted(cumulative_BV, targets_B1, right=True)[:, 0].clamp(max=logps_BV.shape[-1] - 1)
