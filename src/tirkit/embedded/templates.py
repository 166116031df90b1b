"""Sentences of the embedded world, put together from parts; which combinations a split may use is decided by hash.

So a test sentence is a combination that was never trained on, of parts that were: a model from scratch knows no word
it has not met, and a held-out word would test nothing but that.
"""

from collections.abc import Iterable, Sequence
from itertools import product

from tirkit.embedded.values import SPLITS, Split, split_of

OPENINGS = ("", "Please ", "Can you ", "Could you ", "Kindly ", "Now ", "I want you to ", "Next, ")
VERBS = ("find", "tell me", "give me", "look up", "check", "get me", "show me", "work out")
ENDS = (".", "?", ", please.", " now.", "!")
ASKING = ("What is ", "I need ", "I wonder about ", "I am looking for ", "How about ")
WHAT = (
    "the {aspect} of the {thing} {name}{rest}",
    "the {aspect} of {thing} {name}{rest}",
    "the {aspect} for the {thing} named {name}{rest}",
    "the {thing} {aspect} of {name}{rest}",
    "the {aspect} that the {thing} called {name} has{rest}",
    "for the {thing} {name} the {aspect}{rest}",
)
STATED = (
    "{name} is a {thing}",
    "There is a {thing}, {name}",
    "I have a {thing} named {name}",
    "Here is the {thing} {name}",
)
ITS = ("its {aspect}{rest}", "the {aspect} of it{rest}", "the {aspect}{rest}")
LINKS = (", then ", ". Then ", "; next, ", ", and after that ", ". With it, ")
SECOND = (
    "the {aspect2} of that {thing2}{rest2}",
    "the {aspect2} for this {thing2}{rest2}",
    "the {thing2} {aspect2} of it{rest2}",
    "for this {thing2} the {aspect2}{rest2}",
)
SUMS = (
    *("add {a} and {b}", "add {a} to {b}", "sum {a} and {b}", "compute {a} + {b}"),
    *("tell me {a} + {b}", "work out {a} plus {b}", "give me the sum of {a} and {b}", "find {a} + {b}"),
)
MOODS = ("", "Oh, ", "Well, ", "Ah, ", "And ", "So, ", "By the way, ", "All right, ")
REMARK_PARTS = {
    "Hello {name}!": (
        ("hello", "hi", "good morning", "hey", "hello there"),
        (", I am {name}", ", this is {name}", "; {name} here", ", my name is {name}", " from {name}"),
    ),
    "You are welcome, {name}!": (
        ("thank you", "thanks", "many thanks", "thanks a lot", "thank you so much"),
        (", says {name}", " from {name}", ", {name} here", "; {name} is happy", "; I am {name}"),
    ),
    "Goodbye {name}!": (
        ("goodbye", "bye", "see you", "farewell", "good night"),
        (" from {name}", ", says {name}", "; {name} is leaving", ", {name} must go", "; I was {name}"),
    ),
}


def _join(*parts: Sequence[str]) -> list[str]:
    return ["".join(pieces) for pieces in product(*parts)]


def _capital(text: str) -> str:
    return text if text.startswith("{") else text[0].upper() + text[1:]


def _split(sentences: Iterable[str]) -> dict[Split, tuple[str, ...]]:
    """Sentences by split, each in the one its hash says."""
    unique = list(dict.fromkeys(map(_capital, sentences)))
    return {split: tuple(text for text in unique if split_of(text) == split) for split in SPLITS}


_ORDERS = [f"{opening}{verb} " for opening, verb in product(OPENINGS, VERBS)]

# {aspect} and {thing} are synonyms, {name} is the subject, {rest} the phrases of the other parameters.
SINGLE = _split(
    [
        *_join(_ORDERS, WHAT, ENDS),
        *_join(ASKING, WHAT, ENDS),
        *_join(STATED, (". ", "; "), _ORDERS, ITS, ENDS),
        *_join(STATED, (". ", "; "), ASKING, ITS, ENDS),
    ]
)
TWO_STEP = _split(
    _join(_ORDERS[: 3 * len(VERBS)], WHAT, LINKS, ("", *(f"{verb} " for verb in VERBS)), SECOND, ENDS[:2])
)
ADD = _split(
    [
        *_join(OPENINGS, SUMS, ENDS),
        *_join(("What is ", "How much is ", "What makes "), ("{a} + {b}", "{a} plus {b}"), ENDS),
    ]
)
_REMARKS = {
    text: reply for reply, parts in REMARK_PARTS.items() for text in map(_capital, _join(MOODS, *parts, (".", "!")))
}
# A remark and its plain reply.
REMARKS: dict[Split, tuple[tuple[str, str], ...]] = {
    split: tuple((text, _REMARKS[text]) for text in texts) for split, texts in _split(_REMARKS).items()
}
