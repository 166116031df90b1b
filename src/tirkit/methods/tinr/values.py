"""Made-up arguments for a JSON Schema, and words to say them with. Deterministic in the generator given."""

import json
import random
from typing import Any

from pydantic import JsonValue

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeio"]
MAX_ITEMS = 20  # a schema may ask for millions: such a call teaches nothing
FORMATS = {
    "date": lambda r: f"{r.randint(1990, 2035)}-{r.randint(1, 12):02}-{r.randint(1, 28):02}",
    "time": lambda r: f"{r.randint(0, 23):02}:{r.randint(0, 59):02}:00",
    "date-time": lambda r: f"{FORMATS['date'](r)}T{FORMATS['time'](r)}Z",
    "email": lambda r: f"{random_word(r)}@{random_word(r)}.org",
    "uri": lambda r: f"https://{random_word(r)}.org/{random_word(r)}",
}


def random_arguments(parameters: dict[str, JsonValue], rng: random.Random) -> dict[str, JsonValue]:
    """Arguments for an object schema: all required ones, each of the others half of the time, in the schema's order.

    They are of the right type, and within enum, bounds and format; not every schema can be met, so validate them.
    """
    properties: Any = parameters.get("properties") or {}
    required: Any = parameters.get("required") or []
    chosen = [name for name in properties if name in required or rng.random() < 0.5]
    return {name: random_value(properties[name], rng) for name in chosen}


def random_value(schema: Any, rng: random.Random) -> JsonValue:
    """A value of the schema's type; a short string where it names none. Of a schema's examples, one half of the time:
    they are values that the tool knows, and the others must be copied, not known.
    """
    if not isinstance(schema, dict):
        return random_word(rng)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return rng.choice(schema["enum"])
    if isinstance(examples := schema.get("examples"), list) and examples and rng.random() < 0.5:
        return rng.choice(examples)
    for union in ("anyOf", "oneOf"):
        if schema.get(union):
            return random_value(rng.choice(schema[union]), rng)
    kind = schema.get("type", "string")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    if kind == "object":
        return random_arguments(schema, rng)
    if kind == "array":
        least = min(max(1, schema.get("minItems", 1)), MAX_ITEMS)
        return [random_value(schema.get("items"), rng) for _ in range(rng.randint(least, max(2, least)))]
    if kind in ("integer", "number"):
        return _number(schema, kind, rng)
    return {"boolean": rng.random() < 0.5, "null": None}.get(kind, _text(schema, rng))


def _number(schema: dict[str, Any], kind: str, rng: random.Random) -> int | float:
    """Small and large values alike; decimals with one or two places."""
    high = schema.get("maximum", schema.get("exclusiveMaximum", rng.choice((10, 100, 1000, 100_000))))
    low = schema.get("minimum", schema.get("exclusiveMinimum", min(0, high)))
    if kind == "integer":
        return rng.randint(int(low), max(int(low), int(high)))
    return round(rng.uniform(low, max(low, high)), rng.choice((1, 2)))


def _text(schema: dict[str, Any], rng: random.Random) -> str:
    if schema.get("format") in FORMATS:
        return FORMATS[schema["format"]](rng)
    return " ".join(random_word(rng) for _ in range(rng.choice((1, 1, 2))))


def random_word(rng: random.Random) -> str:
    """A fresh word from syllables, a few with digits: values must be copied, not known.

    >>> random_word(random.Random(0)) == random_word(random.Random(0))
    True
    """
    word = "".join(rng.choices(SYLLABLES, k=rng.randint(2, 4)))
    word = word.capitalize() if rng.random() < 0.5 else word
    return f"{word}{rng.randint(1, 99)}" if rng.random() < 0.15 else word


def say(arguments: dict[str, JsonValue], rng: random.Random) -> str:
    """The arguments in words, one style a sentence, in random order.

    >>> say({"days": 3}, random.Random(1))
    'days: 3'
    """
    style = rng.choice(("{} = {}", "{}: {}", "{} is {}", "{} {}", "the {} should be {}"))
    items = list(arguments.items())
    rng.shuffle(items)
    spoken = [style.format(name.replace("_", " "), _said(value)) for name, value in items]
    return rng.choice((", ", "; ", " and ")).join(spoken)


def _said(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
