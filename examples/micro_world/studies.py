"""The two studies: where reinforcement starts from, and on which problems it trains.

modes    Half easy, half hard; the start chooses its mode by a coin whatever the problem. Does the policy keep thinking
         where it pays, and stop where it does not?
routes   Hard problems only. The start masters two ways to think, and then only the choice between them is shifted: the
         better one (every step written) is taken 3 % of the time. Does it come back?
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from examples.micro_world.model import new_model
from examples.micro_world.training import Sizes, coin_flip_rows, supervise, weighted
from examples.micro_world.world import EASY, HARD, Route, World, teacher_row
from transformers import Qwen3ForCausalLM

from tirkit.rollout.loop import stable_seed
from tirkit.training.sft import WeightedRow

RARE = 0.03
BOTH: tuple[Route, ...] = ("all", "skip")


@dataclass(frozen=True)
class Study:
    """`start` makes the model that all arms of a seed share; `depths` of the problems, in turn; `ways` to measure."""

    start: Callable[[World, Sizes, int], Qwen3ForCausalLM]
    depths: tuple[int, ...]
    ways: tuple[str, ...]


def coin_flip_start(world: World, sizes: Sizes, seed: int) -> Qwen3ForCausalLM:
    """Competent in both modes, which it chooses by a coin."""
    model = new_model(seed)
    supervise(model, coin_flip_rows(world, sizes.sft_steps * sizes.sft_batch, seed), sizes, seed)
    return model


def rare_route_start(world: World, sizes: Sizes, seed: int) -> Qwen3ForCausalLM:
    """Competent by both routes, of which it takes the one that writes every step rarely.

    Both routes are learnt in equal shares; then one token alone is trained, the route's, to its new prior, beside rows
    that hold everything else where it is.
    """
    model = new_model(seed)
    rows = coin_flip_rows(world, 2 * sizes.sft_steps * sizes.sft_batch, seed, BOTH, noise=0.0)
    supervise(model, rows, sizes, seed)
    supervise(model, shift_rows(world, sizes.sft_steps // 4 * sizes.sft_batch, seed), sizes, seed, lr=1e-3)
    return model


def shift_rows(world: World, number: int, seed: int) -> list[WeightedRow]:
    """Half: the route's token alone, drawn from its new prior. Half: thoughts by either route without that token."""
    rng = random.Random(stable_seed("shift", seed))
    rows: list[WeightedRow] = []
    for i, problem in enumerate(world.problems(number, "train", stable_seed("shift", seed))):
        if i // 2 % 2:  # problems are easy and hard in turn
            answer = world.answer(problem, "think", "all" if rng.random() < RARE else "skip")
            rows.append(weighted(teacher_row(problem, answer, "route"), kind="route"))
        elif rng.random() < 0.5:
            rows.append(weighted(teacher_row(problem, world.answer(problem, "think", rng.choice(BOTH)), "rest")))
        else:
            rows.append(weighted(teacher_row(problem, world.answer(problem, "no_think"))))
    return rows


STUDIES: Mapping[str, Study] = {
    "modes": Study(coin_flip_start, (HARD, EASY), ("auto", "think", "no_think")),
    "routes": Study(rare_route_start, (HARD,), ("auto", "think", "all", "skip")),
}
