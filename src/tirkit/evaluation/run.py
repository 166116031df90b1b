"""Put questions to a policy and keep, item by item, what came of it."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from tirkit.evaluation.metrics import Estimate, Item, Knowledge, estimate, groups_of, make_item
from tirkit.rollout.loop import stable_seed
from tirkit.rollout.policy import RolloutFn, RolloutRequest
from tirkit.types import Record, Task, Trajectory

T = TypeVar("T")
ProgressFn = Callable[[int, int, Mapping[str, float], float], None]
"""Called as progress(done, total, running means, seconds left)."""


class EvaluationResult(Record):
    """One arm on one set of tasks: per-item values, from which every table and interval is made.

    `arm` is what is compared with others, `stage` the phase whose model was measured, `seed` that of the run.
    """

    arm: str
    seed: int
    items: tuple[Item, ...]
    seconds: float
    stage: str = ""

    def values(self, metric: str, group: str = "all") -> dict[str, float | None]:
        """The metric by task id, for the items of `group`."""
        return {item.task_id: item.metrics.get(metric) for item in self.items if group in groups_of(item)}

    def estimate(self, metric: str, group: str = "all") -> Estimate | None:
        """Mean of the metric over the items of `group`; None where it judges none of them."""
        return estimate(self.values(metric, group).values())


class KnowledgeResult(Record):
    """What a model remembers of the tools after one phase."""

    phase: str
    tools: tuple[Knowledge, ...]

    def estimate(self, metric: str, seen: bool | None = None) -> Estimate | None:
        """Mean of 'memorise', 'recall' or 'recall_f1' over the tools, or over the seen or unseen ones alone."""
        return estimate(getattr(tool, metric) for tool in self.tools if seen is None or tool.seen is seen)


def evaluate(
    tasks: Sequence[Task],
    rollout: RolloutFn,
    *,
    arm: str,
    seen: Collection[str] = (),
    stage: str = "",
    seed: int = 0,
    batch_size: int = 64,
    done: Iterable[Trajectory] = (),
    keep: Callable[[Sequence[Trajectory]], None] | None = None,
    progress: ProgressFn | None = None,
) -> EvaluationResult:
    """One attempt at each task, judged.

    rollout: requests → trajectories in their order. seen: tools that instructions used in training.
    done: trajectories of an interrupted evaluation, not made again (their seconds are unknown).
    keep: called with each batch of new trajectories, so that the caller can store them.
    Raises ValueError where two tasks share an id.
    """
    if len({task.id for task in tasks}) < len(tasks):
        raise ValueError("tasks to evaluate must have different ids")
    by_id = {task.id: task for task in tasks}
    items = {t.task_id: make_item(t, by_id[t.task_id], seen) for t in done if t.task_id in by_id}
    rest = [task for task in tasks if task.id not in items]
    started = time.perf_counter()
    for batch in _batches(rest, batch_size):
        began = time.perf_counter()
        trajectories = rollout([RolloutRequest(task, 0, stable_seed(seed, task.id, 0)) for task in batch])
        if keep is not None:
            keep(trajectories)
        seconds = (time.perf_counter() - began) / len(batch)
        for task, trajectory in zip(batch, trajectories, strict=True):
            items[task.id] = make_item(trajectory, task, seen, seconds=seconds)
        if progress is not None:
            _report(progress, tasks, items, len(rest), time.perf_counter() - started)
    ordered = tuple(items[task.id] for task in tasks)
    return EvaluationResult(arm=arm, stage=stage, seed=seed, items=ordered, seconds=time.perf_counter() - started)


def _report(
    progress: ProgressFn, tasks: Sequence[Task], items: Mapping[str, Item], num_new: int, elapsed: float
) -> None:
    left = len(tasks) - len(items)
    success = estimate(item.metrics["success"] for item in items.values())
    means = {} if success is None else {"success": success.mean}
    progress(len(items), len(tasks), means, elapsed / (num_new - left) * left)


def _batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))
