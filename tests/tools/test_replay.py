from pathlib import Path

import pytest

from tirkit.tools.replay import RecordingToolbox, ReplayToolbox
from tirkit.tools.runtime import PythonToolbox, ToolboxError
from tirkit.types import ToolCall, ToolErrorKind, ToolSchema


class Dice:
    """A tool that never answers the same."""

    def __init__(self) -> None:
        self.rolled = 0

    def __call__(self, **arguments: object) -> int:
        self.rolled += 1
        return self.rolled


ROLL_TOOLS = [ToolSchema(name="roll", parameters={"type": "object"})]
ROLL = ToolCall(name="roll", arguments={"sides": 6, "times": 1})


def test_a_replay_gives_what_was_recorded(tmp_path: Path) -> None:
    dice = PythonToolbox({"roll": Dice()}, ROLL_TOOLS, isolation="inline")
    recorder = RecordingToolbox(dice, tmp_path / "calls.jsonl")
    first, second = recorder.run(ROLL), recorder.run(ROLL)
    assert (first.content, second.content) == ("1", "2")
    for replay in (ReplayToolbox(recorder.records), ReplayToolbox.load(tmp_path / "calls.jsonl")):
        reordered = ToolCall(name="roll", arguments={"times": 1, "sides": 6})
        assert [replay.run(reordered) for _ in range(3)] == [first, second, second]


def test_a_call_never_recorded_is_unavailable() -> None:
    result = ReplayToolbox([]).run(ROLL)
    assert result.error == ToolErrorKind.UNAVAILABLE
    assert "'roll'" in result.content


def test_one_and_true_are_different_arguments(tmp_path: Path) -> None:
    dice = PythonToolbox({"roll": Dice()}, ROLL_TOOLS, isolation="inline")
    recorder = RecordingToolbox(dice)
    recorder.run(ToolCall(name="roll", arguments={"x": 1}))
    replay = ReplayToolbox(recorder.records)
    assert replay.run(ToolCall(name="roll", arguments={"x": True})).error == ToolErrorKind.UNAVAILABLE


def test_a_damaged_recording_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolboxError, match="cannot be read"):
        ReplayToolbox.load(tmp_path / "none.jsonl")
    (tmp_path / "calls.jsonl").write_text('{"call": {"name": "x"}}\n')
    with pytest.raises(ToolboxError, match=r"calls\.jsonl:1: result: Field required; remove the line"):
        ReplayToolbox.load(tmp_path / "calls.jsonl")
