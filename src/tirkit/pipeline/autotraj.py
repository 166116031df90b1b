"""AutoTraj's stages: candidates → repair → pairs → finetune → reward_model; RL is in `tirkit.pipeline.reinforce`.

Records a stage leaves, in the order of the questions: `candidates` (JudgedGroup), `repairs` (RepairedTask),
`sft_examples` (Example), `preferences` (Preference), `pair_report` (PairReport). The first two are written piece by
piece, so that a stage that was killed goes on.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from pydantic import JsonValue

from tirkit.config import ConfigError
from tirkit.evaluation.metrics import Estimate
from tirkit.evaluation.preference import PairReport, pair_report
from tirkit.methods.autotraj.budget import Caps, Spent
from tirkit.methods.autotraj.export import ExportError, preference_rows, sft_rows, write_parquet
from tirkit.methods.autotraj.pairs import (
    Datasets,
    Example,
    PairSettings,
    Preference,
    build_datasets,
    draw_examples,
    replace_repairs,
)
from tirkit.methods.autotraj.prompts import Case, Templates
from tirkit.methods.autotraj.repair import PolicyAt, RepairedTask, Repairer, RepairSettings
from tirkit.methods.autotraj.scripted import Demonstrator, Flaw, gold_repairer
from tirkit.methods.autotraj.synthesise import JudgedGroup, from_logs, judge, synthesise
from tirkit.pipeline.autotool import mode_labels
from tirkit.pipeline.context import Context
from tirkit.pipeline.policies import instructed, make_endpoint
from tirkit.pipeline.sources import load_tokenizer
from tirkit.pipeline.train import Facts, curve_of, shown, supervise, unseen_ids
from tirkit.rollout.group import group_requests
from tirkit.rollout.policy import ScriptedPolicy
from tirkit.scoring.quality import Decision, QualityScore, QualitySettings, score_group
from tirkit.tools.lines import convert_records, read_records
from tirkit.tools.logs import read_attempt
from tirkit.training.reward_model import RewardModel, RewardSettings, TimedProgress, train_reward_model
from tirkit.training.sft import WeightedRow
from tirkit.types import Group, Task, Trajectory


def quality_settings(ctx: Context) -> QualitySettings:
    """How trajectories are scored."""
    return QualitySettings(**ctx.config.quality.model_dump())


def candidates(ctx: Context) -> Facts:
    """K attempts at each question, sampled or from a log, and what is to become of them."""
    judged = _logged(ctx) if ctx.config.candidates.log else _sampled(ctx)
    ctx.folder.write_records("candidates", judged)
    pairs = [pair for group in judged for pair in zip(group.scores, group.decisions, strict=True)]
    if not pairs:
        raise ConfigError("candidates: there are none; see to candidates.num_tasks, tasks.num_rl and candidates.log")
    scores = [score for score, _ in pairs]
    well_formed = fmean(score.well_formed for score in scores)
    if well_formed < 0.1:
        ctx.progress.say(
            f"candidates: {well_formed:.0%} of the attempts are well-formed, the format is hardly known: a warm-up "
            "teaches it, candidates.instruct tells it; `tirkit inspect RUN --records candidates` shows what is written"
        )
    decided = Counter(_fate(score, decision) for score, decision in pairs)
    return {
        "tasks": len(judged),
        "attempts": len(scores),
        "right": fmean(bool(score.right) for score in scores),
        "well_formed": well_formed,
        **{f"mean_{name}": mean for name, mean in _dimensions(scores).items()},
        **{name: decided[name] for name in ("kept", "poor", "wrong", "left")},
    }


def _fate(score: QualityScore, decision: Decision) -> str:
    if decision is Decision.REPAIR:
        return "poor" if score.right else "wrong"
    return "kept" if decision is Decision.KEEP else "left"


def _dimensions(scores: Sequence[QualityScore]) -> dict[str, float]:
    """Means of S and its dimensions over the attempts that have them."""
    values = {
        "S": [score.total for score in scores],
        "hesitation": [score.hesitation for score in scores],
        "length": [score.length for score in scores if score.length is not None],
        "repetition": [score.repetition for score in scores],
        "words": [float(score.words) for score in scores],
    }
    return {name: fmean(found) for name, found in values.items() if found}


def _sampled(ctx: Context) -> list[JudgedGroup]:
    config, tasks, settings = ctx.config.candidates, ctx.candidate_tasks, quality_settings(ctx)
    if config.policy == "model":
        policy = ctx.policy(ctx.load(ctx.stage_before("candidates")), config.temperature)
    else:
        policy = make_endpoint(config.policy, config, ctx.renderer, config.temperature)
    attempt = ctx.rollout(ctx.renderer, policy)
    if config.policy == "model" and config.instruct:
        attempt = instructed(attempt)

    def judged(groups: Sequence[Group]) -> list[JudgedGroup]:
        return [judge(group, tasks[group.task_id], settings) for group in groups]

    groups = synthesise(
        tuple(tasks.values()),
        attempt,
        config.samples,
        ctx.config.seed,
        done=[
            Group(task_id=group.task_id, trajectories=group.trajectories)
            for group in ctx.folder.read_records("candidates", JudgedGroup)
        ],
        keep=lambda new: ctx.folder.append_records("candidates", judged(new)),
        chunk=config.chunk,
        progress=ctx.progress.stage("candidates"),
    )
    return judged(groups)


def _logged(ctx: Context) -> list[JudgedGroup]:
    """A log's attempts; the tasks they are attempts at are stored, those of the run replacing the log's own.

    Raises `ConfigError` where the file cannot be read, or holds turns that this run's model would not write.
    """
    path = Path(ctx.config.candidates.log)
    try:
        records, issues = read_records(path)
    except OSError as error:
        raise ConfigError(f"candidates.log = {str(path)!r} cannot be read ({error.strerror})") from error
    found = [attempt for _, attempt in convert_records(path, records, read_attempt, issues)]
    for issue in issues:
        ctx.progress.say(str(issue))
    for attempt in found:
        for turn in attempt.trajectory.turns:
            if not turn.problems and (problems := ctx.dialect.parse(turn.text).problems):
                raise ConfigError(
                    f"candidates.log: attempt at {attempt.task.id!r} holds a turn that this run's dialect can't read "
                    f'({problems[0]}); a log with plain tool names needs catalogue.indexing = "none"'
                )
    tasks, judged = from_logs(found, {task.id: task for task in ctx.train_tasks}, quality_settings(ctx))
    ctx.folder.write_records("tasks_candidates", tasks)
    return judged


def repair(ctx: Context) -> Facts:
    """Poor and wrong candidates rewritten, by rules, a script or an endpoint, with real tools."""
    config, tasks = ctx.config.repair, ctx.candidate_tasks
    judged = ctx.folder.read_records("candidates", JudgedGroup)
    groups = [group for group in judged if _has_target(tasks[group.task_id])]
    caps = Caps(
        config.max_requests or None,
        config.max_tokens or None,
        config.max_money or None,
        config.price_in,
        config.price_out,
    )
    settings = RepairSettings(
        tuple(map(Case, config.cases)),
        config.rules,
        config.retries,
        config.temperature,
        quality_settings(ctx),
        caps,
    )
    repairer = Repairer(
        lambda requests, policy: ctx.rollout(ctx.renderer, policy)(requests),
        ctx.renderer,
        ctx.dialect,
        ctx.tools,
        _repairer_at(ctx, groups, tasks),
        settings,
        Templates(Path(config.templates) if config.templates else None),
        ctx.config.seed,
    )
    repaired = repairer.repair(
        groups,
        tasks,
        done=ctx.folder.read_records("repairs", RepairedTask),
        keep=partial(ctx.folder.append_records, "repairs"),
        chunk=ctx.config.candidates.chunk,
        progress=ctx.progress.stage("repair"),
    )
    ctx.folder.write_records("repairs", repaired)
    return _repair_facts(repaired, caps)


def _has_target(task: Task) -> bool:
    """Whether a repair of an attempt at the task can be judged."""
    return task.answer is not None or task.gold_calls is not None


def _repairer_at(ctx: Context, groups: Sequence[JudgedGroup], tasks: dict[str, Task]) -> PolicyAt | None:
    """The configured repairer at a temperature; None: rules alone."""
    config = ctx.config.repair
    if config.repairer == "rules":
        return None
    if config.repairer == "scripted":
        knows = tuple(map(Flaw, config.knows))
        script = gold_repairer(groups, tasks, ctx.renderer, ctx.dialect, knows, config.skill, ctx.config.seed)
        return lambda _: script
    return partial(make_endpoint, config.repairer, config, ctx.renderer)


def _repair_facts(repaired: Sequence[RepairedTask], caps: Caps) -> Facts:
    repairs = [one for record in repaired for one in record.repairs]
    hard = [one for record in repaired for one in record.hard]
    spent = sum((record.spent for record in repaired), Spent())
    facts: Facts = {"to_repair": len(repairs) + len(hard), "repaired": len(repairs), "hard": len(hard)}
    for case in Case:
        mine = [one for one in repairs if one.case is case]
        facts[f"{case}_repaired"], facts[f"{case}_hard"] = len(mine), sum(one.case is case for one in hard)
        if mine:
            facts[f"{case}_S_before"] = fmean(one.original_score.total for one in mine)
            facts[f"{case}_S_after"] = fmean(one.score.total for one in mine)
    by = Counter(one.by for one in repairs)
    last = Counter(_kind(one.reasons[-1]) if one.reasons else "nobody tried" for one in hard)
    return {
        **facts,
        "by": dict[str, JsonValue](by),
        "hard_because": dict[str, JsonValue](last),
        **spent.model_dump(),
        "cost": caps.cost(spent),
    }


def _kind(reason: str) -> str:
    """A rejection without its numbers and particulars: "scripted repairer: its quality is 0.8, …" → "its quality"."""
    said = reason.partition(": ")[2] or reason
    return next((kind for kind in ("its quality", "it is not well-formed") if said.startswith(kind)), said)


def pairs(ctx: Context) -> Facts:
    """The SFT set and the preference pairs, decontaminated, stored and exported."""
    config, tasks = ctx.config.pairs, ctx.candidate_tasks
    judged = list(ctx.folder.read_records("candidates", JudgedGroup))
    evaluation = (*ctx.sources.tasks["validation"], *ctx.sources.tasks["test"])
    settings = PairSettings(config.max_per_query, config.repairs != "none", config.outcomes)
    made = build_datasets(judged, ctx.folder.read_records("repairs", RepairedTask), tasks, evaluation, settings)
    if config.repairs == "demonstrations":
        made = replace_repairs(made, _demonstrations(ctx, made, tasks))
    if config.num_examples:
        made = draw_examples(made, config.num_examples, ctx.config.seed)
    ctx.folder.write_records("sft_examples", made.sft)
    ctx.folder.write_records("preferences", made.preferences)
    _export(ctx, made, tasks)
    sources = Counter(example.source for example in made.sft)
    return {
        "sft_examples": len(made.sft),
        **{source: sources[source] for source in ("kept", "repaired", "demonstration")},
        "preferences": len(made.preferences),
        "duplicates": made.dropped.duplicates,
        "over_limit": made.dropped.over_limit,
        "contaminated": len(made.dropped.contaminated),
    }


def _demonstrations(ctx: Context, made: Datasets, tasks: dict[str, Task]) -> dict[str, tuple[Trajectory, float]]:
    """The gold of every repaired task, really played, and its S. Raises `ConfigError` where a task has no gold."""
    names = dict.fromkeys(
        [e.task_id for e in made.sft if e.source == "repaired"]
        + [p.task_id for p in made.preferences if p.source == "repair"]
    )
    chosen = [tasks[name] for name in names]
    if without := [task.id for task in chosen if task.gold_rounds is None or task.answer is None]:
        raise ConfigError(f'pairs.repairs = "demonstrations": task {without[0]!r} has no gold calls and answer to play')
    teacher = ScriptedPolicy(Demonstrator(ctx.dialect), ctx.renderer, "scripted teacher")
    played = ctx.rollout(ctx.renderer, teacher)(group_requests(chosen, 1, ctx.config.seed))
    settings = quality_settings(ctx)
    return {
        task.id: (trajectory, score_group([trajectory], task, settings)[0].total)
        for task, trajectory in zip(chosen, played, strict=True)
    }


def _export(ctx: Context, made: Datasets, tasks: dict[str, Task]) -> None:
    """Parquet files in TRL's columns, where `datasets` is installed."""
    row, documents = partial(ctx.row, ctx.renderer), ctx.prompts.documents
    folder = ctx.folder.root / "datasets"
    try:
        if made.sft:
            write_parquet(sft_rows(made.sft, tasks, row, documents), folder / "sft.parquet")
        if made.preferences:
            write_parquet(preference_rows(made.preferences, tasks, row, documents), folder / "preferences.parquet")
    except ExportError as error:
        ctx.progress.say(f"pairs: nothing is exported to {folder}: {error}")


def finetune(ctx: Context) -> Facts:
    """Supervised on the kept and the repaired trajectories; where questions have a mode, on those in it alone."""
    loaded = ctx.load(ctx.stage_before("finetune"))
    tasks = {task.id: task for task in (*ctx.rl_pool, *ctx.candidate_tasks.values())}
    labels, examples = mode_labels(ctx), list(ctx.folder.read_records("sft_examples", Example))
    chosen = [
        (example.trajectory, example.source)
        for example in examples
        if labels.get(example.task_id) in (None, example.trajectory.mode)
    ]
    other_mode = len(examples) - len(chosen)
    chosen += [(target, f"target_{target.mode}") for target in ctx.folder.read_records("targets", Trajectory)]
    if not chosen:
        raise ConfigError(
            "finetune: nothing was kept, repaired or labelled; the marks of the earlier stages in the run folder "
            "(stages/*.json) count the reasons"
        )
    spared, rows = set(unseen_ids(ctx, loaded)), list[WeightedRow]()
    for trajectory, kind in chosen:
        row = ctx.row(loaded.renderer, trajectory, tasks[trajectory.task_id])
        rows.append(WeightedRow(row, kind=kind, spares=spared.isdisjoint(row.completion_ids)))
    return {"in_other_mode": other_mode, **supervise(ctx, loaded, "finetune", ctx.config.finetune, rows)}


def reward_model(ctx: Context) -> Facts:
    """A scalar head on the newest model, trained on the pairs, and how good it is on held-out ones."""
    c, tasks = ctx.config.reward_model, ctx.candidate_tasks
    preferences = list(ctx.folder.read_records("preferences", Preference))
    start = ctx.folder.model(ctx.stage_before("reward_model"))
    settings = RewardSettings(
        c.lr,
        c.epochs,
        c.batch_size,
        c.micro_batch,
        c.lora_rank,
        c.held_out,
        c.max_tokens,
        c.schedule,
        c.warmup,
        ctx.config.seed,
        bf16=ctx.config.model.dtype == "bfloat16",
        log_steps=1,
        save_steps=c.save_every,
    )
    trained = train_reward_model(
        preferences,
        tasks,
        partial(ctx.row, ctx.renderer),
        start,
        load_tokenizer(start),
        settings,
        ctx.folder.model("reward_model"),
        ctx.folder.work("reward_model"),
        [TimedProgress(shown(ctx.progress.stage("reward model")))],
    )
    report = pair_report([preferences[i] for i in trained.held_out], trained.rewards)
    ctx.folder.write_records("pair_report", [report])
    return {
        "trained_pairs": trained.num_trained,
        "too_long": trained.num_too_long,
        **_pair_facts(report),
        "mean": trained.normalisation.mean,
        "scale": trained.normalisation.scale,
        "curve": curve_of(trained.curve),
    }


def load_scorer(ctx: Context) -> RewardModel:
    """The reward model that the run has trained."""
    row, limit = partial(ctx.row, ctx.renderer), ctx.config.reward_model.max_tokens
    return RewardModel.load(ctx.folder.model("reward_model"), row, ctx.device, max_tokens=limit)


def _pair_facts(report: PairReport) -> Facts:
    """Accuracies with their intervals, length bias, calibration."""
    facts: Facts = {}
    for name in ("accuracy", "length_matched", "longer_chosen", "shorter_wins"):
        value: Estimate | None = getattr(report, name)
        if value is not None:
            facts |= {name: value.mean, f"{name}_interval": [value.low, value.high], f"{name}_pairs": value.n}
    return facts | {
        "chosen_words": report.chosen_words,
        "rejected_words": report.rejected_words,
        "calibration_error": report.calibration_error,
    }
