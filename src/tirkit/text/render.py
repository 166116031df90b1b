"""Strings ↔ token ids through the tokenizer's own chat template, safe against text from outside.

Questions, documents and results may spell `<|im_end|>`, `</tool_call>` or `<<name>>`; none may become the token. So
the first character of every added token is escaped in outside text before the template is applied. What the template
itself writes is then all that still spells added tokens: the result is cut at those, and the text between them is
unescaped and tokenised by a copy of the tokenizer without added tokens. That is how the tokenizer itself works (it
cuts at added tokens first), so ordinary text gets the ids `apply_chat_template` gives it.

(transformers' own `sanitize_control_tokens` leaves the keys of tool schemas as they are and drops characters.)
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from tokenizers import Tokenizer

from tirkit.text.control import TURN_END, TURN_START
from tirkit.text.index import ToolIndex
from tirkit.types import Message, StopReason, ToolSchema, Trajectory, Turn

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedTokenizerFast

_ESCAPE = "\ufdd0"  # a noncharacter; followed by a private-use character that says which character it stands for
_MARK = f"{_ESCAPE}."  # spelled by no escaped text


class UnsupportedTokenizerError(ValueError):
    """The tokenizer or its chat template can't be used safely."""


class Renderer:
    """Renders conversations of one tokenizer. Make a new one after tokens were added to the tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", index: ToolIndex | None = None):
        """UnsupportedTokenizerError where the tokenizer lacks a token of `index`, or can't be used safely."""
        # Typed as they are used here: their own annotations are wider and partly unknown.
        self._apply_template = cast(Callable[..., Any], tokenizer.apply_chat_template)  # pyright: ignore[reportUnknownMemberType]
        eos, pad, pad_id = cast(tuple[Any, ...], (tokenizer.eos_token, tokenizer.pad_token, tokenizer.pad_token_id))
        self._ids = tokenizer.get_added_vocab()
        self._texts = {id_: text for text, id_ in self._ids.items()}
        missing = [token for token in (index.tokens if index else ()) if token not in self._ids]
        if missing:
            raise UnsupportedTokenizerError(
                f"{len(missing)} tool tokens are not in the vocabulary, the first is {missing[0]!r}: grow it first"
            )
        self._plain = _without_added_tokens(tokenizer)
        self._control = _any_of(self._ids)
        starts = sorted({token[0] for token in self._ids} | {_ESCAPE})
        self._escapes = {ord(start): _ESCAPE + chr(0xE000 + i) for i, start in enumerate(starts)}
        self._unescapes = {chr(0xE000 + i): start for i, start in enumerate(starts)}
        self._check_plain()
        self.end_of_turn_id = self._find_end_of_turn()
        self.pad_id: int = self.end_of_turn_id if pad_id is None else pad_id
        # The assistant ends a turn with the token itself, never by spelling it.
        ends = {TURN_START, TURN_END, self._texts[self.end_of_turn_id], eos, pad}
        self._structure = _any_of(token for token in self._ids if token in ends)
        self._check_template()

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """The conversation up to where the assistant begins to write; `tools` are documents for the template.

        An assistant's messages are its own words: tool tokens and block tags are real in them, and in no others.
        """
        return self._encode(self._render([self._message(message) for message in messages], tools))

    def completion_ids(self, text: str) -> list[int]:
        """`text` as the assistant's own words (control strings and tool tokens are real), and the end of turn."""
        return [*self._encode(self._own(text)), self.end_of_turn_id]

    def reply_ids(self, messages: Sequence[Message]) -> list[int]:
        """What stands between an assistant's end-of-turn token and the point where it goes on after `messages`."""
        return self._encode(self._after_assistant(messages).removeprefix(self._texts[self.end_of_turn_id]))

    def safe_ids(self, text: str) -> list[int]:
        """Outside text alone: never an added token."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control strings and tool tokens included, without the end of turn it may close with."""
        return self.decode_all(ids[:-1] if len(ids) > 0 and ids[-1] == self.end_of_turn_id else ids)

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of `ids`, all of it; `masks.coloured` wants this one."""
        # Added tokens apart: the byte-level decoder garbles those that hold letters such as é.
        runs = groupby(ids, key=lambda id_: id_ in self._texts)
        return "".join(
            "".join(self._texts[id_] for id_ in run) if added else self._plain.decode(list(run), False)
            for added, run in runs
        )

    def _outside(self, text: str) -> str:
        return text.translate(self._escapes)

    def _own(self, text: str) -> str:
        text = text.replace(_ESCAPE, self._escapes[ord(_ESCAPE)])
        return self._structure.sub(lambda match: self._outside(match[0]), text)

    def _message(self, message: Message) -> dict[str, str]:
        shield = self._own if message.role == "assistant" else self._outside
        return {"role": message.role, "content": shield(message.content)}

    def _tool(self, tool: ToolSchema) -> dict[str, Any]:
        function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        return {"type": "function", "function": self._shield_all(function)}

    def _shield_all(self, value: Any) -> Any:
        """`value` with every string in it escaped, keys too."""
        if isinstance(value, str):
            return self._outside(value)
        if isinstance(value, dict):
            pairs = cast(dict[str, Any], value).items()
            return {self._outside(key): self._shield_all(item) for key, item in pairs}
        return [self._shield_all(item) for item in cast(list[Any], value)] if isinstance(value, list) else value

    def _render(self, messages: list[dict[str, str]], tools: Sequence[ToolSchema] = ()) -> str:
        schemas = [self._tool(tool) for tool in tools] or None
        return self._apply_template(messages, schemas, tokenize=False, add_generation_prompt=True)

    def _encode(self, rendered: str) -> list[int]:
        ids: list[int] = []
        at = 0
        for match in self._control.finditer(rendered):
            ids += self.safe_ids(self._unescape(rendered[at : match.start()]))
            ids.append(self._ids[match[0]])
            at = match.end()
        return ids + self.safe_ids(self._unescape(rendered[at:]))

    def _unescape(self, text: str) -> str:
        if _ESCAPE not in text:
            return text
        return re.sub(f"{_ESCAPE}(.)", lambda match: self._unescapes[match[1]], text)

    def _after_assistant(self, messages: Sequence[Message]) -> str:
        start = [{"role": "user", "content": "."}, {"role": "assistant", "content": _MARK}]
        return self._render([*start, *(self._message(message) for message in messages)]).rpartition(_MARK)[2]

    def _find_end_of_turn(self) -> int:
        match = self._control.match(self._after_assistant(()))
        if match is None:
            raise UnsupportedTokenizerError("the chat template must end an assistant's message with an added token")
        return self._ids[match[0]]

    def _check_plain(self) -> None:
        for encoding in self._plain.encode_batch(list(self._ids), add_special_tokens=False):
            if reached := [self._texts[id_] for id_ in encoding.ids if id_ in self._texts]:
                raise UnsupportedTokenizerError(f"the tokenizer makes {reached[0]!r} from ordinary text")

    def _check_template(self) -> None:
        """Ordinary text must get the ids it would get without us."""
        text = "Is 1 < 2 [or not]?\n"
        tool = ToolSchema(name="probe", description=text)
        theirs = self._apply_template(
            [{"role": "user", "content": text}],
            [{"type": "function", "function": tool.model_dump(include={"name", "description", "parameters"})}],
            add_generation_prompt=True,
            return_dict=False,
        )
        if self.prompt_ids([Message(role="user", content=text)], [tool]) != theirs:
            raise UnsupportedTokenizerError(
                "the chat template changes outside text, or the tokenizer is not a byte-level one: ids of ordinary "
                "text would differ from those of apply_chat_template"
            )


class TextStream:
    """Text of ids that come a few at a time; the bytes of a character that is not whole yet are held back."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer, self._held = renderer, list[int]()

    def feed(self, ids: Sequence[int]) -> str:
        """What is sure now; all texts together are `decode_all` of all ids, once `finish` was added."""
        self._held += ids
        text = self._renderer.decode_all(self._held)
        if text.endswith("\ufffd"):
            return ""
        self._held.clear()
        return text

    def finish(self) -> str:
        """What is left when no more ids come."""
        text = self._renderer.decode_all(self._held)
        self._held.clear()
        return text


def encode(renderer: Renderer, trajectory: Trajectory, tools: Sequence[ToolSchema] = ()) -> Trajectory:
    """The trajectory with its ids filled in where they are absent; `tools` are the documents in its prompt.

    A last turn that was cut off (`StopReason.MAX_TOKENS`) gets no end of turn.
    """
    turns = [_encode_turn(renderer, turn) for turn in trajectory.turns]
    if turns and trajectory.stop is StopReason.MAX_TOKENS and not trajectory.turns[-1].ids:
        turns[-1] = turns[-1].model_copy(update={"ids": turns[-1].ids[:-1]})
    prompt = trajectory.prompt_ids or tuple(renderer.prompt_ids(trajectory.prompt, tools))
    return trajectory.model_copy(update={"prompt_ids": prompt, "turns": tuple(turns)})


def _encode_turn(renderer: Renderer, turn: Turn) -> Turn:
    ids = turn.ids or tuple(renderer.completion_ids(turn.text))
    reply = turn.reply_ids or (tuple(renderer.reply_ids(turn.reply)) if turn.reply else ())
    return turn.model_copy(update={"ids": ids, "reply_ids": reply})


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of `strings` that begins at a place, as the tokenizer does; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))) or "(?!)")


def _without_added_tokens(tokenizer: "PreTrainedTokenizerFast") -> Tokenizer:
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(spec))
