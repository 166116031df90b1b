"""How tools are written in text: the surface of each tool and the vocabulary entries the surfaces need.

Four ways to index a catalogue (TInR, arXiv 2604.10788, compares them):

    atomic        <<get_weather>>     one vocabulary entry a tool
    name          get_weather         ordinary text
    numeric       0017                ordinary text: the tool's rank, zero-padded
    hierarchical  <<c3>><<m1>>        a group entry and a member entry, both shared between tools
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Literal

from tirkit.types import ToolSchema

IndexKind = Literal["atomic", "name", "numeric", "hierarchical"]

# A surface stands on a line of its own and inside a JSON string, so it must need no escape in either.
_UNPRINTABLE = re.compile(r'[<>"\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')


@dataclass(frozen=True)
class ToolIndex:
    """How every tool of a catalogue is written.

    `surfaces` holds (name, surface) in catalogue order, both unique; `tokens` the entries to add to a vocabulary, in
    the order to add them.

    >>> index = build_index([ToolSchema(name="add"), ToolSchema(name="get weather")])
    >>> index.surface("get weather"), index.name("<<add>>"), index.name("<<subtract>>")
    ('<<get weather>>', 'add', None)
    """

    kind: IndexKind
    surfaces: tuple[tuple[str, str], ...]
    tokens: tuple[str, ...] = ()

    @cached_property
    def _surface_of(self) -> dict[str, str]:
        return dict(self.surfaces)

    @cached_property
    def _name_of(self) -> dict[str, str]:
        return {surface: name for name, surface in self.surfaces}

    @property
    def names(self) -> tuple[str, ...]:
        """The tools' names, in catalogue order."""
        return tuple(name for name, _ in self.surfaces)

    def surface(self, name: str) -> str:
        """How the tool `name` is written. KeyError with the name where it is not in the index."""
        try:
            return self._surface_of[name]
        except KeyError:
            raise KeyError(f"tool {name!r} is not in the index of {len(self.surfaces)} tools") from None

    def name(self, surface: str) -> str | None:
        """The tool written as `surface`, None where no tool is."""
        return self._name_of.get(surface)


def build_index(tools: Sequence[ToolSchema], kind: IndexKind = "atomic") -> ToolIndex:
    """The index of `tools`, in their order. ValueError where two tools share a name."""
    names = [tool.name for tool in tools]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"tool names must be unique in an index; these are not: {', '.join(twice)}")
    return _BUILDERS[kind](names)


def _atomic(names: list[str]) -> ToolIndex:
    surfaces = [f"<<{text}>>" for text in _printable(names)]
    return ToolIndex("atomic", tuple(zip(names, surfaces, strict=True)), tuple(surfaces))


def _name(names: list[str]) -> ToolIndex:
    return ToolIndex("name", tuple(zip(names, _printable(names), strict=True)))


def _numeric(names: list[str]) -> ToolIndex:
    width = len(str(max(len(names) - 1, 0)))
    return ToolIndex("numeric", tuple((name, f"{rank:0{width}d}") for rank, name in enumerate(names)))


def _hierarchical(names: list[str]) -> ToolIndex:
    """About sqrt(n) groups of about sqrt(n) members, by alphabetical rank: neighbours in the alphabet share a group."""
    size = isqrt(max(len(names) - 1, 0)) + 1  # smallest size with size * size >= n
    place = {name: divmod(rank, size) for rank, name in enumerate(sorted(names))}
    surfaces = tuple((name, "<<c{}>><<m{}>>".format(*place[name])) for name in names)
    groups = sorted({group for group, _ in place.values()})
    members = sorted({member for _, member in place.values()})
    return ToolIndex("hierarchical", surfaces, (*(f"<<c{g}>>" for g in groups), *(f"<<m{m}>>" for m in members)))


_BUILDERS: dict[IndexKind, Callable[[list[str]], ToolIndex]] = {
    "atomic": _atomic,
    "name": _name,
    "numeric": _numeric,
    "hierarchical": _hierarchical,
}


def _printable(names: list[str]) -> list[str]:
    """The names with `_` for what a surface must not hold, and `_2`, `_3`, … where that makes two of them equal."""
    plain = [_UNPRINTABLE.sub("_", name).strip() or "_" for name in names]
    taken = {text for text, name in zip(plain, names, strict=True) if text == name}
    texts: list[str] = []
    for text, name in zip(plain, names, strict=True):
        unique, count = text, 1
        while text != name and unique in taken:
            count += 1
            unique = f"{text}_{count}"
        taken.add(unique)
        texts.append(unique)
    return texts
