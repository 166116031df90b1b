"""The two studies: where reinforcement starts from, and on which problems it trains.

modes    Half easy, half hard; the start chooses its mode by a coin whatever the problem. Does the policy keep thinking
         where it pays, and stop where it does not?
routes   Hard problems only, of a world that keeps pairs. The start masters two ways to think: by every digit, always
         right, and by pairs alone, right in 70 %, whatever is learnt later: what such a thought does not say would take
         the parity of six flips at once. Then the choice between the two is shifted, and nothing else: the better one
         is taken 3 % of the time. Does it come back?
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from examples.micro_world.model import new_model
from examples.micro_world.training import NOISE, Sizes, coin_flip_rows, supervise, weighted
from examples.micro_world.world import EASY, HARD, Route, World, teacher_row
from transformers import Qwen3ForCausalLM

from tirkit.rollout.loop import stable_seed
from tirkit.training.sft import WeightedRow

BOTH: tuple[Route, ...] = ("all", "rough")


@dataclass(frozen=True)
class Study:
    """`depths` of the problems that are reinforced, in turn; `ways` to measure.

    `paired`: of the world. `routes`, `noise`: of the thoughts of the supervised start. `rare`: the share of the route
    "all" that the start is then shifted to.
    """

    depths: tuple[int, ...]
    ways: tuple[str, ...]
    paired: bool = False
    routes: Sequence[Route] = ("all",)
    noise: float = NOISE
    rare: float | None = None

    def world(self, seed: int) -> World:
        """The world of a seed."""
        return World(seed=seed, paired=self.paired)

    def competent(self, sizes: Sizes, seed: int) -> Qwen3ForCausalLM:
        """Competent in both modes and by all `routes`, which it chooses by a coin."""
        model, number = new_model(seed), sizes.sft_steps * sizes.sft_batch
        supervise(model, coin_flip_rows(self.world(seed), number, seed, self.routes, self.noise), sizes, seed)
        return model

    def shift(self, model: Qwen3ForCausalLM, sizes: Sizes, seed: int) -> None:
        """One token alone, the route's, to its new prior, beside rows that hold everything else where it is."""
        if self.rare is not None:
            rows = shift_rows(self.world(seed), sizes.sft_steps // 4 * sizes.sft_batch, seed, self.rare)
            supervise(model, rows, sizes, seed, lr=1e-3)


def shift_rows(world: World, number: int, seed: int, rare: float) -> list[WeightedRow]:
    """Half: the route's token alone, drawn from its new prior. Half: thoughts by either route without that token."""
    rng = random.Random(stable_seed("shift", seed))
    rows: list[WeightedRow] = []
    for i, problem in enumerate(world.problems(number, "train", stable_seed("shift", seed))):
        if i // 2 % 2:  # problems are easy and hard in turn
            answer = world.answer(problem, "think", "all" if rng.random() < rare else "rough")
            rows.append(weighted(teacher_row(problem, answer, "route"), kind="route"))
        elif rng.random() < 0.5:
            rows.append(weighted(teacher_row(problem, world.answer(problem, "think", rng.choice(BOTH)), "rest")))
        else:
            rows.append(weighted(teacher_row(problem, world.answer(problem, "no_think"))))
    return rows


STUDIES: Mapping[str, Study] = {
    "modes": Study((HARD, EASY), ("auto", "think", "no_think")),
    "routes": Study((HARD,), ("auto", "think", "all", "rough"), paired=True, routes=BOTH, noise=0.0, rare=0.03),
}
