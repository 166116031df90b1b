"""Predictions near a right one, to hold two checkers of calls against each other."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tirkit.types import ToolCall

Calls = Sequence[ToolCall]


def mutants(
    calls: Calls, accepted: Sequence[Mapping[str, Sequence[Any]]], rng: random.Random, count: int
) -> list[tuple[str, list[ToolCall]]]:
    """`count` changed copies of `calls`, each with the name of what was changed.

    accepted: call by call the values that each parameter may have; one of them may take the place of a value.
    """
    chosen = [rng.choice(list(CALL_CHANGES)) if rng.random() < 0.25 else "value" for _ in range(count)]
    return [_mutant(kind, calls, accepted, rng) for kind in chosen]


def _mutant(
    kind: str, calls: Calls, accepted: Sequence[Mapping[str, Sequence[Any]]], rng: random.Random
) -> tuple[str, list[ToolCall]]:
    if kind != "value":
        return kind, CALL_CHANGES[kind](list(calls), rng)
    changed = [ToolCall(name=call.name, arguments=dict(call.arguments)) for call in calls]
    at = rng.randrange(len(changed))
    call = changed[at]
    if not call.arguments:
        return "extra parameter", CALL_CHANGES["extra parameter"](changed, rng)
    name = rng.choice(list(call.arguments))
    values = accepted[at].get(name, []) if at < len(accepted) else []
    kind, value = change(call.arguments[name], values, rng)
    changed[at] = ToolCall(name=call.name, arguments=call.arguments | {name: value})
    return kind, changed


def change(value: Any, accepted: Sequence[Any], rng: random.Random) -> tuple[str, Any]:
    """What kind of change it is, and another value for `value`."""
    if accepted and rng.random() < 0.15:
        return "another accepted value", rng.choice(list(accepted))
    if rng.random() < 0.1:
        return "another type", rng.choice([None, "", [], {}, 0, 1.5, True, "x", ["x"], {"x": 1}])
    for kind, options in CHANGES.items():
        if type(value) is kind:
            return rng.choice(options(value))
    if isinstance(value, list):
        return _change_list(value, rng)
    return _change_dict(value, rng) if isinstance(value, dict) and value else ("another type", "x")


CHANGES: dict[type, Callable[[Any], list[tuple[str, Any]]]] = {
    bool: lambda v: [("bool flipped", not v), ("bool as number", int(v)), ("bool as text", str(v))],
    int: lambda v: [("number off", v + 1), ("int as float", float(v)), ("number as text", str(v)), ("in a list", [v])],
    float: lambda v: [("number off", v + 0.5), ("float as int", int(v)), ("number as text", str(v))],
    str: lambda v: [
        ("case", v.upper()),
        ("punctuation", f"{v.replace(' ', '_')}."),
        ("quotes", v.replace("'", '"')),
        ("quoted", f'"{v}"'),
        ("text off", f"{v} more"),
        ("text cut", v[: len(v) // 2]),
        ("spaces", f"  {v} "),
        ("in a list", [v]),
    ],
}


def _change_list(value: list[Any], rng: random.Random) -> tuple[str, Any]:
    if value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        kind, item = change(value[at], [], rng)
        return f"item: {kind}", [*value[:at], item, *value[at + 1 :]]
    last = value[-1:]
    return rng.choice(
        [
            ("reversed", value[::-1]),
            ("item gone", value[:-1]),
            ("item twice", value + last),
            ("list as text", str(value)),
        ]
    )


def _change_dict(value: dict[str, Any], rng: random.Random) -> tuple[str, Any]:
    name = rng.choice(list(value))
    if rng.random() < 0.3:
        return "key gone", {key: item for key, item in value.items() if key != name}
    if rng.random() < 0.3:
        return "key extra", value | {"zz": 1}
    kind, item = change(value[name], [], rng)
    return f"key: {kind}", value | {name: item}


def _name_off(calls: list[ToolCall], rng: random.Random) -> list[ToolCall]:
    at = rng.randrange(len(calls))
    return [c.model_copy(update={"name": c.name + "_x"}) if i == at else c for i, c in enumerate(calls)]


def _parameter_gone(calls: list[ToolCall], rng: random.Random) -> list[ToolCall]:
    at = rng.randrange(len(calls))
    names = list(calls[at].arguments)
    gone = rng.choice(names) if names else ""
    kept = {name: value for name, value in calls[at].arguments.items() if name != gone}
    return [c.model_copy(update={"arguments": kept}) if i == at else c for i, c in enumerate(calls)]


def _parameter_extra(calls: list[ToolCall], rng: random.Random) -> list[ToolCall]:
    at = rng.randrange(len(calls))
    more = calls[at].arguments | {"zz_extra": rng.choice([1, "x", True])}
    return [c.model_copy(update={"arguments": more}) if i == at else c for i, c in enumerate(calls)]


CALL_CHANGES: dict[str, Callable[[list[ToolCall], random.Random], list[ToolCall]]] = {
    "wrong tool": _name_off,
    "parameter gone": _parameter_gone,
    "extra parameter": _parameter_extra,
    "call twice": lambda calls, rng: [*calls, rng.choice(calls)],
    "call gone": lambda calls, rng: calls[:-1],
    "calls shuffled": lambda calls, rng: rng.sample(calls, len(calls)),
}
