"""The allow-list automaton: inside a selection block only the block's own grammar can be written.

    <tool_token> \\n surface \\n surface \\n … </tool_token>

States are ints: 0 is outside a block, everything else inside. The grammar is compiled from the dialect's own printing
through the tokenizer, so it holds for every way to write tools (one token, several, digits, names).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tirkit.rollout.policy import RolloutError
from tirkit.text.control import SELECT_CLOSE, SELECT_OPEN
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer


class SelectionAutomaton:
    """Follows a row token by token and says what may come next inside a selection block."""

    start = 0

    def __init__(self, renderer: Renderer, dialect: Dialect, names: Sequence[str] | None = None):
        """Allow `names` (default: all tools of the dialect's index).

        Raises RolloutError for a dialect without index and for a vocabulary without the block's tags.
        """
        if dialect.index is None:
            raise RolloutError("an allow-list needs a dialect with tool tokens; this one has no index")
        opening, closing = _ids(renderer, f"{SELECT_OPEN}\n"), _ids(renderer, f"\n{SELECT_CLOSE}")
        if len(opening) != 2 or len(closing) != 2:
            raise RolloutError(
                f"{SELECT_OPEN} and {SELECT_CLOSE} must be vocabulary entries: grow the vocabulary first"
            )
        self._open, newline, close = opening[0], opening[1], closing[1]
        self._masks: dict[int, Tensor] = {}
        outside, _opened, first, again = range(4)  # `again`: after a whole surface and its newline
        self._edges: list[dict[int, int]] = [{}, {newline: first}, {}, {close: outside}]
        for name in dialect.index.names if names is None else names:
            surface = _ids(renderer, dialect.index.surface(name))
            for state in (first, again):
                self._edges[self._path(state, surface)][newline] = again

    def _path(self, state: int, ids: Sequence[int]) -> int:
        """The state after `ids` from `state`; states that are missing are made."""
        for token in ids:
            if token not in self._edges[state]:
                self._edges.append({})
                self._edges[state][token] = len(self._edges) - 1
            state = self._edges[state][token]
        return state

    def next(self, state: int, token: int) -> int:
        """The state after `token`; a token the automaton does not know leads outside."""
        if state == 0:
            return 1 if token == self._open else 0
        return self._edges[state].get(token, 0)

    def mask(self, logps_BV: Tensor, states: Sequence[int]) -> Tensor:
        """`logps_BV` with −inf where a row inside a block may not go; renormalising is left to the sampler."""
        logps_BV = logps_BV.clone()
        for state in set(states) - {0}:
            rows = [i for i, other in enumerate(states) if other == state]
            logps_BV[rows] = logps_BV[rows].masked_fill(self._forbidden(state, logps_BV), float("-inf"))
        return logps_BV

    def _forbidden(self, state: int, logps_BV: Tensor) -> Tensor:
        if state not in self._masks:
            forbidden_V = torch.ones(logps_BV.shape[-1], dtype=torch.bool, device=logps_BV.device)
            forbidden_V[list(self._edges[state])] = False
            self._masks[state] = forbidden_V
        return self._masks[state]


def _ids(renderer: Renderer, text: str) -> list[int]:
    """Token ids of text the assistant writes, without the end of turn."""
    ids = list(renderer.completion_ids(text))
    return ids[:-1] if ids[-1] == renderer.end_of_turn_id else ids
