"""Group relative policy optimisation on `transformers.Trainer`.

One optimiser step: a window of tasks → a group of rollouts each → rewards → advantages within each group →
micro-batches in which each distinct prefix is computed once → clipped policy loss.
A step has `per_device_train_batch_size` * `gradient_accumulation_steps` * processes tasks; `max_tokens` cuts it into
micro-batches, which changes speed and memory, not the gradient. Each window is used for `iterations` steps. Window w
and every rollout seed follow from the seed and w alone; a checkpoint holds the window in use; so a resumed run goes on
as if it had not stopped, and rollouts do not depend on the number of processes.

Collectives besides DDP's own: one per window (numbers of trained tokens and micro-batches), one per log line, and one
per step where an entropy coefficient adapts.
"""

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from tirkit.losses.advantage import group_advantages
from tirkit.losses.policy import clipped_surrogate
from tirkit.methods.autotool.decoupled import EntropyControl, EntropyState, entropy_bonus, trajectory_entropies
from tirkit.rollout.loop import stable_seed
from tirkit.rollout.policy import RolloutFn, RolloutRequest
from tirkit.training.base import StepTrainer
from tirkit.training.callbacks import Clock, ModeState
from tirkit.training.forward import why_no_trees
from tirkit.training.optim import OptimizerName
from tirkit.training.prefix import ScoredBatch, cut_rows, cut_trees, plain_batch, tree_batch
from tirkit.training.tally import Tally
from tirkit.training.window import MODES, Draw, MicroBatch, ScoredRow, Windows, micro_batch, scored_row
from tirkit.types import Group, RewardBreakdown, StopReason, Task, Trajectory

logger = logging.getLogger(__name__)

RewardFn = Callable[[Trajectory, Task], RewardBreakdown]
GroupFn = Callable[[int, Group, Sequence[RewardBreakdown]], None]
"""Called as on_group(step, group, rewards) with every group this process rolled out."""


@dataclass(frozen=True)
class ModeGuard:
    """While the think rate of the last window is below `below`, `copies` of each group's rollouts are made to think.

    The forced tag is trained as if it had been sampled, at the policy's own probability of it: a mode that is no longer
    sampled cannot be revived otherwise.
    """

    below: float = 0.05
    copies: int = 1


@dataclass(frozen=True)
class RLSettings:
    """How a policy is improved; what concerns the optimisation as such is in `TrainingArguments`.

    `std`: divide advantages by the group's standard deviation (GRPO as published; without it easy, low-variance groups
    are not blown up). `mean`: what the loss is a mean over: all trained tokens of the step, or trajectories, each by
    its own mean. `entropy`: bonuses on the entropy of trajectories, always a mean over trajectories. `guard`: against
    the loss of the think mode. `temperature`: the one the rollouts sample with. `shared_prefix`: compute each distinct
    prefix of a micro-batch once, where the model allows. `max_tokens`: of a micro-batch at most, such prefixes counted
    once. `num_processes`: how many the run was planned for; started otherwise it refuses, since its batch would be
    another.
    """

    num_generations: int = 8
    std: bool = False
    clip_low: float = 0.2
    clip_high: float = 0.2
    iterations: int = 1
    mean: Literal["token", "trajectory"] = "token"
    entropy: EntropyControl | None = None
    guard: ModeGuard | None = None
    temperature: float = 1.0
    optimizer: OptimizerName = "adamw"
    shuffle: bool = True
    shared_prefix: bool = True
    max_tokens: int = 16384
    num_processes: int = 1


def need_whole_weights(accelerator: Accelerator) -> None:
    """Raises RuntimeError where no process has all weights: each rolls out alone, and would wait for the others."""
    kind, zero = accelerator.distributed_type, accelerator.state.deepspeed_plugin
    if kind == DistributedType.FSDP or (kind == DistributedType.DEEPSPEED and zero and zero.zero_stage == 3):
        raise RuntimeError(
            "RL needs all weights in each process: use DDP, or DeepSpeed's ZeRO 1 or 2; LoRA saves memory"
        )


class RLTrainer(StepTrainer):
    """Trains `model` on rollouts of `tasks`.

    `rollout` attempts what it is asked, in order, with nothing random but what follows from each request's seed; it
    usually samples from `model` itself, which is in eval mode then. `reward` is a pure function. Trajectories of which
    nothing was sampled because the policy failed are no evidence and count in no group. See `training_arguments` for
    quiet arguments; `max_steps` must be set.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        settings: RLSettings,
        tasks: Sequence[Task],
        rollout: RolloutFn,
        reward: RewardFn,
        *,
        pad_id: int,
        callbacks: Sequence[TrainerCallback] = (),
        on_group: GroupFn | None = None,
        max_seconds: float | None = None,
    ):
        _check(args, settings, tasks)
        size = args.per_device_train_batch_size * args.gradient_accumulation_steps
        args = copy.copy(args)
        args.gradient_accumulation_steps = 1  # an item is a whole step
        why = why_no_trees(model, args.device)
        if settings.shared_prefix and why:
            logger.warning("prompts are computed once per trajectory, not once per group: %s", why)
        self.modes = ModeState(settings.entropy.start() if settings.entropy else EntropyState())
        super().__init__(
            model,
            args,
            Windows(tasks, args, size, settings.iterations, settings.shuffle),
            optimizer_name=settings.optimizer,
            clock=Clock(max_seconds),
            callbacks=[self.modes, *callbacks],
            shared_prefix=settings.shared_prefix and why is None,
        )
        need_whole_weights(self.accelerator)
        self.settings, self.tasks, self.rollout, self.reward = settings, tasks, rollout, reward
        self.pad_id, self.on_group = pad_id, on_group
        self._window: list[MicroBatch] | None = None
        self._tally = Tally()
        self._covered: list[Tensor] = []  # this step's entropies, by term: (K, 2) sums and counts a micro-batch

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Draw]], num_batches: int, device: torch.device
    ) -> tuple[list[list[MicroBatch]], None]:
        """Micro-batches of one optimiser step: fresh ones, or again those of the window in use."""
        draws = next(epoch_iterator)
        if self.state.global_step % self.settings.iterations == 0:
            self._window = self._collect(draws, device)
        elif self._window is None:  # resumed in the middle of a window
            with torch.serialization.safe_globals([MicroBatch, ScoredBatch]):
                saved = torch.load(self._window_file(self.resumed_from), weights_only=True)
            self._window = [batch.to(device) for batch in saved]
        return [self._window], None

    def _collect(self, draws: list[Draw], device: torch.device) -> list[MicroBatch]:
        """Roll out the tasks and make batches of what came back."""
        started, copies = time.monotonic(), range(self.settings.num_generations)
        forced = self._num_forced()
        requests = [
            RolloutRequest(
                draw.task,
                copy,
                stable_seed(self.args.seed, draw.place, draw.task.id, copy),
                mode="think" if copy < forced else None,
                trains_mode=True,
            )
            for draw in draws
            for copy in copies
        ]
        self.policy.eval()
        trajectories = self.rollout(requests)
        if len(trajectories) != len(requests):
            raise ValueError(f"rollout gave {len(trajectories)} trajectories for {len(requests)} requests")
        rows = self._score(requests, trajectories)
        self._tally.add("rollout_s", time.monotonic() - started, 1)
        return self._micro_batches(rows, device)

    def _num_forced(self) -> int:
        """How many of a group's rollouts are made to think."""
        guard, rate = self.settings.guard, self.modes.think_rate
        return guard.copies if guard and rate is not None and rate < guard.below else 0

    def _score(self, requests: list[RolloutRequest], trajectories: list[Trajectory]) -> list[ScoredRow]:
        """Rewards and advantages; without what counts in no group."""
        size = self.settings.num_generations
        rewards = [self.reward(t, request.task) for t, request in zip(trajectories, requests, strict=True)]
        kept = [i for i, t in enumerate(trajectories) if t.stop is not StopReason.POLICY_FAILED]
        totals_B = torch.tensor([rewards[i].total for i in kept], dtype=torch.float32)
        advantages_B = group_advantages(totals_B, torch.tensor([i // size for i in kept]), self.settings.std)
        advantages = dict(zip(kept, advantages_B.tolist(), strict=True))
        for i in kept:
            self._count(trajectories[i], rewards[i])
        for reason in StopReason:
            self._tally.extend(f"stop/{reason}", (float(t.stop is reason) for t in trajectories))
        learning = {i // size for i, advantage in advantages.items() if advantage}
        self._tally.add("learning_groups", len(learning), len(trajectories) // size)
        if self.on_group:
            for start in range(0, len(trajectories), size):
                group = Group(task_id=requests[start].task.id, trajectories=tuple(trajectories[start : start + size]))
                self.on_group(self.state.global_step, group, rewards[start : start + size])
        return [scored_row(trajectories[i], advantages[i], requests[i].mode is not None) for i in kept]

    def _micro_batches(self, rows: list[ScoredRow], device: torch.device) -> list[MicroBatch]:
        """Tensors, with the denominators of the whole step over all processes; what teaches nothing is left out."""
        counts = [sum(row.tool_mask) for row in rows]
        # Without advantage or entropy term a row has no gradient; one without a trained token never has.
        control = self.settings.entropy
        covered = [control is not None and any(row.covered_by(term) for term in control.terms) for row in rows]
        learning = [row for row, n, on in zip(rows, counts, covered, strict=True) if n and (row.advantage or on)]
        self._tally.add("computed_tokens", sum(sum(row.tool_mask) for row in learning), sum(counts))
        pieces = (cut_trees if self.shared_prefix else cut_rows)(learning, self.settings.max_tokens)
        chosen = [row.mode == "think" for row in rows if row.mode and not row.forced]
        self._tally.add("think_rate", sum(chosen), len(chosen))
        mine = [sum(counts), sum(map(bool, counts)), sum(chosen), len(chosen), len(pieces)]
        every = cast(Tensor, self.accelerator.gather(torch.tensor([mine], device=device)))
        num_tokens, num_rows, num_thinking, num_chosen, _ = every.sum(0).tolist()
        if num_chosen:
            self.modes.think_rate = num_thinking / num_chosen
        # All processes must take part in every forward, with nothing to train on if need be.
        nothing = ScoredRow((self.pad_id,), (self.pad_id,), (0,), (0.0,), 0.0)
        pieces += [[nothing]] * (max(1, int(every[:, -1].max())) - len(pieces))
        lay_out = tree_batch if self.shared_prefix else partial(plain_batch, pad_id=self.pad_id)
        share = partial(
            micro_batch,
            num_tokens=max(1, num_tokens),
            num_rows=max(1, num_rows),
            by_token=self.settings.mean == "token",
            control=control,
        )
        return [share(piece, lay_out(piece)).to(device) for piece in pieces]

    def batch_loss(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        """Policy loss and entropy bonus of one micro-batch, a part of the step's sum."""
        s = self.settings
        moves = any(self.modes.entropy.coefficients)
        logps_N, entropy_N = model(scored=batch.scored, temperature=s.temperature, entropy_gradient=moves)
        if s.iterations > 1 and batch.old_logps_N is None:
            batch.old_logps_N = logps_N.detach()
        old_logps_N = logps_N.detach() if batch.old_logps_N is None else batch.old_logps_N
        loss, metrics = clipped_surrogate(
            logps_N=logps_N,
            old_logps_N=old_logps_N,
            advantages_N=batch.advantages_N,
            weights_N=batch.weights_N,
            clip_low=s.clip_low,
            clip_high=s.clip_high,
        )
        known_N = batch.sampled_logps_N != 0
        gap = ((old_logps_N - batch.sampled_logps_N).abs() * known_N).sum()
        self._tally.add("logp_gap", gap, known_N.sum())
        self._tally.add("clip_fraction", metrics["clipped"], len(logps_N))
        self._tally.add("entropy", entropy_N.detach().sum(), len(logps_N))
        return loss - self._bonus(batch, entropy_N)

    def _bonus(self, batch: MicroBatch, entropy_N: Tensor) -> Tensor | float:
        """The entropy bonus of a micro-batch; notes the entropies by mode and by term."""
        mean_R, first_R = trajectory_entropies(entropy_N, batch.scored.row_N, len(batch.mode_R))
        for i, mode in enumerate(MODES):
            of_mode_R = batch.mode_R == i
            self._tally.add(f"{mode}/entropy", (mean_R.detach() * of_mode_R).sum(), of_mode_R.sum())
        chosen_R = batch.mode_R >= 0
        self._tally.add("mode_entropy", (first_R.detach() * chosen_R).sum(), chosen_R.sum())
        control = self.settings.entropy
        if control is None:
            return 0.0
        bonus, sums = entropy_bonus(
            control, self.modes.entropy, mean_R=mean_R, first_R=first_R, covered_KR=batch.covered_KR
        )
        for k, term in enumerate(control.terms):
            self._tally.add(f"entropy_mean/{term.name}", sums["entropy"][k], sums["covered"][k])
            self._tally.add(f"entropy_gate/{term.name}", sums["open"][k], sums["covered"][k])
        self._covered.append(torch.stack((sums["entropy"], sums["covered"])))
        return bonus / batch.num_rows

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """The gradient of a step; then the entropy coefficients move."""
        loss = super().training_step(*args, **kwargs)
        if control := self.settings.entropy:
            for term, coefficient in zip(control.terms, self.modes.entropy.coefficients, strict=True):
                self._tally.add(f"entropy_coef/{term.name}", coefficient, 1)
            if control.adapts:
                sums, counts = self.summed(torch.stack(self._covered).sum(0)).tolist()
                self.modes.entropy = control.advance(self.modes.entropy, sums, counts)
            self._covered.clear()
        return loss

    def _count(self, trajectory: Trajectory, reward: RewardBreakdown) -> None:
        terms = {term.name: term.value for term in reward.terms}
        numbers = {"reward": reward.total, "completion_tokens": trajectory.num_sampled}
        numbers |= {f"reward/{name}": value for name, value in terms.items()}
        if mode := trajectory.mode:
            by_mode = {"reward": reward.total, "tokens": trajectory.num_sampled, **terms}
            numbers |= {f"{mode}/{name}": value for name, value in by_mode.items()}
        for name, value in numbers.items():
            self._tally.add(name, value, 1)

    def metrics(self) -> dict[str, float]:
        """Means since the last log line: rewards and stop reasons over trajectories, the rest over computed tokens.

        "learning_groups" is the share of groups whose rewards differ at all. "computed_tokens" is the share of trained
        tokens that went through the model: without entropy terms, those whose advantage is not 0. "logp_gap" is the
        mean |log p when sampled - log p now| before the first update on it: far above rounding it means that rollouts
        are not sampled from this model, at this temperature, on these ids.

        Where trajectories have modes: "think_rate", among those that chose their mode themselves; "think/…" and
        "no_think/…", each reward term, tokens and entropy over the trajectories of a mode; "mode_entropy", of the mode
        token. By entropy term: "entropy_coef/…", "entropy_mean/…" (of what it covers), "entropy_gate/…" (share open).
        """
        return self._tally.means()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Within a checkpoint also the window in use; it comes before the state file, which marks it complete."""
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir and self._window and self.state.global_step % self.settings.iterations:
            path = self._window_file(output_dir)
            path.parent.mkdir(parents=True, exist_ok=True)  # the main process may not be there yet
            torch.save([batch.to("cpu") for batch in self._window], path)

    def _window_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"window_{self.args.process_index}.pt"


def _check(args: TrainingArguments, settings: RLSettings, tasks: Sequence[Task]) -> None:
    if not tasks:
        raise ValueError("no tasks to roll out")
    if args.max_steps <= 0:
        raise ValueError("set max_steps: reinforcement learning ends after a number of steps, not of epochs")
    if args.world_size != settings.num_processes:
        raise ValueError(
            f"planned for {settings.num_processes} processes, started with {args.world_size}: start with "
            f"torchrun --nproc-per-node {settings.num_processes}, or change num_processes"
        )
