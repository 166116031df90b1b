"""Where tools come from: what a source holds, and what runs the tools of a catalogue, each as its origin says."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tirkit.tools.catalogue import CatalogueError
from tirkit.tools.functions import ImportedFunction, load_functions
from tirkit.tools.http_secrets import secret, secret_names
from tirkit.tools.http_tool import HttpTool
from tirkit.tools.imports import Imported, Remark, compare_tools
from tirkit.tools.openapi import load_openapi
from tirkit.tools.openapi_document import is_address
from tirkit.tools.runtime import PythonToolbox, ToolSettings
from tirkit.tools.state import StatefulTool, StateSource
from tirkit.types import HttpOrigin, McpOrigin, PythonOrigin, ToolSchema


def find_tools(
    source: str, server: str = "", headers: Mapping[str, str] | None = None, env: Sequence[str] = (), prefix: str = ""
) -> Imported:
    """The tools of a source: Python functions (`x.py`, a module), an OpenAPI document (file or address), or an MCP
    server (`mcp:` and its command or address).

    prefix: begins their names, where another source has the same ones. See `load_functions`, `load_openapi`,
    `load_mcp`. Raises a UserError where the source holds none.
    """
    found = _find_tools(source, server, headers, env)
    tools = tuple(tool.model_copy(update={"name": prefix + tool.name}) for tool in found.tools)
    return replace(found, tools=tools, read_only=frozenset(prefix + name for name in found.read_only))


def _find_tools(source: str, server: str, headers: Mapping[str, str] | None, env: Sequence[str]) -> Imported:
    if source.startswith("mcp:"):
        return _mcp().load_mcp(source.removeprefix("mcp:"), headers, env)
    if is_address(source) or Path(source).suffix in (".json", ".yaml", ".yml"):
        return load_openapi(source, server, headers)
    if server or headers or env:
        raise CatalogueError(f"{source} holds Python functions, which have no --server, --header or --env")
    found = load_functions(source)
    issues = tuple(Remark(f"{issue.file}:{issue.line}", issue.reason) for issue in found.issues)
    return Imported(found.tools[0].source, found.tools, issues, (), found.read_only)


def make_toolbox(
    tools: Sequence[ToolSchema],
    allowed: Collection[str] = (),
    timeout_s: float = 10.0,
    max_chars: int = 4000,
    state: Literal["shared", "attempt"] = "shared",
    max_states: int = 16,
) -> PythonToolbox | None:
    """Runs the tools of a catalogue that are read-only or `allowed` ("*": all); None where that leaves none.

    The others are answered with UNAVAILABLE. Python functions run in worker processes, operations of services and MCP
    tools on a network thread, for `timeout_s` at most; MCP servers are connected when first needed. Methods of a
    stateful class have a state for each attempt; with state="attempt" so have the tools of an MCP command, unless all
    that may be run are read-only (see `check_copies` for services). Raises a UserError where a tool is allowed that
    nothing could run, where a secret is not set, and where functions have other documents by now than in `tools`.
    """
    known = {tool.name: tool for tool in tools if tool.origin}
    if unknown := sorted(set(allowed) - {*known, "*"}):
        has = ", ".join(list(known)[:20]) or "none"
        raise CatalogueError(f"there is no tool {unknown[0]!r} to allow; the tools that can be run: {has}")
    may_run = set(known) if "*" in allowed else set(allowed)
    remote = {
        name: tool.origin
        for name, tool in known.items()
        if isinstance(tool.origin, HttpOrigin | McpOrigin) and (tool.origin.read_only or name in may_run)
    }
    isolated = _isolated(remote) if state == "attempt" else {}
    servers: dict[str, Any] = {}
    functions: dict[str, Callable[..., Any] | StatefulTool] = dict(_python(tools, may_run))
    for name, origin in remote.items():
        env = origin.env if isinstance(origin, McpOrigin) else ()
        for needed in secret_names(origin.headers, env):
            secret(needed, f"tool {name!r}")  # said now, not after hours
        if isinstance(origin, HttpOrigin):
            functions[name] = HttpTool(origin, timeout_s)
        elif name in isolated:
            functions[name] = isolated[name]
        else:
            key = repr((origin.server, sorted(origin.headers.items()), env))
            servers.setdefault(key, _mcp().McpServer(origin.server, origin.headers, env))
            functions[name] = _mcp().McpTool(servers[key], origin, timeout_s)
    if not functions:
        return None
    # These keep limits of their own.
    settings = dict.fromkeys(remote, ToolSettings(timeout_s, max_chars, "inline"))
    return PythonToolbox(
        functions, tools, timeout_s=timeout_s, max_chars=max_chars, settings=settings, max_states=max_states
    )


def check_copies(tools: Sequence[ToolSchema], allowed: Collection[str]) -> None:
    """Raises CatalogueError where an allowed tool changes a service, of which no attempt can have a copy."""
    for tool in tools:
        origin = tool.origin
        if not isinstance(origin, HttpOrigin | McpOrigin) or origin.read_only:
            continue
        service = isinstance(origin, HttpOrigin) or is_address(origin.server)
        if service and ("*" in allowed or tool.name in allowed):
            raise CatalogueError(
                f"tool {tool.name!r} changes a service, of which there is no copy for each attempt: take it out of "
                'catalogue.allow, or let attempts share what it changes with catalogue.state = "shared"'
            )


def _isolated(remote: Mapping[str, HttpOrigin | McpOrigin]) -> dict[str, StatefulTool]:
    """Tools of the commands that each attempt needs for itself: one that may be run there changes something."""
    found: dict[str, StatefulTool] = {}
    changing: set[StateSource] = set()
    for name, origin in remote.items():
        if isinstance(origin, McpOrigin) and not is_address(origin.server):
            found[name] = _mcp_tool(origin)
            changing |= set() if origin.read_only else {found[name].source}
    return {name: tool for name, tool in found.items() if tool.source in changing}


def _mcp_tool(origin: McpOrigin) -> StatefulTool:
    _mcp()
    from tirkit.tools.mcp_state import McpSource

    return StatefulTool(McpSource(origin.server, origin.env), origin.tool)


def _mcp() -> Any:
    """The module that needs the MCP client, which not everybody has. Raises CatalogueError where it is missing."""
    try:
        from tirkit.tools import mcp_tool
    except ModuleNotFoundError as error:
        raise CatalogueError(f"MCP servers need the package {error.name}: pip install 'tirkit[mcp]'") from error
    return mcp_tool


def _python(tools: Sequence[ToolSchema], may_run: Collection[str]) -> dict[str, ImportedFunction | StatefulTool]:
    """The Python functions among the tools that are marked as read-only now, or may be run anyway."""
    by_source: dict[str, dict[str, ToolSchema]] = {}
    for tool in tools:
        if isinstance(tool.origin, PythonOrigin):
            by_source.setdefault(tool.origin.source, {})[tool.origin.function] = tool
    functions: dict[str, ImportedFunction | StatefulTool] = {}
    for source, own in by_source.items():
        found = load_functions(source)
        now = {tool.origin.function: tool for tool in found.tools if isinstance(tool.origin, PythonOrigin)}
        _check_unchanged(source, own, now)
        ready = found.functions([now[name].name for name, tool in own.items() if tool.name in may_run])
        functions |= {tool.name: ready[now[name].name] for name, tool in own.items() if now[name].name in ready}
    return functions


def _check_unchanged(source: str, before: dict[str, ToolSchema], now: dict[str, ToolSchema]) -> None:
    same = {"source": source, "origin": None}
    old = [tool.model_copy(update={**same, "name": name}) for name, tool in before.items()]
    new = [now[name].model_copy(update={**same, "name": name}) for name in before if name in now]
    if changed := compare_tools(old, new, source):
        lines = "\n  ".join(changed.lines())
        raise CatalogueError(
            f"the functions of {source} are no longer those that the catalogue or run was prepared with:\n  {lines}\n"
            "Give the old ones back, import them again (`tirkit tools import`), or start another run (--out)"
        )


def functions_digest(tools: Sequence[ToolSchema]) -> str:
    """Twelve hex digits that change with the files of Python functions among the tools; "" where there are none."""
    sources = sorted({tool.origin.source for tool in tools if isinstance(tool.origin, PythonOrigin)})
    files = [Path(source) for source in sources if source.endswith(".py")]
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files if f.exists())).hexdigest()[:12] if files else ""
