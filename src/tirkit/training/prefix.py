"""Scoring forward: log-probabilities of chosen tokens, computed once per shared prompt and only where they count.

Letters: R rows as the model sees them, L their length, N scored tokens in one line, G trajectories of a group, P prompt
positions, C completion positions, H heads, D width of a head.

Two layouts. *Plain*: a row is prompt + completion. *Shared prefix*: a row is the prompt once, then the completions of
its whole group one behind the other; attention lets each completion see the prompt and itself, so a prompt of P tokens
costs P instead of G * P. Padding stands right of what it pads, where causal attention never looks: real tokens need no
padding mask. Only positions that predict a scored token go through the head.
"""

import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tirkit.losses.entropy import token_stats

ATTENTION = "tirkit_prefix"


class Row(Protocol):
    """What is scored: `tool_mask` is 1 on completion tokens whose log-probability is wanted."""

    @property
    def prompt_ids(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def completion_ids(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def tool_mask(self) -> Sequence[int]: ...  # noqa: D102


@dataclass(frozen=True)
class Layout:
    """How shared-prefix rows are cut: `num_prompt` columns, then `group` stretches of `num_completion`."""

    group: int
    num_prompt: int
    num_completion: int
    mask_RCS: Tensor  # what a completion position may see of the S = P + C columns of its prompt and its own stretch


@dataclass(frozen=True)
class ScoredBatch:
    """One micro-batch. `source_N` points into the R * L positions, at the one that predicts `target_N`."""

    ids_RL: Tensor
    source_N: Tensor
    target_N: Tensor
    row_N: Tensor  # which of the rows given each scored token belongs to
    positions_RL: Tensor | None = None
    layout: Layout | None = None

    def to(self, device: torch.device | str) -> "ScoredBatch":
        """The same on `device`."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        layout = self.layout and replace(self.layout, mask_RCS=self.layout.mask_RCS.to(device))
        return replace(self, **moved, layout=layout)


def _finish(ids_RL: list[list[int]], pad_id: int, scored: list[tuple[int, int, int]], **extra: Any) -> ScoredBatch:
    length = max(map(len, ids_RL))
    padded = torch.tensor([ids + [pad_id] * (length - len(ids)) for ids in ids_RL])
    source, target, row = torch.tensor(scored, dtype=torch.long).reshape(-1, 3).T.contiguous()
    return ScoredBatch(padded, source, target, row, **extra)


def _check(row: Row) -> None:
    if not row.prompt_ids:
        raise ValueError("a row has an empty prompt: its first token has nothing to be predicted from")
    if len(row.completion_ids) != len(row.tool_mask):
        raise ValueError(f"{len(row.completion_ids)} completion ids but a mask of {len(row.tool_mask)}")


def plain_batch(rows: Sequence[Row], pad_id: int) -> ScoredBatch:
    """Each row on its own: prompt, completion, padding."""
    length = max(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
    ids, scored = [], []
    for r, row in enumerate(rows):
        _check(row)
        ids.append([*row.prompt_ids, *row.completion_ids])
        first = r * length + len(row.prompt_ids) - 1
        scored += [(first + t, row.completion_ids[t], r) for t, on in enumerate(row.tool_mask) if on]
    return _finish(ids, pad_id, scored)


def prefix_batch(groups: Sequence[Sequence[Row]], pad_id: int) -> ScoredBatch:
    """Each group as one row: its prompt once, then its completions. Groups may differ in size.

    Rows are counted through the groups in order. All rows of a group must have the same prompt.
    """
    G = max(map(len, groups))
    P = max(len(group[0].prompt_ids) for group in groups)
    C = max(len(row.completion_ids) for group in groups for row in group)
    length, ids, scored, r = P + G * C, [], [], 0
    for g, group in enumerate(groups):
        prompt = list(group[0].prompt_ids)
        ids.append(prompt + [pad_id] * (P - len(prompt)))
        for k, row in enumerate(group):
            _check(row)
            if list(row.prompt_ids) != prompt:
                raise ValueError(f"group {g} holds rows of different prompts: they cannot share one")
            start = (
                g * length + P + k * C
            )  # where completion k stands; its first token is predicted by the prompt's end
            before = [g * length + len(prompt) - 1, *range(start, start + C - 1)]
            scored += [(before[t], row.completion_ids[t], r) for t, on in enumerate(row.tool_mask) if on]
            ids[-1] += [*row.completion_ids, *[pad_id] * (C - len(row.completion_ids))]
            r += 1
        ids[-1] += [pad_id] * (length - len(ids[-1]))
    num_prompt_R = torch.tensor([[len(group[0].prompt_ids)] for group in groups])
    completion_C = torch.arange(C)
    positions = torch.cat([torch.arange(P).expand(len(groups), -1), (num_prompt_R + completion_C).repeat(1, G)], 1)
    sees_prompt = (torch.arange(P) < num_prompt_R)[:, None].expand(-1, C, -1)
    sees_self = torch.ones(C, C, dtype=torch.bool).tril().expand(len(groups), -1, -1)
    layout = Layout(G, P, C, torch.cat([sees_prompt, sees_self], -1))
    return _finish(ids, pad_id, scored, positions_RL=positions, layout=layout)


def _prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA; with a layout, two of them: the prompt on itself, each completion on the prompt and itself."""
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if layout is None:
        return sdpa(module, query, key, value, attention_mask, **kwargs)
    odd = [name for name in ("sliding_window", "softcap", "s_aux") if kwargs.get(name) is not None]
    if odd:
        raise NotImplementedError(f"shared-prefix attention cannot do {', '.join(odd)}: set shared_prefix=False")
    G, P, C, R = layout.group, layout.num_prompt, layout.num_completion, len(query)
    keep = {name: kwargs[name] for name in ("scaling", "dropout") if name in kwargs}

    def stretches(x_RHLD: Tensor) -> Tensor:  # completions as rows of their own: (R * G, H, C, D)
        return x_RHLD[:, :, P:].unflatten(2, (G, C)).transpose(1, 2).flatten(0, 1)

    def with_prompt(x_RHLD: Tensor) -> Tensor:
        return torch.cat([x_RHLD[:, :, :P].repeat_interleave(G, 0), stretches(x_RHLD)], 2)

    mask = layout.mask_RCS if R == 1 else layout.mask_RCS.repeat_interleave(G, 0)  # one row: broadcast, no copies
    prompt = sdpa(module, query[:, :, :P], key[:, :, :P], value[:, :, :P], None, is_causal=True, **keep)[0]
    rest = sdpa(module, stretches(query), with_prompt(key), with_prompt(value), mask[:, None], is_causal=False, **keep)[
        0
    ]
    return torch.cat([prompt, rest.reshape(R, G * C, *rest.shape[2:])], 1), None


AttentionInterface.register(ATTENTION, _prefix_attention)
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def why_no_prefix(model: nn.Module) -> str | None:
    """Why this model cannot do the shared-prefix layout, None where it can."""
    model = base_of(model)
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
    return None


def _plain_head(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    return not any(getattr(config, key, None) for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"))


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
    if scored.layout is not None:
        # A mask of four dimensions is handed through untouched: no (P + G*C)^2 mask is built. It is never read.
        unread = torch.zeros(1, 1, 1, 1, device=scored.ids_RL.device)
        inputs |= {"position_ids": scored.positions_RL, "attention_mask": unread, "layout": scored.layout}
    if not _plain_head(self):
        logits_RLV = type(self).forward(self, **inputs).logits
        return token_stats(nn.Identity(), logits_RLV.flatten(0, 1)[scored.source_N], scored.target_N, **kwargs)
    hidden_RLD = self.base_model(**inputs).last_hidden_state
    head = cast(nn.Module, self.get_output_embeddings())
    return token_stats(head, hidden_RLD.flatten(0, 1)[scored.source_N], scored.target_N, **kwargs)


@contextmanager
def scoring(model: nn.Module, shared_prefix: bool = False) -> Iterator[None]:
    """Within this context `model(scored=batch, temperature=…, with_entropy=…)` returns (logps_N, entropy_N).

    It goes through `model.forward`, so that DDP, FSDP, DeepSpeed and PEFT see an ordinary call. `shared_prefix` also
    puts in the attention that prefix batches need. Both are taken out again at the end.
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
