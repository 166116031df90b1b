"""BFCL multi-turn: conversations, calls as source code, and what the authors' environments say to them."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tirkit.evaluation.benchmarks.base import Case
from tirkit.evaluation.benchmarks.bfcl_turns import BFCL_TURNS, MORE_TOOLS, moves, read_call, write_call
from tirkit.evaluation.benchmarks.conversation import Move, converse, user_turns
from tirkit.evaluation.benchmarks.runner import Asking, BenchmarkSetting, attempt, run_benchmarks
from tirkit.rollout.loop import RolloutSettings
from tirkit.rollout.policy import ScriptedPolicy, oracle
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.types import Message, StopReason, Task, ToolCall, ToolSchema, Trajectory, Turn

CAT = ToolSchema(name="cat", parameters={"type": "object", "properties": {"file": {"type": "string"}, "n": {}}})
LS = ToolSchema(name="ls")


def test_calls_are_read_and_written() -> None:
    assert read_call("cat('a.txt', n=[1, -2])", [CAT]) == ToolCall(
        name="cat", arguments={"file": "a.txt", "n": [1, -2]}
    )
    assert (
        write_call(ToolCall(name="cat", arguments={"file": "a'b", "n": None}), ["cat"]) == """cat(file="a'b", n=None)"""
    )
    with pytest.raises(ValueError, match="not a call"):
        read_call("cat", [CAT])


def test_only_functions_with_plain_values_reach_the_environments() -> None:
    with pytest.raises(ValueError, match="no function '__import__'"):
        write_call(ToolCall(name="__import__", arguments={"name": "os"}), ["cat"])
    with pytest.raises(ValueError, match="no function 'cat'"):
        write_call(ToolCall(name="cat", arguments={"file=open('x'), n": 1}), ["cat"])
    inside = write_call(ToolCall(name="cat", arguments={"file": "'); import os; ("}), ["cat"])
    assert read_call(inside, [CAT]).arguments == {"file": "'); import os; ("}  # a text stays a text


def case() -> Case:
    entry = {
        "id": "multi_turn_miss_func_0",
        "initial_config": {},
        "involved_classes": [],
        "question": [
            [{"role": "user", "content": "List, then read a.txt."}],
            [],
            [{"role": "user", "content": "Thanks."}],
        ],
        "missed_function": {"1": ["cat"]},
    }
    task = Task(id="c", prompt=(Message(role="user", content="x"),), tools=("ls", "cat"), kind="multi_turn_miss_func")
    return Case(task, (LS, CAT), {"entry": entry, "ground_truth": [["ls()"], ["cat(file='a.txt')"], []]})


def test_functions_that_were_missed_come_later() -> None:
    made = moves(case())
    assert [[tool.name for tool in move.tools] for move in made] == [["ls"], ["ls", "cat"], ["ls", "cat"]]
    assert [move.message.content for move in made] == ["List, then read a.txt.", MORE_TOOLS, "Thanks."]
    assert made[1].task.gold_calls == (ToolCall(name="cat", arguments={"file": "a.txt"}),)
    assert made[2].task.gold_rounds == ()


def test_a_conversation_is_one_trajectory() -> None:
    asked: list[Task] = []
    stops = [StopReason.ANSWERED, StopReason.MALFORMED, StopReason.MAX_TURNS]

    def ask(task: Task, tools: Sequence[ToolSchema], toolbox: object) -> Trajectory:
        asked.append(task)
        turns = (Turn(text="call", reply=(Message(role="tool", content="r"),)), Turn(text=f"reply {len(asked)}"))
        return Trajectory(task_id="", prompt=task.prompt, prompt_ids=(1,), turns=turns, stop=stops[len(asked) - 1])

    user = [Move(Message(role="user", content=text), (LS,), case().task) for text in "abcd"]
    made = converse("c", user, None, ask)  # type: ignore[arg-type]
    # The second is unreadable, the user goes on; the third hits a limit, so d is never said.
    assert (len(asked), made.stop, len(made.turns)) == (3, StopReason.MAX_TURNS, 6)
    assert [message.content for message in asked[1].prompt] == ["a", "call", "r", "reply 1", "b"]
    assert [[turn.text for turn in turns] for turns in user_turns(made)] == [
        ["call", "reply 1"],
        ["call", "reply 2"],
        ["call", "reply 3"],
    ]


def test_the_environments_judge_what_was_done(shared_data: Path, renderer: Renderer, tmp_path: Path) -> None:
    pytest.importorskip("bfcl_eval", reason="its environments are not installed: pip install --no-deps bfcl-eval")
    gold = oracle(Dialect())

    def hasty(task: Task, turns: Sequence[Turn]) -> str:
        """Makes the first call of each round alone."""
        rounds = task.gold_rounds and tuple(calls[:1] for calls in task.gold_rounds)
        return gold(task.model_copy(update={"gold_rounds": rounds}), turns)

    def asking(script) -> Asking:  # type: ignore[no-untyped-def]
        return Asking(ScriptedPolicy(script, renderer), renderer, Dialect())

    cases = BFCL_TURNS.load(shared_data, limit=3, categories=("multi_turn_base",)).cases
    limits = RolloutSettings(max_new_tokens=10**6, max_tokens=10**6, max_calls=10**6)
    made = attempt(asking(hasty), BFCL_TURNS, cases, [one.task for one in cases], {}, None, limits)
    for one, trajectory in zip(cases, made, strict=True):
        several = any(len(calls) > 1 for calls in one.task.gold_rounds or ())
        assert BFCL_TURNS.score(trajectory, one).right == float(not several)
    setting = BenchmarkSetting(
        arm="oracle", limit=2, categories=("multi_turn_miss_func",), max_new_tokens=10**6, max_tokens=10**6
    )
    (outcome,) = run_benchmarks(asking(gold), [BFCL_TURNS], shared_data, tmp_path, setting)
    assert [result.score.right for result in outcome.results] == [1, 1]
