"""Means by name, gathered step by step and read with a log line."""

from collections import defaultdict
from collections.abc import Iterable

from accelerate.utils import gather_object
from torch import Tensor


class Tally:
    """Sums and counts by name. They may be tensors on any device, whose values are only asked for at the end."""

    def __init__(self) -> None:
        self._totals: dict[str, tuple[float | Tensor, float | Tensor]] = defaultdict(lambda: (0.0, 0.0))

    def add(self, name: str, total: float | Tensor, count: float | Tensor) -> None:
        """`count` more values that add up to `total`."""
        before = self._totals[name]
        self._totals[name] = before[0] + total, before[1] + count

    def extend(self, name: str, values: Iterable[float]) -> None:
        """More values."""
        values = tuple(values)
        self.add(name, sum(values), len(values))

    def means(self) -> dict[str, float]:
        """Means over all processes, those of nothing left out; empties the tally. A collective."""
        mine = {name: (float(total), float(count)) for name, (total, count) in self._totals.items()}
        self._totals.clear()
        merged: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        for part in gather_object([mine]):
            for name, (total, count) in part.items():
                merged[name] = merged[name][0] + total, merged[name][1] + count
        return {name: total / count for name, (total, count) in merged.items() if count}
