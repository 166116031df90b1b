"""Values of Java and JavaScript as BFCL wants them: source code in a string, read into JSON values and printed.

A text that is no literal of its type stays a text: it may name a variable.
"""

import json
import re
from typing import Any, Literal

Language = Literal["python", "java", "javascript"]
COLLECTIONS = {"Array", "ArrayList", "array"}

_INTEGER = r"-?\d+"
_NUMBER = r"-?\d+(\.\d+)?([eE][+-]?\d+)?"
# Scalar types by how a literal looks; one group holds the number.
_JAVA_NUMBERS = {
    "byte": (f"({_INTEGER})", int),
    "short": (f"({_INTEGER})", int),
    "integer": (f"({_INTEGER})", int),
    "long": (f"({_INTEGER})[lL]", int),
    "float": (f"({_NUMBER})[fF]", float),
    "double": (f"({_NUMBER})", float),
}
_SCRIPT_NUMBERS = {
    "integer": (f"({_INTEGER})", int),
    "Bigint": (f"({_INTEGER})n", int),
    "float": (r"(-?\d+(?:\.\d+)?)", float),
}
_PIECE = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[(\[{]|[)\]}]|,|[^"'()\[\]{},]+|.""", re.DOTALL)


def read_source(text: str, kind: str, inner: str | None, language: Language) -> Any:
    """The value that `text` spells as a literal of type `kind` (of `inner`, for a collection); else `text` itself."""
    if language == "java":
        return _read_java(text, kind, inner)
    return _read_script(text, kind, inner)


def print_source(value: Any, kind: str, inner: str | None, language: Language) -> str:
    """A literal of type `kind` that `read_source` reads as `value`; a text where the type is not that of the value."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        items = [print_source(item, inner or "", None, language) for item in value]
        if language == "javascript":
            # The authors' reader takes no quotes off the items of an array of strings and of a Java array.
            return f"[{', '.join(_quoted(item, text) for item, text in zip(value, items, strict=True))}]"
        if kind == "ArrayList":
            texts = (_quoted(item, text) for item, text in zip(value, items, strict=True))
            return f"new ArrayList<>(Arrays.asList({', '.join(texts)}))"
        return f"new {inner or 'Object'}[]{{{', '.join(items)}}}"
    if isinstance(value, dict):
        return _print_dict(value, language)
    suffix = {"java": {"long": "L", "float": "f"}, "javascript": {"Bigint": "n"}}.get(language, {}).get(kind, "")
    return f"{value}{suffix}"


def _print_dict(value: dict[str, Any], language: Language) -> str:
    items = {key: _quoted(item, print_source(item, "", None, language)) for key, item in value.items()}
    if language == "javascript":
        return f"{{{', '.join(f'{key}: {text}' for key, text in items.items())}}}"
    puts = " ".join(f"put({json.dumps(key)}, {text});" for key, text in items.items())
    return f"new HashMap<String, Object>() {{{{ {puts} }}}}"


def _quoted(value: Any, text: str) -> str:
    return f'"{text}"' if isinstance(value, str) else text


def _read_java(text: str, kind: str, inner: str | None) -> Any:
    if kind in _JAVA_NUMBERS:
        return _number(text, *_JAVA_NUMBERS[kind])
    if kind == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if kind == "Array" and (match := re.search(r"new\s+\w+\[\]\s*\{(.*)\}", text, re.DOTALL)):
        return [_java_item(item, inner) for item in _split(match[1])]
    if kind == "ArrayList":
        if match := re.search(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.*)\)\)", text, re.DOTALL):
            return [_java_item(item, inner) for item in _split(match[1])]
        if match := re.search(r"new\s+ArrayList<\w*>\(\)\s*\{\{(.*)\}\}", text, re.DOTALL):
            return [_java_item(item, inner) for item in re.findall(r"add\((.+?)\)\s*;?", match[1])]
        return [] if re.search(r"new\s+ArrayList<\w*>\(\)", text) else text
    if kind == "HashMap" and (match := re.search(r"new\s+HashMap<.*?>\s*\(\)\s*(?:\{(.*)\})?", text, re.DOTALL)):
        puts = re.findall(r'put\("(.*?)",\s*(.*?)\)\s*;', match[1] or "")
        return {key: _guess(item) for key, item in puts}
    return text


def _java_item(text: str, inner: str | None) -> Any:
    if inner in (None, "any"):
        return _guess(text)
    return _unquoted(text) if inner in ("String", "char") else _read_java(text, inner or "", None)


def _read_script(text: str, kind: str, inner: str | None) -> Any:
    if kind in _SCRIPT_NUMBERS:
        return _number(text, *_SCRIPT_NUMBERS[kind])
    if kind == "Boolean":
        return {"true": True, "false": False}.get(text, text)
    if kind == "String":
        return _unquoted(text)
    if kind == "array" and (match := re.fullmatch(r"\s*(?:\[(.*)\]|new\s+Array\((.*)\))\s*", text, re.DOTALL)):
        return [_script_item(item, inner) for item in _split(match[1] if match[1] is not None else match[2])]
    if kind == "dict" and (match := re.fullmatch(r"\s*\{(.*)\}\s*", text, re.DOTALL)):
        pairs = (item.partition(":") for item in _split(match[1]))
        return {_unquoted(key.strip()): _script_item(value.strip(), None) for key, _, value in pairs}
    return text


def _script_item(text: str, inner: str | None) -> Any:
    if inner is not None and not text.startswith(("[", "{")):
        return _read_script(text, inner, None)
    if text.startswith("["):
        return _read_script(text, "array", None)
    return _read_script(text, "dict", None) if text.startswith("{") else _guess(text)


def _number(text: str, pattern: str, kind: type) -> Any:
    match = re.fullmatch(pattern, text)
    return kind(match[1]) if match else text


def _guess(text: str) -> Any:
    """A literal whose type is told by its looks."""
    if text in ("true", "false"):
        return text == "true"
    if text[:1] in ("'", '"'):
        return _unquoted(text)
    for pattern, kind in ((f"({_INTEGER})[lL]?", int), (f"({_NUMBER})[fF]?", float)):
        if match := re.fullmatch(pattern, text):
            return kind(match[1])
    return text


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _split(text: str) -> list[str]:
    """The items between the commas of `text` that stand in no quotes and no brackets."""
    items, depth = [""], 0
    for piece in _PIECE.findall(text):
        depth += (piece in "([{") - (piece in ")]}")
        if piece == "," and depth == 0:
            items.append("")
        else:
            items[-1] += piece
    return [item.strip() for item in items if item.strip()]
