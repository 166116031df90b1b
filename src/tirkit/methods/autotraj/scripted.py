"""A scripted repairer for worlds whose gold is known: stands in for an LLM where there is none, through the same code.

It is no model of how well an LLM repairs. It *knows the gold*, which an LLM repairer never sees; what keeps it near a
repairer rather than a teacher is that it only mends flaws of the kinds it is said to know, with the given probability,
and keeps every turn of the flawed attempt that is right as it stands. What it cannot mend it plays again unchanged, and
that is rejected. So it spends gold labels: judge what repairing gains only beside as many scripted demonstrations.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tirkit.methods.autotraj.prompts import Flawed
from tirkit.methods.autotraj.synthesise import JudgedGroup
from tirkit.methods.tinr.think import tokens_for_names
from tirkit.rollout.loop import stable_seed
from tirkit.rollout.policy import Policy, ScriptedPolicy, oracle
from tirkit.scoring.match import answer_right
from tirkit.scoring.quality import hedge_words, is_right
from tirkit.text.dialects import Dialect
from tirkit.text.mode import split_mode, with_mode
from tirkit.text.render import Renderer
from tirkit.text.schema import canonical
from tirkit.types import StopReason, Task, Trajectory, Turn


class Flaw(StrEnum):
    """What is wrong with an attempt; the first that applies."""

    POOR = "poor"  # right, but hedging, redundant or long
    BROKEN = "broken"  # not well-formed, cut off, too many calls
    WRONG_TOOL = "wrong_tool"
    WRONG_ARGUMENTS = "wrong_arguments"
    WRONG_ANSWER = "wrong_answer"


def find_flaw(trajectory: Trajectory, task: Task) -> Flaw:
    """The kind of flaw, told with the help of the gold."""
    if is_right(trajectory, task):
        return Flaw.POOR
    if trajectory.stop not in (StopReason.ANSWERED, StopReason.CALLS_COMPLETE):
        return Flaw.BROKEN
    if task.gold_calls is not None:
        if Counter(call.name for call in trajectory.calls) != Counter(call.name for call in task.gold_calls):
            return Flaw.WRONG_TOOL
        if Counter(map(canonical, trajectory.calls)) != Counter(map(canonical, task.gold_calls)):
            return Flaw.WRONG_ARGUMENTS
    return Flaw.WRONG_ANSWER if not answer_right(trajectory, task) else Flaw.BROKEN


@dataclass(frozen=True)
class Demonstrator:
    """The script that plays a task's gold in the dialect; its thoughts name tools as the dialect writes them."""

    dialect: Dialect

    def __call__(self, task: Task, turns: Sequence[Turn]) -> str:
        """The next turn."""
        if self.dialect.index is not None:
            names = [call.name for call in task.gold_calls or ()]
            thoughts = tuple(tokens_for_names(thought, names, self.dialect.index) for thought in task.thoughts)
            task = task.model_copy(update={"thoughts": thoughts})
        return oracle(self.dialect)(task, turns)


@dataclass(frozen=True)
class GoldRepairs:
    """The script. `flawed` holds the attempts by `Flawed.key`; `skill` is the probability to see through a known flaw.

    Whether it does is drawn once an attempt: a retry does not make it cleverer.
    """

    flawed: Mapping[str, Trajectory]
    dialect: Dialect
    knows: frozenset[Flaw] = frozenset(Flaw)
    skill: float = 1.0
    seed: int = 0

    def __call__(self, task: Task, turns: Sequence[Turn]) -> str:
        """The next turn: the flawed attempt's where that is right so far or beyond this repairer, else the gold's."""
        key = task.id.rpartition(".")[0]
        flawed = self.flawed[key]
        theirs = flawed.turns[len(turns)] if len(turns) < len(flawed.turns) else None
        if not self.mends(key, task):
            return "" if theirs is None else theirs.text
        plain = task.model_copy(update={"thoughts": ()}) if flawed.mode == "no_think" else task
        gold = Demonstrator(self.dialect)(plain, turns)
        kept_so_far = all(turn.text == one.text for turn, one in zip(turns, flawed.turns, strict=False))
        if theirs is not None and kept_so_far and self._is_gold(theirs, gold):
            return theirs.text
        return with_mode(gold, flawed.mode) if flawed.mode is not None and not turns else gold

    def mends(self, key: str, task: Task) -> bool:
        """Whether it mends this attempt."""
        known = find_flaw(self.flawed[key], task) in self.knows
        return known and random.Random(stable_seed(self.seed, "mend", key)).random() < self.skill

    def _is_gold(self, turn: Turn, gold: str) -> bool:
        """Whether a turn does what the gold's does, without hedging and without a word more."""
        wanted = self.dialect.parse(gold)
        same = (turn.selected, turn.calls, turn.answer) == (wanted.selected, wanted.calls, wanted.answer)
        alone = Trajectory(task_id="", prompt=(), turns=(turn,), stop=StopReason.ANSWERED)
        short = len(split_mode(turn.text)[1].split()) <= len(gold.split())
        return same and short and not turn.problems and not hedge_words(alone)


def gold_repairer(
    groups: Iterable[JudgedGroup],
    tasks: Mapping[str, Task],
    renderer: Renderer,
    dialect: Dialect,
    knows: Iterable[Flaw] = tuple(Flaw),
    skill: float = 1.0,
    seed: int = 0,
) -> Policy:
    """The scripted repairer of these groups, as a policy."""
    flawed = {
        Flawed(tasks[group.task_id], place, trajectory, group.scores[place]).key: trajectory
        for group in groups
        for place, trajectory in enumerate(group.trajectories)
    }
    script = GoldRepairs(flawed, dialect, frozenset(knows), skill, seed)
    return ScriptedPolicy(script, renderer, "scripted repairer")
