"""ACEBench's comparison of calls with its answers; the rules are those of its checker (model_eval/checker.py).

An answer is {tool: {parameter: value}}; calls of one tool carry suffixes, `f_1`, `f_2`. What a reader of the numbers
should know of the rules: a parameter that is not required may be left out even where the answer has it; a string is
right where it contains the answer's; numbers and booleans are compared by type alone. And calls are read from text that
all white space was taken out of, so an answer with a list of several words inside an object can never be met.
`same_calls` has none of that.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tirkit.types import ToolCall

Document = Mapping[str, Any]

TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "int": int,
    "number": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "list": list,
    "objectArray": list,
    "list(string)": list,
    "list(enum)": list,
    "dict": dict,
    "object": dict,
    "any": str,
    "enum": enumerate,  # the checker's own word: no value has this type, so the answer's type counts
}
_NESTED = {"array", "tuple", "list(string)", "list(enum)", "object", "objectArray"}
_IGNORED = re.compile(r"[ ,./\-_*^]")
_SUFFIX = re.compile(r"_\d+$")


def calls_problem(documents: Sequence[Document], calls: Sequence[ToolCall], answer: Mapping[str, Any]) -> str:
    """Why `calls` are not the answer, in a few words; "" where they are. The order of calls is free."""
    wanted = [(_SUFFIX.sub("", name), name, arguments) for name, arguments in answer.items()]
    if len(calls) != len(wanted):
        return "wrong number of calls"
    if Counter(call.name for call in calls) != Counter(name for name, _, _ in wanted):
        return "wrong tools"
    for name, key, arguments in wanted:
        document = next((one for one in documents if one["name"] in key), None)  # as a part of the name
        if document is None:
            return "wrong tools"
        own = [call for call in calls if call.name == name]
        problems = [_call_problem(document, call, arguments) for call in own]
        if "" not in problems:
            return problems[-1]
    return ""


def same_calls(calls: Sequence[ToolCall], answer: Mapping[str, Any]) -> bool:
    """Whether the calls are the answer's, each once, in any order, with all its parameters and values.

    Strings are compared without case, white space and , . / - _ * ^; numbers as numbers.
    """
    left = list(calls)
    for name, arguments in answer.items():
        plain = _SUFFIX.sub("", name)
        found = next((c for c in left if c.name in (name, plain) and _same(arguments, c.arguments)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _call_problem(document: Document, call: ToolCall, answer: Mapping[str, Any]) -> str:
    parameters = document.get("parameters", document.get("arguments", {}))
    if not call.arguments or not parameters:
        return "" if not call.arguments and not parameters else "wrong parameters"
    properties = parameters["properties"]
    if not answer or call.name != document["name"]:
        return "" if answer == properties else "wrong parameters"
    if any(name not in call.arguments for name in parameters["required"]):
        return "required parameter missing"
    for name, value in call.arguments.items():
        if name not in properties or name not in answer:
            return "unexpected parameter"
        if problem := _value_problem(properties[name], answer[name], unspaced(value)):
            return problem
    return ""


def _value_problem(schema: Mapping[str, Any], answer: Any, value: Any) -> str:
    kind = schema["type"]
    expected = TYPES[kind]
    if kind == "float" and type(value) is int:
        value = float(value)
    spelled = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
    if type(spelled) is expected:
        if kind in _NESTED and not _items_fit(spelled, answer, _inner(schema)):
            return "wrong type"
        if answer != "" and type(answer) is not expected:
            return ""  # the answer is a variable, or of another type than the document says: anything of that type
    elif type(spelled) is type(answer) or answer == spelled:
        return ""
    else:
        return "wrong type"
    return "" if _value_fits(answer, value, expected, _inner(schema) if kind in _NESTED else None) else "wrong value"


def _inner(schema: Mapping[str, Any]) -> type:
    """The type of a collection's items."""
    items = schema.get("items")
    if isinstance(items, Mapping) and "type" in items:
        return TYPES[items["type"]]
    return str if "string" in schema["type"] else enumerate if "enum" in schema["type"] else dict


def _items_fit(value: Any, answer: Any, inner: type) -> bool:
    """Whether items have the type they should; looked at in lists of lists alone, and no empty answer is right."""
    return any(
        not isinstance(one, list) or all(type(item) is inner or (one and type(item) is type(one)) for item in value)
        for one in answer
    )


def _value_fits(answer: Any, value: Any, expected: type, inner: type | None) -> bool:
    if expected is dict:
        return _dict_fits(answer, value)
    if expected is list and inner is dict:
        return len(value) == len(answer) and all(map(_dict_fits, answer, value))
    if expected is str:
        return _plain(answer) in _plain(value)
    return expected is not list or [_plain(item) for item in value] == [_plain(item) for item in answer]


def _dict_fits(answer: Any, value: Any) -> bool:
    if not isinstance(value, dict) or len(value) != len(answer) or value.keys() != answer.keys():
        return False
    for key, item in value.items():
        item = {"true": True, "false": False}.get(item, item) if isinstance(item, str) else item
        if isinstance(answer[key], dict):
            if not _dict_fits(answer[key], item):
                return False
        elif str(_plain(answer[key])) not in str(_plain(item)):
            return False
    return True


def _same(answer: Any, value: Any) -> bool:
    """See `same_calls`."""
    if isinstance(answer, dict):
        same_keys = isinstance(value, dict) and value.keys() == answer.keys()
        return same_keys and all(_same(answer[key], value[key]) for key in answer)
    if isinstance(answer, list):
        same_length = isinstance(value, list) and len(value) == len(answer)
        return same_length and all(map(_same, answer, value))
    if isinstance(answer, str):
        return isinstance(value, str) and _plain(unspaced(answer)) == _plain(unspaced(value))
    return answer == value and isinstance(answer, bool) == isinstance(value, bool)


def unspaced(value: Any) -> Any:
    """The value as the checker gets it: it reads calls from text that all white space was taken out of."""
    if isinstance(value, str):
        return "".join(value.split())
    if isinstance(value, list):
        return [unspaced(item) for item in value]
    return {key: unspaced(item) for key, item in value.items()} if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    """A string as it is compared, anything else as it is."""
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
