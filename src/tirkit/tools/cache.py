"""Answer a call that was made before with what it gave then."""

import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future

from tirkit.text.schema import canonical
from tirkit.tools.process import ToolboxError
from tirkit.tools.runtime import Toolbox
from tirkit.tools.state import AttemptToolbox, StatefulToolbox
from tirkit.types import ToolCall, ToolErrorKind, ToolResult

PASSING = {ToolErrorKind.TIMEOUT, ToolErrorKind.CRASHED, ToolErrorKind.UNAVAILABLE}  # may go well the next time


class CachingToolbox:
    """Keeps the results of `pure` tools: those whose result follows from the call alone.

    The same call (arguments compared by value, types included) runs once, also where several threads make it at the
    same time; its result comes back as it was, duration included. Failures that may pass are not kept. Beyond
    `max_results` the one used longest ago is dropped. `hits` counts calls that were not run. Attempts keep the state
    of their tools; ToolboxError where a tool with state is said to be pure.
    """

    def __init__(self, toolbox: Toolbox, pure: Collection[str], max_results: int = 100_000) -> None:
        self.stateful: Collection[str] = toolbox.stateful if isinstance(toolbox, StatefulToolbox) else ()
        if wrong := sorted(set(pure) & set(self.stateful)):
            raise ToolboxError(f"{', '.join(wrong)}: a tool with state is not pure; leave it out of `pure`")
        self.toolbox, self.pure, self.max_results = toolbox, frozenset(pure), max_results
        self.hits = 0
        self._results: OrderedDict[str, Future[ToolResult]] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, call: ToolCall) -> ToolResult:
        """The result of the call."""
        if call.name not in self.pure:
            return self.toolbox.run(call)
        key = canonical(call, "strict")
        with self._lock:
            known = self._results.get(key)
            if known is None:
                mine = self._results[key] = Future()
                if len(self._results) > self.max_results:
                    self._results.popitem(last=False)
            else:
                self._results.move_to_end(key)
                self.hits += 1
        return known.result() if known else self._run(key, call, mine)

    def attempt(self) -> AttemptToolbox:
        """See `StatefulToolbox`."""
        if not isinstance(self.toolbox, StatefulToolbox):
            raise ToolboxError("none of these tools has state")
        return self.toolbox.attempt()

    def _run(self, key: str, call: ToolCall, future: Future[ToolResult]) -> ToolResult:
        try:
            result = self.toolbox.run(call)
        except BaseException as error:
            self._drop(key, future)
            future.set_exception(error)
            raise
        if result.error in PASSING:
            self._drop(key, future)
        future.set_result(result)
        return result

    def _drop(self, key: str, future: Future[ToolResult]) -> None:
        with self._lock:
            if self._results.get(key) is future:
                del self._results[key]
