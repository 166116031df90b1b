"""Tools with state: what the calls of one attempt share, and no other attempt sees."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from tirkit.tools.worker import Answer
from tirkit.types import ToolCall, ToolResult


class State(Protocol):
    """One attempt's state, in a process of its own."""

    @property
    def alive(self) -> bool:
        """False once it is lost; it is never made anew behind the attempt's back."""
        ...

    def ask(self, tool: str, arguments: Mapping[str, Any], timeout_s: float, max_chars: int) -> Answer:
        """What `tool` answers. A call that takes too long, or ends the process, takes the state with it."""
        ...

    def close(self) -> object:
        """Throw it away; returns when its process has ended."""
        ...


class StateSource(Protocol):
    """Makes states that all begin alike. Sources that are equal make one state an attempt; hashable."""

    def make(self, timeout_s: float, memory_mb: int) -> State:
        """A new state, for calls of at most timeout_s. Raises a UserError where there can be none."""
        ...


@dataclass(frozen=True)
class StatefulTool:
    """A tool with state, where a toolbox has functions: `tool` is its name within the source."""

    source: StateSource
    tool: str


class AttemptToolbox(Protocol):
    """The tools as one attempt sees them; `close` throws its state away. Calls to tools with state run one by one."""

    def run(self, call: ToolCall) -> ToolResult:
        """See `Toolbox`."""
        ...

    def close(self) -> None:
        """The attempt is over."""
        ...


@runtime_checkable
class StatefulToolbox(Protocol):
    """A toolbox that gives each attempt a state of its own; `run` alone makes one for that call."""

    @property
    def stateful(self) -> Collection[str]:
        """Names of the tools that have state."""
        ...

    def run(self, call: ToolCall) -> ToolResult:
        """See `Toolbox`."""
        ...

    def attempt(self) -> AttemptToolbox:
        """The tools for one attempt, whose state is made when it first needs one."""
        ...
