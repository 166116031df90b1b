"""A benchmark over real HTTP, from the command line's function to a server of ours that plays the gold."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tirkit.cli import app
from tirkit.evaluation.benchmarks.metatool import METATOOL
from tirkit.pipeline.serve import load_served
from tirkit.serving.chat import Chat
from tirkit.serving.server import chat_app

DATA = Path(__file__).parents[1] / "evaluation" / "benchmarks" / "data"


def test_an_endpoint_is_asked_and_a_dead_one_is_gone_on_with(
    tmp_path: Path, serve: Callable[[Any], AbstractContextManager[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(f"{case.task.model_dump_json()}\n" for case in METATOOL.load(DATA).cases))
    chat = Chat(load_served("embedded", scripted=tasks))
    with serve(chat_app(chat)) as url:
        command = ["eval", "--model", "scripted:text", "--base-url", f"{url}/v1", "--benchmark", "metatool"]
        done = CliRunner().invoke(app, [*command, "--data", str(DATA), "--out", str(tmp_path / "out")])
    chat.close()
    assert done.exit_code == 0, done.exception
    assert "| metatool | 2 | 100.0 ± 0.0 |" in done.stdout
    assert "overlap with training not checked" in done.stdout
    # Nobody listens any more, and nobody is asked: all was stored.
    again = CliRunner().invoke(app, [*command, "--data", str(DATA), "--out", str(tmp_path / "out")])
    assert again.stdout == done.stdout
