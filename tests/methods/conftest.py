"""A tokenizer with the tool tokens of four tools, and what is built on it."""

from types import SimpleNamespace

import pytest

from tirkit.embedded.model import build_tokenizer
from tirkit.text.dialects import Dialect
from tirkit.text.index import build_index
from tirkit.text.render import Renderer
from tirkit.types import ToolSchema

NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Name of the city"},
        "unit": {"type": "string", "enum": ["C", "F"]},
    },
    "required": ["city"],
}
TOOLS = (
    ToolSchema(name="add_two", description="Add two integers.", parameters=NUMBERS),
    ToolSchema(name="mul", description="Multiply two integers.", parameters=NUMBERS),
    ToolSchema(name="get weather", description="Current temperature and sky of a city.", parameters=CITY),
    ToolSchema(name="ping", description="", parameters={"type": "object", "properties": {}}),
)


@pytest.fixture(scope="session")
def four() -> SimpleNamespace:
    """renderer, index, dialect (two-step), tools (tuple), by_name."""
    tokenizer = build_tokenizer(["add two integers city weather tool user assistant"], size=350)
    index = build_index(TOOLS)
    tokenizer.add_tokens(list(index.tokens))
    return SimpleNamespace(
        renderer=Renderer(tokenizer, index),
        index=index,
        dialect=Dialect(index),
        tools=TOOLS,
        by_name={tool.name: tool for tool in TOOLS},
    )
