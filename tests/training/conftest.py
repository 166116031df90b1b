"""Tiny random models, rows and rollouts for the trainers."""

import random
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, TrainerCallback

from tirkit.text.masks import TokenRow
from tirkit.types import RewardBreakdown, RewardTerm, StopReason, Task, Trajectory, Turn


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """A random model with two layers and 50 tokens; the same at every call. Token 0 is padding."""

    def make(config_class=Qwen3Config, model_class=Qwen3ForCausalLM, **changes) -> PreTrainedModel:
        torch.manual_seed(0)
        config = config_class(
            **{
                "vocab_size": 50,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "max_position_embeddings": 256,
                "initializer_range": 0.3,
                "pad_token_id": 0,
                "attn_implementation": "sdpa",
            }
            | changes
        )
        return model_class(config)

    return make


@pytest.fixture
def make_row() -> Callable[..., TokenRow]:
    """A random row; with `masked`, a stretch in the middle of its completion was not sampled."""

    def make(seed: int, num_prompt: int, num_completion: int, masked: int = 0, prompt_seed: int = 0) -> TokenRow:
        rng, prompt_rng = random.Random(seed), random.Random(prompt_seed)
        mask = [1] * num_completion
        start = (num_completion - masked) // 2
        mask[start : start + masked] = [0] * masked
        return TokenRow(
            tuple(prompt_rng.randrange(1, 50) for _ in range(num_prompt)),
            tuple(rng.randrange(1, 50) for _ in range(num_completion)),
            tuple(mask),
            (0.0,) * num_completion,
        )

    return make


@pytest.fixture
def make_branching() -> Callable[..., list[TokenRow]]:
    """Rows of two prompts that part anywhere, over a handful of tokens: some are equal, some begin others."""

    def make(seed: int, num_rows: int) -> list[TokenRow]:
        rng, rows = random.Random(seed), []
        for _ in range(num_rows):
            prompt = tuple(random.Random(f"{seed} {rng.randrange(2)}").choices(range(1, 50), k=9))
            completion = tuple(rng.choices((5, 6), weights=(4, 1), k=rng.randint(1, 12)))
            mask = tuple(int(rng.random() < 0.7) for _ in completion)
            rows.append(TokenRow(prompt, completion, mask, (0.0,) * len(completion)))
        return rows

    return make


@pytest.fixture
def gradients() -> Callable[..., dict[str, torch.Tensor]]:
    """The gradients of `loss` by name of the parameter."""

    def of(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    return of


def _trajectory(task_id: str, seed: int, copy: int) -> Trajectory:
    """A made-up attempt: the prompt follows from the task, the rest from the seed; up to three turns with replies.

    Its first token says its mode.
    """
    prompt_rng, rng = random.Random(task_id), random.Random(seed * 1000 + copy)
    turns = [
        Turn(
            text="x",
            ids=tuple(rng.randrange(1, 50) for _ in range(rng.randint(1, 6))),
            reply_ids=tuple(rng.randrange(1, 50) for _ in range(rng.randint(1, 9))),
        )
        for _ in range(rng.randint(1, 3))
    ]
    turns[-1] = turns[-1].model_copy(update={"reply_ids": ()})
    return Trajectory(
        task_id=task_id,
        prompt=(),
        prompt_ids=tuple(prompt_rng.randrange(1, 50) for _ in range(prompt_rng.randint(3, 12))),
        turns=tuple(turns),
        stop=StopReason.ANSWERED,
        mode="think" if turns[0].ids[0] % 2 else "no_think",
        seed=seed,
        copy_index=copy,
    )


@pytest.fixture
def make_trajectory() -> Callable[[str, int, int], Trajectory]:
    return _trajectory


@pytest.fixture
def tasks() -> list[Task]:
    return [Task(id=f"t{i}", prompt=()) for i in range(6)]


@pytest.fixture
def share_of_even() -> Callable[[Trajectory, Task], RewardBreakdown]:
    """A reward with two terms: the share of even ids among those sampled, and 1 where the last one is small."""

    def reward(trajectory: Trajectory, task: Task) -> RewardBreakdown:
        ids = [id_ for turn in trajectory.turns for id_ in turn.ids]
        even = RewardTerm(name="even", value=sum(id_ % 2 == 0 for id_ in ids) / len(ids), weight=2.0)
        return RewardBreakdown(terms=(even, RewardTerm(name="small", value=float(ids[-1] < 25))))

    return reward


class _StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop |= state.global_step == self.step


@pytest.fixture
def stop_at() -> type[TrainerCallback]:
    """A callback that ends a run after a step, as if it had been killed there."""
    return _StopAt
