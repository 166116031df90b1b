from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import pytest

from tirkit.methods.autotraj.rules import Rewriting, fix_arguments, rewrite
from tirkit.rollout.loop import RolloutSettings, rollout
from tirkit.rollout.policy import RolloutRequest, ScriptedPolicy
from tirkit.text.dialects import Dialect
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, Task, ToolCall, ToolSchema, Trajectory, Turn

TASK = Task(id="q", prompt=(Message(role="user", content="What is 2 + 3, then times 4?"),), answer="20")
PLAIN = Dialect()


def add(a: int, b: int) -> int:
    return a + b


def mul(a: int, b: int) -> int:
    return a * b


def attempt(four: SimpleNamespace, *texts: str, dialect: Dialect = PLAIN) -> Trajectory:
    """What the loop makes of a policy that writes `texts`."""

    def script(_: Task, turns: Sequence[Turn]) -> str:
        return texts[len(turns)]

    toolbox = PythonToolbox({"add_two": add, "mul": mul}, four.tools, isolation="inline")
    loop = partial(rollout, renderer=four.renderer, dialect=dialect, tools=four.by_name, toolbox=toolbox)
    policy = ScriptedPolicy(script, four.renderer)
    return loop([RolloutRequest(TASK)], policy=policy, settings=RolloutSettings(workers=0))[0]


def call(name: str, a: object, b: object, think: str = "") -> str:
    return PLAIN.print_calls([ToolCall(name=name, arguments={"a": a, "b": b})], think)  # type: ignore[dict-item]


def rewritten(four: SimpleNamespace, *texts: str) -> Rewriting | None:
    return rewrite(attempt(four, *texts), TASK, PLAIN, four.by_name)


ADD, MUL, ANSWER = call("add_two", 2, 3, "first add"), call("mul", 5, 4, "then times"), "<answer>20</answer>"


def test_a_good_attempt_stays(four: SimpleNamespace) -> None:
    assert rewritten(four, ADD, MUL, ANSWER) is None


def test_repeated_and_unused_calls_go(four: SimpleNamespace) -> None:
    unused = call("mul", 90, 7)  # 630 is never spoken of again
    found = rewritten(four, ADD, ADD, unused, MUL, MUL, ANSWER)
    assert found is not None
    assert found.texts == (ADD, MUL, ANSWER)
    assert [change.partition(":")[0] for change in found.changes] == [
        "dropped a repeated call",
        "dropped a repeated call",
        "dropped a call nobody uses",
    ]


def test_what_only_an_unused_call_used_goes_too(four: SimpleNamespace) -> None:
    chain = (call("mul", 90, 7), call("add_two", 630, 1000))  # 630, then 1630; neither is used in the end
    found = rewritten(four, *chain, ADD, MUL, ANSWER)
    assert found is not None
    assert found.texts == (ADD, MUL, ANSWER)


def test_failing_calls_are_fixed_or_dropped(four: SimpleNamespace) -> None:
    found = rewritten(four, call("add_two", "2", 3), ADD, MUL, ANSWER)
    assert found is not None
    # fixed it is the same as the next one, so the fixed one stays and the other goes
    assert found.texts == (call("add_two", 2, 3), MUL, ANSWER)
    assert found.changes[0] == 'fixed a call: add_two {"a": "2", "b": 3} → add_two {"a": 2, "b": 3}'
    hopeless = rewritten(four, call("add_two", "two", 3), ADD, MUL, ANSWER)
    assert hopeless is not None
    assert hopeless.texts == (ADD, MUL, ANSWER)


@pytest.mark.parametrize(
    ("last", "fixed"),
    [
        ("<answer>20", "<answer>20</answer>"),
        ("<think>\neasy<answer>20</answer>", "<think>\neasy\n</think>\n<answer>20</answer>"),
        ("It is: <answer>20</answer>", "<answer>20</answer>"),
        ("20", "<answer>20</answer>"),
    ],
)
def test_tags_are_closed(four: SimpleNamespace, last: str, fixed: str) -> None:
    found = rewritten(four, ADD, MUL, last)
    assert found is not None
    assert found.texts == (ADD, MUL, fixed)
    assert found.changes == ("wrote turn 3 in the right form",)


def test_an_unclosed_call(four: SimpleNamespace) -> None:
    found = rewritten(four, ADD.removesuffix("</tool_call>"))
    assert found is not None
    assert found.texts == (ADD,)
    assert rewritten(four, '<tool_call>\n{"name": "add_two", "argu') is None  # nothing to be read


def test_selection_turns_follow_their_calls(four: SimpleNamespace) -> None:
    select = four.dialect.print_selection
    use = [four.dialect.print_calls([ToolCall(name="add_two", arguments={"a": 2, "b": b})]) for b in (3, 3)]
    texts = (select(["add_two"], "adding"), use[0], select(["mul", "add_two"]), use[1], "<answer>5</answer>")
    found = rewrite(attempt(four, *texts, dialect=four.dialect), TASK, four.dialect, four.by_name)
    assert found is not None
    assert found.texts == (*texts[:2], texts[-1])


def test_fix_arguments() -> None:
    properties = {
        "city_name": {"type": "string"},
        "unit": {"type": "string", "enum": ["Celsius", "Kelvin"]},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "hours": {"type": "array"},
        "share": {"type": "number"},
    }
    tool = ToolSchema(name="f", parameters={"type": "object", "properties": properties})  # type: ignore[dict-item]
    given = {"cityName": 5, "unit": "celsius", "days": "3", "exact": "True", "hours": 7, "share": "0.5", "why": "?"}
    assert fix_arguments(tool, given) == {  # type: ignore[arg-type]
        "city_name": "5",
        "unit": "Celsius",
        "days": 3,
        "exact": True,
        "hours": [7],
        "share": 0.5,
    }
    assert fix_arguments(tool, {"days": "many", "unit": "F", "exact": "so"}) == {
        "days": "many",
        "unit": "F",
        "exact": "so",
    }
