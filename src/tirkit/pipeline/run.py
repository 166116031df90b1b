"""Run a config's stages in order; each is done once, whatever happens in between."""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from pydantic import JsonValue
from rich.console import RenderableType
from transformers.utils import logging as transformers_logging

from tirkit.config import ConfigError, RunConfig
from tirkit.evaluation.run import EvaluationResult, evaluate
from tirkit.evaluation.terminal import Progress, arms_table, duration
from tirkit.methods.autotraj.prompts import Templates
from tirkit.methods.tinr.think import ThinkSettings, warm_up
from tirkit.methods.tinr.tokens import grow_vocabulary
from tirkit.pipeline.autotool import label
from tirkit.pipeline.autotraj import candidates, finetune, pairs, repair, reward_model
from tirkit.pipeline.context import MODEL_STAGES, Context, Loaded, attempt_records, result_stage
from tirkit.pipeline.grow import grow, novelty_facts, prepare_grown
from tirkit.pipeline.policies import check_key, make_teacher
from tirkit.pipeline.reinforce import refine, reinforce
from tirkit.pipeline.report import report_runs
from tirkit.pipeline.sources import SPLITS, load_model
from tirkit.pipeline.train import Facts, general_skills, internalise, warmup
from tirkit.rollout.endpoint import EndpointPolicy
from tirkit.rollout.group import forced
from tirkit.rollout.loop import RolloutSettings
from tirkit.rollout.policy import RolloutError
from tirkit.store import RunFolder
from tirkit.text.index import ToolIndex
from tirkit.text.render import Renderer
from tirkit.tools.origin import functions_digest
from tirkit.tools.questions import load_tasks
from tirkit.training.reward_model import check_trl
from tirkit.types import Mode, Record, Task, Trajectory

CHUNK = 64  # questions between two writes of a long stage


class SynthesisChunk(Record):
    """What a piece of phase 2 gave: so many training questions are done, these attempts were not kept and why."""

    num_tasks: int
    kept: tuple[Trajectory, ...]
    rejected: dict[str, int]


def prepare(ctx: Context) -> Facts:
    """Load tools and questions, name what is wrong with them, grow the vocabulary by the tool tokens."""
    if ctx.config.grow.enabled:
        return prepare_grown(ctx)
    sources = ctx.sources
    for issue in sources.issues:
        ctx.progress.say(issue)
    ctx.folder.write_records("catalogue", sources.tools)
    for split in SPLITS:
        ctx.folder.write_records(f"tasks_{split}", sources.tasks[split])
    _check_early(ctx)
    model, tokenizer = load_model(ctx.config, sources.tools, sources.tasks["train"])
    growth = grow_vocabulary(model, tokenizer, ctx.index or ToolIndex("name", ()), sources.tools)
    loaded = Loaded(model, tokenizer, Renderer(tokenizer, ctx.index))
    ctx.save(loaded, "prepare")
    return {
        "tools": len(sources.tools),
        "seen_tools": len(sources.seen),
        "issues": len(sources.issues),
        "parameters": model.num_parameters(),
        "rows_before": growth.rows_before,
        "rows_after": growth.rows_after,
        "new_token_ids": list(growth.ids),
        **{f"{split}_tasks": len(sources.tasks[split]) for split in SPLITS},
        **({"functions": digest} if (digest := functions_digest(sources.tools)) else {}),
        **general_skills(ctx, loaded),
    }


def _check_early(ctx: Context) -> None:
    """Say now what would stop the run after hours. Raises `ConfigError`."""
    if not ctx.sft_tasks:
        raise ConfigError(
            f"tasks.num_rl = {ctx.config.tasks.num_rl} leaves phases 1 and 2 nothing to train on: there are "
            f"{len(ctx.train_tasks)} training questions"
        )
    _check_runnable(ctx)
    check_key(ctx.config)
    if ctx.enabled("repair"):
        Templates(Path(ctx.config.repair.templates) if ctx.config.repair.templates else None)
    if ctx.enabled("reward_model"):
        check_trl()


def _check_runnable(ctx: Context) -> None:
    """Raises `ConfigError` where questions want calls run that nothing can run; says which tools may not be run."""
    executed = [task for split in SPLITS for task in ctx.sources.tasks[split] if not task.calls_only]
    own, path = any(tool.origin for tool in ctx.sources.tools), ctx.config.catalogue.path
    if ctx.toolbox is None and executed:
        allow = "name them in catalogue.allow, mark Python functions that change nothing with @read_only, or "
        raise ConfigError(
            f"{ctx.config.tasks.path}: {len(executed)} questions want their calls executed (first: "
            f"{executed[0].id!r}), and nothing here can run these tools: {allow if own else ''}"
            'add "calls_only": true to them'
        )
    run = ctx.toolbox.functions if ctx.toolbox else {}
    wanted = {call.name: task.id for task in reversed(executed) for call in task.gold_calls or ()}
    if refused := [f"{name} (question {task})" for name, task in wanted.items() if name not in run]:
        ctx.progress.say(
            f"{path}: questions need tools that are neither read-only nor in catalogue.allow, and will be "
            f"answered that they cannot be run: {', '.join(refused)}"
        )


def synthesise(ctx: Context) -> Facts:
    """TInR-U phase 2 data: the teacher's attempts, kept by rejection sampling, piece by piece."""
    config, tasks = ctx.config.synthesise, ctx.sft_tasks
    loaded = ctx.load("prepare")
    teacher = make_teacher(config, loaded.renderer)
    limits = RolloutSettings(prompt="documents", max_new_tokens=1024)
    settings = ThinkSettings(config.num_candidates, config.num_samples, limits)
    chunks = list(ctx.folder.read_records("synthesis_chunks", SynthesisChunk))
    done, show, started = sum(chunk.num_tasks for chunk in chunks), ctx.progress.stage("synthesise"), time.monotonic()
    first = done
    while done < len(tasks):
        part = tasks[done : done + CHUNK]
        result = warm_up(
            part, teacher, loaded.renderer, ctx.plain_dialect, ctx.tools, ctx.toolbox, settings, seed=ctx.config.seed
        )
        if isinstance(teacher, EndpointPolicy) and teacher.num_failures:
            raise RolloutError(
                f"{teacher.num_failures} requests to {config.teacher} failed after their retries; the questions before "
                f"number {done} are stored: see to the endpoint, then run the same command to go on"
            )
        rejected = {str(reason): count for reason, count in result.rejected.items()}
        chunks.append(SynthesisChunk(num_tasks=len(part), kept=result.kept, rejected=rejected))
        ctx.folder.append_records("synthesis_chunks", chunks[-1:])
        done += len(part)
        left = (time.monotonic() - started) / (done - first) * (len(tasks) - done)
        show(done, len(tasks), {"kept": float(sum(len(chunk.kept) for chunk in chunks))}, left)
    kept = [trajectory for chunk in chunks for trajectory in chunk.kept]
    ctx.folder.write_records("synthesis", kept)
    rejected_all = sum((Counter(chunk.rejected) for chunk in chunks), Counter[str]())
    return {"kept": len(kept), "rejected": rejected_all.total(), "reasons": dict[str, JsonValue](rejected_all)}


def test(ctx: Context) -> Facts:
    """The test questions, asked of every model and in every mode that `to_ask` names."""
    tasks, models = ctx.sources.tasks["test"], dict[str, Loaded]()
    results: list[EvaluationResult] = []
    for stage, mode in to_ask(ctx):
        models = {stage: models.get(stage) or ctx.load(stage)}  # one at a time
        results.append(ask(ctx, models[stage], tasks, stage, mode))
    ctx.folder.write_records("test_results", results)
    facts: Facts = {}
    for result in results:
        for group in ("all", "seen", "unseen"):
            if (success := result.estimate("success", group)) is not None:
                facts[f"{result.stage}_success_{group}"] = success.mean
    return facts | novelty_facts(ctx, results)


def to_ask(ctx: Context) -> list[tuple[str, Mode | None]]:
    """Stages with the mode that answers are forced into: the models before fine-tuning, RL and growing, to tell what
    these did, then the last one that there is, forced into either mode (where the run has modes) and by its own choice.
    """
    config, rl = ctx.config.evaluate, ctx.folder.mark("rl")
    skipped = rl is not None and bool(rl.facts.get("skipped"))
    steps = [stage for stage in ("finetune", "rl", "grow") if ctx.enabled(stage) and not (stage == "rl" and skipped)]
    last = ctx.stage_before("rl" if skipped else "evaluate")
    before = dict.fromkeys(map(ctx.stage_before, steps if config.earlier else []))
    forced: tuple[Mode, ...] = get_args(Mode) if ctx.dialect.modes and config.forced else ()
    return [*((stage, None) for stage in before if stage != last), *((last, mode) for mode in forced), (last, None)]


def ask(ctx: Context, loaded: Loaded, tasks: Sequence[Task], stage: str, mode: Mode | None = None) -> EvaluationResult:
    """One greedy attempt a question; stored as they come, so that an interrupted evaluation goes on."""
    measured = result_stage(stage, mode)
    name = attempt_records(measured)
    attempt = ctx.rollout(loaded.renderer, ctx.policy(loaded, 0.0))
    return evaluate(
        tasks,
        (lambda requests: attempt(forced(requests, mode))) if mode else attempt,
        arm=ctx.config.name,
        seen=ctx.sources.seen,
        stage=measured,
        seed=ctx.config.seed,
        done=list(ctx.folder.read_records(name, Trajectory)),
        keep=lambda trajectories: ctx.folder.append_records(name, trajectories),
        progress=ctx.progress.stage(f"test {stage} {mode or ''}".rstrip()),
    )


def report(ctx: Context) -> Facts:
    """The HTML report of this run alone."""
    return {"path": str(report_runs([ctx.folder.root], ctx.folder.root / "report").relative_to(ctx.folder.root))}


STAGES: dict[str, Callable[[Context], Facts]] = {
    "prepare": prepare,
    "internalise": internalise,
    "synthesise": synthesise,
    "warmup": warmup,
    "label": label,
    "candidates": candidates,
    "repair": repair,
    "pairs": pairs,
    "finetune": finetune,
    "reward_model": reward_model,
    "refine": refine,
    "rl": reinforce,
    "grow": grow,
    "evaluate": test,
    "report": report,
}


def run_stages(config: RunConfig, root: Path, only: Sequence[str] = ()) -> None:
    """Do what is not done yet, in order. `only` names stages; those they need must be complete.

    Raises `ConfigError` for a stage that does not exist or whose predecessor is not complete.
    """
    if unknown := [name for name in only if name not in STAGES]:
        raise ConfigError(f"no stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"a run is one process, and {os.environ['WORLD_SIZE']} were started: leave torchrun away, or give rows and "
            "questions to `train_sft` and `RLTrainer` of tirkit.training yourself"
        )
    transformers_logging.disable_progress_bar()
    folder = RunFolder.open(root, config)
    try:
        with Progress() as progress:
            ctx = Context(config, folder, progress)
            progress.say(f"{config.name}: {root} (config {config.digest}, seed {config.seed})")
            for name in STAGES:
                if ctx.enabled(name) and (not only or name in only):
                    _do(ctx, name)
    finally:
        folder.close()


def _do(ctx: Context, name: str) -> None:
    if ctx.folder.mark(name) is not None:
        ctx.progress.say(f"{name}: done before")
        return
    for needed in list(STAGES)[: list(STAGES).index(name)]:
        if ctx.enabled(needed) and ctx.folder.mark(needed) is None:
            raise ConfigError(f"stage {name} needs {needed}, which is not complete: run it first (leave --stages away)")
    started = time.monotonic()
    facts = STAGES[name](ctx)
    if ctx.loose:
        facts |= {"loose_tools": len(ctx.loose)}
    mark = ctx.folder.complete(name, time.monotonic() - started, facts)
    shown = ", ".join(f"{key} {_short(value)}" for key, value in facts.items() if not isinstance(value, list | dict))
    ctx.progress.say(f"{name}: {duration(mark.duration_s)}; {shown}")


def _short(value: JsonValue) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def open_run(root: Path) -> Context:
    """A run to be looked at."""
    transformers_logging.disable_progress_bar()
    folder = RunFolder.read(root)
    return Context(folder.manifest.config, folder, Progress())


def model_stage(ctx: Context, stage: str) -> str:
    """The stage whose model is meant: `stage`, or the run's last one if empty. ConfigError where it is not complete."""
    meant, root = stage or ctx.stage_before("evaluate"), ctx.folder.root
    done = [name for name in MODEL_STAGES if ctx.folder.mark(name) is not None]
    if meant in done:
        return meant
    if stage:
        raise ConfigError(f"{root} has no model of stage {stage!r}; it has: {', '.join(done) or 'none'}")
    raise ConfigError(
        f"{root} is not finished: stage {meant} is not complete. Go on with `tirkit run`, or name one of its models "
        f"with --stage: {', '.join(done) or 'it has none yet'}"
    )


def evaluate_run(root: Path, questions: Path | None, stage: str, prompt: str, limit: int) -> RenderableType:
    """Table of a run's model on a question file, or on the run's own test questions."""
    ctx = open_run(root)
    stage = model_stage(ctx, stage)
    if prompt and prompt not in ("none", "documents", "retrieve"):
        raise ConfigError(f"--prompt {prompt!r}: give none, documents or retrieve")
    if prompt:
        data = ctx.config.model_dump()
        data["rollout"]["prompt"] = prompt
        ctx.config = RunConfig.model_validate(data)
    tasks = ctx.sources.tasks["test"]
    if questions is not None:
        loaded = load_tasks(questions, ctx.tools)
        for issue in loaded.issues:
            ctx.progress.say(str(issue))
        tasks = loaded.tasks
    tasks = tasks[:limit] if limit else tasks
    model = ctx.load(stage)
    with ctx.progress:
        result = evaluate(
            tasks,
            ctx.rollout(model.renderer, ctx.policy(model, 0.0)),
            arm=f"{ctx.config.name} ({stage})",
            seen=ctx.sources.seen,
            stage=stage,
            seed=ctx.config.seed,
            progress=ctx.progress.stage("evaluate"),
        )
    return arms_table([result], f"{len(tasks)} questions")
