"""What OpenAI-compatible clients send and expect: the parts of chat completions that are supported.

Fields that do not matter here are ignored; those that would (log-probs, penalties, response formats, images) are
refused.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, JsonValue, ValidationError

from tirkit.text.dialects import parse_json
from tirkit.types import ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]
NO_PARAMETERS: dict[str, JsonValue] = {"type": "object", "properties": {}}


class ApiError(Exception):
    """An error the client is told of, as OpenAI's error object."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, JsonValue]:
        """The error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _joined(content: Any) -> Any:
    """Content that comes in parts, as text; parts that are not text are left for the validation to refuse."""
    if isinstance(content, list) and all(map(_is_text, content)):
        return "".join(part["text"] for part in content)
    return "" if content is None else content


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


Content = Annotated[str, BeforeValidator(_joined)]


class ApiFunction(BaseModel):
    """The function of a call; its arguments are JSON in a string."""

    name: str
    arguments: str


class ApiCall(BaseModel):
    """A tool call in an assistant's message."""

    id: str
    function: ApiFunction

    def call(self) -> ToolCall:
        """The call as ours. ApiError where the arguments are not a JSON object."""
        try:
            arguments = parse_json(self.function.arguments or "{}")
            return ToolCall.model_validate({"name": self.function.name, "arguments": arguments})
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the arguments of call {self.id!r} are not a JSON object") from error


class ApiMessage(BaseModel):
    """A message; `reasoning_content` carries thinking, as vLLM and others name it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = ""
    reasoning_content: Content = ""
    tool_calls: list[ApiCall] | None = None
    tool_call_id: str | None = None


class ApiFunctionDocument(BaseModel):
    """The document of a function. Clients send null for what they leave out."""

    name: str = Field(min_length=1)
    description: Annotated[str, BeforeValidator(lambda given: "" if given is None else given)] = ""
    parameters: Annotated[
        dict[str, JsonValue], BeforeValidator(lambda given: NO_PARAMETERS if given is None else given)
    ] = NO_PARAMETERS


class ApiTool(BaseModel):
    """A tool that may be called."""

    type: Literal["function"]
    function: ApiFunctionDocument


class ApiName(BaseModel):
    """The name of a function."""

    name: str


class ApiNamedTool(BaseModel):
    """The tool that must be called."""

    type: Literal["function"]
    function: ApiName


class ApiStreamOptions(BaseModel):
    """How an answer is streamed."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """POST /v1/chat/completions."""

    model: str
    messages: list[ApiMessage] = Field(min_length=1)
    tools: list[ApiTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ApiNamedTool | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1, le=128)
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: ApiStreamOptions | None = None
    # Only what changes nothing.
    top_p: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    modalities: list[Literal["text"]] | None = None
    functions: Annotated[list[JsonValue], Field(max_length=0)] | None = None
    function_call: None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """What ends a text when it is written."""
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        return tuple(stop for stop in stops if stop)

    @property
    def named(self) -> str | None:
        """The tool that must be called."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, ApiNamedTool) else None


def read_request(body: bytes) -> ChatRequest:
    """The request in `body`. ApiError naming the first field that cannot be used."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        # Beyond the fields of the API pydantic adds which of a field's types it has tried.
        fields = [str(part) for part in first["loc"] if not str(part).startswith(("literal[", "Api", "list["))]
        param = ".".join(fields)
        raise ApiError(400, f"{param or 'body'}: {first['msg']}", param=param or None) from error


@dataclass(frozen=True)
class Delta:
    """What an answer grew by; `finish` says that it is over, and why."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    refusal: str = ""
    finish: FinishReason | None = None


@dataclass
class Choice:
    """One answer, as far as it is written; its deltas in a stream add up to the same."""

    content: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    finish: FinishReason | None = None
    num_tokens: int = 0

    def add(self, delta: Delta) -> None:
        """Grow."""
        self.content += delta.content
        self.reasoning += delta.reasoning
        self.refusal += delta.refusal
        self.calls += delta.calls
        self.finish = delta.finish or self.finish

    def body(self, index: int) -> dict[str, JsonValue]:
        """The choice in the API's form."""
        silent = not self.content and (self.calls or self.refusal)
        message: dict[str, JsonValue] = {"role": "assistant", "content": None if silent else self.content}
        message["refusal"] = self.refusal or None
        if self.calls:
            message["tool_calls"] = [
                {"id": call_id(), "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
                for call in self.calls
            ]
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        return {"index": index, "message": message, "finish_reason": self.finish, "logprobs": None}


def call_id() -> str:
    """A new one."""
    return f"call_{uuid.uuid4().hex[:24]}"


def _arguments(call: ToolCall) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)


def usage_body(num_prompt_tokens: int, choices: Sequence[Choice]) -> dict[str, JsonValue]:
    """What was read and written; turns in which tools were selected count too."""
    num_written = sum(choice.num_tokens for choice in choices)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_written,
        "total_tokens": num_prompt_tokens + num_written,
    }


@dataclass
class Envelope:
    """What all parts of one completion share."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, choices: Sequence[Choice], num_prompt_tokens: int) -> dict[str, JsonValue]:
        """A whole chat completion."""
        bodies: list[JsonValue] = [choice.body(index) for index, choice in enumerate(choices)]
        usage = usage_body(num_prompt_tokens, choices)
        return self._body("chat.completion") | {"choices": bodies, "usage": usage}

    def chunk(self, index: int, said: dict[str, JsonValue], finish: FinishReason | None = None) -> dict[str, JsonValue]:
        """One piece of a stream."""
        choice: JsonValue = {"index": index, "delta": said, "finish_reason": finish, "logprobs": None}
        body = self._body("chat.completion.chunk")
        body["choices"] = [choice]
        return body

    def usage_chunk(self, choices: Sequence[Choice], num_prompt_tokens: int) -> dict[str, JsonValue]:
        """The piece that tells the usage."""
        return self._body("chat.completion.chunk") | {"choices": [], "usage": usage_body(num_prompt_tokens, choices)}

    def _body(self, kind: str) -> dict[str, JsonValue]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def delta_bodies(delta: Delta) -> list[dict[str, JsonValue]]:
    """What a delta says in the API's form: each call as its name, then its arguments. All calls come in one delta."""
    texts = {"content": delta.content, "reasoning_content": delta.reasoning, "refusal": delta.refusal}
    said: dict[str, JsonValue] = {name: text for name, text in texts.items() if text}
    bodies: list[dict[str, JsonValue]] = [said] if said else []
    for number, call in enumerate(delta.calls):
        named: JsonValue = {"name": call.name, "arguments": ""}
        begun: JsonValue = {"index": number, "id": call_id(), "type": "function", "function": named}
        rest: JsonValue = {"index": number, "function": {"arguments": _arguments(call)}}
        bodies.append({"tool_calls": [begun]})
        bodies.append({"tool_calls": [rest]})
    return bodies
