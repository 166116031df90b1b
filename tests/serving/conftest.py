"""Real HTTP servers on free ports, and an endpoint that fails as told."""

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import uvicorn

from tirkit.rollout.policy import GenerateRequest, Generation, Policy, ScriptedPolicy, Session
from tirkit.serving.limits import Limits, server_config
from tirkit.types import ToolSchema

Fault = Literal["429", "500", "hang", "malformed", "truncated", "disconnect"]


@contextlib.contextmanager
def serving(app: Any, limits: Limits | None = None) -> Iterator[str]:
    """The address of `app`, served in a thread as `tirkit serve` does."""
    config = server_config(app, limits or Limits())
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@dataclass
class FaultyEndpoint:
    """An ASGI application: chat completions that echo the last message, slowly, and fail as told.

    faults: by last message, what its tries get in turn, then the echo. `num_tries`: by last message. `most`: requests
    that were in flight at once; `times`: (arrival, end) of each answered one.
    """

    delay_s: float = 0.0
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    num_tries: Counter[str] = field(default_factory=Counter)
    tried_at: dict[str, list[float]] = field(default_factory=dict)
    running: int = 0
    most: int = 0

    async def __call__(self, scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        text = json.loads(body)["messages"][-1]["content"]
        self.num_tries[text] += 1
        self.tried_at.setdefault(text, []).append(time.monotonic())
        faults = self.faults.get(text, [])
        fault = faults[self.num_tries[text] - 1] if self.num_tries[text] <= len(faults) else None
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.delay_s)
            await self._answer(text, fault, send)
        finally:
            self.running -= 1

    async def _answer(self, text: str, fault: Fault | None, send: Callable[..., Any]) -> None:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        body = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
        status, headers = 200, [(b"content-type", b"application/json")]
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault in ("429", "500"):
            status, body = int(fault), json.dumps({"error": {"message": fault}})
            headers += [(b"retry-after", b"0.3")] if fault == "429" else []
        if fault == "malformed":
            body = "{not json"
        length = len(body)
        if fault in ("truncated", "disconnect"):
            body = body[: length // 2] if fault == "truncated" else ""
        headers.append((b"content-length", str(length).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})


@pytest.fixture
def faulty() -> Iterator[tuple[FaultyEndpoint, str]]:
    """An endpoint that fails as told, and its address."""
    endpoint = FaultyEndpoint()
    with serving(endpoint) as url:
        yield endpoint, url


@pytest.fixture(scope="session")
def serve() -> Callable[[Any], contextlib.AbstractContextManager[str]]:
    """`with serve(app) as url:` serves an application."""
    return serving


class Typing(Policy):
    """Types what another policy writes: a token a step, `step_s` apart, no more than `ahead` before `go` is set.

    It fails before the token numbered `breaks_at`. `requests` are those it got, `num_typed` its tokens.
    """

    def __init__(self, policy: ScriptedPolicy, step_s: float = 0.0, ahead: int = 1 << 30, breaks_at: int = -1) -> None:
        self.policy, self.name, self.step_s, self.ahead, self.breaks_at = policy, "typing", step_s, ahead, breaks_at
        self.requests: list[GenerateRequest] = []
        self.num_typed, self.go = 0, threading.Event()

    def session(self) -> Session:
        return _TypingSession(self)


class _TypingSession(Session):
    def __init__(self, policy: Typing) -> None:
        self._policy, self._rows = policy, dict[int, tuple[Generation, int]]()

    def submit(self, key: int, request: GenerateRequest) -> None:
        self._policy.requests.append(request)
        self._rows[key] = self._policy.policy.write(request), 0

    def advance(self) -> list[tuple[int, Generation]]:
        policy = self._policy
        time.sleep(policy.step_s)
        if policy.num_typed >= policy.ahead:
            policy.go.wait(30)
        if policy.num_typed == policy.breaks_at:
            raise RuntimeError("the keyboard is broken")
        policy.num_typed += 1
        self._rows = {key: (whole, count + 1) for key, (whole, count) in self._rows.items()}
        done = [(key, whole) for key, (whole, count) in self._rows.items() if count >= len(whole.ids)]
        for key, _ in done:
            self.forget(key)
        return done

    def written(self) -> list[tuple[int, tuple[int, ...]]]:
        return [(key, whole.ids[:count]) for key, (whole, count) in self._rows.items()]

    def forget(self, key: int) -> None:
        self._rows.pop(key, None)


@pytest.fixture(scope="session")
def typing() -> type[Typing]:
    """A policy that types what a script writes."""
    return Typing


NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
TOOLS = (
    ToolSchema(name="add", description="Add two integers.", parameters=NUMBERS),
    ToolSchema(name="mul", description="Multiply two integers.", parameters=NUMBERS),
)


@pytest.fixture(scope="session")
def tiny(make_tiny: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    """See make_tiny."""
    return make_tiny(TOOLS)
