"""The model, and how answers are sampled from it.

Letters: B answers, P tokens of a problem, T of an answer, F first ones of these, V vocabulary, U distinct problems.
"""

from collections.abc import Sequence

import numpy as np
import torch
from examples.micro_world.world import END_ID, IDS, MAX_ANSWER, PAD_ID, VOCABULARY, Route, encode, trajectory
from torch import Tensor
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from tirkit.rollout.policy import RolloutRequest
from tirkit.rollout.sampling import sample
from tirkit.text.control import MODE_TAGS
from tirkit.types import Trajectory

FREE = -1  # a token that is not forced


def new_model(seed: int) -> Qwen3ForCausalLM:
    """An untrained Qwen3 of 155 thousand parameters: three layers of width 64."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=200,
        tie_word_embeddings=True,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    return Qwen3ForCausalLM(config)


class Rollout:
    """A `RolloutFn`: one answer a request, sampled at temperature 1 from `model` as it is at the moment.

    An answer depends on its request's seed alone; where the request names a mode it begins with that tag. Here all
    problems have one length and answers are a handful of tokens, so a plain loop over a batch gives what the library's
    policy gives, token for token, in half the time. With `route` every thought goes that way.
    """

    def __init__(self, model: Qwen3ForCausalLM, route: Route | None = None):
        self.model, self.route = model, route

    def __call__(self, requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        """One trajectory a request, in order."""
        prompts = [encode(request.task.prompt[0].content) for request in requests]
        uniforms = [np.random.default_rng(request.seed).random(MAX_ANSWER) for request in requests]
        forced = [self._forced(request) for request in requests]
        inputs = torch.tensor(prompts), torch.from_numpy(np.stack(uniforms)), torch.tensor(forced)
        answers = sample_answers(self.model, *inputs)
        return [trajectory(*parts) for parts in zip(requests, prompts, *zip(*answers, strict=True), strict=True)]

    def _forced(self, request: RolloutRequest) -> tuple[int, int]:
        """The first two tokens, FREE where the model chooses."""
        route = IDS[self.route] if self.route and request.mode == "think" else FREE
        return IDS[MODE_TAGS[request.mode]] if request.mode else FREE, route


@torch.no_grad()
def sample_answers(
    model: Qwen3ForCausalLM, prompts_BP: Tensor, uniforms_BT: Tensor, forced_BF: Tensor
) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """(ids, log-probs) of an answer to each problem; token t of an answer is drawn with its t-th uniform.

    Answers begin with `forced_BF` where that is not FREE; log-probs are the model's all the same. Equal problems are
    read once; an answer that has ended leaves the batch.
    """
    distinct_UP, which_B = torch.unique(prompts_BP, dim=0, return_inverse=True)
    cache = DynamicCache(config=model.config)
    logits_BV = model(distinct_UP, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[which_B, -1]
    cache.batch_select_indices(which_B)
    rows = np.arange(len(prompts_BP))  # of those still being written
    ids: list[list[int]] = [[] for _ in rows]
    logps: list[list[float]] = [[] for _ in rows]
    for t in range(uniforms_BT.shape[1]):
        logps_BV = logits_BV.float().log_softmax(-1)
        tokens_B = sample(logps_BV, uniforms_BT[rows, t])
        if t < forced_BF.shape[1]:
            forced_B = forced_BF[rows, t]
            tokens_B = torch.where(forced_B == FREE, tokens_B, forced_B)
        chosen_B = logps_BV.gather(1, tokens_B[:, None])[:, 0]
        for row, token, logp in zip(rows.tolist(), tokens_B.tolist(), chosen_B.tolist(), strict=True):
            ids[row].append(token)
            logps[row].append(logp)
        on_B = tokens_B != END_ID
        if t + 1 == uniforms_BT.shape[1] or not on_B.any():
            break
        if not on_B.all():
            cache.batch_select_indices(on_B)
            rows, tokens_B = rows[on_B.numpy()], tokens_B[on_B]
        logits_BV = model(tokens_B[:, None], past_key_values=cache, use_cache=True).logits[:, -1]
    return [(tuple(i), tuple(p)) for i, p in zip(ids, logps, strict=True)]
