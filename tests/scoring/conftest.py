"""Attempts written as texts: read by the dialect, as a rollout does it."""

from collections.abc import Callable, Sequence

import pytest

from tirkit.text.dialects import Dialect
from tirkit.text.index import build_index
from tirkit.types import Message, StopReason, Task, ToolCall, ToolSchema, Trajectory, Turn

Attempt = Callable[..., Trajectory]
PROMPT = (Message(role="user", content="Call A with x = 1."),)


def read_attempt(texts: Sequence[str], dialect: Dialect, stop: StopReason = StopReason.ANSWERED) -> Trajectory:
    turns: list[Turn] = []
    for text in texts:
        read = dialect.parse(text)
        fields = {name: getattr(read, name) for name in ("selected", "calls", "answer", "problems")}
        turns.append(Turn(text=text, **fields))
    return Trajectory(task_id="t", prompt=PROMPT, turns=tuple(turns), stop=stop)


@pytest.fixture(scope="session")
def attempt() -> Attempt:
    return read_attempt


@pytest.fixture(scope="session")
def dialect() -> Dialect:
    return Dialect(build_index([ToolSchema(name=name) for name in "ABCD"]))


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    def make(*rounds: Sequence[ToolCall], **fields: object) -> Task:
        return Task(id="t", prompt=PROMPT, gold_rounds=tuple(map(tuple, rounds)), **fields)  # type: ignore[arg-type]

    return make
