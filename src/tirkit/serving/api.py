"""What OpenAI-compatible clients send and expect: the parts of chat completions that are supported.

Fields that do not matter here are ignored; those that would (streaming, log-probs, forced tools, images) are refused.
"""

import json
import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, JsonValue, ValidationError

from tirkit.types import ToolCall

FinishReason = Literal["stop", "length", "tool_calls"]


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
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        return "".join(part["text"] for part in content)
    return "" if content is None else content


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
            return ToolCall(name=self.function.name, arguments=json.loads(self.function.arguments or "{}"))
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
    """The document of a function."""

    name: str = Field(min_length=1)
    description: str = ""
    parameters: dict[str, JsonValue] = {"type": "object", "properties": {}}


class ApiTool(BaseModel):
    """A tool that may be called."""

    type: Literal["function"]
    function: ApiFunctionDocument


class ChatRequest(BaseModel):
    """POST /v1/chat/completions."""

    model: str
    messages: list[ApiMessage] = Field(min_length=1)
    tools: list[ApiTool] | None = None
    tool_choice: Literal["auto"] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1, le=128)
    seed: int | None = None
    stop: str | list[str] | None = None
    top_p: Literal[1] | None = None
    stream: Literal[False] | None = None
    logprobs: Literal[False] | None = None

    @property
    def stops(self) -> list[str]:
        """What ends a text when it is written."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


def read_request(body: bytes) -> ChatRequest:
    """The request in `body`. ApiError naming the first field that cannot be used."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"])
        raise ApiError(400, f"{param or 'body'}: {first['msg']}", param=param or None) from error


class Choice(BaseModel):
    """One answer."""

    content: str | None
    calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    finish: FinishReason
    num_tokens: int

    def body(self, index: int) -> dict[str, JsonValue]:
        """The choice in the API's form."""
        message: dict[str, JsonValue] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{uuid.uuid4().hex[:24]}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
                }
                for call in self.calls
            ]
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        return {"index": index, "message": message, "finish_reason": self.finish, "logprobs": None}


def completion_body(model: str, choices: list[Choice], num_prompt_tokens: int) -> dict[str, JsonValue]:
    """A chat completion."""
    num_written = sum(choice.num_tokens for choice in choices)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice.body(index) for index, choice in enumerate(choices)],
        "usage": {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_written,
            "total_tokens": num_prompt_tokens + num_written,
        },
    }
