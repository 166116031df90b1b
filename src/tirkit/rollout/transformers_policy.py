"""A transformers model as a policy.

What `generate()` does not give: sampling that is a function of each request's seed alone (whatever stands beside it in
the batch, whatever was drawn before), old log-probs exact at the sampling temperature, prompts that occur several
times computed once, a cache that lives across turns, rows that come and go (see `batching`).
"""

import logging

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tirkit.rollout.allow import Constraint
from tirkit.rollout.batching import BatchingSession, Counts, why_not_batching
from tirkit.rollout.policy import Policy, Session
from tirkit.rollout.sampling import Sampler
from tirkit.text.render import Renderer

logger = logging.getLogger(__name__)


class TransformersPolicy(Policy):
    """Decodes with `model` as it is at the moment of each session.

    temperature: 0 = greedy (log-probs are then those at temperature 1). max_batch: rows decoded together, which bounds
    the memory of the cache. allow: bounds what may be written; log-probs stay those of the
    model without it. `counts` counts what the model computed, over all sessions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        temperature: float = 1.0,
        max_batch: int = 128,
        allow: Constraint | None = None,
        name: str = "",
    ):
        self.model, self.max_batch = model, max_batch
        self.sampler = Sampler(renderer, temperature, allow)
        self.name = name or type(model).__name__
        self.counts = Counts()
        # PEFT puts its layers into the model it wraps.
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore
        if why := why_not_batching(inner):
            logger.warning("every token is computed from the whole conversation, without a cache: %s", why)
        self._session = RecomputingSession if why else BatchingSession

    def session(self) -> Session:
        """A session with its own cache; the model is in eval mode meanwhile."""
        return self._session(self.model, self.sampler, self.max_batch, self.counts)


class RecomputingSession(BatchingSession):
    """Without a cache: each step reads whole conversations. Slow, and right for any causal model."""

    def _read(self) -> None:
        self._decoding += self._reading
        self._reading = []

    def _logits(self) -> Tensor:
        rows = [[*seat.row.request.ids, *seat.row.ids] for seat in self._decoding]
        width = max(map(len, rows))
        pad_id, device = self._sampler.renderer.pad_id, self._model.device
        ids_BT = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], device=device)
        last_B = torch.tensor([len(row) - 1 for row in rows], device=device)
        # What pads a row on its right is seen by nothing before it.
        logits_BTV = self._model(input_ids=ids_BT, use_cache=False).logits
        return logits_BTV[torch.arange(len(rows), device=device), last_B]
