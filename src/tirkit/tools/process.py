"""A worker process seen from outside: started, given calls, and killed when one takes too long."""

import contextlib
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Mapping
from typing import Any

from tirkit.tools.worker import Answer, serve
from tirkit.types import ToolErrorKind, UserError

START_TIMEOUT_S = 60.0
CONTEXT = multiprocessing.get_context("forkserver")  # a clean, small parent: safe beside threads, CUDA and big models
# What a worker needs for functions of files: imported once, a worker starts in a tenth of the time.
CONTEXT.set_forkserver_preload(["tirkit.tools.worker", "tirkit.tools.functions"])


class ToolboxError(UserError):
    """A toolbox is set up wrongly; the message names the tool and the remedy."""


class Worker:
    """One worker process and the pipe to it. Raises `ToolboxError` if it does not come up.

    pickled_tools: what to call by name, pickled. timeout_s: of the longest call. memory_mb: address space, 0 = no
    limit.
    """

    def __init__(self, pickled_tools: bytes, timeout_s: float, memory_mb: int) -> None:
        self.connection, theirs = CONTEXT.Pipe()
        arguments = (theirs, pickled_tools, timeout_s, memory_mb)
        self.process = CONTEXT.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        try:
            problem = self._receive(START_TIMEOUT_S)
        except (TimeoutError, EOFError, OSError) as error:
            problem = f"{type(error).__name__} {error}".strip()
        except BaseException:  # interrupted
            self.close()
            raise
        if problem is not None:
            self.close()
            raise ToolboxError(
                f"a tool worker process could not start ({problem}); check that the modules of your tools can be "
                "imported within memory_mb, and that your script starts its work under `if __name__ == '__main__':`"
            )

    @property
    def alive(self) -> bool:
        """False once the process has ended, by itself or by force."""
        return self.process.is_alive()

    def ask(self, tool: str, arguments: Mapping[str, Any], timeout_s: float, max_chars: int) -> Answer:
        """`invoke`'s answer. A call that takes longer than timeout_s, or ends the process, is the worker's last."""
        try:
            self.connection.send((tool, arguments, max_chars))
            return self._receive(timeout_s)
        except TimeoutError:
            self.close()
            return Answer(f"tool {tool!r} did not finish within {timeout_s:g} s", ToolErrorKind.TIMEOUT)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = self.close()
            return Answer(f"tool {tool!r} ended its process (exit code {code})", ToolErrorKind.CRASHED)
        except BaseException:  # interrupted: nobody will read this worker's answer any more
            self.close()
            raise

    def _receive(self, timeout_s: float) -> Any:
        if not self.connection.poll(timeout_s):
            raise TimeoutError
        return self.connection.recv()

    def close(self) -> int | None:
        """End the process and all it started; returns its exit code."""
        if self.connection.closed:
            return self.process.exitcode
        self.connection.close()  # an idle one ends by itself, and one that has died keeps its own exit code
        self.process.join(0.1)
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        return self.process.exitcode


def close_all(workers: list[Worker]) -> None:
    """End the workers and empty the list."""
    while workers:
        workers.pop().close()


def pickle_tools(functions: Mapping[str, Callable[..., Any]]) -> bytes:
    """The functions as a worker takes them. Raises `ToolboxError` naming the first that can't be sent there."""
    for name, function in functions.items():
        try:
            pickle.dumps(function)
        except Exception as error:  # pickle raises whatever it likes
            raise ToolboxError(
                f"tool {name!r} cannot be sent to a worker process ({error}); define its function at the top of a "
                'module, or trust it with isolation="inline"'
            ) from error
    return pickle.dumps(dict(functions))
