"""Tools that misbehave, importable by worker processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tirkit.tools.worker import Answer, TransientToolError
from tirkit.types import ToolErrorKind

counter = 0


def add(a: int, b: int) -> int:
    return a + b


def fail(message: str) -> str:
    raise ValueError(message)


def hang(pid_file: str) -> None:
    child = subprocess.Popen(["sleep", "600"])
    Path(pid_file).write_text(str(child.pid))
    time.sleep(600)


def big(size: int) -> str:
    return "a" * (size // 2) + "z" * (size // 2)


def die(code: int) -> None:
    os._exit(code)


def leave() -> None:
    sys.exit(3)


def chatter() -> str:
    print("to standard output")
    print("to standard error", file=sys.stderr)
    os.write(1, b"to the file descriptor")
    return "quiet"


def odd_object() -> object:
    return {1, 2}


def surrogate() -> str:
    return "a\ud800b"


def eat_memory() -> int:
    return len(bytearray(8 << 30))


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def count() -> int:
    global counter
    counter += 1
    return counter


def change(items: list[int]) -> list[int]:
    items.append(4)
    return items


def read_input() -> str:
    return input()


def not_now(log: str, times: int, retry_in_s: float = 0.0) -> str:
    """Fails for a while: `times` times, then answers. Says in `log` when it was called."""
    with Path(log).open("a") as file:
        file.write(f"{time.monotonic()}\n")
    tries = len(Path(log).read_text().splitlines())
    if tries <= times:
        raise TransientToolError("busy", retry_in_s)
    return f"answered at try {tries}"


def own_answer() -> Answer:
    return Answer("a" * 3000, ToolErrorKind.TIMEOUT)


def not_here() -> None:
    raise ImportError("no module named elsewhere")


class Unloadable:
    """A tool that can be sent to a worker and not loaded there."""

    def __call__(self) -> str:
        return "never"

    def __reduce__(self) -> tuple[object, ...]:
        return not_here, ()
