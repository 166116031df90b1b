import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tirkit.tools.cache import CachingToolbox
from tirkit.types import ToolCall, ToolErrorKind, ToolResult


class Counting:
    """Answers with how often it was asked; the first `failing` answers are timeouts."""

    def __init__(self, failing: int = 0, pause_s: float = 0.0) -> None:
        self.runs, self.failing, self.pause_s = 0, failing, pause_s
        self.lock = threading.Lock()

    def run(self, call: ToolCall) -> ToolResult:
        with self.lock:
            self.runs += 1
            runs = self.runs
        time.sleep(self.pause_s)
        if call.arguments.get("x") == "raise":
            raise RuntimeError("no such thing")
        return ToolResult(
            name=call.name, content=str(runs), error=ToolErrorKind.TIMEOUT if runs <= self.failing else None
        )


def call(name: str = "pure", **arguments: object) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)  # type: ignore[arg-type]


def test_equal_calls_of_pure_tools_run_once() -> None:
    box = CachingToolbox(Counting(), {"pure"})
    assert [box.run(call(a=1, b=2)).content, box.run(call(b=2, a=1)).content] == ["1", "1"]
    assert box.run(call(a=1.0, b=2)).content == "2"  # another type is another call
    assert [box.run(call("clock")).content, box.run(call("clock")).content] == ["3", "4"]
    assert box.hits == 1


def test_failures_that_may_pass_are_not_kept() -> None:
    box = CachingToolbox(Counting(failing=1), {"pure"})
    assert box.run(call()).error == ToolErrorKind.TIMEOUT
    assert [box.run(call()).content, box.run(call()).content] == ["2", "2"]


def test_the_result_used_longest_ago_is_dropped() -> None:
    inner = Counting()
    box = CachingToolbox(inner, {"pure"}, max_results=2)
    for x in (1, 2, 1, 3, 1, 2):  # 3 drops 2, the last 2 runs again
        box.run(call(x=x))
    assert inner.runs == 4


def test_threads_that_make_the_same_call_share_one_run() -> None:
    inner = Counting(pause_s=0.05)
    box = CachingToolbox(inner, {"pure"})
    with ThreadPoolExecutor(8) as pool:
        contents = {result.content for result in pool.map(lambda x: box.run(call(x=x)), [0] * 8)}
    assert (contents, inner.runs, box.hits) == ({"1"}, 1, 7)


def test_what_a_toolbox_raises_is_raised_and_not_kept() -> None:
    inner = Counting()
    box = CachingToolbox(inner, {"pure"})
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such thing"):
            box.run(call(x="raise"))
    assert inner.runs == 2
