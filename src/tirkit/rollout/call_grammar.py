"""The constraint on call blocks: the tool is one that may be called, its arguments fit its schema.

    <tool_call> \\n {"name": "surface", "arguments": {…}} \\n … </tool_call>

Two grammars of llguidance take turns within a line: the *head* knows the names of all tools that may be called, and as
soon as the name is written the grammar of that tool's line takes over. So a catalogue of 10,000 tools costs one list of
names, and a schema is compiled when its tool is first called.

What the grammar allows is narrower than JSON Schema in three ways: properties come in the schema's order, an object
with named properties holds no others, numbers without bounds are plain decimals within ±1e15. It is wider in one:
where a schema leaves an object open, a key may be given twice or a number overflow, and the dialect will say so.
"""

import json
import logging
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from pydantic import JsonValue
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tirkit.rollout.allow import written_ids
from tirkit.rollout.policy import GenerateRequest, RolloutError
from tirkit.text.control import CALL_CLOSE, CALL_OPEN, CONTROL_STRINGS
from tirkit.text.dialects import Dialect, print_json
from tirkit.text.render import Renderer
from tirkit.types import ToolSchema

logger = logging.getLogger(__name__)

MAX_NUMBER = 1e15
_STYLE: dict[str, JsonValue] = {  # as the dialect prints JSON; \u003c and its like are how it writes control strings
    "x-guidance": {
        "item_separator": ", ",
        "key_separator": ": ",
        "whitespace_flexible": False,
        "json_allow_general_unicode_escapes": True,
    }
}
_OPEN = {"additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"}
_VERBATIM = {"allOf", "const", "enum", "default", "examples"}
_NAMED = re.compile(r'\n?\{"name": ("(?:[^"\\]|\\.)*")')
_SPELLED = re.compile("|".join(map(re.escape, CONTROL_STRINGS)))
_SPLITS = tuple((text[:i], text[i:]) for text in CONTROL_STRINGS for i in range(1, len(text)))
_LONGEST = max(map(len, CONTROL_STRINGS))


@dataclass(frozen=True)
class _State:
    """Where a row stands. Outside a call block there is no matcher.

    names: what may be called. line: the ids of a line whose name is not known yet. tail: the end of a line's text.
    """

    names: tuple[str, ...]
    matcher: LLMatcher | None = None
    line: tuple[int, ...] | None = None
    tail: str = ""

    def __bool__(self) -> bool:
        return self.matcher is not None


class CallGrammar:
    """The constraint on call blocks. `loose` says which tools' arguments it does not hold to their schema, and why."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, renderer: Renderer, dialect: Dialect, tools: Sequence[ToolSchema]
    ):
        """Calls to `tools`, written as `dialect` does. RolloutError for a vocabulary without the block's tags."""
        opening, closing = written_ids(renderer, CALL_OPEN), written_ids(renderer, CALL_CLOSE)
        if len(opening) != 1 or len(closing) != 1:
            raise RolloutError(f"{CALL_OPEN} and {CALL_CLOSE} must be vocabulary entries: grow the vocabulary first")
        self._open, self._close = opening[0], closing[0]
        self._renderer, self._dialect = renderer, dialect
        self._tools = {tool.name: tool for tool in tools}
        self._written = {name: self._write(name) for name in self._tools}
        self._tool_of = {text: name for name, text in self._written.items()}
        self._added = set(tokenizer.get_added_vocab().values())
        self._vocabulary = _vocabulary(tokenizer, renderer.end_of_turn_id)
        self._texts = cast(list[str], tokenizer.convert_ids_to_tokens(list(range(self._vocabulary.vocab_size))))
        self._completions = _completions(self._texts, self._added)
        self.start = _State(tuple(self._tools))
        self.loose: dict[str, str] = {}
        self._head = lru_cache(maxsize=256)(self._make_head)
        self._rest = lru_cache(maxsize=4096)(self._make_rest)

    def begin(self, request: GenerateRequest) -> _State:
        """Outside; only tools just selected, or else documented, or else in the task's toolset may be called."""
        selected = request.turns[-1].selected if self._dialect.selects and request.turns else ()
        names = selected or tuple(tool.name for tool in request.tools) or request.task.tools
        return _State(tuple(name for name in names if name in self._tools)) if names else self.start

    def next(self, state: _State, token: int) -> _State:
        """The state after `token`; one that was not allowed leads outside."""
        if not state:
            return replace(state, matcher=self._head(state.names, True), line=()) if token == self._open else state
        outside = _State(state.names)
        assert state.matcher is not None
        matcher = state.matcher.deep_copy()
        if token == self._close or not matcher.consume_token(token):
            return outside
        if state.line is not None:
            return self._in_head(replace(state, matcher=matcher, line=(*state.line, token)))
        if matcher.is_accepting():  # the line is over
            return _State(state.names, self._head(state.names, False), ())
        return replace(state, matcher=matcher, tail=(state.tail + self._texts[token])[-_LONGEST:])

    def _in_head(self, state: _State) -> _State:
        named = _NAMED.match(self._renderer.decode_all(state.line or ()))
        if named is None:
            return state
        matcher = self._rest(self._tool_of[named[1]]).deep_copy()
        matcher.consume_tokens(list(state.line or ()))
        return _State(state.names, matcher)

    def mask(self, logps_BV: Tensor, states: Sequence[_State]) -> Tensor:
        """In place: −inf where a row inside a call block may not go."""
        for logps_V, state in zip(logps_BV, states, strict=True):
            if state:
                allowed = self._allowed(state)
                known_V, beyond_V = logps_V[: len(allowed)], logps_V[len(allowed) :]
                known_V.masked_fill_(torch.from_numpy(~allowed).to(logps_V.device), float("-inf"))
                beyond_V.fill_(float("-inf"))
        return logps_BV

    def _allowed(self, state: _State) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Which entries of the vocabulary may come next."""
        size = self._vocabulary.vocab_size
        words = allocate_token_bitmask(1, size)
        assert state.matcher is not None
        fill_next_token_bitmask(state.matcher, words)
        allowed = np.unpackbits(words.view(np.uint8), bitorder="little", count=size).view(bool)
        # Text of ordinary tokens must not come to spell a control string: the turn could not be read.
        for begun, tokens in self._completions.items():
            if state.line is None and state.tail.endswith(begun):
                allowed[tokens] = False
        return allowed

    def _write(self, name: str) -> str:
        """The name as it stands in a call, quotes included."""
        index = self._dialect.index
        return print_json(name) if index is None else f'"{index.surface(name)}"'

    def _make_head(self, names: tuple[str, ...], first: bool) -> LLMatcher:
        """A line up to the arguments. After the first one the block may be closed instead."""
        by_start: dict[tuple[int, ...], list[int]] = {}
        plain: list[str] = []
        for name in names:
            ids = written_ids(self._renderer, self._written[name][1:-1])
            if ids and self._added.issuperset(ids):
                by_start.setdefault(tuple(ids[:-1]), []).append(ids[-1])
            else:
                plain.append(json.dumps(self._written[name], ensure_ascii=False))
        tokens = [f'"\\"" {_tokens(*([id_] for id_ in start), ends)} "\\""' for start, ends in by_start.items()]
        start = r'"\n" line' if first else f"line | {_tokens([self._close])}"
        lark = rf'start: {start}{chr(10)}line: "{{\"name\": " name ", \"arguments\": "{chr(10)}'
        lark += f"name: {' | '.join([*tokens, *['PLAIN'] * bool(plain)])}\n"
        return self._matcher(lark + (f"PLAIN: {' | '.join(plain)}\n" if plain else ""))

    def _make_rest(self, name: str) -> LLMatcher:
        """A whole line that calls `name`."""
        ids = written_ids(self._renderer, self._written[name][1:-1])
        plain = not self._added.issuperset(ids)
        written = self._written[name]
        spelled = json.dumps(written, ensure_ascii=False) if plain else rf'"\"" {_tokens(*([i] for i in ids))} "\""'
        lark = rf'start: "\n"? "{{\"name\": " {spelled} ", \"arguments\": " arguments "}}\n"{chr(10)}arguments: %json '
        return self._matcher(lark + json.dumps(self._schema(self._tools[name], lark)))

    def _schema(self, tool: ToolSchema, lark: str) -> dict[str, JsonValue]:
        """What the arguments are held to: the tool's schema, or any object where `lark` cannot take that one."""
        schema = {**_narrow(tool.parameters), **_STYLE}
        printed = json.dumps(schema, ensure_ascii=False)
        spelled = [text for text in CONTROL_STRINGS if text in printed]
        failed, messages = LLMatcher.validate_grammar_with_warnings(lark + printed, self._vocabulary)
        if not failed and not spelled:
            return schema
        self.loose[tool.name] = f"it spells {spelled[0]}" if spelled else messages[0].split("\n")[0]
        logger.warning("the arguments of %r are not held to its schema: %s", tool.name, self.loose[tool.name])
        return {"type": "object", **_STYLE}

    def _matcher(self, lark: str) -> LLMatcher:
        matcher = LLMatcher(self._vocabulary, lark)
        if matcher.is_error():
            raise RolloutError(f"the grammar of calls cannot be compiled: {matcher.get_error()}")
        return matcher


def _narrow(schema: Any) -> Any:
    """Objects with named properties closed, numbers bounded: see the module's docstring."""
    if isinstance(schema, list):
        return [_narrow(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    narrow = {key: value if key in _VERBATIM else _narrow(value) for key, value in schema.items()}
    kinds = schema.get("type")
    if kinds == "object" and "properties" in schema and not _OPEN & schema.keys():
        narrow["additionalProperties"] = False
    if "number" in (kinds if isinstance(kinds, list) else [kinds]):
        low, high = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
        narrow |= {} if low & schema.keys() else {"minimum": -MAX_NUMBER}
        narrow |= {} if high & schema.keys() else {"maximum": MAX_NUMBER}
    return narrow


def _tokens(*choices: Sequence[int]) -> str:
    """Lark for one token out of each of `choices`, one behind the other."""
    return " ".join(f"<[{','.join(map(str, choice))}]>" for choice in choices)


def _vocabulary(tokenizer: PreTrainedTokenizerFast, end_of_turn_id: int) -> LLTokenizer:
    """The tokenizer for llguidance: added tokens stand only where a grammar names them, never for text they spell."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["added_tokens"] = [token | {"special": True} for token in spec["added_tokens"]]
    spec |= {"truncation": None, "padding": None}
    return LLTokenizer(json.dumps(spec), eos_token=end_of_turn_id)


def _completions(texts: Sequence[str], added: set[int]) -> dict[str, list[int]]:
    """By the beginning of a control string: the tokens that complete it. "" has those that spell all of one."""
    ordinary = sorted((text, id_) for id_, text in enumerate(texts) if text and id_ not in added)
    found = {"": [id_ for text, id_ in ordinary if _SPELLED.search(text)]}
    for begun, rest in _SPLITS:
        start, end = bisect_left(ordinary, (rest, 0)), bisect_left(ordinary, (f"{rest}\U0010ffff", 0))
        found[begun] = [id_ for _, id_ in ordinary[start:end]]
    return {begun: ids for begun, ids in found.items() if ids}
