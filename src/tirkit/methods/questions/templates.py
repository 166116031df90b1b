"""Questions from documents alone: words of the description, and made-up values, which the question spells out.

    easy    a piece of the description or its first clause, as an order; each value with the name of its parameter
    hard    a remark; then few words, one of which tells the tool from the others; values that need no name have none

They are no match for a teacher's: what is asked is put in the documents' own words. Good enough to begin with, and for
a model that reads well already.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from tirkit.methods.questions.slots import Draft, Slot
from tirkit.methods.tinr.corpus import keywords, split_name
from tirkit.methods.tinr.values import random_arguments, random_word, say
from tirkit.rollout.loop import stable_seed
from tirkit.text.schema import validate_arguments
from tirkit.types import ToolCall, ToolSchema

TRIES = 8
MAX_SAID = 9  # words of a description in a row: more, and questions about one tool were near duplicates
MAX_TOPIC = 3  # words that say what a short question is about
OPENINGS = ("", "I need this: ", "Please do this for me. ", "Can you help? ", "Here is what I want: ", "Now: ")
JOINTS = (" Then: ", " Also: ", " And besides that: ", " Another thing: ", " And ", " ")
ORDERS = (
    *("{order} {values}", "Please {order} {values}", "Can you {order} {values}", "Could you {order} {values}"),
    *("I want you to {order} {values}", "{values}: {order}", "Now {order} {values}"),
)
ASKS = (
    *("What is the {topic} {values}", "How is the {topic} {values}", "How much {topic} {values}", "{topic} {values}"),
    *("When is the {topic} {values}", "Where is the {topic} {values}", "Which is the {topic} {values}"),
    *("What about the {topic} {values}", "How {topic} is it {values}", "Is there {topic} {values}"),
    *("Will there be {topic} {values}", "Do you know the {topic} {values}", "Tell me the {topic} {values}"),
    *("Can you tell me the {topic} {values}", "I need the {topic} {values}", "I want to know the {topic} {values}"),
    *("{values}, what is the {topic}", "{values}: {topic}", "About {values}: how is the {topic}"),
)
ENDS = (".", "?", "!", ", please.", " now.")
NAMED = ("{name} {value}", "with {name} {value}", "for {name} {value}", "at {name} {value}", "with {value} {name}")
BARE = ("{value}", "for {value}", "in {value}", "on {value}", "at {value}", "of {value}")
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
Telling = Mapping[str, frozenset[str]]


def telling_words(tools: Sequence[ToolSchema]) -> dict[str, frozenset[str]]:
    """By tool, the words of its name and description that the fewest other tools have."""
    words = {tool.name: frozenset(_keywords(tool, random.Random(0))) for tool in tools}
    having = Counter(word for found in words.values() for word in found)
    fewest = {name: min((having[word] for word in found), default=0) for name, found in words.items()}
    return {name: frozenset(w for w in found if having[w] == fewest[name]) for name, found in words.items()}


def drafts(slot: Slot, seed: int, batch: int, telling: Telling | None = None) -> Iterator[Draft]:
    """Up to `TRIES` different ways to ask what the slot wants; none where no made-up arguments fit a schema.

    telling: see `telling_words`; short questions hold one of them.
    """
    for i in range(TRIES):
        rng = random.Random(stable_seed(seed, "draft", batch, slot.number, i))
        draft = _asking(slot, rng, telling or {}) if slot.tools else _talking(slot, rng)
        if draft is not None:
            yield draft


def _talking(slot: Slot, rng: random.Random) -> Draft:
    """A remark and its reply; a hard one begins with another remark."""
    question, reply = rng.choice(SMALL_TALK)
    words = {"word": random_word(rng), "other": random_word(rng)}
    head = f"{_remark(rng)} " if slot.difficulty == "hard" else ""
    return Draft(head + question.format(**words), (), reply.format(**words))


def _asking(slot: Slot, rng: random.Random, telling: Telling) -> Draft | None:
    calls = tuple(_call(tool, rng) for tool in slot.tools)
    if any(validate_arguments(tool, call.arguments) for tool, call in zip(slot.tools, calls, strict=True)):
        return None
    hard = slot.difficulty == "hard"
    parts = [
        _hard(tool, call, rng, telling.get(tool.name, frozenset())) if hard else _easy(tool, call, rng)
        for tool, call in zip(slot.tools, calls, strict=True)
    ]
    head = f"{_remark(rng)} " if hard and rng.random() < 0.5 else ""
    return Draft(head + rng.choice(JOINTS).join(parts), calls, made_up=True)


def _call(tool: ToolSchema, rng: random.Random) -> ToolCall:
    return ToolCall(name=tool.name, arguments=random_arguments(tool.parameters, rng))


def _easy(tool: ToolSchema, call: ToolCall, rng: random.Random) -> str:
    """A piece of the description, then the arguments; or an order."""
    words = _description(tool)
    if rng.random() < 0.5:
        values = _values(tool, call, rng, named=True)
        return _sentence(rng.choice(ORDERS), rng, values, order=_order(" ".join(words)))
    start = rng.randrange(max(1, len(words) - MAX_SAID + 1))
    said = " ".join(words[start : start + rng.randint(6, MAX_SAID)])
    return rng.choice(OPENINGS) + (f"{said}: {say(call.arguments, rng)}." if call.arguments else f"{said}.")


def _hard(tool: ToolSchema, call: ToolCall, rng: random.Random, telling: frozenset[str]) -> str:
    """The arguments, then some keywords of the description; or a short question."""
    words = keywords(" ".join(_description(tool)), rng)[: rng.randint(3, 6)] or _description(tool)
    if rng.random() < 0.3:
        return f"{say(call.arguments, rng)}; {' '.join(words)}." if call.arguments else f"{' '.join(words)}."
    return _sentence(rng.choice(ASKS), rng, _values(tool, call, rng, named=False), topic=_topic(tool, rng, telling))


def _sentence(template: str, rng: random.Random, values: str, **words: str) -> str:
    """The template filled, with a capital and an end; without values, without what is between."""
    text = template.format(values=values, **words).strip(" ,:")
    return text[0].upper() + text[1:] + rng.choice(ENDS)


def _order(description: str) -> str:
    """The first clause of a description as an order.

    >>> _order("Looks up the price of a boat: in euro")
    'look up the price of a boat'
    """
    verb, _, rest = re.split(r"[,:;(]", description, maxsplit=1)[0].strip().partition(" ")
    verb = verb.lower()
    if re.search(r"(?:[sx]|ch|sh|o)es$", verb):
        verb = verb[:-2]
    elif verb.endswith("ies"):
        verb = f"{verb[:-3]}y"
    elif verb.endswith("s") and not verb.endswith("ss"):
        verb = verb[:-1]
    return f"{verb} {rest}".strip()


def _topic(tool: ToolSchema, rng: random.Random, telling: frozenset[str]) -> str:
    """A few keywords, in the order of the document or in any; one of them is a telling one."""
    found = list(dict.fromkeys(_keywords(tool, rng))) or _description(tool)
    first = next((word for word in found if word in telling), found[0])
    chosen = [first, *(word for word in found if word != first)][: rng.randint(1, MAX_TOPIC)]
    if rng.random() < 0.7:
        text = f"{' '.join(_description(tool))} {split_name(tool.name)}".lower()
        chosen.sort(key=text.find)
    return " ".join(chosen)


def _keywords(tool: ToolSchema, rng: random.Random) -> list[str]:
    """Of the description and the name, each without its first word: a verb, which says what is done, not with what."""
    said = [words[1:] or words for words in (_description(tool), split_name(tool.name).split())]
    return keywords(" ".join(said[0] + said[1]), rng)


def _values(tool: ToolSchema, call: ToolCall, rng: random.Random, named: bool) -> str:
    """The arguments in words, in any order, as in speech or as on a form."""
    if rng.random() < 0.3:
        return say(call.arguments, rng)
    properties: Any = tool.parameters.get("properties") or {}
    kinds = Counter(_kind(properties.get(name)) for name in properties)
    said: list[str] = []
    for name, value in rng.sample(list(call.arguments.items()), len(call.arguments)):
        bare = not named and not isinstance(value, bool | dict) and kinds[_kind(properties.get(name))] == 1
        template = rng.choice(BARE if bare and rng.random() < 0.8 else NAMED)
        said.append(template.format(name=name.replace("_", " "), value=_spoken(value, rng)))
    return rng.choice((" ", " ", ", ", " and ")).join(said)


def _kind(schema: Any) -> str:
    """What tells a parameter's values from others': their type, or the values there are."""
    if not isinstance(schema, dict):
        return ""
    return json.dumps(schema.get("enum") or schema.get("type") or schema.get("anyOf"), sort_keys=True)


def _spoken(value: JsonValue, rng: random.Random) -> str:
    """A value as it is said: a list of texts and numbers without brackets."""
    if isinstance(value, list) and value and all(isinstance(one, str | int | float) for one in value):
        said = [_spoken(one, rng) for one in value]
        return rng.choice((" and ", " or ", ", ")).join((", ".join(said[:-1]), said[-1])) if said[1:] else said[0]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _description(tool: ToolSchema) -> list[str]:
    """Words that say what the tool does."""
    return (tool.description.strip().rstrip(".") or split_name(tool.name)).split() or [tool.name]


def _remark(rng: random.Random) -> str:
    return rng.choice(REMARKS).format(word=random_word(rng), number=rng.randint(2, 99))
