"""`tirkit serve` under load: 64 clients at a time, of whom some break the rules; and its throughput against the policy.

The server is a process of its own on the embedded model with random tool rows. Each kind of request has the one outcome
it must have; memory is read while it goes on. Then the good requests alone, over HTTP and given to the policy directly.
"""

import asyncio
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Arm, Result, compare
from tirkit.config import parse_config
from tirkit.pipeline.run import run_stages
from tirkit.pipeline.serve import load_served
from tirkit.rollout.loop import stable_seed
from tirkit.rollout.policy import GenerateRequest
from tirkit.serving.api import ChatRequest
from tirkit.serving.chat import Chat

CLIENTS, REQUESTS, WARM_UP, TIMED, TOKENS = 64, 1000, 128, 128, 16
HUGE = 4_000_000  # four times what a body may have
# Of each kind: how many in 20, and the one outcome it must have.
KINDS = {
    "whole": (10, "200"),
    "streamed": (4, "200 [DONE]"),
    "malformed JSON": (1, "400"),
    "unknown tool": (1, "400"),
    "huge body": (1, "413"),
    "dropped": (1, "left"),
    "slow writer": (1, "200"),
    "slow reader": (1, "200 [DONE]"),
}
CONFIG = {
    "name": "load",
    "catalogue": {"num_tools": 32},
    "tasks": {"num_train": 6, "num_validation": 3, "num_test": 6},
    "rollout": {"max_batch": CLIENTS},
    "evaluate": {"general_items": 0},
}


def run(repeats: int) -> list[Result]:
    """The load once; the comparison `repeats` times."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        run_stages(parse_config(CONFIG, "benchmark"), root, ["prepare"])
        with _server(root) as server:
            loaded = asyncio.run(_load(server))
            timings = compare(f"{TIMED} requests", [_over_http(server), _directly(root)], repeats)
    setting = f"{TIMED} requests of {TOKENS} tokens, {CLIENTS} at a time"
    return [Result("server load", setting, timings, notes=loaded, items=TIMED * TOKENS, unit="tokens")]


@dataclass
class _Server:
    port: int
    pid: int

    @property
    def megabytes(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


@contextmanager
def _server(root: Path) -> Iterator[_Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    patient = ["--max-request-s", "3600", "--read-s", "600"]  # a busy machine is no fault of the clients
    command = [sys.executable, "-m", "tirkit", "serve", str(root), "--stage", "prepare", "--port", str(port), *patient]
    process = subprocess.Popen(command)
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if process.poll() is not None:
                raise RuntimeError("the server ended")
            time.sleep(0.2)
        yield _Server(port, process.pid)
        assert process.poll() is None, "the server must outlive the load"
    finally:
        process.terminate()
        process.wait()


def _asked(number: int, **fields: Any) -> dict[str, Any]:
    question = f"What is {number} + {number % 7}?"
    messages = [{"role": "user", "content": question}]
    return {"model": "load:text", "messages": messages, "seed": number, "max_tokens": TOKENS} | fields


async def _load(server: _Server) -> str:
    """What came of the load, in words. AssertionError where an outcome is not the one it must be."""
    drawn = random.Random(0)
    names, weights = list(KINDS), [weight for weight, _ in KINDS.values()]
    jobs = list(enumerate(drawn.choices(names, weights, k=REQUESTS)))
    await _all(server, list(enumerate(["whole"] * WARM_UP)))  # caches and pools take their size
    memory = [server.megabytes]
    came: Counter[tuple[str, str]] = Counter()
    started = time.perf_counter()
    for half in (jobs[: REQUESTS // 2], jobs[REQUESTS // 2 :]):
        came += await _all(server, half)
        memory.append(server.megabytes)
    seconds = time.perf_counter() - started
    wrong = {key: count for key, count in came.items() if KINDS[key[0]][1] != key[1]}
    assert not wrong, wrong
    counts = ", ".join(f"{count} {kind} → {outcome}" for (kind, outcome), count in sorted(came.items()))
    sizes = ", ".join(f"{size:.0f}" for size in memory)
    return (
        f"Load: {REQUESTS:,} requests, {CLIENTS} at a time, {seconds:.0f} s; {counts}. Memory of the server, MB, after "
        f"{WARM_UP} requests to warm up, after half and after all: {sizes}."
    )


async def _all(server: _Server, jobs: Sequence[tuple[int, str]]) -> Counter[tuple[str, str]]:
    """How often which kind had which outcome."""
    rest, came = iter(jobs), Counter[tuple[str, str]]()

    async def client() -> None:
        for number, kind in rest:
            came[kind, await _Exchange(server.port, number, kind).outcome()] += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return came


@dataclass
class _Exchange:
    """One request on a connection of its own."""

    port: int
    number: int
    kind: str
    answer: bytearray = field(default_factory=bytearray)

    async def outcome(self) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            await self._send(writer)
            if self.kind == "dropped":
                await asyncio.sleep(0.05)
                return "left"
            while part := await reader.read(256 if self.kind == "slow reader" else 1 << 16):
                self.answer += part
                await asyncio.sleep(0.02 if self.kind == "slow reader" else 0)
        finally:
            writer.close()
        status = self.answer.split(b" ", 2)[1].decode()
        return status + (" [DONE]" if b"data: [DONE]\n\n" in self.answer else "")

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        body = self._body()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode())
        step = 40 if self.kind == "slow writer" else 1 << 16
        for at in range(0, len(body), step):
            writer.write(body[at : at + step])
            await writer.drain()
            await asyncio.sleep(0.05 if self.kind == "slow writer" else 0)

    def _body(self) -> bytes:
        if self.kind == "malformed JSON":
            return json.dumps(_asked(self.number)).encode()[:-9]
        if self.kind == "huge body":
            return json.dumps(_asked(self.number, user="x" * HUGE)).encode()
        if self.kind == "unknown tool":
            tool = {"type": "function", "function": {"name": "no such tool"}}
            return json.dumps(_asked(self.number, model="load", tools=[tool])).encode()
        stream = self.kind in ("streamed", "slow reader", "dropped")
        return json.dumps(_asked(self.number, stream=stream, **self._name())).encode()

    def _name(self) -> dict[str, str]:
        """Both names of the model are asked for."""
        return {} if self.number % 2 else {"model": "load"}


def _over_http(server: _Server) -> Arm:
    jobs = [(2 * number + 1, "whole") for number in range(TIMED)]  # odd numbers ask for the text
    return Arm("tirkit serve", lambda: asyncio.run(_all(server, jobs)))


def _directly(root: Path) -> Arm:
    served = load_served(str(root), "prepare")
    chat = Chat(served)
    jobs = [chat.prepare(ChatRequest.model_validate(_asked(2 * number + 1))) for number in range(TIMED)]
    chat.close()
    requests = [
        GenerateRequest(
            job.task,
            (),
            job.conversation.messages,
            job.conversation.ids,
            stable_seed(stable_seed(job.seed, 0), 0),
            job.budget,
            temperature=job.temperature,
        )
        for job in jobs
    ]
    return Arm("the policy directly", lambda: served.policy.generate(requests))
