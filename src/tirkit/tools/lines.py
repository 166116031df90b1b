"""Read JSON records from a file that may be damaged: what is good is kept, what is bad is named with its line.

A file is either one JSON array (or one object) over any number of lines, or JSONL.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

FileFormat = Literal["auto", "json", "jsonl"]
ValueT = TypeVar("ValueT")
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class FileIssue:
    """One record that could not be used: where it is (lines count from 1) and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class JsonRecord:
    """One JSON value and the line it begins on."""

    line: int
    value: JsonValue


def read_records(path: Path, format: FileFormat = "auto") -> tuple[list[JsonRecord], list[FileIssue]]:
    """All JSON values of a file, in order, and the lines that are not JSON. Empty lines are skipped.

    format: "json" for one array or object, "jsonl" for a value a line; "auto" takes the file as "json" if it can be
    read as that. An array with an error in it is still searched line by line.
    Raises OSError if the file cannot be read.
    """
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    error: FileIssue | None = None
    if format != "jsonl":
        try:
            return _read_document(data.decode("utf-8")), []
        except json.JSONDecodeError as problem:
            error = FileIssue(str(path), problem.lineno, f"not JSON: {problem.msg} (column {problem.colno})")
        except (ValueError, RecursionError) as problem:
            error = FileIssue(str(path), 1, f"not JSON: {_short(problem)}")
    records, issues = _read_lines(path, data)
    if error is not None and (format == "json" or data.lstrip().startswith(b"[")):
        if not any(isinstance(record.value, dict) for record in records):
            return [], [error]  # one object over several lines: the lines apart mean nothing
        if all(issue.line != error.line for issue in issues):
            issues.append(error)
    return records, issues


def _read_document(text: str) -> list[JsonRecord]:
    """The elements of one JSON array with the lines they begin on, or the one value that the text is."""
    start = _skip_space(text, 0)
    if not text.startswith("[", start):
        return [JsonRecord(text.count("\n", 0, start) + 1, DECODER.decode(text))] if start < len(text) else []
    records: list[JsonRecord] = []
    line, seen, position = 1, 0, _skip_space(text, start + 1)
    if text.startswith("]", position):
        position = _skip_space(text, position + 1)
    else:
        while True:
            line, seen = line + text.count("\n", seen, position), position
            value, position = DECODER.raw_decode(text, position)
            records.append(JsonRecord(line, value))
            position = _skip_space(text, position)
            mark, position = text[position : position + 1], _skip_space(text, position + 1)
            if mark == "]":
                break
            if mark != ",":
                raise json.JSONDecodeError("',' or ']' expected", text, min(position - 1, len(text)))
    if position < len(text):
        raise json.JSONDecodeError("text after the array", text, position)
    return records


def _read_lines(path: Path, data: bytes) -> tuple[list[JsonRecord], list[FileIssue]]:
    records: list[JsonRecord] = []
    issues: list[FileIssue] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(JsonRecord(number, DECODER.decode(line.decode("utf-8"))))
        except (ValueError, RecursionError) as error:
            issues.append(FileIssue(str(path), number, f"not JSON: {_short(error)}"))
    return records, issues


def convert_records(
    path: Path, records: Iterable[JsonRecord], convert: Callable[[JsonValue], ValueT], issues: list[FileIssue]
) -> list[tuple[int, ValueT]]:
    """(line, converted value) of each record; one for which `convert` raises ValueError goes to `issues` instead."""
    converted: list[tuple[int, ValueT]] = []
    for record in records:
        try:
            converted.append((record.line, convert(record.value)))
        except (ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
            issues.append(FileIssue(str(path), record.line, _short(error)))
    return converted


def parse_as(kind: type[ModelT]) -> Callable[[JsonValue], ModelT]:
    """What makes a `kind` of a JSON value. Strict models take lists for tuples only from JSON, hence the detour."""
    return lambda value: kind.model_validate_json(json.dumps(value))


def _short(error: Exception) -> str:
    """The reason in one line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    if isinstance(error, UnicodeError):
        return "text that is not valid UTF-8"
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}"
    return str(error)


def _skip_space(text: str, position: int) -> int:
    return SPACE.match(text, position).end()  # type: ignore[union-attr]  # matches the empty string too


def _finite(word: str) -> float:
    """NaN and infinities are not JSON, and 1e999 would silently become one."""
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word[:20]} is not a finite number")
    return value


SPACE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
