"""What a person sees who types something wrong: the place, the reason, the remedy, an exit code, no traceback."""

import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tirkit.cli import serve
from tirkit.cli.shared import listed, numbers
from tirkit.serving.limits import Limits
from tirkit.types import UserError

GOOD = '{"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}\n'


def tirkit(*arguments: str | Path) -> tuple[int, str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tirkit", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    said = done.stdout + done.stderr
    assert "Traceback" not in said, said
    return done.returncode, said


def test_help_names_every_command() -> None:
    code, said = tirkit("--help")
    assert code == 0
    for command in ("run", "compare", "plan", "eval", "report", "inspect", "score", "serve", "chat", "tools"):
        assert command in said


def test_serve_has_the_limits_that_a_server_has_without_it() -> None:
    given = {name: option.default for name, option in inspect.signature(serve).parameters.items()}
    assert dataclasses.asdict(Limits()).items() <= given.items()


def test_lists_may_have_spaces_and_seeds_are_integers() -> None:
    assert listed("a, b,,c ,") == ["a", "b", "c"]
    assert numbers("0, 1,", "--seeds") == [0, 1]
    with pytest.raises(UserError, match="--seeds 0,a: give integers, separated by commas"):
        numbers("0,a", "--seeds")


def test_tools_check_names_bad_lines_and_counts_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "tools.jsonl"
    path.write_text(GOOD + "{not json}\n" + GOOD + '{"name": 7}\n')
    code, said = tirkit("tools", "check", path)
    assert code == 1
    assert "tools.jsonl:2:" in said
    assert "tools.jsonl:4:" in said
    assert "1 tools, 1 exact duplicates merged, 0 renamed, 2 bad lines" in said
    path.write_text(GOOD)
    assert tirkit("tools", "check", path)[0] == 0


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        ("[rl]\nstepz = 1\n", [], "rl.stepz: unknown; [rl] takes"),
        ("", ["rl.steps=many"], "rl.steps: "),
        ("", ["catalogue.path=nowhere.jsonl", "tasks.path=nowhere.jsonl"], "nowhere.jsonl"),
        ("", ["model.path=no/such/folder"], "model.path = 'no/such/folder' is neither"),
        ("", ["rl.num_generations=1"], "rl.num_generations: "),
    ],
)
def test_mistakes_in_a_run(tmp_path: Path, config: str, overrides: list[str], expected: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(config)
    code, said = tirkit("run", path, *overrides, "--out", tmp_path / "run")
    assert code == 2
    assert expected in said


def test_broken_questions_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    good = '{"id": "q%d", "query": "Add.", "calling": [{"api": "add", "parameters": {}}]}\n'
    questions.write_text("".join(good % n for n in range(8)) + "oops\n" + '{"id": "x"}\n')
    (tmp_path / "tools.jsonl").write_text(GOOD)
    (tmp_path / "c.toml").write_text(
        f'[model]\nscratch = true\nvocab_size = 400\n[catalogue]\npath = "{tmp_path}/tools.jsonl"\n'
        f'[tasks]\npath = "{questions}"\nnum_validation = 1\nnum_test = 2\n'
    )
    code, said = tirkit("run", tmp_path / "c.toml", "--out", tmp_path / "run", "--stages", "prepare")
    assert code == 0, said
    assert "questions.jsonl:9:" in said
    assert "questions.jsonl:10:" in said
    assert "train_tasks 5" in said


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    for command in ("report", "inspect", "eval"):
        code, said = tirkit(command, tmp_path)
        assert code == 2
        assert "is not a run folder" in said


def test_a_missing_config_is_said() -> None:
    code, said = tirkit("run", "nowhere.toml")
    assert code == 2
    assert "nowhere.toml: cannot be read" in said
