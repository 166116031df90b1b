"""The tutorial's chain at a tiny size: an MCP server, its questions, a run, an endpoint, two clients of it."""

import asyncio
import contextlib
import json
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer
import uvicorn
from typer.testing import CliRunner

from examples import weather_agent
from tirkit.cli import app
from tirkit.pipeline.serve import load_served
from tirkit.serving.chat import Chat
from tirkit.serving.server import chat_app

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
TASKS = ROOT / "examples" / "weather_tasks.jsonl"
TINY = [
    "tasks.num_validation=2",
    "tasks.num_test=4",
    "internalise.steps=1",
    "warmup.steps=1",
    "rollout.max_new_tokens=4",
]


@contextlib.contextmanager
def serving(run: Path, scripted: Path | None) -> Iterator[str]:
    chat = Chat(load_served(str(run), scripted=scripted))
    server = uvicorn.Server(uvicorn.Config(chat_app(chat), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(10)
        chat.close()


def tirkit(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def commands() -> list[list[str]]:
    """The words of every command in the tutorial's bash blocks, without what redirects them."""
    blocks = re.findall(r"^```bash\n(.*?)^```", TUTORIAL, re.M | re.S)
    said = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [list(takewhile(lambda word: word not in (">", "&"), words)) for words in said if words]


def test_a_server_becomes_a_model_that_two_clients_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = shlex.join([sys.executable, str(ROOT / "examples" / "mcp_server.py")])
    tools, questions, run = (str(tmp_path / name) for name in ("weather.jsonl", "questions.jsonl", "run"))
    assert "9 tools (8 read-only), 0 left out" in tirkit("tools", "import", f"mcp:{server}", "--out", tools)
    assert "40 questions" in tirkit("questions", tools, "--out", questions, "--num", "40")
    config = str(ROOT / "configs" / "tinr_u" / "own_tools.toml")
    tirkit("run", config, f"catalogue.path={tools}", f"tasks.path={questions}", "--out", run, *TINY)
    assert "accuracy" in tirkit("eval", run, "--questions", str(TASKS), "--limit", "2")
    tasks = [json.loads(line) for line in TASKS.read_text().splitlines()]
    assert len(tasks) == 20
    with serving(Path(run), TASKS) as url:  # the gold, played: every part but the model is right
        played = asyncio.run(weather_agent.ask_all(url, tasks))
    assert {name: sum(one.right for one in of) for name, of in played.items()} == {"openai": 20, "openai-agents": 20}
    shown = "\n".join(weather_agent.lines(played))
    assert "openai        right  get_sunrise(city=Lima) → 06:42" in shown
    with serving(Path(run), None) as url:  # a model of two steps, four tokens a turn: wrong, and said so
        asked = asyncio.run(weather_agent.ask_all(url, tasks[:2]))
    assert [one.right for of in asked.values() for one in of] == [False] * 4


def judged(task: int, calls: list[weather_agent.Call], reply: str) -> bool:
    async def ask(_: str) -> tuple[list[weather_agent.Call], str]:
        return calls, reply

    given = json.loads(TASKS.read_text().splitlines()[task])
    return asyncio.run(weather_agent.outcome(given, ask, {"get_wind": {"unit": "km/h"}})).right


def test_what_counts_as_right() -> None:
    wind = {"city": "Quito", "day": "Wednesday"}
    assert judged(6, [("get_wind", wind)], "It is 50 km/h.")
    assert judged(6, [("get_wind", wind | {"unit": "km/h"})], "50 km/h")
    assert not judged(6, [("get_wind", wind | {"unit": "m/s"})], "50 km/h")
    assert not judged(6, [("get_wind", wind)], "50")
    assert not judged(6, [("get_wind", wind)] * 2, "50 km/h")
    assert not judged(6, [], "50 km/h")
    two: list[weather_agent.Call] = [
        ("get_sunrise", {"city": "Osaka"}),
        ("get_temperature", {"day": "Monday", "city": "Quito"}),
    ]
    assert judged(18, two, "27 C and 07:52")
    assert not judged(18, two, "27 C")
    assert judged(19, [], "Bye.")
    assert not judged(19, two, "You are welcome.")


def test_the_tutorials_commands_exist() -> None:
    said = commands()
    root: Any = typer.main.get_command(app)
    for words in (words for words in said if words[0] == "tirkit"):
        command, rest = root, words[1:]
        while hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[1], rest)  # raises on what it does not take
    named = {word for words in said for word in words if word.startswith(("examples/", "configs/", "results/"))}
    assert {"examples/weather_agent.py", "configs/tinr_u/own_tools.toml"} <= named
    assert [word for word in named if not (ROOT / word).exists()] == []
    chain = dict.fromkeys(words[1] for words in said if words[0] == "tirkit")
    assert list(chain) == ["tools", "questions", "run", "eval", "inspect", "serve"]
