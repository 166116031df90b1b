"""What a benchmark is: cases, how one is scored, and how its leaderboard adds them up.

A case is a task with what the task itself has no place for: the documents of the tools it brings (each under the name
the benchmark gives it, so two cases may mean different tools by one name; see `worlds`), and the gold that its scorer
reads. A task's `gold_rounds` is then one right answer out of those the gold admits: what the oracle plays and what the
metrics of the papers compare with. Whether an attempt is *right* is the scorer's word alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field, JsonValue

from tirkit.evaluation.benchmarks.conversation import Ask
from tirkit.evaluation.metrics import Item
from tirkit.rollout.loop import stable_seed
from tirkit.tools.catalogue import read_tool
from tirkit.tools.lines import FileIssue, JsonRecord, read_records
from tirkit.tools.runtime import Toolbox
from tirkit.types import Record, Task, ToolSchema, Trajectory, UserError


class BenchmarkError(UserError):
    """A benchmark cannot be run as asked for; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """Where a benchmark's data and its rules of scoring come from."""

    url: str
    revision: str
    licence: str


@dataclass(frozen=True)
class Case:
    """One question: the task (`kind` is its category), the tools it brings (none: the benchmark's), its gold.

    Cases of one `group` belong together (the turns of a conversation): a sample takes all of them or none.
    """

    task: Task
    tools: tuple[ToolSchema, ...] = ()
    gold: JsonValue = None
    group: str = ""


@dataclass(frozen=True)
class Loaded:
    """The cases of a benchmark, the tools of those that bring none, and what could not be read."""

    cases: tuple[Case, ...]
    tools: tuple[ToolSchema, ...] = ()
    issues: tuple[FileIssue, ...] = ()


class Score(Record):
    """The verdict on one attempt: `right` in [0, 1], why it is not 1 (few different words: they are counted), and
    whatever else the benchmark reports of it.
    """

    right: float
    why: str = ""
    values: dict[str, float] = Field(default_factory=dict)


class CaseResult(Record):
    """What one attempt at one case came to: the verdict, the metrics of the papers."""

    case_id: str
    category: str
    group: str = ""
    score: Score
    item: Item


class CaseAttempt(CaseResult):
    """The same with what was written, as it is stored."""

    trajectory: Trajectory

    @property
    def result(self) -> CaseResult:
        """Without what was written: small enough to hold those of all cases."""
        return CaseResult(
            case_id=self.case_id, category=self.category, group=self.group, score=self.score, item=self.item
        )


ScoreFn = Callable[[Trajectory, Case], Score]
Totals = dict[str, float | None]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    folder: of its data, within that of all data. categories: as its leaderboard names them. prompting: how the model
    is asked, in words. read: the folder's cases, a category's in the order of their file. score: our own scorer.
    official: makes the authors' scorer, BenchmarkError where it is not installed; `official_name` says which it is.
    totals: the leaderboard's aggregates, in [0, 1], None where nothing that was run enters. toolbox: runs the calls of
    cases that execute them. play: makes the attempt where it takes more than one rollout (a user who speaks again,
    tools with a state); the rollouts are asked for one by one. names_in_replies: right replies name tools and
    parameters. shared_tools: cases bring no tools, all of the benchmark's are theirs.
    """

    name: str
    folder: str
    source: Source
    categories: tuple[str, ...]
    prompting: str
    read: Callable[[Path], Loaded]
    score: ScoreFn
    official: Callable[[], ScoreFn] | None = None
    official_name: str = ""
    totals: Callable[[Sequence[CaseResult]], Totals] = lambda results: {"mean": mean(results)}
    toolbox: Callable[[Path], Toolbox] | None = None
    play: Callable[[Case, Ask], Trajectory] | None = None
    names_in_replies: bool = False
    shared_tools: bool = False

    def load(self, data: Path, limit: int = 0, seed: int = 0, categories: Sequence[str] = ()) -> Loaded:
        """The cases below the folder of all data, at most `limit` of each category (0: all), drawn by `seed`.

        Raises BenchmarkError for a category that does not exist and where there is no data.
        """
        if unknown := sorted(set(categories) - set(self.categories)):
            raise BenchmarkError(f"{self.name} has no category {unknown[0]!r}; it has {', '.join(self.categories)}")
        if not (data / self.folder).is_dir():
            raise BenchmarkError(
                f"no data of {self.name} at {data / self.folder}; get {self.source.url} (revision "
                f"{self.source.revision}) and put it there"
            )
        loaded = self.read(data / self.folder)
        cases = [case for case in loaded.cases if not categories or case.task.kind in categories]
        if not cases:
            raise BenchmarkError(f"{self.name} has no case in {data / self.folder}; first issue: {loaded.issues[:1]}")
        return replace(loaded, cases=sample(cases, limit, seed))


def sample(cases: Sequence[Case], limit: int, seed: int) -> tuple[Case, ...]:
    """At most `limit` cases of each category, or all (0), in their order; a larger limit takes the same and more."""
    if not limit:
        return tuple(cases)
    sizes: dict[tuple[str, str], int] = {}
    for case in cases:
        unit = case.task.kind, case.group or case.task.id
        sizes[unit] = sizes.get(unit, 0) + 1
    taken: dict[str, int] = {}
    chosen: set[tuple[str, str]] = set()
    for unit in sorted(sizes, key=lambda unit: stable_seed(seed, *unit)):
        if taken.get(unit[0], 0) + sizes[unit] <= limit:
            taken[unit[0]] = taken.get(unit[0], 0) + sizes[unit]
            chosen.add(unit)
    return tuple(case for case in cases if (case.task.kind, case.group or case.task.id) in chosen)


def mean(results: Iterable[CaseResult]) -> float | None:
    """Mean of `right`; None where there is none."""
    values = [result.score.right for result in results]
    return sum(values) / len(values) if values else None


def by_category(results: Iterable[CaseResult]) -> dict[str, list[CaseResult]]:
    """The results of each category, in order of appearance."""
    groups: dict[str, list[CaseResult]] = {}
    for result in results:
        groups.setdefault(result.category, []).append(result)
    return groups


def average(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def records(path: Path, issues: list[FileIssue]) -> list[JsonRecord]:
    """The records of a JSON or JSONL file, none where there is no such file; what is broken goes to `issues`."""
    if not path.exists():
        return []
    found, broken = read_records(path)
    issues += broken
    return [record for record in found if isinstance(record.value, dict)]


def own_tools(
    documents: Iterable[JsonValue], source: str, rename: Mapping[str, str] | None = None
) -> tuple[ToolSchema, ...]:
    """The tools that a case brings. Raises ValueError for one that cannot be read or a name given twice."""
    tools = [read_tool(document).model_copy(update={"source": source}) for document in documents]
    tools = [tool.model_copy(update={"name": (rename or {}).get(tool.name, tool.name)}) for tool in tools]
    if len({tool.name for tool in tools}) < len(tools):
        raise ValueError("two tools of one case share a name")
    return tuple(tools)
