"""A minimal OpenAI-compatible endpoint over any policy: chat completions with tools, models, health.

Every served model has two names. `NAME` speaks the API: tools and results go in and tool_calls with plain names come
out, also where the model writes tool tokens; its selections are answered here, with the documents, and never seen.
`NAME:text` says what the model says, in its dialect, and takes it back as it was: for clients that read the dialect
themselves, such as `rollout.endpoint.EndpointPolicy`.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import uvicorn
from pydantic import JsonValue
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tirkit.rollout.loop import stable_seed
from tirkit.rollout.policy import GenerateRequest, Generation, Policy
from tirkit.serving.api import ApiError, ChatRequest, Choice, FinishReason, completion_body, read_request
from tirkit.serving.batcher import Batcher, OverloadedError
from tirkit.serving.conversation import Conversation, converse, documents, plain_messages, tool_messages
from tirkit.text.dialects import Dialect, ParsedTurn
from tirkit.text.render import Renderer
from tirkit.types import Task, ToolSchema, Turn

logger = logging.getLogger(__name__)
TEXT = ":text"


def _any_task(conversation: Conversation) -> Task:
    """A task that holds nothing but the conversation's prompt: a model needs no more."""
    return Task(id="request", prompt=conversation.prompt)


@dataclass(frozen=True)
class Served:
    """What is served. `tools` are those the dialect's index knows, by name; none where documents come with a request.

    policy_at: the policy at a temperature (a script's is the same at each). task: finds a conversation's task, for
    policies that look at one. max_tokens: written a turn where the request does not say; temperature likewise.
    max_context: tokens of prompt and completion together, 0 = no bound. max_selections: of a round, hidden ones.
    """

    name: str
    policy_at: Callable[[float], Policy]
    renderer: Renderer
    dialect: Dialect
    tools: Mapping[str, ToolSchema] = field(default_factory=dict)
    task: Callable[[Conversation], Task] = _any_task
    max_tokens: int = 512
    temperature: float = 1.0
    max_context: int = 0
    max_selections: int = 2
    max_waiting: int = 1024


class Chat:
    """Answers chat completions; `close` ends its thread."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._batcher = Batcher(served.policy_at, served.max_waiting)

    def close(self) -> None:
        """Cancel what is being written."""
        self._batcher.close()

    async def complete(self, request: ChatRequest) -> dict[str, JsonValue]:
        """The completion. ApiError where the request cannot be answered."""
        served = self.served
        if request.model not in (served.name, served.name + TEXT):
            names = f"{served.name!r} and {served.name + TEXT!r}"
            raise ApiError(
                404, f"the model {request.model!r} is not served here; {names} are", "model_not_found", "model"
            )
        as_text = request.model.endswith(TEXT)
        conversation = self._conversation(request, as_text)
        task = served.task(conversation)
        budget = self._budget(request, len(conversation.ids))
        # Equal seeds give equal answers; without one they differ.
        seed = secrets.randbits(62) if request.seed is None else request.seed
        temperature = served.temperature if request.temperature is None else request.temperature
        writing = [
            self._choice(_Asked(request, task, as_text, budget, temperature, stable_seed(seed, i)), conversation)
            for i in range(request.n)
        ]
        return completion_body(request.model, await asyncio.gather(*writing), len(conversation.ids))

    def _conversation(self, request: ChatRequest, as_text: bool) -> Conversation:
        served = self.served
        given = tuple(
            ToolSchema(name=t.function.name, description=t.function.description, parameters=t.function.parameters)
            for t in request.tools or ()
        )
        if served.dialect.index is not None:
            if strange := [tool.name for tool in given if tool.name not in served.tools]:
                raise ApiError(
                    400, f"this model's tools are in its weights; it does not know {strange[0]!r}", param="tools"
                )
            given = ()  # their documents must not stand in the prompt
        if as_text:
            parts = plain_messages(request.messages)
        else:
            parts = tool_messages(request.messages, served.dialect, served.tools)
        return converse(parts, given, served.renderer, served.dialect)

    def _budget(self, request: ChatRequest, num_prompt_tokens: int) -> int:
        """Tokens that may be written."""
        asked = request.max_completion_tokens or request.max_tokens
        room = self.served.max_context - num_prompt_tokens if self.served.max_context else 1 << 30
        if room < (asked or 1):
            wanted = f"{num_prompt_tokens} tokens of prompt and {asked or 1} to write"
            raise ApiError(
                400, f"{wanted} are more than the {self.served.max_context} of this model", "context_length_exceeded"
            )
        return asked or min(self.served.max_tokens, room)

    async def _choice(self, asked: "_Asked", conversation: Conversation) -> Choice:
        """One answer; selections in it are answered with their documents until it calls or replies."""
        served, num_tokens, thoughts = self.served, 0, []
        for selection in range(served.max_selections + 1):
            generation = await self._write(asked, conversation, asked.budget - num_tokens, selection)
            num_tokens += len(generation.ids)
            text, finish = _stopped(generation, asked.request.stops)
            if asked.as_text:
                return Choice(content=text, finish=finish, num_tokens=num_tokens)
            parsed = served.dialect.parse(text)
            thoughts += [parsed.think] if parsed.think else []
            goes_on = parsed.selected and not parsed.problems and finish == "stop"
            if not goes_on or selection == served.max_selections or num_tokens >= asked.budget:
                return _read(parsed, text, finish, "\n".join(thoughts), num_tokens)
            turn = Turn(text=text, ids=generation.ids, selected=parsed.selected)
            conversation = conversation.followed(served.renderer, turn, [documents(parsed.selected, served.tools)])
        raise AssertionError("the last selection is returned")

    async def _write(self, asked: "_Asked", conversation: Conversation, budget: int, turn: int) -> Generation:
        """The next turn. ApiError where there is none."""
        request = GenerateRequest(
            asked.task,
            conversation.turns,
            conversation.messages,
            conversation.ids,
            stable_seed(asked.seed, turn),
            budget,
            conversation.tools,
        )
        try:
            future = self._batcher.submit(request, asked.temperature)
        except OverloadedError:
            raise ApiError(429, "too many requests are waiting; ask again later", "overloaded") from None
        generation = await asyncio.wrap_future(future)
        if generation.finish == "failed":
            raise ApiError(502, f"{self.served.name} could not be asked", "policy_failed")
        return generation


@dataclass(frozen=True)
class _Asked:
    """One choice of a request."""

    request: ChatRequest
    task: Task
    as_text: bool
    budget: int
    temperature: float
    seed: int


def _stopped(generation: Generation, stops: list[str]) -> tuple[str, FinishReason]:
    """(text up to the first of `stops`, why it ends)."""
    places = [place for stop in stops if stop and (place := generation.text.find(stop)) >= 0]
    if places:
        return generation.text[: min(places)], "stop"
    return generation.text, "length" if generation.finish == "length" else "stop"


def _read(parsed: ParsedTurn, text: str, finish: FinishReason, reasoning: str, num_tokens: int) -> Choice:
    """A turn in the API's form; what the dialect cannot read is passed on as it is, for the client to see."""
    if parsed.problems or not (parsed.calls or parsed.answer):
        return Choice(content=text, finish=finish, num_tokens=num_tokens)
    if parsed.calls:
        return Choice(content=None, calls=parsed.calls, reasoning=reasoning, finish="tool_calls", num_tokens=num_tokens)
    return Choice(content=parsed.answer, reasoning=reasoning, finish=finish, num_tokens=num_tokens)


def chat_app(chat: Chat, routes: list[Route] | None = None) -> Starlette:
    """The application: /v1/chat/completions, /v1/models, /health and further `routes`."""
    created, name = int(time.time()), chat.served.name

    async def completions(request: Request) -> JSONResponse:
        return JSONResponse(await chat.complete(read_request(await request.body())))

    async def models(_: Request) -> JSONResponse:
        cards = [
            {"id": id_, "object": "model", "created": created, "owned_by": "tirkit"} for id_ in (name, name + TEXT)
        ]
        return JSONResponse({"object": "list", "data": cards})

    own = [
        Route("/v1/chat/completions", completions, methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
    ]
    return application([*own, *(routes or [])])


async def health(_: Request) -> JSONResponse:
    """Whether the server is there."""
    return JSONResponse({"status": "ok"})


def application(routes: list[Route]) -> Starlette:
    """An application whose errors are all OpenAI's error objects."""
    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]] = {
        ApiError: _say_error,
        HTTPException: _say_http_error,
        Exception: _say_bug,
    }
    return Starlette(routes=routes, exception_handlers=handlers)  # pyright: ignore[reportArgumentType]


async def _say_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    headers = {"retry-after": "1"} if error.status == 429 else None
    return JSONResponse(error.body(), error.status, headers)


async def _say_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").body(), error.status_code
    )


async def _say_bug(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s failed", request.url.path, exc_info=error)
    return JSONResponse(ApiError(500, f"{type(error).__name__}: {error}").body(), 500)


def serve(app: Starlette, host: str, port: int) -> None:
    """Serve until interrupted."""
    uvicorn.run(app, host=host, port=port, log_level="warning")
