"""An MCP server that was started by a command, as a state: each attempt has a server of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tirkit.tools.mcp_tool import END_S, McpServer, McpTool
from tirkit.tools.worker import Answer, invoke
from tirkit.types import McpOrigin, ToolErrorKind

LOST = {ToolErrorKind.TIMEOUT, ToolErrorKind.UNAVAILABLE}


@dataclass(frozen=True)
class McpSource:
    """A command that starts a server, and the environment variables it gets. See `StateSource`."""

    server: str
    env: tuple[str, ...] = ()

    def make(self, timeout_s: float, memory_mb: int) -> "McpState":
        """A server that is started by its first call; the limits are not for it, it's the user's own program."""
        return McpState(self)


class McpState:
    """A server that one attempt has for itself. It is not started again, and no call is made twice. See `State`."""

    def __init__(self, source: McpSource) -> None:
        self._source = source
        self._server = McpServer(source.server, {}, source.env, once=True)
        self._lost = False

    @property
    def alive(self) -> bool:
        """False once a call had no answer: nobody knows what it did."""
        return not self._lost

    def ask(self, tool: str, arguments: Mapping[str, Any], timeout_s: float, max_chars: int) -> Answer:
        """What the tool answers. Raises a UserError where the server can't be started or a secret is not set."""
        origin = McpOrigin(kind="mcp", server=self._source.server, tool=tool)
        lost = True
        try:
            answer = invoke(McpTool(self._server, origin, timeout_s), arguments, max_chars)
            lost = answer.error in LOST
            return answer
        finally:  # also when interrupted
            if lost:
                self._lost = True
                self.close()

    def close(self) -> None:
        """End the server."""
        self._server.close(END_S)
