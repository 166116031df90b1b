"""An answer read while it is being written: what of it is text, thinking or calls.

However the text is cut into pieces, the deltas add up to the same. Outside of blocks and in `<answer>` text is content,
in `<think>` it is reasoning; a selection or calls are read by the dialect when their block is closed and the turn is
over, and are never told as text. Nor is a control string: it ends what was open and begins what it says.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tirkit.serving.api import Delta
from tirkit.serving.vllm_parser import overlap
from tirkit.text.control import CALL_OPEN, CONTROL_STRINGS, SELECT_OPEN, THINK_OPEN
from tirkit.text.dialects import BLOCKS, Dialect
from tirkit.types import ToolCall

_CONTROL = re.compile("|".join(map(re.escape, CONTROL_STRINGS)))


class Stops:
    """Text up to the first of `stops` that is complete; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held, self.hit = tuple(stops), "", False

    def feed(self, text: str) -> str:
        """What is sure now."""
        if self.hit:
            return ""
        self._held += text
        found = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        self.hit = bool(found)
        sure = min(found)[1] if found else len(self._held) - _longest(self._held, self._stops)
        text, self._held = self._held[:sure], self._held[sure:]
        return text

    def finish(self) -> str:
        """What is left at the end."""
        left, self._held = "" if self.hit else self._held, ""
        return left


class _Trimmed:
    """Text without the white space around it; what may be inside is held back until more text shows that it is."""

    def __init__(self) -> None:
        self._begun, self._space = False, ""

    def feed(self, text: str) -> str:
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        kept = kept if self._begun else kept.lstrip()
        self._begun = self._begun or bool(kept)
        return kept

    def new_line(self) -> None:
        """What comes now is another paragraph."""
        self._space = "\n" if self._begun else ""


@dataclass(frozen=True)
class Acts:
    """What a turn does: a selection or calls. `problem`: why they cannot be read; empty where they can."""

    selected: tuple[str, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    problem: str = ""


class Reader:
    """Reads one answer, turn by turn. Once `stopped`, by one of `stops` in its content, nothing more is to be said."""

    def __init__(self, dialect: Dialect, stops: Sequence[str] = ()) -> None:
        self._dialect = replace(dialect, think="optional")  # where thinking must be is a matter of training
        self._stops, self._content, self._reasoning = Stops(stops), _Trimmed(), _Trimmed()
        self._held, self._block, self._acts = "", "", Acts()

    @property
    def stopped(self) -> bool:
        """Whether a stop string was written."""
        return self._stops.hit

    @property
    def called(self) -> bool:
        """Whether calls of this turn could be read."""
        return bool(self._acts.calls) and not self._acts.problem

    def feed(self, text: str) -> Delta:
        """What is sure now that `text` was written."""
        self._held += text
        delta = Delta()
        while not self.stopped and (piece := self._next()) is not None:
            delta = Delta(delta.content + piece.content, delta.reasoning + piece.reasoning)
        return delta

    def end_turn(self) -> tuple[Delta, Acts]:
        """What is left of the turn, and what it does."""
        acts, problem = self._acts, self._acts.problem
        if self._block in (SELECT_OPEN, CALL_OPEN):
            delta, problem = Delta(), problem or f"block {self._block} is not closed"
        else:
            delta = self._say(self._held)
        self._held, self._block, self._acts = "", "", Acts()
        return delta, replace(acts, problem=problem)

    def finish(self) -> Delta:
        """What was held back at the end of the answer."""
        return Delta(content=self._stops.finish())

    def _next(self) -> Delta | None:
        """The next piece; None where more must be written first."""
        if self._block in (SELECT_OPEN, CALL_OPEN):
            return self._act()
        match = _CONTROL.search(self._held)
        sure = match.start() if match else len(self._held) - _longest(self._held, CONTROL_STRINGS)
        if not match and not sure:
            return None
        delta = self._say(self._held[:sure])
        self._held = self._held[match.end() if match else sure :]
        if match:
            self._block = match[0] if match[0] in BLOCKS else ""
            if self._block == THINK_OPEN:
                self._reasoning.new_line()
        return delta

    def _say(self, text: str) -> Delta:
        if self._block == THINK_OPEN:
            return Delta(reasoning=self._reasoning.feed(text))
        return Delta(content=self._stops.feed(self._content.feed(text)))

    def _act(self) -> Delta | None:
        close = BLOCKS[self._block]
        body, closed, rest = self._held.partition(close)
        if not closed:
            return None
        parsed = self._dialect.parse(self._block + body + close)
        acts, problem = self._acts, "; ".join(parsed.problems)
        self._acts = Acts(acts.selected + parsed.selected, acts.calls + parsed.calls, acts.problem or problem)
        self._held, self._block = rest, ""
        return Delta()


class PlainReader(Reader):
    """Reads an answer of a model that is served as text: all of it is content, as it was written."""

    def feed(self, text: str) -> Delta:
        """See Reader."""
        return Delta(content=self._stops.feed(text))


def _longest(text: str, strings: Sequence[str]) -> int:
    """How much of the end of `text` is a beginning of one of `strings`."""
    return max((overlap(text, string) for string in strings), default=0)
