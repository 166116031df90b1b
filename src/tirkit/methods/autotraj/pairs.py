"""What is trained on: the SFT set (kept and repaired attempts) and the preference pairs, each with where it came from.

Left out, and counted: duplicates by (query, normalised text), queries that overlap with evaluation questions, what
exceeds `max_per_query` examples of one query and mode (best S first). Equal runs give equal datasets, byte for byte.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import Field

from tirkit.methods.autotraj.prompts import question_text
from tirkit.methods.autotraj.repair import RepairedTask
from tirkit.methods.autotraj.synthesise import JudgedGroup
from tirkit.rollout.loop import stable_seed
from tirkit.scoring.quality import Decision
from tirkit.text.control import CONTROL_STRINGS
from tirkit.types import Record, Task, Trajectory, UserError

NGRAM = 13  # words in a row that no training and evaluation question may share

T = TypeVar("T")
_WORD = re.compile(r"\w+")
_TAG = re.compile("|".join(map(re.escape, CONTROL_STRINGS)))


class Example(Record):
    """One trajectory of the SFT set. `by`: who wrote it: the sampled policy, "rules", the repairer or a script."""

    task_id: str
    place: int
    source: Literal["kept", "repaired", "demonstration"]
    by: str
    trajectory: Trajectory
    score: float


class Preference(Record):
    """One pair: `chosen` is better than `rejected`.

    source: "repair" (a repair and its own original), "outcome" (a success and a failure at the same task) or
    "demonstration" (one that stands in a repair's place, and the repair's original).
    """

    task_id: str
    place: int
    source: Literal["repair", "outcome", "demonstration"]
    by: str
    case: str
    changes: tuple[str, ...]
    chosen: Trajectory
    rejected: Trajectory
    chosen_score: float
    rejected_score: float


class Dropped(Record):
    """What did not become an example or a pair, by reason; `contaminated` names the tasks."""

    duplicates: int = 0
    over_limit: int = 0
    contaminated: dict[str, str] = Field(default_factory=dict)


class Datasets(Record):
    """The SFT set, the pairs, and what was left out; everything in the order of the tasks."""

    sft: tuple[Example, ...]
    preferences: tuple[Preference, ...]
    dropped: Dropped


class DatasetError(UserError):
    """A dataset cannot be made as asked for; the message says what to change."""


@dataclass(frozen=True)
class PairSettings:
    """`max_per_query`: SFT examples of one query and mode. `repairs`: False is the ablation without repairs.

    `outcomes`: every (success, failure) of one task is a pair too.
    """

    max_per_query: int = 2
    repairs: bool = True
    outcomes: bool = False


def build_datasets(
    groups: Sequence[JudgedGroup],
    repaired: Iterable[RepairedTask],
    tasks: Mapping[str, Task],
    evaluation: Iterable[Task] = (),
    settings: PairSettings | None = None,
) -> Datasets:
    """SFT set and preference pairs. tasks: by id. evaluation: the tasks that nothing trained on may resemble."""
    settings = settings or PairSettings()
    repaired = list(repaired) if settings.repairs else []
    chosen = {group.task_id: tasks[group.task_id] for group in groups}
    bad = contaminated(chosen.values(), evaluation)
    groups = [group for group in groups if group.task_id not in bad]
    repaired = [record for record in repaired if record.task_id not in bad]
    pairs, pair_duplicates = _unique(
        _repair_pairs(repaired) + (outcome_pairs(groups) if settings.outcomes else []),
        lambda p: (_query(tasks[p.task_id]), plain_text(p.chosen), plain_text(p.rejected)),
    )
    examples, duplicates = _unique(
        _examples(groups, repaired), lambda e: (_query(tasks[e.task_id]), plain_text(e.trajectory))
    )
    kept = _best(examples, tasks, settings.max_per_query)
    place = {group.task_id: i for i, group in enumerate(groups)}
    return Datasets(
        sft=tuple(sorted(kept, key=lambda e: place[e.task_id])),
        preferences=tuple(pairs),
        dropped=Dropped(
            duplicates=duplicates + pair_duplicates, over_limit=len(examples) - len(kept), contaminated=bad
        ),
    )


def replace_repairs(datasets: Datasets, demonstrations: Mapping[str, tuple[Trajectory, float]]) -> Datasets:
    """The datasets with a demonstration in the place of every repair: as many extra gold labels, and no repairer.

    demonstrations: task id → (trajectory, its S).
    """

    def demonstrated(task_id: str, fields: tuple[str, str]) -> dict[str, object]:
        trajectory, score = demonstrations[task_id]
        made = dict(zip(fields, (timeless(trajectory), score), strict=True))
        return {**made, "source": "demonstration", "by": trajectory.policy}

    sft = tuple(
        e.model_copy(update=demonstrated(e.task_id, ("trajectory", "score"))) if e.source == "repaired" else e
        for e in datasets.sft
    )
    preferences = tuple(
        p.model_copy(update=demonstrated(p.task_id, ("chosen", "chosen_score")) | {"changes": ()})
        if p.source == "repair"
        else p
        for p in datasets.preferences
    )
    return datasets.model_copy(update={"sft": sft, "preferences": preferences})


def draw_examples(datasets: Datasets, number: int, seed: int) -> Datasets:
    """The datasets with exactly `number` SFT examples, drawn with the seed, in their order.

    Raises DatasetError where there are fewer: arms that are compared at equal numbers must not differ silently.
    """
    if len(datasets.sft) < number:
        raise DatasetError(
            f"{number} SFT examples are wanted (pairs.num_examples) and {len(datasets.sft)} passed: lower it, or "
            "sample more (candidates.num_tasks, candidates.samples)"
        )
    chosen = sorted(random.Random(stable_seed(seed, "examples")).sample(range(len(datasets.sft)), number))
    return datasets.model_copy(update={"sft": tuple(datasets.sft[i] for i in chosen)})


def _examples(groups: Iterable[JudgedGroup], repaired: Iterable[RepairedTask]) -> list[Example]:
    """All candidates for the SFT set, kept ones before repaired ones."""
    examples = [
        Example(task_id=g.task_id, place=i, source="kept", by=t.policy, trajectory=timeless(t), score=g.scores[i].total)
        for g in groups
        for i, t in enumerate(g.trajectories)
        if g.decisions[i] is Decision.KEEP
    ]
    repairs = (repair for record in repaired for repair in record.repairs)
    return examples + [
        Example(
            task_id=r.task_id,
            place=r.place,
            source="repaired",
            by=r.by,
            trajectory=timeless(r.repaired),
            score=r.score.total,
        )
        for r in repairs
    ]


def _repair_pairs(repaired: Iterable[RepairedTask]) -> list[Preference]:
    """(repaired, its own original)."""
    return [
        Preference(
            task_id=r.task_id,
            place=r.place,
            source="repair",
            by=r.by,
            case=str(r.case),
            changes=r.changes,
            chosen=timeless(r.repaired),
            rejected=timeless(r.original),
            chosen_score=r.score.total,
            rejected_score=r.original_score.total,
        )
        for record in repaired
        for r in record.repairs
    ]


def outcome_pairs(groups: Iterable[JudgedGroup]) -> list[Preference]:
    """Every (success, failure) of the same task: what a log with outcomes says without any repair."""
    return [
        Preference(
            task_id=group.task_id,
            place=i,
            source="outcome",
            by=group.trajectories[i].policy,
            case="",
            changes=(),
            chosen=timeless(group.trajectories[i]),
            rejected=timeless(group.trajectories[j]),
            chosen_score=success.total,
            rejected_score=failure.total,
        )
        for group in groups
        for i, success in enumerate(group.scores)
        for j, failure in enumerate(group.scores)
        if success.right is True and failure.right is False
    ]


def contaminated(tasks: Iterable[Task], evaluation: Iterable[Task]) -> dict[str, str]:
    """Task id → why: its question equals one of `evaluation`, or shares 13 words in a row with one."""
    exact: dict[str, str] = {}
    grams: dict[tuple[str, ...], str] = {}
    for task in evaluation:
        words = question_words(task)
        exact.setdefault(" ".join(words), task.id)
        for gram in ngrams(words):
            grams.setdefault(gram, task.id)
    found: dict[str, str] = {}
    for task in tasks:
        words = question_words(task)
        if (same := exact.get(" ".join(words))) is not None:
            found[task.id] = f"equals evaluation question {same}"
        elif (shared := next((grams[gram] for gram in ngrams(words) if gram in grams), None)) is not None:
            found[task.id] = f"shares {NGRAM} words with evaluation question {shared}"
    return found


def timeless(trajectory: Trajectory) -> Trajectory:
    """The trajectory without how long its calls took: the only thing in it that a second run would find different."""
    turns = tuple(
        turn.model_copy(update={"results": tuple(r.model_copy(update={"duration_s": 0.0}) for r in turn.results)})
        for turn in trajectory.turns
    )
    return trajectory.model_copy(update={"turns": turns})


def plain_text(trajectory: Trajectory) -> str:
    """What the policy wrote, lower case, white space evened out, also around tags: equal for duplicates."""
    text = "\n".join(turn.text for turn in trajectory.turns).lower()
    return " ".join(_TAG.sub(r" \g<0> ", text).split())


def _query(task: Task) -> str:
    return " ".join(question_words(task))


def question_words(task: Task) -> list[str]:
    """The words of what the task asks, in lower case."""
    return _WORD.findall(question_text(task).lower())


def ngrams(words: Sequence[str], n: int = NGRAM) -> Iterable[tuple[str, ...]]:
    """Every `n` words in a row."""
    return (tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _unique(items: Sequence[T], key: Callable[[T], Hashable]) -> tuple[list[T], int]:
    """The first of each key, in order, and how many others there were."""
    first: dict[Hashable, T] = {}
    for item in items:
        first.setdefault(key(item), item)
    return list(first.values()), len(items) - len(first)


def _best(examples: Sequence[Example], tasks: Mapping[str, Task], limit: int) -> list[Example]:
    """Of each query and mode the `limit` best by S; of equals the one that comes first."""
    taken: Counter[tuple[str, str | None]] = Counter()
    kept: list[Example] = []
    for example in sorted(examples, key=lambda e: -e.score):
        query = _query(tasks[example.task_id]), example.trajectory.mode
        if taken[query] < limit:
            taken[query] += 1
            kept.append(example)
    return kept
