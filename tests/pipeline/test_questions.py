"""Questions written for a catalogue by templates and by an endpoint; killed, malformed, over budget."""

import itertools
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tirkit.config import ConfigError, EndpointSection
from tirkit.methods.autotraj.budget import Caps
from tirkit.methods.questions.check import Rejection
from tirkit.methods.questions.slots import Shares
from tirkit.pipeline.questions import BARREN, Outcome, QuestionOptions, log_path, write_questions
from tirkit.rollout.policy import RolloutError
from tirkit.tools.questions import QuestionError, load_tasks

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NAMES = [f"tool_{i}" for i in range(12)]
PLAIN = QuestionOptions(num=30, size=5)
FUNCTIONS = '''
from tirkit.tools.functions import read_only

@read_only
def double(number: int) -> int:
    """Doubles a number.

    Args:
        number: any
    """
    return 2 * number

def destroy(path: str) -> None:
    """Destroys a file without mercy.

    Args:
        path: of the file
    """
    open(path + ".destroyed", "w").close()
'''
Teacher = Callable[[str, int], str]


def test_every_file_of_questions_has_a_log_of_its_own() -> None:
    names = ("q.jsonl", "q.json", "q.train", "q.test", "q")
    assert len({log_path(Path(name)) for name in names[1:]}) == 4
    assert log_path(Path("a/q.jsonl")) == Path("a/q.log.jsonl")


@pytest.fixture
def catalogue(tmp_path: Path) -> str:
    path = tmp_path / "tools.jsonl"
    tools = [{"name": n, "description": f"Gives the {n[5:]}th fact about a city.", "parameters": CITY} for n in NAMES]
    path.write_text("\n".join(map(json.dumps, tools)))
    return str(path)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Teacher], QuestionOptions]]:
    """Options that ask an endpoint, which answers a prompt and its seed as the teacher does; status 400 for ""."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    servers: list[ThreadingHTTPServer] = []

    def start(teacher: Teacher) -> QuestionOptions:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                text = teacher(body["messages"][-1]["content"], body["seed"])
                content = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()
                self.send_response(200 if text else 400)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        endpoint = EndpointSection(base_url=f"http://127.0.0.1:{server.server_port}/v1", concurrency=2)
        return replace(PLAIN, teacher="wise", endpoint=endpoint)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def wise(prompt: str, seed: int) -> str:
    """A good answer to what is asked; equal prompts and seeds get equal ones."""
    rng, lines = random.Random(seed), []
    for number, difficulty, need in re.findall(r"^(\d+)\. (easy|hard), needs (.*)$", prompt, re.MULTILINE):
        calls = [
            {"name": n, "arguments": {"city": f"City{rng.randrange(10**6)}"}} for n in re.findall(r"tool_\d+", need)
        ]
        words = [call["arguments"]["city"] for call in calls] + [f"w{rng.randrange(10**6)}" for _ in range(6)]
        line = {"number": int(number), "question": f"{difficulty} {' '.join(words)}?", "calls": calls}
        lines.append(json.dumps(line if calls else line | {"reply": "Yes."}))
    return "\n".join(lines)


def written(path: Path, catalogue: str, options: QuestionOptions) -> Outcome:
    outcome = write_questions(catalogue, path, options)
    assert load_tasks(path, NAMES).tasks == outcome.tasks
    assert load_tasks(path, NAMES).issues == ()
    return outcome


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_templates_fill_a_file_that_can_grow(catalogue: str, tmp_path: Path) -> None:
    outcome = written(tmp_path / "a.jsonl", catalogue, PLAIN)
    assert (len(outcome.tasks), outcome.stopped, outcome.unasked) == (30, "", ())
    assert all(task.calls_only for task in outcome.tasks)  # nothing can run these tools
    assert len({task.kind for task in outcome.tasks}) == 6
    first = (tmp_path / "a.jsonl").read_text()
    written(tmp_path / "a.jsonl", catalogue, replace(PLAIN, num=45))
    written(tmp_path / "b.jsonl", catalogue, replace(PLAIN, num=45))
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    assert (tmp_path / "a.jsonl").read_text().startswith(first)
    other = written(tmp_path / "a.jsonl", catalogue, replace(PLAIN, num=50, seed=1))
    assert [task.id for task in other.tasks][44:46] == ["templates-0-8-5", "templates-1-0-1"]


def test_whatever_a_kill_leaves_is_gone_on_from(
    catalogue: str, tmp_path: Path, serve: Callable[[Teacher], QuestionOptions]
) -> None:
    options = serve(wise)
    whole = tmp_path / "whole.jsonl"
    written(whole, catalogue, options)
    text, log = whole.read_bytes(), log_path(whole).read_bytes()
    rng, path = random.Random(0), tmp_path / "q.jsonl"
    for _ in range(8):
        cut = rng.randrange(len(text) + 1)
        path.write_bytes(text[:cut])
        # A batch is logged after its questions are stored: of those that are stored whole the last may be missing.
        whole_lines = text[: text.rfind(b"\n", 0, cut) + 1]
        stored = [b for b in range(6) if whole_lines.count(b"wise-0-%d-" % b) == text.count(b"wise-0-%d-" % b)]
        logged = log.splitlines(keepends=True)[: max(0, len(stored) - rng.randrange(2))]
        log_path(path).write_bytes(b"".join(logged)[: rng.choice((-3, None))])
        written(path, catalogue, options)
        assert path.read_bytes() == text


def test_what_is_there_stays_where_the_teacher_answers_otherwise_the_second_time(
    catalogue: str, tmp_path: Path, serve: Callable[[Teacher], QuestionOptions]
) -> None:
    path, answers = tmp_path / "q.jsonl", itertools.count()
    options = serve(lambda prompt, _: wise(prompt, next(answers)))
    written(path, catalogue, options)
    first = path.read_text().splitlines(keepends=True)[:13]
    path.write_text("".join(first))
    log_path(path).unlink()
    assert len(written(path, catalogue, options).tasks) == 30  # no id twice
    assert path.read_text().splitlines(keepends=True)[:13] == first


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process")
def test_killed_again_and_again_it_ends_with_the_same_questions(
    catalogue: str, tmp_path: Path, serve: Callable[[Teacher], QuestionOptions]
) -> None:
    def slow(prompt: str, seed: int) -> str:
        time.sleep(0.02)
        return wise(prompt, seed)

    options, path = serve(slow), tmp_path / "q.jsonl"
    written(tmp_path / "whole.jsonl", catalogue, options)
    kills = 0
    for _ in range(4):
        before, ended = size(path), 0
        child = os.fork()
        if child == 0:
            write_questions(catalogue, path, options)
            os._exit(0)
        while size(path) == before and not ended:
            time.sleep(0.002)
            ended, _ = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)
            kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert kills >= 2
    written(path, catalogue, options)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_a_malformed_teacher_writes_is_counted_and_left_out(
    catalogue: str, tmp_path: Path, serve: Callable[[Teacher], QuestionOptions]
) -> None:
    def sloppy(prompt: str, seed: int) -> str:
        lines = wise(prompt, seed).splitlines()
        lines[0] = "Certainly! Here are your questions:"
        lines[1] = lines[1].replace('"city"', '"town"').replace('"reply"', '"answer"')
        return "\n".join(lines[:-1])

    options = replace(serve(sloppy), shares=Shares(several=0, no_tool=0))
    outcome = written(tmp_path / "q.jsonl", catalogue, options)
    assert len(outcome.tasks) == 30
    # 5 slots a batch: one line is no JSON, one has a parameter that no schema knows, the last is not written.
    assert len(outcome.batches) == 15
    for batch in outcome.batches:
        assert batch.rejected == {str(Rejection.UNREADABLE): 1, str(Rejection.MISSING): 1, str(Rejection.ARGUMENTS): 1}
    lines = "\n".join(outcome.lines(Caps(price_in=1e6)))
    assert "rejected 15: not a line of the form asked for" in lines
    assert re.search(r"asked 15 times: [\d,]+ tokens read, [\d,]+ written, cost \d+", lines)


def test_a_useless_teacher_is_given_up(
    catalogue: str, tmp_path: Path, serve: Callable[[Teacher], QuestionOptions]
) -> None:
    outcome = write_questions(catalogue, tmp_path / "q.jsonl", serve(lambda *_: "I cannot do that."))
    assert outcome.stopped == f"0 of 30: the last {BARREN} batches gave 0 questions"
    assert len(outcome.batches) == BARREN
    same = serve(lambda prompt, _: wise(prompt, 0))  # the same questions for the same tools: near duplicates
    outcome = written(tmp_path / "r.jsonl", catalogue, replace(same, num=500, shares=Shares(0, 0, 0)))
    assert outcome.stopped.startswith(f"{len(outcome.tasks)} of 500")
    assert sum(batch.rejected.get(str(Rejection.DUPLICATE), 0) for batch in outcome.batches) >= 4 * BARREN


def test_a_budget_and_a_silent_endpoint_end_it_with_what_there_is(
    catalogue: str, tmp_path: Path, serve: Callable[[Teacher], QuestionOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = tmp_path / "q.jsonl", 0

    def moody(prompt: str, seed: int) -> str:
        nonlocal asked
        asked += 1
        return wise(prompt, seed) if asked <= 3 else ""

    capped = replace(serve(wise), caps=Caps(requests=3))
    outcome = write_questions(catalogue, path, capped)
    assert outcome.stopped == "15 of 30: the budget is used up"
    assert write_questions(catalogue, path, capped).stopped == outcome.stopped  # what was spent before counts
    with pytest.raises(RolloutError, match=r"1 requests to wise failed .* 15 questions are stored"):
        write_questions(catalogue, tmp_path / "r.jsonl", replace(serve(wise), endpoint=serve(moody).endpoint, num=20))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        write_questions(catalogue, path, capped)


def test_functions_that_change_nothing_are_run_for_their_answers(tmp_path: Path) -> None:
    file, path = tmp_path / "mine.py", tmp_path / "q.jsonl"
    file.write_text(FUNCTIONS)
    outcome = write_questions(str(file), path, replace(PLAIN, shares=Shares(several=0, no_tool=0)))
    for task in outcome.tasks:
        call = task.gold_calls[0]  # type: ignore[index]
        if call.name == "double":
            assert (task.answer, task.calls_only) == (str(2 * call.arguments["number"]), False)  # type: ignore[operator]
        else:
            assert (task.answer, task.calls_only) == (None, True)
    assert {call.name for task in outcome.tasks for call in task.gold_calls or ()} == {"double", "destroy"}
    assert not list(Path().glob("*.destroyed"))


def test_a_file_of_something_else_is_not_written_to(catalogue: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"some": "thing"}\n')
    with pytest.raises(QuestionError, match=r"q\.jsonl:1 is not a question"):
        write_questions(catalogue, path, PLAIN)
    assert path.read_text() == '{"some": "thing"}\n'
    hand_made: dict[str, Any] = {"id": "mine", "prompt": [{"role": "user", "content": "hello there"}], "answer": "hi"}
    path.write_text(json.dumps(hand_made) + "\n")
    assert written(path, catalogue, PLAIN).tasks[0].id == "mine"
