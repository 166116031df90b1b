"""Two models, the same questions: how far apart they are, and whether chance could have put them there. Pure."""

from collections.abc import Mapping
from math import comb

from tirkit.evaluation.metrics import Estimate, estimate, paired_difference
from tirkit.types import Record


class Paired(Record):
    """Two arms on the `difference.n` items that both were judged on. `difference` is first - second.

    only_first, only_second: the items that one does better. p_value: of the exact sign test on those, two-sided; where
    items are right or wrong it is McNemar's exact test. unpaired: items that only one of them was judged on.
    """

    first: Estimate
    second: Estimate
    difference: Estimate
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    p_value: float
    unpaired: int = 0

    def __str__(self) -> str:
        a, b = len(self.only_first), len(self.only_second)
        return f"{a + b} of {self.difference.n} items changed side: {a} only the first has right, {b} only the second"


def compare(first: Mapping[str, float | None], second: Mapping[str, float | None], seed: int = 0) -> Paired | None:
    """The two arms on the items that both judge; None where there is none."""
    a, b = ({name: value for name, value in arm.items() if value is not None} for arm in (first, second))
    shared = [name for name in a if name in b]
    difference = paired_difference({name: a[name] for name in shared}, {name: b[name] for name in shared}, seed)
    means = [estimate((arm[name] for name in shared), seed) for arm in (a, b)]
    if difference is None or means[0] is None or means[1] is None:
        return None
    better = tuple(name for name in shared if a[name] > b[name])
    worse = tuple(name for name in shared if a[name] < b[name])
    return Paired(
        first=means[0],
        second=means[1],
        difference=difference,
        only_first=better,
        only_second=worse,
        p_value=sign_test(len(better), len(worse)),
        unpaired=len(a.keys() ^ b.keys()),
    )


def sign_test(wins: int, losses: int) -> float:
    """Chance of a split at least so uneven of `wins` + `losses` fair coins, two-sided; 1 where there are none.

    >>> sign_test(1, 9), sign_test(0, 0)  # 2 * (1 + 10) / 2**10
    (0.021484375, 1.0)
    """
    n = wins + losses
    tail = sum(comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**n)
