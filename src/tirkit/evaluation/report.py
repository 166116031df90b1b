"""The report: one static page that works offline, plotly.js beside it.

Text from outside (questions, tool results, arm names, config) only enters the page through the template, which escapes
everything, or as JSON that cannot leave its script element.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tirkit.evaluation.attempts import PAGE, Case, write_attempts
from tirkit.evaluation.charts import Panel, accuracy_figure, knowledge_figure, panel_figure
from tirkit.evaluation.pages import render, script_json
from tirkit.evaluation.run import EvaluationResult, KnowledgeResult
from tirkit.evaluation.tables import (
    EMPTY,
    SHARES,
    Column,
    arm_rows,
    columns_with_values,
    counts,
    differences,
    group_columns,
    not_compared,
    percent,
    seeds_note,
)
from tirkit.store import write_atomic
from tirkit.types import Record

PLOTLY = "plotly.min.js"


class Table(Record):
    """A table that is shown as it is."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class ReportData(Record):
    """All that a report shows. Empty parts are left out of the page.

    `arms`: the method first, then what it is compared with; several seeds of an arm make one row. `panels`: learning
    curves and other diagrams. `knowledge`: after every phase, in order. `config`: as saved with the run.
    """

    title: str
    intro: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    arms: tuple[EvaluationResult, ...] = ()
    panels: tuple[Panel, ...] = ()
    knowledge: tuple[KnowledgeResult, ...] = ()
    cases: tuple[Case, ...] = ()
    tables: tuple[Table, ...] = ()
    config: str = ""


def write_report(folder: Path, data: ReportData) -> Path:
    """Write index.html, plotly.min.js and, where there are cases, attempts.html into `folder`; the first's path."""
    folder.mkdir(parents=True, exist_ok=True)
    page = render("report.html.jinja", **_view(data))
    script = get_plotlyjs()
    if not (folder / PLOTLY).exists() or (folder / PLOTLY).stat().st_size != len(script.encode()):
        write_atomic(folder / PLOTLY, script)
    if data.cases:
        write_attempts(folder, f"{data.title}: attempts", data.cases)
    write_atomic(folder / "index.html", page)
    return folder / "index.html"


def _view(data: ReportData) -> dict[str, Any]:
    """What the template shows: text, and figures as JSON."""
    rows = arm_rows(data.arms)
    stops, problems = counts(data.arms)
    return {
        "data": data,
        "plotly": PLOTLY,
        "seeds_note": seeds_note(data.arms),
        "headline": _headline(data.arms),
        "differences": _differences(data.arms),
        "accuracy": Markup(script_json(accuracy_figure(rows))) if rows else "",
        "panels": [(panel, Markup(script_json(panel_figure(panel)))) for panel in data.panels if panel.curves],
        "knowledge": Markup(script_json(knowledge_figure(data.knowledge))) if data.knowledge else "",
        "knowledge_table": _knowledge_table(data.knowledge),
        "metrics": [table for group in ("all", "seen", "unseen") if (table := _metrics(data.arms, group)).rows],
        "kinds": _arms_table("Accuracy by group and kind of task (%)", data.arms, group_columns(data.arms, "success")),
        "attempts": PAGE,
        "stops": _counts_table("Why attempts ended", stops),
        "problems": _counts_table("Problems and tool errors", problems),
    }


def _arms_table(title: str, results: Sequence[EvaluationResult], columns: Sequence[Column], note: str = "") -> Table:
    rows = arm_rows(results, columns)
    used = columns_with_values(rows, columns)
    body = tuple((row.arm, *(row.cells[column.key] for column in used)) for row in rows) if used else ()
    return Table(title=title, note=note, head=("arm", *(column.head for column in used)), rows=body)


def _headline(results: Sequence[EvaluationResult]) -> Table:
    rows = arm_rows(results)
    columns = columns_with_values(rows)
    body = tuple((row.arm, *(row.cells[column.key] for column in columns)) for row in rows)
    return Table(title="Arms", head=("arm", *(column.head for column in columns)), rows=body)


def _metrics(results: Sequence[EvaluationResult], group: str) -> Table:
    columns = [Column(metric, head, metric, group) for metric, head in SHARES.items()]
    counted = max((sum(row is not None for row in result.values("success", group)) for result in results), default=0)
    title = {"all": "All tasks", "seen": "Seen tools", "unseen": "Unseen tools"}[group]
    return _arms_table(f"{title} (%, n = {counted})", results, columns)


def _differences(results: Sequence[EvaluationResult]) -> Table:
    first = results[0].arm if results else ""
    body = tuple(
        (
            f"{first} − {arm}",
            f"{100 * value.mean:+.1f}",
            f"{100 * value.low:+.1f} … {100 * value.high:+.1f}",
            str(value.n),
        )
        for arm, value in differences(results)
    )
    odd = not_compared(results)
    note = "same questions; intervals over questions and seeds" + f"; other questions: {', '.join(odd)}" * bool(odd)
    return Table(title="Paired differences", head=("pair", "points", "95 % interval", "tasks"), rows=body, note=note)


def _knowledge_table(phases: Sequence[KnowledgeResult]) -> Table:
    groups: tuple[tuple[str, bool | None], ...] = (("all", None), ("seen", True), ("unseen", False))
    body: list[tuple[str, ...]] = []
    for phase in phases:
        for name, seen in groups:
            values = [phase.estimate(metric, seen) for metric in ("memorise", "recall", "recall_f1")]
            if values[0] is not None:
                body.append((phase.phase, name, str(values[0].n), *(percent(value) for value in values)))
    head = ("after phase", "tools", "n", "memorise %", "recall exact %", "recall field F1 %")
    return Table(title="Memorise and recall", head=head, rows=tuple(body))


def _counts_table(title: str, counts_by_arm: dict[str, Any]) -> Table:
    total: dict[str, int] = {}
    for counted in counts_by_arm.values():
        for name, number in counted.items():
            total[name] = total.get(name, 0) + number
    names = sorted(total, key=lambda name: (-total[name], name))
    rows = tuple((name, *(str(c[name]) if c[name] else EMPTY for c in counts_by_arm.values())) for name in names)
    return Table(title=title, head=("what", *counts_by_arm), rows=rows)
