"""A stand-in for vLLM, after the interface of vLLM 0.33.

From vllm.tool_parsers.abstract_tool_parser and vllm.entrypoints.generate.base.protocol: the base class with its four
state fields, the registry, the API's types. What it cannot say is tested against vLLM itself, where that is installed.
"""

import uuid
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")


class FunctionCall(Extra):
    id: str | None = Field(default=None, exclude=True)
    name: str
    arguments: str


class VllmToolCall(Extra):
    id: str = Field(default_factory=lambda: f"chatcmpl-tool-{uuid.uuid4().hex}")
    type: str = "function"
    function: FunctionCall


class DeltaFunctionCall(BaseModel):
    name: str | None = None
    arguments: str | None = None


class DeltaToolCall(Extra):
    id: str | None = None
    type: str | None = None
    index: int
    function: DeltaFunctionCall | None = None


class ExtractedToolCallInformation(BaseModel):
    tools_called: bool
    tool_calls: list[VllmToolCall]
    content: str | None = None


class DeltaMessage(Extra):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[DeltaToolCall] = Field(default_factory=list)


class ChatCompletionRequest(Extra):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = "none"
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool = True


class ToolParser:
    supports_required_and_named = True
    engine_based_streaming = False

    def __init__(self, tokenizer: Any, tools: list[Any] | None = None):
        self.prev_tool_call_arr: list[dict[str, Any]] = []
        self.current_tool_id = -1
        self.current_tool_name_sent = False
        self.streamed_args_for_tool: list[str] = []
        self.model_tokenizer = tokenizer
        self.tools = tools or []

    def get_remaining_unstreamed_args(self) -> str:
        if not self.prev_tool_call_arr:
            return ""
        expected, sent = self.prev_tool_call_arr[-1]["arguments"], self.streamed_args_for_tool[-1]
        return expected.removeprefix(sent) if expected.startswith(sent) else ""


class ToolParserManager:
    tool_parsers: dict[str, type[ToolParser]] = {}  # noqa: RUF012 (as it is there)

    @classmethod
    def register_module(cls, name: str, force: bool = True, module: type[ToolParser] | None = None) -> None:
        assert module is not None
        assert issubclass(module, ToolParser)
        cls.tool_parsers[name] = module
