"""The warning of mode collapse."""

import pytest

from tirkit.methods.autotool.diagnose import ModeProbe, collapse_warning


def history(rates: list[float], accuracies: list[float], n: int = 64, short: float | None = None) -> list[ModeProbe]:
    return [ModeProbe(10 * i, q, p, n, short) for i, (q, p) in enumerate(zip(rates, accuracies, strict=True))]


def test_it_warns_early_says_what_it_saw_and_names_the_cures() -> None:
    """The collapse that a study of plain GRPO found: 0.5 → 0.1 within 50 steps while thinking got better."""
    rates, accuracies = [0.5, 0.5, 0.4, 0.3, 0.2, 0.1], [0.7, 0.72, 0.75, 0.8, 0.85, 0.9]
    warned = [collapse_warning(history(rates[:n], accuracies[:n])) for n in range(7)]
    # windows of two: 0.5, 0.45, 0.35: with the fourth probe it has fallen by 30 %
    assert [text is not None for text in warned] == [False, False, False, False, True, True, True]
    assert warned[4] is not None
    for part in ("step 30", "since step 10", "0.50 → 0.35", "rose 0.71 → 0.78", "128 rollouts"):
        assert part in warned[4]
    for setting in ("rl.std_normalised", "rl.entropy", "rl.guard"):
        assert setting in warned[4]


@pytest.mark.parametrize(
    ("rates", "accuracies", "short", "why"),
    [
        ([0.5, 0.5, 0.5, 0.45], [0.7, 0.7, 0.8, 0.9], None, "it still thinks"),
        ([0.1, 0.1, 0.5, 0.6], [0.7, 0.7, 0.8, 0.9], None, "it thinks more and more"),
        ([0.5, 0.5, 0.2, 0.1], [0.9, 0.9, 0.5, 0.4], None, "thinking no longer works"),
        ([0.5, 0.5, 0.2, 0.1], [0.9, 0.9, 0.9, 0.9], 0.8, "it does as well without: 0.9 < 2 * 0.8 - 0.5"),
    ],
)
def test_it_is_silent_where(rates: list[float], accuracies: list[float], short: float | None, why: str) -> None:
    assert collapse_warning(history(rates, accuracies, short=short)) is None, why


def test_a_few_rollouts_less_right_are_no_reason_to_be_silent() -> None:
    # 6 of 8 after 7 of 8, twice: a standard error is about 0.14
    rates, accuracies = [0.5, 0.5, 0.1, 0.1], [0.875, 0.875, 0.75, 0.75]
    warning = collapse_warning(history(rates, accuracies, n=8))
    assert warning is not None
    assert "stayed 0.88 → 0.75" in warning
    assert collapse_warning(history(rates, accuracies, n=1000)) is None
    # thinking that pays by the table: 0.75 > 2 * 0.6 - 0.5
    assert collapse_warning(history(rates, accuracies, n=8, short=0.6)) is not None
