"""The policy update: a group's rewards and tokens → one optimiser step, the rollouts being there already.

Peers: TRL's GRPOTrainer at its defaults but in fp32, and the same tuned by its own options: no gradient checkpointing,
and the micro-batch that is fastest here; our own trainer without shared prefixes shows what the sharing alone is worth
(on a CPU, TRL's head scores prompt positions too, whatever its options). Limit: the library's own forward and backward
over one row of as many tokens as are distinct, and of a head with log-softmax over the completion tokens.
"""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast, PrinterCallback, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from benchmarks.harness import Arm, Result, compare, peak_memory
from benchmarks.peers import SHAPES, TRL, qwen3
from tirkit.training.base import training_arguments
from tirkit.training.forward import scoring
from tirkit.training.rl import RLSettings, RLTrainer
from tirkit.training.window import Draw
from tirkit.types import RewardBreakdown, RewardTerm, StopReason, Task, Trajectory, Turn


@dataclass(frozen=True)
class Setting:
    """One group of `group` completions of `num_completion` tokens each behind a prompt of `num_prompt`."""

    shape: str
    num_prompt: int = 1024
    num_completion: int = 64
    vocabulary: int = 4096
    group: int = 8

    def __str__(self) -> str:
        return f"{self.shape}, G={self.group}, P={self.num_prompt}, C={self.num_completion}, V={self.vocabulary}"

    def model(self) -> PreTrainedModel:
        """A random Qwen3; the same at every call."""
        torch.manual_seed(0)
        return Qwen3ForCausalLM(qwen3(self.shape, self.vocabulary, pad_token_id=0))

    def attempts(self) -> list[Trajectory]:
        """The group's rollouts: random tokens."""
        rng = random.Random(0)
        prompt_ids = tuple(rng.randrange(1, self.vocabulary) for _ in range(self.num_prompt))
        completions = [
            [rng.randrange(1, self.vocabulary) for _ in range(self.num_completion)] for _ in range(self.group)
        ]
        attempt = Trajectory(task_id="t", prompt=(), prompt_ids=prompt_ids, turns=(), stop=StopReason.ANSWERED)
        turns = [(Turn(text="x", ids=tuple(ids)),) for ids in completions]
        return [attempt.model_copy(update={"turns": turn, "copy_index": i}) for i, turn in enumerate(turns)]


def run(repeats: int) -> list[Result]:
    settings = [Setting(shape, *sizes) for shape in SHAPES for sizes in ((1024, 64, 4096), (2048, 128, 16384))]
    return [update(setting, repeats) for setting in settings]


def update(setting: Setting, repeats: int) -> Result:
    tuned = fastest_micro_batch(setting)
    names = {"tirkit": None, "tirkit, no sharing": None, "TRL tuned": tuned, "TRL": setting.group}
    arms = [Arm(name, make(name, setting, size)) for name, size in names.items()]
    timings = compare(f"update, {setting}", arms, repeats)
    memory = {
        name: peak_memory("benchmarks.update:once", name, *vars(setting).values(), size) for name, size in names.items()
    }
    limit_s = sum(timing.median_s for timing in compare("limit", limit(setting), repeats))
    return Result("update", str(setting), timings, memory, limit_s, " ".join((__doc__ or "").split()))


def once(name: str, *values: Any) -> None:
    """Two steps of one arm: what its process takes at most."""
    *sizes, micro_batch = values
    step = make(name, Setting(*sizes), micro_batch)
    step()
    step()


def make(name: str, setting: Setting, micro_batch: int | None = None) -> Callable[[], None]:
    """One step of an arm, ready to be run again and again."""
    if name.startswith("tirkit"):
        return ours(setting.model(), setting.attempts(), shared_prefix=name == "tirkit")
    assert micro_batch is not None
    return trl(setting.model(), setting.attempts(), micro_batch, gradient_checkpointing=name == "TRL")


def fastest_micro_batch(setting: Setting) -> int:
    sizes = [size for size in (1, 2, 4, 8) if size <= setting.group]
    timings = compare(
        f"micro-batches of TRL, {setting}", [Arm(str(n), make("TRL tuned", setting, n)) for n in sizes], 1
    )
    return int(min(timings, key=lambda timing: timing.cpu_s).name)


def reward(trajectory: Trajectory, task: Task) -> RewardBreakdown:
    return RewardBreakdown(terms=(RewardTerm(name="place", value=float(trajectory.copy_index**2)),))


def ours(model: PreTrainedModel, attempts: Sequence[Trajectory], shared_prefix: bool) -> Callable[[], None]:
    args = training_arguments(tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=1, learning_rate=1e-6)
    settings = RLSettings(num_generations=len(attempts), shared_prefix=shared_prefix)
    task = Task(id="t", prompt=())
    trainer = RLTrainer(model, args, settings, [task], lambda _: list(attempts), reward, pad_id=0)
    optimizer = trainer.create_optimizer()

    def step() -> None:
        window = trainer._collect([Draw(0, task)], args.device)
        with scoring(model, shared_prefix):
            trainer.training_step(model, window)
        optimizer.step()
        optimizer.zero_grad()

    return step


def trl(
    model: PreTrainedModel, attempts: Sequence[Trajectory], micro_batch: int, gradient_checkpointing: bool
) -> Callable[[], None]:
    size = len(attempts)
    config = GRPOConfig(
        tempfile.mkdtemp(),
        max_steps=1,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=size // micro_batch,
        num_generations=size,
        max_completion_length=8192,
        gradient_checkpointing=gradient_checkpointing,
        **TRL,
    )
    words = {"<pad>": 0, "<eos>": 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<eos>")), pad_token="<pad>", eos_token="<eos>"
    )

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": [list(t.prompt_ids) for t in attempts],
            "completion_ids": [list(t.turns[0].ids) for t in attempts],
            "logprobs": [[0.0] * t.num_sampled for t in attempts],
        }

    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [float(i**2) for i in range(len(completions))],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "t"}] * size),
        processing_class=tokenizer,
        rollout_func=rollout,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()  # sets everything up; the rest of the step is called below as Trainer's loop does
    optimizer = trainer.create_optimizer()

    def step() -> None:
        for _ in range(size // micro_batch):
            trainer.training_step(trainer.model, [{"prompt": "t"}] * size, None)
        optimizer.step()
        optimizer.zero_grad()

    return step


def limit(setting: Setting) -> list[Arm]:
    model = setting.model()
    head, hidden = model.get_output_embeddings(), model.config.hidden_size
    unique, scored = (
        (setting.num_prompt + setting.group * setting.num_completion),
        setting.group * setting.num_completion,
    )
    ids = torch.randint(setting.vocabulary, (1, unique))
    states, targets = torch.randn(scored, hidden, requires_grad=True), torch.randint(setting.vocabulary, (scored,))

    def trunk() -> None:
        out = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        out.backward(torch.ones_like(out))

    def scores() -> None:
        torch.nn.functional.cross_entropy(head(states), targets).backward()

    return [Arm("trunk", trunk), Arm("head", scores)]
