"""Log-probability and entropy of scored tokens: one log-softmax, one logits tensor, overwritten by its own gradient.

Letters: N scored tokens, S <= N states (hidden vectors) that predict them, D hidden width, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**26  # logits held at once: 256 MB in fp32; what goes beyond is computed twice
SPARED_LOGIT = -1e4  # no probability, and no infinity times zero in an entropy; float16 holds it
CACHED_LOGITS = 2**18  # logits worked on at once: 1 MB in fp32, so that intermediate results stay in a CPU's cache


def token_stats(
    head: Callable[[Tensor], Tensor],
    hidden_SD: Tensor,
    target_N: Tensor,
    temperature: float = 1.0,
    with_entropy: bool = True,
    entropy_gradient: bool = False,
    state_N: Tensor | None = None,
    spared_S: Tensor | None = None,
    spared_ids: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log p of each target and the entropy (nats) of the distribution it was drawn from, both (N,) in fp32.

    Target n is predicted by state `state_N[n]` (default: its own, S = N), whose logits are computed once for all of its
    targets. `head` is called as a module, so that biases and adapters on it count; its logits may be of any float type
    and are divided by `temperature`. More than `chunk` states (default: as many as fill `CHUNK_LOGITS`) go through the
    head in pieces that are computed again in the backward pass. Without `with_entropy` the second tensor is zero;
    without `entropy_gradient` it is a constant. Where `spared_S` is true the tokens `spared_ids` take no part in the
    softmax: nothing is learnt about them there.
    """
    if state_N is None:
        state_N = torch.arange(len(target_N), device=target_N.device)

    def stats(
        hidden_SD: Tensor, state_N: Tensor, target_N: Tensor, spared_S: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        logits_SV = head(hidden_SD)
        if logits_SV is hidden_SD:
            logits_SV = hidden_SD.clone()  # it is overwritten
        if spared_S is not None and spared_ids is not None:
            with torch.no_grad():  # their gradient is 0 without autograd's help: they have no probability
                logits_SV[spared_S.nonzero(), spared_ids] = SPARED_LOGIT
        logp_N, entropy_S = _Stats.apply(logits_SV, state_N, target_N, temperature, with_entropy, entropy_gradient)
        return logp_N, entropy_S[state_N]

    if chunk is None:
        chunk = max(1, CHUNK_LOGITS // int(getattr(head, "out_features", 2**17)))
    if len(hidden_SD) <= chunk:
        return stats(hidden_SD, state_N, target_N, spared_S)
    pieces, places = [], []
    for start in range(0, len(hidden_SD), chunk):
        place = ((state_N >= start) & (state_N < start + chunk)).nonzero().squeeze(1)
        spared = None if spared_S is None else spared_S[start : start + chunk]
        piece = hidden_SD[start : start + chunk], state_N[place] - start, target_N[place], spared
        pieces.append(checkpoint(stats, *piece, use_reentrant=False))
        places.append(place)
    order_N = torch.cat(places).argsort()
    logps, entropies = zip(*pieces, strict=True)
    return torch.cat(logps)[order_N], torch.cat(entropies)[order_N]


class _Stats(torch.autograd.Function):
    """(logits_SV, …) → log p of each (state, target) (N,), entropy of each state (S,).

    With z = logits / temperature and p = softmax(z): d log p_t / dz = onehot_t - p; d entropy / dz = -p (log p +
    entropy). The backward pass writes the gradient over the logits: nothing else of their size is ever held.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_SV: Tensor,
        state_N: Tensor,
        target_N: Tensor,
        temperature: float,
        with_entropy: bool,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        norm_S = torch.empty(len(logits_SV), device=logits_SV.device)
        entropy_S = torch.zeros_like(norm_S)
        for rows in _cached(logits_SV):
            norm_S[rows], more_S = _norm_and_entropy(_scaled(logits_SV[rows], temperature), with_entropy)
            if more_S is not None:
                entropy_S[rows] = more_S
        logp_N = logits_SV[state_N, target_N].float() / temperature - norm_S[state_N]
        ctx.save_for_backward(logits_SV, state_N, target_N, norm_S, entropy_S)
        ctx.temperature, ctx.entropy_gradient = temperature, with_entropy and entropy_gradient
        if not ctx.entropy_gradient:
            ctx.mark_non_differentiable(entropy_S)
        return logp_N, entropy_S

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor, grad_S: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits_SV, state_N, target_N, norm_S, entropy_S = ctx.saved_tensors
        sum_S = torch.zeros_like(norm_S).index_add(0, state_N, grad_N)
        for rows in _cached(logits_SV):
            logp = _scaled(logits_SV[rows], ctx.temperature) - norm_S[rows, None]
            factor = -sum_S[rows, None]
            if ctx.entropy_gradient:
                factor = factor - grad_S[rows, None] * (logp + entropy_S[rows, None])
            logits_SV[rows] = logp.exp_().mul_(factor / ctx.temperature).to(logits_SV.dtype)
        # A state may have one target several times: the rows must add up.
        logits_SV.index_put_((state_N, target_N), (grad_N / ctx.temperature).to(logits_SV.dtype), accumulate=True)
        return logits_SV, *(None,) * 5


def _cached(logits_SV: Tensor) -> Iterator[slice]:
    num_states, vocabulary = logits_SV.shape
    on_cpu = logits_SV.device.type == "cpu"
    step = max(1, (CACHED_LOGITS if on_cpu else CHUNK_LOGITS) // vocabulary)
    return (slice(start, start + step) for start in range(0, num_states, step))


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1.0 else logits.float() / temperature


def _norm_and_entropy(z_SV: Tensor, with_entropy: bool = True) -> tuple[Tensor, Tensor | None]:
    """log sum exp z and the entropy of softmax(z): log sum e^y - sum(e^y y) / sum e^y, y = z - max z; both (S,)."""
    top_S1 = z_SV.amax(-1, keepdim=True)
    y_SV = z_SV - top_S1
    exp_SV = y_SV.exp()
    sum_S = exp_SV.sum(-1)
    log_S = sum_S.log()
    return log_S + top_S1.squeeze(-1), log_S - (exp_SV * y_SV).sum(-1) / sum_S if with_entropy else None


def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy of softmax(logits) over the whole vocabulary, nats; (N,)."""
    entropy_N = _norm_and_entropy(logits_NV)[1]
    assert entropy_N is not None
    return entropy_N
