"""Values of the embedded world: made-up names, numbers and times, and how a sentence says them.

Every value belongs to one split by a hash of its text, so that nothing a test question mentions was ever seen in
training. Names are drawn fresh from syllables: a fixed list would be merged whole by the tokenizer, and a name outside
the list would then be copied wrongly.
"""

import hashlib
import random
from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T")
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

ONSETS = (*"bdfghjklmnprstvwz", "br", "dr", "kl", "st", "tr")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
CODAS = ("", "", "", "n", "r", "l", "s", "x", "m")
ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def stable_hash(*parts: object) -> int:
    """A 64-bit integer that depends on the text of `parts` alone (Python's own `hash` differs between processes).

    >>> stable_hash("a", 1) == stable_hash("a", 1) != stable_hash("a1")
    True
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_of(value: object) -> Split:
    """The split a value belongs to: 60 % train, 20 % validation, 20 % test."""
    return ("train", "train", "train", "validation", "test")[stable_hash("split", value) % 5]


def draw_in_split(draw: Callable[[], T], split: Split) -> T:
    """The first value of `draw` that belongs to the split."""
    while True:
        value = draw()
        if split_of(value) == split:
            return value


def draw_word(rng: random.Random, syllables: int) -> str:
    """A made-up lower-case word."""
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))


def draw_name(rng: random.Random, split: Split) -> str:
    """A made-up proper name of two or three syllables."""
    return draw_in_split(lambda: draw_word(rng, rng.choice((2, 2, 3))).capitalize(), split)


def draw_integer(rng: random.Random, low: int, high: int, split: Split) -> int:
    """An integer in [low, high]; one-digit numbers are too few to be split and belong to all."""
    while True:
        value = rng.randint(low, high)
        if value < 10 or split_of(value) == split:
            return value


def draw_number(rng: random.Random, split: Split) -> float:
    """A number with one decimal, never whole, so that its JSON form is what the sentence says."""
    return draw_in_split(lambda: rng.randint(0, 99) + rng.randint(1, 9) / 10, split)


def spell_integer(value: int) -> str:
    """An integer from 0 to 99 in words.

    >>> spell_integer(21), spell_integer(40), spell_integer(7)
    ('twenty-one', 'forty', 'seven')
    """
    if not 0 <= value <= 99:
        raise ValueError(f"only 0 to 99 have words here, got {value}")
    if value < len(ONES):
        return ONES[value]
    return TENS[value // 10] + (f"-{ONES[value % 10]}" if value % 10 else "")


def say_hour(hour: int) -> str:
    """An hour from 0 to 23 on the twelve-hour clock.

    >>> say_hour(15), say_hour(0), say_hour(12)
    ('3 pm', '12 am', '12 pm')
    """
    return f"{(hour - 1) % 12 + 1} {'am' if hour < 12 else 'pm'}"


def add_by_columns(a: int, b: int) -> str:
    """The column addition of two natural numbers, operands restated first, written as a chain of thought.

    >>> add_by_columns(347, 86)
    '347 + 86 : 7 + 6 = 13 ; 4 + 8 + 1 = 13 ; 3 + 0 + 1 = 4 ; 433'
    """
    steps: list[str] = []
    carry = 0
    for place in range(max(len(str(a)), len(str(b)))):
        digits = [a // 10**place % 10, b // 10**place % 10] + [carry] * (carry > 0)
        steps.append(f"{' + '.join(map(str, digits))} = {sum(digits)}")
        carry = sum(digits) // 10
    return f"{a} + {b} : {' ; '.join(steps)} ; {a + b}"
