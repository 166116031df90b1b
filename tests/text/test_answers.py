import pytest

from tirkit.text.answers import extract_answer, normalise_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer> no: <answer> 2 </answer>", "2"),
        (r"\boxed{1} and \boxed{\frac{a}{b}} done", r"\frac{a}{b}"),
        (r"\boxed{1", r"\boxed{1"),
        ("</answer>x<answer>", "</answer>x<answer>"),
        (" plain ", "plain"),
        ("", ""),
    ],
)
def test_extract(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Quick, brown fox!", "quick brown fox"),
        ("-5", "-5"),
        ("5", "5"),
        ("3.50 m", "3.50 m"),
        ("1,234", "1,234"),
        ("a", "a"),  # nothing would be left
        ("?!", "?!"),
        ("snake_case", "snake case"),
        ("2020-05-01", "2020 05 01"),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise_answer(text) == normal
