"""The pages of one evaluation, or of several side by side: tables, and every case with its attempts beside its gold.

Everything comes from the folders (`folder`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import JsonValue

from tirkit.evaluation.attempts import PAGE as ATTEMPTS
from tirkit.evaluation.attempts import Attempt, Case, gold_parts, said_parts, spoken, text_spans, write_attempts
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
from tirkit.evaluation.pages import render, shown
from tirkit.evaluation.paired import Paired, compare
from tirkit.evaluation.report import Table
from tirkit.evaluation.tables import EMPTY, percent
from tirkit.store import write_atomic
from tirkit.text.dialects import print_json

PAGE = "index.html"
RIGHT = ""  # the kind of failure of an attempt that is right


@dataclass(frozen=True)
class Evaluation:
    """One folder, read: what its model is called on the page, and each benchmark's outcome by name."""

    folder: Path
    label: str
    outcomes: dict[str, Outcome]


def report_evaluations(folders: Sequence[Path], out: Path) -> Path:
    """Write the pages of these evaluations into `out`; the first's path. The first is compared with each of the others.

    Raises BenchmarkError for a folder that holds no evaluation.
    """
    evaluations = _read(folders)
    names = list(dict.fromkeys(name for one in evaluations for name in one.outcomes))
    if not names:
        raise BenchmarkError(f"{folders[0]} holds no benchmark's results yet")
    pairs = list(_pairs(evaluations))
    title = "tirkit: evaluation of " + " and ".join(one.label for one in evaluations)
    write_attempts(out, f"{title}: attempts", _cases(evaluations, names))
    page = render(
        "benchmarks/report.html.jinja",
        title=title,
        attempts=ATTEMPTS,
        summary=_summary(evaluations, names),
        notes=[(one.label, name, notes(o)) for one in evaluations for name, o in one.outcomes.items()],
        totals=[(one.label, name, totals_text(o)) for one in evaluations for name, o in one.outcomes.items()],
        pairs=_pairs_table(evaluations[0].label, pairs),
        changed=[_changed(evaluations[0].label, *pair) for pair in pairs],
        failures=_failures(evaluations, names),
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


def _changed(first: str, other: str, name: str, paired: Paired) -> tuple[str, list[tuple[str, list[tuple[str, str]]]]]:
    """One line: how many cases changed side, and which, with their anchors on the page of attempts."""
    line = f"{name}, {first} − {other}: {paired}"
    sides = ((first, paired.only_first), (other, paired.only_second))
    return line, [(arm, [(case, quote(_anchor(name, case), safe="")) for case in ids]) for arm, ids in sides if ids]


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


def _cases(evaluations: Sequence[Evaluation], names: Sequence[str]) -> list[Case]:
    """All cases with the attempts of all arms, those first that some arm did not get right."""
    cases = [case for name in names for case in _benchmark_cases(evaluations, name)]
    return sorted(cases, key=lambda case: all(attempt.verdict == "right" for attempt in case.attempts))


def _benchmark_cases(evaluations: Sequence[Evaluation], name: str) -> Iterator[Case]:
    arms = [one for one in evaluations if name in one.outcomes]
    asked = {case.task.id: case for one in arms for case in read_asked(one.folder, name)}
    attempts: dict[str, list[Attempt]] = {case_id: [] for case_id in asked}
    for one in arms:
        for stored in read_results(records_path(one.folder, name)):
            attempts[stored.case_id].append(_attempt(one.label, stored))
    for case_id, case in asked.items():
        yield Case(
            id=_anchor(name, case_id),
            kind=f"{name}: {case.task.kind}",
            asked=spoken(case.task.prompt),
            gold=(*gold_parts(case.task), *_scored_by(case)),
            attempts=tuple(attempts[case_id]),
        )


def _anchor(name: str, case_id: str) -> str:
    return f"{name}/{case_id}"


def _attempt(arm: str, stored: CaseAttempt) -> Attempt:
    why, trajectory = _kind(stored), stored.trajectory
    return Attempt(
        arm=arm,
        verdict="right" if why == RIGHT else "wrong",
        why=why,
        mode=trajectory.mode or "",
        stop=str(trajectory.stop),
        said=said_parts(trajectory),
        spans=text_spans(trajectory),
    )


def _scored_by(case: AskedCase) -> Iterator[tuple[str, str]]:
    if case.gold is not None:
        yield "what the scorer reads", shown(_lines(case.gold))
    for tool in case.tools:
        yield f"document of {tool.name}", shown(_lines({"": tool.description, **tool.parameters}))


def _lines(value: JsonValue) -> str:
    """JSON, an entry of the outermost object or list a line."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {print_json(item)}" if key else str(item) for key, item in value.items())
    return "\n".join(map(print_json, value)) if isinstance(value, list) else print_json(value)
