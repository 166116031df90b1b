"""`tirkit serve` as a person runs it, and what it says where it cannot."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tirkit.config import ConfigError, RunConfig, parse_config
from tirkit.pipeline.run import run_stages
from tirkit.pipeline.serve import Access, load_served
from tirkit.serving.chat import Chat
from tirkit.serving.server import chat_app
from tirkit.tools.questions import QuestionError
from tirkit.types import Task

CONFIG = {
    "catalogue": {"num_tools": 16},
    "tasks": {"num_train": 6, "num_validation": 3, "num_test": 6},
    "evaluate": {"general_items": 0},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is prepared: a model whose vocabulary has the tools, and tasks."""
    root = tmp_path_factory.mktemp("run") / "r"
    config: RunConfig = parse_config(CONFIG, "test")
    run_stages(config, root, ["prepare"])
    return root


def test_a_runs_script_makes_its_gold_calls(run: Path, serve: Callable[[Any], AbstractContextManager[str]]) -> None:
    lines = (run / "records" / "tasks_test.jsonl").read_text().splitlines()
    tasks = [Task.model_validate_json(line) for line in lines]
    chat = Chat(load_served(str(run), "prepare", run / "records" / "tasks_test.jsonl"))
    with serve(chat_app(chat)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        task = next(task for task in tasks if task.gold_calls)
        completion = client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": task.prompt[-1].content}]
        )
    chat.close()
    (call,) = completion.choices[0].message.tool_calls or []
    assert call.function.name == task.gold_calls[0].name  # type: ignore[union-attr, index]
    assert json.loads(call.function.arguments) == task.gold_calls[0].arguments  # type: ignore[union-attr, index]


def test_the_command_serves_the_embedded_model() -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    port = _free_port()
    command = [sys.executable, "-m", "tirkit", "serve", "embedded", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == f"embedded and embedded:text at http://127.0.0.1:{port}/v1\n"
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=8)
        messages: list[Any] = [{"role": "user", "content": "What is 12 + 5?"}]
        completion = client.chat.completions.create(model="embedded:text", messages=messages, temperature=0)
        assert completion.usage is not None
        assert completion.usage.completion_tokens > 0
    finally:
        server.terminate()
        assert server.wait(20) in (0, -15)


@pytest.mark.parametrize(
    ("access", "part"),
    [
        ({"host": "0.0.0.0"}, "lets other machines in: name a key"),
        ({"host": "::"}, "lets other machines in"),
        ({"host": "my.host"}, "lets other machines in"),
        ({"key_env": "NO_SUCH"}, "variable NO_SUCH holds no key"),
        ({"key_env": "BAD"}, "variable BAD holds no key"),
        ({"key_env": "GOOD", "key_file": Path("x")}, "give one"),
        ({"key_file": Path("nowhere")}, "nowhere cannot be read"),
    ],
)
def test_who_may_ask_must_be_clear(monkeypatch: pytest.MonkeyPatch, access: dict[str, Any], part: str) -> None:
    monkeypatch.setenv("BAD", "two words")
    monkeypatch.setenv("GOOD", "sesame")
    with pytest.raises(ConfigError, match=part):
        Access(**access).key()


def test_keys_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOD", "sesame")
    (tmp_path / "key").write_text("sesame-7\n")
    assert Access("0.0.0.0", key_env="GOOD").key() == "sesame"
    assert Access("0.0.0.0", key_file=tmp_path / "key").key() == "sesame-7"
    assert {Access("0.0.0.0", anyone=True).key(), Access("localhost").key(), Access("127.0.0.9").key()} == {""}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_mistakes_are_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no model of stage 'rl'; it has: prepare"):
        load_served(str(run), "rl")
    with pytest.raises(ConfigError, match=r"is not finished: stage rl is not complete.* with --stage: prepare"):
        load_served(str(run))  # a run that was stopped half-way is not served as if it were done
    with pytest.raises(QuestionError, match=r"nowhere\.jsonl cannot be read"):
        load_served(str(run), "prepare", tmp_path / "nowhere.jsonl")
    (tmp_path / "tasks.jsonl").write_text("{}\n")
    with pytest.raises(QuestionError, match=r"no usable question in .*tasks\.jsonl:1: "):
        load_served(str(run), "prepare", tmp_path / "tasks.jsonl")
    good = (run / "records" / "tasks_test.jsonl").read_text().splitlines()[0]
    (tmp_path / "tasks.jsonl").write_text(f"{good}\n{{}}\n")
    with pytest.raises(ConfigError, match=r"1 bad tasks: .*tasks\.jsonl:2: "):
        load_served(str(run), "prepare", tmp_path / "tasks.jsonl")
