import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from tirkit.serving.limits import Limits
from tirkit.serving.score import HttpScorer, score_route
from tirkit.serving.server import application
from tirkit.tools.remote import RemoteError
from tirkit.types import Message, StopReason, Task, Trajectory, Turn

Serve = Callable[[Any], AbstractContextManager[str]]
TASKS = [Task(id=f"t{i}", prompt=(Message(role="user", content="é?"),)) for i in range(40)]
TRAJECTORIES = [
    Trajectory(task_id=task.id, prompt=task.prompt, turns=(Turn(text="x" * i),), stop=StopReason.ANSWERED)
    for i, task in enumerate(TASKS)
]
NUMBERS = [random.Random(i).gauss(0, 3) for i in range(40)]


class ByLength:
    """A drawn number for each length; none for length 3, NaN for length 4."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.running = threading.Lock()

    def score(self, trajectories: Sequence[Trajectory], tasks: Sequence[Task]) -> list[float | None]:
        assert self.running.acquire(blocking=False), "asked while it was scoring"
        assert [t.task_id for t in trajectories] == [task.id for task in tasks]
        self.sizes.append(len(trajectories))
        odd: dict[int, float | None] = {3: None, 4: float("nan")}
        scores = [odd.get(n, NUMBERS[n]) for n in (len(t.turns[0].text) for t in trajectories)]
        self.running.release()
        return scores


def test_served_scores_are_the_scorers_own(serve: Serve) -> None:
    scorer = ByLength()
    with serve(application([score_route(scorer)])) as url:
        client = HttpScorer(f"{url}/score", batch_size=16)
        scores = client.score(TRAJECTORIES, TASKS)
        assert client.score([], []) == []
    assert scores == [None if i in (3, 4) else NUMBERS[i] for i in range(40)]
    assert sorted(scorer.sizes) == [8, 16, 16]
    assert client.num_failures == 0


def test_mistakes_are_said(serve: Serve) -> None:
    with serve(application([score_route(ByLength())])) as url:
        with pytest.raises(RemoteError, match=r"answered 400: .*2 trajectories and 1 tasks"):
            HttpScorer(f"{url}/score").score(TRAJECTORIES[:2], TASKS[:1])
        with pytest.raises(RemoteError, match=r"answered 404: .*POST /scores: Not Found"):
            HttpScorer(f"{url}/scores").score(TRAJECTORIES[:1], TASKS[:1])
        answer = httpx.post(f"{url}/score", json={"trajectories": [{}], "tasks": []})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("trajectories.0.")


class Slow(ByLength):
    """Scores when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go = threading.Event(), threading.Event()

    def score(self, trajectories: Sequence[Trajectory], tasks: Sequence[Task]) -> list[float | None]:
        self.begun.set()
        assert self.go.wait(30)
        return super().score(trajectories, tasks)


def test_scoring_keeps_to_the_servers_limits(serve: Serve) -> None:
    def ask() -> tuple[int, str]:
        answer = httpx.post(f"{url}/score", json=body, timeout=60)
        return answer.status_code, answer.json().get("error", {}).get("code", "")

    body = {"trajectories": [TRAJECTORIES[1].model_dump(mode="json")], "tasks": [TASKS[1].model_dump(mode="json")]}
    scorer = Slow()
    app = application([score_route(scorer, Limits(max_request_s=2.0, max_waiting=1))])
    with serve(app) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask)
        assert scorer.begun.wait(30)
        assert ask() == (429, "overloaded")
        assert first.result() == (504, "timeout")
        scorer.go.set()
        assert ask() == (200, "")
    with serve(application([score_route(scorer, Limits(read_s=0.2))])) as url:
        late = httpx.post(f"{url}/score", content=_late(), headers={"content-type": "application/json"}, timeout=60)
        assert late.status_code == 408


def _late() -> Iterator[bytes]:
    yield b"{"
    time.sleep(1)
    yield b"}"


def remote(*answers: httpx.Response | Exception) -> HttpScorer:
    left = list(answers)

    def handler(_: httpx.Request) -> httpx.Response:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = httpx.Client(transport=httpx.MockTransport(handler))
    return HttpScorer("http://scorer.test/score", 2, 1, retries=1, backoff_s=0.001, client=client)


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.Response(503),
        httpx.Response(429, headers={"retry-after": "0.01"}),
        httpx.Response(200, text='{"scores": [1.0,'),
        httpx.Response(200, json={"scores": [1.0]}),
    ],
)
def test_failures_are_tried_again_then_counted(failure: httpx.Response | Exception) -> None:
    fine = httpx.Response(200, json={"scores": [1.0, 2.0]})
    scorer = remote(failure, fine)
    assert scorer.score(TRAJECTORIES[:2], TASKS[:2]) == [1.0, 2.0]
    assert scorer.num_failures == 0
    scorer = remote(failure, failure, fine)
    assert scorer.score(TRAJECTORIES[:4], TASKS[:4]) == [None, None, 1.0, 2.0]
    assert scorer.num_failures == 2
