"""The stages that train on examples: TInR-U's phases 1 and 2, and what they share with AutoTraj's fine-tuning."""

import random
from collections.abc import Iterable, Mapping, Sequence

import torch
from pydantic import JsonValue
from torch import nn

from tirkit.config import ConfigError, SupervisedConfig, WarmupConfig
from tirkit.embedded.base import evaluate as evaluate_base
from tirkit.embedded.skills import draw_replay
from tirkit.evaluation.metrics import Knowledge
from tirkit.evaluation.run import KnowledgeResult, evaluate
from tirkit.evaluation.terminal import ProgressFn
from tirkit.methods.autotool.label import in_mode, without_thoughts
from tirkit.methods.tinr.corpus import CorpusSettings, Example, Weight, alignment_corpus, loss_weights, use
from tirkit.methods.tinr.probe import probe
from tirkit.methods.tinr.think import replay_mix
from tirkit.pipeline.context import Context, Loaded
from tirkit.rollout.loop import stable_seed
from tirkit.text.control import THINK_OPEN
from tirkit.training.callbacks import ProgressCallback
from tirkit.training.sft import SFTReport, SFTSettings, WeightedRow, token_weighted, train_sft
from tirkit.types import Task, ToolSchema, Trajectory

Facts = dict[str, JsonValue]
SHOWN = (
    "loss",
    "loss_sft",
    "reward",
    "think_rate",
    "entropy",
    "reward/scorer_failed",
    "validate_score",
    "tokens_per_s",
)
PROBE_TOKENS = 512


def internalise(ctx: Context) -> Facts:
    """TInR-U phase 1: memorise, recall and use."""
    config = ctx.config.internalise
    loaded = ctx.load(ctx.stage_before("internalise"))
    rows = alignment_rows(ctx, loaded) + use_rows(ctx, loaded, use_tasks(ctx))
    if not rows:
        raise ConfigError("internalise: every kind of example is switched off (internalise.corpus.*)")
    rows = replay_mix(rows, general_rows(ctx, loaded, config, len(rows)), config.general, ctx.config.seed)
    report = _train_sft(ctx, loaded, "internalise", config, rows)
    return {"rows": len(rows), **_facts(report), **measure(ctx, loaded, "internalise")}


def warmup(ctx: Context) -> Facts:
    """TInR-U phase 2: the teacher's kept trajectories, with some of phase 1 replayed among them."""
    config = ctx.config.warmup
    loaded = ctx.load(ctx.stage_before("warmup"))
    rows = attempt_rows(ctx, loaded, ctx.folder.read_records("synthesis", Trajectory))
    if not ctx.enabled("synthesise"):
        rows = use_rows(ctx, loaded, ctx.sft_tasks)
    if not rows:
        raise ConfigError(
            "warmup: no attempt of the teacher was kept, so there is nothing to train on; stages/synthesise.json in "
            "the run folder counts the reasons"
        )
    return supervise(ctx, loaded, "warmup", config, rows)


def attempt_rows(ctx: Context, loaded: Loaded, attempts: Iterable[Trajectory]) -> list[WeightedRow]:
    """A teacher's attempts at training questions; they spare the tokens of tools that no question uses."""
    tasks, spared, rows = {task.id: task for task in ctx.train_tasks}, set(unseen_ids(ctx, loaded)), list[WeightedRow]()
    for attempt in attempts:
        row = ctx.row(loaded.renderer, _in_both_modes(ctx, attempt), tasks[attempt.task_id])
        rows.append(WeightedRow(row, kind="warmup", spares=spared.isdisjoint(row.completion_ids)))
    return rows


def supervise(ctx: Context, loaded: Loaded, stage: str, config: WarmupConfig, rows: Sequence[WeightedRow]) -> Facts:
    """Train on `rows`, with some of phase 1 and of the base model's own tasks among them; what it took and gave.

    Where the run has modes, each token of `rows` counts alike, or the choice of the mode would be learnt askew.
    """
    rows = token_weighted(rows) if ctx.dialect.modes else rows
    replayed = alignment_rows(ctx, loaded) if ctx.enabled("internalise") and config.replay else []
    rows = replay_mix(rows, replayed, config.replay if replayed else 0.0, ctx.config.seed)
    rows = replay_mix(rows, general_rows(ctx, loaded, config, len(rows)), config.general, ctx.config.seed)
    report = _train_sft(ctx, loaded, stage, config, rows)
    return {"rows": len(rows), **_facts(report), **measure(ctx, loaded, stage)}


def alignment_rows(ctx: Context, loaded: Loaded) -> list[WeightedRow]:
    """Document-derived rows of phase 1, without those whose weight is 0."""
    settings = corpus_settings(ctx)
    examples = alignment_corpus(ctx.sources.tools, ctx.dialect, settings, ctx.config.seed)
    return weighted_rows(ctx, loaded, examples, loss_weights(settings))


def corpus_settings(ctx: Context) -> CorpusSettings:
    """What phase 1 is made of, by the run's config."""
    c = ctx.config.internalise
    return CorpusSettings(
        c.alpha, c.beta, names_in_documents=c.document_name, **c.corpus.model_dump(exclude={"questions"})
    )


def use_tasks(ctx: Context) -> list[Task]:
    """Phase 1's questions. Answered without reasoning, one that needs no tool would only unlearn the reasoning."""
    return [task for task in ctx.sft_tasks if task.gold_rounds][: ctx.config.internalise.corpus.questions]


def use_rows(ctx: Context, loaded: Loaded, tasks: Sequence[Task]) -> list[WeightedRow]:
    """Training questions answered without reasoning (phase 1's use loss)."""
    beta = ctx.config.internalise.beta
    if not beta:
        return []
    examples = use(tasks, loaded.renderer, ctx.plain_dialect, ctx.tools, ctx.toolbox, ctx.rollout_settings)
    return weighted_rows(ctx, loaded, examples, {"use": beta})


def general_rows(ctx: Context, loaded: Loaded, config: SupervisedConfig, others: int) -> list[WeightedRow]:
    """Fresh samples of what the embedded base model was taught, so many that none is used twice among `others` rows.

    They keep general skills alive that questions about tools stand on.
    """
    if not config.general:
        return []
    rng = random.Random(ctx.config.seed)
    samples = [draw_replay(rng) for _ in range(round(others * config.general / (1 - config.general)))]
    return [WeightedRow(ctx.row(loaded.renderer, _tagged(ctx, sample)), kind="general") for sample in samples]


def weighted_rows(
    ctx: Context, loaded: Loaded, examples: Iterable[Example], weights: Mapping[Weight, float]
) -> list[WeightedRow]:
    """Phase 1's examples as rows, without those whose weight is 0."""
    return [
        WeightedRow(
            ctx.row(loaded.renderer, e.trajectory if e.kind in ("memorise", "recall") else _tagged(ctx, e.trajectory)),
            weights[e.weight],
            e.kind,
            spares=e.kind == "use",
        )
        for e in examples
        if weights[e.weight]
    ]


def _tagged(ctx: Context, trajectory: Trajectory) -> Trajectory:
    """An attempt that somebody without modes wrote, with the tag of the mode it is in, where the run has modes."""
    if not ctx.dialect.modes:
        return trajectory
    return in_mode(trajectory, "think" if THINK_OPEN in trajectory.turns[0].text else "no_think")


def _in_both_modes(ctx: Context, trajectory: Trajectory) -> Trajectory:
    """The teacher's attempt, tagged; where the run has modes only a share of them keep their reasoning."""
    if not ctx.dialect.modes:
        return trajectory
    draw = random.Random(stable_seed(ctx.config.seed, "mode", trajectory.task_id, trajectory.copy_index)).random()
    return _tagged(ctx, trajectory if draw < ctx.config.synthesise.think_share else without_thoughts(trajectory))


def unseen_ids(ctx: Context, loaded: Loaded) -> tuple[int, ...]:
    """Tokens of the tools that no training question uses: a question's silence about them is no evidence.

    Every question pushes down all tools but its own; these would never be pushed up again. Only where each tool has a
    token of its own.
    """
    if ctx.index is None or ctx.index.kind != "atomic":
        return ()
    unseen = [ctx.index.surface(tool.name) for tool in ctx.sources.tools if tool.name not in ctx.sources.seen]
    vocabulary = loaded.tokenizer.get_vocab()
    return tuple(vocabulary[surface] for surface in unseen)


def _train_sft(
    ctx: Context, loaded: Loaded, stage: str, config: SupervisedConfig, rows: Sequence[WeightedRow]
) -> SFTReport:
    """Train, merge and save; `loaded` then holds the trained model."""
    torch.manual_seed(ctx.config.seed)
    model = ctx.trainable(loaded)
    settings = SFTSettings(
        lr=config.lr,
        batch_size=config.batch_size,
        max_steps=config.steps,
        optimizer=config.optimizer,
        schedule=config.schedule,
        warmup=config.warmup,
        max_tokens=config.max_tokens,
        seed=ctx.config.seed,
        save_steps=config.save_every,
        bf16=ctx.config.model.dtype == "bfloat16",
        gradient_checkpointing=ctx.config.model.gradient_checkpointing,
        validate_steps=config.validate_every or None,
        keep_best=bool(config.validate_every),
        spared_ids=unseen_ids(ctx, loaded) if config.spare_unseen else (),
    )

    def validate(trained: nn.Module) -> Mapping[str, float]:
        policy = ctx.policy(loaded, 0.0, trained)  # pyright: ignore[reportArgumentType]
        tasks = ctx.sources.tasks["validation"]
        result = evaluate(tasks, ctx.rollout(loaded.renderer, policy), arm=ctx.config.name, batch_size=len(tasks))
        success = result.estimate("success")
        return {"score": success.mean if success else 0.0}

    report = train_sft(
        model,
        rows,
        settings,
        ctx.folder.work(stage),
        pad_id=loaded.pad_id,
        validate=validate if config.validate_every else None,
        callbacks=[ProgressCallback(shown(ctx.progress.stage(stage)))],
    )
    merged = ctx.merged(loaded, model)
    loaded.model = merged.model
    ctx.save(loaded, stage)
    return report


def measure(ctx: Context, loaded: Loaded, stage: str) -> Facts:
    """After a phase: what is remembered of the tools, and success on the validation questions."""
    facts = general_skills(ctx, loaded)
    result = evaluate(
        ctx.sources.tasks["validation"],
        ctx.rollout(loaded.renderer, ctx.policy(loaded, 0.0)),
        arm=ctx.config.name,
        seen=ctx.sources.seen,
        stage=stage,
        seed=ctx.config.seed,
        progress=ctx.progress.stage(f"{stage}: validate"),
    )
    ctx.folder.write_records(f"validation_{stage}", [result])
    for group in ("all", "seen", "unseen"):
        if (success := result.estimate("success", group)) is not None:
            facts[f"validation_success_{group}"] = success.mean
    if ctx.index is not None and ctx.enabled("internalise"):
        knowledge = remembered(ctx, loaded, stage)
        ctx.folder.write_records(f"knowledge_{stage}", [knowledge])
        for name in ("memorise", "recall", "recall_f1"):
            value = knowledge.estimate(name)
            facts[name] = value.mean if value else None
    return facts


def general_skills(ctx: Context, loaded: Loaded) -> Facts:
    """Exact match on the embedded base model's own tasks, skill by skill: what training on tools has made it forget."""
    model, n = ctx.config.model, ctx.config.evaluate.general_items
    if not n or model.path != "embedded" or model.scratch or ctx.dialect.modes:
        return {}  # with modes the base model's way to answer is not the run's
    skills = evaluate_base(loaded.model, loaded.renderer, n=n)  # pyright: ignore[reportArgumentType]
    return {"general": dict[str, JsonValue](skills)}


def remembered(ctx: Context, loaded: Loaded, stage: str, tools: Sequence[ToolSchema] | None = None) -> KnowledgeResult:
    """Memorise and recall of the catalogue (or of `tools`), or of every n-th tool of it where it is large."""
    tools = ctx.sources.tools if tools is None else tools
    limit = ctx.config.evaluate.knowledge_items or len(tools)
    tools = tools[:: max(1, -(-len(tools) // limit))]
    policy, names = ctx.policy(loaded, 0.0), ctx.config.internalise.document_name
    show = ctx.progress.stage(f"{stage}: recall")
    known: list[Knowledge] = []
    for start in range(0, len(tools), 64):
        for result in probe(policy, loaded.renderer, ctx.dialect, tools[start : start + 64], names, PROBE_TOKENS):
            seen = result.name in ctx.sources.seen
            scores = float(result.memorised), float(result.recalled), result.recall_f1
            known.append(
                Knowledge(name=result.name, seen=seen, memorise=scores[0], recall=scores[1], recall_f1=scores[2])
            )
        show(len(known), len(tools), {"memorise": sum(k.memorise for k in known) / len(known)}, float("nan"))
    return KnowledgeResult(phase=stage, tools=tuple(known))


def _facts(report: SFTReport) -> Facts:
    return {"steps": report.steps, "train_s": report.seconds, "tokens": report.tokens, "curve": curve_of(report.curve)}


def curve_of(lines: Iterable[Mapping[str, float]]) -> list[JsonValue]:
    """Log lines as facts: their numbers."""
    return [{key: value for key, value in line.items() if isinstance(value, int | float)} for line in lines]


def shown(progress: ProgressFn) -> ProgressFn:
    """The progress line with the numbers worth watching."""

    def show(step: int, total: int, metrics: Mapping[str, float], eta_s: float) -> None:
        progress(step, total, {name: metrics[name] for name in SHOWN if name in metrics}, eta_s)

    return show
