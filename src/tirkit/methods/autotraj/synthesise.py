"""Candidates: K attempts a task by any policy, or attempts from a log; then their scores and what becomes of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from tirkit.rollout.chunks import ProgressFn, in_chunks
from tirkit.rollout.group import group_requests
from tirkit.rollout.policy import RolloutFn
from tirkit.scoring.quality import Decision, QualityScore, QualitySettings, decide, score_group
from tirkit.tools.logs import LoggedAttempt
from tirkit.types import Group, Record, StopReason, Task, Trajectory


class JudgedGroup(Record):
    """The attempts at one task with their scores and decisions, all in the same order."""

    task_id: str
    trajectories: tuple[Trajectory, ...]
    scores: tuple[QualityScore, ...]
    decisions: tuple[Decision, ...]


def synthesise(
    tasks: Sequence[Task],
    rollout: RolloutFn,
    samples: int = 4,
    seed: int = 0,
    *,
    done: Iterable[Group] = (),
    keep: Callable[[Sequence[Group]], None] | None = None,
    chunk: int = 32,
    progress: ProgressFn | None = None,
) -> list[Group]:
    """`samples` attempts at each task, in the order of `tasks`; seeds follow from (seed, task id, k).

    rollout: requests → trajectories in their order (the tool loop with its policy). A task any of whose attempts the
    policy failed at is not stored, see `in_chunks`, which also says what `done` and `keep` are.
    """

    def work(part: Sequence[Task]) -> list[Group | None]:
        attempts = rollout(group_requests(part, samples, seed))
        groups: list[Group | None] = []
        for i, task in enumerate(part):
            mine = tuple(attempts[i * samples : (i + 1) * samples])
            failed = any(t.stop is StopReason.POLICY_FAILED for t in mine)
            groups.append(None if failed else Group(task_id=task.id, trajectories=mine))
        return groups

    return in_chunks(tasks, work, done=done, keep=keep, chunk=chunk, progress=progress)


def judge(
    group: Group, task: Task, settings: QualitySettings | None = None, right: Sequence[bool | None] | None = None
) -> JudgedGroup:
    """Scores and decisions of a group; `right` where a log says more about success than the task does."""
    scores = score_group(group.trajectories, task, settings, right=right)
    return JudgedGroup(
        task_id=task.id, trajectories=group.trajectories, scores=scores, decisions=decide(scores, settings)
    )


def from_logs(
    attempts: Iterable[LoggedAttempt], tasks: Mapping[str, Task] | None = None, settings: QualitySettings | None = None
) -> tuple[list[Task], list[JudgedGroup]]:
    """A log's tasks, and its attempts at them as judged groups, both in the order of the log.

    tasks: known ones by id; they replace the log's, which have no target. Success is then judged by them, else it is
    what the log says.
    """
    found: dict[str, list[LoggedAttempt]] = {}
    for attempt in attempts:
        found.setdefault(attempt.task.id, []).append(attempt)
    chosen = [(tasks or {}).get(name, group[0].task) for name, group in found.items()]
    judged: list[JudgedGroup] = []
    for task, logged in zip(chosen, found.values(), strict=True):
        group = Group(task_id=task.id, trajectories=tuple(attempt.trajectory for attempt in logged))
        has_target = task.answer is not None or task.gold_calls is not None
        judged.append(judge(group, task, settings, None if has_target else [attempt.success for attempt in logged]))
    return chosen, judged
