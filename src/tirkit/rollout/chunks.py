"""Long work task by task, in chunks that are stored as they come, so that a run that was killed goes on."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from tirkit.rollout.policy import RolloutError
from tirkit.types import Task

ProgressFn = Callable[[int, int, Mapping[str, float], float], None]
"""Called as progress(done, total, numbers, seconds left)."""


class TaskRecord(Protocol):
    """What is stored of one task."""

    @property
    def task_id(self) -> str:
        """The task it belongs to."""
        ...


RecordT = TypeVar("RecordT", bound=TaskRecord)


def in_chunks(
    tasks: Sequence[Task],
    work: Callable[[Sequence[Task]], Sequence[RecordT | None]],
    *,
    done: Iterable[RecordT] = (),
    keep: Callable[[Sequence[RecordT]], None] | None = None,
    chunk: int = 32,
    progress: ProgressFn | None = None,
) -> list[RecordT]:
    """One record a task, in the order of `tasks`, whatever was done before.

    work: makes the records of a chunk, None for a task whose endpoint failed. done: records of an interrupted run.
    keep: called with each chunk's new records. Raises RolloutError at the end where some task has none: everything
    else is stored by then, and the same command tries those tasks again.
    """
    records = {record.task_id: record for record in done}
    if len({task.id for task in tasks}) < len(tasks):
        raise ValueError("tasks must have different ids")
    rest = [task for task in tasks if task.id not in records]
    failed: list[str] = []
    started = time.monotonic()
    for start in range(0, len(rest), chunk):
        part = rest[start : start + chunk]
        made = work(part)
        failed += [task.id for task, record in zip(part, made, strict=True) if record is None]
        new = [record for record in made if record is not None]
        records |= {record.task_id: record for record in new}
        if keep is not None:
            keep(new)
        if progress is not None:
            finished = start + len(part)
            left = (time.monotonic() - started) / finished * (len(rest) - finished)
            progress(len(tasks) - len(rest) + finished, len(tasks), {"failed": float(len(failed))}, left)
    if failed:
        raise RolloutError(
            f"the policy gave nothing for {len(failed)} of {len(tasks)} tasks after retries (first: {failed[0]!r})"
            "; all others are stored: see to the endpoint, then run the same command to go on"
        )
    return [records[task.id] for task in tasks]
