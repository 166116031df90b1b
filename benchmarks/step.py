"""A whole GRPO step, 21 tools in the prompt: two questions, 8 rollouts each, one call of an instant tool, an update.

The tools take about 4,700 tokens, which stand before the question and are the same for both. Random weights, so what
is written is forced (see the rollout benchmark); text stands for the documents that are never called. Peer: TRL's
GRPOTrainer at its defaults but in fp32, and tuned by its own options: no gradient checkpointing, one row a micro-batch.
"""

from typing import Any

from benchmarks.harness import Arm, Result, compare, peak_memory
from benchmarks.peers import SHAPES, tuned
from benchmarks.rollout import LATENCIES, Bench, G
from tirkit.types import Message, Task

SIZE = 2 * G
ARMS: dict[str, dict[str, Any] | None] = {"tirkit": None, "TRL tuned": tuned(SIZE), "TRL": {}}


def run(repeats: int) -> list[Result]:
    return [step(shape, 4700, repeats) for shape in SHAPES]


def step(shape: str, num_prompt: int, repeats: int) -> Result:
    arms = [Arm(name, make(name, shape, num_prompt)) for name in ARMS]
    timings = compare(f"step, {shape}", arms, repeats)
    memory = {name: peak_memory("benchmarks.step:once", name, shape, num_prompt) for name in ARMS}
    setting = f"{shape}, 2 × {G} rollouts, P={num_prompt}"
    return Result("step", setting, timings, memory, notes=" ".join((__doc__ or "").split()))


class Tools(Bench):
    """Each task asks something else behind the same documents."""

    def task(self, number: int) -> Task:
        question = Message(role="user", content=self.prompt[0].content + " is" * (number + 1))
        return Task(id=str(number), prompt=(question,))


def make(name: str, shape: str, num_prompt: int) -> Any:
    """One step of an arm, ready to be run again and again."""
    LATENCIES[:] = [0.0] * SIZE
    bench, options = Tools(shape, num_prompt, [[True] * SIZE, [False] * SIZE], length=32), ARMS[name]
    trainer = bench.trainer() if options is None else bench.trl_trainer(SIZE, **options)

    def train() -> None:
        bench.script.call = 0
        trainer.train()

    return train


def once(name: str, shape: str, num_prompt: int) -> None:
    """One step of one arm: what its process takes at most."""
    make(name, shape, num_prompt)()
