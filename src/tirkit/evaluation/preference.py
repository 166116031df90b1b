"""How good a reward model is on pairs it never saw, and how much of that is length.

"Shorter wins" is built into the trajectory score, so a model may look good by counting words. Reported beside its
accuracy: that of the rule "the shorter one wins", its own on pairs of nearly equal length, and on those whose chosen
trajectory is the longer one.
"""

import math
from collections.abc import Sequence

from rich.table import Table

from tirkit.evaluation.metrics import Estimate, estimate
from tirkit.methods.autotraj.pairs import Preference
from tirkit.scoring.quality import count_words
from tirkit.types import Record

MATCHED = 0.1  # lengths differ by at most this share of the longer one
NUM_BINS = 5


class CalibrationBin(Record):
    """Pairs whose confidence σ(|r_c - r_r|) is in [low, high): mean confidence, accuracy, number."""

    low: float
    high: float
    confidence: float
    accuracy: float
    n: int


class PairReport(Record):
    """A reward model on held-out pairs; None where there are no such pairs. A tie counts half.

    `calibration_error`: mean |confidence - accuracy| over the bins, weighted by their numbers.
    """

    accuracy: Estimate | None
    length_matched: Estimate | None
    longer_chosen: Estimate | None
    shorter_wins: Estimate | None
    chosen_words: float
    rejected_words: float
    calibration: tuple[CalibrationBin, ...]
    calibration_error: float


def pair_report(pairs: Sequence[Preference], rewards: Sequence[tuple[float, float]]) -> PairReport:
    """pairs: the held-out ones. rewards: raw (chosen, rejected) of each."""
    words = [(count_words(pair.chosen), count_words(pair.rejected)) for pair in pairs]
    won = [_order(chosen - rejected) for chosen, rejected in rewards]
    matched = [abs(c - r) <= MATCHED * max(c, r) for c, r in words]
    bins = _calibration([chosen - rejected for chosen, rejected in rewards])
    return PairReport(
        accuracy=estimate(won),
        length_matched=estimate(w for w, m in zip(won, matched, strict=True) if m),
        longer_chosen=estimate(w for w, (c, r) in zip(won, words, strict=True) if c > r),
        shorter_wins=estimate(_order(rejected - chosen) for chosen, rejected in words),
        chosen_words=sum(c for c, _ in words) / max(1, len(words)),
        rejected_words=sum(r for _, r in words) / max(1, len(words)),
        calibration=bins,
        calibration_error=sum(b.n * abs(b.confidence - b.accuracy) for b in bins) / max(1, len(pairs)),
    )


def pair_table(report: PairReport) -> Table:
    """The report as a table."""
    table = Table(title="reward model on held-out pairs", title_justify="left")
    for head in ("", "accuracy, 95 % interval", "pairs"):
        table.add_column(head, justify="left" if not head else "right")
    rows = (
        ("all", report.accuracy),
        ("of nearly equal length", report.length_matched),
        ("the chosen one is longer", report.longer_chosen),
        ("rule: the shorter one wins", report.shorter_wins),
    )
    for name, value in rows:
        shown = ("–", "0") if value is None else (f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]", str(value.n))
        table.add_row(name, *shown)
    table.caption = (
        f"words: chosen {report.chosen_words:.0f}, rejected {report.rejected_words:.0f}; "
        f"calibration error {report.calibration_error:.3f}"
    )
    return table


def _order(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _calibration(margins: Sequence[float]) -> tuple[CalibrationBin, ...]:
    """Bins of equal width over the confidences in [0.5, 1] that hold any pair."""
    width = 0.5 / NUM_BINS
    members: dict[int, list[tuple[float, float]]] = {}
    for margin in margins:
        confidence = 1 / (1 + math.exp(-min(abs(margin), 700.0)))
        place = min(NUM_BINS - 1, int((confidence - 0.5) / width))
        members.setdefault(place, []).append((confidence, _order(margin)))
    return tuple(
        CalibrationBin(
            low=0.5 + place * width,
            high=0.5 + (place + 1) * width,
            confidence=sum(c for c, _ in pairs) / len(pairs),
            accuracy=sum(a for _, a in pairs) / len(pairs),
            n=len(pairs),
        )
        for place, pairs in sorted(members.items())
    )
