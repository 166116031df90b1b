"""A `Chat` on HTTP: chat completions (whole or as server-sent events), models, health. Errors are OpenAI's objects."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import uvicorn
from pydantic import JsonValue
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tirkit.serving.api import ApiError, read_request
from tirkit.serving.chat import TEXT, Chat
from tirkit.serving.limits import Limits, RequireJson, RequireKey, in_time, read_body, server_config

logger = logging.getLogger(__name__)
T = TypeVar("T")
BUG = ApiError(500, "internal error")  # what went wrong is for the log: it may tell of paths and data


class Completions:
    """POST /v1/chat/completions."""

    def __init__(self, chat: Chat, limits: Limits) -> None:
        self._chat, self._limits = chat, limits

    async def answer(self, request: Request) -> Response:
        """The completion. What is being written is given up when the client leaves or the time is over."""
        deadline = asyncio.get_running_loop().time() + self._limits.max_request_s
        body = await read_body(request, self._limits.max_body_bytes, self._limits.read_s)
        asked = await run_in_threadpool(read_request, body)
        job = await run_in_threadpool(self._chat.prepare, asked)
        if not asked.stream:
            whole = in_time(self._chat.complete(job), deadline, self._limits)
            return JSONResponse(await while_connected(request, whole))
        chunks = self._chat.stream(job)
        # Only now the status is known: it is an error where the request is not accepted.
        first = await in_time(anext(chunks), deadline, self._limits)
        return EventStream(self._events(first, chunks, deadline))

    async def _events(
        self, first: dict[str, JsonValue], chunks: AsyncGenerator[dict[str, JsonValue], None], deadline: float
    ) -> AsyncGenerator[str, None]:
        """The chunks as server-sent events; what goes wrong is the last one."""
        try:
            yield _event(first)
            while (chunk := await in_time(anext(chunks, None), deadline, self._limits)) is not None:
                yield _event(chunk)
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.body())
        except Exception as error:
            logger.error("a stream failed", exc_info=error)
            yield _event(BUG.body())
        finally:
            await chunks.aclose()


class EventStream(StreamingResponse):
    """Server-sent events; their source is closed when the client leaves."""

    def __init__(self, events: AsyncGenerator[str, None]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


def _event(body: dict[str, JsonValue]) -> str:
    # ASCII alone: some clients take U+2028 and its like for the end of a line.
    return f"data: {json.dumps(body)}\n\n"


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled, and ClientDisconnect raised, when the client leaves."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        working.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def chat_app(
    chat: Chat,
    routes: Sequence[Route] = (),
    limits: Limits | None = None,
    key: str = "",
    hosts: Sequence[str] = (),
) -> Starlette:
    """The application: /v1/chat/completions, /v1/models, /health and further `routes`; with `key`, for who knows it.

    hosts: the names that the server goes by, where web pages that the user's browser shows must not ask it.
    """
    created, name = int(time.time()), chat.served.name

    def card(id_: str) -> dict[str, JsonValue]:
        return {"id": id_, "object": "model", "created": created, "owned_by": "tirkit"}

    async def models(_: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [card(name), card(name + TEXT)]})

    async def model(request: Request) -> JSONResponse:
        id_ = request.path_params["id"]
        if id_ not in (name, name + TEXT):
            raise ApiError(404, f"the model {id_!r} is not served here", "model_not_found", "model")
        return JSONResponse(card(id_))

    own = [
        Route("/v1/chat/completions", Completions(chat, limits or Limits()).answer, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{id:path}", model),
        Route("/health", health),
    ]
    return application([*own, *routes], key, hosts)


async def health(_: Request) -> JSONResponse:
    """Whether the server is there."""
    return JSONResponse({"status": "ok"})


def application(routes: Sequence[Route], key: str = "", hosts: Sequence[str] = ()) -> Starlette:
    """An application whose errors are OpenAI's error objects; a wrong Host gets a plain 400. See `chat_app`."""
    known = [Middleware(RequireKey, key)] if key else []
    # A page can give its own name this machine's address (DNS rebinding), and post anything but JSON without being let.
    local = (
        [Middleware(TrustedHostMiddleware, list(hosts), www_redirect=False), Middleware(RequireJson)] if hosts else []
    )
    handlers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        ApiError: _say_error,
        HTTPException: _say_http_error,
        ClientDisconnect: _say_nothing,
        Exception: _say_bug,
    }
    return Starlette(
        routes=list(routes),
        middleware=[*local, *known],
        exception_handlers=handlers,  # pyright: ignore[reportArgumentType]
    )


async def _say_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    # What is left of a request that was not read would be taken for the next one.
    headers = {429: {"retry-after": "1"}, 408: {"connection": "close"}, 413: {"connection": "close"}}
    return JSONResponse(error.body(), error.status, headers.get(error.status))


async def _say_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").body(), error.status_code
    )


async def _say_nothing(*_: object) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _say_bug(request: Request, error: Exception) -> Response:
    logger.error("%s failed", request.url.path, exc_info=error)
    return JSONResponse(BUG.body(), 500)


def serve(app: Starlette, host: str, port: int, limits: Limits | None = None) -> None:
    """Serve until interrupted."""
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(server_config(app, limits or Limits(), host, port)).run()
