"""A run with an imported catalogue: operations of a service beside Python functions, each run as its origin says."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tirkit.config import RunConfig, parse_config
from tirkit.pipeline.run import open_run, run_stages
from tirkit.rollout.policy import RolloutRequest, ScriptedPolicy, oracle
from tirkit.tools.http_secrets import SecretError
from tirkit.tools.imports import update_catalogue
from tirkit.tools.origin import find_tools
from tirkit.types import ToolErrorKind, Trajectory

DOUBLE = '''
from tirkit.tools.functions import read_only


@read_only
def double(n: int) -> int:
    """Doubles a number.

    Args:
        n: the number
    """
    return 2 * n
'''
NUMBER = {"name": "n", "in": "query", "required": True, "schema": {"type": "integer"}}
PATHS = {
    "/half": {"get": {"operationId": "halve", "summary": "Halves a number.", "parameters": [NUMBER]}},
    "/n": {"delete": {"operationId": "forget", "summary": "Forgets a number.", "parameters": [NUMBER]}},
}
ASKED = {"double": 21, "halve": 84, "forget": 1}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        body = json.dumps({"half": 42, "sent": self.headers["x-key"]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    vars(server)["asked"] = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def configured(folder: Path, port: int) -> RunConfig:
    (folder / "my_tools.py").write_text(DOUBLE)
    server = {"url": f"http://127.0.0.1:{port}"}
    (folder / "api.json").write_text(json.dumps({"openapi": "3.1.0", "servers": [server], "paths": PATHS}))
    for source, headers in ((folder / "my_tools.py", {}), (folder / "api.json", {"X-Key": "{API_KEY}"})):
        found = find_tools(str(source), headers=headers)
        update_catalogue(folder / "tools.jsonl", found.tools, found.source, write=True)
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
        "catalogue": {"path": str(folder / "tools.jsonl")},
        "tasks": {"path": str(folder / "questions.jsonl"), "num_validation": 1, "num_test": 1},
        "internalise": {"enabled": False},
        "warmup": {"enabled": False},
        "rl": {"enabled": False},
    }
    return parse_config(sections, "test")


def rolled_out(folder: Path) -> list[Trajectory]:
    """Rollouts that play the gold."""
    ctx = open_run(folder)
    tasks = [task for split in ("train", "validation", "test") for task in ctx.sources.tasks[split]]
    policy = ScriptedPolicy(oracle(ctx.dialect), ctx.renderer)
    return ctx.rollout(ctx.renderer, policy)([RolloutRequest(task, 0, 0) for task in tasks])


def test_a_catalogue_file_is_enough_to_run_its_tools(
    tmp_path: Path,
    service: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("API_KEY", "key-of-mine")
    run_stages(configured(tmp_path, service.server_address[1]), tmp_path / "run", ["prepare"])
    said = " ".join(capsys.readouterr().err.split())
    assert "neither read-only nor in catalogue.allow, and will be answered that they cannot be run: forget" in said
    trajectories = rolled_out(tmp_path / "run")
    got = {result.name: result for t in trajectories for turn in t.turns for result in turn.results}
    assert (got["double"].content, got["double"].error) == ("42", None)
    assert (got["halve"].content, got["halve"].error) == ('{"half": 42, "sent": "[redacted]"}', None)
    assert got["forget"].error is ToolErrorKind.UNAVAILABLE
    assert set(vars(service)["asked"]) == {"/half?n=84"}
    stored = "".join(t.model_dump_json() for t in trajectories)
    stored += "".join(f.read_text(errors="replace") for f in (tmp_path / "run").rglob("*.json*"))
    assert "halve" in stored
    assert "key-of-mine" not in stored
    assert not any(
        "127.0.0.1" in turn.text + "".join(m.content for m in turn.reply) for t in trajectories for turn in t.turns
    )
    monkeypatch.delenv("API_KEY")
    with pytest.raises(SecretError, match="tool 'halve' needs the environment variable API_KEY"):
        _ = open_run(tmp_path / "run").toolbox
