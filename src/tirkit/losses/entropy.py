"""Log-probability and entropy of every scored token, without ever holding all logits.

Letters: N scored tokens of a micro-batch in one line, D hidden width, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**26  # logits held at once: 256 MB in fp32


def token_stats(
    head: Callable[[Tensor], Tensor],
    hidden_ND: Tensor,
    targets_N: Tensor,
    temperature: float = 1.0,
    with_entropy: bool = True,
    entropy_gradient: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log p of each target and the entropy (nats) of the distribution it was drawn from, both (N,) in fp32.

    `head` is called as a module, so that biases and adapters on it count; its logits are divided by `temperature`.
    More than `chunk` tokens (default: as many as fill `CHUNK_LOGITS`) go through the head in pieces that are computed
    again in the backward pass. Without `with_entropy` the second tensor is zero; without `entropy_gradient` it is a
    constant.
    """

    def stats(hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = head(hidden_ND).float()
        if temperature != 1.0:
            logits_NV = logits_NV / temperature
        logps_N = -torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
        if not with_entropy:
            return logps_N, torch.zeros_like(logps_N)
        return logps_N, entropy(logits_NV if entropy_gradient else logits_NV.detach())

    if chunk is None:
        chunk = max(1, CHUNK_LOGITS // int(getattr(head, "out_features", 2**17)))
    if len(hidden_ND) <= chunk:
        return stats(hidden_ND, targets_N)
    pieces = [
        checkpoint(stats, hidden, targets, use_reentrant=False)
        for hidden, targets in zip(hidden_ND.split(chunk), targets_N.split(chunk), strict=True)
    ]
    logps, entropies = zip(*pieces, strict=True)
    return torch.cat(logps), torch.cat(entropies)


def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy of softmax(logits) over the whole vocabulary, nats: `logsumexp(z) - sum(p * z)`; (N,)."""
    logps_NV = logits_NV.log_softmax(-1)
    return -(logps_NV.exp() * logps_NV).sum(-1)
