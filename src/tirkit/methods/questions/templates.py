"""Questions from documents alone: words of the description, and made-up values, which the question spells out.

They are no match for a teacher's: what is asked is put in the documents' own words. Good enough to begin with, and for
a model that reads well already.
"""

import random
from collections.abc import Iterator

from tirkit.methods.questions.slots import Draft, Slot
from tirkit.methods.tinr.corpus import keywords, split_name
from tirkit.methods.tinr.values import random_arguments, random_word, say
from tirkit.rollout.loop import stable_seed
from tirkit.text.schema import validate_arguments
from tirkit.types import ToolCall, ToolSchema

TRIES = 8
MAX_SAID = 9  # words of a description in a row: more, and questions about one tool were near duplicates
OPENINGS = ("", "I need this: ", "Please do this for me. ", "Can you help? ", "Here is what I want: ", "Now: ")
JOINTS = (" Then: ", " Also: ", " And besides that: ", " Another thing: ")
REMARKS = (
    "My colleague {word} asked me for this.",
    "I have {number} minutes left.",
    "We spoke about {word} yesterday.",
    "This is for the report of {word}.",
    "{word} and I are not sure about this one.",
    "It is the task number {number} on my list.",
)
SMALL_TALK = (
    ("Hello, I am {word}.", "Hello {word}, what can I do for you?"),
    ("Please repeat this word: {word}", "{word}"),
    ("Thanks, that was all for {word}.", "You are welcome."),
    ("Write {word} and {other} in one line, the second one first.", "{other} {word}"),
    ("My dog is called {word}. What is my dog called?", "{word}"),
    ("Good morning from {word}!", "Good morning!"),
    ("I told {word} and {other} about you. Whom did I name first?", "{word}"),
    ("Don't do anything yet, I wait for {word}.", "Tell me when you are ready."),
)


def drafts(slot: Slot, seed: int, batch: int) -> Iterator[Draft]:
    """Up to `TRIES` different ways to ask what the slot wants; none where no made-up arguments fit a schema."""
    for i in range(TRIES):
        rng = random.Random(stable_seed(seed, "draft", batch, slot.number, i))
        draft = _asking(slot, rng) if slot.tools else _talking(slot, rng)
        if draft is not None:
            yield draft


def _talking(slot: Slot, rng: random.Random) -> Draft:
    """A remark and its reply; a hard one begins with another remark."""
    question, reply = rng.choice(SMALL_TALK)
    words = {"word": random_word(rng), "other": random_word(rng)}
    head = f"{_remark(rng)} " if slot.difficulty == "hard" else ""
    return Draft(head + question.format(**words), (), reply.format(**words))


def _asking(slot: Slot, rng: random.Random) -> Draft | None:
    calls = tuple(_call(tool, rng) for tool in slot.tools)
    if any(validate_arguments(tool, call.arguments) for tool, call in zip(slot.tools, calls, strict=True)):
        return None
    put = _hard if slot.difficulty == "hard" else _easy
    parts = [put(tool, call, rng) for tool, call in zip(slot.tools, calls, strict=True)]
    head = f"{_remark(rng)} " if slot.difficulty == "hard" else rng.choice(OPENINGS)
    return Draft(head + rng.choice(JOINTS).join(parts), calls, made_up=True)


def _call(tool: ToolSchema, rng: random.Random) -> ToolCall:
    return ToolCall(name=tool.name, arguments=random_arguments(tool.parameters, rng))


def _easy(tool: ToolSchema, call: ToolCall, rng: random.Random) -> str:
    """A piece of the description, then the arguments."""
    words = _description(tool)
    start = rng.randrange(max(1, len(words) - MAX_SAID + 1))
    said = " ".join(words[start : start + rng.randint(6, MAX_SAID)])
    return f"{said}: {say(call.arguments, rng)}." if call.arguments else f"{said}."


def _hard(tool: ToolSchema, call: ToolCall, rng: random.Random) -> str:
    """The arguments, then some keywords of the description."""
    words = keywords(" ".join(_description(tool)), rng)[: rng.randint(3, 6)] or _description(tool)
    return f"{say(call.arguments, rng)}; {' '.join(words)}." if call.arguments else f"{' '.join(words)}."


def _description(tool: ToolSchema) -> list[str]:
    """Words that say what the tool does."""
    return (tool.description.strip().rstrip(".") or split_name(tool.name)).split() or [tool.name]


def _remark(rng: random.Random) -> str:
    return rng.choice(REMARKS).format(word=random_word(rng), number=rng.randint(2, 99))
