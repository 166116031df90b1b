"""From nothing to a measured run: the supervised start, reinforcement from it, the measurement of what came out."""

import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from examples.micro_world.model import Rollout
from examples.micro_world.world import MAX_ANSWER, PAD_ID, Route, World, difficulty_of, teacher_row
from transformers import Qwen3ForCausalLM

from tirkit.methods.autotool.decoupled import EntropyControl
from tirkit.rollout.loop import stable_seed
from tirkit.rollout.policy import RolloutRequest
from tirkit.scoring.reward import ModeReward
from tirkit.text.dialects import Dialect
from tirkit.text.masks import TokenRow
from tirkit.training.base import training_arguments
from tirkit.training.callbacks import ProgressCallback
from tirkit.training.rl import RLSettings, RLTrainer
from tirkit.training.sft import SFTSettings, WeightedRow, train_sft
from tirkit.types import Group, Mode, RewardBreakdown, Task, Trajectory

NOISE = 0.1  # of the digits in the teacher's thoughts: leaves thinking something to learn
MICRO_BATCH = 1024  # tokens: finding a cut takes time by the square of the rows in one
REWARD = ModeReward(Dialect())
WAYS: Mapping[str, tuple[Mode | None, Route | None]] = {  # to be made to answer
    "auto": (None, None),
    "no_think": ("no_think", None),
    "think": ("think", None),
    "all": ("think", "all"),
    "rough": ("think", "rough"),
}
Point = dict[str, float]
"""Means over a window of steps, by series; "step" is the last of them."""
Measured = dict[str, Point]
"""Series by the way to answer."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `window`: steps a point of the curve is a mean over."""

    sft_steps: int = 300
    sft_batch: int = 128
    steps: int = 100
    problems: int = 48
    copies: int = 8
    window: int = 5
    measured: int = 2000


def coin_flip_rows(
    world: World, number: int, seed: int, routes: Sequence[Route] = ("all",), noise: float = NOISE
) -> list[WeightedRow]:
    """Training rows whose mode and route are drawn by coins, whatever the difficulty."""
    rng = random.Random(stable_seed("modes", seed))
    rows: list[WeightedRow] = []
    for i, problem in enumerate(world.problems(number, "train", stable_seed("supervised", seed))):
        mode: Mode = rng.choice(("think", "no_think"))
        answer = world.answer(problem, mode, rng.choice(routes), noise, stable_seed("noise", seed, i))
        rows.append(weighted(teacher_row(problem, answer)))
    return rows


def weighted(row: TokenRow, kind: str = "sft") -> WeightedRow:
    """The row with the weight that makes all trained tokens of a step count alike.

    The loss takes the mean over each row. Left so, the tag before 3 tokens would count 11 / 3 times as much as the tag
    before 11, and coins thrown at 50 % would be learnt as 21 %.
    """
    return WeightedRow(row, weight=sum(row.tool_mask) / MAX_ANSWER, kind=kind)


def supervise(model: Qwen3ForCausalLM, rows: Sequence[WeightedRow], sizes: Sizes, seed: int, lr: float = 5e-3) -> None:
    """Supervised fine-tuning in place: one pass over the rows, Muon, a cosine schedule."""
    settings = SFTSettings(
        lr=lr,
        batch_size=sizes.sft_batch,
        epochs=1,
        optimizer="muon",
        schedule="cosine",
        packing=False,  # the rows share nothing
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        train_sft(model, rows, settings, folder, pad_id=PAD_ID)


@dataclass(frozen=True)
class Objective:
    """What is compared. `std`: advantages divided by the group's standard deviation; `entropy`: the controller."""

    std: bool
    entropy: EntropyControl | None
    lr: float


def reinforce(
    model: Qwen3ForCausalLM,
    tasks: Sequence[Task],
    objective: Objective,
    sizes: Sizes,
    seed: int,
    on_point: Callable[[Point], None],
) -> None:
    """Group relative policy optimisation in place; a point of the curve every `sizes.window` steps."""
    curve = Curve()

    def progress(step: int, total: int, metrics: Mapping[str, float], eta: float) -> None:
        controlled = {name: value for name, value in metrics.items() if name.startswith("entropy_")}
        on_point({"step": step, **curve.take(), **controlled})

    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            folder,
            max_steps=sizes.steps,
            per_device_train_batch_size=sizes.problems,
            learning_rate=objective.lr,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=5,
            logging_steps=sizes.window,
            seed=seed,
        )
        RLTrainer(
            model,
            arguments,
            RLSettings(
                num_generations=sizes.copies, std=objective.std, entropy=objective.entropy, max_tokens=MICRO_BATCH
            ),
            tasks,
            Rollout(model),
            REWARD,
            pad_id=PAD_ID,
            callbacks=[ProgressCallback(progress)],
            on_group=curve.on_group,
        ).train()


class Curve:
    """Collects the series of a curve from answers.

    By difficulty: "think/hard" (share that thinks), "right/hard", "tokens/hard"; by mode too: "right/hard/think"; by
    route: "right/hard/all", and "all/hard" (share that writes every step, of those that think). "entropy/think": the
    mean of -log p over the tokens of an answer, an unbiased estimate of its entropy in nats a token. A series that
    nothing was counted in is absent.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)

    def on_group(self, step: int, group: Group, rewards: Sequence[RewardBreakdown]) -> None:
        """Count the answers to one problem: a `GroupFn`."""
        for trajectory, reward in zip(group.trajectories, rewards, strict=True):
            self.add(trajectory, any(term.name == "right" and term.value > 0 for term in reward.terms))

    def add(self, trajectory: Trajectory, right: bool) -> None:
        """Count one answer."""
        turn, mode, words = trajectory.turns[0], trajectory.mode, trajectory.turns[0].text.split()
        difficulty = difficulty_of(trajectory.prompt[0].content)
        new: dict[str, float] = {
            f"think/{difficulty}": mode == "think",
            f"right/{difficulty}": right,
            f"tokens/{difficulty}": len(turn.ids),
        }
        if mode:
            new |= {f"right/{difficulty}/{mode}": right, f"entropy/{mode}": -sum(turn.logps) / len(turn.logps)}
        if mode == "think" and words[1:2] in (["all"], ["rough"]):
            new |= {f"right/{difficulty}/{words[1]}": right, f"all/{difficulty}": words[1] == "all"}
        for name, value in new.items():
            self._values[name].append(value)

    def take(self) -> Point:
        """Means of what was counted since the last call."""
        means = {name: sum(values) / len(values) for name, values in sorted(self._values.items())}
        self._values.clear()
        return means


def measure(model: Qwen3ForCausalLM, tasks: Sequence[Task], ways: Sequence[str], seed: int) -> Measured:
    """The series of `Curve` over one sampled answer a task, in each of the `ways`, names in `WAYS`."""
    points: Measured = {}
    for name in ways:
        mode, route = WAYS[name]
        curve = Curve()
        requests = [RolloutRequest(task, seed=stable_seed("measure", seed, task.id), mode=mode) for task in tasks]
        for task, answer in zip(tasks, Rollout(model, route)(requests), strict=True):
            curve.add(answer, answer.answer == task.answer)
        points[name] = curve.take()
    return points
