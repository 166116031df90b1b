"""What both trainers share: a `transformers.Trainer` whose step number alone decides what is trained on."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from tirkit.store import writing_to
from tirkit.training.callbacks import Clock, last_checkpoint
from tirkit.training.forward import scoring
from tirkit.training.optim import OptimizerName, make_optimizer


def training_arguments(output_dir: str, **settings: Any) -> TrainingArguments:
    """`TrainingArguments` that print nothing, report nowhere and keep the newest two checkpoints, unless told.

    Raises RuntimeError where a launcher started several processes and they would not work together.
    """
    quiet: dict[str, Any] = {
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "steps" if settings.get("save_steps") else "no",
        "save_total_limit": 2,
        "logging_nan_inf_filter": False,
        "dataloader_pin_memory": False,
        # Without an accelerator and without this, every process that torchrun starts believes that it is alone.
        "use_cpu": not torch.accelerator.is_available(),
    }
    args = TrainingArguments(output_dir=output_dir, **quiet | {k: v for k, v in settings.items() if v is not None})
    if (started := int(os.environ.get("WORLD_SIZE", "1"))) != args.world_size:
        raise RuntimeError(
            f"{started} processes were started but each trains alone (world size {args.world_size}): "
            "start them with torchrun, and check that torch.distributed has a backend for this device"
        )
    return args


def rows_of_step(step: int, num_rows: int, batch_size: int, seed: int, shuffle: bool = True) -> list[int]:
    """Indices of the rows of one step: an endless stream of (shuffled) epochs, cut every `batch_size`.

    >>> [rows_of_step(step, 3, 2, seed=0, shuffle=False) for step in range(3)]
    [[0, 1], [2, 0], [1, 2]]
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    if not shuffle:
        return [place % num_rows for place in places]
    return [_epoch_order(place // num_rows, num_rows, seed)[place % num_rows] for place in places]


@lru_cache(maxsize=2)
def _epoch_order(epoch: int, num_rows: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_rows, generator=generator).tolist()


class StepTrainer(Trainer):
    """Reads `train_dataset` in order, once: an item is this process's share of one optimiser step.

    `get_batch_samples` makes one list of micro-batches of it, `batch_loss` is the loss of one of them. Losses are sums
    over micro-batches and processes of what is already divided by the whole step's denominator. Every process must have
    the same number of micro-batches.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        dataset: Dataset,
        *,
        optimizer_name: OptimizerName,
        clock: Clock,
        callbacks: Sequence[TrainerCallback],
        shared_prefix: bool = False,
    ):
        super().__init__(model=model, args=args, train_dataset=dataset, callbacks=[clock, *callbacks])  # type: ignore
        self.policy = model  # what `self.model` is, but never None
        self.optimizer_name: OptimizerName = optimizer_name
        self.clock = clock
        self.shared_prefix = shared_prefix
        self.resumed_from = ""
        self.remove_callback(PrinterCallback)  # prints every log line as a dict

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train; `True` goes on from the newest complete checkpoint in the output folder, if there is one."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(str(self.args.output_dir))
        self.resumed_from = resume_from_checkpoint or ""
        with scoring(self.policy, self.shared_prefix):
            result = super().train(resume_from_checkpoint=resume_from_checkpoint or None, **kwargs)
        self.policy.eval()
        return result

    def get_train_dataloader(self) -> DataLoader:
        """Items in order."""
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=itemgetter(0))  # type: ignore[arg-type]

    def batch_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of one micro-batch, a part of the step's sum."""
        raise NotImplementedError

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Gradient of the whole step: micro-batch by micro-batch, reduced over processes with the last one."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        for i, batch in enumerate(inputs):
            last = i == len(inputs) - 1
            self.accelerator.gradient_state._set_sync_gradients(last)  # DeepSpeed steps the optimiser where it is set
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    # DDP takes the mean over processes, the loss is a sum over them.
                    loss = self.batch_loss(model, batch) * self.args.world_size
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser asked for, at the arguments' learning rate and weight decay."""
        if self.optimizer is None:
            lr, decay = self.args.learning_rate, self.args.weight_decay
            self.optimizer = make_optimizer(model or self.policy, self.optimizer_name, lr, decay)
        return self.optimizer

    def summed(self, values: Tensor) -> Tensor:
        """Sum over all processes."""
        return cast(Tensor, self.accelerator.reduce(values, "sum"))

    def metrics(self) -> dict[str, float]:
        """Numbers gathered since the last log line, over all processes; called on every process."""
        return {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `metrics()` to a training line, and the time to every line; leaves Trainer's closing summary out."""
        if "train_runtime" in logs:
            return
        if "loss" in logs:
            logs |= self.metrics()
        logs["seconds"] = self.clock.seconds
        logs["eta_s"] = self.clock.eta(self.state.global_step, self.state.max_steps)
        super().log(logs, start_time)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's; on a full disk with what to do about it. A checkpoint that was cut short is never gone on from."""
        with writing_to(Path(str(self.args.output_dir))):
            super()._save_checkpoint(*args, **kwargs)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0
