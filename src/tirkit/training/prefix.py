"""Layouts: rows of tokens → micro-batches, in which each distinct prefix stands once.

Letters: R rows as the model sees them, L their length, N scored tokens in one line.

*Plain*: every row on its own, padded. *Trees*: the rows are merged into trees of tokens, in which a prefix that several
rows share stands once, be it a prompt or the first turns of several rollouts; the trees stand one behind the other in a
single row (R = 1), so nothing is padded. Tokens stand in depth-first order and each knows where its subtree ends:

    token i sees token j   exactly if   j <= i < end[j]

A prompt of P tokens with G completions of C takes P + G * C tokens instead of G * (P + C). What a row is scored on
stays its own: several rows may score one target at one position, and where they part, one position predicts several.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

FORWARD_TOKENS = 128  # what one more forward costs beside its tokens, in tokens: measured on the embedded model


class Row(Protocol):
    """What is scored: `tool_mask` is 1 on completion tokens whose log-probability is wanted."""

    @property
    def prompt_ids(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def completion_ids(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def tool_mask(self) -> Sequence[int]: ...  # noqa: D102


AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True)
class ScoredBatch:
    """One micro-batch. `source_N` points into the R * L positions, at the one that predicts `target_N`."""

    ids_RL: Tensor
    source_N: Tensor
    target_N: Tensor
    row_N: Tensor  # which of the rows given each scored token belongs to
    positions_RL: Tensor | None = None  # trees only
    end_L: Tensor | None = None  # trees only: where the subtree of each token ends
    spared_N: Tensor | None = None  # where `spared_ids` take no part in the softmax
    spared_ids: Tensor | None = None

    def to(self, device: torch.device | str) -> "ScoredBatch":
        """The same on `device`."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})


def plain_batch(rows: Sequence[Row], pad_id: int) -> ScoredBatch:
    """Each row on its own: prompt, completion, padding on the right, where causal attention never looks."""
    length = max(map(_length, rows))
    ids = [[*row.prompt_ids, *row.completion_ids, *[pad_id] * (length - _length(row))] for row in rows]
    return _batch(rows, torch.tensor(ids), [np.arange(length) + r * length for r in range(len(rows))])


def tree_batch(rows: Sequence[Row]) -> ScoredBatch:
    """All rows merged. The last scored token of a row predicts nothing: it and what stands behind it are left out."""
    sequences = [_sequence(row) for row in rows]
    ids: list[int] = []
    positions: list[int] = []
    end_L = np.zeros(sum(map(len, sequences)), dtype=np.int64)
    paths = [path := np.zeros(0, dtype=np.int64)] * len(rows)  # where the tokens of each row stand
    for r, shared in _depth_first(sequences):
        start, length = len(ids), len(sequences[r])
        end_L[path[shared:]] = start
        paths[r] = path = np.concatenate([path[:shared], np.arange(start, start + length - shared)])
        ids += sequences[r][shared:]
        positions += range(shared, length)
    end_L[path] = len(ids)
    more = torch.tensor([positions]), torch.from_numpy(end_L[: len(ids)])
    return _batch(rows, torch.tensor([ids]), paths, *more)


def _batch(rows: Sequence[Row], ids_RL: Tensor, paths: Sequence[np.ndarray], *more: Tensor) -> ScoredBatch:
    """`paths` says where the tokens of each row stand."""
    sources, targets, counts = [], [], []
    for row, path in zip(rows, paths, strict=True):
        _check(row)
        on = np.flatnonzero(row.tool_mask)
        sources.append(path[len(row.prompt_ids) - 1 + on])
        targets.append(np.array(row.completion_ids, dtype=np.int64)[on])
        counts.append(len(on))
    source, target = (torch.from_numpy(np.concatenate(parts)) for parts in (sources, targets))
    return ScoredBatch(ids_RL, source, target, torch.arange(len(rows)).repeat_interleave(torch.tensor(counts)), *more)


def cut_trees(rows: Sequence[AnyRow], max_tokens: int) -> list[list[AnyRow]]:
    """Micro-batches of rows that share much, each of `max_tokens` merged tokens at most, or of one row."""
    sequences = [_sequence(row) for row in rows]
    order, shared = zip(*_depth_first(sequences), strict=True) if rows else ((), ())
    new = [len(sequences[r]) - s for r, s in zip(order, shared, strict=True)]
    before = [0, *accumulate(new)]
    if rows and before[-1] <= max_tokens:  # a cut computes shared tokens twice: none is better
        return [[rows[r] for r in order]]
    pieces = _cut(len(rows), max_tokens, lambda start, end: shared[start] + before[end] - before[start])
    return [[rows[r] for r in order[piece]] for piece in pieces]


def cut_rows(rows: Sequence[AnyRow], max_tokens: int) -> list[list[AnyRow]]:
    """Micro-batches of rows of similar length, each of `max_tokens` padded tokens at most, or of one row."""
    ordered = sorted(rows, key=_length, reverse=True)
    pieces = _cut(len(rows), max_tokens, lambda start, end: _length(ordered[start]) * (end - start))
    return [ordered[piece] for piece in pieces]


def _cut(number: int, max_tokens: int, tokens: Callable[[int, int], int]) -> list[slice]:
    """0 … `number` cut where it costs least, by dynamic programming; `tokens(start, end)` grows with its piece.

    >>> _cut(4, 1000, lambda start, end: [900, 12, 11, 10][start] * (end - start))  # rows of these lengths, padded
    [slice(0, 1, None), slice(1, 4, None)]
    """
    best = [(0, 0)]  # cost of the first n, and where their last piece starts
    for end in range(1, number + 1):
        costs = []
        for start in range(end - 1, -1, -1):
            piece = tokens(start, end)
            if piece > max_tokens and end - start > 1:
                break
            costs.append((best[start][0] + piece + FORWARD_TOKENS, start))
        best.append(min(costs))
    pieces, end = [], number
    while end:
        pieces.append(slice(best[end][1], end))
        end = best[end][1]
    return pieces[::-1]


def _depth_first(sequences: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """The order in which sequences stand in a tree, and how much of each is there already when it comes."""
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    arrays = [np.array(sequences[r]) for r in order]
    shared = [0, *(_common(a, b) for a, b in pairwise(arrays))]
    return list(zip(order, shared, strict=True))


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix."""
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length


def _sequence(row: Row) -> tuple[int, ...]:
    """The tokens of a row that have something to predict."""
    last = max((t for t, on in enumerate(row.tool_mask) if on), default=0)
    return (*row.prompt_ids, *row.completion_ids[:last])


def _length(row: Row) -> int:
    return len(row.prompt_ids) + len(row.completion_ids)


def _check(row: Row) -> None:
    if not row.prompt_ids:
        raise ValueError("a row has an empty prompt: its first token has nothing to be predicted from")
    if len(row.completion_ids) != len(row.tool_mask):
        raise ValueError(f"{len(row.completion_ids)} completion ids but a mask of {len(row.tool_mask)}")
