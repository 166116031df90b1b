"""Repairs that need no model: close tags, fix arguments, drop calls that are repeated, that fail or that nobody uses.

A rewriting is only a proposal: the loop executes it anew, with real results, and it is scored like any other.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from pydantic import JsonValue

from tirkit.text.control import ANSWER_CLOSE, ANSWER_OPEN, CALL_CLOSE, CALL_OPEN, SELECT_OPEN, THINK_CLOSE, THINK_OPEN
from tirkit.text.dialects import Dialect
from tirkit.text.mode import split_mode, with_mode
from tirkit.text.schema import canonical, validate_arguments
from tirkit.types import Task, ToolCall, ToolResult, ToolSchema, Trajectory, Turn

# A block that was never closed ends where another begins.
_THINK = re.compile(rf"{THINK_OPEN}(.*?)(?:{THINK_CLOSE}|(?={SELECT_OPEN}|{CALL_OPEN}|{ANSWER_OPEN})|\Z)", re.DOTALL)
_CALLS = re.compile(rf"{CALL_OPEN}(.*?)(?:{CALL_CLOSE}|(?={ANSWER_OPEN})|\Z)", re.DOTALL)
_ANSWER = re.compile(rf"{ANSWER_OPEN}(.*?)(?:{ANSWER_CLOSE}|\Z)", re.DOTALL)
_ANY_TAG = re.compile(r"</?\w+>")
_PIECE = re.compile(r"\w[\w.:-]*\w|\w")


@dataclass(frozen=True)
class Rewriting:
    """The turns to play, and what was changed in words."""

    texts: tuple[str, ...]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Replay:
    """The script that plays given turns: by task id, in order, "" when there are no more."""

    texts: Mapping[str, Sequence[str]]

    def __call__(self, task: Task, turns: Sequence[Turn]) -> str:
        """The next turn."""
        texts = self.texts[task.id]
        return texts[len(turns)] if len(turns) < len(texts) else ""


@dataclass(frozen=True)
class _Made:
    """A call, and what came of it when it was made; None where it never ran as it now stands."""

    call: ToolCall
    result: ToolResult | None


@dataclass
class _Attempt:
    """An attempt taken apart: rounds of (thought, calls), then the reply."""

    rounds: list[tuple[str, list[_Made]]] = field(default_factory=list)
    answer: str | None = None
    last_thought: str = ""


def rewrite(trajectory: Trajectory, task: Task, dialect: Dialect, tools: Mapping[str, ToolSchema]) -> Rewriting | None:
    """The attempt as the rules would have it; None where they have nothing to change, or can't write it."""
    changes: list[str] = []
    attempt = _take_apart(trajectory, dialect, changes)
    attempt.rounds = [(think, [_fixed(made, tools, changes) for made in calls]) for think, calls in attempt.rounds]
    attempt.rounds = _without_repeated(attempt.rounds, changes)
    question = " ".join(message.content for message in task.prompt)
    attempt.rounds = _without_unused(attempt, question, changes)
    if not changes or not (attempt.rounds or attempt.answer):
        return None
    try:
        texts = _put_together(attempt, dialect, trajectory)
    except (ValueError, KeyError):  # a thought spells a control string, or a tool is not in the index
        return None
    return None if texts == tuple(turn.text for turn in trajectory.turns) else Rewriting(texts, tuple(changes))


def _take_apart(trajectory: Trajectory, dialect: Dialect, changes: list[str]) -> _Attempt:
    attempt, thought = _Attempt(), ""
    for number, turn in enumerate(trajectory.turns, 1):
        text = split_mode(turn.text)[1]
        think = "\n".join(part.strip() for part in _THINK.findall(text))
        rest = _THINK.sub("", text)
        calls, answer = turn.calls, turn.answer
        if turn.problems:
            calls = tuple(call for body in _CALLS.findall(rest) for call in _read_calls(body, dialect))
            answer = None if calls else _read_answer(rest)
            if calls or answer:
                changes.append(f"wrote turn {number} in the right form")
        if calls:
            results = turn.results if len(turn.results) == len(calls) else (None,) * len(calls)
            made = [_Made(call, result) for call, result in zip(calls, results, strict=True)]
            attempt.rounds.append(("\n".join(filter(None, (thought, think))), made))
            thought = ""
        elif answer:
            attempt.answer, attempt.last_thought = answer, "\n".join(filter(None, (thought, think)))
        else:
            thought = think  # of a selection, which is written anew before its calls
    return attempt


def _read_calls(body: str, dialect: Dialect) -> tuple[ToolCall, ...]:
    """Those lines of a call block that are calls."""
    lines = [f"{CALL_OPEN}\n{line}\n{CALL_CLOSE}" for line in body.strip().split("\n") if line.strip()]
    return tuple(call for line in lines for call in dialect.parse(line).calls)


def _read_answer(rest: str) -> str | None:
    """The last answer block, or a turn that is nothing but words."""
    if answers := _ANSWER.findall(rest):
        return answers[-1].strip() or None
    return None if _ANY_TAG.search(rest) else rest.strip() or None


def _fixed(made: _Made, tools: Mapping[str, ToolSchema], changes: list[str]) -> _Made:
    """The call with its name and arguments as its schema wants them, where that can be done."""
    call = made.call
    if call.name not in tools:
        similar = [name for name in tools if _plain(name) == _plain(call.name)]
        if len(similar) != 1:
            return made
        call = call.model_copy(update={"name": similar[0]})
    arguments = call.arguments
    if validate_arguments(tools[call.name], arguments):
        arguments = fix_arguments(tools[call.name], arguments)
        if validate_arguments(tools[call.name], arguments):
            arguments = call.arguments
    fixed = call.model_copy(update={"arguments": arguments})
    if fixed == made.call:
        return made
    changes.append(f"fixed a call: {canonical(made.call)} → {canonical(fixed)}")
    return _Made(fixed, None)


def fix_arguments(tool: ToolSchema, arguments: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Arguments nearer to the schema: names and enum values spelled as it does, plain types converted, others dropped.

    >>> tool = ToolSchema(name="f", parameters={"type": "object", "properties": {"num": {"type": "integer"}}})
    >>> fix_arguments(tool, {"Num": "5", "why": "?"})
    {'num': 5}
    """
    properties = cast(dict[str, dict[str, JsonValue]], tool.parameters.get("properties", {}))
    names = {_plain(name): name for name in properties}
    fixed: dict[str, JsonValue] = {}
    for given, value in arguments.items():
        name = given if given in properties else names.get(_plain(given))
        if name is not None and name not in fixed:
            fixed[name] = _convert(value, properties[name])
    return fixed


def _convert(value: JsonValue, schema: Mapping[str, JsonValue]) -> JsonValue:
    options, kind = schema.get("enum"), schema.get("type")
    if isinstance(options, list) and value not in options:
        similar = [option for option in options if _plain(str(option)) == _plain(str(value))]
        return similar[0] if len(similar) == 1 else value
    try:
        if kind == "integer" and isinstance(value, str | float) and not isinstance(value, bool):
            return int(value) if float(value).is_integer() else value
        if kind == "number" and isinstance(value, str):
            return float(value)
    except (ValueError, OverflowError):
        return value
    if kind == "string" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if kind == "boolean" and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return [value] if kind == "array" and not isinstance(value, list) else value


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()


def _without_repeated(rounds: list[tuple[str, list[_Made]]], changes: list[str]) -> list[tuple[str, list[_Made]]]:
    """Every call once: the first time, with the result of whichever was made as it stands."""
    results = {canonical(made.call): made.result for _, calls in rounds for made in calls if made.result is not None}
    seen: set[str] = set()
    left: list[tuple[str, list[_Made]]] = []
    for think, calls in rounds:
        kept: list[_Made] = []
        for made in calls:
            key = canonical(made.call)
            if key in seen:
                changes.append(f"dropped a repeated call: {key}")
            else:
                seen.add(key)
                kept.append(replace(made, result=results.get(key)))
        if kept:
            left.append((think, kept))
    return left


def _without_unused(attempt: _Attempt, question: str, changes: list[str]) -> list[tuple[str, list[_Made]]]:
    """Only calls whose result is used later: from the end, so that what only dropped calls used goes too."""
    later = f"{attempt.last_thought} {attempt.answer or ''}"
    left: list[tuple[str, list[_Made]]] = []
    if attempt.answer is None:
        return attempt.rounds  # a task about its calls, or an attempt that never got to use them
    for think, calls in reversed(attempt.rounds):
        kept = [made for made in calls if _is_used(made.result, question, later)]
        changes += [f"dropped a call nobody uses: {canonical(made.call)}" for made in calls if made not in kept]
        if kept:
            left.insert(0, (think, kept))
            later = " ".join([think, *(canonical(made.call) for made in kept), later])
    return left


def _is_used(result: ToolResult | None, question: str, later: str) -> bool:
    """Whether something in the result that the question does not say occurs later; true where that can't be told."""
    if result is None:
        return True
    if result.error is not None:
        return False
    news = set(_PIECE.findall(result.content.lower())) - set(_PIECE.findall(question.lower()))
    return not news or bool(news & set(_PIECE.findall(later.lower())))


def _put_together(attempt: _Attempt, dialect: Dialect, trajectory: Trajectory) -> tuple[str, ...]:
    """The turns as the dialect writes them, with the mode's tag before the first."""
    texts: list[str] = []
    for think, made in attempt.rounds:
        calls = [one.call for one in made]
        if dialect.selects:
            texts.append(dialect.print_selection(list(dict.fromkeys(call.name for call in calls)), think))
            think = ""
        texts.append(dialect.print_calls(calls, think))
    if attempt.answer:
        texts.append(dialect.print_answer(attempt.answer, attempt.last_thought))
    if trajectory.mode is not None:
        texts[0] = with_mode(texts[0], trajectory.mode)
    return tuple(texts)
