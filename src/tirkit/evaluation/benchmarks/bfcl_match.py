"""Our own comparison of calls with BFCL's possible answers; the rules are those of its AST checker (bfcl-eval 2026.3).

A possible answer is {tool: {parameter: [accepted values]}}, where "" among the values says that the parameter may be
left out. A string counts without case, spaces and , . / - _ * ^, and ' is ". An integer may stand for a float. Within a
parameter of type dict each key has a list of accepted values of its own.

Where the authors' checker and this one differ on purpose is written in docs/benchmarks_official.md, and tested.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tirkit.evaluation.benchmarks.bfcl_source import COLLECTIONS, Language, read_source
from tirkit.types import ToolCall

Document = Mapping[str, Any]  # a function's document as BFCL has it: name, parameters {properties, required}
Answer = Mapping[str, Mapping[str, list[Any]]]

TYPES: dict[Language, dict[str, type]] = {
    "python": {
        "string": str,
        "integer": int,
        "float": float,
        "boolean": bool,
        "array": list,
        "tuple": list,
        "dict": dict,
        "any": str,
    },
    "java": {
        "byte": int,
        "short": int,
        "integer": int,
        "long": int,
        "float": float,
        "double": float,
        "boolean": bool,
        "char": str,
        "String": str,
        "any": str,
        "Array": list,
        "ArrayList": list,
        "HashMap": dict,
    },
    "javascript": {
        "String": str,
        "integer": int,
        "Bigint": int,
        "float": float,
        "Boolean": bool,
        "array": list,
        "dict": dict,
        "any": str,
    },
}
_IGNORED = re.compile(r"[ ,./\-_*^]")


def calls_problem(
    documents: Sequence[Document], calls: Sequence[ToolCall], answers: Sequence[Answer], language: Language = "python"
) -> str:
    """Why `calls` are not the possible answers, in a few words; "" where they are. The order of calls is free."""
    if len(calls) != len(answers):
        return "wrong number of calls"
    left = list(calls)
    for answer in answers:
        name, accepted = next(iter(answer.items()))
        document = next((document for document in documents if document["name"] == name), None)
        problems = [_call_problem(document, accepted, call, language) if document else "wrong tool" for call in left]
        if "" not in problems:
            return problems[0] if len(problems) == 1 else "no call like one of the answers"
        del left[problems.index("")]
    return ""


def _call_problem(document: Document, accepted: Mapping[str, list[Any]], call: ToolCall, language: Language) -> str:
    if call.name != document["name"]:
        return "wrong tool"
    parameters = document["parameters"]
    properties = parameters["properties"]
    if any(name not in call.arguments for name in parameters.get("required", ())):
        return "required parameter missing"
    for name, value in call.arguments.items():
        if name not in properties or name not in accepted:
            return "unexpected parameter"
        if problem := _value_problem(properties[name], accepted[name], value, language):
            return problem
    if any(name not in call.arguments and "" not in values for name, values in accepted.items()):
        return "expected parameter missing"
    return ""


def _value_problem(schema: Mapping[str, Any], accepted: list[Any], value: Any, language: Language) -> str:
    kind, inner = schema["type"], schema.get("items", {}).get("type")
    types = TYPES[language]
    if language != "python":
        if not isinstance(value, str):
            return "wrong type"
        value = read_source(value, kind, inner, language)
    expected = types[kind]
    nested = types[inner] if kind in COLLECTIONS or kind == "tuple" else None
    if language == "python" and kind == "float" and type(value) is int:
        value = float(value)
    variable = _is_variable(accepted, expected)
    if type(value) is expected:
        if not _items_fit(value, accepted, nested):
            return "wrong type"
    elif type(value) is _type_of(accepted):
        variable = True  # the answers name a variable, or hold another type than the document says: theirs counts
    else:
        return "wrong type"
    return "" if _accepted(value, accepted, expected, nested, variable) else "wrong value"


def _accepted(value: Any, accepted: list[Any], expected: type, nested: type | None, variable: bool) -> bool:
    if variable or expected in (int, float, bool):
        return value in accepted
    if expected is dict:
        return any(_dict_fits(value, answer) for answer in accepted if answer != "")
    # Where a list may be left out, an empty one does as well.
    lists = [[] if answer == "" and expected is list else answer for answer in accepted]
    if expected is list and nested is dict:
        return any(_dicts_fit(value, answer) for answer in lists)
    return _plain(value) in [_plain(answer) for answer in lists if isinstance(answer, expected)]


def _type_of(accepted: Sequence[Any]) -> type | None:
    return next((type(answer) for answer in accepted if answer != ""), None)


def _is_variable(accepted: Sequence[Any], expected: type) -> bool:
    found = _type_of(accepted)
    return found is not None and found is not expected


def _items_fit(value: Any, accepted: list[Any], nested: type | None) -> bool:
    """Whether the items of a list have the type the document says, or that of the items of one accepted list."""
    if nested is None:
        return True
    return any(
        not isinstance(answer, list) or all(type(item) in (nested, _type_of(answer)) for item in value)
        for answer in accepted
    )


def _dict_fits(value: Mapping[str, Any], answer: Mapping[str, list[Any]]) -> bool:
    known = all(key in answer and _text(item) in map(_text, answer[key]) for key, item in value.items())
    return known and all(key in value or "" in values for key, values in answer.items())


def _dicts_fit(value: Sequence[Any], answer: Sequence[Any]) -> bool:
    return len(value) == len(answer) and all(
        isinstance(item, Mapping) and isinstance(one, Mapping) and _dict_fits(item, one)
        for item, one in zip(value, answer, strict=True)
    )


def _text(value: Any) -> Any:
    """A string as it is compared, anything else as it is."""
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """A string, or the strings of a list, as they are compared."""
    return [_text(item) for item in value] if isinstance(value, list) else _text(value)
