"""The page of one evaluation, or of several side by side: every case that one of them got wrong beside its gold.

Everything comes from the folders (`folder`); text from models and data enters the page through its template alone,
which escapes it.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from tirkit.evaluation.benchmarks.base import BenchmarkError, CaseAttempt, CaseResult
from tirkit.evaluation.benchmarks.folder import (
    AskedCase,
    BenchmarkSetting,
    Outcome,
    read_asked,
    read_outcomes,
    read_results,
    read_setting,
    records_path,
)
from tirkit.evaluation.benchmarks.show import notes, totals_text
from tirkit.evaluation.metrics import Estimate
from tirkit.evaluation.pages import render
from tirkit.evaluation.paired import Paired, compare
from tirkit.evaluation.report import Table, shown
from tirkit.evaluation.tables import EMPTY, percent
from tirkit.store import write_atomic
from tirkit.text.dialects import print_json
from tirkit.types import Message

PAGE = "index.html"
RIGHT = ""  # the kind of failure of an attempt that is right
UNANSWERED = "not answered"


@dataclass(frozen=True)
class Evaluation:
    """One folder, read: what its model is called on the page, and each benchmark's outcome by name."""

    folder: Path
    label: str
    outcomes: dict[str, Outcome]


@dataclass(frozen=True)
class Tried:
    """An arm's attempt as it is shown: (who speaks, text) pairs, what is wrong with it, how it ended."""

    kind: str
    stop: str = ""
    said: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Shown:
    """A case as it is shown. `gold`: (what it is, text) pairs; `tried`: an attempt an arm."""

    number: int
    benchmark: str
    case_id: str
    category: str
    prompt: tuple[tuple[str, str], ...]
    gold: tuple[tuple[str, str], ...]
    tried: tuple[Tried, ...]

    @property
    def kinds(self) -> list[str]:
        """How its attempts fail."""
        return [tried.kind for tried in self.tried if tried.kind != RIGHT]

    @property
    def sides(self) -> str:
        """A digit an arm: 1 right, 0 wrong."""
        return "".join(str(int(tried.kind == RIGHT)) for tried in self.tried)


def report_evaluations(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of these evaluations into `out`; its path. The first is compared with each of the others.

    Raises BenchmarkError for a folder that holds no evaluation.
    """
    evaluations = _read(folders)
    names = list(dict.fromkeys(name for one in evaluations for name in one.outcomes))
    if not names:
        raise BenchmarkError(f"{folders[0]} holds no benchmark's results yet")
    pairs = list(_pairs(evaluations))
    cases = list(_cases(evaluations, names))
    anchors = {(case.benchmark, case.case_id): case.number for case in cases}
    page = render(
        "benchmarks/report.html.jinja",
        title="tirkit: evaluation of " + " and ".join(one.label for one in evaluations),
        arms=[one.label for one in evaluations],
        summary=_summary(evaluations, names),
        notes=[(one.label, name, notes(o)) for one in evaluations for name, o in one.outcomes.items()],
        totals=[(one.label, name, totals_text(o)) for one in evaluations for name, o in one.outcomes.items()],
        pairs=_pairs_table(evaluations[0].label, pairs),
        changed=[_changed(evaluations[0].label, *pair, anchors) for pair in pairs],
        failures=_failures(evaluations, names),
        cases=cases,
        benchmarks=list(dict.fromkeys(case.benchmark for case in cases)),
        categories=list(dict.fromkeys(case.category for case in cases)),
        kinds=list(dict.fromkeys(kind for case in cases for kind in case.kinds)),
    )
    write_atomic(out / PAGE, page)
    return out / PAGE


def _read(folders: Sequence[Path]) -> list[Evaluation]:
    settings = [_label(read_setting(folder)) for folder in folders]
    labels = [
        f"{label} ({folder})" if settings.count(label) > 1 else label
        for label, folder in zip(settings, folders, strict=True)
    ]
    return [
        Evaluation(folder, label, {outcome.benchmark.name: outcome for outcome in read_outcomes(folder)})
        for folder, label in zip(folders, labels, strict=True)
    ]


def _label(setting: BenchmarkSetting) -> str:
    return f"{setting.arm}, documents: {setting.documents}" + (f", {setting.change}" if setting.change else "")


def _verdicts(outcome: Outcome) -> dict[str, float | None]:
    return {result.case_id: result.score.right for result in outcome.results}


def _pairs(evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, str, Paired]]:
    """(the other arm, benchmark, the first against it) for every benchmark that both were put to."""
    first, *others = evaluations
    for other in others:
        for name in (name for name in first.outcomes if name in other.outcomes):
            paired = compare(_verdicts(first.outcomes[name]), _verdicts(other.outcomes[name]))
            if paired is not None:
                yield other.label, name, paired


def _summary(evaluations: Sequence[Evaluation], names: Sequence[str]) -> Table:
    rows: list[tuple[str, ...]] = []
    for name in names:
        for one in evaluations:
            if outcome := one.outcomes.get(name):
                result = outcome.evaluation()
                cost = [_mean(result.estimate(metric)) for metric in ("prompt_tokens", "output_tokens")]
                right = percent(result.estimate("success"))
                rows.append((name, one.label, str(len(outcome.results)), right, *cost, outcome.summary.checker))
    head = ("benchmark", "model", "n", "right %", "prompt tokens", "output tokens", "scored by")
    return Table(title="Results", head=head, rows=tuple(rows), note="± is the standard error over cases")


def _mean(value: Estimate | None) -> str:
    return EMPTY if value is None else f"{value.mean:,.0f}"


def _pairs_table(first: str, pairs: Sequence[tuple[str, str, Paired]]) -> Table:
    rows = tuple(
        (
            f"{first} − {other}",
            name,
            str(p.difference.n),
            f"{100 * p.difference.mean:+.1f}",
            f"{100 * p.difference.low:+.1f} … {100 * p.difference.high:+.1f}",
            f"{len(p.only_first)} / {len(p.only_second)}",
            f"{p.p_value:.2g}",
            str(p.unpaired or EMPTY),
        )
        for other, name, p in pairs
    )
    head = ("pair", "benchmark", "n", "points", "95 % interval", "only first / second right", "p", "not in both")
    note = "interval: paired bootstrap over cases; p: exact sign test on the cases that changed side (McNemar's)"
    return Table(title="Case by case", head=head, rows=rows, note=note)


def _changed(
    first: str, other: str, name: str, paired: Paired, anchors: dict[tuple[str, str], int]
) -> tuple[str, list[tuple[str, list[tuple[str, int]]]]]:
    """One line: how many cases changed side, and which, with where they are on the page."""
    line = f"{name}, {first} − {other}: {paired}"
    sides = ((first, paired.only_first), (other, paired.only_second))
    return line, [(arm, [(case, anchors[name, case]) for case in ids]) for arm, ids in sides if ids]


def _failures(evaluations: Sequence[Evaluation], names: Sequence[str]) -> Table:
    rows: list[tuple[str, ...]] = []
    for name in names:
        outcomes = [one.outcomes.get(name) for one in evaluations]
        counts = [Counter(map(_kind, outcome.results)) if outcome else Counter() for outcome in outcomes]
        kinds = sorted({kind for count in counts for kind in count} - {RIGHT})
        rows += [(name, kind, *(str(count[kind] or EMPTY) for count in counts)) for kind in kinds]
    head = ("benchmark", "wrong since", *(one.label for one in evaluations))
    return Table(title="Kinds of failure", head=head, rows=tuple(rows))


def _kind(result: CaseResult) -> str:
    return RIGHT if result.score.right == 1 else result.score.why or "partly right"


def _cases(evaluations: Sequence[Evaluation], names: Sequence[str]) -> Iterator[Shown]:
    """The cases that an arm got wrong, each once, with the attempts of all arms."""
    number = 0
    for name in names:
        arms = [one for one in evaluations if name in one.outcomes]
        wrong = {r.case_id for one in arms for r in one.outcomes[name].results if _kind(r) != RIGHT}
        asked = {case.task.id: case for one in arms for case in read_asked(one.folder, name) if case.task.id in wrong}
        attempts = [_attempts(one, name, wrong) for one in evaluations]
        for case_id, case in asked.items():
            yield Shown(
                number=number,
                benchmark=name,
                case_id=case_id,
                category=case.task.kind,
                prompt=tuple(map(_spoken, case.task.prompt)),
                gold=tuple(_gold(case)),
                tried=tuple(_tried(found.get(case_id)) for found in attempts),
            )
            number += 1


def _attempts(one: Evaluation, name: str, wanted: Collection[str]) -> dict[str, CaseAttempt]:
    stored = read_results(records_path(one.folder, name))
    return {attempt.case_id: attempt for attempt in stored if attempt.case_id in wanted}


def _spoken(message: Message) -> tuple[str, str]:
    return message.role, shown(message.content)


def _gold(case: AskedCase) -> Iterator[tuple[str, str]]:
    task = case.task
    for number, calls in enumerate(task.gold_rounds or (), start=1):
        rounds = len(task.gold_rounds or ())
        text = "\n".join(print_json({"name": call.name, "arguments": call.arguments}) for call in calls)
        yield f"calls, round {number}" if rounds > 1 else "calls", shown(text)
    if task.gold_rounds == ():
        yield "calls", "none"
    if task.answers:
        yield "reply", shown(" | ".join(task.answers))
    if case.gold is not None:
        yield "what the scorer reads", shown(_lines(case.gold))
    for tool in case.tools:
        yield f"document of {tool.name}", shown(_lines({"": tool.description, **tool.parameters}))


def _lines(value: JsonValue) -> str:
    """JSON, an entry of the outermost object or list a line."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {print_json(item)}" if key else str(item) for key, item in value.items())
    return "\n".join(map(print_json, value)) if isinstance(value, list) else print_json(value)


def _tried(attempt: CaseAttempt | None) -> Tried:
    if attempt is None:
        return Tried(UNANSWERED)
    said: list[tuple[str, str]] = []
    for turn in attempt.trajectory.turns:
        said.append(("assistant", shown(turn.text)))
        said += [("problem", shown(problem)) for problem in turn.problems]
        said += map(_spoken, turn.reply)
    return Tried(_kind(attempt), str(attempt.trajectory.stop), tuple(said))
