"""Divide a question file into train, validation and test, with enough test questions on tools seen in training."""

import random
from collections import Counter
from collections.abc import Sequence

from tirkit.config import ConfigError
from tirkit.types import Task


def tool_names(task: Task) -> frozenset[str]:
    """Names of the tools a task's gold calls use."""
    return frozenset(call.name for call in task.gold_calls or ())


def seen_tools(train: Sequence[Task]) -> frozenset[str]:
    """Tools that some training question uses."""
    return frozenset().union(*(tool_names(task) for task in train))


def split_tasks(
    tasks: Sequence[Task], num_validation: int, num_test: int, min_seen_test: int, seed: int
) -> dict[str, list[Task]]:
    """Splits by name, each task in exactly one.

    At least `min_seen_test` test tasks use only tools that training tasks use too; the others are drawn at random from
    the rest. Raises `ConfigError` where the questions do not allow it.
    """
    if min_seen_test > num_test:
        raise ConfigError(f"tasks.min_seen_test = {min_seen_test} is more than tasks.num_test = {num_test}")
    if num_validation + num_test >= len(tasks):
        raise ConfigError(
            f"tasks.num_validation + tasks.num_test = {num_validation + num_test} leaves nothing to train on: "
            f"there are {len(tasks)} questions"
        )
    pool = list(tasks)
    random.Random(seed).shuffle(pool)
    left = Counter(name for task in pool for name in tool_names(task))
    needed: set[str] = set()  # tools of the seen test tasks: some training task must keep each of them

    def take(task: Task, keep: frozenset[str]) -> bool:
        if any(left[name] < 2 for name in tool_names(task) & keep):
            return False
        left.subtract(tool_names(task))
        return True

    test: list[Task] = []
    for task in pool:
        if len(test) == min_seen_test:
            break
        if tool_names(task) and take(task, tool_names(task) | needed):
            test.append(task)
            needed |= tool_names(task)
    if len(test) < min_seen_test:
        raise ConfigError(f"tasks.min_seen_test = {min_seen_test}: only {len(test)} questions share all their tools")
    chosen = {task.id for task in test}
    for task in pool:
        if len(chosen) == num_test + num_validation:
            break
        if task.id not in chosen and take(task, frozenset(needed)):
            chosen.add(task.id)
            test.append(task)
    if len(chosen) < num_test + num_validation:
        raise ConfigError(
            f"only {len(chosen)} of {num_test + num_validation} validation and test questions can be taken so that "
            "the tools of the seen ones stay in training: lower tasks.num_test or tasks.min_seen_test"
        )
    return {
        "train": [task for task in tasks if task.id not in chosen],
        "validation": [task.model_copy(update={"split": "validation"}) for task in test[num_test:]],
        "test": [task.model_copy(update={"split": "test"}) for task in test[:num_test]],
    }
