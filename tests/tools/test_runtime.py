import inspect
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # worker processes import the tools by name

import odd_tools

from tirkit.tools.runtime import PythonToolbox, ToolboxError, ToolSettings, run_all
from tirkit.tools.worker import clip
from tirkit.types import ToolCall, ToolErrorKind, ToolSchema

FUNCTIONS = {n: f for n, f in vars(odd_tools).items() if inspect.isfunction(f) and f.__module__ == odd_tools.__name__}
INTEGERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
SCHEMAS = [ToolSchema(name=name, parameters=INTEGERS if name == "add" else {"type": "object"}) for name in FUNCTIONS]
SCHEMAS.append(ToolSchema(name="only_documented"))


def call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def toolbox() -> Iterator[PythonToolbox]:
    with PythonToolbox(FUNCTIONS, SCHEMAS, timeout_s=5, max_chars=1000, memory_mb=1024) as box:
        yield box


@pytest.fixture(scope="module")
def inline() -> PythonToolbox:
    return PythonToolbox(FUNCTIONS, SCHEMAS, max_chars=1000, isolation="inline")


@pytest.fixture(params=["process", "inline"])
def either(request: pytest.FixtureRequest, toolbox: PythonToolbox, inline: PythonToolbox) -> PythonToolbox:
    return toolbox if request.param == "process" else inline


def test_a_result_is_its_json(either: PythonToolbox) -> None:
    result = either.run(call("add", a=2, b=3))
    assert (result.name, result.content, result.error, result.truncated) == ("add", "5", None, False)
    assert result.duration_s > 0


@pytest.mark.parametrize(
    ("bad", "kind", "part"),
    [
        (call("nothing"), ToolErrorKind.UNKNOWN_TOOL, "'nothing'"),
        (call("add", a=1), ToolErrorKind.INVALID_ARGUMENTS, "b"),
        (call("add", a=1, b="x"), ToolErrorKind.INVALID_ARGUMENTS, "integer"),
        (call("only_documented"), ToolErrorKind.UNAVAILABLE, "cannot be run"),
        (call("fail", message="no\nsuch city"), ToolErrorKind.RAISED, "ValueError: no such city"),
        (call("fail", wrong="x"), ToolErrorKind.RAISED, "TypeError"),
        (call("leave"), ToolErrorKind.RAISED, "SystemExit: 3"),
        (call("odd_object"), ToolErrorKind.RAISED, "not JSON"),
    ],
)
def test_what_goes_wrong_is_text_for_the_model(
    either: PythonToolbox, bad: ToolCall, kind: ToolErrorKind, part: str
) -> None:
    result = either.run(bad)
    assert result.error == kind
    assert part in result.content


def test_a_long_message_is_kept_short(either: PythonToolbox) -> None:
    assert len(either.run(call("fail", message="x" * 100_000)).content) <= 500


def test_ten_megabytes_come_back_as_head_and_tail(either: PythonToolbox) -> None:
    result = either.run(call("big", size=10_000_000))
    assert result.truncated
    assert result.error is None
    assert len(result.content) <= 1000
    assert result.content.startswith("aaa")
    assert result.content.endswith("zzz")


def test_text_that_utf8_cannot_hold_is_replaced(either: PythonToolbox) -> None:
    assert either.run(call("surrogate")).content == "a?b"


def test_clip_leaves_short_text_alone_and_counts_what_it_cuts() -> None:
    assert clip("abc", 3) == ("abc", False)
    assert clip("abcdef", 3) == ("abc", True)  # no room for a mark
    # The mark " … [5000 characters left out] … " takes 32 of 100, 68 characters of the text stay, 4932 go.
    text, cut = clip("x" * 5000, 100)
    assert cut
    assert "[4932 characters left out]" in text
    assert text.count("x") == 68


def test_a_dead_worker_is_replaced(toolbox: PythonToolbox) -> None:
    result = toolbox.run(call("die", code=7))
    assert result.error == ToolErrorKind.CRASHED
    assert "exit code 7" in result.content
    assert toolbox.run(call("add", a=1, b=1)).content == "2"


def test_a_hanging_tool_is_killed_with_what_it_started(tmp_path: Path) -> None:
    with PythonToolbox(FUNCTIONS, SCHEMAS, timeout_s=1) as box:
        start = time.perf_counter()
        result = box.run(call("hang", pid_file=str(tmp_path / "pid")))
        assert result.error == ToolErrorKind.TIMEOUT
        assert "within 1 s" in result.content
        assert time.perf_counter() - start < 8
        assert box.run(call("add", a=1, b=1)).content == "2"
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not is_running(pid):
            return
        time.sleep(0.1)
    pytest.fail("the process the tool started still runs")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_printing_reaches_neither_the_terminal_nor_the_result(
    toolbox: PythonToolbox, capfd: pytest.CaptureFixture[str]
) -> None:
    assert toolbox.run(call("chatter")).content == "quiet"
    assert capfd.readouterr() == ("", "")


def test_reading_standard_input_does_not_hang(toolbox: PythonToolbox) -> None:
    assert "EOFError" in toolbox.run(call("read_input")).content


def test_memory_is_bounded(toolbox: PythonToolbox) -> None:
    result = toolbox.run(call("eat_memory"))
    assert result.error in (ToolErrorKind.RAISED, ToolErrorKind.CRASHED)
    assert toolbox.run(call("add", a=1, b=1)).content == "2"


def test_workers_stay(toolbox: PythonToolbox) -> None:
    first = int(toolbox.run(call("count")).content)
    assert int(toolbox.run(call("count")).content) == first + 1


def test_run_all_runs_at_once_and_keeps_order() -> None:
    naps = [0.6, 0.3, 0.0, 0.6]
    with PythonToolbox(FUNCTIONS, SCHEMAS) as box:
        run_all(box, [call("nap", seconds=0.2)] * 4, workers=4)  # the workers start here
        start = time.perf_counter()
        results = run_all(box, [call("nap", seconds=s) for s in naps], workers=4)
        assert time.perf_counter() - start < sum(naps)
    assert [float(r.content) for r in results] == naps
    assert run_all(box, [], workers=4) == []


def test_close_ends_the_workers_and_leaves_the_toolbox_usable() -> None:
    box = PythonToolbox(FUNCTIONS, SCHEMAS)
    box.run(call("add", a=1, b=1))
    process = box._idle[0].process
    box.close()
    assert not process.is_alive()
    assert box.run(call("add", a=1, b=2)).content == "3"
    box.close()


def test_an_inline_tool_cannot_change_the_recorded_call(inline: PythonToolbox) -> None:
    request = call("change", items=[1])
    assert inline.run(request).content == "[1, 4]"
    assert request.arguments == {"items": [1]}


def test_a_wrong_set_up_is_named() -> None:
    with pytest.raises(ToolboxError, match="'local' cannot be sent to a worker"):
        PythonToolbox({"local": lambda: 1}, [ToolSchema(name="local")])
    with pytest.raises(ToolboxError, match="'add' has a function but no document"):
        PythonToolbox({"add": odd_tools.add}, [])
    with pytest.raises(ToolboxError, match="'mul' has settings but no document"):
        PythonToolbox({}, [ToolSchema(name="add")], settings={"mul": ToolSettings()})


def test_a_worker_that_cannot_start_stops_the_run() -> None:
    box = PythonToolbox({"gone": odd_tools.Unloadable()}, [ToolSchema(name="gone")])
    with pytest.raises(ToolboxError, match=r"could not start.*no module named elsewhere"):
        box.run(call("gone"))


@pytest.mark.parametrize("isolation", ["process", "inline"])
def test_only_transient_failures_are_tried_again(tmp_path: Path, isolation: str) -> None:
    settings = {name: ToolSettings(isolation=isolation, retries=2, backoff_s=0.001) for name in ("not_now", "fail")}  # type: ignore[arg-type]
    with PythonToolbox(FUNCTIONS, SCHEMAS, settings=settings) as box:
        result = box.run(call("not_now", log=str(tmp_path / "a"), times=2))
        assert (result.content, result.error) == ("answered at try 3", None)
        result = box.run(call("not_now", log=str(tmp_path / "b"), times=3))
        assert (result.content, result.error) == ("busy", ToolErrorKind.UNAVAILABLE)
        assert len((tmp_path / "b").read_text().splitlines()) == 3
        assert box.run(call("fail", message="x")).error == ToolErrorKind.RAISED


def test_waits_at_least_as_long_as_the_tool_asks(tmp_path: Path) -> None:
    box = PythonToolbox(FUNCTIONS, SCHEMAS, isolation="inline", backoff_s=0.001)
    box.run(call("not_now", log=str(tmp_path / "log"), times=1, retry_in_s=0.1))
    first, second = map(float, (tmp_path / "log").read_text().split())
    assert second - first >= 0.1


def test_waits_double_up_to_a_bound_with_jitter() -> None:
    settings = ToolSettings(backoff_s=1.0, max_backoff_s=5.0)
    for attempt, full in enumerate((1, 2, 4, 5, 5)):
        delays = [settings.delay_s(attempt, 0.0) for _ in range(50)]
        assert full / 2 <= min(delays) < max(delays) <= full
    assert settings.delay_s(0, 3.0) == 3.0
    assert settings.delay_s(0, 60.0) == 5.0


def test_a_tool_may_answer_with_an_error_of_its_own(either: PythonToolbox) -> None:
    result = either.run(call("own_answer"))
    assert (result.error, result.truncated, len(result.content)) == (ToolErrorKind.TIMEOUT, True, 1000)


def test_each_tool_has_its_own_settings() -> None:
    settings = {"nap": ToolSettings(timeout_s=0.3), "big": ToolSettings(max_chars=100)}
    with PythonToolbox(FUNCTIONS, SCHEMAS, settings=settings) as box:
        assert box.run(call("nap", seconds=5)).error == ToolErrorKind.TIMEOUT
        assert len(box.run(call("big", size=5000)).content) == 100
        assert box.run(call("add", a=1, b=2)).content == "3"
