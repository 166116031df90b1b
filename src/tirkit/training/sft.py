"""Supervised fine-tuning: weighted per-example-mean losses on `transformers.Trainer`.

An optimiser step draws `batch_size` rows and minimises

    sum over rows of weight * (mean over the row's trained tokens of -log p) / number of rows in the step

so a long target counts no more than a short one (TInR phase 1: L_mem + α L_rec + β L_use with weights 1, α, β); rows in
two modes are weighted by `token_weighted`. The rows are cut into micro-batches, and those of one are packed: nothing is
padded, and a prefix that several of them share is computed once. That changes speed and memory, not the gradient. What
step s trains on is a function of (seed, s) alone, so a run goes on exactly where its last checkpoint stands, on any
number of processes.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from tirkit.store import writing_to
from tirkit.text.masks import TokenRow
from tirkit.training.base import StepTrainer, rows_of_step, training_arguments
from tirkit.training.callbacks import Clock
from tirkit.training.forward import why_no_trees
from tirkit.training.optim import OptimizerName, ScheduleName, lr_factor
from tirkit.training.prefix import ScoredBatch, cut_rows, cut_trees, plain_batch, tree_batch

logger = logging.getLogger(__name__)

UNLIMITED_STEPS = 10**9


@dataclass(frozen=True)
class WeightedRow:
    """One training row, what its loss counts, the name it is reported under, and whether it spares tokens."""

    row: TokenRow
    weight: float = 1.0
    kind: str = "sft"
    spares: bool = False  # see SFTSettings.spared_ids

    @property
    def prompt_ids(self) -> Sequence[int]:
        """Of the row."""
        return self.row.prompt_ids

    @property
    def completion_ids(self) -> Sequence[int]:
        """Of the row."""
        return self.row.completion_ids

    @property
    def tool_mask(self) -> Sequence[int]:
        """Of the row."""
        return self.row.tool_mask


def token_weighted(rows: Sequence[WeightedRow]) -> list[WeightedRow]:
    """The rows, each with its weight times its share of trained tokens (1 on average): all tokens count alike.

    For rows that begin with a choice, such as a mode tag. Where the loss is the mean over each row, a tag before 9
    tokens counts six times as much as one before 58, and a coin flip between them is learnt as 13 % for the long ones.

    >>> row = lambda tokens: WeightedRow(TokenRow((1,), (2,) * tokens, (1,) * tokens, (0.0,) * tokens))
    >>> [row.weight for row in token_weighted([row(1), row(3)])]
    [0.5, 1.5]
    """
    counts = [sum(row.tool_mask) for row in rows]
    mean = max(1, sum(counts)) / max(1, len(counts))
    return [replace(row, weight=row.weight * count / mean) for row, count in zip(rows, counts, strict=True)]


@dataclass(frozen=True)
class SFTSettings:
    """How to train. The run ends at the first of `epochs`, `max_steps`, `max_seconds`; at least one must be given.

    `warmup` is a share of the run. With `max_seconds` the schedule follows the clock where that is ahead of the steps
    (so the run is not repeatable to the bit). `batch_size` counts rows per optimiser step, over all processes.
    `max_tokens` bounds a micro-batch: a CPU is fastest at one or two thousand, a GPU at what its memory holds.
    `packing`: the rows of a micro-batch stand one behind the other, where the model allows; else they are padded. With
    `keep_best` the model ends with the weights that validated best by `score`. The tokens `spared_ids` stay out of the
    softmax of rows that spare them: what such a row is trained on says nothing about them.
    """

    lr: float = 1e-3
    batch_size: int = 32
    epochs: float | None = None
    max_steps: int | None = None
    max_seconds: float | None = None
    optimizer: OptimizerName = "adamw"
    schedule: ScheduleName = "linear"
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_tokens: int = 2048
    packing: bool = True
    seed: int = 0
    log_steps: int = 20
    save_steps: int | None = None
    validate_steps: int | None = None
    keep_best: bool = False
    bf16: bool = False
    gradient_checkpointing: bool = False
    spared_ids: tuple[int, ...] = ()

    def num_steps(self, num_rows: int) -> int:
        """Optimiser steps at most."""
        by_epochs = None if self.epochs is None else -(-int(self.epochs * num_rows) // self.batch_size)
        limits = [n for n in (self.max_steps, by_epochs) if n is not None]
        if not limits and self.max_seconds is None:
            raise ValueError("nothing ends this training: set epochs, max_steps or max_seconds")
        return max(1, min(limits)) if limits else UNLIMITED_STEPS


@dataclass(frozen=True)
class SFTReport:
    """What a run did. `curve` has one dict per log line or validation: step, seconds, loss, loss_<kind>, …"""

    steps: int
    seconds: float
    tokens: int
    curve: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class _MicroBatch:
    scored: ScoredBatch
    scale_R: Tensor  # weight / trained tokens / rows in the step; 0 on rows that only fill up
    count_R: Tensor  # trained tokens
    kind_R: Tensor


@dataclass(frozen=True)
class _Step:
    """This process's share of an optimiser step, and the trained tokens of the whole step."""

    batches: list[_MicroBatch]
    num_tokens: int


class _Steps(Dataset[_Step]):
    """Item s = step s, for process `rank` of `world`."""

    def __init__(
        self, rows: Sequence[WeightedRow], settings: SFTSettings, pad_id: int, packed: bool, rank: int, world: int
    ):
        self.rows, self.settings, self.pad_id, self.packed = rows, settings, pad_id, packed
        self.rank, self.world = rank, world
        self.kinds = sorted({row.kind for row in rows})

    def __len__(self) -> int:
        return self.settings.num_steps(len(self.rows))

    def __getitem__(self, step: int) -> _Step:
        batch = [self.rows[i] for i in rows_of_step(step, len(self.rows), self.settings.batch_size, self.settings.seed)]
        cut = cut_trees if self.packed else cut_rows
        plans = [cut(batch[rank :: self.world], self.settings.max_tokens) for rank in range(self.world)]
        # Every process does the same number of forwards, as FSDP needs: what is missing is filled with weight 0.
        filler = [replace(min(batch, key=lambda row: len(row.prompt_ids) + len(row.completion_ids)), weight=0.0)]
        mine = plans[self.rank] + [filler] * (max(map(len, plans)) - len(plans[self.rank]))
        num_tokens = sum(sum(row.tool_mask) for row in batch)
        return _Step([self._micro_batch(rows, len(batch)) for rows in mine], num_tokens)

    def _micro_batch(self, rows: list[WeightedRow], num_rows: int) -> _MicroBatch:
        counts = [sum(row.tool_mask) for row in rows]
        return _MicroBatch(
            self._scored(rows),
            torch.tensor([row.weight / count / num_rows for row, count in zip(rows, counts, strict=True)]),
            torch.tensor(counts),
            torch.tensor([self.kinds.index(row.kind) for row in rows]),
        )

    def _scored(self, rows: list[WeightedRow]) -> ScoredBatch:
        batch = tree_batch(rows) if self.packed else plain_batch(rows, self.pad_id)
        spares_R = torch.tensor([row.spares for row in rows])
        if not self.settings.spared_ids or not spares_R.any():
            return batch
        return replace(batch, spared_N=spares_R[batch.row_N], spared_ids=torch.tensor(self.settings.spared_ids))


class _SFTTrainer(StepTrainer):
    """A step of this trainer is one item of `_Steps`: all micro-batches of an optimiser step."""

    def __init__(self, model: nn.Module, args: TrainingArguments, steps: _Steps, clock: Clock, callbacks: Sequence):
        name, packed = steps.settings.optimizer, steps.packed
        super().__init__(
            model, args, steps, optimizer_name=name, clock=clock, callbacks=callbacks, shared_prefix=packed
        )
        self.settings, self.kinds = steps.settings, steps.kinds
        self._sums = torch.zeros(2, len(self.kinds), device=self.args.device)  # losses and rows since the last log line
        self._last_log = (0, 0.0)  # tokens and seconds by then

    def get_batch_samples(
        self, epoch_iterator: Iterator[_Step], num_batches: int, device: torch.device
    ) -> tuple[list[list[_MicroBatch]], None]:
        """The micro-batches of one item; how much their tokens count is settled in them."""
        step = next(epoch_iterator)
        self.clock.num_tokens += step.num_tokens
        return [step.batches], None

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The schedule named in the settings, over steps or seconds, whichever is further."""
        s = self.settings

        def factor(step: int) -> float:
            # A step stands at its middle: without warm-up the first moves fully, and the last one still moves.
            return lr_factor(s.schedule, self.clock.progress(step + 0.5, num_training_steps), s.warmup)

        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def batch_loss(self, model: nn.Module, batch: _MicroBatch) -> Tensor:
        """Weighted sum over rows of means over tokens."""
        device = self.args.device
        scored, scale_R = batch.scored.to(device), batch.scale_R.to(device)
        count_R, kind_R = batch.count_R.to(device), batch.kind_R.to(device)
        logps_N, _ = model(scored=scored, with_entropy=False)
        sum_R = torch.zeros_like(scale_R).index_add(0, scored.row_N, -logps_N)
        real_R = (scale_R != 0).float()
        self._sums.index_add_(1, kind_R, torch.stack([sum_R.detach() / count_R * real_R, real_R]))
        return (sum_R * scale_R).sum()

    def metrics(self) -> dict[str, float]:
        """Mean loss by kind, and the speed."""
        losses, rows = self.summed(self._sums).tolist()
        self._sums.zero_()
        (tokens, seconds), self._last_log = self._last_log, (self.clock.num_tokens, self.clock.seconds)
        return {
            **{f"loss_{kind}": losses[k] / rows[k] for k, kind in enumerate(self.kinds) if rows[k]},
            "tokens_per_s": (self.clock.num_tokens - tokens) / max(self.clock.seconds - seconds, 1e-9),
        }


class _Validation(TrainerCallback):
    """Runs `validate(model)` every so many steps and after the last one; the clock stands still meanwhile."""

    def __init__(self, trainer: _SFTTrainer, validate: Callable[[nn.Module], Mapping[str, float]], folder: Path):
        self.trainer, self.validate, self.best_file = trainer, validate, folder / "best.pt"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        every = self.trainer.settings.validate_steps
        if control.should_training_stop or (every and state.global_step % every == 0):
            self._run(state.global_step)

    def _run(self, step: int) -> None:
        with self.trainer.clock.paused():
            metrics = self._measured(step)
        self.trainer.log({f"validate_{name}": value for name, value in metrics.items()})

    def _measured(self, step: int) -> Mapping[str, float]:
        model = self.trainer.policy
        model.eval()
        with torch.no_grad():
            metrics = self.validate(model)
        model.train()
        if self.trainer.settings.keep_best:
            if "score" not in metrics:
                raise ValueError(f"keep_best needs validate to return 'score', it returned {sorted(metrics)}")
            main, first = self.trainer.is_world_process_zero(), not self.best_file.exists()
            if main and (first or metrics["score"] > torch.load(self.best_file)["score"]):
                part = self.best_file.with_suffix(".part")
                with writing_to(self.best_file):
                    torch.save({"score": metrics["score"], "step": step, "weights": model.state_dict()}, part)
                    part.replace(self.best_file)
        return metrics


def train_sft(
    model: nn.Module,
    rows: Sequence[WeightedRow],
    settings: SFTSettings,
    output_dir: str | Path,
    *,
    pad_id: int,
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> SFTReport:
    """Train `model` in place on `rows`.

    `output_dir` keeps the checkpoints (every `save_steps`; the newest two) and, with `keep_best`, the best weights; a
    run that finds a complete checkpoint there goes on from it. `validate(model)` returns named numbers, higher `score`
    is better. Raises ValueError on rows nothing can be learnt from and on settings that contradict each other.
    """
    if not rows:
        raise ValueError("no rows to train on")
    spared = set(settings.spared_ids)
    for i, row in enumerate(rows):
        if not any(row.tool_mask):
            raise ValueError(f"row {i} ({row.kind}) has no trained token: leave it out")
        if row.spares and not spared.isdisjoint(compress(row.completion_ids, row.tool_mask)):
            raise ValueError(f"row {i} ({row.kind}) is trained on a token that it spares")
    if settings.keep_best and validate is None:
        raise ValueError("keep_best needs a validate function")
    folder, clock = Path(output_dir), Clock(settings.max_seconds)
    args = _arguments(settings, len(rows), folder)
    if settings.max_seconds is not None and args.world_size > 1:
        raise ValueError("max_seconds needs a single process, whose clock decides: set max_steps instead")
    why = why_no_trees(model, args.device)
    if settings.packing and why:
        logger.warning("rows are padded, not packed: %s", why)
    steps = _Steps(rows, settings, pad_id, settings.packing and why is None, args.process_index, args.world_size)
    trainer = _SFTTrainer(model, args, steps, clock, callbacks)
    if validate is not None:
        trainer.add_callback(_Validation(trainer, validate, folder))
    trainer.train(resume_from_checkpoint=True)
    if settings.keep_best:
        trainer.accelerator.wait_for_everyone()
        model.load_state_dict(torch.load(folder / "best.pt")["weights"])
    return SFTReport(trainer.state.global_step, clock.seconds, clock.num_tokens, tuple(trainer.state.log_history))


def _arguments(settings: SFTSettings, num_rows: int, folder: Path) -> TrainingArguments:
    return training_arguments(
        str(folder),
        max_steps=settings.num_steps(num_rows),
        per_device_train_batch_size=1,  # items of _Steps
        learning_rate=settings.lr,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        logging_steps=settings.log_steps,
        save_steps=settings.save_steps,
        bf16=settings.bf16,
        activation_checkpointing=settings.gradient_checkpointing,
    )
