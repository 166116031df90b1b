"""AutoTool's stages: label → (fine-tune on both modes) → refine → RL with entropy by mode.

Records: `attempted` (Attempted, written piece by piece), `targets` (Trajectory: what fine-tuning imitates), `rounds`
(RewardRound, written group by group), `refined` (Refined: what became of RL's questions).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from math import inf

import torch
from pydantic import JsonValue

from tirkit.config import ConfigError
from tirkit.methods.autotool.decoupled import EntropyControl, EntropyTerm
from tirkit.methods.autotool.label import Attempted, attempt_both, short_gold, warmup_set
from tirkit.methods.autotool.refine import Round, refine, round_of
from tirkit.pipeline.context import Context, Loaded
from tirkit.pipeline.policies import INSTRUCTIONS, NO_THINK_INSTRUCTIONS, make_endpoint
from tirkit.pipeline.train import Facts
from tirkit.rollout.group import forced, group_requests
from tirkit.rollout.policy import RolloutFn, ScriptedPolicy
from tirkit.scoring.match import Verdict, verdict
from tirkit.training.callbacks import Clock, ModeWatch
from tirkit.types import Group, Mode, Record, RewardBreakdown


def label(ctx: Context) -> Facts:
    """Attempts at each question without and with thinking, and what fine-tuning imitates of them."""
    config = ctx.config.label
    tasks = ctx.rl_pool[: config.num_tasks or None]
    loaded = ctx.load(ctx.stage_before("label"))
    attempts = attempt_both(
        tasks,
        _annotator(ctx, loaded, config.no_think, "no_think"),
        _annotator(ctx, loaded, config.think, "think"),
        config.samples,
        ctx.config.seed,
        done=ctx.folder.read_records("attempted", Attempted),
        keep=partial(ctx.folder.append_records, "attempted"),
        chunk=config.chunk,
        progress=ctx.progress.stage("label"),
    )
    ctx.folder.write_records("attempted", attempts)
    attempts = _counted(ctx, attempts)
    if config.think != "model" and config.only != "no_think" and not any(one.think_right for one in attempts):
        ctx.progress.say(
            f"label: {config.think} was never right with a thought, so nothing will be taught to think: "
            "see whether its server returns thoughts (as `reasoning`, or inside <think> and </think>)"
        )
    script = ScriptedPolicy(short_gold(ctx.dialect), ctx.renderer, "gold")
    known = [task for task in tasks if task.gold_rounds is not None and (task.calls_only or task.answer is not None)]
    played = ctx.rollout(ctx.renderer, script)(group_requests(known, 1, ctx.config.seed))
    gold = {t.task_id: t for t, task in zip(played, known, strict=True) if verdict(t, task) is Verdict.RIGHT}
    shares = config.min_think_share, config.max_think_share
    made = warmup_set(attempts, gold, config.min_correct, shares, ctx.config.seed)
    ctx.folder.write_records("targets", made.targets)
    kinds = {task.id: task.kind for task in tasks}
    labels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for attempted in attempts:
        labels[kinds[attempted.task_id]][attempted.mode(config.min_correct) or "neither"] += 1
    return {
        "tasks": len(attempts),
        "no_think": made.num_short,
        "think": made.num_long,
        "neither": len(made.hard),
        "targets": len(made.targets),
        "think_share": made.think_share,
        "by_kind": {kind: dict[str, JsonValue](counts) for kind, counts in labels.items()},
        "no_think_right": [attempted.no_think_right for attempted in attempts],
        "think_right": [attempted.think_right for attempted in attempts],
    }


def mode_labels(ctx: Context) -> dict[str, Mode | None]:
    """Question → the mode it should be answered in, None where both annotators fail; empty where none is labelled."""
    attempted = _counted(ctx, ctx.folder.read_records("attempted", Attempted))
    return {one.task_id: one.mode(ctx.config.label.min_correct) for one in attempted}


def _counted(ctx: Context, attempts: Iterable[Attempted]) -> list[Attempted]:
    """What labels rest on: all attempts, or those in the one mode that the config wants."""
    only = ctx.config.label.only
    return [attempted.only(only) if only else attempted for attempted in attempts]


def _annotator(ctx: Context, loaded: Loaded, who: str, mode: Mode) -> RolloutFn:
    """The newest model forced into a mode, or an endpoint, which knows no modes and thinks or not by itself."""
    config = ctx.config.label
    if who != "model":
        instructions = INSTRUCTIONS if mode == "think" else NO_THINK_INSTRUCTIONS
        policy = make_endpoint(who, config, ctx.renderer, config.temperature, instructions)
        return ctx.rollout(ctx.renderer, policy, ctx.plain_dialect)
    attempt = ctx.rollout(ctx.renderer, ctx.policy(loaded, config.temperature))
    return lambda requests: attempt(forced(requests, mode))


class RewardRound(Record):
    """What a group came to in a step of the run that refinement rests on."""

    step: int
    task_id: str
    seed: int  # of the group's first attempt: a question may come twice in a step
    round: Round


def keep_round(ctx: Context, step: int, group: Group, rewards: Sequence[RewardBreakdown]) -> None:
    """Store a group's rewards: a run that goes on from a checkpoint does not see them again."""
    seed = group.trajectories[0].seed
    found = RewardRound(step=step, task_id=group.task_id, seed=seed, round=round_of(rewards))
    ctx.folder.append_records("rounds", [found])


def refined(ctx: Context) -> Facts:
    """Which of RL's questions are kept, by the rewards that `keep_round` stored."""
    config = ctx.config.refine
    # A step that was done again after an interruption has stored its groups twice.
    rounds = ctx.folder.read_records("rounds", RewardRound)
    by_step = {(one.task_id, one.step, one.seed): one.round for one in rounds}
    history: defaultdict[str, list[Round]] = defaultdict(list)
    for (task_id, _, _), found in sorted(by_step.items(), key=lambda item: item[0]):
        history[task_id].append(found)
    limits = config.fraction, config.easy, config.hard, config.drop
    records = refine({task.id: history[task.id] for task in ctx.rl_pool}, *limits, seed=ctx.config.seed)
    kept = [one for one in records if one.kept]
    if not kept:
        raise ConfigError(
            f"refine: none of {len(records)} questions is worth keeping; raise refine.fraction or tasks.num_rl"
        )
    ctx.folder.write_records("refined", records)
    reasons = Counter(one.reason for one in records)
    return {
        "tasks": len(records),
        "kept": len(kept),
        "reasons": dict[str, JsonValue](reasons),
        "success": [one.success for one in records],
        "variance": [one.variance for one in records],
    }


def entropy_control(ctx: Context) -> EntropyControl | None:
    """The entropy terms of the config; None without any."""
    terms = [
        EntropyTerm(t.over, t.tokens, t.coefficient, inf if t.target is None else t.target, t.rate, t.step, t.maximum)
        for t in ctx.config.rl.entropy
    ]
    return EntropyControl(tuple(terms)) if terms else None


def mode_watch(ctx: Context, loaded: Loaded, model: torch.nn.Module, clock: Clock) -> ModeWatch:
    """Asks some validation questions in either mode as training goes, and warns when thinking is unlearnt."""
    config = ctx.config.rl.probe
    tasks = ctx.sources.tasks["validation"][: config.num_tasks]

    def accuracy(mode: Mode) -> float:
        model.eval()
        attempt = ctx.rollout(loaded.renderer, ctx.policy(loaded, ctx.config.rl.temperature, model))  # pyright: ignore
        with clock.paused():
            attempts = attempt(forced(group_requests(tasks, 1, ctx.config.seed), mode))
        right = [verdict(t, task) is Verdict.RIGHT for t, task in zip(attempts, tasks, strict=True)]
        return sum(right) / len(right)

    return ModeWatch(accuracy, len(tasks), lambda text: ctx.progress.say(f"rl: {text}"), config.every)
