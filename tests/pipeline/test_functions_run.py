"""A run whose tools are the user's own Python functions: what is run, what is refused, what a changed file does."""

import json
from pathlib import Path

import pytest

from tirkit.config import ConfigError, RunConfig, parse_config
from tirkit.evaluation.terminal import Progress
from tirkit.pipeline.context import Context
from tirkit.pipeline.run import open_run, run_stages
from tirkit.rollout.policy import RolloutRequest, ScriptedPolicy, oracle
from tirkit.store import RunFolder
from tirkit.tools import functions
from tirkit.tools.catalogue import CatalogueError
from tirkit.tools.functions import FunctionError
from tirkit.types import StopReason, ToolErrorKind, ToolResult

MY_TOOLS = '''
import os
import time

from tirkit.tools.functions import read_only


@read_only
def double(n: int) -> int:
    """Doubles a number.

    Args:
        n: the number
    """
    return 2 * n


@read_only
def wait(n: int) -> int:
    """Takes its time.

    Args:
        n: seconds
    """
    time.sleep(n)
    return n


@read_only
def shout(n: int) -> str:
    """Shouts.

    Args:
        n: how long
    """
    return "a" * n


def crash(n: int) -> int:
    """Ends its process.

    Args:
        n: exit code
    """
    os._exit(n)


def delete(n: int) -> int:
    """Deletes what it is told to.

    Args:
        n: of the file
    """
    open(f"{__file__}.deleted", "w").close()
    return n
'''
ASKED = {"double": 21, "wait": 60, "shout": 1000, "crash": 3, "delete": 1}


def configured(folder: Path, allow: tuple[str, ...] = ("crash",), tools: str = MY_TOOLS) -> RunConfig:
    (folder / "my_tools.py").write_text(tools)
    tasks = [
        {
            "id": f"{name}{place}",
            "prompt": [{"role": "user", "content": f"Call {name}: {place}"}],
            "gold_rounds": [[{"name": name, "arguments": {"n": n}}]],
            "answer": "42",
        }
        for name, n in ASKED.items()
        for place in range(2)
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    sections = {
        "model": {"scratch": True, "vocab_size": 400},
        "catalogue": {"path": str(folder / "my_tools.py"), "allow": allow},
        "tasks": {"path": str(folder / "questions.jsonl"), "num_validation": 1, "num_test": 1},
        "rollout": {"tool_timeout_s": 3.0, "max_result_chars": 60},
        "internalise": {"enabled": False},
        "warmup": {"enabled": False},
        "rl": {"enabled": False},
    }
    return parse_config(sections, "test")


def results(ctx: Context) -> dict[str, ToolResult]:
    """What each tool answers to its gold call, in rollouts that play the gold."""
    tasks = [task for split in ("train", "validation", "test") for task in ctx.sources.tasks[split]]
    policy = ScriptedPolicy(oracle(ctx.dialect), ctx.renderer)
    trajectories = ctx.rollout(ctx.renderer, policy)([RolloutRequest(task, 0, 0) for task in tasks])
    assert {trajectory.stop for trajectory in trajectories} == {StopReason.ANSWERED}
    return {result.name: result for t in trajectories for turn in t.turns for result in turn.results}


def test_functions_are_run_bounded_and_only_where_they_may_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stages(configured(tmp_path), tmp_path / "run", ["prepare"])
    said = " ".join(capsys.readouterr().err.split())
    assert "neither read-only nor in catalogue.allow, and will be answered that they cannot be run: delete" in said
    assert "crash (" not in said
    ctx = open_run(tmp_path / "run")
    assert [tool.name for tool in ctx.sources.tools] == list(ASKED)
    assert ctx.rollout_settings.workers > 0
    got = results(ctx)
    assert (got["double"].content, got["double"].error) == ("42", None)
    assert got["wait"].error is ToolErrorKind.TIMEOUT
    assert got["shout"].truncated
    assert len(got["shout"].content) <= 60
    assert got["crash"].error is ToolErrorKind.CRASHED  # its own process, not ours
    assert got["delete"].error is ToolErrorKind.UNAVAILABLE
    assert not list(tmp_path.glob("*.deleted"))


def test_everything_may_be_allowed(tmp_path: Path) -> None:
    config = configured(tmp_path, allow=("*",))
    toolbox = Context(config, RunFolder.open(tmp_path / "run", config), Progress()).toolbox
    assert toolbox is not None
    assert set(toolbox.functions) == set(ASKED)


def test_a_changed_file_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path)
    run_stages(config, tmp_path / "run", ["prepare"])
    capsys.readouterr()
    assert open_run(tmp_path / "run").toolbox is not None
    assert not capsys.readouterr().err
    # Other code behind the same documents: said, and run.
    run_again(tmp_path, MY_TOOLS.replace("2 * n", "n + n"))
    assert "was changed since the run was prepared; it runs as it is now" in " ".join(capsys.readouterr().err.split())
    changed = MY_TOOLS.replace("Doubles a number.", "Halves a number.")
    with pytest.raises(CatalogueError, match=r'prepared with:\n  changed  double\n .*"Doubles a number\." → "Halves'):
        run_again(tmp_path, changed)
    (tmp_path / "my_tools.py").unlink()
    with pytest.raises(FunctionError, match="cannot be read"):
        run_again(tmp_path, None)


def run_again(folder: Path, tools: str | None) -> None:
    """Look at the run as a new process would, in which nothing was imported."""
    functions._import.cache_clear()
    if tools is not None:
        (folder / "my_tools.py").write_text(tools)
    assert open_run(folder / "run").toolbox is not None


def test_mistakes_are_named(tmp_path: Path) -> None:
    none = MY_TOOLS.replace("@read_only\n", "")
    with pytest.raises(ConfigError, match=r"mark Python functions that change nothing with @read_only"):
        run_stages(configured(tmp_path, (), none), tmp_path / "a", ["prepare"])
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(CatalogueError, match=r"there is no tool 'dubble' to allow; .*: double, wait"):
        run_stages(configured(other, ("dubble",)), tmp_path / "b", ["prepare"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FunctionError, match="holds no tool"):
        run_stages(configured(empty, (), "x = 1\n"), tmp_path / "c", ["prepare"])
    with pytest.raises(ConfigError, match=r"catalogue\.allow names tools of your own"):
        parse_config({"catalogue": {"allow": ["x"]}}, "test")
