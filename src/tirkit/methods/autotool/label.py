"""Mode labels by pass@k, and the warm-up set that follows from them (AutoTool, arXiv 2603.13348, data).

k attempts of an annotator without thinking and k of one that thinks. Where the first succeeds often enough the task is
short: its target is its gold call, without reasoning. Else, where the second succeeds, it is long: the target is the
shortest right thought. Where both fail nothing is imitated, and the task is left to reinforcement learning.

    think      [think]\\n<think>\\n…\\n</think>\\n{block}
    no-think   [no_think]\\n{block}

Assumption: what a thinking annotator needs, the policy needs as well. *Ours*: `min_correct`, the shortest attempt, the
bounds on the think share.
"""

import functools
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tirkit.rollout.chunks import ProgressFn, in_chunks
from tirkit.rollout.group import group_requests
from tirkit.rollout.policy import RolloutFn, Script, oracle
from tirkit.scoring.reward import mode_right
from tirkit.text.control import THINK_CLOSE, THINK_OPEN
from tirkit.text.dialects import Dialect
from tirkit.text.mode import with_mode
from tirkit.types import Mode, Record, StopReason, Task, Trajectory, Turn

_THOUGHT = re.compile(rf"{THINK_OPEN}.*?{THINK_CLOSE}\s*", re.DOTALL)


class Attempted(Record):
    """How a task went: right attempts of `samples` by annotator, and the shortest right attempt of each."""

    task_id: str
    samples: int
    no_think_right: int
    think_right: int
    no_think: Trajectory | None = None
    think: Trajectory | None = None

    def mode(self, min_correct: int = 1) -> Mode | None:
        """The mode to imitate; None where both annotators fail."""
        if self.no_think_right >= min_correct:
            return "no_think"
        return "think" if self.think_right else None

    def only(self, mode: Mode) -> "Attempted":
        """The same without the right attempts in the other mode: what a baseline that always or never thinks knows."""
        other: Mode = "no_think" if mode == "think" else "think"
        return self.model_copy(update={f"{other}_right": 0, other: None})


def attempt_both(
    tasks: Sequence[Task],
    no_think: RolloutFn,
    think: RolloutFn,
    samples: int = 8,
    seed: int = 0,
    *,
    done: Iterable[Attempted] = (),
    keep: Callable[[Sequence[Attempted]], None] | None = None,
    chunk: int = 32,
    progress: ProgressFn | None = None,
) -> list[Attempted]:
    """`samples` attempts at each task by either annotator, in the order of `tasks`.

    Seeds follow from (seed, task id, k). A task at which an annotator's policy failed is not stored; see `in_chunks`,
    which also says what `done` and `keep` are. A right attempt counts only where it is in its annotator's mode: its
    first turn thinks, or none does.
    """

    def work(part: Sequence[Task]) -> list[Attempted | None]:
        requests = group_requests(part, samples, seed)
        short, long = no_think(requests), think(requests)
        slices = [slice(i * samples, (i + 1) * samples) for i in range(len(part))]
        return [_attempted(task, short[own], long[own]) for task, own in zip(part, slices, strict=True)]

    return in_chunks(tasks, work, done=done, keep=keep, chunk=chunk, progress=progress)


def _attempted(task: Task, short: Sequence[Trajectory], long: Sequence[Trajectory]) -> Attempted | None:
    if any(t.stop is StopReason.POLICY_FAILED for t in (*short, *long)):
        return None
    right_short = [t for t in short if mode_right(t, task) and not any(THINK_OPEN in turn.text for turn in t.turns)]
    right_long = [t for t in long if mode_right(t, task) and THINK_OPEN in t.turns[0].text]
    return Attempted(
        task_id=task.id,
        samples=len(short),
        no_think_right=len(right_short),
        think_right=len(right_long),
        no_think=min(right_short, key=_length, default=None),
        think=min(right_long, key=_length, default=None),
    )


def _length(trajectory: Trajectory) -> int:
    """Characters: annotators need not share a tokenizer."""
    return sum(len(turn.text) for turn in trajectory.turns)


@dataclass(frozen=True)
class WarmupSet:
    """What is imitated, in the order of the tasks, and how many tasks of each kind there were before the mix.

    `hard` are the tasks at which both annotators failed.
    """

    targets: tuple[Trajectory, ...]
    num_short: int
    num_long: int
    hard: tuple[str, ...]

    @property
    def think_share(self) -> float:
        """Share of targets that think; 0 where there are none."""
        return sum(t.mode == "think" for t in self.targets) / max(1, len(self.targets))


def warmup_set(
    attempts: Sequence[Attempted],
    gold: Mapping[str, Trajectory],
    min_correct: int = 1,
    think_share: tuple[float, float] = (0.3, 0.5),
    seed: int = 0,
) -> WarmupSet:
    """The mixed set: of the mode there is too much of, a random part is left out until the share is within bounds.

    gold: task id → its gold played by `short_gold`; tasks that are not in it, since their calls are not known, take
    the annotator's shortest right attempt. Targets are text; a renderer fills in their ids. Where no task has one of
    the modes, the other is kept whole.
    """
    modes = {attempted.task_id: attempted.mode(min_correct) for attempted in attempts}
    short, long = ([name for name, mode in modes.items() if mode == kind] for kind in ("no_think", "think"))
    low, high = think_share
    rng = random.Random(seed)
    kept = set(rng.sample(short, _at_most(len(short), len(long), 1 - low)))
    kept |= set(rng.sample(long, _at_most(len(long), len(short), high)))
    targets = [
        in_mode(attempted.think, "think")
        if modes[attempted.task_id] == "think"
        else in_mode(gold.get(attempted.task_id, attempted.no_think), "no_think")
        for attempted in attempts
        if attempted.task_id in kept
    ]
    hard = tuple(name for name, mode in modes.items() if mode is None)
    return WarmupSet(tuple(targets), len(short), len(long), hard)


def _at_most(number: int, others: int, share: float) -> int:
    """How many of `number` may stay beside `others` to be at most `share` of all; all where there are no others.

    >>> _at_most(10, 6, 0.25), _at_most(1, 6, 0.25)  # 2 of 8
    (2, 1)
    """
    return min(number, int(others * share / (1 - share) + 1e-9)) if others and share < 1 else number


def in_mode(trajectory: Trajectory | None, mode: Mode) -> Trajectory:
    """The attempt as text, with the tag of `mode` at its start; `render.encode` fills in the ids of any tokenizer."""
    assert trajectory is not None, "a label rests on at least one right attempt"
    turns = [turn.model_copy(update={"ids": (), "logps": (), "reply_ids": (), "given": 0}) for turn in trajectory.turns]
    turns[0] = turns[0].model_copy(update={"text": with_mode(turns[0].text, mode)})
    return trajectory.model_copy(update={"prompt_ids": (), "turns": tuple(turns), "mode": mode})


def without_thoughts(trajectory: Trajectory) -> Trajectory:
    """The attempt as text, its thinking blocks left out."""
    turns = [turn.model_copy(update={"text": _THOUGHT.sub("", turn.text)}) for turn in trajectory.turns]
    return in_mode(trajectory.model_copy(update={"turns": tuple(turns)}), "no_think")


def short_gold(dialect: Dialect) -> Script:
    """The script of short targets: a task's gold calls and answer, in the no-think mode, without its thoughts."""
    return functools.partial(_play_short, oracle(dialect))


def _play_short(play: Script, task: Task, turns: Sequence[Turn]) -> str:
    text = play(task.model_copy(update={"thoughts": ()}), turns)
    return text if turns else with_mode(text, "no_think")
