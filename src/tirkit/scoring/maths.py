"""Are two mathematical expressions equal? math_verify decides, in processes of its own.

math_verify limits its time by a signal, which works in the main thread only, and sympy can hang where no signal
reaches. So it runs in worker processes: made when first needed, kept, killed and replaced when one hangs. What is
limited is a worker's own computing time, so that a busy machine does not make right answers wrong.
"""

import contextlib
import importlib
import importlib.util
import logging
import multiprocessing
import re
import signal
import threading
from functools import lru_cache
from multiprocessing.connection import Connection
from typing import Any

from tirkit.types import UserError

TIMEOUT_S = 2.0
_PATIENCE = 30  # times the limit, in wall time: a worker that is not done by then is stuck where no signal reaches
_START_S = 60.0  # importing sympy takes seconds on a busy machine
_CONTEXT = multiprocessing.get_context("forkserver")  # safe beside threads
_SEVERAL = re.compile(r"\d\s+[-+]?\d")  # "4 5 6" must not be read as one expression

_idle: list["_Worker"] = []
_lock = threading.Lock()


class MathsError(UserError):
    """Expressions cannot be compared here; the message says what to install or to change."""


@lru_cache(maxsize=8192)
def expressions_equal(gold: str, predicted: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether `predicted` is the same expression as `gold`, up to rewriting; may be called from any thread.

    False where that is not shown within `timeout_s` of computing. Raises MathsError where math-verify is missing.
    """
    if not predicted.strip() or not (_balanced(gold) and _balanced(predicted)) or _SEVERAL.search(predicted):
        return False
    with _lock:
        worker = _idle.pop() if _idle else None
    if worker is None or not worker.process.is_alive():
        worker = _Worker()
    try:
        equal = bool(worker.ask((gold, predicted, timeout_s), _PATIENCE * timeout_s))
    except (TimeoutError, EOFError, OSError):
        worker.kill()
        return False
    except BaseException:  # interrupted: nobody will read this worker's answer any more
        worker.kill()
        raise
    with _lock:
        _idle.append(worker)
    return equal


class _Worker:
    """One process that compares; raises MathsError where it does not come up."""

    def __init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise MathsError("comparing mathematical answers needs math-verify: pip install math-verify")
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self._receive(_START_S)
        except (TimeoutError, EOFError, OSError) as error:
            self.kill()
            raise MathsError(
                f"the process that compares mathematical answers could not start ({type(error).__name__}); check that "
                "math_verify can be imported, and that your script starts its work under `if __name__ == '__main__':`"
            ) from error

    def ask(self, question: tuple[str, str, float], timeout_s: float) -> Any:
        """The worker's answer; TimeoutError where it takes too long."""
        self.connection.send(question)
        return self._receive(timeout_s)

    def _receive(self, timeout_s: float) -> Any:
        if not self.connection.poll(timeout_s):
            raise TimeoutError
        return self.connection.recv()

    def kill(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def _serve(connection: "Connection[Any, Any]") -> None:
    """What a worker does: compare pairs until the pipe closes."""
    math_verify: Any = importlib.import_module("math_verify")
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we time it ourselves
    connection.send(True)
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(_compare(math_verify, *connection.recv()))


class _OutOfTimeError(BaseException):
    """Not an Exception: math_verify and sympy catch those."""


def _compare(math_verify: Any, gold: str, predicted: str, timeout_s: float) -> bool:
    """Both wholly read as LaTeX: nothing is looked for inside a longer text. False after `timeout_s` of computing."""

    def stop(*_: object) -> None:
        raise _OutOfTimeError

    boxed = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]

    def read(text: str) -> Any:
        return math_verify.parse(
            f"\\boxed{{{text}}}", boxed, "no_fallback", extraction_mode="first_match", parsing_timeout=None
        )

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, timeout_s)
    try:
        return bool(math_verify.verify(read(gold), read(predicted), timeout_seconds=None))
    except (Exception, _OutOfTimeError):  # sympy raises whatever it likes; what it can't read is not equal
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _balanced(text: str) -> bool:
    """Whether the braces match: others would close the box that the text is put into."""
    depth = 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0
