"""Continuous batching for a transformers model: prompts read once, the cache kept across turns, rows come and go.

A row is a turn being written. The slab keeps the keys and values of its conversation; `_Slot.ids` says of which tokens.
A row that lacks all but the last token of its request is read first (a prefill: only the tokens that its slot lacks,
and not even those that another slot has or another row is about to read). Then it is decoded: each step reads its last
token and samples the next. So copies of a prompt share one prefill, documents that stand at the head of different
prompts are read once, and after a tool result only the last token and the result are read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tirkit.rollout.policy import GenerateRequest, Generation, Session
from tirkit.rollout.sampling import Row, Sampler
from tirkit.rollout.slab import Slab

PIECE = 4096  # positions computed in one prefill: bounds its memory, and how long decoding rows wait for it


@dataclass
class Counts:
    """What the model was given to compute, padding left out; `prefilled` + `decoded` tokens went through `forwards`."""

    prefilled: int = 0
    decoded: int = 0
    forwards: int = 0


@dataclass(eq=False)
class _Slot:
    """Row `place` of the slab, which holds keys and values of `ids`."""

    place: int
    ids: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Seat:
    """A row in its slot. `fresh`: the slot was another conversation's."""

    row: Row
    slot: _Slot
    fresh: bool

    @property
    def lacking(self) -> tuple[int, ...]:
        """What must be read before the row can be decoded."""
        return self.row.request.ids[len(self.slot.ids) : -1]

    @property
    def last(self) -> int:
        """The token that the next step reads."""
        return self.row.ids[-1] if self.row.ids else self.row.request.ids[-1]


class BatchingSession(Session):
    """Up to `max_batch` conversations have a slot each; the rest wait, in the order they came.

    A conversation whose turn is over keeps its slot until it is forgotten, or until a waiting row finds no other; then
    it must be read again when it goes on. Nothing here is random or timed: equal calls in equal order give equal bits.
    """

    def __init__(self, model: PreTrainedModel, sampler: Sampler, max_batch: int, counts: Counts):
        self._model, self._sampler, self._max_batch, self._counts = model, sampler, max_batch, counts
        self._slab = Slab()
        self._slots: list[_Slot] = []  # by place
        self._free: list[_Slot] = []
        self._parked: dict[int, _Slot] = {}  # those between two turns, by key, the latest last
        self._waiting: list[Row] = []
        self._reading: list[_Seat] = []
        self._decoding: list[_Seat] = []
        self._waited = 0

    def submit(self, key: int, request: GenerateRequest) -> None:
        """See Session."""
        self._waiting.append(self._sampler.row(key, request))

    def forget(self, key: int) -> None:
        """See Session. What stands in the slot still serves as a prefix."""
        if slot := self._parked.pop(key, None):
            self._free.append(slot)
        self._waiting = [row for row in self._waiting if row.key != key]
        self._free += [seat.slot for seat in (*self._reading, *self._decoding) if seat.row.key == key]
        self._reading = [seat for seat in self._reading if seat.row.key != key]
        self._decoding = [seat for seat in self._decoding if seat.row.key != key]

    def written(self) -> list[tuple[int, list[int]]]:
        """See Session."""
        return [(seat.row.key, seat.row.ids) for seat in self._decoding]

    def __enter__(self) -> "BatchingSession":
        self._was_training = self._model.training
        self._model.eval()
        return self

    def __exit__(self, *_: object) -> None:
        self._model.train(self._was_training)

    @torch.no_grad()
    def advance(self) -> list[tuple[int, Generation]]:
        """One forward at most: rows that joined are read, or every decoding row gets a token.

        Reading costs each decoding row one forward, waiting costs each waiting row one: rows join as soon as the second
        outweighs the first.
        """
        if self._waiting and self._waited >= len(self._decoding):
            self._seat()
        if self._reading:
            self._read()
            return []
        self._waited += len(self._waiting)
        return self._step() if self._decoding else []

    def _seat(self) -> None:
        """Give slots to as many waiting rows as there are."""
        self._waited, rest = 0, []
        for row in self._waiting:
            slot = self._parked.pop(row.key, None)
            fresh = slot is None
            if slot is None and (slot := self._take_slot()) is None:
                rest.append(row)
                continue
            # The last token is never taken from the slot: the step that reads it gives the first logits.
            del slot.ids[common(slot.ids, row.request.ids[:-1]) :]
            self._reading.append(_Seat(row, slot, fresh))
        self._waiting = rest
        self._slab.reserve(len(self._slots), 0)

    def _take_slot(self) -> _Slot | None:
        """A new slot, a free one, or that of the conversation parked last, which will be the last to need it again."""
        if len(self._slots) < self._max_batch:
            self._slots.append(_Slot(len(self._slots)))
            return self._slots[-1]
        if self._free:
            return self._free.pop(0)
        return self._parked.popitem()[1] if self._parked else None

    def _read(self) -> None:
        """One piece of prefill; rows that lack nothing any more are decoded from now on."""
        leaders: dict[tuple[int, ...], _Seat] = {}
        sources: dict[tuple[int, ...], _Slot] = {}
        for seat in self._reading:
            if not (seat.fresh and self._follows(seat, leaders)):
                if seat.fresh:
                    self._adopt(seat, sources)
                if seat.lacking:
                    leaders[seat.row.request.ids] = seat
        if leaders:
            self._prefill(like_lengths(leaders.values()))
        done = [seat for seat in self._reading if not seat.fresh and not seat.lacking]
        self._decoding += done
        self._reading = [seat for seat in self._reading if seat.fresh or seat.lacking]

    def _follows(self, seat: _Seat, leaders: dict[tuple[int, ...], _Seat]) -> bool:
        """Whether over half of what the row lacks is about to be read for another: then it waits and copies that."""
        ids = seat.row.request.ids
        if ids in leaders:
            return True
        gain = max((common(ids, other) for other in leaders), default=0) - len(seat.slot.ids)
        return 2 * gain > len(seat.lacking)

    def _adopt(self, seat: _Seat, sources: dict[tuple[int, ...], _Slot]) -> None:
        """Copy the longest prefix that any slot has of the row's ids; `sources` remembers which one, for its copies."""
        seat.fresh = False
        ids = seat.row.request.ids
        if ids not in sources:
            sources[ids] = max(self._slots, key=lambda slot: common(slot.ids, ids))
        source = sources[ids]
        if (shared := common(source.ids, ids[:-1])) > len(seat.slot.ids):
            self._slab.copy(source.place, seat.slot.place, shared)
            seat.slot.ids = source.ids[:shared]

    def _prefill(self, seats: Sequence[_Seat]) -> None:
        """Read what the rows lack, PIECE positions at most."""
        width = min(max(len(seat.lacking) for seat in seats), PIECE // len(seats))
        ids = [seat.lacking[:width] for seat in seats]
        # What pads a row on its right is written beyond its end.
        self._forward(seats, [[*row, *[self._sampler.renderer.pad_id] * (width - len(row))] for row in ids])
        self._counts.forwards += 1
        for seat, row in zip(seats, ids, strict=True):
            seat.slot.ids += row
            self._counts.prefilled += len(row)

    def _step(self) -> list[tuple[int, Generation]]:
        """One token for every decoding row; the turns that end with it."""
        self._counts.forwards += 1
        self._counts.decoded += len(self._decoding)
        logits_BV = self._logits()
        self._sampler.extend([seat.row for seat in self._decoding], logits_BV)
        done = [seat for seat in self._decoding if seat.row.finish]
        self._decoding = [seat for seat in self._decoding if not seat.row.finish]
        self._parked |= {seat.row.key: seat.slot for seat in done}
        return [(seat.row.key, self._sampler.generation(seat.row)) for seat in done]

    def _logits(self) -> Tensor:
        """Logits (B, V) of every decoding row's next token."""
        self._to_the_front()
        logits_BV = self._forward(self._decoding, [[seat.last] for seat in self._decoding])
        for seat in self._decoding:
            seat.slot.ids.append(seat.last)
        return logits_BV

    def _to_the_front(self) -> None:
        """Let the decoding rows have the first places of the slab, in order: then they are read where they are."""
        size = len(self._decoding)
        late = [seat.slot for seat in self._decoding if seat.slot.place >= size]
        if late:
            taken = {seat.slot.place for seat in self._decoding}
            early = [slot for slot in self._slots[:size] if slot.place not in taken]
            longest = max(len(slot.ids) for slot in (*late, *early))
            self._slab.swap([slot.place for slot in late], [slot.place for slot in early], longest)
            for one, other in zip(late, early, strict=True):
                one.place, other.place = other.place, one.place
            self._slots.sort(key=lambda slot: slot.place)
        self._decoding.sort(key=lambda seat: seat.slot.place)

    def _forward(self, seats: Sequence[_Seat], ids_BT: list[list[int]]) -> Tensor:
        """Logits (B, V) after the last of `ids_BT`, which follow what stands in the rows' slots."""
        device, width = self._model.device, len(ids_BT[0])
        starts_B = torch.tensor([len(seat.slot.ids) for seat in seats], device=device)
        positions_BT = starts_B[:, None] + torch.arange(width, device=device)
        num_seen = max(len(seat.slot.ids) for seat in seats) + width
        self._slab.reserve(len(self._slots), num_seen)
        self._slab.aim([seat.slot.place for seat in seats], positions_BT, num_seen)
        return self._model(
            input_ids=torch.tensor(ids_BT, device=device),
            attention_mask=masks(self._model, positions_BT, num_seen),
            position_ids=positions_BT,
            past_key_values=self._slab,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common prefix.

    >>> common([1, 2, 3], (1, 2, 4, 5))
    2
    """
    size = min(len(one), len(other))
    one, other = list(one[:size]), list(other[:size])
    if one == other:  # the usual case, and comparing lists is a hundred times faster than looking at each token
        return size
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)


def like_lengths(seats: Iterable[_Seat]) -> list[_Seat]:
    """Those to read together: the longest, and with it what is at least half as long, as far as a piece goes."""
    ordered = sorted(seats, key=lambda seat: -len(seat.lacking))
    width = len(ordered[0].lacking)
    return [seat for seat in ordered if 2 * len(seat.lacking) >= width][: max(1, PIECE // width)]


def masks(model: PreTrainedModel, positions_BT: Tensor, num_seen: int) -> Tensor | dict[str, Tensor]:
    """Added to attention scores (B, 1, T, S): 0 on what a position sees; by kind of layer where kinds differ."""
    config = model.config.get_text_config()
    ages_BTS = positions_BT[..., None] - torch.arange(num_seen, device=positions_BT.device)
    hidden = torch.finfo(model.dtype).min

    def mask(seen_BTS: Tensor) -> Tensor:
        return torch.zeros_like(seen_BTS, dtype=model.dtype).masked_fill_(~seen_BTS, hidden)[:, None]

    full = ages_BTS >= 0
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    by_kind = {
        kind: mask(full if kind == "full_attention" else full & (ages_BTS < window))  # pyright: ignore[reportOperatorIssue]
        for kind in kinds
    }
    return by_kind if len(by_kind) > 1 else by_kind.popitem()[1]


def why_not_batching(model: PreTrainedModel) -> str | None:
    """Why this model cannot be decoded here, None where it can."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    attention = config._attn_implementation or ""
    if kinds:
        return f"it has {', '.join(sorted(kinds))} layers"
    if getattr(model, "_is_stateful", False) or not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not use the attention interface"
    if attention.startswith(("flash", "flex", "paged")):
        return f"{attention} takes no mask of our own; load the model with attn_implementation='sdpa'"
    return None
