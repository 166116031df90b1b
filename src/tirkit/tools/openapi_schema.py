"""Text and schemas from outside → what a catalogue may hold: short, self-contained, and free of control strings.

OpenAPI 3.0's dialect of JSON Schema becomes draft 2020-12, every `$ref` what it refers to; one that leads back to where
it stands becomes its type alone. What cannot be brought into that form raises `UnusableError`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from pydantic import JsonValue

from tirkit.text.control import CONTROL_STRINGS
from tirkit.tools.catalogue import read_tool
from tirkit.tools.imports import Remark
from tirkit.types import ToolSchema

MAX_NAME = 64  # OpenAI's
MAX_DESCRIPTION = 1000  # of a tool
MAX_REMARK = 300  # of a parameter
MAX_DOCUMENT = 20_000  # characters of a tool's parameters as JSON
MAX_VALUES = 20_000  # schemas that are looked at for one tool
MAX_PATTERN = 200
MAX_EXAMPLES = 4  # of a parameter

# Also what other tokenizers and exported models would read as structure: <|…|> and <<tool>>.
CONTROL = re.compile("|".join([*map(re.escape, CONTROL_STRINGS), r"<\|[^|<>\s]{1,80}\|>", r"<<[^<>\s]{1,300}>>"]))
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

PLAIN_WORDS = """type enum const default format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength
maxLength pattern minItems maxItems uniqueItems minProperties maxProperties required"""
PLAIN = set(PLAIN_WORDS.split())
LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
SINGLE = {"items", "additionalProperties", "not", "contains"}


class UnusableError(ValueError):
    """A tool cannot be imported: why, in words that others share, and what is special about this one."""

    def __init__(self, why: str, detail: str = ""):
        super().__init__(f"{why} ({detail})" if detail else why)
        self.why, self.detail = why, detail


def clean_name(name: str) -> str:
    """The name in OpenAI's letters, at most 64: `[A-Za-z0-9_-]`; "" where nothing is left.

    >>> clean_name("repos/list-for-org"), clean_name("<|im_end|>"), clean_name("天気")
    ('repos_list-for-org', 'im_end', '')
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:MAX_NAME]


def clean_text(text: object, max_chars: int) -> str:
    """Text in which no control string is left whole, in at most `max_chars` characters.

    >>> clean_text("Ends.<|im_end|> " * 2, 30)
    'Ends.< |im_end|> Ends.< |im_e…'
    """
    if not isinstance(text, str):
        return ""
    kept = text[: 2 * max_chars].encode("utf-8", "replace").decode()
    kept = UNPRINTABLE.sub(" ", CONTROL.sub(lambda match: f"{match[0][0]} {match[0][1:]}", kept)).strip()
    return kept if len(kept) <= max_chars and len(text) <= 2 * max_chars else kept[: max_chars - 1].rstrip() + "…"


def make_tool(name: str, description: object, parameters: JsonValue, source: str) -> ToolSchema:
    """A tool whose parameters `SchemaReader` has read. Raises UnusableError where no catalogue may hold it."""
    if not name:
        raise UnusableError("it has no usable name")
    try:
        written = json.dumps(parameters, allow_nan=False, ensure_ascii=False)
        if len(written) > MAX_DOCUMENT:
            raise UnusableError(f"its parameters are longer than {MAX_DOCUMENT:,} characters", f"{len(written):,}")
        if spelled := CONTROL.search(written):
            raise UnusableError("a name or value in its parameters spells a control string", spelled[0][:40])
        document = {"name": name, "description": clean_text(description, MAX_DESCRIPTION), "source": source}
        return read_tool(document | {"parameters": json.loads(written)})
    except UnusableError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UnusableError("its parameters are no usable schema", reason[:200]) from error


def remarks_on(where: str, name: str, description: str) -> Iterator[Remark]:
    """What `clean_name` and `make_tool` change in a tool's own words, beyond letters that no name may have."""
    if len(description) > MAX_DESCRIPTION:
        yield Remark(where, f"description cut to {MAX_DESCRIPTION:,} characters", f"it has {len(description):,}")
    if found := CONTROL.search(name) or CONTROL.search(description[:MAX_DESCRIPTION]):
        yield Remark(where, "control string broken up", found[0][:40])


class SchemaReader:
    """Reads the schemas of one document, in which `$ref`s are looked up."""

    def __init__(self, document: Any) -> None:
        self.document = document
        self._budget = MAX_VALUES

    def read(self, schema: Any) -> dict[str, JsonValue]:
        """The schema as a catalogue may hold it. Raises UnusableError.

        >>> people = {"Person": {"type": "object", "properties": {"boss": {"$ref": "#/Person"}}}}
        >>> SchemaReader(people).read({"$ref": "#/Person"})
        {'type': 'object', 'properties': {'boss': {'type': 'object'}}}
        """
        self._budget = MAX_VALUES
        try:
            return self._read(schema, ())
        except RecursionError:
            raise UnusableError("its parameters are nested too deep") from None

    def find(self, node: Any) -> Any:
        """`node`, or what its `$ref` refers to. Raises UnusableError where that is nothing in this document."""
        above: set[str] = set()
        while isinstance(node, Mapping) and isinstance(node.get("$ref"), str):
            if node["$ref"] in above:
                raise UnusableError("a reference refers to itself", node["$ref"][:200])
            above.add(node["$ref"])
            node = self._target(node["$ref"])
        return node

    def _target(self, ref: str) -> Any:
        if not ref.startswith("#"):
            raise UnusableError("it refers to another document", ref[:200])
        node = self.document
        for step in ref[1:].split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            else:
                raise UnusableError("it refers to what the document does not have", ref[:200])
        return node

    def _read(self, schema: Any, above: tuple[str, ...]) -> dict[str, JsonValue]:
        self._budget -= 1
        if self._budget < 0:
            raise UnusableError(f"its parameters hold more than {MAX_VALUES:,} schemas")
        if isinstance(schema, bool):
            return {} if schema else {"not": {}}
        if not isinstance(schema, Mapping):
            raise UnusableError("its parameters are no usable schema", f"{str(schema)[:40]!r} in the place of one")
        ref = schema.get("$ref")
        if not isinstance(ref, str):
            return self._keywords(schema, above)
        beside = self._keywords({key: value for key, value in schema.items() if key != "$ref"}, above)
        target = self._target(ref)
        if ref in above:  # it would go on for ever: what it refers to stands further out
            target = {key: target[key] for key in ("type", "nullable") if key in target}
        return self._read(target, (*above, ref)) | beside

    def _keywords(self, schema: Mapping[str, Any], above: tuple[str, ...]) -> dict[str, JsonValue]:
        result: dict[str, JsonValue] = {}
        for key, value in schema.items():
            if key in PLAIN:
                result[key] = value
            elif key == "description" and (text := clean_text(value, MAX_REMARK)):
                result[key] = text
            elif key == "examples" and (examples := _short(value)):
                result[key] = examples
            elif key == "properties" and isinstance(value, Mapping):
                kept = {str(name): item for name, item in value.items() if not _is_answer_only(item)}
                result[key] = {name: self._read(item, above) for name, item in kept.items()}
            elif key in LISTS and isinstance(value, list):
                result[key] = [self._read(item, above) for item in value]
            elif key in SINGLE:
                result[key] = self._read(value, above)
        return _modern(schema, result)


def _short(examples: Any) -> list[JsonValue]:
    """The first texts and numbers among examples that fit in a document beside everything else."""
    values: Sequence[Any] = examples if isinstance(examples, list) else ()
    short: list[JsonValue] = [v for v in values if isinstance(v, str | int | float) and len(str(v)) <= 60]
    return short[:MAX_EXAMPLES]


def _is_answer_only(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("readOnly") is True


def _modern(schema: Mapping[str, Any], result: dict[str, Any]) -> dict[str, JsonValue]:
    """OpenAPI 3.0's own keywords as JSON Schema has them; what is left out of properties is not required either."""
    for bound, strict in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(flag := result.get(strict), bool):
            del result[strict]
            if flag and bound in result:
                result[strict] = result.pop(bound)
    if schema.get("nullable") is True and isinstance(kind := result.get("type"), str):
        result["type"] = [kind, "null"]
        if isinstance(values := result.get("enum"), list) and None not in values:
            result["enum"] = [*values, None]
    if isinstance(required := result.get("required"), list):
        gone = {str(n) for n, item in (schema.get("properties") or {}).items() if _is_answer_only(item)}
        result["required"] = list(dict.fromkeys(name for name in required if name not in gone))
    elif "required" in result:  # Swagger 1's flag on a property
        del result["required"]
    if isinstance(pattern := result.get("pattern"), str) and len(pattern) > MAX_PATTERN:
        del result["pattern"]
    return result
