"""How many trajectories a second are read, scored and rewarded on one core, and what bounds it.

100,000 attempts at tasks of the embedded world: 10,000 made-up ones, ten times. A quarter is right, the others
have a wrong argument, a wrong tool, or a call that can't be read.
"""

import cProfile
import pstats
import random
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Arm, Result, compare
from tirkit.embedded.world import World
from tirkit.scoring.calls import call_scores
from tirkit.scoring.match import verdict
from tirkit.scoring.reward import TinrReward
from tirkit.text.dialects import Dialect
from tirkit.text.index import build_index
from tirkit.types import StopReason, Task, ToolCall, Trajectory, Turn

NUM_DISTINCT, TIMES, NUM_TOOLS = 10_000, 10, 64

Attempt = tuple[Trajectory, Task]


def run(repeats: int) -> list[Result]:
    world = World(NUM_TOOLS)
    dialect = Dialect(build_index(world.catalogue))
    rng, tasks = random.Random(0), world.tasks("train", 1000)
    names = [tool.name for tool in world.catalogue]
    attempts = [_attempt(rng, dialect, names, rng.choice(tasks)) for _ in range(NUM_DISTINCT)]
    reward = TinrReward(dialect)

    def read(attempt: Attempt) -> None:
        for turn in attempt[0].turns:
            dialect.parse(turn.text)

    def score(attempt: Attempt) -> None:
        verdict(*attempt)
        call_scores(*attempt)

    work: dict[str, Callable[[Attempt], object]] = {"read": read, "score": score, "reward": lambda a: reward(*a)}
    return [_measure(name, one, attempts, repeats) for name, one in work.items()]


def _measure(name: str, one: Callable[[Attempt], object], attempts: list[Attempt], repeats: int) -> Result:
    def everything() -> None:
        for _ in range(TIMES):
            for attempt in attempts:
                one(attempt)

    timings = compare(f"scoring, {name}", [Arm("tirkit", everything)], repeats)
    note = f"{name} is bound by {_bound(one, attempts)} (own time)."
    return Result("scoring", name, timings, notes=note, items=len(attempts) * TIMES, unit="trajectories")


def _bound(one: Callable[[Attempt], object], attempts: list[Attempt]) -> str:
    """The three functions with the largest share of the time spent in themselves."""
    profile = cProfile.Profile()
    profile.enable()
    for attempt in attempts:
        one(attempt)
    profile.disable()
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(entry[2] for entry in stats.values())
    top = sorted(stats.items(), key=lambda item: -item[1][2])[:3]
    return ", ".join(f"{Path(file).stem}.{name} {entry[2] / total:.0%}" for (file, _, name), entry in top)


def _attempt(rng: random.Random, dialect: Dialect, names: list[str], task: Task) -> Attempt:
    """An attempt that plays the gold rounds and its answer, spoilt in three of four cases."""
    spoil = rng.choice(("", "argument", "tool", "json"))
    texts: list[str] = []
    for calls in task.gold_rounds or ():
        if spoil == "tool":
            calls = tuple(call.model_copy(update={"name": rng.choice(names)}) for call in calls)
        if spoil == "argument":
            calls = tuple(ToolCall(name=call.name, arguments=call.arguments | {"x": 1}) for call in calls)
        texts.append(dialect.print_selection([call.name for call in calls]))
        texts.append(dialect.print_calls(calls).replace("}", "", 1 if spoil == "json" else 0))
    texts.append(dialect.print_answer(task.answer or "Done."))
    turns = []
    for text in texts:
        read = dialect.parse(text)
        turns.append(
            Turn(text=text, selected=read.selected, calls=read.calls, answer=read.answer, problems=read.problems)
        )
    return Trajectory(task_id=task.id, prompt=task.prompt, turns=tuple(turns), stop=StopReason.ANSWERED), task
