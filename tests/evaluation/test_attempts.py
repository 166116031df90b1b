"""Attempts and gold as they are shown, before any browser."""

from tirkit.evaluation.attempts import gold_parts, said_parts, text_spans
from tirkit.types import Message, StopReason, Task, ToolCall, ToolErrorKind, ToolResult, Trajectory, Turn

PROMPT = (Message(role="user", content="2 + 3?"),)
ADD, DOUBLE = ToolCall(name="add", arguments={"a": 2, "b": 3}), ToolCall(name="double", arguments={"n": 5})


def test_gold_is_shown_round_by_round() -> None:
    task = Task(id="t", prompt=PROMPT, gold_rounds=((ADD, ADD), (DOUBLE,)), answer="10", other_answers=("ten",))
    add = 'add {"a": 2, "b": 3}'
    assert gold_parts(task) == (
        ("calls, round 1", f"{add}\n{add}"),
        ("calls, round 2", 'double {"n": 5}'),
        ("answer", "10 | ten"),
    )
    assert gold_parts(Task(id="t", prompt=PROMPT, gold_rounds=((DOUBLE,),))) == (("calls", 'double {"n": 5}'),)
    assert gold_parts(Task(id="t", prompt=PROMPT, gold_rounds=(), answer="5")) == (("calls", "none"), ("answer", "5"))
    assert gold_parts(Task(id="t", prompt=PROMPT, answer="5")) == (("answer", "5"),)  # calls are not judged


def test_an_attempt_is_shown_as_it_was_read_and_as_written_where_it_was_not() -> None:
    turns = (
        Turn(
            text='<think>\nsum\n</think>\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>',
            calls=(ADD,),
            results=(ToolResult(name="add", content="\x1b[2Jdown", error=ToolErrorKind.TIMEOUT),),
            reply=(Message(role="tool", content="\x1b[2Jdown"),),
        ),
        Turn(text="5, I think", problems=("text outside of any block: '5, I think'",)),
    )
    trajectory = Trajectory(task_id="t", prompt=PROMPT, turns=turns, stop=StopReason.MALFORMED)
    assert said_parts(trajectory) == (
        ("thinks", "sum"),
        ("calls", 'add {"a": 2, "b": 3}'),
        ("tool", "\\x1b[2Jdown"),
        ("writes", "5, I think"),
        ("problem", "text outside of any block: '5, I think'"),
    )
    assert [(text[:12], kind) for text, kind in text_spans(trajectory)] == [
        ("user: 2 + 3?", "prompt"),
        ("<think>\nsum\n", "trained"),
        ("\ntool: \\x1b[", "masked"),
        ("5, I think", "trained"),
    ]
