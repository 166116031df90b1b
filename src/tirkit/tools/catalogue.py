"""The catalogue: all tools known to a run, read from the forms tools come in, checked, and given unique names.

Forms, told apart by their keys, also mixed in one file:
    OpenAI function   {"type": "function", "function": {"name", "description", "parameters"}}
    bare              {"name", "description", "parameters"}       (BFCL's and the shared catalogue's too)
    Seal-Tools        {"api_name", "api_description", "parameters": {name: {"type", "description"}}, "required"}
    a list of these, alone or under "function" (BFCL's question files)

Whatever words a source has for types ("str", "dict", "list(int)", "ArrayList", "any", …) become JSON Schema's.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from tirkit.text.schema import validate_schema
from tirkit.tools.lines import FileFormat, FileIssue, JsonRecord, convert_records, read_records
from tirkit.types import Origin, ToolSchema, UserError

# About 200 tools of Seal-Tools with their questions: tools.jsonl, questions.jsonl (see its README.md).
SEAL_TOOLS_SAMPLE = Path(__file__).parents[1] / "data" / "seal_tools_sample"

MAX_NAME = 256
FORBIDDEN_IN_NAMES = re.compile(r"[\x00-\x1f\x7f<>]")  # a name is written into <<name>>, on a line of its own

TYPE_WORDS = {
    "string": "str string text char character enum binary date datetime time timestamp uri url uuid",
    "integer": "int integer long short byte bigint",
    "number": "float number double decimal real numeric",
    "boolean": "bool boolean",
    "array": "array list tuple set arraylist sequence",
    "object": "object dict dictionary map hashmap hashtable mapping json",
    "null": "null none nonetype",
    "": "any mixed",  # no restriction
}
TYPES = {word: name for name, words in TYPE_WORDS.items() for word in words.split()}
TYPE_WORD = re.compile(r"\s*(\w+)\s*(?:[(\[<]\s*(\w+)[^)\]>]*[)\]>])?")  # "list(str)" → list, str

# Keywords by what their value holds: schemas by name, a list of schemas, one schema.
NAMED_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
SCHEMA_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
ONE_SCHEMA = {"items", "additionalProperties", "not", "contains", "if", "then", "else", "propertyNames"}

TEXT_KEYWORDS = {"description", "title", "format"}
NUMBER_KEYWORDS = {"minimum", "maximum"}
FREE_KEYWORDS = {"default", "const", "example", "unit", "optional", "choices", "example_values"}

ORIGIN: TypeAdapter[Origin] = TypeAdapter(Origin)


class CatalogueError(UserError):
    """A catalogue cannot be used at all; the message says which file, why, and what to do."""


@dataclass(frozen=True)
class Catalogue:
    """Tools with unique names in the order of their files, and what was wrong with the files.

    `merged` counts exact duplicates (same source, name, description, parameters and origin) left out, `renamed` the
    tools that got a suffix because a different tool had their name first.
    """

    tools: tuple[ToolSchema, ...]
    issues: tuple[FileIssue, ...] = ()
    merged: int = 0
    renamed: int = 0

    @cached_property
    def by_name(self) -> dict[str, ToolSchema]:
        """The tools by their unique names, in order."""
        return {tool.name: tool for tool in self.tools}

    def get(self, name: str) -> ToolSchema | None:
        """The tool of that name, None if there is none."""
        return self.by_name.get(name)


def load_catalogue(paths: str | Path | Sequence[str | Path], format: FileFormat = "auto") -> Catalogue:
    """Read a catalogue from one or several JSON or JSONL files.

    Bad records are left out and named in `issues`. Raises `CatalogueError` for a file that cannot be read and if no
    usable tool is left.
    """
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    issues: list[FileIssue] = []
    tools: list[ToolSchema] = []
    for path in files:
        try:
            records, broken = read_records(path, format)
        except OSError as error:
            raise CatalogueError(
                f"catalogue {path} cannot be read ({error.strerror}); give the path of a JSON or JSONL file of tools"
            ) from error
        bad: list[FileIssue] = []
        tools += [tool for _, tool in convert_records(path, _documents(records), read_tool, bad)]
        issues += sorted(broken + bad, key=lambda issue: issue.line)
    if not tools:
        reason = f"; first reason: {issues[0]}" if issues else " (nothing in it)"
        raise CatalogueError(
            f"no usable tool in {', '.join(map(str, files))}{reason}\n"
            'A tool is a JSON object with "name", "description" and "parameters" (JSON Schema), one a line or in a list'
        )
    unique, merged = _merge(tools)
    named, renamed = _rename(unique)
    return Catalogue(tuple(named), tuple(issues), merged, renamed)


def unique_names(tools: Iterable[ToolSchema]) -> tuple[ToolSchema, ...]:
    """The tools without exact duplicates, each under a name of its own; see `Catalogue` and `ToolSchema`."""
    return tuple(_rename(_merge(tools)[0])[0])


def _documents(records: Iterable[JsonRecord]) -> Iterator[JsonRecord]:
    """Tool documents one by one: lists of them, alone or under "function", are taken apart."""
    for record in records:
        value = record.value
        if isinstance(value, dict) and isinstance(value.get("function"), dict | list):
            value = value["function"]
        if isinstance(value, list):
            yield from _documents(JsonRecord(record.line, item) for item in value)
        else:
            yield JsonRecord(record.line, value)


def read_tool(document: JsonValue) -> ToolSchema:
    """One tool document in any of the forms. Raises ValueError with the reason if it is none."""
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    seal = "api_name" in document
    name = document.get("api_name" if seal else "name")
    name = name.strip() if isinstance(name, str) else ""
    if not name:
        raise ValueError('no "name": a tool needs one, as text')
    if len(name) > MAX_NAME or FORBIDDEN_IN_NAMES.search(name):
        raise ValueError(
            f"name {name[:40]!r} must have at most {MAX_NAME} characters, none of them '<', '>' or a control character"
        )
    description = document.get("api_description" if seal else "description")
    if not isinstance(description, str | None):
        raise ValueError("description must be text")
    parameters = document.get("parameters") or {}
    if seal:
        parameters = {"type": "object", "properties": parameters, "required": document.get("required") or []}
    source = document.get("source")
    tool = ToolSchema(
        name=name,
        description=description or "",
        parameters=read_parameters(parameters),
        source=source if isinstance(source, str) else "",
        origin=read_origin(document.get("origin")),
    )
    tool.model_dump_json()  # raises ValueError for text that no file could hold (lone surrogates)
    return tool


def read_origin(origin: JsonValue) -> Origin | None:
    """How a tool is run, as `tirkit tools import` writes it. Raises ValueError with the reason if it is damaged."""
    if not isinstance(origin, dict) or "kind" not in origin:
        return None  # another catalogue's word for something else
    try:
        return ORIGIN.validate_json(json.dumps(origin))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"origin {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def read_parameters(parameters: JsonValue) -> dict[str, JsonValue]:
    """A JSON Schema of type object with JSON Schema's type words. Raises ValueError with the reason if it is bad."""
    if not isinstance(parameters, dict):
        raise ValueError("parameters must be a JSON Schema object")
    if parameters and "type" not in parameters and "properties" not in parameters:
        raise ValueError('parameters must be a JSON Schema with "type": "object" and "properties"')
    schema = normalise({"type": "object", "properties": {}} | parameters)
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise ValueError("parameters must have the type object")
    if not _plainly_valid(schema) and (problems := validate_schema(schema)):
        raise ValueError(f"parameters are not valid JSON Schema: {problems[0]}")
    properties, required = schema["properties"], schema.get("required", [])
    if missing := [name for name in required if name not in properties]:  # type: ignore[union-attr, operator]
        raise ValueError(f"required parameter {missing[0]!r} is not among the properties")
    return schema


def normalise(schema: JsonValue) -> JsonValue:
    """Replace a source's type words by JSON Schema's, all the way down. Raises ValueError for a word it can't read.

    >>> normalise({"type": "dict", "properties": {"xs": {"type": "list(int)"}, "y": {"type": "any"}}})
    {'type': 'object', 'properties': {'xs': {'type': 'array', 'items': {'type': 'integer'}}, 'y': {}}}
    """
    if not isinstance(schema, dict):
        return schema
    result: dict[str, JsonValue] = {}
    for key, value in schema.items():
        if key == "type":
            result |= _read_type(value)
        elif key in NAMED_SCHEMAS and isinstance(value, dict):
            result[key] = {name: normalise(item) for name, item in value.items()}
        elif key in SCHEMA_LISTS and isinstance(value, list):
            result[key] = [normalise(item) for item in value]
        elif key in ONE_SCHEMA:
            result[key] = normalise(value)
        elif key == "examples" and not isinstance(value, list):
            result[key] = [value]  # only a remark to the reader, not worth losing the tool for
        elif key != "x-original-type":  # the shared catalogue's note of a type word already replaced
            result[key] = value
    return result


def _read_type(value: JsonValue) -> dict[str, JsonValue]:
    """The keywords that say what a source's type says.

    >>> _read_type("List[str]"), _read_type(["int", "null"]), _read_type("any")
    ({'type': 'array', 'items': {'type': 'string'}}, {'type': ['integer', 'null']}, {})
    """
    if isinstance(value, list):
        names = [_read_type(word).get("type") for word in value]
        return {"type": names} if all(names) else {}
    match = TYPE_WORD.match(value) if isinstance(value, str) else None
    name = TYPES.get(match[1].lower()) if match else None
    if match is None or name is None:
        raise ValueError(f"unknown type {value!r}; JSON Schema has {', '.join(filter(None, TYPE_WORDS))}")
    if not name:
        return {}
    inner = TYPES.get(match[2].lower()) if name == "array" and match[2] else None
    return {"type": name, "items": {"type": inner}} if inner else {"type": name}


def _plainly_valid(schema: JsonValue) -> bool:
    """True only for a valid schema made of everyday keywords: jsonschema's own check takes milliseconds a tool."""
    return isinstance(schema, dict) and all(_plain_keyword(key, value) for key, value in schema.items())


def _plain_keyword(key: str, value: JsonValue) -> bool:
    if key == "type":
        return isinstance(value, str)  # `normalise` has made it one of JSON Schema's
    if key in TEXT_KEYWORDS:
        return isinstance(value, str)
    if key == "properties":
        return isinstance(value, dict) and all(map(_plainly_valid, value.values()))
    if key == "items":
        return _plainly_valid(value)
    if key == "required":
        return isinstance(value, list) and all(isinstance(n, str) for n in value) and len(set(value)) == len(value)  # type: ignore[arg-type]
    if key == "enum":
        return isinstance(value, list)
    if key == "additionalProperties":
        return isinstance(value, bool) or _plainly_valid(value)
    if key in {"anyOf", "oneOf", "allOf"}:
        return isinstance(value, list) and bool(value) and all(map(_plainly_valid, value))
    if key in NUMBER_KEYWORDS:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return key in FREE_KEYWORDS or key.startswith("x-")


def _merge(tools: Iterable[ToolSchema]) -> tuple[list[ToolSchema], int]:
    """(the tools without exact duplicates, how many were left out); the first of equals stays."""
    unique: dict[tuple[str, str, str, str, str], ToolSchema] = {}
    count = 0
    for tool in tools:
        count += 1
        parameters = json.dumps(tool.parameters, sort_keys=True)
        origin = tool.origin.model_dump_json() if tool.origin else ""
        unique.setdefault((tool.source, tool.name, tool.description, parameters, origin), tool)
    return list(unique.values()), count - len(unique)


def _rename(tools: Sequence[ToolSchema]) -> tuple[list[ToolSchema], int]:
    """(the tools under unique names, how many got a new one): the first of a name keeps it, later ones get _2, _3, …

    A suffixed name that some tool came with is passed over, wherever in the order that tool stands.
    """
    taken = {tool.name for tool in tools}
    seen: set[str] = set()
    suffixes: dict[str, int] = {}
    named: list[ToolSchema] = []
    for tool in tools:
        if tool.name not in seen:
            seen.add(tool.name)
            named.append(tool)
            continue
        number = suffixes.get(tool.name, 1) + 1
        while (name := f"{tool.name}_{number}") in taken:
            number += 1
        suffixes[tool.name] = number
        taken.add(name)
        named.append(tool.model_copy(update={"name": name, "original_name": tool.name}))
    return named, sum(bool(tool.original_name) for tool in named)
