"""Question files divide without overlap, with the promised number of seen test questions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tirkit.config import ConfigError, parse_config
from tirkit.evaluation.terminal import Progress
from tirkit.pipeline.context import Context
from tirkit.pipeline.split import seen_tools, split_tasks, tool_names
from tirkit.store import RunFolder
from tirkit.types import Message, Task, ToolCall


def task(number: int, *tools: str) -> Task:
    calls = tuple(ToolCall(name=name) for name in tools)
    return Task(id=f"q{number}", prompt=(Message(role="user", content="?"),), gold_rounds=(calls,), calls_only=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.sets(st.sampled_from("abcdefghij"), min_size=1, max_size=3), min_size=40))
def test_parts_are_disjoint_and_seen_test_tasks_stay_seen(seed, toolsets) -> None:
    tasks = [task(number, *sorted(tools)) for number, tools in enumerate(toolsets)]
    try:
        parts = split_tasks(tasks, num_validation=5, num_test=12, min_seen_test=8, seed=seed)
    except ConfigError:
        return
    ids = [t.id for part in parts.values() for t in part]
    assert sorted(ids) == sorted(t.id for t in tasks)
    seen = seen_tools(parts["train"])
    assert sum(tool_names(t) <= seen for t in parts["test"]) >= 8


def test_same_seed_same_split_other_seed_other_split() -> None:
    tasks = [task(number, "abcd"[number % 4]) for number in range(100)]
    first, again, other = (split_tasks(tasks, 10, 20, 5, seed) for seed in (1, 1, 2))
    assert first == again
    assert {t.id for t in first["test"]} != {t.id for t in other["test"]}
    assert (len(first["train"]), len(first["validation"]), len(first["test"])) == (70, 10, 20)


def test_what_cannot_be_divided_is_said() -> None:
    tasks = [task(number, f"tool{number}") for number in range(10)]
    with pytest.raises(ConfigError, match="only 0 questions share"):
        split_tasks(tasks, 1, 2, 1, seed=0)
    with pytest.raises(ConfigError, match="leaves nothing to train on"):
        split_tasks(tasks, 5, 5, 0, seed=0)
    tasks = [task(number, "ab"[number % 2]) for number in range(40)]
    with pytest.raises(ConfigError, match=r"min_seen_test = 8 is more than tasks\.num_test = 4"):
        split_tasks(tasks, 2, 4, 8, seed=0)
    pairs = [task(number, f"tool{number // 2}") for number in range(40)]  # each tool in two questions
    with pytest.raises(ConfigError, match="only 20 of 30"):
        split_tasks(pairs, 10, 20, 20, seed=0)


def test_questions_kept_for_rl_train_nothing_else(tmp_path) -> None:
    config = parse_config({"catalogue": {"num_tools": 16}, "tasks": {"num_train": 20, "num_rl": 6}}, "here")
    ctx = Context(config, RunFolder.open(tmp_path / "some", config), Progress())
    assert ctx.sft_tasks == ctx.train_tasks[:14]
    assert ctx.rl_tasks == ctx.train_tasks[14:]
    config = parse_config({"catalogue": {"num_tools": 16}, "tasks": {"num_train": 20}}, "here")
    ctx = Context(config, RunFolder.open(tmp_path / "all", config), Progress())
    assert ctx.sft_tasks == ctx.rl_tasks == ctx.train_tasks
    assert len(ctx.train_tasks) == 20
