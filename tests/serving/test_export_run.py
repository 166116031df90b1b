"""`tirkit export` on a run: which model, what its card says, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tirkit.cli import app
from tirkit.config import ConfigError, parse_config
from tirkit.evaluation.metrics import Item
from tirkit.evaluation.run import EvaluationResult
from tirkit.pipeline.export import export_run
from tirkit.serving.export import ExportError
from tirkit.serving.gguf_file import GgufError
from tirkit.store import RunFolder
from tirkit.types import Message, StopReason, Task, ToolSchema

TOOLS = (ToolSchema(name="add", description="Add two integers."), ToolSchema(name="now", description="The time."))


@pytest.fixture
def run(tmp_path: Path, make_tiny: Callable[..., SimpleNamespace]) -> tuple[RunFolder, SimpleNamespace]:
    """A run whose model of `warmup` is its last; `prepare` and that are complete, RL is off."""
    tiny = make_tiny(TOOLS)
    config = parse_config({"name": "small", "rl": {"enabled": False}, "rollout": {"constrain": "both"}}, "here")
    folder = RunFolder.open(tmp_path / "run", config)
    folder.write_records("catalogue", TOOLS)
    for split in ("train", "validation", "test"):
        folder.write_records(f"tasks_{split}", [Task(id="q", prompt=(Message(role="user", content="?"),), answer="5")])
    for stage in ("prepare", "warmup"):
        tiny.model.save_pretrained(folder.model(stage))
        tiny.tokenizer.save_pretrained(folder.model(stage))
    folder.complete("prepare", 5.0, {})
    folder.close()
    return folder, tiny


def measured(stage: str, right: int, wrong: int) -> EvaluationResult:
    items = tuple(
        Item(task_id=str(n), metrics={"success": float(n < right)}, stop=StopReason.ANSWERED)
        for n in range(right + wrong)
    )
    return EvaluationResult(arm="small", seed=0, items=items, seconds=1.0, stage=stage)


def test_the_last_model_is_exported_with_what_was_measured_and_its_interval(
    run: tuple[RunFolder, SimpleNamespace], tmp_path: Path
) -> None:
    folder, _ = run
    folder.complete("warmup", 187.0, {})
    # 3 of 4 right: the mean is 75 %; of 4 draws with replacement 1 … 4 are right in over 95 % of all samples.
    folder.write_records("test_results", [measured("warmup", 3, 1)])
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", str(folder.root), "--out", str(out)])
    assert done.exit_code == 0, done.output
    card = (out / "README.md").read_text()
    assert "| warmup | accuracy % | 75 | 25 – 100 | 4 |" in card
    assert "| warmup | 3:07 |" in card
    assert "vllm serve out --served-model-name small" in card
    assert "license: apache-2.0" in card
    assert "There is no GGUF file here" in card
    assert 'rollout.constrain = "both"' in card
    assert "was not measured" not in card
    assert "nothing was measured" not in card
    assert json.loads((out / "run.json").read_text())["config"]["name"] == "small"
    assert (out / "tools.json").read_text().count("\n") == 1 + len(TOOLS) + 1
    assert [tool["token"] for tool in json.loads((out / "tools.json").read_text())["tools"]] == ["<<add>>", "<<now>>"]
    assert (out / "model.safetensors").read_bytes() == (folder.model("warmup") / "model.safetensors").read_bytes()
    with pytest.raises(ExportError, match="is there already"):
        export_run(folder.root, out)


def test_a_model_that_was_not_measured_says_so(run: tuple[RunFolder, SimpleNamespace], tmp_path: Path) -> None:
    folder, _ = run
    export_run(folder.root, tmp_path / "none", "prepare")
    assert "nothing was measured" in (tmp_path / "none" / "README.md").read_text()
    folder.write_records("test_results", [measured("warmup", 3, 1)])
    export_run(folder.root, tmp_path / "other", "prepare")
    assert "that of stage `prepare`, which was not measured" in (tmp_path / "other" / "README.md").read_text()


def test_a_run_without_a_finished_model_is_refused(run: tuple[RunFolder, SimpleNamespace], tmp_path: Path) -> None:
    folder, _ = run
    with pytest.raises(ConfigError, match=r"is not finished: stage warmup is not complete.* with --stage: prepare"):
        export_run(folder.root, tmp_path / "out")
    with pytest.raises(ConfigError, match="has no model of stage 'rl'; it has: prepare"):
        export_run(folder.root, tmp_path / "out", "rl")
    (folder.root / "stages" / "prepare.json").unlink()
    with pytest.raises(ConfigError, match="it has none yet"):
        export_run(folder.root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_cards_python_is_valid(run: tuple[RunFolder, SimpleNamespace], tmp_path: Path) -> None:
    folder, _ = run
    export_run(folder.root, tmp_path / "out", "prepare")
    plain, served = (
        part.split("```")[0] for part in (tmp_path / "out" / "README.md").read_text().split("```python")[1:]
    )
    compile(served, "served", "exec")
    there = plain.replace('from_pretrained("out")', f"from_pretrained({str(tmp_path / 'out')!r})")
    said: list[Any] = []
    exec(there, {"print": said.append})  # the card as its reader would run it
    assert isinstance(said[0], str)


def test_a_converter_that_is_not_there_is_said_before_the_run_is_read(tmp_path: Path) -> None:
    given = ["export", str(tmp_path / "no run"), "--out", str(tmp_path / "out"), "--gguf", str(tmp_path)]
    done = CliRunner().invoke(app, given)
    assert isinstance(done.exception, GgufError)
    assert "there is no convert_hf_to_gguf.py in" in str(done.exception)


def test_the_card_names_the_gguf_file(run: tuple[RunFolder, SimpleNamespace], tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    pytest.importorskip("sentencepiece", reason="the package sentencepiece is not installed")
    folder, _ = run
    fake = Path(__file__).with_name("fake_converter.py")
    export_run(folder.root, tmp_path / "out", "prepare", fake, "f32")
    assert (tmp_path / "out" / "small-f32.gguf").is_file()
    assert "llama-server -m out/small-f32.gguf --jinja" in (tmp_path / "out" / "README.md").read_text()
