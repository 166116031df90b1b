"""The clipped policy loss.

Letters: N trained tokens of a micro-batch in one line (only tokens under the loss mask are ever here).
"""

import torch
from torch import Tensor


def clipped_surrogate(
    *,
    logps_N: Tensor,
    old_logps_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-sum over tokens of weight * min(ratio * A, clip(ratio, 1 - low, 1 + high) * A), ratio = p / p_old.

    PPO's objective (arXiv 1707.06347, eq. 7). `weights_N` holds the denominator: 1 / all trained tokens of the
    optimiser step for a mean over tokens, 1 / (own trajectory's tokens * trajectories) for a mean of trajectory means;
    so micro-batches and processes simply add up. Degenerate: on-policy (`old_logps_N` equal to `logps_N`) the ratio is
    1 and the gradient is -sum w * A * d logp. Metrics: "clipped", the number of tokens whose ratio is cut off.
    """
    ratio_N = torch.exp(logps_N - old_logps_N)
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    loss = -(weights_N * torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)).sum()
    cut_N = ((ratio_N < 1 - clip_low) & (advantages_N < 0)) | ((ratio_N > 1 + clip_high) & (advantages_N > 0))
    return loss, {"clipped": cut_N.sum()}
