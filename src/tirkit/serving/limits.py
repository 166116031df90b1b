"""What a client may cost: bytes, seconds, connections; and who may ask at all.

uvicorn bounds headers (64 KB), idle connections (5 s) and how much is buffered, but no slow client. `Connection` does,
and is the only place that knows uvicorn's own classes.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import h11
import uvicorn
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tirkit.serving.api import ApiError

T = TypeVar("T")

FORGOTTEN = 64 << 20  # bytes of a body that is too large are read and forgotten, so that the client sees the error
OPEN_PATHS = ("/health",)


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    max_body_bytes: of a request. max_request_s: from its arrival to its end. max_waiting: answers being written or
    waiting for all clients, one for each of a request's `n`. max_connections: open ones. read_s: how long a client may
    take for headers, as long again for the body, and how long it may leave an answer unread.
    """

    max_body_bytes: int = 1_000_000
    max_request_s: float = 300.0
    max_waiting: int = 256
    max_connections: int = 512
    read_s: float = 20.0


async def read_body(request: Request, max_bytes: int, read_s: float) -> bytes:
    """The body of a request. ApiError where it is too large or does not arrive."""
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(read_s):
            async for part in request.stream():
                size += len(part)
                if size > FORGOTTEN:
                    break
                if size <= max_bytes:
                    body += part
                else:
                    body.clear()
    except TimeoutError:
        raise ApiError(408, f"the request did not arrive within {read_s:g} s", "too_slow") from None
    if size > max_bytes:
        raise ApiError(413, f"the request has more than the {max_bytes:,} bytes that it may have", "too_large")
    return bytes(body)


async def in_time(work: Awaitable[T], deadline: float, limits: Limits) -> T:
    """What `work` gives; ApiError where it is not there by `deadline`, in the running loop's seconds."""
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError:
        limit = f"the answer was not complete within {limits.max_request_s:g} s"
        raise ApiError(504, limit, "timeout") from None


class RequireKey:
    """An application that only answers who sends `Authorization: Bearer KEY`; all but OPEN_PATHS."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._digest = app, _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._knows(scope):
            error = ApiError(401, "this server wants a key: Authorization: Bearer KEY", "invalid_api_key")
            headers = {"www-authenticate": "Bearer", "connection": "close"}
            await JSONResponse(error.body(), 401, headers)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        return scheme.lower() == b"bearer" and hmac.compare_digest(_digest(key.strip()), self._digest)


class RequireJson:
    """An application to which only JSON is posted: a browser lets no page of another site send that unasked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        kind = Headers(scope=scope).get("content-type", "") if scope["type"] == "http" else ""
        if scope["type"] == "http" and scope["method"] == "POST" and not _is_json(kind):
            error = ApiError(415, "this server wants JSON: Content-Type: application/json")
            await JSONResponse(error.body(), 415, {"connection": "close"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"


def _digest(key: bytes) -> bytes:
    # Equally long for all keys: comparing them tells nothing of the length either.
    return hashlib.sha256(key).digest()


class Connection(H11Protocol):
    """A connection that is cut when its client is too slow."""

    def __init__(self, read_s: float, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._read_s = read_s
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The headers must come."""
        super().connection_made(transport)
        self._expect()

    def handle_events(self) -> None:
        """Headers that have begun must come to an end; once they have, `read_body` sees to the rest."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._expect_nothing()
        elif self._late is None and self.conn.their_state is h11.IDLE:
            self._expect()

    def pause_writing(self) -> None:
        """The client does not read its answer: it must go on."""
        super().pause_writing()
        self._expect()

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        self._expect_nothing()

    def timeout_keep_alive_handler(self) -> None:
        """What is left to send to an idle client is sent now, or never."""
        super().timeout_keep_alive_handler()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is expected any more."""
        self._expect_nothing()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._expect_nothing()
        self._late = self.loop.call_later(self._read_s, self.transport.abort)

    def _expect_nothing(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def server_config(app: ASGIApp, limits: Limits, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Config:
    """How `app` is served within `limits`."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        http=partial(Connection, limits.read_s),  # pyright: ignore[reportArgumentType]
        ws="none",
        limit_concurrency=limits.max_connections,
        timeout_graceful_shutdown=3,
    )
