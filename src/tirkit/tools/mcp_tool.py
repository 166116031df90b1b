"""Tools of MCP servers, through the official client: list them, call them, connect again after the server died.

A server is a command (stdio) or an address (streamable HTTP; the client follows no redirection to another host). It is
told nothing but the calls, and gets of the environment only what its origin names.
"""

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import sys
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx2
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    REQUEST_TIMEOUT,
    CallToolResult,
    Tool,
)
from pydantic import JsonValue

from tirkit.tools import mcp_relay
from tirkit.tools.catalogue import CatalogueError
from tirkit.tools.http_loop import run_within
from tirkit.tools.http_secrets import fill_headers, redact, secret, secret_names
from tirkit.tools.imports import Imported, Remark, imported
from tirkit.tools.openapi_schema import SchemaReader, UnusableError, clean_name, make_tool, remarks_on
from tirkit.tools.worker import Answer, TransientToolError
from tirkit.types import McpOrigin, ToolErrorKind, ToolSchema, UserError

START_S = 60.0  # to start a server and shake hands
END_S = 10.0  # the client and the relay lose patience before
MAX_BYTES = 4 << 20  # of one answer
MAX_PAGES = 100  # of a list of tools
MAX_STALLS = 3  # calls in a row without an answer, after which a server counts as dead
LOST = {CONNECTION_CLOSED, INTERNAL_ERROR, INVALID_REQUEST, REQUEST_TIMEOUT}


class McpServerError(UserError):
    """A server's command or address is wrong; the message says why and what to do."""


class _LostError(Exception):
    """The server is gone, or no longer knows us."""


class McpServer:
    """One server: connected when first needed, and anew after it was lost. Calls may come from several threads.

    once: it is not connected anew.
    """

    def __init__(self, server: str, headers: Mapping[str, str], env: Sequence[str] = (), once: bool = False) -> None:
        self.server, self.headers, self.env, self.once = server, dict(headers), tuple(env), once
        self.secrets = secret_names(headers, env)
        self._connecting = asyncio.Lock()
        self._session: _Session | None = None
        self._stalls = 0
        self._sessions: list[_Session] = []
        self._finalizer = weakref.finalize(self, _end_all, self._sessions)

    def tools(self) -> list[Tool]:
        """All tools of the server. Raises CatalogueError where it does not tell them."""
        try:
            return run_within(self._list(), 2 * START_S)
        except UserError:
            raise
        except Exception as error:
            reason = redact(_words(error), self.secrets)
            raise CatalogueError(f"MCP server {self.server} does not answer ({reason}); start it by hand") from error

    def call(self, tool: str, arguments: dict[str, Any], timeout_s: float, again: bool) -> CallToolResult:
        """A tool's result; `again`: the call may be made twice where the connection is lost.

        Raises MCPError where the server refuses the call, TimeoutError, ConnectionError where it can't be reached, and
        a UserError where it can't be started.
        """
        for attempt in range(1 + again):
            session = self._connect()
            try:
                result = run_within(session.call(tool, arguments), timeout_s)
            except TimeoutError:
                self._stalls += 1
                if self._stalls >= MAX_STALLS:
                    self._drop(session)
                raise
            except _LostError as error:
                self._drop(session)
                if attempt == again:
                    raise ConnectionError(f"the connection to the MCP server was lost ({error})") from error
            else:
                self._stalls = 0
                return result
        raise AssertionError("the last attempt returns or raises")

    def close(self, wait_s: float = 0.0) -> None:
        """End the connection, and the server where we started it; the next call starts it again.

        wait_s: how long to wait for its end, which ought to take less than END_S.
        """
        tasks = [session.task for session in self._sessions if session.task is not None]
        _end_all(self._sessions)
        self._session = None
        if wait_s and tasks:
            run_within(_all_ended(tasks, wait_s), wait_s + 1)

    def _drop(self, session: "_Session") -> None:
        self._stalls = 0
        session.end()
        if self._session is session:
            self._session = None

    def _connect(self) -> "_Session":
        try:
            return run_within(self._connected(), START_S)
        except UserError:
            raise
        except Exception as error:  # the client raises whatever its transports do, in groups
            raise ConnectionError(f"the MCP server can't be reached ({_words(error)})") from error

    async def _connected(self) -> "_Session":
        async with self._connecting:
            if self._session is None or self._session.over:
                if self.once and self._sessions:
                    raise _LostError("it has ended")
                self._session = _Session()
                self._sessions[:] = [session for session in self._sessions if not session.over]
                self._sessions.append(self._session)
                await self._session.begin(self)
            return self._session

    async def _list(self) -> list[Tool]:
        client = (await self._connected()).client
        found, cursor = [], None
        for _ in range(MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            if not (cursor := page.next_cursor):
                break
        return found

    async def transport(self, stack: AsyncExitStack) -> Any:
        """What the client talks through. Raises a UserError where a secret is not set or there is no such command."""
        who = f"MCP server {self.server!r}"
        if self.server.startswith(("http://", "https://")):
            headers = {**fill_headers(self.headers, who), "accept-encoding": "identity"}
            timeout = httpx2.Timeout(START_S, read=300.0)
            http = httpx2.AsyncClient(headers=headers, timeout=timeout, transport=_Bounded(), trust_env=False)
            return streamable_http_client(self.server, http_client=await stack.enter_async_context(http))
        try:
            command = shlex.split(self.server)
        except ValueError as error:
            raise McpServerError(f"{who} is no command: {error}") from error
        if not command or shutil.which(command[0]) is None:
            raise McpServerError(f"{who} is no command that is installed here; check its first word")
        parameters = StdioServerParameters(
            command=sys.executable,
            args=["-I", mcp_relay.__file__, str(MAX_BYTES), *command],
            env={name: secret(name, who) for name in self.env},
        )
        return stdio_client(parameters, errlog=stack.enter_context(open(os.devnull, "w")))


class _Session:
    """One connection, which lives in a task of its own: the client must be left where it was entered."""

    client: Client

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        return self._stop.is_set() or (self.task is not None and self.task.done())

    async def begin(self, server: McpServer) -> None:
        """Connect. Raises what the client does."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._live(server, ready))
        try:
            await ready
        except BaseException:
            self.task.cancel()
            raise

    async def _live(self, server: McpServer, ready: "asyncio.Future[None]") -> None:
        try:
            async with AsyncExitStack() as stack:
                self.client = await stack.enter_async_context(Client(await server.transport(stack), cache=None))
                ready.set_result(None)
                await self._stop.wait()
        except BaseException as error:  # later ones are told by the calls that they break
            if not ready.done():
                ready.set_exception(_first(error) if isinstance(error, Exception) else ConnectionError(_words(error)))
        finally:
            self._stop.set()

    async def call(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        try:
            return await self.client.call_tool(tool, arguments)
        except MCPError as error:
            if error.code in LOST:
                raise _LostError(error.message) from error
            raise
        except Exception as error:  # a closed stream, by one of many names
            raise _LostError(_words(error)) from error

    def end(self) -> None:
        """Close the connection; may be called from any thread, and does not wait for the end."""
        if self.task is not None and not self.over:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                self.task.get_loop().call_soon_threadsafe(self._stop.set)


class _Bounded(httpx2.AsyncBaseTransport):
    """HTTP whose answers end after MAX_BYTES, and are not compressed."""

    def __init__(self) -> None:
        self._inner = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.ReadError("the server answers compressed, which was not asked for")
        stream = _BoundedStream(response.stream)
        return httpx2.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for piece in self._inner:
            read += len(piece)
            if read > MAX_BYTES:
                raise httpx2.StreamError(f"the server answers with more than {MAX_BYTES >> 20} MB")
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass(frozen=True)
class McpTool:
    """A tool of a server, for a PythonToolbox with isolation="inline": it keeps limits of its own.

    Failures that may pass are raised as TransientToolError where the tool changes nothing; one that does is never
    called twice.
    """

    server: McpServer
    origin: McpOrigin
    timeout_s: float = 10.0

    def __call__(self, /, **arguments: JsonValue) -> Answer:
        """Call the tool. Raises a UserError where its server can't be started or a secret is not set."""
        secrets = self.server.secrets
        try:
            result = self.server.call(self.origin.tool, arguments, self.timeout_s, again=self.origin.read_only)
        except TimeoutError:
            return Answer(f"no answer within {self.timeout_s:g} s", ToolErrorKind.TIMEOUT)
        except MCPError as error:
            return Answer(redact(error.message, secrets), ToolErrorKind.RAISED)
        except ConnectionError as error:
            if self.origin.read_only:
                raise TransientToolError(redact(str(error), secrets)) from None
            return Answer(redact(str(error), secrets), ToolErrorKind.UNAVAILABLE)
        text = redact(result_text(result), secrets)
        return Answer(text, ToolErrorKind.RAISED if result.is_error else None)


def result_text(result: CallToolResult) -> str:
    """A result's text, one block a line; what is no text is only named."""
    blocks = [getattr(block, "text", None) or _resource(block) for block in result.content]
    if not blocks and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(blocks)


def _resource(block: Any) -> str:
    text = getattr(getattr(block, "resource", None), "text", None)
    return text if isinstance(text, str) else f"[{block.type}]"


def load_mcp(server: str, headers: Mapping[str, str] | None = None, env: Sequence[str] = ()) -> Imported:
    """The tools of an MCP server: a command or an address.

    headers: templates sent to an address; env: variables that a command gets (see McpOrigin). Raises CatalogueError
    where the server does not answer or has no usable tool.
    """
    connection = McpServer(server, headers or {}, env)
    try:
        listed = connection.tools()
    finally:
        connection.close()
    tools: list[ToolSchema] = []
    skipped: list[Remark] = []
    remarks: list[Remark] = []
    for tool in listed:
        origin = McpOrigin(
            kind="mcp",
            server=server,
            tool=tool.name,
            headers=dict(headers or {}),
            env=tuple(env),
            read_only=bool(tool.annotations and tool.annotations.read_only_hint),
        )
        try:
            parameters = {"type": "object", "properties": {}} | SchemaReader(tool.input_schema).read(tool.input_schema)
            made = make_tool(clean_name(tool.name), tool.description, parameters, f"mcp:{server}")
        except UnusableError as error:
            skipped.append(Remark(repr(tool.name)[:80], error.why, error.detail))
            continue
        tools.append(made.model_copy(update={"origin": origin}))
        remarks += remarks_on(repr(tool.name)[:80], tool.name, tool.description or "")
    if not tools:
        reason = f"; first reason: {skipped[0]}" if skipped else ""
        raise CatalogueError(f"MCP server {server} has no tool that can be imported{reason}")
    return imported(f"mcp:{server}", tools, skipped, remarks)


async def _all_ended(tasks: "list[asyncio.Task[None]]", wait_s: float) -> None:
    await asyncio.wait(tasks, timeout=wait_s)


def _end_all(sessions: "list[_Session]") -> None:
    for session in sessions:
        session.end()
    sessions.clear()


def _first(error: BaseException) -> BaseException:
    """The first of what a group holds: the client's transports raise in groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _words(error: BaseException) -> str:
    error = _first(error)
    return f"{type(error).__name__} {error}".strip()[:300]
