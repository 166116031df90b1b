"""Our trainer against TRL's GRPOTrainer: the same rollouts and rewards must give the same gradients."""

import os

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tirkit.methods.autotool.decoupled import decoupled
from tirkit.text.masks import token_row
from tirkit.training.base import training_arguments
from tirkit.training.rl import RLSettings, RLTrainer

NUM_STEPS, NUM_GENERATIONS, TASKS_PER_BATCH = 4, 3, 1
ARGUMENTS = {
    "max_steps": NUM_STEPS,
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0,
    "seed": 0,
    "use_cpu": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}


class Gradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters()})


def ours(model, tasks, attempts, reward, settings, accumulation, tmp_path):
    args = training_arguments(
        str(tmp_path),
        **ARGUMENTS | {"per_device_train_batch_size": TASKS_PER_BATCH, "gradient_accumulation_steps": accumulation},
    )
    windows, watch = [], Gradients()

    def rollout(requests):
        windows.append(None)
        return [attempts(request.task.id, len(windows), request.copy_index) for request in requests]

    trainer = RLTrainer(model, args, settings, tasks, rollout, reward, pad_id=0, callbacks=[watch])
    trainer.optimizer = torch.optim.SGD(model.parameters(), lr=ARGUMENTS["learning_rate"])
    trainer.train()
    return watch.steps, trainer.state.log_history


def theirs(model, tasks, attempts, reward, settings, accumulation, tmp_path):
    names = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, 50)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(names, unk_token="w2")), pad_token="<pad>", eos_token="<eos>"
    )
    config = GRPOConfig(
        str(tmp_path),
        **ARGUMENTS,
        per_device_train_batch_size=TASKS_PER_BATCH * NUM_GENERATIONS,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation,
        num_generations=NUM_GENERATIONS,
        num_iterations=settings.iterations,
        scale_rewards="group" if settings.std else "none",
        loss_type="dapo" if settings.mean == "token" else "grpo",
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        temperature=settings.temperature,
        max_completion_length=64,
        shuffle_dataset=False,
        beta=0.0,
        bf16=False,
        gradient_checkpointing=False,
    )
    windows, watch = [], Gradients()

    def rollout(prompts, trainer):
        windows.append(None)
        copies = [prompts[:i].count(prompt) for i, prompt in enumerate(prompts)]
        trajectories = [attempts(prompt, len(windows), copy) for prompt, copy in zip(prompts, copies, strict=True)]
        rows = [token_row(trajectory) for trajectory in trajectories]
        by_id = {task.id: task for task in tasks}
        return {
            "prompt_ids": [list(row.prompt_ids) for row in rows],
            "completion_ids": [list(row.completion_ids) for row in rows],
            "logprobs": [list(row.old_logps) for row in rows],
            "env_mask": [list(row.tool_mask) for row in rows],
            "score": [reward(t, by_id[t.task_id]).total for t in trajectories],
        }

    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completions, score, **_: score,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": task.id} for task in tasks]),
        processing_class=tokenizer,
        rollout_func=rollout,
        callbacks=[watch],
        optimizers=(torch.optim.SGD(model.parameters(), lr=ARGUMENTS["learning_rate"]), None),
    )
    trainer.train()
    return watch.steps, trainer.state.log_history


@pytest.mark.parametrize(
    ("settings", "accumulation"),
    [
        ({"std": True}, 1),
        ({"std": True}, 2),
        ({"std": False, "temperature": 0.7}, 2),
        ({"std": True, "iterations": 2, "clip_low": 0.02, "clip_high": 0.03}, 1),
        ({"std": False, "iterations": 4, "clip_low": 0.02, "clip_high": 0.03}, 2),
        ({"std": True, "mean": "trajectory", "iterations": 2}, 2),
        ({"std": True, "shared_prefix": False}, 2),
        # What the entropy controller computes changes nothing while its coefficients are 0.
        ({"std": True, "iterations": 2, "entropy": decoupled(short=0.0, long=0.0, rate=0.0)}, 2),
    ],
)
def test_gradients_equal_trls(make_model, tasks, make_trajectory, share_of_even, tmp_path, settings, accumulation):
    settings = RLSettings(num_generations=NUM_GENERATIONS, shuffle=False, **settings)
    runs = [
        run(make_model(initializer_range=0.1), tasks, make_trajectory, share_of_even, settings, accumulation, tmp_path)
        for run in (ours, theirs)
    ]
    (got, our_log), (want, _) = runs
    assert len(got) == len(want) == NUM_STEPS
    worst = max((got[s][name] - want[s][name]).abs().max().item() for s in range(NUM_STEPS) for name in want[s])
    assert worst <= 1e-6
    assert max(gradient.abs().max().item() for gradient in want[0].values()) > 1e-3  # there is something to compare
    if settings.iterations > 1 and settings.clip_low < 0.1:
        assert max(line["clip_fraction"] for line in our_log) > 0  # the clip was at work
