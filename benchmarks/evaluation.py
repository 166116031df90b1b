"""A long evaluation by hand: `python -m benchmarks.evaluation` (10,000 questions, an endpoint that answers by script).

`tirkit eval` is killed twice on its way and told to go on each time. Prints questions a second, the memory of the
evaluating process on the way, and whether a question was lost, stored twice or asked more often than the kills explain.
The questions are in BFCL's form, one function each; the endpoint is in a process of its own and takes `--delay` s.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

KILL_AT = (0.3, 0.6)  # shares of the questions that are stored when the evaluation is killed
CALL = '<tool_call>\n{"name": "square", "arguments": {"number": %s}}\n</tool_call>'
BATCH = 64  # questions that are stored together: what a kill may cost


@dataclass
class Scripted:
    """The endpoint: the call that the question names. Counts what it was asked."""

    delay_s: float
    asked: Any = field(default_factory=lambda: multiprocessing.get_context("spawn").Value("i", 0))

    async def __call__(self, scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        with self.asked.get_lock():
            self.asked.value += 1
        await asyncio.sleep(self.delay_s)
        number = re.findall(r"square of (\d+)", json.loads(body)["messages"][-1]["content"])[-1]
        message = {"role": "assistant", "content": CALL % number}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        reply = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(reply)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply.encode()})


def serve(endpoint: Scripted, port: int) -> None:
    """Serve until killed."""
    uvicorn.run(endpoint, port=port, log_level="error")  # type: ignore[arg-type]


def write_questions(data: Path, count: int) -> None:
    """BFCL's files, with `count` questions of the category simple_python."""
    parameters = {"type": "dict", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
    function = {"name": "square", "description": "The square of a number.", "parameters": parameters}
    folder, name = data / "bfcl", "BFCL_v4_simple_python.json"
    (folder / "possible_answer").mkdir(parents=True)
    with (folder / name).open("w") as questions, (folder / "possible_answer" / name).open("w") as answers:
        for n in range(count):
            text = f"What is the square of {n}?"
            record = {"id": f"q{n}", "question": [[{"role": "user", "content": text}]], "function": [function]}
            questions.write(json.dumps(record) + "\n")
            answer = {"id": f"q{n}", "ground_truth": [{"square": {"number": [n]}}]}
            answers.write(json.dumps(answer) + "\n")


@dataclass
class Watched:
    """One start of the evaluation: (seconds, questions stored, MB of memory) on the way."""

    points: list[tuple[float, int, float]] = field(default_factory=list)

    def watch(self, command: list[str], records: Path, stop_at: int, asked: Callable[[], int]) -> int | None:
        """Run until `stop_at` questions are stored and some more asked, then kill; the exit code where it ended by
        itself.
        """
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OPENAI_API_KEY": "none"}
        )
        lines = _Lines(records)
        while (code := process.poll()) is None:
            self.points.append((time.perf_counter(), lines.count(), _resident_mb(process.pid)))
            if self.points[-1][1] >= stop_at:
                before = asked()
                while asked() < before + 5 and process.poll() is None:
                    time.sleep(0.005)
                process.kill()
                process.wait()
                return None
            time.sleep(0.2)
        return code

    def rate(self) -> float:
        """Questions a second, from the first stored to the last."""
        moving = [point for point in self.points if point[1] > self.points[0][1]]
        (start, first, _), (end, last, _) = moving[0], next(p for p in moving if p[1] == moving[-1][1])
        return (last - first) / (end - start) if end > start else float("nan")


class _Lines:
    """Counts the lines of a file that grows."""

    def __init__(self, path: Path):
        self._path, self._at, self._count = path, 0, 0

    def count(self) -> int:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._at)
                new = file.read()
            self._at, self._count = self._at + len(new), self._count + new.count(b"\n")
        return self._count


def _resident_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0) / 1024


def measure(count: int, delay_s: float, in_flight: int, root: Path) -> str:
    """What came of it, in words. Raises AssertionError where a question is lost or stored twice."""
    write_questions(root / "data", count)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    endpoint = Scripted(delay_s)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(endpoint, port), daemon=True)
    server.start()
    while socket.socket().connect_ex(("127.0.0.1", port)):
        time.sleep(0.1)
    command = [sys.executable, "-m", "tirkit", "eval", "--model", "m", "--base-url", f"http://127.0.0.1:{port}/v1"]
    command += ["--benchmark", "bfcl", "--data", str(root / "data"), "--out", str(root / "out")]
    command += ["--concurrency", str(in_flight)]
    records = root / "out" / "records" / "bfcl.jsonl"
    starts: list[Watched] = []
    for share in (*KILL_AT, float("inf")):
        starts.append(Watched())
        stop_at = int(share * count) if share < 1 else count + 1
        code = starts[-1].watch(command, records, stop_at, lambda: endpoint.asked.value)
        assert code == (0 if share > 1 else None), f"ended with {code}"
    server.kill()
    stored = [json.loads(line) for line in records.read_text().splitlines()]
    assert sorted(one["case_id"] for one in stored) == sorted(f"q{n}" for n in range(count)), "lost or repeated"
    assert all(one["score"]["right"] == 1 for one in stored)
    return _said(count, endpoint.asked.value, starts)


def _said(count: int, asked: int, starts: list[Watched]) -> str:
    again = asked - count
    assert again <= BATCH * len(KILL_AT), f"{again} questions were asked again"
    lines = [f"{count:,} questions, all stored once and right; killed {len(KILL_AT)} times, {again} asked again"]
    for number, start in enumerate(starts, start=1):
        points = [point for point in start.points if point[1] > start.points[0][1]]
        memory = [f"{mb:.0f} MB at {stored:,}" for _, stored, mb in points[:: max(1, len(points) // 4)] if mb]
        lines.append(f"start {number}: {start.rate():.0f} questions/s; {', '.join(memory)}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A long evaluation, killed and gone on with.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds an answer takes")
    parser.add_argument("--in-flight", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(measure(arguments.count, arguments.delay, arguments.in_flight, Path(folder)), flush=True)
