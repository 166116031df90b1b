"""Tool calls that run beside the rollout loop."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from tirkit.tools.runtime import Toolbox
from tirkit.types import ToolCall, ToolResult


class Calls:
    """Runs the calls of a turn, under the key of its attempt; `notify` is called, on any thread, after each.

    At most `workers` calls run at a time, on threads; with 0 they run inside `start`. A context manager; leaving it
    waits for what runs.
    """

    def __init__(self, toolbox: Toolbox | None, workers: int, notify: Callable[[], None]):
        self._toolbox, self._notify = toolbox, notify
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._futures: dict[int, list[Future[ToolResult]]] = {}
        self._events: SimpleQueue[int] = SimpleQueue()  # keys, one for each call that ended

    @property
    def running(self) -> bool:
        """Whether any turn has calls that `finished` has not given yet."""
        return bool(self._futures)

    def start(self, key: int, calls: Sequence[ToolCall]) -> None:
        """Run `calls`, at least one."""
        assert self._toolbox is not None, "rollout() refuses tasks that execute calls without a toolbox"
        futures = [self._submit(call) for call in calls]
        self._futures[key] = futures
        for future in futures:
            future.add_done_callback(lambda _: self._ended(key))

    def _submit(self, call: ToolCall) -> Future[ToolResult]:
        assert self._toolbox is not None
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

    def __enter__(self) -> "Calls":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
