"""One catalogue for many cases that each bring their own tools.

The rollout loop knows one catalogue, in which a name means one tool; a benchmark's cases may mean different tools by
the same name. Two ways out:

`worlds`: cases are asked together only where no name means two things. Names stay as the benchmark gives them, each
case sees its own tools alone: the official setting.

`Pool`: one catalogue of all tools under unique names (`f`, `f_2`, …), for models that retrieve from it or remember it.
A case is put in the pool's names, and what was called is put back in the case's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tirkit.evaluation.benchmarks.base import BenchmarkError, Case
from tirkit.text.schema import canonical_value
from tirkit.tools.catalogue import unique_names
from tirkit.types import Task, ToolCall, ToolSchema, Trajectory, Turn


@dataclass
class World:
    """Cases that can be asked together, and the tools by name that they ask about."""

    cases: list[Case] = field(default_factory=list)
    tools: dict[str, ToolSchema] = field(default_factory=dict)

    def fits(self, case: Case) -> bool:
        """Whether no name of the case's tools means another tool here."""
        return all(self.tools.get(tool.name, tool) == tool for tool in case.tools)


def worlds(cases: Iterable[Case], shared: Sequence[ToolSchema], size: int = 64) -> list[World]:
    """The cases in worlds of at most `size`, each in the first that has room for it and agrees with it."""
    made: list[World] = []
    room: list[World] = []
    for case in cases:
        world = next((world for world in room if world.fits(case)), None)
        if world is None:
            world = World(tools={tool.name: tool for tool in shared})
            if not world.fits(case):
                raise BenchmarkError(f"case {case.task.id!r} brings a tool by the name of a shared one: rename it")
            made.append(world)
            room.append(world)
        world.cases.append(case)
        world.tools |= {tool.name: tool for tool in case.tools}
        if len(world.cases) == size:
            room = [other for other in room if other is not world]
    return made


class Pool:
    """The tools of all cases in one catalogue.

    tools: under unique names, those of a trained model for instance; a tool is recognised by the name it came with,
    its description and its parameters.
    """

    def __init__(self, tools: Iterable[ToolSchema]):
        self.tools: Mapping[str, ToolSchema] = {tool.name: tool for tool in tools}
        self._names = {_content(tool): tool.name for tool in reversed(self.tools.values())}
        self._spoken = {tool.name: tool.original_name or tool.name for tool in self.tools.values()}

    @classmethod
    def of(cls, cases: Iterable[Case], shared: Sequence[ToolSchema] = ()) -> "Pool":
        """The pool of all tools that the cases bring, and the shared ones."""
        tools = [*shared, *(tool for case in cases for tool in case.tools)]
        return cls(unique_names(tools))

    def has(self, case: Case) -> bool:
        """Whether all tools that the case brings are here."""
        return all(_content(tool) in self._names for tool in case.tools)

    def knows(self, task: Task) -> bool:
        """Whether the gold calls of a task that brings no tools are to tools that are here."""
        return bool(task.tools) or all(call.name in self._spoken for call in task.gold_calls or ())

    def task(self, case: Case) -> Task:
        """The case's task over the whole pool: no toolset of its own, gold calls in the pool's names."""
        if not self.has(case):
            raise BenchmarkError(f"the catalogue lacks tools of case {case.task.id!r}: build it from these cases")
        names = {tool.name: self._names[_content(tool)] for tool in case.tools}
        rounds = case.task.gold_rounds
        renamed = rounds and tuple(tuple(_renamed(call, names) for call in calls) for calls in rounds)
        return case.task.model_copy(update={"tools": (), "gold_rounds": renamed})

    def back(self, trajectory: Trajectory) -> Trajectory:
        """The attempt with its calls and selections in the names that the tools came with."""
        turns = tuple(_turn(turn, self._spoken) for turn in trajectory.turns)
        return trajectory.model_copy(update={"turns": turns})


def _content(tool: ToolSchema) -> tuple[str, str, str]:
    return tool.original_name or tool.name, tool.description, canonical_value(tool.parameters)


def _renamed(call: ToolCall, names: Mapping[str, str]) -> ToolCall:
    return call.model_copy(update={"name": names.get(call.name, call.name)})


def _turn(turn: Turn, names: Mapping[str, str]) -> Turn:
    calls = tuple(_renamed(call, names) for call in turn.calls)
    return turn.model_copy(update={"calls": calls, "selected": tuple(names.get(n, n) for n in turn.selected)})
