"""Tool schemas: is a schema valid, do arguments fit it, are two calls the same call."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, cast

import regex
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend  # pyright: ignore[reportUnknownVariableType]
from pydantic import JsonValue
from referencing import Registry
from referencing.exceptions import Unresolvable

from tirkit.types import ToolCall, ToolSchema

Equality = Literal["strict", "lenient"]

# With one of these the names of all arguments can't be read off `properties`.
_OPEN = {"additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"}
_MAX_PROBLEMS = 5
_PATTERN_S = 0.2


def validate_schema(parameters: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """What is wrong with a tool's `parameters` as a JSON Schema (draft 2020-12) of type object; () where nothing is."""
    if parameters.get("type") != "object":
        return (f"'type' must be 'object', not {parameters.get('type')!r}",)
    try:
        return _problems(_errors(Draft202012Validator(Draft202012Validator.META_SCHEMA), dict(parameters)))
    except RecursionError:
        return ("nested too deep",)


def validate_arguments(tool: ToolSchema, arguments: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """What is wrong with `arguments` for `tool`, in words for the model to read; () where nothing is.

    Types are JSON Schema's: 1.0 is an integer, true is none. Arguments that the schema does not name are refused
    unless it says more about them than `properties`.
    """
    try:
        validator = _validator(json.dumps(tool.parameters))
        return _problems(_errors(validator, dict(arguments)))
    except Unresolvable as error:
        return (f"the schema of {tool.name!r} refers to {error.ref!r}, which it does not define",)
    except regex.error as error:
        return (f"the schema of {tool.name!r} holds a pattern that can't be read: {error}",)
    except TimeoutError:
        return (f"the schema of {tool.name!r} holds a pattern that takes too long to match",)
    except RecursionError:
        return (f"the schema of {tool.name!r} or the arguments are nested too deep",)


def canonical(call: ToolCall, mode: Equality = "strict") -> str:
    """One text for all ways to write the same call.

    strict (TInR): values with their JSON types, 1 is not 1.0. lenient (AutoTool): whole floats equal integers, strings
    are trimmed. In both a bool never equals a number, and the order of keys never matters.

    >>> one, float_one = ToolCall(name="f", arguments={"x": 1}), ToolCall(name="f", arguments={"x": 1.0})
    >>> canonical(one) == canonical(float_one), canonical(one, "lenient") == canonical(float_one, "lenient")
    (False, True)
    """
    return f"{call.name} {canonical_value(call.arguments, mode)}"


def canonical_value(value: JsonValue, mode: Equality = "strict") -> str:
    """One text for all ways to write the same JSON value; see `canonical`."""
    return json.dumps(value if mode == "strict" else _lenient(value), sort_keys=True, ensure_ascii=False)


def _lenient(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_lenient(item) for item in value]
    return {key: _lenient(item) for key, item in value.items()} if isinstance(value, dict) else value


def _pattern(_: object, pattern: str, value: object, __: object) -> Iterator[ValidationError]:
    """The keyword `pattern`, given up after a while: a pattern may be made to take for ever."""
    if isinstance(value, str) and not regex.search(pattern, value, timeout=_PATTERN_S):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


_Validator = cast(type[Draft202012Validator], extend(Draft202012Validator, {"pattern": _pattern}))


@lru_cache(maxsize=16384)
def _validator(parameters: str) -> Draft202012Validator:
    schema = cast(dict[str, Any], json.loads(parameters))
    if "properties" in schema and not _OPEN & schema.keys():
        schema["additionalProperties"] = False
    # An empty registry: without it a reference to an address would be fetched.
    return _Validator(schema, registry=Registry())


def _errors(validator: Draft202012Validator, value: object) -> list[ValidationError]:
    iter_errors = cast(Callable[[object], Iterable[ValidationError]], validator.iter_errors)  # pyright: ignore[reportUnknownMemberType]
    return sorted(iter_errors(value), key=lambda error: error.json_path)


def _problems(errors: list[ValidationError]) -> tuple[str, ...]:
    problems = [
        f"{error.json_path.removeprefix('$').removeprefix('.') or 'arguments'}: {error.message}" for error in errors
    ]
    rest = len(problems) - _MAX_PROBLEMS
    return (*problems[:_MAX_PROBLEMS], *([f"and {rest} more"] if rest > 0 else []))
