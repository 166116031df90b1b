"""Scores of a reward model over HTTP: a route that gives them and a client that is itself a scorer.

    POST /score  {"trajectories": [Trajectory, …], "tasks": [Task, …]}  →  {"scores": [1.25, null, …]}

null is a trajectory that could not be scored. Numbers travel as JSON: they come out as the very floats that went in.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Protocol

import httpx
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tirkit.serving.api import ApiError
from tirkit.serving.limits import Limits, in_time, read_body
from tirkit.tools.remote import post
from tirkit.tools.runtime import ToolSettings
from tirkit.tools.worker import TransientToolError
from tirkit.types import Record, Task, Trajectory

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 << 20  # 32 long trajectories with their log-probs


class Scorer(Protocol):
    """Scores trajectories of the tasks beside them; None where one cannot be scored."""

    def score(self, trajectories: Sequence[Trajectory], tasks: Sequence[Task]) -> list[float | None]:
        """One score a trajectory, in their order."""
        ...


class ScoreRequest(Record):
    """What /score takes."""

    trajectories: tuple[Trajectory, ...]
    tasks: tuple[Task, ...]


class Scores(Record):
    """What /score gives."""

    scores: tuple[float | None, ...]


def score_route(scorer: Scorer, limits: Limits | None = None) -> Route:
    """The route; `scorer` is asked for one request at a time, beside whatever else the server does."""
    return Route("/score", _Scoring(scorer, limits or Limits()).answer, methods=["POST"])


class _Scoring:
    """POST /score. A request may have MAX_BODY_BYTES; the other limits are the server's."""

    def __init__(self, scorer: Scorer, limits: Limits) -> None:
        self._scorer, self._limits, self._num_waiting = scorer, limits, 0
        # One thread: a request that was given up while it was scored is still finished before the next one's turn.
        self._thread = ThreadPoolExecutor(1, "tirkit scorer")

    async def answer(self, request: Request) -> JSONResponse:
        """The scores."""
        deadline = asyncio.get_running_loop().time() + self._limits.max_request_s
        body = await read_body(request, MAX_BODY_BYTES, self._limits.read_s)
        if self._num_waiting >= self._limits.max_waiting:
            raise ApiError(429, "too many requests are waiting; ask again later", "overloaded")
        self._num_waiting += 1
        try:
            scores = await in_time(self._score(body), deadline, self._limits)
        finally:
            self._num_waiting -= 1
        # JSON has no NaN and no infinity, and neither is a score.
        finite = [score if score is not None and math.isfinite(score) else None for score in scores]
        return JSONResponse({"scores": finite})

    async def _score(self, body: bytes) -> list[float | None]:
        asked = await run_in_threadpool(_read_request, body)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._scorer.score, asked.trajectories, asked.tasks)


def _read_request(body: bytes) -> ScoreRequest:
    """The request in `body`; ApiError where it is none."""
    try:
        asked = ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise ApiError(400, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from error
    if len(asked.trajectories) != len(asked.tasks):
        raise ApiError(400, f"{len(asked.trajectories)} trajectories and {len(asked.tasks)} tasks: give one each")
    return asked


class HttpScorer:
    """A scorer that asks a served one, `batch_size` trajectories a request, `max_concurrent` requests in flight.

    What may pass is tried again up to `retries` times, after backoff_s, 2 backoff_s, … with jitter; then the
    trajectories of that request stay unscored, and `num_failures` counts them. Raises RemoteError where the server
    refuses: wrong address, wrong request, wrong `key`.
    """

    def __init__(
        self,
        url: str,
        batch_size: int = 32,
        max_concurrent: int = 4,
        retries: int = 4,
        backoff_s: float = 1.0,
        timeout_s: float = 120.0,
        client: httpx.Client | None = None,
        key: str = "",
    ) -> None:
        self.url, self.batch_size, self.max_concurrent = url, batch_size, max_concurrent
        self.num_failures = 0
        self._retry = ToolSettings(retries=retries, backoff_s=backoff_s)
        headers = {"Authorization": f"Bearer {key}"} if key else None
        self._client = client or httpx.Client(timeout=timeout_s, headers=headers)
        self._lock = threading.Lock()

    def score(self, trajectories: Sequence[Trajectory], tasks: Sequence[Task]) -> list[float | None]:
        """See Scorer."""
        parts = [slice(at, at + self.batch_size) for at in range(0, len(trajectories), self.batch_size)]
        batches = [ScoreRequest(trajectories=tuple(trajectories[part]), tasks=tuple(tasks[part])) for part in parts]
        with ThreadPoolExecutor(self.max_concurrent) as pool:
            return list(chain.from_iterable(pool.map(self._score, batches)))

    def _score(self, batch: ScoreRequest) -> Sequence[float | None]:
        body = batch.model_dump(mode="json")
        for attempt in range(self._retry.retries + 1):
            try:
                return _read(post(self._client, self.url, body), len(batch.trajectories))
            except TransientToolError as error:
                logger.warning("try %d: %s", attempt + 1, error)
                if attempt < self._retry.retries:
                    time.sleep(self._retry.delay_s(attempt, error.retry_in_s))
        with self._lock:
            self.num_failures += len(batch.trajectories)
        return [None] * len(batch.trajectories)


def _read(body: str, count: int) -> Sequence[float | None]:
    try:
        scores = Scores.model_validate_json(body).scores
    except ValidationError as error:
        raise TransientToolError(f"the scores cannot be read: {error.errors()[0]['msg']}") from error
    if len(scores) != count:
        raise TransientToolError(f"{len(scores)} scores came back for {count} trajectories")
    return scores
