import threading

import pytest

from tirkit.scoring.match import maths_equal
from tirkit.scoring.maths import expressions_equal

pytest.importorskip("math_verify", reason="comparing mathematical answers needs math-verify")


@pytest.mark.parametrize(
    ("gold", "predicted", "equal"),
    [
        ("1/2", "3/2", False),
        ("-3", "3", False),
        (r"\frac{1}{2}", "0.5", True),
        ("1/2", r"\boxed{\frac12}", True),
        ("x^2 + 2x + 1", "(x+1)^2", True),
        ("x + 1", "x - 1", False),  # the same words
        (r"\sqrt{2}", r"\sqrt{3}", False),
        ("(1, 2)", "(2, 1)", False),
        ("10", r"10 \text{ cm}", True),
        ("5", "4 5 6", False),
        ("5", "5, 6, 7", False),
        ("5", "5 or 6", False),
        ("15", "4 5 6", False),  # math_verify alone would add them up
        ("5", "What is the answer?", False),
        ("5", "5} or \\boxed{6", False),
        ("5", "", False),
        ("5", r"\boxed{}", False),
        ("", "", False),
        ("1,234", "1234.0", True),
    ],
)
def test_maths(gold: str, predicted: str, equal: bool) -> None:
    assert maths_equal(gold, predicted) is equal


def test_from_threads_and_never_for_ever() -> None:
    # A tower of powers: sympy would take for ever.
    pairs = [("x+1", "1+x"), ("7", "9^{9^{9^{9^{9}}}}+x!"), ("x/2", r"\frac{x}{2}")]
    found: dict[int, bool] = {}
    threads = [
        threading.Thread(target=lambda i=i, pair=pair: found.update({i: expressions_equal(*pair)}))
        for i, pair in enumerate(pairs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: True, 1: False, 2: True}
