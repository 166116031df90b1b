"""Trajectory → token ids and masks. Masks follow from which ids the policy sampled, never from decoded text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from tirkit.types import Trajectory

Kind = Literal["prompt", "trained", "masked"]


@dataclass(frozen=True)
class TokenRow:
    """A trajectory as ids; `tool_mask` and `old_logps` are as long as `completion_ids`.

    `tool_mask` is 1 on tokens the policy sampled, 0 on what was handed back or given to it. `old_logps` holds the
    sampling policy's log p, 0 where nothing was sampled or it is unknown. See `tirkit.types` for one spelled out.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    tool_mask: tuple[int, ...]
    old_logps: tuple[float, ...]


def token_row(trajectory: Trajectory) -> TokenRow:
    """The row of a trajectory whose ids are filled in. ValueError where they are not, or log-probs don't fit them."""
    if not trajectory.prompt_ids or any(bool(turn.text) and not turn.ids for turn in trajectory.turns):
        raise ValueError(f"trajectory of task {trajectory.task_id!r} has no token ids: fill them with render.encode")
    ids: list[int] = []
    mask: list[int] = []
    logps: list[float] = []
    for number, turn in enumerate(trajectory.turns):
        if turn.logps and len(turn.logps) != len(turn.ids):
            place = f"turn {number} of task {trajectory.task_id!r}"
            raise ValueError(f"{place}: {len(turn.logps)} log-probs for {len(turn.ids)} ids")
        ids += (*turn.ids, *turn.reply_ids)
        mask += (*(int(place >= turn.given) for place in range(len(turn.ids))), *(0 for _ in turn.reply_ids))
        logps += (*(turn.logps or (0.0 for _ in turn.ids)), *(0.0 for _ in turn.reply_ids))
    return TokenRow(trajectory.prompt_ids, tuple(ids), tuple(mask), tuple(logps))


def coloured(row: TokenRow, decode: Callable[[Sequence[int]], str]) -> list[tuple[str, Kind]]:
    """The row as runs of (text, kind), in order; `decode` turns ids into text."""
    pieces: list[tuple[str, Kind]] = [(decode(row.prompt_ids), "prompt")]
    for sampled, run in groupby(zip(row.completion_ids, row.tool_mask, strict=True), key=lambda pair: pair[1]):
        pieces.append((decode([id_ for id_, _ in run]), "trained" if sampled else "masked"))
    return pieces
