"""Bring imported tools into a catalogue file: a first import writes it, a later one shows what would change.

What stands in the file from other sources, or by hand, is left as it is.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from tirkit.store import write_atomic
from tirkit.text.dialects import print_json
from tirkit.tools.catalogue import CatalogueError, load_catalogue, unique_names
from tirkit.types import ToolSchema

MAX_SHOWN = 80  # characters of a value in a difference


@dataclass(frozen=True)
class Remark:
    """What an import left out or changed: where, why in words that others share, and what is special about it."""

    where: str
    why: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.why}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Imported:
    """The tools of a source, what of it is none (`skipped`), and what was changed in the others (`remarks`)."""

    source: str
    tools: tuple[ToolSchema, ...]
    skipped: tuple[Remark, ...] = ()
    remarks: tuple[Remark, ...] = ()

    read_only: frozenset[str] = frozenset()

    def summary(self) -> Iterator[str]:
        """A line for each reason why something was left out or changed: how often, and where first."""
        for what, remarks in (("left out", self.skipped), ("changed", self.remarks)):
            for why, count in Counter(remark.why for remark in remarks).most_common():
                first = next(remark.where for remark in remarks if remark.why == why)
                yield f"{what}: {count} × {why} (first: {first})"


def imported(
    source: str, tools: Iterable[ToolSchema], skipped: Iterable[Remark], remarks: Iterable[Remark]
) -> Imported:
    """The tools under unique names, as a catalogue file gives them back."""
    named = tuple(tool.model_copy(update={"original_name": ""}) for tool in unique_names(tools))
    safe = frozenset(tool.name for tool in named if getattr(tool.origin, "read_only", False))
    return Imported(source, named, tuple(skipped), tuple(remarks), safe)


@dataclass(frozen=True)
class Difference:
    """What an import would change in a catalogue, for the tools of its source."""

    added: tuple[ToolSchema, ...] = ()
    changed: tuple[tuple[ToolSchema, ToolSchema], ...] = ()
    removed: tuple[ToolSchema, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def lines(self) -> Iterator[str]:
        """A line a tool, and one a field that changed.

        >>> old = ToolSchema(name="now", description="The time.")
        >>> new = old.model_copy(update={"description": "The time in UTC."})
        >>> print("\\n".join(Difference(changed=((old, new),), removed=(old,)).lines()))
        changed  now
                 description: "The time." → "The time in UTC."
        removed  now
        """
        for tool in self.added:
            yield f"added    {tool.name}: {_shown(tool.description)}"
        for old, new in self.changed:
            yield f"changed  {new.name}"
            before, after = dict(_fields(old)), dict(_fields(new))
            for at in dict.fromkeys([*before, *after]):
                if before.get(at) != after.get(at):
                    yield f"         {at}: {before.get(at, 'nothing')} → {after.get(at, 'nothing')}"
        for tool in self.removed:
            yield f"removed  {tool.name}"


def compare_tools(old: Sequence[ToolSchema], new: Sequence[ToolSchema], source: str) -> Difference:
    """How the tools of `source` among `old` differ from `new`, both in their order."""
    before = {tool.name: tool for tool in old if tool.source == source}
    after = {tool.name: tool for tool in new}
    return Difference(
        added=tuple(tool for tool in new if tool.name not in before),
        changed=tuple((before[n], tool) for n, tool in after.items() if n in before and before[n] != tool),
        removed=tuple(tool for name, tool in before.items() if name not in after),
    )


def update_catalogue(path: Path, tools: Sequence[ToolSchema], source: str, write: bool = False) -> Difference:
    """Bring the tools of `source` in the catalogue file at `path` up to date; what that changes.

    The file is written where it does not exist yet, or with `write`; otherwise only compared. Raises CatalogueError
    where it cannot be read whole, or holds a tool of another source under a name that is imported.
    """
    old: tuple[ToolSchema, ...] = ()
    if path.exists():
        catalogue = load_catalogue(path)
        old = catalogue.tools
        if catalogue.issues or catalogue.renamed:
            reason = catalogue.issues[0] if catalogue.issues else "two of its tools have the same name"
            raise CatalogueError(f"{path} would lose tools when it is written: {reason}; put it right first")
    others = {tool.name: tool for tool in old if tool.source != source}
    if taken := next((tool.name for tool in tools if tool.name in others), None):
        whose = others[taken].source or "no known source"
        raise CatalogueError(f"{path} has a tool {taken!r} of {whose} already; rename one of the two")
    difference = compare_tools(old, tools, source)
    if difference and (write or not path.exists()):
        new = {tool.name: tool for tool in tools}
        kept = [new.pop(tool.name, tool) for tool in old if tool not in difference.removed]
        lines = [tool.model_dump_json(exclude_defaults=True) for tool in (*kept, *new.values())]
        write_atomic(path, "".join(f"{line}\n" for line in lines))
    return difference


def _fields(tool: ToolSchema) -> Iterator[tuple[str, str]]:
    """(where, what) of every value in a tool's document."""
    yield "description", _shown(tool.description)
    yield from _leaves("parameters", tool.parameters)
    yield from _leaves("origin", tool.origin.model_dump(mode="json") if tool.origin else None)


def _leaves(at: str, value: JsonValue) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(f"{at}.{key}", item)
    else:
        yield at, _shown(value)


def _shown(value: JsonValue) -> str:
    text = print_json(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"
