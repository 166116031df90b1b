"""What a policy may write: inside a selection block only the block's own grammar.

    <tool_token> \\n surface \\n surface \\n … </tool_token>

The grammar is compiled from the dialect's own printing through the tokenizer, so it holds for every way to write tools
(one token, several, digits, names). `tirkit.rollout.call_grammar` does the same for call blocks.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from tirkit.rollout.policy import GenerateRequest, RolloutError
from tirkit.text.control import SELECT_CLOSE, SELECT_OPEN
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer


class Constraint(Protocol):
    """Follows each row token by token. States are values: `next` leaves the one it is given as it is.

    A state is false where anything may be written.
    """

    @property
    def start(self) -> Any:
        """The state of a row about which nothing is known."""
        ...

    def begin(self, request: GenerateRequest) -> Any:
        """The state before the first token of the turn that `request` asks for."""
        ...

    def next(self, state: Any, token: int) -> Any:
        """The state after `token`. A token that was not allowed leads to a false state."""
        ...

    def mask(self, logps_BV: Tensor, states: Sequence[Any]) -> Tensor:
        """`logps_BV`, changed in place: −inf where a row may not go. What it may write keeps its log-probability."""
        ...


class AllOf:
    """Several constraints at once, for blocks that never overlap."""

    def __init__(self, parts: Sequence[Constraint]):
        self.parts = tuple(parts)

    @property
    def start(self) -> tuple[Any, ...]:
        """One state a part."""
        return tuple(part.start for part in self.parts)

    def begin(self, request: GenerateRequest) -> tuple[Any, ...]:
        """One state a part."""
        return tuple(part.begin(request) for part in self.parts)

    def next(self, state: tuple[Any, ...], token: int) -> tuple[Any, ...]:
        """One state a part."""
        return tuple(part.next(one, token) for part, one in zip(self.parts, state, strict=True))

    def mask(self, logps_BV: Tensor, states: Sequence[tuple[Any, ...]]) -> Tensor:
        """In place, part by part."""
        for part, own in zip(self.parts, zip(*states, strict=True), strict=True):
            part.mask(logps_BV, own)
        return logps_BV


class SelectionAutomaton:
    """The constraint on selection blocks. States are ints: 0 is outside a block, everything else inside."""

    start = 0

    def __init__(self, renderer: Renderer, dialect: Dialect, names: Sequence[str] | None = None):
        """Allow `names` (default: all tools of the dialect's index).

        Raises RolloutError for a dialect without index and for a vocabulary without the block's tags.
        """
        if dialect.index is None:
            raise RolloutError("an allow-list needs a dialect with tool tokens; this one has no index")
        opening, closing = written_ids(renderer, f"{SELECT_OPEN}\n"), written_ids(renderer, f"\n{SELECT_CLOSE}")
        if len(opening) != 2 or len(closing) != 2:
            raise RolloutError(
                f"{SELECT_OPEN} and {SELECT_CLOSE} must be vocabulary entries: grow the vocabulary first"
            )
        self._open, newline, close = opening[0], opening[1], closing[1]
        outside, _opened, first, again = range(4)  # `again`: after a whole surface and its newline
        self._edges: list[dict[int, int]] = [{}, {newline: first}, {}, {close: outside}]
        for name in dialect.index.names if names is None else names:
            surface = written_ids(renderer, dialect.index.surface(name))
            for state in (first, again):
                self._edges[self._path(state, surface)][newline] = again
        # The tokens that may follow state s: _tokens[_ends[s] : _ends[s + 1]].
        self._tokens = torch.tensor([token for edges in self._edges for token in edges])
        self._ends = [0, *accumulate(map(len, self._edges))]

    def _path(self, state: int, ids: Sequence[int]) -> int:
        """The state after `ids` from `state`; states that are missing are made."""
        for token in ids:
            if token not in self._edges[state]:
                self._edges.append({})
                self._edges[state][token] = len(self._edges) - 1
            state = self._edges[state][token]
        return state

    def begin(self, request: GenerateRequest) -> int:
        """Outside."""
        return self.start

    def next(self, state: int, token: int) -> int:
        """The state after `token`; a token the automaton does not know leads outside."""
        if state == 0:
            return 1 if token == self._open else 0
        return self._edges[state].get(token, 0)

    def mask(self, logps_BV: Tensor, states: Sequence[int]) -> Tensor:
        """In place: −inf where a row inside a block may not go; renormalising is left to the sampler."""
        self._tokens = self._tokens.to(logps_BV.device)
        for logps_V, state in zip(logps_BV, states, strict=True):
            if state:
                allowed_K = self._tokens[self._ends[state] : self._ends[state + 1]]
                kept_K = logps_V[allowed_K]
                logps_V.fill_(float("-inf"))
                logps_V[allowed_K] = kept_K
        return logps_BV


def written_ids(renderer: Renderer, text: str) -> list[int]:
    """Token ids of text the assistant writes, without the end of turn."""
    ids = list(renderer.completion_ids(text))
    return ids[:-1] if ids[-1] == renderer.end_of_turn_id else ids
