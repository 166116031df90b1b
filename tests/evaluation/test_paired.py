"""Two arms on the same items."""

import pytest

from tirkit.evaluation.paired import compare, sign_test


def test_what_changed_side_is_named() -> None:
    # Shared and judged: a, b, c, d. The first is right on a, b, c, the second on c, d.
    first = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0, "e": None, "x": 1.0}
    second = {"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0, "e": 1.0}
    found = compare(first, second)
    assert found is not None
    assert (found.only_first, found.only_second) == (("a", "b"), ("d",))
    assert (found.first.mean, found.second.mean) == (0.75, 0.5)
    # Differences 1, 1, 0, -1: mean 1/4, variance (9 + 9 + 1 + 25) / 16 / 3 = 11/12, error sqrt(11/48).
    assert found.difference.mean == 0.25
    assert found.difference.stderr == pytest.approx((11 / 48) ** 0.5)
    assert found.difference.low < 0 < found.difference.high
    assert found.p_value == 1.0  # 2 * (1 + 3) / 8
    assert found.unpaired == 2  # x, and e, which the first leaves unjudged
    assert str(found) == "3 of 4 items changed side: 2 only the first has right, 1 only the second"
    assert compare(first, {"z": 1.0}) is None


def test_the_sign_test_is_exact() -> None:
    assert sign_test(0, 5) == 2 / 32
    assert sign_test(2, 6) == sign_test(6, 2) == 2 * (1 + 8 + 28) / 256
    assert sign_test(4, 4) == 1.0
    assert sign_test(0, 3000) == 0.0  # too small for a float, no overflow
