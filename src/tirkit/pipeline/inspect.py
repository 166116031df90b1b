"""Look at a run's trajectories in the terminal."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from tirkit.config import ConfigError
from tirkit.evaluation.run import EvaluationResult
from tirkit.evaluation.terminal import render_trajectory
from tirkit.methods.autotraj.repair import RepairedTask
from tirkit.methods.autotraj.synthesise import JudgedGroup
from tirkit.pipeline.context import MODEL_STAGES, Context, attempt_records
from tirkit.pipeline.run import open_run
from tirkit.pipeline.sources import SPLITS
from tirkit.scoring.quality import QualityScore
from tirkit.text.masks import coloured
from tirkit.types import Group, Task, Trajectory

Shown = tuple[tuple[Trajectory, str], ...]
"""Trajectories that stand beside each other, each with a note."""


def inspect_run(root: Path, records: str, count: int, task_id: str) -> list[RenderableType]:
    """Trajectories of a run, coloured by mask. `records`: test, synthesise, candidates, repairs or rl."""
    ctx = open_run(root)
    stage = next((name for name in reversed(MODEL_STAGES) if ctx.folder.mark(name) is not None), "")
    if not stage:
        raise ConfigError(f"{root} has no complete stage yet: nothing to look at")
    names = [f"tasks_{split}" for split in (*SPLITS, "candidates")]
    tasks = {task.id: task for name in names for task in ctx.folder.read_records(name, Task)}
    chosen = [one for one in _found(ctx, records, stage) if not task_id or one[0][0].task_id == task_id]
    if not chosen:
        raise ConfigError(
            f"{root} has no such trajectories: records {records!r}{f', task {task_id!r}' if task_id else ''}"
        )
    return [_rendered(ctx, one, tasks) for one in chosen[:count]]


def _found(ctx: Context, records: str, stage: str) -> Iterator[Shown]:
    """Everything stored under that name; `stage` is the last that left a model."""
    if records == "rl":
        for group in ctx.folder.read_records("rl", Group):
            yield from (((trajectory, ""),) for trajectory in group.trajectories)
    elif records == "candidates":
        for group in ctx.folder.read_records("candidates", JudgedGroup):
            for trajectory, score, decision in zip(group.trajectories, group.scores, group.decisions, strict=True):
                yield ((trajectory, f"{_said(score)}: {decision}"),)
    elif records == "repairs":
        for record in ctx.folder.read_records("repairs", RepairedTask):
            for one in record.repairs:
                made = f"repaired by {one.by}, try {one.tries}, {_said(one.score)}; {'; '.join(one.changes)}"
                yield (one.original, f"original, {_said(one.original_score)}"), (one.repaired, made)
    else:
        results = list(ctx.folder.read_records("test_results", EvaluationResult))
        asked = results[-1].stage if results else stage  # RL that could not start leaves a model that nobody asked
        name = {"test": attempt_records(asked), "synthesise": "synthesis"}.get(records, records)
        yield from (((trajectory, ""),) for trajectory in ctx.folder.read_records(name, Trajectory))


def _said(score: QualityScore) -> str:
    verdict = "unjudged" if score.right is None else "right" if score.right else "wrong"
    length = "–" if score.length is None else f"{score.length:.2f}"
    parts = f"hesitation {score.hesitation:.0f}, length {length}, repetition {score.repetition:.2f}"
    return f"{verdict}, S {score.total:.3f} ({parts})"


def _rendered(ctx: Context, one: Shown, tasks: dict[str, Task]) -> RenderableType:
    panels: list[RenderableType] = []
    for trajectory, note in one:
        task = tasks.get(trajectory.task_id)
        spans = coloured(ctx.row(ctx.renderer, trajectory, task), ctx.renderer.decode_all)
        panels.append(render_trajectory(spans, trajectory, task, note))
    if len(panels) == 1:
        return panels[0]
    beside = Table.grid(expand=True)
    for _ in panels:
        beside.add_column(ratio=1)
    beside.add_row(*panels)
    return beside
