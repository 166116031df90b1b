"""Used by test_processes.py, in its own process and by two that torchrun starts: python processes.py FOLDER 2."""

import random
import sys
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tirkit.methods.autotool.decoupled import EntropyControl, EntropyTerm
from tirkit.text.masks import TokenRow
from tirkit.training.base import training_arguments
from tirkit.training.rl import RLSettings, RLTrainer
from tirkit.training.sft import SFTSettings, WeightedRow, train_sft
from tirkit.types import RewardBreakdown, RewardTerm, StopReason, Task, Trajectory, Turn


def make_model():
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=0.1,
        )
    )


def some_ids(rng, low, high):
    return tuple(rng.randrange(1, 50) for _ in range(rng.randint(low, high)))


def attempt(request):
    rng = random.Random(request.seed)
    turns = (
        Turn(text="x", ids=some_ids(rng, 1, 6), reply_ids=some_ids(rng, 1, 6)),
        Turn(text="x", ids=some_ids(rng, 1, 6)),
    )
    prompt_ids = some_ids(random.Random(request.task.id), 3, 12)
    mode = "think" if turns[0].ids[0] % 2 else "no_think"  # its first token says it
    return Trajectory(
        task_id=request.task.id, prompt=(), prompt_ids=prompt_ids, turns=turns, stop=StopReason.ANSWERED, mode=mode
    )


def reward(trajectory, task):
    ids = [i for turn in trajectory.turns for i in turn.ids]
    return RewardBreakdown(terms=(RewardTerm(name="even", value=sum(i % 2 == 0 for i in ids) / len(ids)),))


def rl(model, folder, num_processes, steps):
    """Four tasks a step, whether on one process or two."""
    args = training_arguments(
        str(folder),
        max_steps=steps,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4 // num_processes,
        seed=0,
        use_cpu=True,
        save_steps=1,
        logging_steps=1,
    )
    # Targets amid this model's entropies (nearly uniform over 50 tokens: 3.7 nats), so that some gates are open.
    terms = (
        EntropyTerm("think", coefficient=0.05, target=3.75, rate=0.5),
        EntropyTerm("all", "mode", coefficient=0.05, target=3.73, rate=0.01, step="sign"),
    )
    settings = RLSettings(
        num_generations=3, iterations=2, num_processes=num_processes, std=True, entropy=EntropyControl(terms)
    )
    tasks = [Task(id=f"t{i}", prompt=()) for i in range(6)]
    rollout = lambda requests: [attempt(request) for request in requests]  # noqa: E731
    trainer = RLTrainer(model, args, settings, tasks, rollout, reward, pad_id=0)
    trainer.train(resume_from_checkpoint=True)
    return trainer.state.log_history


def sft(model, folder, num_processes, steps):
    """Batches of five rows: the two processes have three and two."""
    rng = random.Random(0)
    rows = []
    for i in range(9):
        completion = some_ids(rng, 2, 20)
        row = TokenRow(some_ids(rng, 1, 9), completion, (1,) * len(completion), (0.0,) * len(completion))
        rows.append(WeightedRow(row, rng.random(), "ab"[i % 2]))
    settings = SFTSettings(lr=0.01, batch_size=5, max_steps=steps, max_tokens=40, log_steps=1, save_steps=1)
    return train_sft(model, rows, settings, folder, pad_id=0).curve


def run_all(folder, num_processes):
    """Weights and log of each run; the last one goes on from a checkpoint in the middle of a window."""
    results = {}
    for name, train, steps in (("sft", sft, (3,)), ("rl", rl, (3,)), ("resumed", rl, (1, 3))):
        for num_steps in steps:
            model = make_model()
            log = train(model, folder / name, num_processes, num_steps)
        together = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        results[name] = {"weights": model.state_dict(), "log": list(log), "world_size": together}
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = run_all(Path(sys.argv[1]), int(sys.argv[2]))
    if torch.distributed.get_rank() == 0:
        torch.save(results, Path(sys.argv[1]) / "results.pt")
    torch.distributed.destroy_process_group()
