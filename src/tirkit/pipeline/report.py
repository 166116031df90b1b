"""The HTML report of one run, or of several side by side: everything they stored, in tables and curves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from tirkit.evaluation.charts import Curve, Panel
from tirkit.evaluation.preference import PairReport
from tirkit.evaluation.report import ReportData, Table, write_report
from tirkit.evaluation.run import EvaluationResult, KnowledgeResult
from tirkit.evaluation.tables import EMPTY, duration, percent
from tirkit.pipeline.attempts import cases_of, results_of
from tirkit.pipeline.context import MODEL_STAGES, STAGE_ORDER
from tirkit.store import RunFolder, StageMark

TRAINED = MODEL_STAGES[1:]
ENTROPY_TERMS = [name for over in ("all", "think", "no_think") for name in (over, f"{over}_mode_token")]


@dataclass(frozen=True)
class FactsTable:
    """A table of one stage's facts, one row a run; `columns`: fact → head."""

    stage: str
    title: str
    columns: Mapping[str, str]
    note: str


FACTS = (
    FactsTable(
        "label",
        "Mode labels",
        {
            "tasks": "questions",
            "no_think": "easy",
            "think": "need thinking",
            "neither": "neither succeeds",
            "by_kind": "by kind",
            "targets": "imitated",
            "think_share": "share that thinks",
        },
        "easy: right often enough without thinking",
    ),
    FactsTable(
        "refine",
        "RL's questions",
        {"tasks": "questions", "kept": "kept", "reasons": "why"},
        "variance: the reward varied more over the rounds than that of those kept",
    ),
    FactsTable(
        "candidates",
        "Candidates",
        {
            "attempts": "attempts",
            "right": "right %",
            "mean_S": "mean S",
            "mean_length": "length",
            "mean_words": "words",
            "kept": "kept",
            "poor": "right but poor",
            "wrong": "wrong",
        },
        "S: the trajectory score; right but poor and wrong ones are repaired",
    ),
    FactsTable(
        "repair",
        "Repairs",
        {
            "repaired": "accepted",
            "hard": "hard cases",
            "by": "by",
            "poor_repaired": "poor",
            "poor_S_before": "S before",
            "poor_S_after": "after",
            "wrong_repaired": "wrong",
            "wrong_S_before": "S before",
            "wrong_S_after": "after",
            "requests": "requests",
            "written_tokens": "tokens written",
            "cost": "cost",
        },
        "hard cases: no repair was accepted; by: who wrote the accepted ones",
    ),
    FactsTable(
        "pairs",
        "What is trained on",
        {
            "sft_examples": "SFT examples",
            "kept": "kept",
            "repaired": "repaired",
            "demonstration": "demonstrated",
            "preferences": "pairs",
            "duplicates": "duplicates",
            "over_limit": "over the limit",
            "contaminated": "contaminated",
        },
        "the last three were left out",
    ),
)


def report_runs(folders: Sequence[Path], out: Path) -> Path:
    """Write one report of several runs, the method's first; returns the page's path."""
    transformers_logging.disable_progress_bar()
    runs = [RunFolder.read(folder) for folder in folders]
    first = runs[0]
    config = first.manifest.config
    seeds = sorted({run.manifest.seed for run in runs})
    data = ReportData(
        title=f"tirkit: {config.name}",
        intro="What the arms reach on the same test questions, and how they got there.",
        facts=(
            ("arms", ", ".join(dict.fromkeys(run.manifest.config.name for run in runs))),
            ("seeds", ", ".join(map(str, seeds))),
            ("code", first.manifest.git_rev),
            ("machine", first.manifest.machine),
        ),
        arms=tuple(results_of(folders)),
        panels=tuple(_panels(runs)),
        knowledge=tuple(_knowledge(first)),
        cases=tuple(cases_of(folders)),
        tables=tuple(table for table in _tables(runs) if table.rows),
        config=config.model_dump_json(indent=2),
    )
    return write_report(out, data)


def _panels(runs: Sequence[RunFolder]) -> Iterable[Panel]:
    """Loss of each training stage, reward and entropy of RL, calibration of reward models, one curve a run."""
    for stage, key, label in (
        ("internalise", "loss", "loss"),
        ("internalise", "loss_recall", "recall loss"),
        ("warmup", "loss", "loss"),
        ("finetune", "loss", "loss"),
        ("grow", "loss", "loss"),
        ("reward_model", "loss", "ranking loss"),
        ("rl", "reward", "reward"),
        ("rl", "reward/outcome", "outcome"),
        ("rl", "reward/bonus", "bonus by the reward model, unweighted"),
        ("rl", "reward/scorer_failed", "share the reward model gave no score"),
        ("rl", "entropy", "entropy (nats per token)"),
        ("rl", "think_rate", "share of attempts that think"),
        ("rl", "mode_entropy", "entropy of the choice to think (nats)"),
        ("rl", "think/tokens", "tokens of attempts that think"),
        ("rl", "think/right", "accuracy of attempts that think"),
        ("rl", "no_think/right", "accuracy of attempts that do not"),
        ("rl", "think/entropy", "entropy of attempts that think"),
        *(("rl", f"entropy_coef/{name}", f"entropy coefficient, {name}") for name in ENTROPY_TERMS),
        *(
            ("rl", f"entropy_gate/{name}", f"share of trajectories below the entropy target, {name}")
            for name in ENTROPY_TERMS
        ),
    ):
        curves = [curve for run in runs if (mark := run.mark(stage)) and (curve := _curve(run, mark, key))]
        if curves:
            yield Panel(title=f"{stage}: {label}", curves=tuple(curves), y_label=label)
    if calibrations := [curve for run in runs if (curve := _calibration(run))]:
        yield Panel(
            title="reward_model: calibration on held-out pairs",
            curves=tuple(calibrations),
            x_label="confidence",
            y_label="accuracy",
            note="Perfect calibration is the diagonal.",
        )


def _name(run: RunFolder) -> str:
    return f"{run.manifest.config.name}, seed {run.manifest.seed}"


def _calibration(run: RunFolder) -> Curve | None:
    for report in run.read_records("pair_report", PairReport):
        x, y = zip(*((b.confidence, b.accuracy) for b in report.calibration), strict=True)
        return Curve(name=_name(run), x=x, y=y)
    return None


def _curve(run: RunFolder, mark: StageMark, key: str) -> Curve | None:
    lines: Any = mark.facts.get("curve", [])
    points: list[Mapping[str, float]] = [line for line in lines if isinstance(line.get(key), int | float)]
    if not points:
        return None
    x, y = zip(*((float(point["step"]), float(point[key])) for point in points), strict=True)
    return Curve(name=_name(run), x=x, y=y)


def _knowledge(run: RunFolder) -> Iterable[KnowledgeResult]:
    for stage in TRAINED:
        yield from run.read_records(f"knowledge_{stage}", KnowledgeResult)


def _tables(runs: Sequence[RunFolder]) -> Iterable[Table]:
    yield _kinds_table(runs)
    yield from (_facts_table(runs, table) for table in FACTS)
    yield _pair_table(runs)
    yield _general_table(runs[0])
    yield _stage_table(runs)


def _kinds_table(runs: Sequence[RunFolder]) -> Table:
    """Test results by kind of question and mode."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        for result in run.read_records("test_results", EvaluationResult):
            kinds = sorted({item.kind for item in result.items if item.kind})
            for kind in kinds:
                group = f"kind: {kind}"
                think, tokens = result.estimate("think_rate", group), result.estimate("output_tokens", group)
                cells = (
                    percent(result.estimate("success", group)),
                    percent(think),
                    f"{tokens.mean:.1f}" if tokens else EMPTY,
                )
                rows.append((_name(run), result.stage, kind, *cells))
    head = ("run", "after", "kind", "accuracy %", "thinks %", "tokens written")
    return Table(title="By kind of question", head=head, rows=tuple(rows), note="± is the standard error over items")


def _facts_table(runs: Sequence[RunFolder], table: FactsTable) -> Table:
    marks = [(run, mark) for run in runs if (mark := run.mark(table.stage)) is not None]
    rows = tuple((_name(run), *(_cell(key, mark.facts.get(key)) for key in table.columns)) for run, mark in marks)
    return Table(title=table.title, head=("run", *table.columns.values()), rows=rows, note=table.note)


def _cell(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items()) or EMPTY
    if isinstance(value, float):
        return f"{100 * value:.1f}" if key == "right" else f"{value:.3g}"
    return EMPTY if value is None else str(value)


def _pair_table(runs: Sequence[RunFolder]) -> Table:
    """Reward models on held-out pairs."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        for report in run.read_records("pair_report", PairReport):
            values = (report.accuracy, report.length_matched, report.longer_chosen, report.shorter_wins)
            cells = [
                EMPTY if v is None else f"{100 * v.mean:.1f} [{100 * v.low:.0f}, {100 * v.high:.0f}], n = {v.n}"
                for v in values
            ]
            words = f"{report.chosen_words:.1f} / {report.rejected_words:.1f}"
            rows.append((_name(run), *cells, words, f"{report.calibration_error:.3f}"))
    accuracies = ("all pairs %", "of like length %", "longer one chosen %", 'rule "shorter wins" %')
    head = ("run", *accuracies, "words, chosen / rejected", "calibration error")
    note = "accuracy with its 95 % interval over pairs; of like length: within 10 %"
    return Table(title="Reward model on held-out pairs", head=head, rows=tuple(rows), note=note)


def _general_table(run: RunFolder) -> Table:
    """What the first run has forgotten of the base model's own tasks, phase by phase."""
    rows: list[tuple[str, ...]] = []
    head: tuple[str, ...] = ()
    for stage in ("prepare", *TRAINED):
        mark = run.mark(stage)
        skills: Any = mark.facts.get("general") if mark else None
        if skills:
            head = ("after", *skills)
            rows.append((stage, *(f"{100 * value:.0f}" for value in skills.values())))
    title = "The base model's own tasks (% exact, test phrasing)"
    note = f"{run.manifest.config.name}; {run.manifest.config.evaluate.general_items} items a skill"
    return Table(title=title, head=head, rows=tuple(rows), note=note)


def _stage_table(runs: Sequence[RunFolder]) -> Table:
    """Seconds of every stage of every run, and of training alone."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        marks = [mark for stage in STAGE_ORDER[:-1] if (mark := run.mark(stage)) is not None]
        times = ", ".join(f"{mark.stage} {duration(mark.duration_s)}" for mark in marks)
        total = duration(sum(mark.duration_s for mark in marks))
        rows.append((_name(run), total, times))
    return Table(title="Time", head=("run", "total", "stages"), rows=tuple(rows), note="wall clock, m:ss")
