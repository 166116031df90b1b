"""Think or no-think: the tag a turn begins with. A mode is read from the tag, never from the length of the text."""

from tirkit.text.control import MODE_TAGS
from tirkit.types import Mode

_MODES: dict[str, Mode] = {MODE_TAGS["think"]: "think", MODE_TAGS["no_think"]: "no_think"}


def split_mode(text: str) -> tuple[Mode | None, str]:
    """The mode tag that `text` begins with (white space before it is skipped), None without one, and the rest.

    >>> split_mode("[no_think]<answer>5</answer>")
    ('no_think', '<answer>5</answer>')
    """
    stripped = text.lstrip()
    for tag, mode in _MODES.items():
        if stripped.startswith(tag):
            return mode, stripped[len(tag) :]
    return None, text


def read_mode(text: str) -> Mode | None:
    """The mode a completion is in, None where it has no tag."""
    return split_mode(text)[0]


def with_mode(text: str, mode: Mode) -> str:
    """`text` with the tag of `mode` before it, in place of the tag it may have."""
    return f"{MODE_TAGS[mode]}\n{split_mode(text)[1].lstrip()}"
