"""Tools added later, changed or removed: which tokens they get, what is trained, what is replayed. Pure.

A model that knows a catalogue is given another one. Tools of the same name and document keep their tokens and what is
known of them. New tools get new tokens, changed ones keep theirs and are learned again; the tokens of removed tools are
retired: no tool gets them ever again, for the model would still mean the old one.

What is trained: the rows of `trained_tokens`, and a small LoRA (`tokens.grow_vocabulary`, `tokens.add_lora`), on
`growth_corpus`: phase 1 of the new and changed tools, and of kept ones as much as keeps them.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tirkit.methods.tinr.corpus import CorpusSettings, Example, alignment_corpus
from tirkit.rollout.loop import stable_seed
from tirkit.text.dialects import Dialect
from tirkit.text.index import IndexKind, ToolIndex, build_index
from tirkit.types import Record, ToolSchema


@dataclass(frozen=True)
class CatalogueChange:
    """What became of a catalogue; `changed` and `kept` as they are now, `removed` as they were."""

    added: tuple[ToolSchema, ...]
    changed: tuple[ToolSchema, ...]
    removed: tuple[ToolSchema, ...]
    kept: tuple[ToolSchema, ...]

    @property
    def learned(self) -> tuple[ToolSchema, ...]:
        """What must be learned: added and changed tools."""
        return (*self.added, *self.changed)


def compare_catalogues(old: Sequence[ToolSchema], new: Sequence[ToolSchema]) -> CatalogueChange:
    """The change from `old` to `new`, by name; a tool is changed where its description or parameters are."""
    before, now = {tool.name: tool for tool in old}, {tool.name for tool in new}
    known = [tool for tool in new if tool.name in before]
    same = {tool.name for tool in known if _document(tool) == _document(before[tool.name])}
    return CatalogueChange(
        added=tuple(tool for tool in new if tool.name not in before),
        changed=tuple(tool for tool in known if tool.name not in same),
        removed=tuple(tool for tool in old if tool.name not in now),
        kept=tuple(tool for tool in known if tool.name in same),
    )


def _document(tool: ToolSchema) -> tuple[str, object]:
    return tool.description, tool.parameters


def grow_index(
    index: ToolIndex, tools: Sequence[ToolSchema], retired: Collection[str] = ()
) -> tuple[ToolIndex, tuple[str, ...]]:
    """(the index of `tools`, in which those that `index` knows are written as they were; the retired tokens).

    retired: tokens of tools that were removed before; none of them is given away. ValueError for kinds of index in
    which a tool's place in the catalogue is its name: there every new tool would rename others.

    >>> old = build_index([ToolSchema(name="add"), ToolSchema(name="gone")])
    >>> index, retired = grow_index(old, [ToolSchema(name="add"), ToolSchema(name="sub")])
    >>> index.tokens, retired
    (('<<add>>', '<<sub>>'), ('<<gone>>',))
    """
    if index.kind not in ("atomic", "name"):
        raise ValueError(f"a catalogue with {index.kind} indexing cannot grow: use atomic or name")
    known = dict(index.surfaces)
    taken = {*known.values(), *retired}
    surfaces: list[tuple[str, str]] = []
    for tool in tools:
        surface = known.get(tool.name) or _free(build_index([tool], index.kind).surface(tool.name), taken)
        taken.add(surface)
        surfaces.append((tool.name, surface))
    used = {surface for _, surface in surfaces}
    tokens = tuple(surface for _, surface in surfaces) if index.kind == "atomic" else ()
    gone = sorted({*retired, *(token for token in index.tokens if token not in used)})
    return ToolIndex(index.kind, tuple(surfaces), tokens), tuple(gone)


def _free(surface: str, taken: Collection[str]) -> str:
    """`surface`, with `_2`, `_3`, … in it where it is taken."""
    text, end = (surface[:-2], ">>") if surface.startswith("<<") else (surface, "")
    unique, count = surface, 1
    while unique in taken:
        count += 1
        unique = f"{text}_{count}{end}"
    return unique


class Grown(Record):
    """What became of a run's catalogue: how every tool is written now, tokens that are no tool's any more, and the
    names of the tools that were added, changed and removed when it last grew.
    """

    surfaces: tuple[tuple[str, str], ...]
    retired: tuple[str, ...]
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def learned(self) -> frozenset[str]:
        """The added and changed tools."""
        return frozenset((*self.added, *self.changed))

    def index(self, kind: IndexKind) -> ToolIndex:
        """How the tools are written."""
        return ToolIndex(kind, self.surfaces, tuple(text for _, text in self.surfaces) if kind == "atomic" else ())


def extended(old: Sequence[ToolSchema], new: Sequence[ToolSchema], remove: bool) -> tuple[ToolSchema, ...]:
    """The catalogue `old` with what `new` says of its tools and adds; `remove`: without what `new` lacks."""
    now = {tool.name: tool for tool in new}
    kept = [now.pop(tool.name, tool) for tool in old if not remove or tool.name in now]
    return (*kept, *now.values())


def trained_tokens(index: ToolIndex, change: CatalogueChange) -> tuple[str, ...]:
    """The vocabulary entries whose rows are trained whole: those of new and changed tools; kept tools' rows stay."""
    return tuple(index.surface(tool.name) for tool in change.learned) if index.tokens else ()


def growth_corpus(
    change: CatalogueChange, dialect: Dialect, settings: CorpusSettings, replay: float = 1.0, seed: int = 0
) -> list[Example]:
    """All of phase 1 for the tools to be learned, and `replay` times as many examples of kept ones.

    `dialect` has the grown index. Each kept tool is replayed once before one is replayed twice. ValueError where
    `replay` is negative.
    """
    if replay < 0:
        raise ValueError(f"replay = {replay}: give the number of replayed examples for each new one, 0 or more")
    new = alignment_corpus(change.learned, dialect, settings, seed)
    kept = list(change.kept)
    random.Random(stable_seed(seed, "replay")).shuffle(kept)
    replayed: list[Example] = []
    for i in range(round(replay * len(new)) if kept else 0):
        tool = kept[i % len(kept)]
        examples = alignment_corpus([tool], dialect, settings, seed)
        # Round after round another example of the tool; beyond its last one, the first again.
        order = random.Random(stable_seed(seed, "replay", tool.name)).sample(range(len(examples)), len(examples))
        replayed.append(examples[order[i // len(kept) % len(examples)]])
    return [*new, *replayed]
