"""The embedded world: a catalogue of generated tools that really run, and tasks whose answers they give.

A tool answers about one aspect of one kind of thing ("Gives the price of a boat."). Names are irregular and carry no
meaning, questions use other words than the documents, results cannot be guessed. A quarter of the tools is held out:
no training task ever uses them, so a model reaches them only through their documents.
"""

import json
import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import JsonValue

from tirkit.embedded import phrases, templates, values
from tirkit.embedded.phrases import ParameterKind
from tirkit.embedded.values import Split, stable_hash
from tirkit.types import Message, Task, ToolCall, ToolSchema

TaskKind = Literal["single", "two_step", "arithmetic_easy", "arithmetic_plain", "arithmetic_hard", "no_tool"]
TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
ToolChoice = Literal["seen", "unseen", "all"]


@dataclass(frozen=True)
class WorldTool:
    """One tool: its schema and what it is about. `extras` maps the keys beside the subject's to their kinds."""

    schema: ToolSchema
    aspect: str
    thing: str
    subject: str
    extras: dict[str, ParameterKind]

    @property
    def gives_name(self) -> bool:
        """Whether the result is a name, which another tool can take, rather than a number."""
        return self.aspect in phrases.NAME_ASPECTS

    def run(self, seed: int, arguments: dict[str, JsonValue]) -> str:
        """The result of a call: decided by the seed and all arguments; a name stays in the split of the subject."""
        key = stable_hash(seed, self.schema.name, json.dumps(arguments, sort_keys=True))
        rng = random.Random(key)
        if self.gives_name:
            return values.draw_name(rng, values.split_of(arguments[self.subject]))
        return str(rng.randint(10, 999))


@dataclass(frozen=True)
class Request:
    """One tool with the words, arguments and result of one question about it; `subject` is the name asked about."""

    tool: WorldTool
    words: dict[str, str]
    arguments: dict[str, JsonValue]
    result: str

    @property
    def thought(self) -> str:
        """What is asked for in plain words, then the tool."""
        return f"{self.tool.aspect} of {self.tool.thing} : {self.tool.schema.name}"

    @property
    def call(self) -> ToolCall:
        """The gold call."""
        return ToolCall(name=self.tool.schema.name, arguments=self.arguments)


class World:
    """A catalogue of `num_tools` generated tools, their functions, and tasks about them.

    The same `num_tools` and `seed` give the same world in every process.

    >>> world = World(num_tools=8, seed=0)
    >>> task = world.tasks("train", 1, seed=0, kinds=("single",))[0]
    >>> call = task.gold_calls[0]
    >>> world.functions[call.name](**call.arguments) == task.answer
    True
    """

    def __init__(self, num_tools: int = 64, seed: int = 0):
        pairs = [(aspect, thing) for aspect in phrases.ASPECTS for thing in phrases.THINGS]
        if not 1 <= num_tools <= len(pairs):
            raise ValueError(f"num_tools must be between 1 and {len(pairs)}, got {num_tools}")
        rng = random.Random(stable_hash("world", seed))
        self.seed = seed
        tools: dict[str, WorldTool] = {}
        for aspect, thing in rng.sample(pairs, num_tools):
            tool = draw_tool(rng, aspect, thing, taken=tools)
            tools[tool.schema.name] = tool
        self.tools = dict(sorted(tools.items()))
        self.held_out = frozenset(self._hold_out(rng))

    def _hold_out(self, rng: random.Random) -> list[str]:
        """A quarter of the tools that give names and a quarter of the others, so that two steps stay possible."""
        by_result = [[name for name, tool in self.tools.items() if tool.gives_name is flag] for flag in (True, False)]
        return [name for names in by_result for name in rng.sample(names, len(names) // 4)]

    @property
    def catalogue(self) -> tuple[ToolSchema, ...]:
        """All tool schemas, sorted by name."""
        return tuple(tool.schema for tool in self.tools.values())

    @property
    def functions(self) -> dict[str, Callable[..., str]]:
        """Name → function that takes the call's arguments as keywords."""
        return {name: WorldFunction(tool, self.seed) for name, tool in self.tools.items()}

    def tasks(
        self,
        split: Split,
        n: int,
        seed: int = 0,
        kinds: Sequence[TaskKind] = ("single", "two_step", "arithmetic_easy", "arithmetic_hard", "no_tool"),
        tools: ToolChoice = "seen",
    ) -> list[Task]:
        """`n` different tasks of one split, the kinds in turn, about seen tools, held-out ones ("unseen") or all.

        Raises ValueError for training tasks about held-out tools and for tools or kinds this world does not have.
        """
        if split == "train" and tools != "seen":
            raise ValueError("held-out tools must not appear in training tasks: use tools='seen' with split='train'")
        unseen = tools == "unseen"
        chosen = [t for name, t in self.tools.items() if tools == "all" or (name in self.held_out) == unseen]
        rng = random.Random(stable_hash("tasks", self.seed, split, seed, tools))
        tasks: dict[str, Task] = {}
        tries = 0
        while len(tasks) < n:
            tries += 1
            if tries > 50 * n + 50:
                raise ValueError(f"only {len(tasks)} different {split} tasks of kinds {tuple(kinds)} found, {n} wanted")
            kind = kinds[len(tasks) % len(kinds)]
            task = self._draw_task(rng, kind, split, chosen)
            tasks.setdefault(task.prompt[0].content, task)
        return [task.model_copy(update={"id": f"{split}-{tools}-{seed}-{i}"}) for i, task in enumerate(tasks.values())]

    def _draw_task(self, rng: random.Random, kind: TaskKind, split: Split, tools: list[WorldTool]) -> Task:
        if kind == "single":
            return self._single(rng, split, tools)
        if kind == "two_step":
            return self._two_step(rng, split, tools)
        return draw_no_tool(rng, split) if kind == "no_tool" else draw_addition(rng, kind, split)

    def _request(self, rng: random.Random, split: Split, tool: WorldTool, name: str) -> Request:
        drawn = {key: kind.draw(rng, split) for key, kind in tool.extras.items()}
        rest = " and ".join(kind.say(rng, drawn[key]) for key, kind in tool.extras.items())
        words = {
            "aspect": rng.choice(phrases.ASPECTS[tool.aspect]),
            "thing": rng.choice(phrases.THINGS[tool.thing]),
            "rest": rest and f" {rest}",
        }
        every = {tool.subject: name, **drawn}
        arguments = {key: every[key] for key in tool.schema.parameters["properties"]}  # type: ignore[index, union-attr]
        return Request(tool, words, arguments, tool.run(self.seed, arguments))

    def _single(self, rng: random.Random, split: Split, tools: list[WorldTool]) -> Task:
        if not tools:
            raise ValueError(f"this world of {len(self.tools)} tools has none to ask about here; make num_tools larger")
        name = values.draw_name(rng, split)
        request = self._request(rng, split, rng.choice(tools), name)
        text = rng.choice(templates.SINGLE[split]).format(name=name, **request.words)
        return make_task(text, "single", split, request.result, [request], f"the result is {request.result}")

    def _two_step(self, rng: random.Random, split: Split, tools: list[WorldTool]) -> Task:
        givers = [tool for tool in tools if tool.gives_name]
        if not givers:
            raise ValueError(f"this world of {len(self.tools)} tools has none that gives a name; make num_tools larger")
        name = values.draw_name(rng, split)
        first = self._request(rng, split, rng.choice(givers), name)
        second = self._request(rng, split, rng.choice(tools), first.result)
        text = rng.choice(templates.TWO_STEP[split]).format(
            name=name, **first.words, **{f"{key}2": value for key, value in second.words.items()}
        )
        return make_task(text, "two_step", split, second.result, [first, second], f"the result is {second.result}")


@dataclass(frozen=True)
class WorldFunction:
    """A tool as a callable; a class and not a closure, so that it can be sent to another process."""

    tool: WorldTool
    seed: int

    def __call__(self, **arguments: JsonValue) -> str:
        """The result of a call with these arguments."""
        return self.tool.run(self.seed, arguments)


def make_task(text: str, kind: TaskKind, split: Split, answer: str, requests: list[Request], last: str) -> Task:
    """A task with one round of one call per request; `last` is the thought before the reply."""
    return Task(
        id="",
        prompt=(Message(role="user", content=text),),
        gold_rounds=tuple((request.call,) for request in requests),
        answer=answer,
        split=split,
        kind=kind,
        thoughts=(*(request.thought for request in requests), last),
    )


def draw_addition(rng: random.Random, kind: TaskKind, split: Split) -> Task:
    """An addition without tools: two digits plus one without carry, three plus three without carry ("plain": written
    like a hard one, and as long to think about, but each digit follows from two), or three plus three.
    """

    def draw() -> tuple[int, int]:
        if kind == "arithmetic_hard":
            return rng.randint(100, 999), rng.randint(100, 999)
        if kind == "arithmetic_plain":
            tops = [rng.randint(low, 9) for low in (2, 0, 0)]
            parts = [rng.randint(low, top - low) for low, top in zip((1, 0, 0), tops, strict=True)]
            a = int("".join(map(str, parts)))
            return a, int("".join(map(str, tops))) - a
        a = rng.randint(10, 98)
        return a, rng.randint(0, 9 - a % 10)

    a, b = values.draw_in_split(draw, split)
    text = rng.choice(templates.ADD[split]).format(a=a, b=b)
    return make_task(text, kind, split, str(a + b), [], values.add_by_columns(a, b))


def draw_no_tool(rng: random.Random, split: Split) -> Task:
    """A remark that wants a plain reply."""
    remark, reply = rng.choice(templates.REMARKS[split])
    name = values.draw_name(rng, split)
    return make_task(remark.format(name=name), "no_tool", split, reply.format(name=name), [], "no tool is needed")


def draw_tool_name(rng: random.Random, taken: Container[str]) -> str:
    """A new tool name without meaning, in one of several styles: kuvostel, getDrano, bim_toluk, Zel.parou, mosk7."""
    while True:
        first, second = values.draw_word(rng, 1), values.draw_word(rng, rng.choice((1, 2)))
        verb = rng.choice(("get", "run", "do", "api", "my", "use", "x"))
        style = rng.randrange(7)
        name = (
            first + second,
            f"{verb}{second.capitalize()}",
            f"{first}_{second}",
            f"{first.capitalize()}.{second}",
            f"{first}{rng.randint(2, 9)}",
            f"{first.capitalize()}{second.capitalize()}",
            f"{second}-{verb}",
        )[style]
        if name not in taken:
            return name


def draw_parameters(
    rng: random.Random, kinds: Sequence[ParameterKind] = phrases.KINDS
) -> tuple[str, dict[str, ParameterKind], dict[str, JsonValue]]:
    """Parameters of a new tool: the subject's key, up to two others by key, and the JSON Schema of all of them."""
    subject = rng.choice(phrases.SUBJECT_KEYS)
    extras = {rng.choice(kind.keys): kind for kind in rng.sample(kinds, rng.choice((0, 1, 1, 2, 2)))}
    properties: dict[str, JsonValue] = {subject: {"type": "string"}}
    properties |= {key: kind.schema() for key, kind in extras.items()}
    keys = rng.sample(list(properties), len(properties))
    schema: dict[str, JsonValue] = {
        "type": "object",
        "properties": {key: properties[key] for key in keys},
        "required": list[JsonValue](keys),
    }
    return subject, extras, schema


def draw_tool(rng: random.Random, aspect: str, thing: str, taken: Container[str] = ()) -> WorldTool:
    """A tool about an aspect of a thing, with a new name and one to three parameters."""
    subject, extras, parameters = draw_parameters(rng)
    text = rng.choice(phrases.DESCRIPTIONS).format(aspect=aspect, thing=thing)
    schema = ToolSchema(
        name=draw_tool_name(rng, taken), description=text[0].upper() + text[1:], parameters=parameters, source="world"
    )
    return WorldTool(schema, aspect, thing, subject, extras)
