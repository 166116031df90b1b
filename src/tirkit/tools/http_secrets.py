"""Secrets that tools need: named in the catalogue, read from the environment when a tool is called, never stored."""

import base64
import json
import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from tirkit.types import UserError

HOLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
REDACTED = "[redacted]"


class SecretError(UserError):
    """A tool's secret is missing, or would be stored; the message names it and the remedy."""


def read_header(text: str) -> tuple[str, str]:
    """(name, template) of a header as the command line has it.

    Raises SecretError where its value is written out instead of named, since it would be stored.

    >>> read_header("Authorization: Bearer {PETSTORE_TOKEN}")
    ('Authorization', 'Bearer {PETSTORE_TOKEN}')
    """
    name, _, template = (part.strip() for part in text.partition(":"))
    if not HEADER_NAME.fullmatch(name) or not HOLE.search(template):
        raise SecretError(
            f"header {name!r}: write it as 'Authorization: Bearer {{MY_TOKEN}}', in single quotes, where MY_TOKEN is "
            "an environment variable; its value is read when a tool is called and stored nowhere"
        )
    return name, template


def secret_names(headers: Mapping[str, str], env: Iterable[str] = ()) -> tuple[str, ...]:
    """The environment variables that header templates and `env` name."""
    return tuple(dict.fromkeys([*(name for value in headers.values() for name in HOLE.findall(value)), *env]))


def secret(name: str, who: str) -> str:
    """The value of an environment variable. Raises SecretError where it is not set; `who` needs it."""
    if value := os.environ.get(name, "").strip():
        return value
    raise SecretError(f"{who} needs the environment variable {name}, which is not set; export it and try again")


def fill_headers(headers: Mapping[str, str], who: str) -> dict[str, str]:
    """The headers to send: each {NAME} replaced by the variable's value. Raises SecretError where one is not set."""
    return {name: HOLE.sub(lambda hole: secret(hole[1], who), value) for name, value in headers.items()}


def redact(text: str, names: Iterable[str]) -> str:
    """`text` without the values of these variables, as they are or as URLs, JSON and base64 write them."""
    for value in filter(None, (os.environ.get(name, "").strip() for name in names)):
        encoded = base64.b64encode(value.encode()).decode()
        forms = {value, quote(value, safe=""), json.dumps(value)[1:-1], encoded, encoded.rstrip("=")}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, REDACTED)
    return text
