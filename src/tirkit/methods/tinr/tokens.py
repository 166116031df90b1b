"""Tool tokens: grow a vocabulary by one entry a tool and give the new rows a start.

    input row  of tool t  = mean of the input rows of its name's sub-tokens
    output row of tool t  = mean of the output rows of the same sub-tokens, scaled to the mean row norm (untied models)

The released code of the paper leaves untied output rows as they are made, and initialises again when a trained model is
loaded, which destroys what was learned. Here growing is the only thing that initialises: a name that the vocabulary
already has keeps its rows, and loading a saved model never comes here.

Shapes: V vocabulary rows, D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from tirkit.text.control import CONTROL_STRINGS
from tirkit.text.index import ToolIndex
from tirkit.types import ToolSchema

ROW_MULTIPLE = 64
Init = Literal["name_mean", "mean"]


@dataclass(frozen=True)
class Growth:
    """What growing did: `added` vocabulary entries with their `ids`, and the number of rows before and after."""

    added: tuple[str, ...]
    ids: tuple[int, ...]
    rows_before: int
    rows_after: int


def grow_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    index: ToolIndex,
    tools: Sequence[ToolSchema],
    init: Init = "name_mean",
) -> Growth:
    """Add the index's tokens and the missing control strings to `tokenizer` and `model`, in place.

    Entries are non-special (they survive skip_special_tokens). Rows become max(old rows, len(tokenizer)) rounded up to
    64, never fewer. Entries that exist keep their rows, so growing twice is growing once.
    init: "name_mean" as in the module docstring (a token that several tools share: over the names of all of them);
    "mean" of all old rows, for comparison. Raises ValueError where a tool of the index is not among `tools`.
    """
    if missing := set(index.names) - {tool.name for tool in tools}:
        raise ValueError(f"the index has tools that are not among those given: {sorted(missing)[:5]}")
    words, known = _words(index), tokenizer.get_vocab()
    new = [entry for entry in words if entry not in known]
    rows_before: int = _ends(model)[0].weight.shape[0]
    used = len(tokenizer)
    sub_tokens: Any = [tokenizer(words[entry], add_special_tokens=False)["input_ids"] for entry in new]
    tokenizer.add_tokens([AddedToken(entry, normalized=False, special=False) for entry in new])
    rows_after = max(rows_before, -(-len(tokenizer) // ROW_MULTIPLE) * ROW_MULTIPLE)
    if rows_after != rows_before:
        _resize(model, rows_after)
    ids: Any = tokenizer.convert_tokens_to_ids(new)
    for table, scaled in _tables(model):
        _initialise(table, ids, sub_tokens, min(used, rows_before), rows_before, init, scaled)
    return Growth(tuple(new), tuple(ids), rows_before, rows_after)


def add_lora(model: PreTrainedModel, token_ids: Sequence[int], rank: int = 16, alpha: int = 32) -> PeftModel:
    """LoRA on all linear layers, with the rows `token_ids` trained whole (tied or untied); everything else is frozen.

    `merge_and_unload()` on the result gives a plain model, trained rows included.
    """
    # Tied: one table, so the input layer alone is named; PEFT has the output follow it.
    names = [_module_name(model, end) for end, _ in zip(_ends(model), _tables(model), strict=False)]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear",  # the output layer is not among them
        trainable_token_indices={name: list(token_ids) for name in names},
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)  # type: ignore[return-value]


def _ends(model: PreTrainedModel) -> tuple[Any, Any]:
    """The input and the output layer (None where there is none); Any, since their stubs do not know `weight`."""
    return model.get_input_embeddings(), model.get_output_embeddings()


def _module_name(model: PreTrainedModel, module: nn.Module) -> str:
    return next(name for name, other in model.named_modules() if other is module).rpartition(".")[2]


def _words(index: ToolIndex) -> dict[str, str]:
    """Vocabulary entry → the words its rows start from: its tools' names, or for a control string its own."""
    words = {tag: "".join(c if c.isalnum() or c == "/" else " " for c in tag).strip() for tag in CONTROL_STRINGS}
    names: dict[str, list[str]] = {entry: [] for entry in index.tokens}
    if index.tokens:
        for name in index.names:
            for entry in _entries(index.surface(name), names):
                names[entry].append(name)
    return words | {entry: " ".join(of) for entry, of in names.items()}


def _entries(surface: str, entries: dict[str, list[str]]) -> list[str]:
    """The vocabulary entries a surface is made of: itself, or its `<<…>>` parts (hierarchical)."""
    if surface in entries:
        return [surface]
    return [part for piece in surface.split(">>") if (part := f"{piece}>>") in entries]


def _resize(model: PreTrainedModel, rows: int) -> None:
    """Resize both tables, as new parameters.

    transformers swaps the data under the old ones, whose gradients and autograd nodes keep the old shape: a model that
    was trained before would fail in its next backward.
    """
    tied = len(_tables(model)) == 1
    model.resize_token_embeddings(rows, mean_resizing=False)
    inputs, head = _ends(model)
    inputs.weight = nn.Parameter(inputs.weight.detach(), inputs.weight.requires_grad)
    if head is not None:
        head.weight = inputs.weight if tied else nn.Parameter(head.weight.detach(), head.weight.requires_grad)


def _tables(model: PreTrainedModel) -> list[tuple[Tensor, bool]]:
    """The row tables to initialise, each with whether new rows are scaled to the mean norm; one where they are tied."""
    inputs, head = _ends(model)
    if head is None or head.weight.data_ptr() == inputs.weight.data_ptr():
        return [(inputs.weight, False)]
    return [(inputs.weight, False), (head.weight, True)]


@torch.no_grad()
def _initialise(
    table_VD: Tensor, ids: list[int], sub_tokens: list[list[int]], used: int, old: int, init: Init, scaled: bool
) -> None:
    """Set the rows `ids`, and all that resizing made (to the mean), in place; rows in use before stay as they are."""
    known_VD = table_VD[:used].float()
    mean_D, norm = known_VD.mean(0), known_VD.norm(dim=1).mean()
    table_VD[old:] = mean_D.to(table_VD.dtype)
    for row, parts in zip(ids, sub_tokens, strict=True):
        value_D = known_VD[parts].mean(0) if init == "name_mean" and parts else mean_D
        if scaled:
            value_D = value_D * (norm / value_D.norm().clamp(min=1e-12))
        table_VD[row] = value_D.to(table_VD.dtype)
