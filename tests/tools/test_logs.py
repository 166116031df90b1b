import json
from pathlib import Path
from typing import Any

import pytest

from tirkit.tools.lines import convert_records, read_records
from tirkit.tools.logs import LoggedAttempt, read_attempt
from tirkit.types import Message, StopReason, ToolCall, ToolErrorKind, Trajectory, Turn

ADD: dict[str, Any] = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}


def openai(*messages: dict[str, Any], **fields: Any) -> LoggedAttempt:
    return read_attempt({"messages": [{"role": "user", "content": "1 + 2?"}, *messages], **fields})


def calls(*pairs: tuple[str, str], content: str | None = None, **fields: Any) -> dict[str, Any]:
    made = [{"id": str(i), "function": {"name": name, "arguments": text}} for i, (name, text) in enumerate(pairs)]
    return {"role": "assistant", "content": content, "tool_calls": made, **fields}


def tool(content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content}


def say(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def test_openai_chat() -> None:
    log = openai(
        {"role": "user", "content": [{"type": "text", "text": "Please."}]},
        calls(("add", '{"a": 1,"b":2}'), ("add", "{}"), content="Let me add.", reasoning_content="Two numbers."),
        tool("3"),
        tool("Error: no arguments"),
        say("It is 3."),
        task_id=7,
        trial=2,
        model="m",
        reward=1.0,
        tools=[{"type": "function", "function": ADD}],
    )
    t = log.trajectory
    assert [turn.text for turn in t.turns] == [
        "<think>\nTwo numbers.\nLet me add.\n</think>\n<tool_call>\n"
        '{"name": "add", "arguments": {"a": 1, "b": 2}}\n{"name": "add", "arguments": {}}\n</tool_call>',
        "<answer>It is 3.</answer>",
    ]
    assert t.calls == (ToolCall(name="add", arguments={"a": 1, "b": 2}), ToolCall(name="add"))
    assert t.turns[0].reply == (Message(role="tool", content="3\nError: no arguments"),)
    assert [(r.name, r.error) for r in t.turns[0].results] == [("add", None), ("add", ToolErrorKind.RAISED)]
    assert (t.answer, t.stop, t.task_id, t.copy_index, t.policy) == ("It is 3.", StopReason.ANSWERED, "7", 2, "m")
    assert [message.content for message in log.task.prompt] == ["1 + 2?", "Please."]
    assert (log.success, log.task.tools, log.tools[0].description) == (True, ("add",), "Adds.")


def test_a_user_who_goes_on_and_a_log_that_breaks_off() -> None:
    log = openai(say("Which?"), {"role": "user", "content": "Both."}, calls(("add", "{}")))
    first, last = log.trajectory.turns
    assert (first.answer, first.reply) == ("Which?", (Message(role="user", content="Both."),))
    assert last.calls
    assert log.trajectory.stop is StopReason.MAX_TURNS
    assert openai(calls(("add", "{}")), tool("3")).trajectory.stop is StopReason.CALLS_COMPLETE


def test_words_before_a_call_are_its_thought() -> None:
    log = openai(say("I will add."), calls(("add", "{}")), tool("3"), say("<think>\nfine\n</think>\n3"))
    assert log.trajectory.turns[0].text.startswith("<think>\nI will add.\n</think>\n<tool_call>")
    assert log.trajectory.turns[1].text == "<think>\nfine\n</think>\n<answer>3</answer>"


def test_what_cannot_be_read_is_a_problem_of_its_turn() -> None:
    (turn,) = openai(calls(("add", '{"a": 1'))).trajectory.turns
    assert turn.problems[0].startswith("call 1: bad JSON")
    assert turn.calls == ()
    (turn,) = openai(say("The tag </tool_call> closes.")).trajectory.turns
    assert turn.problems == ("</tool_call> inside <answer>",)
    (turn,) = openai(say("")).trajectory.turns
    assert turn.problems == ("empty answer",)


def test_sharegpt_in_both_styles() -> None:
    messages = [
        {"from": "human", "value": "1 + 2?"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1, "b": 2}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "3"},
    ]
    hermes = [
        {"from": "human", "value": "1 + 2?"},
        {"from": "gpt", "value": '<tool_call>\n{"arguments": {"a": 1, "b": 2},\n "name": "add"}\n</tool_call>'},
        {"from": "tool", "value": "<tool_response>\n3\n</tool_response>"},
        {"from": "gpt", "value": "<answer>3</answer>"},
    ]
    logs = [
        read_attempt({"conversations": m, "system": "Add.", "tools": json.dumps([ADD])}) for m in (messages, hermes)
    ]
    for log in logs:
        assert log.trajectory.calls == (ToolCall(name="add", arguments={"a": 1, "b": 2}),)
        assert log.trajectory.turns[0].reply == (Message(role="tool", content="3"),)
        assert log.trajectory.turns[1].text == "<answer>3</answer>"
        assert not any(turn.problems for turn in log.trajectory.turns)
        assert log.task.prompt[0] == Message(role="system", content="Add.")
        assert log.success is None
    assert logs[0].task.id == logs[1].task.id  # the same prompt
    bad = read_attempt({"conversations": [{"from": "gpt", "value": "hi"}, {"from": "function_call", "value": "add("}]})
    assert bad.trajectory.turns[0].problems[0].startswith("call 1: bad JSON")


def test_ours() -> None:
    t = Trajectory(task_id="q", prompt=(), turns=(Turn(text="", answer="3"),), stop=StopReason.ANSWERED)
    assert read_attempt(json.loads(t.model_dump_json())).trajectory == t


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "not a JSON object"),
        ({"text": "hi"}, '"conversations" \\(ShareGPT\\) is there'),
        ({"messages": "hi"}, '"messages" must be a list of objects'),
        ({"messages": [{"role": "user", "content": "hi"}]}, "no message of the assistant"),
        ({"messages": [{"role": "critic", "content": "hi"}]}, "a message by 'critic'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not text"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, 'a call without "name"'),
        ({"conversations": [{"from": "gpt", "value": "x"}], "tools": "{"}, "Expecting"),
    ],
)
def test_what_is_no_attempt(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_attempt(value)


@pytest.mark.parametrize(
    ("file", "count", "successes"),
    [("tau_bench/gpt4o_airline_trajectories.jsonl", 60, 17), ("glaive_toolcall/glaive_toolcall_en.json", 186, 0)],
)
def test_real_logs(shared_data: Path, file: str, count: int, successes: int) -> None:
    records, issues = read_records(shared_data / file)
    logs = [log for _, log in convert_records(shared_data / file, records, read_attempt, issues)]
    assert (len(logs), issues) == (count, [])
    assert sum(log.success is True for log in logs) == successes
    assert not [problem for log in logs for turn in log.trajectory.turns for problem in turn.problems]
