"""Refinement of RL data, by hand."""

import pytest

from tirkit.methods.autotool.refine import Round, detrended_variance, refine, round_of
from tirkit.types import RewardBreakdown, RewardTerm


def rounds(rewards: list[float], success: float = 0.5, spread: float = 1.0) -> list[Round]:
    return [Round(reward=reward, success=success, spread=spread) for reward in rewards]


def test_variance_around_a_line_by_hand() -> None:
    # a straight line, however steep, has none
    assert detrended_variance([0.1, 0.3, 0.5, 0.7]) == pytest.approx(0)
    # (0, 1, 0, 1): mean 0.5, slope (0.75 - 0.25 - 0.25 + 0.75) / 5 = 0.2 a round; line 0.2, 0.4, 0.6, 0.8
    # residuals -0.2, 0.6, -0.6, 0.2: squares 0.04 + 0.36 + 0.36 + 0.04 = 0.8, over n - 2 = 2
    assert detrended_variance([0.0, 1.0, 0.0, 1.0]) == pytest.approx(0.4)
    assert detrended_variance([0.0, 1.0]) == detrended_variance([3.0]) == 0


def test_the_steadiest_are_kept_until_a_third_of_the_pool_is_reached() -> None:
    history = {
        "noisy": rounds([-1, 1, -1, 1]),
        "learnt": rounds([-1, -0.5, 0, 0.5]),  # large variance, none around its line
        "steady": rounds([0.2, 0.1, 0.2, 0.1]),
        "wild": rounds([1, -1, -1, 1]),
        "same": rounds([0, 0, 0, 0], spread=0.0),  # every group alike: it never taught anything
        "flat": rounds([0, 0, 0, 0.5]),
    }
    found = {r.task_id: r for r in refine(history)}
    assert list(found) == list(history)
    assert {name: r.reason for name, r in found.items() if r.kept} == {"learnt": "kept", "steady": "kept"}  # 6 / 3 = 2
    assert found["same"].reason == "no spread"
    assert found["noisy"].reason == found["wild"].reason == found["flat"].reason == "variance"
    assert found["noisy"].variance == pytest.approx(1.6)  # twice (0, 1, 0, 1): four times its 0.4


def test_half_of_the_easy_and_of_the_hard_are_dropped_by_a_draw_of_their_own() -> None:
    history = {f"easy{i}": rounds([1, 1, 1], success=0.96) for i in range(200)}
    history |= {f"hard{i}": rounds([-1, -1, -1], success=0.04) for i in range(200)}
    history |= {f"edge{i}": rounds([0, 0.1, 0], success=(0.94, 0.06)[i % 2]) for i in range(800)}
    found = refine(history, fraction=0.5)
    kept = [r for r in found if r.kept]
    assert len(kept) == 600
    for kind in ("easy", "hard"):
        mine = [r for r in kept if r.reason == f"kept: {kind}"]
        assert 75 <= len(mine) <= 125  # 200 draws at 1/2: 100 ± 7
        assert all(r.task_id.startswith(kind) for r in mine)
    assert refine(history, fraction=0.5) == found
    # whoever else is in the pool, a task's draw is the same
    alone = {r.task_id for r in refine({k: v for k, v in history.items() if k < "hard"}, fraction=0.5) if r.kept}
    assert alone & {f"easy{i}" for i in range(200)} == {r.task_id for r in kept if r.task_id.startswith("easy")}
    assert {r.task_id for r in refine(history, fraction=0.5, seed=1) if r.kept} != {r.task_id for r in kept}


def test_the_extremes_never_fill_more_than_half() -> None:
    history = {f"easy{i}": rounds([1, 1, 1], success=1.0) for i in range(90)}
    history |= {f"mid{i}": rounds([0, 0.1, 0]) for i in range(30)}
    reasons = [r.reason for r in refine(history)]
    assert (reasons.count("kept: easy"), reasons.count("kept")) == (20, 20)  # a third of 120 is 40


def test_a_round_from_the_rewards_of_a_group() -> None:
    def reward(value: float, right: float) -> RewardBreakdown:
        return RewardBreakdown(
            terms=(RewardTerm(name="mode", value=value), RewardTerm(name="right", value=right, weight=0.0))
        )

    group = [reward(1.0, 1.0), reward(0.5, 1.0), reward(-0.5, 0.0), reward(-1.0, 0.0)]
    assert round_of(group) == Round(reward=0.0, success=0.5, spread=2.0)
    with pytest.raises(ValueError, match="'solved'"):
        round_of(group, right="solved")
    with pytest.raises(ValueError, match="no round"):
        refine({"t": []})
