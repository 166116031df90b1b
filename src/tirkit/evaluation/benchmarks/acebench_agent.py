"""ACEBench (English), its agent part: calls run on the authors' scenarios, judged by the state they leave.

Wants a checkout of ACEBench's repository in the benchmark's folder (DATA/acebench/ACEBench), for its scenario classes.
Several steps: the user's request is all there is; who does not call is told, in the authors' words, to go on without
asking, until "finish conversation". Several turns: the original has a language model play the user. Here there is none:
the instruction, with all that the user knows, is the request (so that category is not ACEBench's number).

Right (end to end): every saved attribute of the involved classes is as the answer has it. Beside it the process
accuracy: the share of the milestones, one assistant's turn each, that are met in order; 1 where the state is right.
Only names that are functions of the case and values that are JSON reach the scenarios.
"""

import ast
import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from tirkit.evaluation.benchmarks.acebench import ACEBENCH, document
from tirkit.evaluation.benchmarks.acebench_official import from_checkout
from tirkit.evaluation.benchmarks.base import (
    Benchmark,
    BenchmarkError,
    Case,
    CaseResult,
    Loaded,
    Score,
    ScoreFn,
    Totals,
    own_tools,
    records,
)
from tirkit.evaluation.benchmarks.conversation import Ask, Move, converse
from tirkit.evaluation.benchmarks.parts import category_means, value_mean
from tirkit.text.schema import canonical_value
from tirkit.tools.lines import FileIssue
from tirkit.types import Message, Task, ToolCall, ToolErrorKind, ToolResult, ToolSchema, Trajectory

STEP, TURN = "agent_multi_step", "agent_multi_turn"
CHECKOUT = "ACEBench"
# Where a class is below model_inference.KIND.scenariosen, and which of its attributes count (common_inference.py).
CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "BaseApi": ("phone_platform.base_api", ("wifi", "logged_in")),
    "MessageApi": ("phone_platform.message", ("inbox",)),
    "ReminderApi": ("phone_platform.reminder", ("reminder_list",)),
    "FoodPlatform": ("phone_platform.food_services", ("users", "logged_in_users", "orders")),
    "Travel": ("travel", ("users", "reservations")),
}
DONE = "finish conversation"
GO_ON = "Please do not ask me any questions, use the known conditions to solve the problem"  # the authors' words
ROUNDS = 20  # of the assistant's: the authors let 40 messages pass, every other one the assistant's
RULES = (
    "Do what the user wants by calling functions, one at a time; decide on the next call by what the last one gave. "
    f'Nobody answers questions. When all is done, reply "{DONE}".'
)


def read(folder: Path) -> Loaded:
    """Cases of data_en/data_agent_KIND.json, with their answers in possible_answer/."""
    cases: list[Case] = []
    issues: list[FileIssue] = []
    for category in (STEP, TURN):
        path = folder / "data_en" / f"data_{category}.json"
        found: list[Any] = [one.value for one in records(path.parent / "possible_answer" / path.name, issues)]
        answers = {answer["id"]: answer for answer in found}
        for record in records(path, issues):
            value: Any = record.value
            try:
                cases.append(_case(value, category, answers[value["id"]], folder / CHECKOUT))
            except (KeyError, ValueError, SyntaxError) as error:
                issues.append(FileIssue(str(path), record.line, f"{type(error).__name__}: {error}"))
    return Loaded(tuple(cases), issues=tuple(issues))


def _case(record: dict[str, Any], category: str, answer: dict[str, Any], checkout: Path) -> Case:
    tools = own_tools([_document(function) for function in record["function"]], "acebench")
    listed = answer["mile_stone"]
    ways = listed if listed and isinstance(listed[0], list) else [listed]
    milestones: list[Any] = [[[_plain(call) for call in read_milestone(text, tools)] for text in way] for way in ways]
    task = Task(
        id=record["id"],
        prompt=(Message(role="system", content=RULES), Message(role="user", content=record["question"])),
        tools=tuple(tool.name for tool in tools),
        gold_rounds=tuple(read_milestone(text, tools) for text in ways[0]),
        answer=DONE,
        kind=category,
    )
    state = answer["ground_truth"]
    gold: dict[str, JsonValue] = {
        "checkout": str(checkout),
        "initial": record["initial_config"],
        "classes": record["involved_classes"],
        "state": state if isinstance(state, list) else [state],
        "milestones": milestones,
    }
    return Case(task, tools, gold)


def _document(function: dict[str, Any]) -> dict[str, Any]:
    """The document; a required parameter that it does not describe is left out of its list."""
    made = document(function)
    parameters = made["parameters"]
    known = [name for name in parameters.get("required", ()) if name in parameters.get("properties", {})]
    return made | {"parameters": parameters | {"required": known}}


def read_milestone(text: str, tools: Sequence[ToolSchema]) -> tuple[ToolCall, ...]:
    """The calls of one milestone, "[f(x='a'), g()]". A text in quotes may hold quotes: it ends where the next
    parameter, or the call, does. Raises ValueError where it names a function that is not among `tools`.
    """
    names = {tool.name: tuple(tool.parameters["properties"]) for tool in tools}  # type: ignore[arg-type]
    starts = list(re.finditer(r"(?:^\s*\[|\),)\s*([A-Za-z_]\w*)\(", text))
    if not starts:
        raise ValueError(f"no call: {text}")
    calls: list[ToolCall] = []
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        name, body = start[1], text[start.end() : following.start() if following else text.rindex(")")]
        if name not in names:
            raise ValueError(f"no function {name!r}")
        # Alternation in any order: longer names first, so that none hides behind its own beginning.
        known = "|".join(sorted(map(re.escape, names[name]), key=len, reverse=True)) or "(?!)"
        pieces = re.split(rf"(?:^|,)\s*({known})\s*=\s*", body)[1:]
        pairs = zip(pieces[::2], pieces[1::2], strict=True)
        calls.append(ToolCall(name=name, arguments={key: _value(value.strip()) for key, value in pairs}))
    return tuple(calls)


def _value(text: str) -> JsonValue:
    try:
        return json.loads(json.dumps(ast.literal_eval(text)))
    except SyntaxError:
        if text[:1] + text[-1:] not in ("''", '""'):
            raise
        return text[1:-1]


def _plain(call: ToolCall) -> dict[str, JsonValue]:
    return {"name": call.name, "arguments": call.arguments}


@cache
def load_class(checkout: Path, category: str, name: str) -> Callable[[], Any]:
    """One of the authors' scenario classes. BenchmarkError without a checkout, and for a class that is unknown."""
    if name not in CLASSES:
        raise BenchmarkError(f"ACEBench's scenario {name!r} is not known here; known: {', '.join(CLASSES)}")
    kind = category.removeprefix("agent_")
    return from_checkout(checkout, f"model_inference.{kind}.scenariosen.{CLASSES[name][0]}", name)


class Scenario:
    """The scenario classes of one attempt, as a toolbox; calls change their state."""

    def __init__(self, case: Case):
        gold: Any = case.gold
        self._names = case.task.tools
        self._parts: dict[str, Any] = {}
        for name in gold["classes"]:
            part = load_class(Path(gold["checkout"]), case.task.kind, name)()
            for section in (name, "BaseApi"):  # as the authors do: the second decides about the phone
                part._load_scenario(copy.deepcopy(gold["initial"].get(section, {})), long_context=False)
            self._parts[name] = part

    def run(self, call: ToolCall) -> ToolResult:
        """What the scenario says to the call. Every class that has the function runs it: the phone is part of all."""
        if call.name not in self._names:
            problem = f"no function {call.name!r}"
            return ToolResult(name=call.name, content=problem, error=ToolErrorKind.UNKNOWN_TOOL)
        having = [part for part in self._parts.values() if hasattr(part, call.name)]
        result: Any = f"Error during execution: {call.name!r} does nothing here"
        try:
            for part in having:
                result = getattr(part, call.name)(**copy.deepcopy(call.arguments))
        except Exception as error:  # whatever the authors' code raises on odd values
            return ToolResult(name=call.name, content=f"Error during execution: {error}", error=ToolErrorKind.RAISED)
        return ToolResult(name=call.name, content=json.dumps(result) if isinstance(result, dict) else str(result))

    def state(self) -> dict[str, dict[str, Any]]:
        """The attributes that count, by class, as they would stand in a file."""
        found = {
            name: {key: getattr(part, key) for key in CLASSES[name][1] if hasattr(part, key)}
            for name, part in self._parts.items()
        }
        return json.loads(json.dumps(found))


def play(case: Case, ask: Ask) -> Trajectory:
    """The attempt; a reply that does not end it is answered with GO_ON."""
    first = case.task.prompt[-1]
    again = case.task.model_copy(update={"gold_rounds": ()})
    moves = [Move(first, case.tools, case.task)]
    moves += [Move(Message(role="user", content=GO_ON), case.tools, again)] * (ROUNDS - 1)
    return converse(case.task.id, moves, Scenario(case), ask, lambda made: DONE in (made.answer or ""))


def final_state(calls: Sequence[ToolCall], case: Case) -> dict[str, dict[str, Any]]:
    """What the calls leave of the case's scenario."""
    scenario = Scenario(case)
    for call in calls:
        scenario.run(call)
    return scenario.state()


Check = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]


def attributes_right(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether all attributes of a class are as wanted; of one that is an object, all entries that are wanted."""
    return all(
        name in wanted and (_holds(value, wanted[name]) if isinstance(wanted[name], dict) else value == wanted[name])
        for name, value in made.items()
    )


def _holds(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(key in made and made[key] == value for key, value in wanted.items())


def calls_problem(calls: Sequence[ToolCall], case: Case, check: Check = attributes_right) -> str:
    """Why the calls leave the wrong state, "" where they do not."""
    if not calls:
        return "no call"
    gold: Any = case.gold
    made, wanted = final_state(calls, case), {name: state for one in gold["state"] for name, state in one.items()}
    if made.keys() != wanted.keys():
        return "other classes"
    return "" if all(check(made[name], wanted[name]) for name in made) else "other state"


def official_problem(calls: Sequence[ToolCall], case: Case) -> str:
    """The same, every class judged by the authors' `agent_checker`. BenchmarkError without a checkout."""
    gold: Any = case.gold
    check = _agent_checker(Path(gold["checkout"]))
    return calls_problem(calls, case, lambda made, wanted: check({"x": made}, {"x": wanted})["valid"])


@cache
def _agent_checker(checkout: Path) -> Callable[..., Any]:
    return from_checkout(checkout, "model_eval.checker", "agent_checker")


def process_accuracy(rounds: Sequence[Sequence[ToolCall]], case: Case) -> float:
    """The share of milestones met in order, of the way that fits best; arguments may stand in any order."""
    gold: Any = case.gold
    made = [canonical_value([_plain(call) for call in calls]) for calls in rounds]
    return max(_met(made, [canonical_value(calls) for calls in way]) for way in gold["milestones"])


def _met(made: Sequence[str], milestones: Sequence[str]) -> float:
    """As the authors count: a milestone that is never met uses up all that is left."""
    at = found = 0
    for milestone in milestones:
        place = next((i for i in range(at, len(made)) if made[i] == milestone), None)
        at = len(made) if place is None else place + 1
        found += place is not None
    return found / len(milestones) if milestones else 1.0


def _scorer(problem: Callable[[Sequence[ToolCall], Case], str]) -> ScoreFn:
    def score(trajectory: Trajectory, case: Case) -> Score:
        why = problem(trajectory.calls, case)
        rounds = [turn.calls for turn in trajectory.turns if turn.calls]
        return Score(right=float(not why), why=why, values={"process": process_accuracy(rounds, case) if why else 1.0})

    return score


def totals(results: Sequence[CaseResult]) -> Totals:
    """End-to-end accuracy of each category and of all, process accuracy of all."""
    return {**category_means(results), "process": value_mean(results, "process")}


def accepted_values(case: Case) -> list[dict[str, list[Any]]]:
    """Call by call, the accepted values of every parameter."""
    return [{name: [value] for name, value in call.arguments.items()} for call in case.task.gold_calls or ()]


ACEBENCH_AGENT = Benchmark(
    name="acebench-agent",
    folder="acebench",
    source=ACEBENCH.source,
    categories=(STEP, TURN),
    prompting="the request, the functions as documents, calls run on the authors' scenarios; up to 20 rounds",
    read=read,
    score=_scorer(calls_problem),
    official=lambda: _scorer(official_problem),
    official_name="ACEBench",
    totals=totals,
    play=play,
)
