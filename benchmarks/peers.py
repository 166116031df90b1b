"""What the benchmarks of the trainers share: the models' shapes, and what TRL is told beside the options under test."""

from typing import Any

import torch
from transformers import Qwen3Config

SHAPES = {"H128 L2": (128, 2), "H256 L4": (256, 4)}
TRL: dict[str, Any] = {
    "learning_rate": 1e-6,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": not torch.cuda.is_available(),
    "bf16": False,
}


def tuned(size: int) -> dict[str, Any]:
    """GRPOConfig's options that make a step of `size` rollouts fastest here: nothing recomputed, nothing padded."""
    return {
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": size,
        "steps_per_generation": size,
    }


def qwen3(shape: str, vocabulary: int, **more: Any) -> Qwen3Config:
    """A Qwen3 of one of the shapes."""
    hidden, layers = SHAPES[shape]
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        intermediate_size=5 * hidden // 2,
        max_position_embeddings=16384,
        **more,
    )
