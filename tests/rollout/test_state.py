"""Tools with state: each attempt has its own, from the same beginning to the end of the attempt."""

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from tirkit.rollout.calls import Calls
from tirkit.rollout.group import rollout_groups
from tirkit.rollout.loop import RolloutSettings
from tirkit.rollout.policy import ScriptedPolicy
from tirkit.text.dialects import Dialect
from tirkit.tools.cache import CachingToolbox
from tirkit.tools.functions import load_functions
from tirkit.tools.process import ToolboxError
from tirkit.tools.replay import RecordingToolbox
from tirkit.tools.runtime import PythonToolbox
from tirkit.tools.state import State, StatefulTool
from tirkit.tools.worker import Answer
from tirkit.types import Message, Task, ToolCall, ToolErrorKind, ToolResult, ToolSchema, Trajectory, Turn

SHOP = '''
import os
import time
from pathlib import Path

from tirkit.tools.functions import read_only, stateful

sold = 0


@stateful
class Shop:
    def __init__(self):
        self.orders = ["first"]
        with open(Path(__file__).with_name("pids"), "a") as file:
            file.write(f"{os.getpid()}\\n")

    def buy(self, item: str, wait: float = 0) -> str:
        """Buys.

        Args:
            item: what
            wait: seconds
        """
        global sold
        sold += 1
        time.sleep(wait)
        self.orders.append(item)
        return f"{sold}: {', '.join(self.orders)}"

    @read_only
    def look(self) -> list[str]:
        """Looks."""
        return self.orders

    def die(self) -> None:
        """Ends its process."""
        os._exit(3)

    def not_documented(self, x: "Nowhere"): ...

    def _private(self): ...


def buy_twice(item: str) -> str:
    """Has no state.

    Args:
        item: what
    """
    return item


class Unmarked(Shop):
    def more(self) -> None:
        """Is no tool."""
'''


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path / "shop.py"


def box(file: Path, max_states: int = 16, timeout_s: float = 20.0) -> PythonToolbox:
    found = load_functions(file)
    return PythonToolbox(found.functions("*"), found.tools, timeout_s=timeout_s, retries=0, max_states=max_states)


def buy(item: str, wait: float = 0) -> ToolCall:
    return ToolCall(name="buy", arguments={"item": item, "wait": wait})


def pids(file: Path) -> list[int]:
    """Of all instances there were, in order."""
    return [int(line) for line in file.with_name("pids").read_text().splitlines()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def group(
    file: Path, tiny: SimpleNamespace, rounds: dict[str, Sequence[Sequence[ToolCall]]], size: int = 2, **limits: float
) -> dict[str, list[Trajectory]]:
    """Groups of attempts that make each task's rounds of calls, all at once."""
    dialect = Dialect()

    def script(task: Task, turns: Sequence[Turn]) -> str:
        own = rounds[task.id]
        return dialect.print_calls(own[len(turns)]) if len(turns) < len(own) else dialect.print_answer("done")

    tasks = [Task(id=name, prompt=(Message(role="user", content=name),)) for name in rounds]
    with box(file, **limits) as toolbox:  # type: ignore[arg-type]
        groups = rollout_groups(
            tasks,
            size,
            ScriptedPolicy(script, tiny.renderer),
            tiny.renderer,
            dialect,
            dict(toolbox.schemas),
            toolbox,
            RolloutSettings(workers=2, max_tokens=100_000),
        )
    return {made.task_id: list(made.trajectories) for made in groups}


def contents(trajectory: Trajectory) -> list[str]:
    return [result.content for turn in trajectory.turns for result in turn.results]


def test_methods_of_marked_classes_become_tools(shop: Path) -> None:
    found = load_functions(shop)
    assert [tool.name for tool in found.tools] == ["buy", "look", "die", "buy_twice"]
    assert found.tools[0].parameters["required"] == ["item"]
    assert found.tools[0].origin.function == "Shop.buy"  # type: ignore[union-attr]
    assert found.read_only == {"look"}
    assert len(found.issues) == 1
    assert found.issues[0].reason.startswith("function 'Shop.not_documented': ")
    assert set(found.functions()) == {"look"}  # a state of one's own makes nothing read-only
    assert set(found.functions(["buy"])) == {"look", "buy"}


def test_methods_without_state_are_named(shop: Path) -> None:
    unbound = "    @staticmethod\n    def s(): ...\n\n    @classmethod\n    def c(cls): ...\n\n"
    shop.write_text(SHOP.replace("    def die(self)", unbound + "    def die(self)"))
    found = load_functions(shop)
    assert [tool.name for tool in found.tools] == ["buy", "look", "die", "buy_twice"]
    assert [issue.reason.partition(";")[0] for issue in found.issues[:2]] == [
        f"function 'Shop.{name}': a static or class method has no state" for name in "sc"
    ]
    lines = shop.read_text().splitlines()
    assert [lines[issue.line - 1].strip() for issue in found.issues[:2]] == ["@staticmethod", "@classmethod"]


def test_classes_that_cannot_be_used_are_named(shop: Path) -> None:
    shop.write_text(SHOP.replace("def __init__(self):", "def __init__(self, name):").replace("buy_twice", "buy"))
    found = load_functions(shop)
    assert [tool.name for tool in found.tools] == ["buy"]
    assert "must be made without arguments, but there is missing a required argument: 'name'" in found.issues[0].reason
    shop.write_text(SHOP.replace("buy_twice", "buy"))
    again = load_functions(shop.rename(shop.with_name("again.py")))
    (issue,) = [issue for issue in again.issues if "not_documented" not in issue.reason]
    assert issue.reason == "function 'buy': another tool of the file has its name; rename it"


def test_attempts_that_take_turns_do_not_see_each_other(shop: Path) -> None:
    with box(shop) as toolbox:
        one, two = toolbox.attempt(), toolbox.attempt()
        said = [attempt.run(buy(item)).content for attempt, item in ((one, "a"), (two, "b"), (one, "c"), (two, "d"))]
        assert said == ["1: first, a", "1: first, b", "2: first, a, c", "2: first, b, d"]
        assert one.run(ToolCall(name="buy_twice", arguments={"item": "x"})).content == "x"
        assert one.run(ToolCall(name="buy")).error is ToolErrorKind.INVALID_ARGUMENTS
        assert toolbox.run(buy("e")).content == "1: first, e"  # an attempt of its own
        first, second, third = pids(shop)
        assert is_running(first)
        assert is_running(second)
        assert not is_running(third)
        one.close()
        assert not is_running(first)
        assert one.run(buy("f")).content == "the attempt is over"
        assert two.run(buy("g")).content == "3: first, b, d, g"
        two.close()


def test_copies_of_a_group_begin_alike_and_leave_nothing(shop: Path, tiny: SimpleNamespace) -> None:
    rounds = {"a": [[buy("x", 0.1), buy("y")], [buy("z")]], "b": [[buy("w")]]}
    for _ in range(2):  # also when run again
        made = group(shop, tiny, rounds)
        assert [contents(t) for t in made["a"]] == [["1: first, x", "2: first, x, y", "3: first, x, y, z"]] * 2
        assert [contents(t) for t in made["b"]] == [["1: first, w"]] * 2
    assert len(set(pids(shop))) == 8
    assert not any(map(is_running, pids(shop)))


def test_a_killed_state_is_an_error_of_its_trajectory_alone(shop: Path, tiny: SimpleNamespace) -> None:
    die = ToolCall(name="die")
    made = group(shop, tiny, {"bad": [[buy("x")], [die], [buy("y")]], "good": [[buy("x")], [buy("y", 0.5)]]}, size=1)
    results = [result for turn in made["bad"][0].turns for result in turn.results]
    assert [result.error for result in results] == [None, ToolErrorKind.CRASHED, ToolErrorKind.UNAVAILABLE]
    assert "exit code 3" in results[1].content
    assert results[2].content == "tool 'buy' can't be used any more: its state was lost in an earlier call"
    assert contents(made["good"][0]) == ["1: first, x", "2: first, x, y"]
    assert len(pids(shop)) == 2  # nothing was made anew behind the attempt's back


def test_a_late_call_takes_the_state_with_it(shop: Path) -> None:
    with box(shop, timeout_s=1) as toolbox:
        attempt = toolbox.attempt()
        assert attempt.run(buy("x", 60)).error is ToolErrorKind.TIMEOUT
        assert attempt.run(buy("x")).error is ToolErrorKind.UNAVAILABLE
        assert not is_running(pids(shop)[0])
        attempt.close()


def test_no_more_states_than_allowed_at_a_time(shop: Path, tiny: SimpleNamespace) -> None:
    shop.write_text(SHOP.replace('["first"]', "[str(sum(map(running, others())))]") + LOOK)
    made = group(shop, tiny, {name: [[buy(name)], [buy(name)]] for name in "abc"}, max_states=1)
    alone = [[f"1: 0, {name}", f"2: 0, {name}, {name}"] for name in "abc"]
    assert [contents(one) for name in "abc" for one in made[name]] == [texts for texts in alone for _ in range(2)]
    assert len(pids(shop)) == 6


LOOK = """
def others():
    file = Path(__file__).with_name("pids")
    return file.read_text().split() if file.exists() else []

def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
"""


def test_an_attempt_that_waits_for_its_turn_can_be_closed(shop: Path) -> None:
    with box(shop, max_states=1) as toolbox:
        first, second = toolbox.attempt(), toolbox.attempt()
        first.run(buy("x"))
        said: list[str] = []
        waiting = threading.Thread(target=lambda: said.append(second.run(buy("y")).content))
        waiting.start()
        time.sleep(0.3)
        assert not said
        second.close()
        waiting.join(10)
        assert said == ["the attempt is over"]
        first.close()
        assert toolbox.run(buy("z")).error is None  # and its turn was given back


def test_a_class_that_fails_to_begin_stops_the_run(shop: Path, tiny: SimpleNamespace) -> None:
    shop.write_text(SHOP.replace('self.orders = ["first"]', 'raise OSError("no such database")'))
    with pytest.raises(ToolboxError, match=r"could not start \(OSError: no such database"):
        group(shop, tiny, {"a": [[buy("x")]]})


def test_an_interrupted_call_leaves_nothing_behind(shop: Path) -> None:
    with box(shop) as toolbox:
        attempt = toolbox.attempt()
        attempt.run(buy("x"))
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), 2))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            attempt.run(buy("y", 60))
        assert not is_running(pids(shop)[0])
        attempt.close()
        assert toolbox.run(buy("z")).error is None


@dataclass(frozen=True)
class Source:
    """Makes states that note in `closed` when they are closed; those of some then raise."""

    name: str
    closed: list[str] = field(compare=False)
    fails: bool = False

    def make(self, timeout_s: float, memory_mb: int) -> State:
        source = self

        class Noting:
            alive = True

            def ask(self, *_: object) -> Answer:
                return Answer("made")

            def close(self) -> None:
                source.closed.append(source.name)
                if source.fails:
                    raise OSError(f"{source.name} does not end")

        return Noting()


@pytest.mark.parametrize("failing", ["a", "b"])
def test_a_state_that_cannot_be_closed_holds_up_nothing(failing: str, caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []
    functions = {name: StatefulTool(Source(name, closed, name == failing), name) for name in "ab"}
    with PythonToolbox(functions, [ToolSchema(name="a"), ToolSchema(name="b")], max_states=1) as toolbox:
        attempt = toolbox.attempt()
        assert [attempt.run(ToolCall(name=name)).content for name in "ab"] == ["made", "made"]
        assert not toolbox._turns.acquire(blocking=False)  # the one place is taken
        attempt.close()
        assert toolbox._turns.acquire(blocking=False)
        toolbox._turns.release()
    assert sorted(closed) == ["a", "b"]
    assert f"{failing} does not end" in caplog.text


def test_an_attempt_that_cannot_be_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    class Failing:
        def run(self, call: ToolCall) -> ToolResult:
            return ToolResult(name=call.name, content="done")

        def close(self) -> None:
            ended.append("closed")
            raise OSError("it does not end")

    class Box:
        stateful = frozenset("a")
        run = Failing.run

        def attempt(self) -> Failing:
            return Failing()

    with Calls(Box(), 1, lambda: None) as calls:
        for key in range(3):
            calls.start(key, [ToolCall(name="a")])
            assert calls.finished(wait=True)[0][0] == key
        calls.end(0)
    assert len(ended) == 3
    assert caplog.text.count("OSError: it does not end") == 3


def test_a_refused_call_takes_no_place(shop: Path) -> None:
    with box(shop, max_states=1) as toolbox:
        first, second = toolbox.attempt(), toolbox.attempt()
        assert first.run(ToolCall(name="buy")).error is ToolErrorKind.INVALID_ARGUMENTS
        assert toolbox._turns.acquire(blocking=False)  # the one place is free
        toolbox._turns.release()
        assert second.run(buy("x")).error is None
        assert first.run(ToolCall(name="buy")).error is ToolErrorKind.INVALID_ARGUMENTS  # at once, though all are taken
        first.close()
        second.close()


def test_a_cache_leaves_attempts_their_state_and_a_recording_refuses_it() -> None:
    functions = {"a": StatefulTool(Source("a", [], False), "a"), "pure": lambda: "7"}
    with PythonToolbox(functions, [ToolSchema(name="a"), ToolSchema(name="pure")], isolation="inline") as toolbox:
        cached = CachingToolbox(toolbox, {"pure"})
        assert set(cached.stateful) == {"a"}
        attempt = cached.attempt()
        assert attempt.run(ToolCall(name="a")).content == "made"
        attempt.close()
        assert [cached.run(ToolCall(name="pure")).content for _ in range(2)] == ["7", "7"]
        assert cached.hits == 1
        with pytest.raises(ToolboxError, match="a: a tool with state is not pure"):
            CachingToolbox(toolbox, {"a", "pure"})
        with pytest.raises(ToolboxError, match="can't be recorded: a"):
            RecordingToolbox(toolbox)
    plain = CachingToolbox(SimpleNamespace(run=lambda call: ToolResult(name=call.name, content="x")), {"pure"})
    assert plain.stateful == ()
    with pytest.raises(ToolboxError, match="none of these tools has state"):
        plain.attempt()
