"""A reward model: a scalar head on a causal LM checkpoint, trained on preference pairs through TRL's RewardTrainer.

What it reads is the one rendering of `tirkit.text`: the prompt with its documents, then all turns and replies, as token
ids. Training, scoring in process and scoring over HTTP get the same ids. The head is saved in the checkpoint, beside it
the normalisation ŝ = tanh((r - μ) / s), μ and s being mean and standard deviation of r on held-out pairs.
"""

import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tirkit.methods.autotraj.pairs import Preference
from tirkit.rollout.loop import stable_seed
from tirkit.rollout.policy import RolloutRequest
from tirkit.store import save_folder
from tirkit.text.masks import TokenRow
from tirkit.training.callbacks import ProgressCallback, last_checkpoint
from tirkit.types import Record, Task, Trajectory, UserError

NORMALISATION = "reward_model.json"

RowFn = Callable[[Trajectory, Task], TokenRow]
"""A trajectory as ids, the documents in its task's prompt included."""


class RewardModelError(UserError):
    """A reward model cannot be trained or used; the message says what to do."""


class Normalisation(Record):
    """ŝ = tanh((r - mean) / scale)."""

    mean: float
    scale: float

    def __call__(self, reward: float) -> float:
        """ŝ in (-1, 1)."""
        return math.tanh((reward - self.mean) / self.scale)


@dataclass(frozen=True)
class RewardSettings:
    """How to train. `batch_size` counts pairs per optimiser step, `micro_batch` pairs per forward.

    `lora_rank` 0 trains all weights. Pairs with a trajectory over `max_tokens` are left out, and counted. `held_out` is
    a share of the tasks: pairs of one task are never on both sides.
    """

    lr: float = 1e-5
    epochs: float = 2.0
    batch_size: int = 32
    micro_batch: int = 8
    lora_rank: int = 8
    held_out: float = 0.05
    max_tokens: int = 4096
    schedule: str = "linear"
    warmup: float = 0.1
    seed: int = 0
    bf16: bool = False
    log_steps: int = 10
    save_steps: int | None = None


@dataclass(frozen=True)
class PairIds:
    """A preference pair as ids; its index among the pairs it was made of."""

    index: int
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True)
class RewardTraining:
    """What a training did. `held_out`: indices of the pairs it never saw; `rewards`: their raw (chosen, rejected)."""

    num_trained: int
    num_too_long: int
    held_out: tuple[int, ...]
    rewards: tuple[tuple[float, float], ...]
    normalisation: Normalisation
    curve: tuple[dict[str, float], ...]


def split_pairs(pairs: Sequence[Preference], share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Indices of the pairs to train on and of those held out: all pairs of a `share` of the tasks, at least of one.

    Raises RewardModelError where that leaves nothing to train on.
    """
    names = sorted({pair.task_id for pair in pairs}, key=lambda name: stable_seed(seed, "held out", name))
    if len(names) < 2:
        raise RewardModelError(
            f"a reward model needs preference pairs of at least 2 tasks, there are {len(names)}: sample more candidates"
        )
    chosen = set(names[: min(len(names) - 1, max(1, round(share * len(names))))])
    indices = range(len(pairs))
    return [i for i in indices if pairs[i].task_id not in chosen], [i for i in indices if pairs[i].task_id in chosen]


def train_reward_model(
    pairs: Sequence[Preference],
    tasks: Mapping[str, Task],
    row: RowFn,
    checkpoint: Path,
    tokenizer: PreTrainedTokenizerFast,
    settings: RewardSettings,
    output: Path,
    work: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> RewardTraining:
    """Train on the pairs that are not held out; leaves the model in `output`, absent or whole.

    checkpoint: folder of the causal LM to start from. row: the rendering. work: checkpoints; a complete one there is
    gone on from. Raises RewardModelError where TRL is missing or there are too few pairs.
    """
    ids = [PairIds(i, *(_ids(row(t, tasks[p.task_id])) for t in (p.chosen, p.rejected))) for i, p in enumerate(pairs)]
    train, held_out = (
        [ids[i] for i in part if max(len(ids[i].chosen), len(ids[i].rejected)) <= settings.max_tokens]
        for part in split_pairs(pairs, settings.held_out, settings.seed)
    )
    if not train or not held_out:
        raise RewardModelError(f"no pairs are left within max_tokens = {settings.max_tokens}: raise it")
    model = new_reward_model(checkpoint, cast(int, tokenizer.pad_token_id))
    trained, curve = _train(model, train, tokenizer, settings, work, callbacks)
    rewards = raw_scores(trained, [sequence for pair in held_out for sequence in (pair.chosen, pair.rejected)])
    values = torch.tensor(rewards)
    normalisation = Normalisation(mean=values.mean().item(), scale=max(values.std().item(), 1e-6))

    def write(folder: Path) -> None:
        trained.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / NORMALISATION).write_text(normalisation.model_dump_json(), encoding="utf-8")

    save_folder(output, write)
    return RewardTraining(
        num_trained=len(train),
        num_too_long=len(ids) - len(train) - len(held_out),
        held_out=tuple(pair.index for pair in held_out),
        rewards=tuple(zip(rewards[::2], rewards[1::2], strict=True)),
        normalisation=normalisation,
        curve=curve,
    )


def new_reward_model(checkpoint: Path, pad_id: int) -> PreTrainedModel:
    """The causal LM's body with a scalar head of zeros: untrained, it rates everything 0, not at random."""
    config = AutoConfig.from_pretrained(checkpoint, num_labels=1)
    config.get_text_config().pad_token_id = pad_id
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    causal = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.base_model.load_state_dict(causal.base_model.state_dict())
    torch.nn.init.zeros_(model.score.weight)
    return model


def check_trl() -> None:
    """Raises RewardModelError where what trains a reward model is not installed."""
    if missing := [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]:
        raise RewardModelError(
            f"training a reward model needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        )


def _train(
    model: PreTrainedModel,
    pairs: Sequence[PairIds],
    tokenizer: PreTrainedTokenizerFast,
    settings: RewardSettings,
    work: Path,
    callbacks: Sequence[TrainerCallback],
) -> tuple[PreTrainedModel, tuple[dict[str, float], ...]]:
    """The plain trained model in eval mode, and the log lines."""
    check_trl()
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    micro = min(settings.micro_batch, settings.batch_size)
    args = RewardConfig(
        output_dir=str(work),
        learning_rate=settings.lr,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=max(1, settings.batch_size // micro),
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,
        max_length=None,  # what is too long was left out above, and counted
        bf16=settings.bf16,
        activation_checkpointing=False,
        seed=settings.seed,
        logging_steps=settings.log_steps,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 500,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=not torch.accelerator.is_available(),
    )
    lora = LoraConfig(
        task_type="SEQ_CLS",  # its head is trained and saved too
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        target_modules="all-linear",
        lora_dropout=0.0,
    )
    columns = {"chosen_ids": [pair.chosen for pair in pairs], "rejected_ids": [pair.rejected for pair in pairs]}
    trainer = RewardTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        peft_config=lora if settings.lora_rank else None,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(work))
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    trained = trained.merge_and_unload() if settings.lora_rank else trained
    return trained.eval(), tuple(trainer.state.log_history)


class TimedProgress(ProgressCallback):
    """A `ProgressCallback` for TRL's trainers, whose log lines say nothing of time."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start counting."""
        self._began = state.global_step, time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """One line, with the seconds so far and those left."""
        seconds, steps = time.monotonic() - self._began[1], state.global_step - self._began[0]
        left = seconds / steps * (state.max_steps - state.global_step) if steps else 0.0
        super().on_log(args, state, control, {**(logs or {}), "seconds": seconds, "eta_s": left})


class Scorer(Protocol):
    """Scores trajectories of the tasks beside them; None where one cannot be scored. In process, or over HTTP."""

    def score(self, trajectories: Sequence[Trajectory], tasks: Sequence[Task]) -> list[float | None]:
        """One score a trajectory, in their order."""
        ...


class RewardModel:
    """A trained reward model. `num_failures` counts trajectories it gave no score: empty, too long, not finite."""

    def __init__(
        self,
        model: PreTrainedModel,
        row: RowFn,
        normalisation: Normalisation,
        max_tokens: int = 4096,
        batch_tokens: int = 16384,
    ):
        self.model, self.row, self.normalisation = model.eval(), row, normalisation
        self.max_tokens, self.batch_tokens = max_tokens, batch_tokens
        self.num_failures = 0

    @classmethod
    def load(cls, folder: Path, row: RowFn, device: str = "cpu", **limits: int) -> "RewardModel":
        """The model that `train_reward_model` left in `folder`.

        Raises RewardModelError where it has no head or no normalisation: a random head would score at random.
        """
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
            normalisation = Normalisation.model_validate_json((folder / NORMALISATION).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RewardModelError(f"{folder} holds no reward model ({reason}); train one first") from error
        if info["missing_keys"] or model.config.num_labels != 1:
            raise RewardModelError(f"the checkpoint in {folder} has no trained scalar head; train a reward model first")
        return cls(model.to(device), row, normalisation, **limits)

    def raw(self, trajectories: Sequence[Trajectory], tasks: Sequence[Task]) -> list[float | None]:
        """r of each trajectory, None where it could not be scored."""
        scores: list[float | None] = [None] * len(trajectories)
        fit: dict[int, tuple[int, ...]] = {}
        for i, (trajectory, task) in enumerate(zip(trajectories, tasks, strict=True)):
            if any(turn.text for turn in trajectory.turns):
                ids = _ids(self.row(trajectory, task))
                if len(ids) <= self.max_tokens:
                    fit[i] = ids
        for i, reward in zip(fit, raw_scores(self.model, list(fit.values()), self.batch_tokens), strict=True):
            scores[i] = reward if math.isfinite(reward) else None
        self.num_failures += sum(score is None for score in scores)
        return scores

    def score(self, trajectories: Sequence[Trajectory], tasks: Sequence[Task]) -> list[float | None]:
        """ŝ of each trajectory, None where it could not be scored."""
        raw = self.raw(trajectories, tasks)
        return [None if reward is None else self.normalisation(reward) for reward in raw]


@torch.no_grad()
def raw_scores(model: PreTrainedModel, rows: Sequence[Sequence[int]], batch_tokens: int = 16384) -> list[float]:
    """r of each row of ids; rows of like length share a forward of at most `batch_tokens`, padding included."""
    pad_id = model.config.get_text_config().pad_token_id
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    scores = [0.0] * len(rows)
    while order:
        size = max(1, batch_tokens // max(1, len(rows[order[0]])))
        batch, order = order[:size], order[size:]
        width = len(rows[batch[0]])
        ids_BL = torch.tensor([[*rows[i], *[pad_id] * (width - len(rows[i]))] for i in batch], device=model.device)
        real_BL = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in batch], device=model.device)
        logits_B1 = model(input_ids=ids_BL, attention_mask=real_BL, use_cache=False).logits
        for i, reward in zip(batch, logits_B1[:, 0].float().tolist(), strict=True):
            scores[i] = reward
    return scores


class ScoredRollout:
    """A rollout function that has what it rolls out scored at once, in one batch, and looks the scores up one by one.

    Give it to the RL trainer as `rollout`, and its `score` to `TrajectoryReward` as scorer.
    """

    def __init__(self, rollout: Callable[[Sequence[RolloutRequest]], list[Trajectory]], scorer: Scorer):
        self.rollout, self.scorer = rollout, scorer
        self._scores: dict[tuple[str, int, int], float | None] = {}

    def __call__(self, requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        """Roll out and score; earlier scores are forgotten."""
        trajectories = self.rollout(requests)
        scores = self.scorer.score(trajectories, [request.task for request in requests])
        self._scores = {_key(t): score for t, score in zip(trajectories, scores, strict=True)}
        return trajectories

    def score(self, trajectory: Trajectory, task: Task) -> float | None:
        """The score of a trajectory of the last rollout; None where the scorer gave none. KeyError for any other."""
        return self._scores[_key(trajectory)]


def _key(trajectory: Trajectory) -> tuple[str, int, int]:
    return trajectory.task_id, trajectory.seed, trajectory.copy_index


def _ids(row: TokenRow) -> tuple[int, ...]:
    return (*row.prompt_ids, *row.completion_ids)
