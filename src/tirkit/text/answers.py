"""Final answers: find one in a text, bring it into a form in which equal answers are equal strings."""

import re

from tirkit.text.control import ANSWER_CLOSE, ANSWER_OPEN

_BOXED = "\\boxed{"
# A number keeps its sign and its separators ("-3.5", "1,234"), a word is a run of letters and digits.
_PIECE = re.compile(r"(?<!\w)[-+]?\d+(?:[.,]\d+)*|(?<![\w.])[-+]?\.\d+|[^\W_]+")
_ARTICLES = {"a", "an", "the"}
_SIGNS = "-+*/^<>="
_TOKEN = re.compile(rf"[^\W_]+|[{re.escape(_SIGNS)}]+|[^\s]")


def extract_answer(text: str) -> str:
    r"""The answer in `text`: its last `<answer>` block, or all of it; of that the last `\boxed{}`, if there is one.

    >>> extract_answer("Adding up: <answer>5</answer>"), extract_answer(r"so \boxed{\frac{1}{2}}."), extract_answer("5")
    ('5', '\\frac{1}{2}', '5')
    """
    start, end = text.rfind(ANSWER_OPEN), text.rfind(ANSWER_CLOSE)
    return unbox(text[start + len(ANSWER_OPEN) : end] if 0 <= start < end else text)


def unbox(text: str) -> str:
    r"""What the last `\boxed{}` holds, its braces balanced; all of `text` where there is none.

    >>> unbox(r"\boxed{1}, no: \boxed{ \frac{1}{2} }"), unbox(r"\boxed{}"), unbox(r"\boxed{1")
    ('\\frac{1}{2}', '', '\\boxed{1')
    """
    boxed = _last_boxed(text)
    return (text if boxed is None else boxed).strip()


def normalise_answer(text: str) -> str:
    """Lower case, without articles, punctuation and superfluous white space (SQuAD's rule), numbers kept whole.

    >>> normalise_answer("The Hague."), normalise_answer("-3.5 °C"), normalise_answer("+")
    ('hague', '-3.5 c', '+')
    """
    pieces = answer_words(text)
    return " ".join(pieces) or text.strip().lower()


def answer_words(text: str) -> list[str]:
    """The words and numbers that count in an answer, lower case, in order."""
    return [piece for piece in _PIECE.findall(text.lower()) if piece not in _ARTICLES]


def answer_operators(text: str) -> list[str]:
    """The signs that make another answer of the same words, in order: those between numbers or single letters.

    "+" needs only what it follows, "<" and ">" what they precede; a hyphen between words, a bullet and Markdown's stars
    say nothing.

    >>> answer_operators("1/2"), answer_operators("x - 1"), answer_operators("C++"), answer_operators("<5")
    (['/'], ['-'], ['++'], ['<'])
    >>> answer_operators("Spider-Man"), answer_operators("- **5**"), answer_operators("-3.5")
    ([], [], [])
    """
    tokens = ["", *_TOKEN.findall(text), ""]
    found: list[str] = []
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        left, right = _is_operand(before), _is_operand(after)
        if token[0] in _SIGNS and (left if token[0] == "+" else right if token[0] in "<>" else left and right):
            found.append(token)
    return found


def _is_operand(token: str) -> bool:
    return token.isdigit() or (len(token) == 1 and token.isalpha())


def _last_boxed(text: str) -> str | None:
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    depth = 1
    for at in range(start + len(_BOXED), len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + len(_BOXED) : at]
    return None
