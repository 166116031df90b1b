"""A whole run, small: every stage leaves what it promises, and a killed run ends as if nothing had happened."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tirkit.config import ConfigError, RunConfig, parse_config
from tirkit.evaluation.run import EvaluationResult
from tirkit.pipeline.attempts import cases_of
from tirkit.pipeline.compare import ArmFailedError, compare_arms
from tirkit.pipeline.inspect import inspect_run
from tirkit.pipeline.run import STAGES, evaluate_run, run_stages
from tirkit.store import RunFolder, StoreError
from tirkit.types import Message, Task, Trajectory

DONE = ("prepare", "internalise", "synthesise", "warmup", "rl", "evaluate", "report")  # TInR-U's stages
TINY = """
name = "tiny"
[catalogue]
num_tools = 16
[tasks]
num_train = 30
num_rl = 6
num_validation = 6
num_test = 9
[internalise]
steps = 6
batch_size = 8
save_every = 2
[warmup]
steps = 4
batch_size = 8
save_every = 2
[rl]
steps = 3
batch_size = 2
num_generations = 2
min_success = 0
save_every = 1
[rollout]
max_new_tokens = 12
[evaluate]
knowledge_items = 2
general_items = 1
"""


def command(config: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "tirkit", "run", str(config), "--out", str(out)]


def finish(config: Path, out: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(config, out), capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def outcome(root: Path) -> dict[str, object]:
    """Everything a run ends with, times left out."""
    folder = RunFolder.read(root)
    weights = {
        stage: hashlib.sha256((folder.model(stage) / "model.safetensors").read_bytes()).hexdigest()
        for stage in ("prepare", "internalise", "warmup", "rl")
    }
    items = [
        (result.stage, item.task_id, item.stop, {k: v for k, v in item.metrics.items() if k != "seconds"})
        for result in folder.read_records("test_results", EvaluationResult)
        for item in result.items
    ]
    kept = [trajectory.task_id for trajectory in folder.read_records("synthesis", Trajectory)]
    return {"weights": weights, "items": items, "kept": kept, "rl": folder.records("rl").read_text().count("\n")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny config and a run of it that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    config = folder / "tiny.toml"
    config.write_text(TINY)
    finish(config, folder / "run")
    return config, folder / "run"


def test_every_stage_is_complete_and_leaves_its_artefacts(whole: tuple[Path, Path]) -> None:
    folder = RunFolder.read(whole[1])
    marks = {stage: folder.mark(stage) for stage in STAGES}
    assert [stage for stage, mark in marks.items() if mark] == list(DONE)
    assert marks["prepare"].facts["tools"] == 16
    assert marks["synthesise"].facts["kept"] == 24
    for stage in ("internalise", "warmup", "rl"):
        assert {"memorise", "recall", "validation_success_all"} <= marks[stage].facts.keys()
    assert len(marks["rl"].facts["curve"]) >= 3
    assert len(outcome(whole[1])["items"]) == 2 * 9
    page = (whole[1] / "report" / "index.html").read_text()
    assert "tiny" in page
    assert not any((whole[1] / "work").glob("*"))


def test_the_page_of_attempts_has_every_question_and_arm(whole: tuple[Path, Path], tmp_path: Path) -> None:
    cases = {case.id: case for case in cases_of([whole[1]])}
    tasks = list(RunFolder.read(whole[1]).read_records("tasks_test", Task))
    assert list(cases) == [task.id for task in tasks]
    for task in tasks:
        assert cases[task.id].asked == (("user", task.prompt[0].content),)
        assert [attempt.arm for attempt in cases[task.id].attempts] == ["tiny", "tiny, after warmup"]
        assert {kind for _, kind in cases[task.id].attempts[0].spans} >= {"prompt", "trained"}
    # Another seed asks something else under the same id: a case of its own.
    other = tmp_path / "run"
    shutil.copytree(whole[1], other)
    folder = RunFolder.read(other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"seed": 1}))
    changed = tasks[0].model_copy(update={"prompt": (Message(role="user", content="Another question"),)})
    folder.write_records("tasks_test", [changed, *tasks[1:]])
    results = list(folder.read_records("test_results", EvaluationResult))
    folder.write_records("test_results", [result.model_copy(update={"seed": 1}) for result in results])
    both = {case.id: case for case in cases_of([whole[1], other])}
    assert both.keys() - cases.keys() == {f"{tasks[0].id}, seed 1"}
    assert [attempt.arm for attempt in both[tasks[0].id].attempts] == ["tiny, seed 0", "tiny, after warmup, seed 0"]
    assert len(both[tasks[1].id].attempts) == 4


def test_a_complete_run_is_not_done_again(whole: tuple[Path, Path]) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole[1].rglob("*") if p.is_file() and p.name != ".lock"}
    said = finish(*whole)
    assert said.count("done before") == len(DONE)
    assert before == {p: p.stat().st_mtime_ns for p in whole[1].rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_run_killed_again_and_again_ends_like_the_whole_one(whole: tuple[Path, Path], tmp_path: Path) -> None:
    config, reference = whole
    moments, kills = random.Random(0), 0
    for _ in range(4):
        process = subprocess.Popen(
            command(config, tmp_path / "run"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        # Wait until it is at work, so that the kill falls into a stage and not into the imports.
        before = progress_of(tmp_path / "run")
        deadline = time.monotonic() + 60
        while progress_of(tmp_path / "run") == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1.5))
        if process.poll() is None:
            kills += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 2
    finish(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(reference)


def progress_of(root: Path) -> int:
    # Not `rglob`: it raises when a temporary folder of the running process is renamed under it.
    return sum(name != ".lock" for _, _, names in os.walk(root) for name in names)


def test_other_settings_need_another_folder(whole: tuple[Path, Path]) -> None:
    config = RunFolder.read(whole[1]).manifest.config
    with pytest.raises(StoreError, match="seed: 0 → 1"):
        run_stages(config.model_copy(update={"seed": 1}), whole[1])


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="a run is one process, and 2 were started"):
        run_stages(parse_config({}, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stages_that_cannot_run_say_why(tmp_path: Path) -> None:
    config = parse_config({}, "test")
    with pytest.raises(ConfigError, match="no stage 'train'; the stages are prepare"):
        run_stages(config, tmp_path / "a", ["train"])
    with pytest.raises(ConfigError, match="stage warmup needs prepare"):
        run_stages(config, tmp_path / "b", ["warmup"])


def test_inspect_shows_trajectories_and_names_what_is_missing(whole: tuple[Path, Path]) -> None:
    assert len(inspect_run(whole[1], "test", 3, "")) == 3
    assert len(inspect_run(whole[1], "rl", 2, "")) == 2
    with pytest.raises(ConfigError, match="no such trajectories"):
        inspect_run(whole[1], "test", 3, "no-such-task")


def test_inspect_shows_the_answers_of_the_model_that_was_asked(whole: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(whole[1], tmp_path / "run")
    records = tmp_path / "run" / "records"
    lines = (records / "test_results.jsonl").read_text().splitlines(keepends=True)
    (records / "test_results.jsonl").write_text("".join(line for line in lines if '"stage":"rl"' not in line))
    (records / "test_rl.jsonl").unlink()  # as where RL could not start: nobody asked its model
    assert len(inspect_run(tmp_path / "run", "test", 3, "")) == 3


def test_the_manifest_holds_the_resolved_config(whole: tuple[Path, Path]) -> None:
    manifest = json.loads((whole[1] / "manifest.json").read_text())
    assert RunConfig.model_validate_json(json.dumps(manifest["config"])).catalogue.num_tools == 16
    assert {"torch", "transformers", "tirkit"} <= manifest["versions"].keys()


def test_a_run_with_lora_leaves_plain_models_and_can_be_evaluated(whole: tuple[Path, Path], tmp_path: Path) -> None:
    config = RunFolder.read(whole[1]).manifest.config
    config = config.model_copy(update={"model": config.model.model_copy(update={"lora_rank": 2})})
    run_stages(config, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "models" / "rl" / "model.safetensors")
    assert not [name for name in weights if "lora" in name or "base_layer" in name]
    before = load_file(tmp_path / "run" / "models" / "prepare" / "model.safetensors")
    assert weights.keys() == before.keys()
    assert any(not torch.equal(weights[name], before[name]) for name in weights if "embed_tokens" in name)
    console = Console(width=200, record=True)
    console.print(evaluate_run(tmp_path / "run", None, "warmup", "", 3))
    assert "tiny (warmup)" in console.export_text()
    with pytest.raises(ConfigError, match="has no model of stage 'first'"):
        evaluate_run(tmp_path / "run", None, "first", "", 3)


def test_arms_are_compared_and_finished_runs_are_used_as_they_are(
    whole: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole[1], tmp_path / "method-0")
    compare_arms(whole[0], [], ["method"], [0], tmp_path, jobs=1)
    said = capsys.readouterr().out
    assert said.count("done before") == len(DONE)
    assert "accuracy" in said
    assert str(tmp_path / "report" / "index.html") in said.replace("\n", "")
    run = json.loads((tmp_path / "summary.json").read_text())["runs"][0]
    assert run["test"]["rl"]["all"]["success"]["n"] == 9
    assert run["phases"]["warmup"]["rows"] > 0


def test_a_failed_arm_is_reported_with_the_end_of_its_log(whole: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ArmFailedError, match=r"1 of 1 runs failed.*method-0\.log ends with\n(.|\n)*no/such/model"):
        compare_arms(whole[0], ["model.path=no/such/model"], ["method"], [0], tmp_path, jobs=1)
    with pytest.raises(ConfigError, match="no arm 'other'; it has: method"):
        compare_arms(whole[0], [], ["other"], [0], tmp_path, jobs=1)
