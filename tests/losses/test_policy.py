import math

import torch

from tirkit.losses.policy import clipped_surrogate


def test_value_gradient_and_clip_count_by_hand():
    # Four tokens of ratios 1, 1.5, 1.5, 0.5 and advantages 2, 1, -1, -1, each of weight 1/4, clipped to [0.8, 1.3]:
    #   min(1 * 2, 1 * 2)           =  2     inside
    #   min(1.5 * 1, 1.3 * 1)       =  1.3   cut: no gradient
    #   min(1.5 * -1, 1.3 * -1)     = -1.5   the worse one counts: gradient
    #   min(0.5 * -1, 0.8 * -1)     = -0.8   cut: no gradient
    # sum 1.0, loss -0.25
    logps = torch.log(torch.tensor([1.0, 1.5, 1.5, 0.5])).requires_grad_()
    loss, metrics = clipped_surrogate(
        logps_N=logps,
        old_logps_N=torch.zeros(4),
        advantages_N=torch.tensor([2.0, 1.0, -1.0, -1.0]),
        weights_N=torch.full((4,), 0.25),
        clip_low=0.2,
        clip_high=0.3,
    )
    loss.backward()
    assert math.isclose(loss.item(), -0.25, abs_tol=1e-6)
    assert metrics["clipped"].item() == 2
    # d loss / d logp = -weight * ratio * A where not cut: -0.25 * 2 and -0.25 * 1.5 * -1
    torch.testing.assert_close(logps.grad, torch.tensor([-0.5, 0.0, 0.375, 0.0]), atol=1e-6, rtol=0)


def test_on_policy_gradient_is_the_weighted_advantage():
    logps = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantages, weights = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 0.25, 0.25])
    loss, _ = clipped_surrogate(
        logps_N=logps,
        old_logps_N=logps.detach(),
        advantages_N=advantages,
        weights_N=weights,
        clip_low=0.2,
        clip_high=0.2,
    )
    loss.backward()
    torch.testing.assert_close(logps.grad, -advantages * weights, atol=1e-7, rtol=0)
