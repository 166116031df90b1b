"""What a tool may answer, how that becomes bounded text, and what runs inside a tool worker process."""

import json
import os
import pickle
import resource
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tirkit.types import ToolErrorKind, UserError

MAX_ERROR_CHARS = 500


class Answer(NamedTuple):
    """What one run of a tool gave; see ToolResult. A tool may return one, to say that it failed or cut its output.

    `retry_in_s` is set where the failure may pass: the call may be made again after so many seconds.
    """

    content: str
    error: ToolErrorKind | None = None
    truncated: bool = False
    retry_in_s: float | None = None


class TransientToolError(Exception):
    """Raised by a tool that cannot answer now and may when asked again, in `retry_in_s` seconds or later."""

    def __init__(self, message: str, retry_in_s: float = 0.0):
        super().__init__(message)
        self.retry_in_s = retry_in_s


def clip(text: str, max_chars: int) -> tuple[str, bool]:
    """(`text` in at most max_chars characters, whether something was left out): its head and its tail are kept.

    >>> clip("0123456789" * 10, 60)
    ('012345678901234 … [71 characters left out] … 67890123456789', True)
    """
    if len(text) <= max_chars:
        return text, False
    room = max_chars - len(f" … [{len(text)} characters left out] … ")
    if room <= 0:
        return text[:max_chars], True
    head, tail = text[: room - room // 2], text[len(text) - room // 2 :]
    return f"{head} … [{len(text) - room} characters left out] … {tail}", True


def invoke(function: Callable[..., Any], arguments: Mapping[str, Any], max_chars: int) -> Answer:
    """Call a tool. Text is passed on as it is, anything else as JSON, what it raises as its type and message.

    Whatever the tool does short of ending the process is answered; but a `UserError` is a mistake in its set-up, and
    goes on to whoever can put it right.
    """
    try:
        value = function(**arguments)
        answer = value if isinstance(value, Answer) else Answer(value if isinstance(value, str) else _to_json(value))
        return _bounded(answer, max_chars)
    except UserError:
        raise
    except TransientToolError as error:
        answer = Answer(_in_words(error), ToolErrorKind.UNAVAILABLE, retry_in_s=error.retry_in_s)
    except (Exception, SystemExit) as error:
        answer = Answer(_in_words(error), ToolErrorKind.RAISED)
    return _bounded(answer, min(max_chars, MAX_ERROR_CHARS))


def _bounded(answer: Answer, max_chars: int) -> Answer:
    # Text that UTF-8 cannot hold (lone surrogates) could be neither stored nor tokenised.
    content, cut = clip(answer.content.encode("utf-8", "replace").decode("utf-8"), max_chars)
    return answer._replace(content=content, truncated=answer.truncated or cut)


def _in_words(error: BaseException) -> str:
    try:
        message = " ".join(str(error).split())
    except Exception:  # an exception that cannot even be printed
        message = ""
    if isinstance(error, TransientToolError) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the tool returned something that is not JSON ({error})") from None


def serve(connection: Connection, pickled_functions: bytes, timeout_s: float, memory_mb: int) -> None:
    """Answer calls until the other side hangs up.

    Protocol: first None (ready) or a text saying why not; then (name, arguments, max_chars) in, `invoke`'s answer out.
    What tools print goes nowhere: the terminal belongs to the run, and only what a tool returns is its result.
    """
    os.setsid()  # a group of its own, so that whatever a tool starts is killed with it
    sink = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(sink, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mb:
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    try:
        functions = pickle.loads(pickled_functions)
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    while True:
        try:
            name, arguments, max_chars = connection.recv()
        except EOFError:
            return
        # The caller kills a worker that takes too long; should the caller be gone, the alarm does.
        signal.setitimer(signal.ITIMER_REAL, timeout_s + 5)
        answer = invoke(functions[name], arguments, max_chars)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)
