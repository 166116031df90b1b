"""Tool calls that run beside the rollout loop."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from tirkit.tools.runtime import Toolbox
from tirkit.tools.state import AttemptToolbox, StatefulToolbox
from tirkit.types import ToolCall, ToolResult

logger = logging.getLogger(__name__)


class Calls:
    """Runs the calls of a turn, under the key of its attempt; `notify` is called, on any thread, after each.

    At most `workers` calls run at a time, on threads; with 0 they run inside `start`. Calls to tools with state run one
    after the other on a thread of their attempt, in the order they were written. A context manager; leaving it waits
    for what runs.
    """

    def __init__(self, toolbox: Toolbox | None, workers: int, notify: Callable[[], None]):
        self._toolbox, self._notify = toolbox, notify
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._futures: dict[int, list[Future[ToolResult]]] = {}
        self._events: SimpleQueue[int] = SimpleQueue()  # keys, one for each call that ended
        self._attempts: dict[int, _Attempt] = {}
        self._ending: list[ThreadPoolExecutor] = []

    @property
    def running(self) -> bool:
        """Whether any turn has calls that `finished` has not given yet."""
        return bool(self._futures)

    def start(self, key: int, calls: Sequence[ToolCall]) -> None:
        """Run `calls`, at least one."""
        assert self._toolbox is not None, "rollout() refuses tasks that execute calls without a toolbox"
        futures = [self._submit(key, call) for call in calls]
        self._futures[key] = futures
        for future in futures:
            future.add_done_callback(lambda _: self._ended(key))

    def _submit(self, key: int, call: ToolCall) -> Future[ToolResult]:
        assert self._toolbox is not None
        if isinstance(self._toolbox, StatefulToolbox) and call.name in self._toolbox.stateful:
            if key not in self._attempts:
                self._attempts[key] = _Attempt(self._toolbox.attempt(), ThreadPoolExecutor(1))
            return self._attempts[key].thread.submit(self._attempts[key].toolbox.run, call)
        if self._pool:
            return self._pool.submit(self._toolbox.run, call)
        future: Future[ToolResult] = Future()
        future.set_result(self._toolbox.run(call))
        return future

    def _ended(self, key: int) -> None:
        self._events.put(key)
        self._notify()

    def finished(self, wait: bool) -> list[tuple[int, tuple[ToolResult, ...]]]:
        """Results of turns whose calls have all ended, in the order they did. `wait`: until there is one, if any runs.

        Raises what a toolbox raises: a mistake in its set-up.
        """
        done: list[tuple[int, tuple[ToolResult, ...]]] = []
        while not self._events.empty() or (wait and not done and self.running):
            key = self._events.get()
            futures = self._futures.get(key, [])
            if futures and all(future.done() for future in futures):
                del self._futures[key]
                done.append((key, tuple(future.result() for future in futures)))
        return done

    def end(self, key: int) -> None:
        """Attempt `key` is over: its state is thrown away, beside what else runs."""
        if attempt := self._attempts.pop(key, None):
            attempt.thread.submit(_close, attempt.toolbox)
            attempt.thread.shutdown(wait=False)
            self._ending.append(attempt.thread)

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        for attempt in self._attempts.values():
            attempt.thread.shutdown(wait=False, cancel_futures=True)
            _close(attempt.toolbox)
        for thread in self._ending:
            thread.shutdown()


@dataclass(frozen=True)
class _Attempt:
    """The tools of an attempt that uses state, and the thread that calls them."""

    toolbox: AttemptToolbox
    thread: ThreadPoolExecutor


def _close(toolbox: AttemptToolbox) -> None:
    """What goes wrong is logged: it must not keep the other attempts from ending, and no one waits for its result."""
    try:
        toolbox.close()
    except Exception:
        logger.exception("the tools of an attempt could not be closed")
