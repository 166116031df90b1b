"""Optimisers and learning-rate schedules."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

OptimizerName = Literal["adamw", "muon"]
ScheduleName = Literal["constant", "linear", "cosine"]


class MuonAdamW(torch.optim.Optimizer):
    """Muon for hidden weight matrices and AdamW for everything else, as one optimiser.

    Muon orthogonalises the momentum of a matrix by five Newton-Schulz steps; with `match_rms_adamw` (arXiv
    2502.16982) its updates have the RMS of AdamW's, so both halves share one learning rate. A parameter group with
    `muon=True` goes to Muon, the others to AdamW. Both work on this object's groups and state, so schedulers and
    checkpoints see a single plain optimiser.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "muon": False})
        matrices = [group for group in self.param_groups if group["muon"]]
        others = [group for group in self.param_groups if not group["muon"]]
        self._parts: list[tuple[bool, torch.optim.Optimizer]] = []
        if matrices:  # the groups are handed over as they are: the part fills in its own defaults and keeps the object
            muon = torch.optim.Muon(
                matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append((True, muon))
        if others:
            adamw = torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
            self._parts.append((False, adamw))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for is_muon, part in self._parts:  # shared anew each time: loading a checkpoint replaces groups and state
            part.param_groups = [group for group in self.param_groups if group["muon"] == is_muon]
            part.state = self.state
            part.step()
        return loss


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """Weights of linear layers inside the network: not embeddings, not the head (tied or not), not LoRA factors."""
    outside = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if isinstance(head, nn.Module):
        outside |= {id(p) for p in head.parameters()}
    return {
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name and id(module.weight) not in outside
    }


def make_optimizer(
    model: nn.Module, name: OptimizerName = "adamw", lr: float = 1e-3, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Optimiser over the trainable parameters; weight decay on matrices only, never on biases and norms."""
    params = [p for p in model.parameters() if p.requires_grad]
    muon = hidden_matrices(model) if name == "muon" else set()
    groups = [
        {"params": [p for p in params if p in muon], "weight_decay": weight_decay, "muon": True},
        {"params": [p for p in params if p not in muon and p.ndim > 1], "weight_decay": weight_decay, "muon": False},
        {"params": [p for p in params if p not in muon and p.ndim <= 1], "weight_decay": 0.0, "muon": False},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("the model has no trainable parameter: set requires_grad on what is to be trained")
    if name == "muon":
        return MuonAdamW(groups, lr=lr)
    return torch.optim.AdamW([{k: v for k, v in group.items() if k != "muon"} for group in groups], lr=lr)


def lr_factor(schedule: ScheduleName, progress: float, warmup: float = 0.0) -> float:
    """Share of the peak learning rate at `progress` of the run, both in [0, 1]; `warmup` is the rising part.

    >>> [lr_factor("linear", p, warmup=0.5) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return progress / warmup
    if schedule == "constant":
        return 1.0
    left = (1.0 - min(progress, 1.0)) / (1.0 - warmup)
    return left if schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)
