import math

import pytest
import torch

from tirkit.losses.ranking import ranking_loss


def test_by_hand() -> None:
    chosen, rejected = torch.tensor([1.0, 0.0, 2.0, 5.0], requires_grad=True), torch.tensor([0.0, 1.0, 2.0, 3.0])
    loss, metrics = ranking_loss(chosen_B=chosen, rejected_B=rejected)
    # log(1 + e^-d) for d = 1, -1, 0, 2
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-d)) for d in (1, -1, 0, 2)) / 4, abs=1e-6)
    assert metrics["accuracy"].item() == (1 + 0 + 0.5 + 1) / 4
    assert metrics["margin"].item() == pytest.approx(0.5)
    loss.backward()
    # d/dr_c = -σ(-d) / 4; at d = 0 that is -1/8
    assert chosen.grad is not None
    assert chosen.grad[2].item() == pytest.approx(-0.125, abs=1e-6)


def test_large_margins_stay_finite() -> None:
    loss, _ = ranking_loss(chosen_B=torch.tensor([-200.0, 200.0]), rejected_B=torch.tensor([0.0, 0.0]))
    assert loss.item() == pytest.approx(100.0)  # (200 + 0) / 2
