"""Static pages from the templates beside this file; whatever text enters one is escaped."""

import json
from pathlib import Path
from typing import Any

import jinja2

from tirkit.evaluation.tables import visible

MAX_TEXT = 12_000  # characters of one piece of text that are shown


def render(template: str, **view: object) -> str:
    """The page that `template` makes of `view`. Raises jinja2.UndefinedError for a name that `view` lacks."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**view)


def script_json(value: Any) -> str:
    """The value as JSON that can stand inside a script element: nothing in it can close the element."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c").replace("&", "\\u0026")


def shown(text: str) -> str:
    """A piece of text as a page shows it: control characters escaped, the middle of a very long one left out."""
    if len(text) > MAX_TEXT:
        half = MAX_TEXT // 2
        text = f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"
    return visible(text)
