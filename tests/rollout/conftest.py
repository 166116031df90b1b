"""A tiny random model, its tokenizer with three tool tokens, and the tools."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3ForCausalLM

from tirkit.embedded.model import build_tokenizer, tiny_config
from tirkit.text.dialects import Dialect
from tirkit.text.index import build_index
from tirkit.text.render import Renderer
from tirkit.types import ToolSchema

NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
TOOLS = (
    ToolSchema(name="add", description="Add two integers.", parameters=NUMBERS),
    ToolSchema(name="mul", description="Multiply two integers.", parameters=NUMBERS),
    ToolSchema(name="fail", description="Never works.", parameters={"type": "object", "properties": {}}),
)


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """model, tokenizer, renderer, index, dialect (two-step), tools by name."""
    torch.set_num_threads(1)
    texts = ["user assistant tool system add multiply two integers what is the sum of product 0123456789"]
    tokenizer = build_tokenizer(texts, size=400)
    index = build_index(TOOLS)
    tokenizer.add_tokens(list(index.tokens))
    torch.manual_seed(0)
    config = tiny_config(-(-len(tokenizer) // 64) * 64)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 64, 96, 2
    config.layer_types, config.tie_word_embeddings = config.layer_types[:2], False
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():  # a fresh model is nearly uniform; sharpen it so that greedy choices are far from ties
        model.get_input_embeddings().weight.mul_(20)
        model.get_output_embeddings().weight.mul_(15)
    return SimpleNamespace(
        model=model,
        tokenizer=tokenizer,
        renderer=Renderer(tokenizer, index),
        index=index,
        dialect=Dialect(index),
        tools={tool.name: tool for tool in TOOLS},
    )
