"""G attempts at each task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tirkit.rollout.loop import RolloutSettings, rollout, stable_seed
from tirkit.rollout.policy import Policy, RolloutRequest
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.tools.runtime import Toolbox
from tirkit.types import Group, Mode, Task, ToolSchema


def group_requests(tasks: Sequence[Task], size: int, seed: int) -> list[RolloutRequest]:
    """`size` requests a task, those of one task next to each other; seeds follow from (seed, task id, copy)."""
    return [RolloutRequest(task, copy, stable_seed(seed, task.id, copy)) for task in tasks for copy in range(size)]


def forced(requests: Sequence[RolloutRequest], mode: Mode) -> list[RolloutRequest]:
    """The same requests with the mode given, not chosen."""
    return [replace(request, mode=mode, trains_mode=False) for request in requests]


def rollout_groups(
    tasks: Sequence[Task],
    size: int,
    policy: Policy,
    renderer: Renderer,
    dialect: Dialect,
    tools: Mapping[str, ToolSchema],
    toolbox: Toolbox | None = None,
    settings: RolloutSettings | None = None,
    seed: int = 0,
) -> list[Group]:
    """One group of `size` trajectories a task, in order; see `rollout` for the rest and for what it raises."""
    trajectories = rollout(group_requests(tasks, size, seed), policy, renderer, dialect, tools, toolbox, settings)
    groups = zip(tasks, range(0, len(trajectories), size), strict=True)
    return [Group(task_id=task.id, trajectories=tuple(trajectories[i : i + size])) for task, i in groups]
