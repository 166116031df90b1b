"""Requests of many clients, given to a policy together."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from tirkit.rollout.policy import GenerateRequest, Generation, Policy, Session

Listen = Callable[[Sequence[int]], None]
"""Called, on the batcher's thread, with ids that were just written."""


@dataclass(eq=False)
class _Asked:
    """A turn that somebody waits for; `num_heard` of its ids were told."""

    request: GenerateRequest
    future: Future[Generation]
    listen: Listen | None
    num_heard: int = 0


class Batcher:
    """Writes turns on one thread of its own; what is asked for while others are being written joins them."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._session: Session | None = None
        self._new: list[_Asked] = []
        self._running: dict[int, _Asked] = {}
        self._next_key, self._closed = 0, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tirkit batcher", daemon=True)
        self._thread.start()

    def submit(self, request: GenerateRequest, listen: Listen | None = None) -> Future[Generation]:
        """The turn, when it is written; may be called from any thread. It is given up when the future is cancelled.

        listen: told the ids while they are written, as far as the policy can; never the last ones.
        """
        asked = _Asked(request, Future(), listen)
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._new.append(asked)
            self._notify()
        return asked.future

    def close(self) -> None:
        """End the thread and its session; what is being written is cancelled."""
        with self._changed:
            self._closed = True
            self._notify()
        self._thread.join()

    def _notify(self) -> None:
        self._changed.notify()
        if self._session:
            self._session.wake()

    def _work(self) -> None:
        while (new := self._take()) is not None:
            try:
                self._submit(new)
                self._advance()
            except Exception as error:  # whoever is waiting is told; the next request gets a new session
                self._end_session(error)
        self._end_session(None)

    def _take(self) -> list[int] | None:
        """Keys of what is new, waiting for it where nothing is being written; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._new or self._running or self._closed)
            keys = list(range(self._next_key, self._next_key + len(self._new)))
            self._running |= dict(zip(keys, self._new, strict=True))
            self._next_key += len(keys)
            self._new = []
            return None if self._closed else keys

    def _submit(self, keys: list[int]) -> None:
        if self._session is None:
            session = self._policy.session().__enter__()
            with self._changed:
                self._session = session
        for key in keys:
            try:
                self._session.submit(key, self._running[key].request)
            except Exception as error:
                self._finish(key, error)

    def _advance(self) -> None:
        assert self._session
        for key in [key for key, asked in self._running.items() if asked.future.cancelled()]:
            self._session.forget(key)
            self._finish(key, None)
        if not self._running:
            return
        for key, generation in self._session.advance():
            self._session.forget(key)
            self._finish(key, generation)
        for key, ids in self._session.written():
            asked = self._running.get(key)
            if asked and asked.listen and len(ids) > asked.num_heard and not asked.future.cancelled():
                asked.listen(tuple(ids[asked.num_heard :]))
                asked.num_heard = len(ids)

    def _finish(self, key: int, result: Generation | Exception | None) -> None:
        """Tell who waits; nobody where the turn was given up."""
        with self._changed:
            asked = self._running.pop(key, None)
        if asked is None or not asked.future.set_running_or_notify_cancel():
            return
        if isinstance(result, Exception):
            asked.future.set_exception(result)
        elif result is not None:
            asked.future.set_result(result)

    def _end_session(self, error: Exception | None) -> None:
        with self._changed:
            session, self._session = self._session, None
        for key, asked in list(self._running.items()):
            if error is None:
                asked.future.cancel()
            self._finish(key, error)
        if session:
            session.__exit__(None, None, None)
