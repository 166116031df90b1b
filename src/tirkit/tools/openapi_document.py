"""An OpenAPI document from a file or an address, JSON or YAML, read without trusting it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tirkit.tools.catalogue import CatalogueError
from tirkit.tools.http_tool import HttpError, get_text

MAX_BYTES = 64 << 20
MAX_DEPTH = 200
FETCH_S = 60.0


def is_address(source: str) -> bool:
    """Whether a source is an address and no file.

    >>> is_address("https://zoo.example/openapi.json"), is_address("zoo/openapi.json")
    (True, False)
    """
    return source.startswith(("http://", "https://"))


def read_document(source: str) -> Mapping[str, Any]:
    """The document. Raises CatalogueError where it is no OpenAPI 3.0 or 3.1."""
    try:
        text = _text(source)
        document = json.loads(text) if text.lstrip().startswith("{") else _yaml(text)
    except (HttpError, OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300] if not isinstance(error, RecursionError) else "nested too deep"
        raise CatalogueError(f"{source} cannot be read as OpenAPI: {reason}") from error
    if not isinstance(document, Mapping):
        document = {}
    version = str(document.get("openapi", ""))
    if not version.startswith(("3.0", "3.1")):
        what = "Swagger 2, which a converter makes OpenAPI 3 of" if "swagger" in document else "no OpenAPI 3"
        raise CatalogueError(f'{source} is {what}: its "openapi" must be 3.0 or 3.1, not {version[:20]!r}')
    return document


def _text(source: str) -> str:
    if is_address(source):
        if "@" in urlsplit(source).netloc:
            raise ValueError("a password in an address would be stored; download the document first")
        return get_text(source, FETCH_S, MAX_BYTES)
    path = Path(source)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
    return path.read_text(encoding="utf-8-sig")


_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast


class _Loader(_Safe):
    """YAML with JSON's values only: dates are text, and so are yes, no, on and off."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:bool")]
    for first, rules in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF")


def _yaml(text: str) -> Any:
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):  # first: libyaml's loader overflows the stack on deep nesting
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError("nested too deep")
    except yaml.YAMLError as error:
        if "nesting depth" in str(error):  # newer versions of libyaml see to it themselves
            raise ValueError("nested too deep") from error
        raise
    return yaml.load(text, Loader=_Loader)
