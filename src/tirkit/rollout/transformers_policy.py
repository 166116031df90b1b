"""A transformers model as a policy: our own batched decode loop with a KV cache.

What `generate()` does not give: sampling that is a function of each request's seed alone (whatever stands beside it in
the batch, whatever was drawn before), old log-probs exact at the sampling temperature, prompts that occur several
times computed once, finished rows that leave the batch.

Shapes: B rows, P prompt positions (left-padded), V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tirkit.rollout.allow import SelectionAutomaton
from tirkit.rollout.policy import GenerateRequest, Generation
from tirkit.text.render import Renderer


class TransformersPolicy:
    """Decodes with `model` as it is at the moment of each call.

    temperature: 0 = greedy (log-probs are then those at temperature 1). max_batch: rows decoded together.
    allow: bounds what may be written inside a selection block; log-probs stay those of the model without it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        temperature: float = 1.0,
        max_batch: int = 128,
        allow: SelectionAutomaton | None = None,
        name: str = "",
    ):
        self.model, self.renderer, self.temperature = model, renderer, temperature
        self.max_batch, self.allow = max_batch, allow
        self.name = name or type(model).__name__

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """One generation a request, same order. Rows of like length are decoded together, so that little is padding."""
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].ids))
        done: dict[int, Generation] = {}
        with _evaluating(self.model), torch.no_grad():
            for start in range(0, len(order), self.max_batch):
                rows = order[start : start + self.max_batch]
                done.update(zip(rows, self._decode([requests[i] for i in rows]), strict=True))
        return [done[i] for i in range(len(requests))]

    def _decode(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        batch, logits_BV = self._prefill(requests)
        rows = [_Row(request, self.allow.start if self.allow else 0) for request in requests]
        while True:
            tokens_B, logps_B = self._choose(logits_BV, [rows[i] for i in batch.rows])
            for i, token, logp in zip(batch.rows, tokens_B.tolist(), logps_B.tolist(), strict=True):
                self._append(rows[i], token, logp)
            live = [k for k, i in enumerate(batch.rows) if not rows[i].finish]
            if not live:
                return [self._generation(row) for row in rows]
            if 2 * len(live) <= len(batch.rows):
                keep = torch.tensor(live, device=tokens_B.device)
                batch.select(keep)
                tokens_B = tokens_B[keep]
            logits_BV = batch.step(self.model, tokens_B)

    def _prefill(self, requests: Sequence[GenerateRequest]) -> "tuple[_Batch, Tensor]":
        """The cache after the prompts, and the logits of the first new token; each distinct prompt is computed once."""
        distinct = {ids: i for i, ids in enumerate(dict.fromkeys(request.ids for request in requests))}
        ids_BP, mask_BP = _left_pad(list(distinct), self.renderer.pad_id, self.model.device)
        cache = DynamicCache(config=self.model.config)
        batch = _Batch(cache, mask_BP, mask_BP.sum(1), list(range(len(distinct))))
        logits_BV = batch.forward(self.model, ids_BP, (mask_BP.cumsum(1) - 1).clamp(min=0))
        index = torch.tensor([distinct[request.ids] for request in requests], device=ids_BP.device)
        batch.select(index)
        batch.rows = list(range(len(requests)))
        return batch, logits_BV[index]

    def _choose(self, logits_BV: Tensor, rows: "Sequence[_Row]") -> tuple[Tensor, Tensor]:
        """(next token, its log-prob under the policy) of each row; rows that have finished get what is thrown away."""
        logps_BV = (logits_BV.float() / (self.temperature or 1.0)).log_softmax(-1)
        scores_BV = logps_BV
        if self.allow and any(row.state for row in rows):
            scores_BV = self.allow.mask(logps_BV, [row.state for row in rows])
        if self.temperature == 0:
            tokens_B = scores_BV.argmax(-1)
        else:
            uniforms = [row.uniforms[min(len(row.ids), len(row.uniforms) - 1)] for row in rows]
            tokens_B = sample(scores_BV, torch.tensor(uniforms, dtype=torch.float64, device=scores_BV.device))
        return tokens_B, logps_BV.gather(-1, tokens_B[:, None])[:, 0]

    def _append(self, row: "_Row", token: int, logp: float) -> None:
        if row.finish:
            return
        row.ids.append(token)
        row.logps.append(logp)
        if self.allow:
            row.state = self.allow.next(row.state, token)
        if token == self.renderer.end_of_turn_id:
            row.finish = "stop"
        elif len(row.ids) >= row.request.max_new_tokens:
            row.finish = "length"

    def _generation(self, row: "_Row") -> Generation:
        assert row.finish
        return Generation(tuple(row.ids), tuple(row.logps), self.renderer.decode(row.ids), row.finish)


def sample(logps_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Tokens drawn by inverting the distribution function at `uniforms_B` in [0, 1); probability 0 is never drawn.

    Summed in float64: over 150,000 entries float32 loses the tail.
    """
    cumulative_BV = logps_BV.exp().cumsum(-1, dtype=torch.float64)
    targets_B1 = (uniforms_B * cumulative_BV[:, -1])[:, None]
    return torch.searchsorted(cumulative_BV, targets_B1, right=True)[:, 0].clamp(max=logps_BV.shape[-1] - 1)


@dataclass
class _Row:
    """One request being decoded. The n-th token is drawn with the n-th uniform of a generator seeded by the request."""

    request: GenerateRequest
    state: int
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: Any = None

    def __post_init__(self) -> None:
        self.uniforms = np.random.default_rng(self.request.seed).random(max(1, self.request.max_new_tokens))


@dataclass
class _Batch:
    """The rows still in the batch: their cache, which positions of it are real, how long each is, which rows they are.

    Without padding there is nothing to mask, and the model's causal attention is left to itself.
    """

    cache: DynamicCache
    mask_BP: Tensor
    lengths_B: Tensor
    rows: list[int]

    def forward(self, model: PreTrainedModel, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Logits (B, V) after the last of `ids_BT`."""
        mask = None if bool(self.mask_BP.all()) else self.mask_BP
        output = model(
            input_ids=ids_BT,
            attention_mask=mask,
            position_ids=positions_BT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def step(self, model: PreTrainedModel, tokens_B: Tensor) -> Tensor:
        """Append one token a row; logits (B, V) of the next."""
        self.mask_BP = torch.cat([self.mask_BP, self.mask_BP.new_ones(len(tokens_B), 1)], 1)
        positions_B1 = self.lengths_B[:, None]
        self.lengths_B = self.lengths_B + 1
        return self.forward(model, tokens_B[:, None], positions_B1)

    def select(self, index: Tensor) -> None:
        """Keep (or repeat) the rows at `index`."""
        self.cache.batch_select_indices(index)
        self.mask_BP, self.lengths_B = self.mask_BP[index], self.lengths_B[index]
        self.rows = [self.rows[i] for i in index.tolist()]


def _left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), both (B, P) and long; mask is 1 on real tokens."""
    width = max(map(len, rows))
    ids = [[pad_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off inside, then as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
