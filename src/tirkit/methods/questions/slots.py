"""What is wanted: which tools a question must need, and how hard it is to tell."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tirkit.rollout.loop import stable_seed
from tirkit.types import ToolCall, ToolSchema

Shape = Literal["single", "several", "no_tool"]
Difficulty = Literal["easy", "hard"]


@dataclass(frozen=True)
class Slot:
    """One question that is wanted; it must need all of `tools`, once each, and no other. `number` counts from 1."""

    number: int
    difficulty: Difficulty
    tools: tuple[ToolSchema, ...]

    @property
    def shape(self) -> Shape:
        """By the number of tools."""
        return ("no_tool", "single", "several")[min(len(self.tools), 2)]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tools."""
        return tuple(tool.name for tool in self.tools)


@dataclass(frozen=True)
class Draft:
    """A question as somebody wrote it; `reply` is the answer to one that needs no tool. `made_up`: its values are."""

    question: str
    calls: tuple[ToolCall, ...] = ()
    reply: str = ""
    made_up: bool = False


@dataclass(frozen=True)
class Shares:
    """How many of the questions need two tools, need none, and are hard; each in [0, 1]."""

    several: float = 0.25
    no_tool: float = 0.15
    hard: float = 0.5


def draw_slots(tools: Sequence[ToolSchema], batch: int, size: int, seed: int, shares: Shares) -> tuple[Slot, ...]:
    """The `size` slots of a batch. Over all batches each tool is the first of a slot before one is again."""
    return tuple(_slot(tools, batch, i, batch * size + i, seed, shares) for i in range(size))


def _slot(tools: Sequence[ToolSchema], batch: int, i: int, place: int, seed: int, shares: Shares) -> Slot:
    rng = random.Random(stable_seed(seed, "slot", batch, i))
    turn = random.Random(stable_seed(seed, "tools", place // len(tools))).sample(range(len(tools)), len(tools))
    first = turn[place % len(tools)]
    draw, difficulty = rng.random(), "hard" if rng.random() < shares.hard else "easy"
    chosen = [first]
    if draw < shares.no_tool:
        chosen = []
    elif draw < shares.no_tool + shares.several and len(tools) > 1:
        chosen.append((first + rng.randrange(1, len(tools))) % len(tools))
    return Slot(i + 1, difficulty, tuple(tools[k] for k in chosen))
