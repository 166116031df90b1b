"""Run tool calls so that no tool can stop, stall or flood the run.

Whatever a tool does (raise, hang, die, return 10 MB) comes back as a `ToolResult` that the model can read; only a
mistake in the set-up raises (`ToolboxError`).
"""

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from pydantic import JsonValue

from tirkit.text.schema import validate_arguments
from tirkit.tools.worker import clip, invoke, serve
from tirkit.types import ToolCall, ToolErrorKind, ToolResult, ToolSchema, UserError

START_TIMEOUT_S = 60.0
CONTEXT = multiprocessing.get_context("forkserver")  # a clean, small parent: safe beside threads, CUDA and big models


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


class PythonToolbox:
    """Runs Python functions as tools.

    functions: by tool name; called with the arguments as keywords. A function returns text or anything JSON can hold.
    schemas: the tools' documents; arguments are checked against them first. A tool with a document and no function
        is answered with UNAVAILABLE.
    timeout_s: wall time for one call. max_chars: longer results keep their head and tail.
    isolation: "process" runs each call in a worker process, which is killed and replaced when it hangs or dies; the
        functions must then be importable (defined at the top of a module), keep no state between calls, and a script
        that uses them starts its work under `if __name__ == "__main__":`. "inline" calls the function right here,
        without time or memory limit: for functions you trust.
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
        isolation: Literal["process", "inline"] = "process",
        memory_mb: int = 2048,
    ) -> None:
        self.functions = dict(functions)
        self.schemas = {tool.name: tool for tool in schemas}
        self.timeout_s, self.max_chars = timeout_s, max_chars
        self.isolation = isolation
        if unknown := sorted(self.functions.keys() - self.schemas.keys()):
            raise ToolboxError(f"tool {unknown[0]!r} has a function but no document; add its schema")
        pickled = _pickle_functions(self.functions) if isolation == "process" else b""
        self._worker_settings = (pickled, timeout_s, max_chars, memory_mb)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _kill_all, self._idle)

    def run(self, call: ToolCall) -> ToolResult:
        """Check the arguments, run the tool, bound its output."""
        start = time.perf_counter()
        content, error, truncated = self._answer(call)
        content, cut = clip(content, self.max_chars)
        return ToolResult(
            name=call.name,
            content=content,
            error=error,
            duration_s=time.perf_counter() - start,
            truncated=truncated or cut,
        )

    def _answer(self, call: ToolCall) -> tuple[str, ToolErrorKind | None, bool]:
        """(content, error, truncated) of one call."""
        tool = self.schemas.get(call.name)
        if tool is None:
            return f"there is no tool {call.name!r}", ToolErrorKind.UNKNOWN_TOOL, False
        if problems := validate_arguments(tool, call.arguments):
            return f"invalid arguments: {'; '.join(problems)}", ToolErrorKind.INVALID_ARGUMENTS, False
        if call.name not in self.functions:
            return f"tool {call.name!r} cannot be run here", ToolErrorKind.UNAVAILABLE, False
        if self.isolation == "process":
            return self._run_in_worker(call)
        # A tool that changes its arguments must not change the recorded call.
        arguments = copy.deepcopy(call.arguments)
        returned, content, truncated = invoke(self.functions[call.name], arguments, self.max_chars)
        return content, None if returned else ToolErrorKind.RAISED, truncated

    def _run_in_worker(self, call: ToolCall) -> tuple[str, ToolErrorKind | None, bool]:
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is None or not worker.process.is_alive():
            worker = _Worker(*self._worker_settings)
        try:
            answer = worker.call(call.name, call.arguments, self.timeout_s)
        except TimeoutError:
            worker.kill()
            return f"tool {call.name!r} did not finish within {self.timeout_s:g} s", ToolErrorKind.TIMEOUT, False
        except (EOFError, OSError, pickle.UnpicklingError):
            code = worker.kill()
            return f"tool {call.name!r} ended its process (exit code {code})", ToolErrorKind.CRASHED, False
        except BaseException:  # interrupted: nobody will read this worker's answer any more
            worker.kill()
            raise
        with self._lock:
            self._idle.append(worker)
        returned, content, truncated = answer
        return content, None if returned else ToolErrorKind.RAISED, truncated

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

    def __init__(self, pickled_functions: bytes, timeout_s: float, max_chars: int, memory_mb: int) -> None:
        self.connection, theirs = CONTEXT.Pipe()
        arguments = (theirs, pickled_functions, timeout_s, max_chars, memory_mb)
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

    def call(self, name: str, arguments: Mapping[str, JsonValue], timeout_s: float) -> tuple[bool, str, bool]:
        """`invoke`'s answer. Raises TimeoutError if it takes too long; EOFError or OSError if the process dies."""
        self.connection.send((name, arguments))
        return self._receive(timeout_s)

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
