"""The Hermes dialect: what an assistant turn looks like, printed and parsed.

A turn is an optional mode tag, an optional thinking block and then exactly one of three blocks:

    <tool_token>        which tools (only with an index in two steps), one surface a line; the documents come back
    <<get_weather>>
    </tool_token>

    <tool_call>         one JSON object a line; without an index the tool's plain name
    {"name": "<<get_weather>>", "arguments": {"city": "Oslo"}}
    </tool_call>

    <answer>21 C</answer>

JSON we print never spells a control string or `<<`: a `<` or `[` that begins one is written `\\u003c` or `\\u005b`.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from pydantic import JsonValue

from tirkit.text.control import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    CALL_CLOSE,
    CALL_OPEN,
    CONTROL_STRINGS,
    SELECT_CLOSE,
    SELECT_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
)
from tirkit.text.index import ToolIndex
from tirkit.text.mode import split_mode
from tirkit.types import Mode, ToolCall, ToolSchema

BLOCKS = {
    THINK_OPEN: THINK_CLOSE,
    SELECT_OPEN: SELECT_CLOSE,
    CALL_OPEN: CALL_CLOSE,
    ANSWER_OPEN: ANSWER_CLOSE,
}
CALL_PROBLEM = "call "  # every reason why a call block can't be read begins so: "call 2: bad JSON …"
UNKNOWN_TOOL = re.compile(r"(call \d+: )?unknown tool ")  # how problems with unknown names begin
DOCUMENT_FIELDS = ("name", "description", "parameters")

_OPENERS = re.compile("|".join(map(re.escape, BLOCKS)))
_CONTROL = re.compile("|".join(map(re.escape, CONTROL_STRINGS)))
# The first character of each spelling; what follows is only looked at, so overlapping spellings are all found.
_SPELLING = re.compile("|".join(f"{re.escape(s[0])}(?={re.escape(s[1:])})" for s in (*CONTROL_STRINGS, "<<")))


@dataclass(frozen=True)
class ParsedTurn:
    """What was read in a turn. `problems` says in words what is wrong with it; empty means well-formed."""

    think: str | None = None
    selected: tuple[str, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    answer: str | None = None
    mode: Mode | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dialect:
    """How assistant turns are written.

    `index` says how tools are written; None: by plain name, with their documents in the prompt. `two_step`: with an
    index, tools are selected first and called after their documents came back (TInR, "inference"). `think` says
    whether the first turn of a round, and a reply, must, may or must not hold a thinking block. `modes`: every attempt
    begins with a mode tag, which the loop checks, since a turn alone does not know whether it is the first.

    >>> Dialect().parse('<tool_call>\\n{"name": "add", "arguments": {"a": 1}}\\n</tool_call>').calls[0].arguments
    {'a': 1}
    >>> Dialect().parse("5").problems
    ("text outside of any block: '5'", 'no selection, call or answer')
    """

    index: ToolIndex | None = None
    two_step: bool = True
    think: Literal["optional", "required", "never"] = "optional"
    modes: bool = False

    @property
    def selects(self) -> bool:
        """Whether a round begins with a selection."""
        return self.index is not None and self.two_step

    def print_selection(self, names: Sequence[str], think: str = "") -> str:
        """The turn that selects the tools `names`. KeyError where one is not in the index."""
        if self.index is None or not self.selects:
            raise ValueError("this dialect selects no tools: it needs an index and two_step=True")
        lines = "\n".join(self.index.surface(name) for name in names)
        return f"{_thought(think)}{SELECT_OPEN}\n{lines}\n{SELECT_CLOSE}"

    def print_calls(self, calls: Sequence[ToolCall], think: str = "") -> str:
        """The turn that makes `calls`. KeyError where a tool is not in the index."""
        lines = "\n".join(self._print_call(call) for call in calls)
        return f"{_thought(think)}{CALL_OPEN}\n{lines}\n{CALL_CLOSE}"

    def print_answer(self, text: str, think: str = "") -> str:
        """The turn that replies `text`. ValueError where `text` spells a control string: it could not be read back."""
        return f"{_thought(think)}{ANSWER_OPEN}{_free(text, 'answer')}{ANSWER_CLOSE}"

    def _print_call(self, call: ToolCall) -> str:
        # A surface goes in as it is, it must become a tool token; a plain name is outside text.
        name = print_json(call.name) if self.index is None else f'"{self.index.surface(call.name)}"'
        return f'{{"name": {name}, "arguments": {print_json(call.arguments)}}}'

    def parse(self, text: str) -> ParsedTurn:
        """Read a turn. Never raises: what is wrong is in `problems`, what could be read is returned all the same."""
        mode, rest = split_mode(text)
        blocks, problems = _split_blocks(rest)
        problems += _order_problems([kind for kind, _ in blocks])
        think: str | None = None
        answer: str | None = None
        selected: list[str] = []
        calls: list[ToolCall] = []
        for kind, body in blocks:
            if kind == THINK_OPEN:
                think = body.strip()
            elif kind == ANSWER_OPEN:
                answer = body.strip()
                problems += () if answer else ("empty answer",)
            elif kind == SELECT_OPEN:
                problems += self._read_selection(body, selected)
            else:
                problems += self._read_calls(body, calls)
        problems += self._thinking_problems({kind for kind, _ in blocks}, think, mode)
        return ParsedTurn(think, tuple(selected), tuple(calls), answer, mode, problems)

    def _read_selection(self, body: str, selected: list[str]) -> tuple[str, ...]:
        """Append the tools named in a selection block to `selected`; the problems with it."""
        if self.index is None or not self.selects:
            return ("selection in a dialect without one",)
        problems: list[str] = []
        lines = [line.strip() for line in body.split("\n") if line.strip()]
        for line in lines:
            name = self.index.name(line)
            if name is None:
                problems.append(f"unknown tool {_short(line)}")
            elif name in selected:
                problems.append(f"tool {name!r} selected twice")
            else:
                selected.append(name)
        return tuple(problems) if lines else ("empty selection",)

    def _read_calls(self, body: str, calls: list[ToolCall]) -> tuple[str, ...]:
        """Append the calls of a call block to `calls`; the problems with it."""
        problems: list[str] = []
        lines = [line for line in body.split("\n") if line.strip()]
        for number, line in enumerate(lines, 1):
            try:
                calls.append(self._read_call(line))
            except (ValueError, RecursionError) as error:
                problems.append(f"{CALL_PROBLEM}{number}: {_reason(error)} in {_short(line)}")
        return tuple(problems) if lines else (f"{CALL_PROBLEM}block is empty",)

    def _read_call(self, line: str) -> ToolCall:
        """The call on `line`. ValueError (pydantic's included) or RecursionError where it is none."""
        value = parse_json(line)
        if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
            raise ValueError("not an object of 'name' and 'arguments'")
        name, arguments = value["name"], value["arguments"]
        if not isinstance(name, str):
            raise ValueError("'name' is not a string")
        if not isinstance(arguments, dict):
            raise ValueError("'arguments' is not an object")
        known = name if self.index is None else self.index.name(name)
        if known is None:
            raise ValueError(f"unknown tool {_short(name)}")
        return ToolCall(name=known, arguments=arguments)

    def _thinking_problems(self, kinds: set[str], think: str | None, mode: Mode | None) -> tuple[str, ...]:
        problems: list[str] = []
        if think is not None and (self.think == "never" or mode == "no_think"):
            problems.append("thinking where there must be none")
        # With two steps the call turn is the second of its round.
        first_turn = not (self.selects and CALL_OPEN in kinds)
        if not think and (mode == "think" or (self.think == "required" and first_turn)):
            problems.append("no thinking where it is required")
        return tuple(problems)


def print_json(value: JsonValue) -> str:
    """JSON on one line that never spells a control string or `<<`; `parse_json` gives the value back."""
    # Such a spelling only stands inside a JSON string, where the escape means the same.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _SPELLING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def parse_json(text: str) -> JsonValue:
    """Strict JSON: ValueError also on NaN, infinities, half characters and doubled keys, RecursionError if too deep."""
    value = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
    json.dumps(value, ensure_ascii=False).encode()  # an escaped half of a surrogate pair could never be stored
    return cast(JsonValue, value)


def print_document(tool: ToolSchema, fields: Sequence[str] = DOCUMENT_FIELDS) -> str:
    """The document of a tool: one line of JSON with `fields`, in that order. KeyError on a field no document has.

    The parameters are canonical: type, properties (as given), required, then whatever else the schema says.

    >>> print_document(ToolSchema(name="now", description="The time."), ("name", "description"))
    '{"name": "now", "description": "The time."}'
    """
    first = {key: tool.parameters[key] for key in ("type", "properties", "required") if key in tool.parameters}
    document: dict[str, JsonValue] = {
        "name": tool.name,
        "description": tool.description,
        "parameters": first | tool.parameters,
    }
    return print_json({field: document[field] for field in fields})


def _split_blocks(text: str) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """The closed blocks of `text` as (opening string, body), and the problems: unclosed blocks, text around them."""
    blocks: list[tuple[str, str]] = []
    problems: list[str] = []
    at = 0
    while at < len(text):
        opener = _OPENERS.search(text, at)
        outside = text[at : opener.start() if opener else None].strip()
        if outside:
            problems.append(f"text outside of any block: {_short(outside)}")
        if opener is None:
            break
        close = text.find(BLOCKS[opener[0]], opener.end())
        if close < 0:
            problems.append(f"{CALL_PROBLEM if opener[0] == CALL_OPEN else ''}block {opener[0]} is not closed")
            break
        body = text[opener.end() : close]
        if inner := _CONTROL.search(body):
            problems.append(f"{inner[0]} inside {opener[0]}")
        blocks.append((opener[0], body))
        at = close + len(BLOCKS[opener[0]])
    return blocks, tuple(problems)


def _order_problems(kinds: list[str]) -> tuple[str, ...]:
    problems = [f"{kind} more than once" for kind in BLOCKS if kinds.count(kind) > 1]
    if THINK_OPEN in kinds[1:] and kinds.count(THINK_OPEN) == 1:
        problems.append("thinking after another block")
    acts = set(kinds) - {THINK_OPEN}
    if not acts:
        problems.append("no selection, call or answer")
    elif len(acts) > 1:
        problems.append(f"{' and '.join(sorted(acts))} in one turn")
    return tuple(problems)


def _thought(think: str) -> str:
    return f"{THINK_OPEN}\n{_free(think, 'thinking')}\n{THINK_CLOSE}\n" if think else ""


def _free(text: str, what: str) -> str:
    if spelled := _CONTROL.search(text):
        raise ValueError(f"the {what} spells the control string {spelled[0]!r}; take it out: {_short(text)}")
    return text


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"bad JSON ({error.msg})"
    return "nested too deep" if isinstance(error, RecursionError) else str(error).split("\n")[0]


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is given twice")
    return value
