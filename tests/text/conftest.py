"""Tiny tokenizers with the two kinds of chat template: our own, and one like Qwen2.5's."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tirkit.text
from tirkit.text.control import CONTROL_STRINGS, TURN_END
from tirkit.text.index import ToolIndex, build_index
from tirkit.text.render import Renderer
from tirkit.types import ToolSchema

OWN_TEMPLATE = (Path(tirkit.text.__file__).parent / "template.jinja").read_text()
# Written for this test in the manner of Qwen2.5's: default system prompt, tools in the system turn, results as a user.
QWEN_TEMPLATE = """\
{%- set system = messages[0].content if messages[0].role == 'system' else 'You are helpful.' -%}
{{- '<|im_start|>system\\n' + system -}}
{%- if tools %}{{- '\\n\\n<tools>' }}{% for tool in tools %}{{- '\\n' + (tool | tojson) }}{% endfor -%}
{{- '\\n</tools>\\n<tool_call>\\n{"name": <function-name>}\\n</tool_call>' }}{% endif -%}
{{- '<|im_end|>\\n' -}}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif -%}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif -%}
{%- elif not (loop.first and message.role == 'system') -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif -%}
"""
WEATHER = ToolSchema(
    name="get_weather",
    description="How warm is it?",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
TOOLS = (WEATHER, ToolSchema(name="add"), ToolSchema(name="café au lait.v2"))


def tokenizer_of(index: ToolIndex, template: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["<<get_weather>> </tool_call> the weather in Oslo, user assistant tool"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=TURN_END, pad_token="<|pad|>")
    tokens = (*CONTROL_STRINGS, *index.tokens)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def index() -> ToolIndex:
    return build_index(TOOLS)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[ToolIndex, str], PreTrainedTokenizerFast]:
    return tokenizer_of


@pytest.fixture(scope="session", params=["own", "qwen"])
def renderer(request: pytest.FixtureRequest, index: ToolIndex) -> Renderer:
    template = OWN_TEMPLATE if request.param == "own" else QWEN_TEMPLATE
    return Renderer(tokenizer_of(index, template), index)
