"""Requests of many clients, given to a policy together."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from tirkit.rollout.policy import GenerateRequest, Generation, Policy, Session

MAX_IDLE = 4  # sessions kept though nothing is being written, for what they have in their caches


class OverloadedError(Exception):
    """More turns are waiting than the server takes on."""


@dataclass(eq=False)
class _Open:
    """A session and the turns being written in it."""

    session: Session
    futures: dict[int, Future[Generation]] = field(default_factory=dict)


class Batcher:
    """Writes turns on one thread of its own; what is asked for while others are being written joins them.

    policy_at: the policy at a temperature. Each temperature has its session; they take turns. max_waiting: turns being
    written or waiting; one more raises OverloadedError.
    """

    def __init__(self, policy_at: Callable[[float], Policy], max_waiting: int = 1024) -> None:
        self._policy_at, self._max_waiting = policy_at, max_waiting
        self._open: dict[float, _Open] = {}
        self._new: list[tuple[float, GenerateRequest, Future[Generation]]] = []
        self._changed = threading.Condition()
        self._num_running, self._next_key, self._closed = 0, 0, False
        self._thread = threading.Thread(target=self._work, name="tirkit batcher", daemon=True)
        self._thread.start()

    def submit(self, request: GenerateRequest, temperature: float) -> Future[Generation]:
        """The turn, when it is written; may be called from any thread."""
        future: Future[Generation] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            if self._num_running + len(self._new) >= self._max_waiting:
                raise OverloadedError
            self._new.append((temperature, request, future))
            self._changed.notify()
            for open_ in self._open.values():
                open_.session.wake()
        return future

    def close(self) -> None:
        """End the thread and its sessions; what is being written is cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            for open_ in self._open.values():
                open_.session.wake()
        self._thread.join()

    def _work(self) -> None:
        while self._take():
            for temperature, open_ in list(self._open.items()):
                if open_.futures:
                    self._advance(temperature, open_)
        for temperature in list(self._open):
            self._close(temperature)

    def _take(self) -> bool:
        """Submit what is new, waiting for it where nothing is being written; False when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._new or self._num_running or self._closed)
            new, self._new = self._new, []
            if self._closed:
                for _, _, future in new:
                    future.cancel()
                return False
            self._num_running += len(new)
        for temperature, request, future in new:
            try:
                open_ = self._session(temperature)
                open_.session.submit(self._next_key, request)
            except Exception as error:
                self._finish(future, error)
                continue
            open_.futures[self._next_key] = future
            self._next_key += 1
        return True

    def _session(self, temperature: float) -> _Open:
        if temperature not in self._open:
            idle = [key for key, open_ in self._open.items() if not open_.futures]
            for key in idle[: max(0, len(idle) + 1 - MAX_IDLE)]:
                self._close(key)
            session = self._policy_at(temperature).session()
            session.__enter__()
            with self._changed:
                self._open[temperature] = _Open(session)
        return self._open[temperature]

    def _advance(self, temperature: float, open_: _Open) -> None:
        try:
            for key, generation in open_.session.advance():
                open_.session.forget(key)
                self._finish(open_.futures.pop(key), generation)
        except Exception as error:  # whoever is waiting is told; the next request gets a new session
            for future in open_.futures.values():
                self._finish(future, error)
            open_.futures.clear()
            self._close(temperature)

    def _finish(self, future: Future[Generation], result: Generation | Exception) -> None:
        with self._changed:
            self._num_running -= 1
        if not future.set_running_or_notify_cancel():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    def _close(self, temperature: float) -> None:
        with self._changed:
            open_ = self._open.pop(temperature)
        for future in open_.futures.values():
            future.cancel()
        open_.session.__exit__(None, None, None)
