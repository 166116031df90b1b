"""Tools added to a finished run: another run, which begins with its model and has the new catalogue.

    prepare   the new catalogue (records/growth.jsonl: tokens, old and new, and those retired), the run's questions and
              the attempts at them that phase 2 was trained on, as far as they still hold (records/attempts.jsonl), its
              model with rows for the new tools
    grow      the new rows and LoRA factors, merged at the end; what is known of old and new tools before and after
    evaluate  the questions of the run, and those about the new tools, before and after

Nothing is read of the old run once `prepare` is complete.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Column, Table

from tirkit.config import ConfigError, RunConfig, override, parse_config
from tirkit.config.check import TRAINING
from tirkit.evaluation.metrics import estimate
from tirkit.evaluation.run import EvaluationResult, KnowledgeResult
from tirkit.methods.tinr.corpus import alignment_corpus, loss_weights
from tirkit.methods.tinr.grow import (
    CatalogueChange,
    Grown,
    compare_catalogues,
    extended,
    grow_index,
    growth_corpus,
    trained_tokens,
)
from tirkit.methods.tinr.think import replay_mix
from tirkit.methods.tinr.tokens import grow_vocabulary
from tirkit.pipeline.context import Context, Loaded
from tirkit.pipeline.sources import SPLITS, load_toolbox, load_tools
from tirkit.pipeline.train import Facts, attempt_rows, corpus_settings, remembered, supervise, weighted_rows
from tirkit.store import RunFolder
from tirkit.text.index import ToolIndex
from tirkit.text.schema import validate_arguments
from tirkit.tools.origin import functions_digest
from tirkit.tools.questions import load_tasks
from tirkit.training.sft import WeightedRow
from tirkit.types import Task, ToolSchema, Trajectory

LORA_RANK = 16  # where the run itself was trained whole
BUILT_IN = ("embedded", "python_search")
MEASURES = {"memorise": "tool from document %", "recall": "document exact %", "recall_f1": "document field F1 %"}


def grown_config(
    run: Path, catalogue: str, settings: Sequence[str] = (), remove: bool = False, questions: str = ""
) -> RunConfig:
    """The config of a run that adds the tools of `catalogue` to the finished `run`; settings: section.key=value.

    Raises StoreError where there is no such run, ConfigError for settings that can't be used.
    """
    data = RunFolder.read(run).manifest.config.model_dump(mode="json")
    if data["catalogue"]["path"] in BUILT_IN:
        raise ConfigError(
            f"{run} was trained with built-in tools (catalogue.path = {data['catalogue']['path']!r}), which can't grow"
        )
    data["catalogue"]["path"] = catalogue
    data["model"]["lora_rank"] = data["model"]["lora_rank"] or LORA_RANK
    for stage in TRAINING:
        data[stage]["enabled"] = False
    data["grow"] = {"enabled": True, "run": str(run.resolve()), "remove": remove, "questions": questions}
    return parse_config(override(data, settings), f"{run} with the tools of {catalogue}")


def prepare_grown(ctx: Context) -> Facts:
    """Take over the run that is grown: catalogue, questions, model. Raises ConfigError where it can't be grown."""
    config = ctx.config.grow
    folder = RunFolder.read(Path(config.run))
    old = Context(folder.manifest.config, folder, ctx.progress)
    last = old.stage_before("evaluate")
    if folder.mark(last) is None:
        raise ConfigError(f"{config.run} is not finished (stage {last}): go on with `tirkit run` first")
    tools, change = _change(ctx, old)
    index, retired = _index(old, tools)
    tasks, dropped = _tasks(old, tools, {tool.name for tool in change.changed}, config.questions)
    load_toolbox(ctx.config, tools)  # says now what is wrong with the functions
    loaded = old.load(last)
    growth = grow_vocabulary(loaded.model, loaded.tokenizer, index, tools)
    ids: Any = loaded.tokenizer.convert_tokens_to_ids(list(trained_tokens(index, change)))
    ctx.folder.write_records("catalogue", tools)
    for split in SPLITS:
        ctx.folder.write_records(f"tasks_{split}", tasks[split])
    ctx.folder.write_records("attempts", _attempts(old, tasks["train"], (*change.changed, *change.removed)))
    names = {part: tuple(t.name for t in getattr(change, part)) for part in ("added", "changed", "removed")}
    ctx.folder.write_records("growth", [Grown(surfaces=index.surfaces, retired=retired, **names)])
    ctx.save(loaded, "prepare")
    counts = {name: len(getattr(change, name)) for name in ("added", "changed", "removed", "kept")}
    return {
        **counts,
        "retired": len(retired),
        "dropped_questions": dropped,
        "parameters": loaded.model.num_parameters(),
        "rows_before": growth.rows_before,
        "rows_after": growth.rows_after,
        "new_token_ids": ids,
        **({"functions": digest} if (digest := functions_digest(tools)) else {}),
    }


def _change(ctx: Context, old: Context) -> tuple[tuple[ToolSchema, ...], CatalogueChange]:
    """The catalogue as it is to be, and what changes. ConfigError where nothing does."""
    found, issues = load_tools(ctx.config.catalogue)
    for issue in issues:
        ctx.progress.say(str(issue))
    tools = extended(old.sources.tools, found, ctx.config.grow.remove)
    change = compare_catalogues(old.sources.tools, tools)
    if not change.learned and not change.removed:
        raise ConfigError(f"{ctx.config.catalogue.path} has no tool that {ctx.config.grow.run} does not know")
    return tools, change


def _index(old: Context, tools: Sequence[ToolSchema]) -> tuple[ToolIndex, tuple[str, ...]]:
    """How the tools are written, and the tokens that are no tool's any more. ConfigError where that can't grow."""
    before = next(old.folder.read_records("growth", Grown), None)
    if old.index is None:
        raise ConfigError(f"{old.folder.root} has no tool in its weights; give it the new catalogue where it runs")
    try:
        return grow_index(old.index, tools, before.retired if before else ())
    except ValueError as error:
        raise ConfigError(f"{old.folder.root}: {error}") from error


def _tasks(
    old: Context, tools: Sequence[ToolSchema], changed: Collection[str], questions: str
) -> tuple[dict[str, tuple[Task, ...]], int]:
    """(the run's questions that still hold, with those of the file in the test; how many no longer do)."""
    known = {tool.name: tool for tool in tools}
    tasks: dict[str, tuple[Task, ...]] = {}
    dropped = 0
    for split in SPLITS:
        held = tuple(task for task in old.sources.tasks[split] if _holds(task, known, changed))
        dropped += len(old.sources.tasks[split]) - len(held)
        tasks[split] = held
    if questions:
        loaded = load_tasks(questions, known)
        for issue in loaded.issues:
            old.progress.say(str(issue))
        taken = {task.id for split in SPLITS for task in tasks[split]}
        new = tuple(t.model_copy(update={"split": "test"}) for t in loaded.tasks if t.id not in taken)
        tasks["test"] = (*tasks["test"], *new)
    return tasks, dropped


def _holds(task: Task, tools: Mapping[str, ToolSchema], changed: Collection[str]) -> bool:
    """Whether all tools of a question are there, and its gold arguments fit those that were changed."""
    calls = task.gold_calls or ()
    return all(name in tools for name in (*task.tools, *(call.name for call in calls))) and not any(
        validate_arguments(tools[call.name], call.arguments) for call in calls if call.name in changed
    )


def _attempts(old: Context, train: Sequence[Task], gone: Sequence[ToolSchema]) -> list[Trajectory]:
    """Attempts at questions that still hold, without those that were handed documents that no longer do."""
    kept, names = {task.id for task in train}, {tool.name for tool in gone}
    return [
        attempt
        for attempt in old.folder.read_records("attempts" if old.config.grow.enabled else "synthesis", Trajectory)
        if attempt.task_id in kept and names.isdisjoint((*attempt.selected, *(call.name for call in attempt.calls)))
    ]


def grow(ctx: Context) -> Facts:
    """Phase 1 of what is new, with old tools and old attempts at questions among it."""
    loaded, trained = ctx.load("prepare"), Facts()
    before = _known(ctx, loaded, "before")
    if _grown(ctx).learned:
        trained = supervise(ctx, loaded, "grow", ctx.config.grow, growth_rows(ctx, loaded))
    else:  # tools were removed, nothing else
        ctx.save(loaded, "grow")
    known = before | _known(ctx, loaded, "after")
    ctx.folder.write_records("knowledge_grow", known.values())
    means = {f"{when}_{name}": result.estimate(name) for when, result in known.items() for name in MEASURES}
    return {name: value.mean for name, value in means.items() if value is not None} | trained


def growth_rows(ctx: Context, loaded: Loaded) -> list[WeightedRow]:
    """One row for every place in the stage's batches: the new tools' again and again, and, in the shares of the config,
    as many different ones as there are of old tools and of attempts at questions.
    """
    config, settings, seed = ctx.config.grow, corpus_settings(ctx), ctx.config.seed
    learned = _grown(ctx).learned
    new = tuple(tool for tool in ctx.sources.tools if tool.name in learned)
    kept = tuple(tool for tool in ctx.sources.tools if tool.name not in learned)
    change = CatalogueChange(added=new, changed=(), removed=(), kept=kept)
    wanted, num_new = config.steps * config.batch_size, len(alignment_corpus(new, ctx.dialect, settings, seed))
    if not num_new:
        raise ConfigError("grow: every kind of example is switched off (internalise.corpus.*)")
    examples = growth_corpus(change, ctx.dialect, settings, config.replay * wanted / num_new, seed)
    weights = loss_weights(settings)
    rows = weighted_rows(ctx, loaded, examples[:num_new], weights)
    attempts = attempt_rows(ctx, loaded, ctx.folder.read_records("attempts", Trajectory)) if config.attempts else []
    replayed = weighted_rows(ctx, loaded, examples[num_new:], weights)
    share = (config.replay if replayed else 0.0) + (config.attempts if attempts else 0.0)
    tiled = (rows * -(-round(wanted * (1 - share)) // len(rows)))[: round(wanted * (1 - share))]
    rows = [*tiled, *replayed]
    return replay_mix(rows, attempts, config.attempts if attempts else 0.0, seed)


def _grown(ctx: Context) -> Grown:
    return next(ctx.folder.read_records("growth", Grown))


def _known(ctx: Context, loaded: Loaded, when: str) -> dict[str, KnowledgeResult]:
    """Memorise and recall of the old tools ("old_before") and of those learned now ("new_before"), where there are."""
    learned = _grown(ctx).learned
    parts = {part: [t for t in ctx.sources.tools if (t.name in learned) == (part == "new")] for part in ("old", "new")}
    return {
        f"{part}_{when}": remembered(ctx, loaded, f"{part} tools, {when}", tools)
        for part, tools in parts.items()
        if tools
    }


def novelty_facts(ctx: Context, results: Sequence[EvaluationResult]) -> Facts:
    """Success on test questions that need a new tool, and on all others; none where no tools were added."""
    if not ctx.config.grow.enabled:
        return {}
    facts: Facts = {}
    learned = _grown(ctx).learned
    new = {t.id for t in ctx.sources.tasks["test"] if learned.intersection(call.name for call in t.gold_calls or ())}
    for result in results:
        values = result.values("success")
        for group in ("old", "new"):
            value = estimate(v for task, v in values.items() if (task in new) == (group == "new"))
            if value is not None:
                facts[f"{result.stage}_success_{group}"] = value.mean
    return facts


def growth_table(root: Path) -> Table:
    """What the run in `root` came to: old and new tools, before and after."""
    marks = [mark for stage in ("grow", "evaluate") if (mark := RunFolder.read(root).mark(stage)) is not None]
    facts: dict[str, Any] = {key: value for mark in marks for key, value in mark.facts.items()}
    table = Table("", "", *(Column(when, justify="right") for when in ("before", "after")), box=box.SIMPLE_HEAD)
    for group in ("old", "new"):
        for name in MEASURES:
            cells = [facts.get(f"{group}_{when}_{name}") for when in ("before", "after")]
            _add(table, f"{group} tools", MEASURES[name], cells)
        _add(table, f"{group} tools", "questions %", [facts.get(f"{s}_success_{group}") for s in ("prepare", "grow")])
    return table


def _add(table: Table, group: str, name: str, values: Sequence[float | None]) -> None:
    if any(value is not None for value in values):
        table.add_row(group, name, *("–" if value is None else f"{100 * value:.1f}" for value in values))
