"""What runs inside a tool worker process, and how a tool's result becomes bounded text. Imports nothing heavy."""

import json
import os
import pickle
import resource
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

MAX_ERROR_CHARS = 500


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


def invoke(function: Callable[..., Any], arguments: Mapping[str, Any], max_chars: int) -> tuple[bool, str, bool]:
    """Call a tool: (it returned, its result or what it raised as text, whether that was cut).

    Text is passed on as it is, anything else as JSON. Whatever the tool does short of ending the process is answered.
    """
    try:
        value = function(**arguments)
        text = value if isinstance(value, str) else _to_json(value)
        # Text that UTF-8 cannot hold (lone surrogates) could be neither stored nor tokenised.
        return True, *clip(text.encode("utf-8", "replace").decode("utf-8"), max_chars)
    except (Exception, SystemExit) as error:
        try:
            message = " ".join(str(error).split())
        except Exception:  # an exception that cannot even be printed
            message = ""
        text = f"{type(error).__name__}: {message}" if message else type(error).__name__
        return False, *clip(text.encode("utf-8", "replace").decode("utf-8"), min(max_chars, MAX_ERROR_CHARS))


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the tool returned something that is not JSON ({error})") from None


def serve(connection: Connection, pickled_functions: bytes, timeout_s: float, max_chars: int, memory_mb: int) -> None:
    """Answer calls until the other side hangs up.

    Protocol: first None (ready) or a text saying why not; then (name, arguments) in, `invoke`'s answer out.
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
            name, arguments = connection.recv()
        except EOFError:
            return
        # The caller kills a worker that takes too long; should the caller be gone, the alarm does.
        signal.setitimer(signal.ITIMER_REAL, timeout_s + 5)
        answer = invoke(functions[name], arguments, max_chars)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)
