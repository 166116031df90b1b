"""Static pages from the templates beside this file; whatever text enters one is escaped."""

from pathlib import Path

import jinja2


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
