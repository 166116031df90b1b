"""Tools that misbehave, importable by worker processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

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
