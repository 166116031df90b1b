"""Tools and parameters under other names than they came with, and the way back.

One new name for each tool name and each parameter name of a benchmark, so that cases stay asked together and what is
the same stays the same. Changed are: documents (names, parameters of the outermost level, mentions of other tools), the
gold, calls in earlier turns, mentions of tools in what tools gave back. What users say and what calls mean stays.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tirkit.text.dialects import Dialect
from tirkit.tools.retrieve import words
from tirkit.types import Message, Task, ToolCall, ToolSchema, Trajectory, Turn

NOT_ITS_NAME = " (its name before it was changed)"  # marks what a model called by a name it was not shown
SYNONYMS = {
    "add": "insert",
    "book": "reserve",
    "buy": "purchase",
    "calculate": "compute",
    "cancel": "revoke",
    "check": "verify",
    "city": "town",
    "compute": "calculate",
    "convert": "translate",
    "create": "make",
    "delete": "remove",
    "fetch": "obtain",
    "find": "locate",
    "get": "fetch",
    "list": "enumerate",
    "location": "place",
    "make": "create",
    "remove": "delete",
    "retrieve": "obtain",
    "search": "seek",
    "send": "dispatch",
    "update": "modify",
}
_DIALECT = Dialect()
_WORD, _JOINED = re.compile(r"\w+"), re.compile(r"\w+(?:[.:/-]\w+)*")
_PLAIN_WORD = re.compile(r"[a-z]+|[A-Z][a-z]*")


@dataclass(frozen=True)
class Names:
    """New names by the names that tools and parameters came with. in_replies: replies name them, too."""

    tools: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    in_replies: bool = False

    @cached_property
    def _tools_back(self) -> dict[str, str]:
        return {new: old for old, new in self.tools.items()}

    @cached_property
    def _parameters_back(self) -> dict[str, str]:
        return {new: old for old, new in self.parameters.items()}

    @cached_property
    def _mentions(self) -> "Rewriter":
        # A name that is a plain word may well be meant as one.
        return Rewriter({old: new for old, new in self.tools.items() if not _PLAIN_WORD.fullmatch(old)})

    @cached_property
    def _in_reply(self) -> "Rewriter":
        return Rewriter({**self.parameters, **self.tools})

    @cached_property
    def _in_reply_back(self) -> "Rewriter":
        return Rewriter({**self._parameters_back, **self._tools_back})

    def tool(self, tool: ToolSchema) -> ToolSchema:
        """The document under its new names."""
        schema: dict[str, Any] = dict(tool.parameters)
        properties: dict[str, Any] = schema.get("properties") or {}
        schema["properties"] = {
            self.parameters.get(name, name): self._described(about) for name, about in properties.items()
        }
        if "required" in schema:
            schema["required"] = [self.parameters.get(name, name) for name in schema["required"]]
        change = {"name": self.tools.get(tool.name, tool.name), "description": self._mentions(tool.description)}
        return tool.model_copy(update={**change, "parameters": schema})

    def _described(self, about: Any) -> Any:
        if not isinstance(about, dict) or not isinstance(about.get("description"), str):
            return about
        return {**about, "description": self._mentions(about["description"])}

    def task(self, task: Task) -> Task:
        """The task with its toolset, gold and earlier turns under the new names."""
        rounds = task.gold_rounds and tuple(tuple(map(self.call, calls)) for calls in task.gold_rounds)
        answer = self._in_reply(task.answer) if self.in_replies and task.answer is not None else task.answer
        return task.model_copy(
            update={
                "prompt": tuple(map(self._message, task.prompt)),
                "tools": tuple(self.tools.get(name, name) for name in task.tools),
                "gold_rounds": rounds,
                "answer": answer,
            }
        )

    def _message(self, message: Message) -> Message:
        if message.role == "tool":
            return message.model_copy(update={"content": self.text(message.content)})
        calls = _DIALECT.parse(message.content).calls if message.role == "assistant" else ()
        changed = tuple(map(self.call, calls))
        if changed == calls:
            return message
        return message.model_copy(update={"content": _DIALECT.print_calls(changed)})

    def text(self, text: str) -> str:
        """What a tool gives back, with the new names of the tools it mentions."""
        return self._mentions(text)

    def call(self, call: ToolCall) -> ToolCall:
        """The call in the new names."""
        arguments = {self.parameters.get(name, name): value for name, value in call.arguments.items()}
        return ToolCall(name=self.tools.get(call.name, call.name), arguments=arguments)

    def call_back(self, call: ToolCall) -> ToolCall:
        """The call in the names that tools came with. One by an old name, which the model was not shown, is marked."""
        arguments = {
            _back(name, self._parameters_back, self.parameters): value for name, value in call.arguments.items()
        }
        return ToolCall(name=_back(call.name, self._tools_back, self.tools), arguments=arguments)

    def back(self, trajectory: Trajectory) -> Trajectory:
        """The attempt with its calls, selections and, with `in_replies`, its replies in the names tools came with."""
        return trajectory.model_copy(update={"turns": tuple(map(self._turn, trajectory.turns))})

    def _turn(self, turn: Turn) -> Turn:
        change: dict[str, Any] = {
            "calls": tuple(map(self.call_back, turn.calls)),
            "selected": tuple(_back(name, self._tools_back, self.tools) for name in turn.selected),
        }
        if self.in_replies and turn.answer is not None:
            change["answer"] = self._in_reply_back(turn.answer)
        return turn.model_copy(update=change)


class Rewriter:
    """Puts new words in the place of whole words; what dots, dashes, colons or slashes join is tried as one first."""

    def __init__(self, change: Mapping[str, str]):
        self._change = change

    def __call__(self, text: str) -> str:
        """The text with its words changed."""
        return _JOINED.sub(self._joined, text) if self._change else text

    def _joined(self, match: re.Match[str]) -> str:
        found = self._change.get(match[0])
        return found if found is not None else _WORD.sub(lambda word: self._change.get(word[0], word[0]), match[0])


def _back(name: str, new: Mapping[str, str], old: Mapping[str, str]) -> str:
    return new.get(name, name + NOT_ITS_NAME if name in old else name)


def masked(tools: Iterable[ToolSchema], in_replies: bool = False) -> Names:
    """Names that say nothing: tool_1, tool_2, …, arg_1, arg_2, …, in order of appearance."""
    return _names(tools, lambda _, number: f"tool_{number}", lambda _, number: f"arg_{number}", in_replies)


def renamed(tools: Iterable[ToolSchema], in_replies: bool = False) -> Names:
    """Names that say the same in other words and another style: get_weather → fetchWeather, cityName → town_name."""
    return _names(tools, lambda name, _: reworded(name, "tool"), lambda name, _: reworded(name, "value"), in_replies)


def reworded(name: str, filler: str) -> str:
    """Synonyms in camelCase for a name that has no capitals inside, else in snake_case; never a single word.

    >>> reworded("get_weather", "tool"), reworded("cityName", "value"), reworded("city", "value")
    ('fetchWeather', 'town_name', 'townValue')
    """
    found = [SYNONYMS.get(word, word) for word in words(name)] or [filler]
    found += [filler] * (len(found) == 1)
    if any(letter.isupper() for letter in name[1:]):
        return "_".join(found)
    return found[0] + "".join(word.capitalize() for word in found[1:])


def _names(
    tools: Iterable[ToolSchema], tool: Callable[[str, int], str], parameter: Callable[[str, int], str], in_replies: bool
) -> Names:
    tools = list(tools)
    # Pydantic's JSON values: the schema of a tool was checked when it was read.
    properties: list[Any] = [one.parameters.get("properties") or {} for one in tools]
    return Names(
        _unique([one.name for one in tools], tool),
        _unique([name for one in properties for name in one], parameter),
        in_replies,
    )


def _unique(old: Sequence[str], make: Callable[[str, int], str]) -> dict[str, str]:
    """A new name for each old one; none is given twice, none is an old one."""
    taken = set(old)
    made: dict[str, str] = {}
    for number, name in enumerate(dict.fromkeys(old), start=1):
        new = wanted = make(name, number)
        suffix = 1
        while new in taken:
            suffix += 1
            new = f"{wanted}_{suffix}"
        taken.add(new)
        made[name] = new
    return made
