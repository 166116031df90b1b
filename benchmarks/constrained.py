"""Constrained decoding: what a step's mask costs at a vocabulary of 160,000, 10,000 tools and 16 rows.

Peer: the callback of HF's generate (`prefix_allowed_tokens_fn`), which hands over a list; and the same handing over a
tensor, its best setting. Limit: filling in place from a mask that is ready.
"""

import json
import random
import string
from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from transformers import PrefixConstrainedLogitsProcessor, PreTrainedTokenizerFast

from benchmarks.harness import Arm, Result, compare
from tirkit.embedded.model import build_tokenizer
from tirkit.rollout.allow import Constraint, SelectionAutomaton
from tirkit.rollout.call_grammar import CallGrammar
from tirkit.text.control import SELECT_OPEN
from tirkit.text.dialects import Dialect
from tirkit.text.index import build_index
from tirkit.text.render import Renderer
from tirkit.types import ToolCall, ToolSchema

V, B, NUM_TOOLS, STEPS = 160_000, 16, 10_000, 10
NOTE = (
    "The limit fills in place from a ready mask. Ours never makes a mask where few tokens are allowed: it is below it."
)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city"],
}


def run(repeats: int) -> list[Result]:
    tools = [ToolSchema(name=f"tool {i}", parameters=PARAMETERS) for i in range(NUM_TOOLS)]
    index = build_index(tools)
    tokenizer = _large_tokenizer(V - NUM_TOOLS)
    tokenizer.add_tokens(list(index.tokens))
    renderer, dialect = Renderer(tokenizer, index), Dialect(index)
    selection = SelectionAutomaton(renderer, dialect)
    grammar = CallGrammar(tokenizer, renderer, dialect, tools)
    block = renderer.completion_ids(f"{SELECT_OPEN}\n")[:-1]
    call = renderer.completion_ids(dialect.print_calls([ToolCall(name="tool 7", arguments={"city": "Oslo"})]))
    in_string = next(n for n in range(len(call)) if renderer.decode(call[:n]).endswith('"city": "'))
    return [
        _measure("naming one of 10,000 tools", selection, block, B, repeats),
        _measure("naming one of 10,000 tools, a quarter of the rows", selection, block, B // 4, repeats),
        _measure("a string argument, by its schema", grammar, call[:in_string], B, repeats),
    ]


def _measure(setting: str, constraint: Constraint, written: list[int], num_held: int, repeats: int) -> Result:
    """`num_held` rows stand behind `written`, the others where everything is allowed."""
    held = constraint.start
    for token in written:
        held = constraint.next(held, token)
    states = [held] * num_held + [constraint.start] * (B - num_held)
    logps_BV = torch.randn(B, V)
    allowed_BV = constraint.mask(torch.zeros(B, V), states).isfinite()
    allowed = [row_V.nonzero()[:, 0] for row_V in allowed_BV]
    lists = [row.tolist() for row in allowed]
    ids_BT = torch.zeros(B, 1, dtype=torch.long)
    by_list = PrefixConstrainedLogitsProcessor(lambda row, _: lists[row], num_beams=1)
    by_tensor = PrefixConstrainedLogitsProcessor(lambda row, _: allowed[row], num_beams=1)
    hidden_BV = ~allowed_BV
    for theirs in (by_list, by_tensor):
        assert torch.equal(constraint.mask(logps_BV.clone(), states), theirs(ids_BT, logps_BV))

    def steps(step: Callable[[], object]) -> Callable[[], object]:
        return lambda: [step() for _ in range(STEPS)]

    *timings, limit = compare(
        f"constrained, {setting}",
        [
            Arm("tirkit", steps(lambda: constraint.mask(logps_BV, states))),
            Arm("HF callback, list", steps(lambda: by_list(ids_BT, logps_BV))),
            Arm("HF callback, tensor", steps(lambda: by_tensor(ids_BT, logps_BV))),
            Arm("limit", steps(lambda: logps_BV.masked_fill_(hidden_BV, float("-inf")))),
        ],
        repeats,
    )
    return Result("constrained", setting, timings, limit_s=limit.median_s, notes=NOTE, items=STEPS, unit="steps")


def _large_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """The embedded tokenizer with made-up words, `size` entries in all."""
    tokenizer, rng = build_tokenizer(["user assistant tool name arguments city days unit"], 400), random.Random(0)
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    words = spec["model"]["vocab"]
    place = len(tokenizer)
    while place < size:
        word = rng.choice(("", "Ġ")) + "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))
        if word not in words:
            words[word], place = place, place + 1
    large = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
    )
    large.chat_template = tokenizer.chat_template
    return large
