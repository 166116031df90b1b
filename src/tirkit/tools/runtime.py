"""Run tool calls so that no tool can stop, stall or flood the run.

Whatever a tool does (raise, hang, die, return 10 MB) comes back as a `ToolResult` that the model can read; only a
mistake in the set-up raises (`ToolboxError`).
"""

import contextlib
import copy
import logging
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from tirkit.text.schema import validate_arguments
from tirkit.tools.worker import Answer, clip, invoke, serve
from tirkit.types import ToolCall, ToolErrorKind, ToolResult, ToolSchema, UserError

logger = logging.getLogger(__name__)
START_TIMEOUT_S = 60.0
CONTEXT = multiprocessing.get_context("forkserver")  # a clean, small parent: safe beside threads, CUDA and big models
CONTEXT.set_forkserver_preload(["tirkit.tools.worker"])
Isolation = Literal["process", "inline"]


class ToolboxError(UserError):
    """A toolbox is set up wrongly; the message names the tool and the remedy."""


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
        an `Answer`. One that raises `TransientToolError` is called again, others that fail are not.
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

    Workers start when first needed and stay; `close` (or `with`) ends them. As many run as threads call `run`.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        schemas: Iterable[ToolSchema],
        *,
        timeout_s: float = 10.0,
        max_chars: int = 4000,
        isolation: Isolation = "process",
        memory_mb: int = 2048,
        retries: int = 3,
        backoff_s: float = 0.5,
        settings: Mapping[str, ToolSettings] | None = None,
    ) -> None:
        self.functions = dict(functions)
        self.schemas = {tool.name: tool for tool in schemas}
        self.settings = dict.fromkeys(self.schemas, ToolSettings(timeout_s, max_chars, isolation, retries, backoff_s))
        self.settings |= settings or {}
        for names, what in ((self.functions, "a function"), (self.settings, "settings")):
            if unknown := sorted(names.keys() - self.schemas.keys()):
                raise ToolboxError(f"tool {unknown[0]!r} has {what} but no document; add its schema")
        isolated = {name: f for name, f in self.functions.items() if self.settings[name].isolation == "process"}
        longest_s = max((self.settings[name].timeout_s for name in isolated), default=timeout_s)
        self._worker_settings = (_pickle_functions(isolated), longest_s, memory_mb)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _kill_all, self._idle)

    def run(self, call: ToolCall) -> ToolResult:
        """Check the arguments, run the tool, bound its output."""
        start = time.perf_counter()
        answer = self._refusal(call) or self._run_with_retries(call)
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

    def _run_with_retries(self, call: ToolCall) -> Answer:
        settings = self.settings[call.name]
        for attempt in range(settings.retries + 1):
            answer = self._run_once(call, settings)
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
        return invoke(self.functions[call.name], arguments, settings.max_chars)

    def _run_in_worker(self, call: ToolCall, settings: ToolSettings) -> Answer:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None or not worker.process.is_alive():
            worker = _Worker(*self._worker_settings)
        try:
            answer = worker.call(call, settings)
        except TimeoutError:
            worker.kill()
            return Answer(f"tool {call.name!r} did not finish within {settings.timeout_s:g} s", ToolErrorKind.TIMEOUT)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = worker.kill()
            return Answer(f"tool {call.name!r} ended its process (exit code {code})", ToolErrorKind.CRASHED)
        except BaseException:  # interrupted: nobody will read this worker's answer any more
            worker.kill()
            raise
        with self._lock:
            self._idle.append(worker)
        return answer

    def close(self) -> None:
        """End the idle workers; the toolbox can still be used and then starts new ones."""
        with self._lock:
            _kill_all(self._idle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Worker:
    """One worker process and the pipe to it. Raises `ToolboxError` if it does not come up."""

    def __init__(self, pickled_functions: bytes, timeout_s: float, memory_mb: int) -> None:
        self.connection, theirs = CONTEXT.Pipe()
        arguments = (theirs, pickled_functions, timeout_s, memory_mb)
        self.process = CONTEXT.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        try:
            problem = self._receive(START_TIMEOUT_S)
        except (TimeoutError, EOFError, OSError) as error:
            problem = f"{type(error).__name__} {error}".strip()
        if problem is not None:
            self.kill()
            raise ToolboxError(
                f"a tool worker process could not start ({problem}); check that the modules of your tools can be "
                "imported within memory_mb, and that your script starts its work under `if __name__ == '__main__':`"
            )

    def call(self, call: ToolCall, settings: ToolSettings) -> Answer:
        """`invoke`'s answer. Raises TimeoutError if it takes too long; EOFError or OSError if the process dies."""
        self.connection.send((call.name, call.arguments, settings.max_chars))
        return self._receive(settings.timeout_s)

    def _receive(self, timeout_s: float) -> Any:
        if not self.connection.poll(timeout_s):
            raise TimeoutError
        return self.connection.recv()

    def kill(self) -> int | None:
        """End the process and all it started; returns its exit code."""
        self.connection.close()  # an idle one ends by itself, and one that has died keeps its own exit code
        self.process.join(0.1)
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        return self.process.exitcode


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()


def _pickle_functions(functions: dict[str, Callable[..., Any]]) -> bytes:
    for name, function in functions.items():
        try:
            pickle.dumps(function)
        except Exception as error:  # pickle raises whatever it likes
            raise ToolboxError(
                f"tool {name!r} cannot be sent to a worker process ({error}); define its function at the top of a "
                'module, or trust it with isolation="inline"'
            ) from error
    return pickle.dumps(functions)
