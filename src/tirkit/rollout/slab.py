"""The key-value cache of the decode loop: a slab of rows a layer.

The key of a row's token at position p stands at place p of that row, so rows of any lengths stand side by side without
padding on their left, grow in place, and may join and leave at any time. What a query at position q may see is what
stands at places up to q; beyond a row's end there are leftovers, which nothing sees before they
are written over; they must be finite.

Letters: B rows of a forward, T its new tokens a row, S places seen, R rows of the slab, H heads, D width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class Slab(Cache):
    """Given to a model as its cache; `aim` says before each forward which rows it is about."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._num_rows, self._length = 0, 0
        self._keys: list[Tensor] = []  # (R, H, length, D) each; made in the first forward, which knows their shapes
        self._values: list[Tensor] = []

    def reserve(self, num_rows: int, length: int) -> None:
        """Make room for rows up to `num_rows` and places up to `length`; a little more, so that it is done seldom."""
        if num_rows <= self._num_rows and length <= self._length:
            return
        self._num_rows = max(self._num_rows, num_rows)
        if length > self._length:
            self._length = -(-(length + length // 4) // 64) * 64
        for tensors in (self._keys, self._values):
            for i, old in enumerate(tensors):
                R, H, S, D = old.shape
                tensors[i] = old.new_zeros(self._num_rows, H, self._length, D)
                tensors[i][:R, :, :S] = old

    def aim(self, rows: Sequence[int], positions_BT: Tensor, num_seen: int) -> None:
        """The next forward writes tokens of `rows` at `positions_BT` and sees the first `num_seen` places."""
        self._rows_B1 = torch.tensor(rows, device=positions_BT.device)[:, None]
        # Rows that stand side by side are read where they are; others are gathered.
        together = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        self._read = slice(rows[0], rows[0] + len(rows)) if together else self._rows_B1[:, 0]
        self._positions_BT, self._num_seen = positions_BT, num_seen

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Called by the model's attention: takes (B, H, T, D) each, gives (B, H, S, D) each."""
        return (
            self._write(self._keys, key_states, layer_idx),
            self._write(self._values, value_states, layer_idx),
        )

    def _write(self, tensors: list[Tensor], new_BHTD: Tensor, layer: int) -> Tensor:
        if layer == len(tensors):
            _, H, _, D = new_BHTD.shape
            tensors.append(new_BHTD.new_zeros(self._num_rows, H, self._length, D))
        tensors[layer][self._rows_B1, :, self._positions_BT] = new_BHTD.transpose(1, 2)
        return tensors[layer][self._read, :, : self._num_seen]

    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` places of row `source` to row `target`."""
        for tensor in (*self._keys, *self._values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def swap(self, rows: Sequence[int], others: Sequence[int], length: int) -> None:
        """Exchange `rows` with `others`, one by one, as far as `length` places."""
        for tensor in (*self._keys, *self._values):
            tensor[[*rows, *others], :, :length] = tensor[[*others, *rows], :, :length]
