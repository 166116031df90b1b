"""Run tool calls so that no tool can stop, stall or flood the run.

Whatever a tool does (raise, hang, die, return 10 MB) comes back as a `ToolResult` that the model can read; only a
mistake in the set-up raises (`ToolboxError`).
"""

import contextlib
import copy
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from tirkit.text.schema import validate_arguments
from tirkit.tools.process import ToolboxError, Worker, close_all, pickle_tools
from tirkit.tools.state import State, StatefulTool, StateSource
from tirkit.tools.worker import Answer, clip, invoke
from tirkit.types import ToolCall, ToolErrorKind, ToolResult, ToolSchema

logger = logging.getLogger(__name__)
Isolation = Literal["process", "inline"]
TURN_S = 0.1  # between two looks at whether an attempt that waits for its turn is over


class Toolbox(Protocol):
    """Runs tool calls. `run` may be called from several threads at once and answers whatever the call is."""

    def run(self, call: ToolCall) -> ToolResult:
        """The result of one call; what went wrong with it is in the result too."""
        ...


def run_all(toolbox: Toolbox, calls: Sequence[ToolCall], workers: int = 8) -> list[ToolResult]:
    """The results of `calls`, in their order, at most `workers` of them running at the same time."""
    if len(calls) <= 1 or workers <= 1:
        return [toolbox.run(call) for call in calls]
    with ThreadPoolExecutor(min(workers, len(calls))) as pool:
        return list(pool.map(toolbox.run, calls))


@dataclass(frozen=True)
class ToolSettings:
    """How calls of a tool are run; see PythonToolbox."""

    timeout_s: float = 10.0
    max_chars: int = 4000
    isolation: Isolation = "process"
    retries: int = 3
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0

    def delay_s(self, attempt: int, retry_in_s: float) -> float:
        """How long to wait after failed attempt 0, 1, …: doubled each time, at least what the tool asked for.

        Up to half of it is left out at random, so that calls that failed together do not come back together.
        """
        delay_s = min(self.backoff_s * 2**attempt, self.max_backoff_s) * random.uniform(0.5, 1)
        return max(delay_s, min(retry_in_s, self.max_backoff_s))


class PythonToolbox:
    """Runs Python functions as tools.

    functions: by tool name; called with the arguments as keywords. A function returns text, anything JSON can hold, or
        an `Answer`. One that raises `TransientToolError` is called again, others that fail are not. A `StatefulTool`
        has a state for each attempt (see `attempt`), made by its source, in a process of its own.
    schemas: the tools' documents; arguments are checked against them first. A tool with a document and no function
        is answered with UNAVAILABLE.
    timeout_s: wall time for one call. max_chars: longer results keep their head and tail.
    retries, backoff_s: of transient failures; waits backoff_s, 2 backoff_s, 4 backoff_s … with jitter.
    settings: for tools that need others than those above, by name.
    isolation: "process" runs each call in a worker process, which is killed and replaced when it hangs or dies; the
        functions must then be importable (defined at the top of a module), keep no state between calls, and a script
        that uses them starts its work under `if __name__ == "__main__":`. "inline" calls the function right here,
        without time or memory limit: for functions you trust, and for tools that keep limits of their own.
    memory_mb: address space of a worker, 0 = no limit.
    max_states: attempts that have state at a time; others wait for their turn when they first need one.

    Workers start when first needed and stay; `close` (or `with`) ends them. As many run as threads call `run`.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any] | StatefulTool],
        schemas: Iterable[ToolSchema],
        *,
        timeout_s: float = 10.0,
        max_chars: int = 4000,
        isolation: Isolation = "process",
        memory_mb: int = 2048,
        retries: int = 3,
        backoff_s: float = 0.5,
        settings: Mapping[str, ToolSettings] | None = None,
        max_states: int = 16,
    ) -> None:
        self.functions = dict(functions)
        self.schemas = {tool.name: tool for tool in schemas}
        self.settings = dict.fromkeys(self.schemas, ToolSettings(timeout_s, max_chars, isolation, retries, backoff_s))
        self.settings |= settings or {}
        for names, what in ((self.functions, "a function"), (self.settings, "settings")):
            if unknown := sorted(names.keys() - self.schemas.keys()):
                raise ToolboxError(f"tool {unknown[0]!r} has {what} but no document; add its schema")
        self._stateful = {name: f for name, f in self.functions.items() if isinstance(f, StatefulTool)}
        self._plain = {name: f for name, f in self.functions.items() if not isinstance(f, StatefulTool)}
        isolated = {name: f for name, f in self._plain.items() if self.settings[name].isolation == "process"}
        longest_s = max((self.settings[name].timeout_s for name in self.functions), default=timeout_s)
        self._limits = (longest_s, memory_mb)
        self._pickled = pickle_tools(isolated)
        self._idle: list[Worker] = []
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(max_states)
        self._finalizer = weakref.finalize(self, close_all, self._idle)

    @property
    def stateful(self) -> frozenset[str]:
        """Names of the tools that have state."""
        return frozenset(self._stateful)

    def attempt(self) -> "Attempt":
        """The tools as one attempt sees them; close it when the attempt is over."""
        return Attempt(self)

    def run(self, call: ToolCall) -> ToolResult:
        """Check the arguments, run the tool, bound its output. A call to a tool with state is an attempt of its own."""
        if call.name in self._stateful:
            with contextlib.closing(self.attempt()) as attempt:
                return attempt.run(call)
        return self._result(call, self._run_once)

    def _result(self, call: ToolCall, run_once: Callable[[ToolCall, ToolSettings], Answer]) -> ToolResult:
        start = time.perf_counter()
        answer = self._refusal(call) or self._run_with_retries(call, run_once)
        content, cut = clip(answer.content, self._settings_of(call).max_chars)
        return ToolResult(
            name=call.name,
            content=content,
            error=answer.error,
            duration_s=time.perf_counter() - start,
            truncated=answer.truncated or cut,
        )

    def _settings_of(self, call: ToolCall) -> ToolSettings:
        return self.settings.get(call.name, ToolSettings())

    def _refusal(self, call: ToolCall) -> Answer | None:
        """Why the call cannot be run at all; None where it can."""
        tool = self.schemas.get(call.name)
        if tool is None:
            return Answer(f"there is no tool {call.name!r}", ToolErrorKind.UNKNOWN_TOOL)
        if problems := validate_arguments(tool, call.arguments):
            return Answer(f"invalid arguments: {'; '.join(problems)}", ToolErrorKind.INVALID_ARGUMENTS)
        if call.name not in self.functions:
            return Answer(f"tool {call.name!r} cannot be run here", ToolErrorKind.UNAVAILABLE)
        return None

    def _run_with_retries(self, call: ToolCall, run_once: Callable[[ToolCall, ToolSettings], Answer]) -> Answer:
        settings = self.settings[call.name]
        for attempt in range(settings.retries + 1):
            answer = run_once(call, settings)
            if answer.retry_in_s is None or attempt == settings.retries:
                return answer
            delay_s = settings.delay_s(attempt, answer.retry_in_s)
            logger.warning("tool %r: try %d: %s; again in %.1f s", call.name, attempt + 1, answer.content, delay_s)
            time.sleep(delay_s)
        raise AssertionError("the last try is returned")

    def _run_once(self, call: ToolCall, settings: ToolSettings) -> Answer:
        if settings.isolation == "process":
            return self._run_in_worker(call, settings)
        # A tool that changes its arguments must not change the recorded call.
        arguments = copy.deepcopy(call.arguments)
        return invoke(self._plain[call.name], arguments, settings.max_chars)

    def _run_in_worker(self, call: ToolCall, settings: ToolSettings) -> Answer:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None or not worker.alive:
            worker = Worker(self._pickled, *self._limits)
        answer = worker.ask(call.name, call.arguments, settings.timeout_s, settings.max_chars)
        if worker.alive:
            with self._lock:
                self._idle.append(worker)
        return answer

    def close(self) -> None:
        """End the idle workers; the toolbox can still be used and then starts new ones."""
        with self._lock:
            close_all(self._idle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Attempt:
    """The tools of a toolbox as one attempt sees them: those with state have one that no other attempt sees.

    A state is made at the first call that needs it, always with the same beginning, and ends with `close`. It is lost
    with a call that takes too long or ends its process; later calls are told so. Calls to tools with state run one
    after the other; they may come from several threads.
    """

    def __init__(self, toolbox: PythonToolbox) -> None:
        self._toolbox = toolbox
        self._states: dict[StateSource, State] = {}
        self._lock = threading.Lock()
        self._has_turn = self._over = False

    def run(self, call: ToolCall) -> ToolResult:
        """The result of one call; see `PythonToolbox.run`."""
        if call.name not in self._toolbox.stateful:
            return self._toolbox.run(call)
        with self._lock:
            if not self._has_turn and self._toolbox._refusal(call) is None:  # what is refused needs no state
                while not (self._has_turn or self._over):
                    self._has_turn = self._toolbox._turns.acquire(timeout=TURN_S)
            return self._toolbox._result(call, self._run_once)

    def _run_once(self, call: ToolCall, settings: ToolSettings) -> Answer:
        if self._over:
            return Answer("the attempt is over", ToolErrorKind.UNAVAILABLE)
        asked = self._toolbox._stateful[call.name]
        if asked.source not in self._states:
            self._states[asked.source] = asked.source.make(*self._toolbox._limits)
        state = self._states[asked.source]
        if not state.alive:
            message = f"tool {call.name!r} can't be used any more: its state was lost in an earlier call"
            return Answer(message, ToolErrorKind.UNAVAILABLE)
        answer = state.ask(asked.tool, copy.deepcopy(call.arguments), settings.timeout_s, settings.max_chars)
        return answer if state.alive else answer._replace(retry_in_s=None)

    def close(self) -> None:
        """Throw the state away, once a call that is running has ended. A state that can't be closed is logged."""
        self._over = True
        with self._lock:
            try:
                while self._states:
                    _, state = self._states.popitem()
                    try:
                        state.close()
                    except Exception:
                        logger.exception("the state of an attempt's tools could not be closed")
            finally:
                if self._has_turn:
                    self._has_turn = False
                    self._toolbox._turns.release()
