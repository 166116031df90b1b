"""The stages that train on rollouts: RL with the reward of any of the methods, and the rounds that refine its data."""

import os
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from tirkit.config import ConfigError, RLConfig
from tirkit.pipeline.autotool import entropy_control, keep_round, mode_watch, refined
from tirkit.pipeline.autotraj import load_scorer
from tirkit.pipeline.context import Context, Loaded
from tirkit.pipeline.train import Facts, curve_of, measure, shown
from tirkit.rollout.group import group_requests
from tirkit.rollout.policy import RolloutFn
from tirkit.scoring.match import Verdict, verdict
from tirkit.scoring.reward import ModeReward, TinrReward, TrajectoryReward, UnifiedReward
from tirkit.serving.score import HttpScorer
from tirkit.training.base import training_arguments
from tirkit.training.callbacks import ProgressCallback
from tirkit.training.reward_model import ScoredRollout
from tirkit.training.rl import GroupFn, ModeGuard, RewardFn, RLSettings, RLTrainer
from tirkit.types import Group, RewardBreakdown, Task, Trajectory


def reinforce(ctx: Context) -> Facts:
    """GRPO with the reward that `rl.reward` names; skipped where sampling hardly ever succeeds."""
    config = ctx.config.rl
    loaded = ctx.load(ctx.stage_before("rl"))
    success = sampled_success(ctx, loaded)
    if success < config.min_success:
        ctx.progress.say(f"rl: skipped, sampled success is {success:.3f} and rl.min_success = {config.min_success}")
        ctx.save(loaded, "rl")
        return {"skipped": True, "sampled_success": success}
    trainer, loaded = _train(ctx, loaded, "rl", ctx.rl_tasks, config.steps, _keep_groups(ctx))
    ctx.save(loaded, "rl")
    history = trainer.state.log_history
    failures = scorer_failures(history, config.batch_size * config.num_generations)
    if failures:
        ctx.progress.say(f"rl: the reward model gave {failures} right trajectories no score; they got no bonus")
    return {
        "sampled_success": success,
        "scorer_failures": failures,
        "train_s": trainer.clock.seconds,
        "curve": curve_of(history),
        **measure(ctx, loaded, "rl"),
    }


def refine(ctx: Context) -> Facts:
    """AutoTool: some cheap rounds of RL over its questions, whose model is thrown away, say which of them it keeps."""
    config, tasks = ctx.config.refine, ctx.rl_pool
    loaded = ctx.load(ctx.stage_before("refine"))
    if (success := sampled_success(ctx, loaded)) < ctx.config.rl.min_success:
        ctx.progress.say("refine: skipped, as RL will be: sampled success is too low")
        return {"skipped": True, "sampled_success": success}
    steps = -(-config.rounds * len(tasks) // ctx.config.rl.batch_size) * ctx.config.rl.iterations
    trainer, _ = _train(ctx, loaded, "refine", tasks, steps, partial(keep_round, ctx))
    return {"steps": steps, "train_s": trainer.clock.seconds, **refined(ctx)}


def _train(
    ctx: Context, loaded: Loaded, stage: str, tasks: Sequence[Task], steps: int, on_group: GroupFn
) -> tuple[RLTrainer, Loaded]:
    """The trainer at its end, and the plain model it trained."""
    config = ctx.config.rl
    torch.manual_seed(ctx.config.seed)
    model = ctx.trainable(loaded)
    policy = ctx.policy(loaded, config.temperature, model)  # pyright: ignore[reportArgumentType]
    args = training_arguments(
        str(ctx.folder.work(stage)),
        max_steps=steps,
        learning_rate=config.lr,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup,
        per_device_train_batch_size=config.batch_size,
        save_steps=config.save_every,
        bf16=ctx.config.model.dtype == "bfloat16",
        activation_checkpointing=ctx.config.model.gradient_checkpointing,
        logging_steps=1,
        seed=ctx.config.seed,
    )
    rollout, reward = _reward(ctx, ctx.rollout(loaded.renderer, policy))
    trainer = RLTrainer(
        model,
        args,
        _rl_settings(ctx),
        tasks,
        rollout,
        reward,
        pad_id=loaded.pad_id,
        callbacks=[ProgressCallback(shown(ctx.progress.stage(stage)))],
        on_group=on_group,
    )
    if config.probe.every and stage == "rl":
        trainer.add_callback(mode_watch(ctx, loaded, model, trainer.clock))
    trainer.train(resume_from_checkpoint=True)
    return trainer, ctx.merged(loaded, model)


def _reward(ctx: Context, rollout: RolloutFn) -> tuple[RolloutFn, RewardFn]:
    """What rolls out (and has it scored at once, where a model scores), and what it is rewarded with."""
    config = ctx.config.rl
    if config.reward == "tinr":
        return rollout, TinrReward(ctx.dialect)
    if config.reward == "mode":
        return rollout, ModeReward(ctx.dialect)
    unified = config.reward == "unified"
    if not config.bonus_weight or not (config.scorer_url or ctx.enabled("reward_model")):
        plain = TrajectoryReward(ctx.dialect, _no_score, 0.0, config.bonus)
        return rollout, UnifiedReward(ctx.dialect) if unified else plain
    scored = ScoredRollout(rollout, _served_scorer(config) if config.scorer_url else load_scorer(ctx))
    if unified:
        return scored, UnifiedReward(ctx.dialect, scored.score, config.bonus_weight)
    return scored, TrajectoryReward(ctx.dialect, scored.score, config.bonus_weight, config.bonus)


def _served_scorer(config: RLConfig) -> HttpScorer:
    key = os.environ.get(config.scorer_key_env, "") if config.scorer_key_env else ""
    if config.scorer_key_env and not key:
        raise ConfigError(f"rl.scorer_key_env: the environment has no {config.scorer_key_env}; set it to the key")
    return HttpScorer(config.scorer_url, key=key)


def _no_score(trajectory: Trajectory, task: Task) -> float:
    return 0.0


def scorer_failures(history: Sequence[Mapping[str, float]], rollouts: int) -> int:
    """How many trajectories got no score, from log lines that each hold the share of a step's `rollouts`.

    >>> scorer_failures([{"reward/scorer_failed": 0.25}, {"loss": 1.0}, {"reward/scorer_failed": 0.125}], 8)
    3
    """
    return round(sum(line.get("reward/scorer_failed", 0.0) for line in history) * rollouts)


def _rl_settings(ctx: Context) -> RLSettings:
    c = ctx.config.rl
    return RLSettings(
        num_generations=c.num_generations,
        std=c.std_normalised,
        clip_low=c.clip_low,
        clip_high=c.clip_high,
        iterations=c.iterations,
        entropy=entropy_control(ctx),
        guard=ModeGuard(c.guard.below, c.guard.copies) if c.guard.below else None,
        temperature=c.temperature,
        optimizer=c.optimizer,
        max_tokens=c.max_tokens,
    )


def _keep_groups(ctx: Context) -> GroupFn:
    """Stores the first group of every step: enough to look at, small enough to keep."""
    kept = {trajectory.seed for group in ctx.folder.read_records("rl", Group) for trajectory in group.trajectories}
    steps: set[int] = set()

    def keep(step: int, group: Group, _: Sequence[RewardBreakdown]) -> None:
        if step not in steps and group.trajectories[0].seed not in kept:
            ctx.folder.append_records("rl", [group])
        steps.add(step)

    return keep


def sampled_success(ctx: Context, loaded: Loaded) -> float:
    """Share of right attempts at 64 validation questions, 4 samples each.

    Training questions would flatter a model that knows them by heart.
    """
    requests = group_requests(ctx.sources.tasks["validation"][:64], 4, ctx.config.seed)
    attempts = ctx.rollout(loaded.renderer, ctx.policy(loaded, ctx.config.rl.temperature))(requests)
    right = [verdict(t, request.task) is Verdict.RIGHT for t, request in zip(attempts, requests, strict=True)]
    return sum(right) / len(right)
