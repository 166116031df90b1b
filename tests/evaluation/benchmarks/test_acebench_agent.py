"""ACEBench's agent part: milestones as calls, scenarios as tools, and what the authors' code says to the same calls."""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tirkit.evaluation.benchmarks.acebench_agent import (
    ACEBENCH_AGENT,
    DONE,
    GO_ON,
    ROUNDS,
    Scenario,
    accepted_values,
    attributes_right,
    calls_problem,
    official_problem,
    process_accuracy,
    read_milestone,
)
from tirkit.evaluation.benchmarks.agreement import agreement_table, compare
from tirkit.evaluation.benchmarks.base import BenchmarkError, Case
from tirkit.evaluation.benchmarks.runner import Asking, attempt
from tirkit.rollout.loop import RolloutSettings
from tirkit.rollout.policy import ScriptedPolicy
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.types import Task, ToolCall, ToolErrorKind, ToolSchema, Trajectory, Turn

SEND = ToolSchema(
    name="send",
    parameters={"type": "object", "properties": {"to": {}, "message": {}, "message_id": {"type": "integer"}}},
)
PING = ToolSchema(name="ping", parameters={"type": "object", "properties": {}})


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[ping()]", [call("ping")]),
        ("[send(to='Bo', message_id=-3)]", [call("send", to="Bo", message_id=-3)]),
        ("[send(message='it's (very) late, Ada', to='Bo')]", [call("send", message="it's (very) late, Ada", to="Bo")]),
        ("[send(to=[{'a': 1.5}], message='x'), ping()]", [call("send", to=[{"a": 1.5}], message="x"), call("ping")]),
        ("[send(to=None, message=True)]", [call("send", to=None, message=True)]),
    ],
)
def test_milestones_are_read(text: str, calls: list[ToolCall]) -> None:
    assert list(read_milestone(text, [SEND, PING])) == calls


def test_a_milestone_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="no function 'pong'"):
        read_milestone("[pong()]", [SEND, PING])
    with pytest.raises(ValueError, match="no call"):
        read_milestone("finish", [SEND, PING])
    with pytest.raises(SyntaxError):
        read_milestone("[send(to='Bo' 3)]", [SEND, PING])


@pytest.fixture
def step(tiny_data: Path) -> Case:
    """Wi-Fi is off, both places for messages are taken."""
    return ACEBENCH_AGENT.load(tiny_data, categories=("agent_multi_step",)).cases[0]


@pytest.fixture
def turn(tiny_data: Path) -> Case:
    return ACEBENCH_AGENT.load(tiny_data, categories=("agent_multi_turn",)).cases[0]


def test_a_function_changes_every_class_that_has_it(step: Case) -> None:
    scenario = Scenario(step)
    assert scenario.run(call("send_message", receiver_name="Bo", message="x")).content == '{"status": false}'
    assert scenario.run(call("turn_on_wifi")).content == '{"status": true}'
    scenario.run(call("delete_message", message_id=2))
    assert scenario.run(call("send_message", receiver_name="Bo", message="x")).content == '{"status": true}'
    assert scenario.state() == {  # the Wi-Fi of the messages' phone is on too, else nothing had been sent
        "BaseApi": {"wifi": True},
        "MessageApi": {"inbox": {"1": {"to": "Ada", "message": "Hi"}, "3": {"to": "Bo", "message": "x"}}},
    }


def test_only_functions_of_the_case_are_run_and_odd_values_are_answered(step: Case) -> None:
    scenario = Scenario(step)
    for name in ("_load_scenario", "__init__", "hidden"):
        assert scenario.run(call(name)).error == ToolErrorKind.UNKNOWN_TOOL
    assert scenario.run(call("delete_message", message_id=7)).error == ToolErrorKind.RAISED
    assert scenario.run(call("delete_message", x=1)).content.startswith("Error during execution: ")
    assert scenario.state() == Scenario(step).state()


def test_the_state_decides(step: Case, turn: Case) -> None:
    wifi, delete, send = (calls[0] for calls in step.task.gold_rounds or ())
    assert calls_problem([wifi, delete, send], step) == ""
    assert calls_problem([delete, wifi, wifi, send], step) == ""  # another way to the same state
    assert calls_problem([wifi, send], step) == "other state"
    assert calls_problem([], step) == "no call"
    look, book = (calls[0] for calls in turn.task.gold_rounds or ())
    assert [calls_problem(calls, turn) for calls in ([look, book], [book], [book, book], [look])] == [
        "",
        "",
        "other state",
        "other state",
    ]


def test_of_an_object_all_entries_wanted_must_be_there() -> None:
    wanted = {"inbox": {"1": "a"}, "wifi": True, "list": [1]}
    assert attributes_right({"inbox": {"1": "a", "2": "b"}, "wifi": True}, wanted)  # one more, as for the authors
    assert not attributes_right({"inbox": {"2": "b"}}, wanted)
    assert not attributes_right({"inbox": {"1": "b"}}, wanted)
    assert not attributes_right({"list": [1, 2]}, wanted)
    assert not attributes_right({"other": 1}, wanted)


def test_milestones_count_in_their_order(step: Case, turn: Case) -> None:
    wifi, delete, send = step.task.gold_rounds or ()
    other = (call("send_message", message="it's late, Ada", receiver_name="Bo"),)  # arguments in another order
    assert process_accuracy([wifi, delete, other], step) == 1
    assert process_accuracy([delete, wifi, wifi, send], step) == pytest.approx(1 / 3)  # delete is not found after wifi
    assert process_accuracy([(*wifi, *delete), send], step) == 0  # two milestones in one turn are none
    assert process_accuracy([], step) == 0
    look, book = turn.task.gold_rounds or ()
    assert process_accuracy([look], turn) == 0.5  # of the first way; none of the second
    assert process_accuracy([book], turn) == 1  # of the second


def played(case: Case, renderer: Renderer, texts: Sequence[str]) -> Trajectory:
    def script(task: Task, turns: Sequence[Turn]) -> str:
        written.append(turns)
        return texts[min(len(written), len(texts)) - 1]

    written: list[Sequence[Turn]] = []
    asking = Asking(ScriptedPolicy(script, renderer), renderer, Dialect())
    limits = RolloutSettings(max_new_tokens=10**6, max_tokens=10**6, max_calls=10**6)
    return attempt(asking, ACEBENCH_AGENT, [case], [case.task], {}, None, limits)[0]


def test_who_does_not_call_is_told_to_go_on(step: Case, renderer: Renderer) -> None:
    say, dialect = Dialect().print_answer, Dialect()
    gold = [dialect.print_calls(calls) for calls in step.task.gold_rounds or ()]
    made = played(step, renderer, [gold[0], say("Which one?"), *gold[1:], say(DONE), say("never said")])
    assert [turn.reply[-1].content for turn in made.turns if turn.answer == "Which one?"] == [GO_ON]
    assert (len(made.turns), made.prompt) == (5, step.task.prompt)
    score = ACEBENCH_AGENT.score(made, step)
    assert (score.right, score.values["process"]) == (1, 1)
    endless = played(step, renderer, [say("Which one?")])
    assert len(endless.turns) == ROUNDS
    score = ACEBENCH_AGENT.score(endless, step)
    assert (score.right, score.why, score.values["process"]) == (0, "no call", 0)


def test_without_a_checkout_it_is_said_what_is_missing(shared_data: Path, tmp_path: Path) -> None:
    (case, *_) = ACEBENCH_AGENT.load(shared_data).cases
    case = Case(case.task, case.tools, {**case.gold, "checkout": str(tmp_path)})  # type: ignore[dict-item]
    with pytest.raises(BenchmarkError, match=r"no checkout of https://github\.com/ACEBench/ACEBench at"):
        Scenario(case)


def test_the_authors_code_gives_the_same(
    shared_data: Path, acebench_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = ACEBENCH_AGENT.load(shared_data).cases
    found = compare(cases, calls_problem, official_problem, accepted_values, num_mutants=40)
    assert found.num_compared == 41 * len(cases)
    assert not found.disagreements, agreement_table({"agent": found})
    assert found.both_right >= len(cases)  # the gold of every one
    monkeypatch.syspath_prepend(str(acebench_checkout))
    for kind in ("step", "turn"):
        module = importlib.import_module(f"model_inference.multi_{kind}.multi_{kind}_utils")
        execute = module.execute_agent_func_call
        for number, case in enumerate(one for one in cases if one.task.kind == f"agent_multi_{kind}"):
            compare_runs(case, execute, f"m{number}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "model_inference"]:
        del sys.modules[name]


def compare_runs(case: Case, execute: Any, name: str) -> None:
    """The gold calls, and each with its first parameter gone: what the authors' runner gives back, and leaves."""
    gold: Any = case.gold
    scenario, calls = Scenario(case), list(case.task.gold_calls or ())
    if case.task.kind == "agent_multi_step":  # in several turns the authors' runner gives an error letter by letter
        calls += [ToolCall(name=one.name, arguments=dict(list(one.arguments.items())[1:])) for one in calls]
    for one in calls:
        text = f"{one.name}({', '.join(f'{key}={value!r}' for key, value in one.arguments.items())})"
        (theirs,), parts = execute(
            func_call_list=[text],
            initial_config=gold["initial"],
            involved_classes=gold["classes"],
            model_name=name,
            test_entry_id="0",
            language="en",
        )
        assert scenario.run(one).content == theirs
    left = {part: {key: getattr(parts[part], key) for key in state} for part, state in scenario.state().items()}
    assert scenario.state() == json.loads(json.dumps(left))
