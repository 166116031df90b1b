"""Advantages: how much better a trajectory did than the others of its group.

Letters: B trajectories.
"""

import torch
from torch import Tensor


def group_advantages(rewards_B: Tensor, group_B: Tensor, std: bool = False, eps: float = 1e-4) -> Tensor:
    """Reward minus the mean of its group; with `std` divided by (the group's sample standard deviation + `eps`); (B,).

    Group relative policy optimisation (arXiv 2402.03300, eq. 3) has `std`; without it (Dr. GRPO, arXiv 2503.20783)
    groups of low variance are not blown up. `group_B` numbers the groups; they may differ in size and stand anywhere.
    Degenerate: a group of one, or one whose rewards are all equal, has advantage 0, exactly.
    """
    groups, index_B = torch.unique(group_B, return_inverse=True)
    count_G = torch.zeros(len(groups), device=rewards_B.device).index_add(0, index_B, torch.ones_like(rewards_B))
    # Above the group's smallest reward, so that equal rewards give exactly 0 whatever their mean rounds to.
    least_G = torch.full_like(count_G, torch.inf).scatter_reduce(0, index_B, rewards_B, "amin")
    above_B = rewards_B - least_G[index_B]
    mean_G = torch.zeros_like(count_G).index_add(0, index_B, above_B) / count_G
    advantages_B = above_B - mean_G[index_B]
    if not std:
        return advantages_B
    variance_G = torch.zeros_like(count_G).index_add(0, index_B, advantages_B**2) / (count_G - 1).clamp(min=1)
    return advantages_B / (variance_G.sqrt()[index_B] + eps)
