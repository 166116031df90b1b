"""The scoring forward: log-probabilities of chosen tokens, through any transformers model with pluggable attention.

Letters: L tokens of merged rows (see `prefix`), H heads, D width of a head, N scored tokens in one line.

Attention over a tree never builds its L * L mask. On a CPU it is cut into blocks without any mask (`blocks`); on a GPU
FlexAttention is told the one comparison that makes the mask (`flex`). Only positions that predict a scored token go
through the head.
"""

import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tirkit.losses.entropy import token_stats
from tirkit.training.prefix import ScoredBatch

ATTENTION = "tirkit_tree"
SCALES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Block(NamedTuple):
    """Tokens `queries` see all of `keys`, or, where `causal`, the two are the same and each sees what is before it."""

    queries: slice
    keys: slice
    causal: bool


def blocks_of(end_L: Sequence[int]) -> list[Block]:
    """The attention of a tree as blocks: causal ones, which hold every token once, then the others.

    A run of tokens, each the child of the one before, attends to itself causally. What else sees a stretch of it whose
    tokens have one end comes right behind the run, up to that end.

    >>> for rows, columns, causal in blocks_of([4, 4, 3, 4]):  # two tokens, behind which two parted
    ...     print(rows.start, rows.stop, columns.start, columns.stop, causal)
    0 3 0 3 True
    3 4 3 4 True
    3 4 0 2 False
    """
    causal, others, run, stretch = [], [], 0, 0
    waiting: list[slice] = []  # stretches of this run
    for token, end in enumerate(end_L, 1):
        leaf = end == token
        if leaf or end_L[token] != end:
            waiting.append(slice(stretch, token))
            stretch = token
        if leaf:
            causal.append(Block(slice(run, token), slice(run, token), True))
            others += [Block(slice(token, end_L[s.start]), s, False) for s in waiting if end_L[s.start] > token]
            run, waiting = token, []
    return causal + others


class _TreeAttention(torch.autograd.Function):
    """Softmax attention over a tree from its blocks: (1, H, L, D) of queries, fewer heads of keys and values allowed.

    Each block is a call of PyTorch's CPU kernel, which also returns its log-sum-exp; blocks of one query are merged by
    it. Given the merged output and log-sum-exp, the kernel's backward yields the block's part of the exact gradient
    (as in ring attention, arXiv 2310.01889), so no keys or values are ever copied.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], scale: float | None
    ) -> Tensor:
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        norm_1HL = query.new_empty(query.shape[:3], dtype=torch.float32)
        for rows, columns, causal in blocks:
            part = query[:, :, rows], key[:, :, columns], value[:, :, columns]
            more, more_norm = _flash(*part, 0.0, causal, scale=scale)
            if causal:  # the first to write here
                out[:, :, rows], norm_1HL[:, :, rows] = more, more_norm
            else:
                norm = torch.logaddexp(norm_1HL[:, :, rows], more_norm)
                out[:, :, rows] *= (norm_1HL[:, :, rows] - norm).exp_().unsqueeze(-1)
                out[:, :, rows] += more * (more_norm - norm).exp_().unsqueeze(-1)
                norm_1HL[:, :, rows] = norm
        ctx.save_for_backward(query, key, value, out, norm_1HL)
        ctx.blocks, ctx.scale = blocks, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, out, norm_1HL = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (query, key, value)]
        for rows, columns, causal in ctx.blocks:
            at, of = (slice(None), slice(None), rows), (slice(None), slice(None), columns)
            parts = _flash_backward(
                grad[at], query[at], key[of], value[of], out[at], norm_1HL[at], 0.0, causal, scale=ctx.scale
            )
            for total, place, part in zip(grads, (at, of, of), parts, strict=True):
                total[place] = part if causal else total[place] + part
        return *grads, None, None


def flex_mask(end_L: Tensor) -> BlockMask:
    """The tree's mask for FlexAttention."""
    length, device = len(end_L), str(end_L.device)
    # Compiled it never holds all L * L comparisons.
    return create_block_mask(tree_mask(end_L), None, None, length, length, device, _compile=end_L.is_cuda)


def tree_mask(end_L: Tensor) -> Any:
    """Who sees whom, as FlexAttention asks it."""

    def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i < end_L[j])

    return sees


def _tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tree: BlockMask | list[Block] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """SDPA, or attention over a tree."""
    if tree is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)
    odd = [name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if kwargs.get("dropout"):
        odd.append("dropout")
    if query.shape[-1] != value.shape[-1]:
        odd.append("keys and values of different widths")
    if odd:
        raise NotImplementedError(f"attention over trees cannot do {', '.join(odd)}: set shared_prefix=False")
    scale = kwargs.get("scaling")
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast norms and rotations may leave them wider
    if isinstance(tree, BlockMask):
        return ALL_ATTENTION_FUNCTIONS["flex_attention"](module, query, key, value, tree, scaling=scale)
    return cast(Tensor, _TreeAttention.apply(query, key, value, tree, scale)).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _tree_attention)
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def why_no_trees(model: nn.Module, device: torch.device | str = "cpu") -> str | None:
    """Why this model cannot do the tree layout on `device`, None where it can."""
    model, device = base_of(model), torch.device(device).type
    config = model.config.get_text_config()
    if not _plain_head(model):
        return "its logits are more than the output of its head"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not use the attention interface"
    if config._attn_implementation not in ("sdpa", ATTENTION):
        return f"attention is {config._attn_implementation!r}, not 'sdpa'"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "not all of its layers have full attention"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "it attends through a sliding window"
    if getattr(config, "attention_dropout", 0.0):
        return "it has attention dropout"
    return None if device in ("cpu", "cuda") else f"there is no attention over trees on {device}"


def _plain_head(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    return not any(getattr(config, key, None) for key in SCALES)


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside, without PEFT around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator, return-value]


def _forward(self: PreTrainedModel, *args: Any, scored: ScoredBatch | None = None, **kwargs: Any) -> Any:
    """`model(scored=batch)` gives (logps_N, entropy_N); anything else is the model's own forward."""
    if scored is None:
        return type(self).forward(self, *args, **kwargs)
    # PEFT's task models pass every argument of a normal call along, as None.
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    inputs: dict[str, Any] = {"input_ids": scored.ids_RL, "use_cache": False}
    if scored.end_L is not None:
        # A mask of four dimensions is handed through untouched: none is built. It is never read.
        unread = torch.zeros(1, 1, 1, 1, device=scored.ids_RL.device)
        tree = flex_mask(scored.end_L) if scored.end_L.is_cuda else blocks_of(scored.end_L.tolist())
        inputs |= {"position_ids": scored.positions_RL, "attention_mask": unread, "tree": tree}
    source_S, state_N = scored.source_N.unique(return_inverse=True)
    if _plain_head(self):
        states_SD = self.base_model(**inputs).last_hidden_state.flatten(0, 1)[source_S]
        head = cast(nn.Module, self.get_output_embeddings())
    else:
        states_SD, head = type(self).forward(self, **inputs).logits.flatten(0, 1)[source_S], nn.Identity()
    if scored.spared_N is not None:
        spared_S = torch.ones_like(source_S, dtype=torch.bool)
        spared_S[state_N[~scored.spared_N]] = False  # a state that a row which spares nothing is scored on, too
        kwargs |= {"spared_S": spared_S, "spared_ids": scored.spared_ids}
    return token_stats(head, states_SD, scored.target_N, state_N=state_N, **kwargs)


@contextmanager
def scoring(model: nn.Module, shared_prefix: bool = False) -> Iterator[None]:
    """Within this context `model(scored=batch, temperature=…, with_entropy=…)` returns (logps_N, entropy_N).

    It goes through `model.forward`, so that DDP, FSDP, DeepSpeed and PEFT see an ordinary call. `shared_prefix`
    also puts in the attention that tree batches need. Both are taken out again at the end.
    """
    inner = base_of(model)
    attention = inner.config._attn_implementation or "sdpa"
    if shared_prefix:
        inner.set_attn_implementation(ATTENTION)
    inner.forward = types.MethodType(_forward, inner)  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(inner).pop("forward", None)
        if shared_prefix:
            inner.set_attn_implementation(attention)
