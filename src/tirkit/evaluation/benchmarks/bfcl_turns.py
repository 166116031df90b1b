"""BFCL v4, multi-turn: the user asks several things in a row, calls run on the authors' environments.

Wants the package `bfcl-eval` (its environments and its checker; MathAPI also wants `mpmath`). Right: after every user
turn the environments are in the state that the gold calls leave, and all results of the gold calls were seen. Asked
with all functions of the case's environments as documents; in `miss_func` some come later, announced in the authors'
words. Only names that are functions of an environment and values that are JSON reach the environments, never text of
the model's: they run what they are given.
"""

import ast
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tirkit.evaluation.benchmarks.base import (
    Benchmark,
    Case,
    Loaded,
    Score,
    ScoreFn,
    own_tools,
    records,
)
from tirkit.evaluation.benchmarks.bfcl import BFCL, MULTI_TURN
from tirkit.evaluation.benchmarks.bfcl_official import NAME, forget, import_turns
from tirkit.evaluation.benchmarks.conversation import Ask, Move, converse, user_turns
from tirkit.evaluation.benchmarks.parts import category_means, ground_truths
from tirkit.tools.lines import FileIssue
from tirkit.types import Message, StopReason, Task, ToolCall, ToolErrorKind, ToolResult, ToolSchema, Trajectory

DOCUMENTS = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
MORE_TOOLS = "I have updated some more functions you can choose from. What about now?"  # the authors' words
_numbers = itertools.count()


def read(folder: Path) -> Loaded:
    """Cases of BFCL_v4_multi_turn_KIND.json, functions of multi_turn_func_doc/."""
    issues: list[FileIssue] = []
    functions = {
        name: own_tools([r.value for r in records(folder / "multi_turn_func_doc" / f"{stem}.json", issues)], "bfcl")
        for name, stem in DOCUMENTS.items()
    }
    cases: list[Case] = []
    for category in MULTI_TURN:
        name = f"BFCL_v4_{category}.json"
        answers = ground_truths(folder / "possible_answer" / name, issues)
        for record in records(folder / name, issues):
            try:
                cases.append(_case(record.value, category, answers, functions))  # type: ignore[arg-type]
            except (KeyError, ValueError, SyntaxError) as error:
                issues.append(FileIssue(str(folder / name), record.line, f"{type(error).__name__}: {error}"))
    return Loaded(tuple(cases), issues=tuple(issues))


def _case(
    record: dict[str, Any], category: str, answers: dict[str, Any], functions: dict[str, tuple[ToolSchema, ...]]
) -> Case:
    tools = tuple(
        tool
        for name in record["involved_classes"]
        for tool in functions[name]
        if tool.name not in record.get("excluded_function", ())
    )
    tools = tuple({tool.name: tool for tool in tools}.values())
    gold = answers[record["id"]]
    rounds = tuple(tuple(read_call(text, tools) for text in turn) for turn in gold)
    first = record["question"][0][0]
    task = Task(
        id=record["id"],
        prompt=(Message(role="user", content=first["content"]),),
        tools=tuple(tool.name for tool in tools),
        gold_rounds=tuple(calls for calls in rounds if calls),
        kind=category,
    )
    kept = ("id", "initial_config", "involved_classes", "question", "missed_function")
    return Case(task, tools, {"entry": {key: record[key] for key in kept if key in record}, "ground_truth": gold})


def read_call(text: str, tools: Sequence[ToolSchema]) -> ToolCall:
    """A call as the gold writes it, `f(x=1, y='a')`; values without a name go to the parameters in their order.

    Raises ValueError or SyntaxError where it is none.
    """
    node = ast.parse(text, mode="eval").body
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"not a call: {text}")
    name = node.func.id
    tool = next((tool for tool in tools if tool.name == name), None)
    names = list(tool.parameters["properties"]) if tool else []  # type: ignore[arg-type]
    arguments = dict(zip(names, map(ast.literal_eval, node.args), strict=False))
    arguments |= {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
    return ToolCall(name=name, arguments=json.loads(json.dumps(arguments)))


def write_call(call: ToolCall, names: Sequence[str]) -> str:
    """The call as source code for the environments. ValueError for a name that is no function of theirs."""
    if call.name not in names or not all(name.isidentifier() for name in call.arguments):
        raise ValueError(f"no function {call.name!r}")
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"


class Environments:
    """The environments of one attempt, as a toolbox; calls change their state."""

    def __init__(self, case: Case):
        self._case = case
        self._run, _ = import_turns()
        self.name = f"tirkit{next(_numbers)}"

    def run(self, call: ToolCall) -> ToolResult:
        """What the environment says to the call."""
        gold: Any = self._case.gold
        entry = gold["entry"]
        try:
            text = write_call(call, self._case.task.tools)
        except ValueError as error:
            return ToolResult(name=call.name, content=str(error), error=ToolErrorKind.UNKNOWN_TOOL)
        (result,), _ = self._run(
            func_call_list=[text],
            initial_config=entry["initial_config"],
            involved_classes=entry["involved_classes"],
            model_name=self.name,
            test_entry_id=entry["id"],
            long_context="long_context" in self._case.task.kind,
        )
        return ToolResult(name=call.name, content=result)


def play(case: Case, ask: Ask) -> Trajectory:
    """The conversation over fresh environments."""
    environments = Environments(case)
    try:
        return converse(case.task.id, moves(case), environments, ask)
    finally:
        forget(environments.name)


def moves(case: Case) -> list[Move]:
    """The user's turns; functions that are missed at first come with the turn that says so."""
    gold: Any = case.gold
    entry = gold["entry"]
    late: dict[str, list[str]] = entry.get("missed_function", {})
    hidden = {name for names in late.values() for name in names}
    made: list[Move] = []
    for place, (said, calls) in enumerate(zip(entry["question"], gold["ground_truth"], strict=True)):
        hidden -= set(late.get(str(place), ()))
        tools = tuple(tool for tool in case.tools if tool.name not in hidden)
        rounds = (tuple(read_call(text, case.tools) for text in calls),) if calls else ()
        text = said[0]["content"] if said else MORE_TOOLS
        task = case.task.model_copy(update={"gold_rounds": rounds})
        made.append(Move(Message(role="user", content=text), tools, task))
    return made


def official() -> ScoreFn:
    """The authors' checker, the only one there is for these."""
    _, check = import_turns()

    def score(trajectory: Trajectory, case: Case) -> Score:
        gold: Any = case.gold
        turns = user_turns(trajectory)
        if len(turns) != len(gold["ground_truth"]) or trajectory.stop not in (
            StopReason.ANSWERED,
            StopReason.MALFORMED,
        ):
            return Score(right=0.0, why="stopped by a limit")
        made = [
            [steps for turn in one if (steps := _written(turn.calls, case.task.tools))] for one in turns
        ]  # user turn → the assistant's turns that call → calls
        name = f"tirkit{next(_numbers)}"
        found = check(made, gold["ground_truth"], gold["entry"], case.task.kind, name)
        forget(name)
        return Score(right=float(found["valid"]), why="" if found["valid"] else found["error_type"].split(":")[-1])

    return score


def _written(calls: Sequence[ToolCall], names: Sequence[str]) -> list[str]:
    known = (call for call in calls if call.name in names)
    return [write_call(call, names) for call in known if all(name.isidentifier() for name in call.arguments)]


def score(trajectory: Trajectory, case: Case) -> Score:
    """As `official`: BenchmarkError where the package is not installed."""
    return official()(trajectory, case)


BFCL_TURNS = Benchmark(
    name="bfcl-multi-turn",
    folder="bfcl",
    source=BFCL.source,
    categories=MULTI_TURN,
    prompting="the user's turns one after the other, the environments' functions as documents; up to 20 steps a turn",
    read=read,
    score=score,
    official=official,
    official_name=NAME,
    totals=category_means,
    play=play,
)
