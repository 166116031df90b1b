"""A tiny random model, its tokenizer with three tool tokens, and the tools."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from tirkit.text.dialects import Dialect
from tirkit.types import ToolSchema

NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
TOOLS = (
    ToolSchema(name="add", description="Add two integers.", parameters=NUMBERS),
    ToolSchema(name="mul", description="Multiply two integers.", parameters=NUMBERS),
    ToolSchema(name="fail", description="Never works.", parameters={"type": "object", "properties": {}}),
)


@pytest.fixture(scope="session")
def tiny(make_tiny: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    """See make_tiny; with a dialect in two steps, and a model that is sure of what comes next."""
    parts = make_tiny(TOOLS, tied=False)
    parts.dialect = Dialect(parts.index)
    with torch.no_grad():  # a fresh model is nearly uniform; sharpen it so that greedy choices are far from ties
        parts.model.get_input_embeddings().weight.mul_(20)
        parts.model.get_output_embeddings().weight.mul_(15)
    return parts
