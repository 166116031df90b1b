"""The loss of reward models: the chosen trajectory of a pair should score higher. Shapes: _B pairs."""

import torch
from torch import Tensor
from torch.nn import functional as F


def ranking_loss(*, chosen_B: Tensor, rejected_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Bradley-Terry (AutoTraj, arXiv 2601.23032): the mean over pairs of -log σ(r_chosen - r_rejected).

    Metrics: "accuracy", the share of pairs in the right order, a tie counting half, and "margin", the mean difference.
    Equal scores give log 2.
    """
    margin_B = chosen_B - rejected_B
    with torch.no_grad():
        order_B = (margin_B > 0).float() + 0.5 * (margin_B == 0).float()
        metrics = {"accuracy": order_B.mean(), "margin": margin_B.detach().mean()}
    return -F.logsigmoid(margin_B).mean(), metrics
