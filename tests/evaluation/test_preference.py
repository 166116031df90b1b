import math

import pytest

from tirkit.evaluation.preference import pair_report, pair_table
from tirkit.methods.autotraj.pairs import Preference
from tirkit.types import StopReason, Trajectory, Turn


def pair(chosen_words: int, rejected_words: int) -> Preference:
    chosen, rejected = (
        Trajectory(task_id="t", prompt=(), turns=(Turn(text="w " * n),), stop=StopReason.ANSWERED)
        for n in (chosen_words, rejected_words)
    )
    return Preference(
        task_id="t",
        place=0,
        source="repair",
        by="x",
        case="wrong",
        changes=(),
        chosen=chosen,
        rejected=rejected,
        chosen_score=1,
        rejected_score=0,
    )


def test_report_by_hand() -> None:
    pairs = [pair(10, 20), pair(20, 10), pair(100, 95), pair(10, 10)]
    rewards = [(2.0, 0.0), (0.0, 2.0), (1.0, 0.5), (0.3, 0.3)]
    report = pair_report(pairs, rewards)
    means = [
        value and value.mean
        for value in (report.accuracy, report.length_matched, report.longer_chosen, report.shorter_wins)
    ]
    # all: 1, 0, 1, a tie; matched: the last two; longer chosen: the second and third; shorter wins: 1, 0, 0, a tie
    assert means == [2.5 / 4, 1.5 / 2, 1 / 2, 1.5 / 4]
    assert (report.chosen_words, report.rejected_words) == (140 / 4, 135 / 4)
    # confidences σ(2) = .881 (right, wrong), σ(.5) = .622 (right), .5 (a tie)
    low, middle, high = report.calibration
    assert (low.n, low.confidence, low.accuracy) == (1, 0.5, 0.5)
    assert middle.confidence == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert (high.low, high.n, high.accuracy) == (0.8, 2, 0.5)
    sigma2, sigma05 = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-0.5))
    assert report.calibration_error == pytest.approx((2 * (sigma2 - 0.5) + (1 - sigma05) + 0) / 4)
    assert len(pair_table(report).rows) == 4


def test_no_pairs_of_a_kind() -> None:
    report = pair_report([pair(10, 20)], [(1000.0, -1000.0)])
    assert report.length_matched is None
    assert report.longer_chosen is None
    assert report.calibration[0].confidence == 1.0
    assert pair_report([], []).accuracy is None
