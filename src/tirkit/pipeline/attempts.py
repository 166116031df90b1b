"""The test attempts that runs stored, as cases for the page of attempts: one question beside its gold, all arms."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tirkit.evaluation.attempts import Attempt, Case, Spans, Verdict, gold_parts, said_parts, spoken, text_spans
from tirkit.evaluation.metrics import Item
from tirkit.evaluation.pages import shown
from tirkit.evaluation.run import EvaluationResult
from tirkit.evaluation.tables import kind_of
from tirkit.pipeline.context import FORCED, attempt_records, run_index
from tirkit.pipeline.sources import load_tokenizer
from tirkit.store import RunFolder
from tirkit.text.masks import coloured, token_row
from tirkit.text.render import Renderer
from tirkit.types import Task, ToolSchema, Trajectory


def results_of(folders: Iterable[Path], earlier_too: bool = True) -> list[EvaluationResult]:
    """Test results, the last stage's under the arm's name and earlier ones marked with their stage."""
    found: list[EvaluationResult] = []
    for folder in folders:
        *earlier, last = list(RunFolder.read(folder).read_records("test_results", EvaluationResult)) or [None]
        if last is not None:
            marked = [r.model_copy(update={"arm": f"{r.arm}, after {r.stage}"}) for r in earlier if r]
            found += [last, *(marked if earlier_too else ())]
    return found


def cases_of(folders: Sequence[Path]) -> list[Case]:
    """Every test question of these runs with the attempts at it, arms named and ordered as `results_of` has them.

    Runs of several seeds may ask different questions under one id: the later ones get their seed to it.
    """
    results = [(folder, result) for folder in folders for result in results_of([folder])]
    several = len({result.seed for _, result in results}) > 1
    tasks: dict[str, Task] = {}
    attempts: dict[str, list[Attempt]] = {}
    for folder, result in results:
        run = RunFolder.read(folder)
        asked = {task.id: task for task in run.read_records("tasks_test", Task)}
        items = {item.task_id: item for item in result.items}
        arm = f"{result.arm}, seed {result.seed}" if several else result.arm
        renderer = _renderer(run, result.stage.partition(FORCED)[0])
        for trajectory in run.read_records(attempt_records(result.stage), Trajectory):
            task, item = asked[trajectory.task_id], items[trajectory.task_id]
            name = task.id if tasks.setdefault(task.id, task) == task else f"{task.id}, seed {result.seed}"
            tasks.setdefault(name, task)
            attempts.setdefault(name, []).append(_attempt(arm, trajectory, item, renderer))
    return [
        Case(id=name, kind=task.kind, asked=spoken(task.prompt), gold=gold_parts(task), attempts=tuple(attempts[name]))
        for name, task in tasks.items()
    ]


def _renderer(run: RunFolder, stage: str) -> Renderer:
    tools = tuple(run.read_records("catalogue", ToolSchema))
    return Renderer(load_tokenizer(run.model(stage)), run_index(run, run.manifest.config, tools))


def _attempt(arm: str, trajectory: Trajectory, item: Item, renderer: Renderer) -> Attempt:
    success = item.metrics["success"]
    verdict: Verdict = "unscored" if success is None else "right" if success else "wrong"
    return Attempt(
        arm=arm,
        verdict=verdict,
        why=why_wrong(item) if verdict == "wrong" else "",
        mode=trajectory.mode or "",
        stop=str(trajectory.stop),
        said=said_parts(trajectory),
        spans=_spans(trajectory, renderer),
    )


def why_wrong(item: Item) -> str:
    """What is wrong with a wrong attempt, the first thing of all, in words that can be counted."""
    if item.problems:
        return kind_of(item.problems[0])
    judged = (("id_em", "other tools"), ("call_em", "other arguments"))
    return next((why for metric, why in judged if item.metrics.get(metric) == 0), "other answer")


def _spans(trajectory: Trajectory, renderer: Renderer) -> Spans:
    if not trajectory.prompt_ids:  # an endpoint that never answered
        return text_spans(trajectory)
    return tuple((shown(text), kind) for text, kind in coloured(token_row(trajectory), renderer.decode_all))
