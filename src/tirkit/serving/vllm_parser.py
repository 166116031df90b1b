"""A tool-call parser for vLLM, which reads the turns of a model that was trained by tirkit.

An exported model's folder holds this file as `tirkit_tool_parser.py`, beside `tools.json`, the tools it reads; it needs
nothing else but vLLM. Tested within the parser that the server of vLLM 0.33 makes of it (`vllm.parser.ParserManager`:
whole and streamed turns, every `tool_choice`), on a machine without a GPU: never with `vllm serve` running a model.

    <tool_call> lines       → tool_calls, with the tools' plain names in the place of their tokens
    <tool_token> lines      → one tool_call of the function that stands for a selection; it returns the documents
    <answer>text</answer>   → text
    anything else           → as it was written, thinking and its tags included

A block that can't be read is passed on as it was written, for the client to see. Calls are sent when their block is
closed: before that nobody knows whether it can be read.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SELECT, CALL, ANSWER = "<tool_token>", "<tool_call>", "<answer>"
CLOSES = {SELECT: "</tool_token>", CALL: "</tool_call>", ANSWER: "</answer>"}


@dataclass(frozen=True)
class Tools:
    """How tools are written: `names` by their tokens, None where they are written as they are called.

    `selection`: the function that stands for a selection; empty where the model makes none.
    """

    names: Mapping[str, str] | None
    selection: str = ""


@dataclass(frozen=True)
class Piece:
    """What was read: text for the client, or calls as (name, arguments as JSON)."""

    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()


def load_tools(path: Path) -> Tools:
    """The tools of an exported `tools.json`."""
    data = json.loads(path.read_text(encoding="utf-8"))
    names = None if data["index"] == "none" else {tool["token"]: tool["name"] for tool in data["tools"]}
    return Tools(names, data["selection"])


@dataclass
class TurnReader:
    """Reads one turn while it is being written. What it holds back is the beginning of a tag, or an open block."""

    tools: Tools
    _held: str = ""
    _block: str = ""  # the tag that opened the block we are in

    def feed(self, text: str) -> list[Piece]:
        """What can be said now that `text` was written."""
        self._held += text
        pieces: list[Piece] = []
        while (piece := self._next()) is not None:
            pieces.append(piece)
        return [piece for piece in pieces if piece != Piece()]

    def finish(self) -> list[Piece]:
        """What is left when the turn is over."""
        opened = self._block if self._block != ANSWER else ""
        left, self._held, self._block = opened + self._held, "", ""
        return [Piece(left)] if left else []

    def _next(self) -> Piece | None:
        """The next piece; None where more must be written first."""
        if self._block in (SELECT, CALL):
            return self._calls()
        wanted = [CLOSES[ANSWER]] if self._block else list(CLOSES)
        places = {tag: place for tag in wanted if (place := self._held.find(tag)) >= 0}
        if not places:
            sure = len(self._held) - max(overlap(self._held, tag) for tag in wanted)
            piece, self._held = Piece(self._held[:sure]), self._held[sure:]
            return piece if sure else None
        tag = min(places, key=places.__getitem__)
        piece, self._held = Piece(self._held[: places[tag]]), self._held[places[tag] + len(tag) :]
        self._block = "" if self._block else tag
        return piece

    def _calls(self) -> Piece | None:
        close = CLOSES[self._block]
        body, closed, rest = self._held.partition(close)
        if not closed:
            return None
        opened, self._held, self._block = self._block, rest, ""
        lines = [line.strip() for line in body.split("\n") if line.strip()]
        try:
            return Piece(calls=self._selected(lines) if opened == SELECT else tuple(map(self._call, lines)))
        except (ValueError, KeyError, RecursionError):
            return Piece(opened + body + close)

    def _selected(self, lines: list[str]) -> tuple[tuple[str, str], ...]:
        """ValueError or KeyError where `lines` are no selection."""
        if not self.tools.selection or not lines or len(set(lines)) < len(lines):
            raise ValueError("no selection")
        names = [self._name(line) for line in lines]
        return ((self.tools.selection, json.dumps({"names": names}, ensure_ascii=False)),)

    def _call(self, line: str) -> tuple[str, str]:
        """ValueError, KeyError or RecursionError where `line` is no call."""
        value = json.loads(line, object_pairs_hook=_unique)
        if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
            raise ValueError("not an object of 'name' and 'arguments'")
        if not isinstance(value["name"], str) or not isinstance(value["arguments"], dict):
            raise ValueError("'name' is no string or 'arguments' no object")
        arguments = json.dumps(value["arguments"], ensure_ascii=False, allow_nan=False)
        arguments.encode()  # an escaped half of a surrogate pair could never be sent
        return self._name(value["name"]), arguments

    def _name(self, token: str) -> str:
        """The plain name; KeyError for a token that is no tool's."""
        return token if self.tools.names is None else self.tools.names[token]


def overlap(text: str, tag: str) -> int:
    """How much of the end of `text` is a beginning of `tag`."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


def spelled_by(tools: Tools, tokenizer: Any) -> Tools:
    """`tools` that also know how `tokenizer` decodes each token: a byte-level one garbles letters such as é."""
    odd = {token: name for token, name in (tools.names or {}).items() if not token.isascii()}
    if not odd:
        return tools
    spelled = [tokenizer.decode([id_]) for id_ in tokenizer.convert_tokens_to_ids(list(odd))]
    known = {text: name for text, name in zip(spelled, odd.values(), strict=True) if spelled.count(text) == 1}
    return Tools(known | dict(tools.names or {}), tools.selection)


class TurnParser:
    """What vLLM asks of a tool parser; `register` puts it before vLLM's own base class.

    `api` is the module of vLLM's API types, `written` the tools as tools.json has them.
    """

    api: Any
    written: Tools
    supports_required_and_named = False  # a forced call is read like any other: its form is ours, not plain JSON
    engine_based_streaming = True  # so that what is read is sent also where there is no call in it
    known: Tools | None = None
    prev_tool_call_arr: list[dict[str, Any]]
    streamed_args_for_tool: list[str]

    def __init__(self, tokenizer: Any, *tools: Any) -> None:
        super().__init__(tokenizer, *tools)  # pyright: ignore[reportCallIssue]
        kind = type(self)
        kind.known = kind.known or spelled_by(self.written, tokenizer)
        self.reader = TurnReader(kind.known)

    def adjust_request(self, request: Any) -> Any:
        """The request with its tags and tool tokens kept in the text; nothing is forced."""
        if request.tools and request.tool_choice != "none":
            request.skip_special_tokens = False  # some base models count <tool_call> among them
            if "spaces_between_special_tokens" in type(request).model_fields:
                request.spaces_between_special_tokens = False
        return request

    def extract_tool_calls(self, model_output: str, request: Any) -> Any:
        """A whole turn's text and calls."""
        reader = TurnReader(self.reader.tools)
        pieces = [*reader.feed(model_output), *reader.finish()]
        functions = [self.api.FunctionCall(name=name, arguments=text) for piece in pieces for name, text in piece.calls]
        calls = [self.api.ToolCall(function=function) for function in functions]
        text = "".join(piece.text for piece in pieces)
        return self.api.ExtractedToolCallInformation(tools_called=bool(calls), tool_calls=calls, content=text or None)

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Any,
        current_token_ids: Any,
        delta_token_ids: Any,
        request: Any,
    ) -> Any:
        """What the client is sent now that `delta_text` was written; None for nothing."""
        return self._delta(self.reader.feed(delta_text))

    def finish_streaming(self) -> Any:
        """What the client is sent at the end."""
        return self._delta(self.reader.finish())

    def _delta(self, pieces: list[Piece]) -> Any:
        calls = [self._call(*call) for piece in pieces for call in piece.calls]
        text = "".join(piece.text for piece in pieces)
        return self.api.DeltaMessage(content=text or None, tool_calls=calls) if text or calls else None

    def _call(self, name: str, arguments: str) -> Any:
        # vLLM reads these to know what of the arguments is still to be sent: nothing.
        self.prev_tool_call_arr.append({"name": name, "arguments": arguments})
        self.streamed_args_for_tool.append(arguments)
        self.current_tool_id, self.current_tool_name_sent = len(self.prev_tool_call_arr) - 1, True
        function = self.api.DeltaFunctionCall(name=name, arguments=arguments)
        id_ = f"call_{uuid.uuid4().hex[:24]}"
        return self.api.DeltaToolCall(id=id_, type="function", index=self.current_tool_id, function=function)


def register() -> None:
    """Make the parser known to vLLM as `tirkit`."""
    from vllm.tool_parsers.abstract_tool_parser import (  # pyright: ignore[reportMissingImports]
        ToolParser,
        ToolParserManager,
    )

    try:
        from vllm.entrypoints.generate.base import protocol as api  # pyright: ignore[reportMissingImports]
    except ImportError:  # where it was before
        from vllm.entrypoints.openai.engine import protocol as api  # pyright: ignore[reportMissingImports]

    written = load_tools(Path(__file__).with_name("tools.json"))
    parser = type("TirkitToolParser", (TurnParser, ToolParser), {"api": api, "written": written})
    ToolParserManager.register_module("tirkit", module=parser)


if __name__ == "tirkit_tool_parser":  # as vLLM loads it, beside tools.json
    register()
