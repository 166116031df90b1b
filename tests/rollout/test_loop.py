import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tirkit.rollout.group import rollout_groups
from tirkit.rollout.loop import Prompts, RolloutSettings, rollout
from tirkit.rollout.policy import GenerateRequest, Generation, RolloutError, RolloutRequest, ScriptedPolicy, oracle
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.text.dialects import Dialect, print_document
from tirkit.text.masks import token_row
from tirkit.tools.runtime import PythonToolbox, ToolboxError
from tirkit.types import Message, StopReason, Task, ToolCall, ToolErrorKind, ToolResult, Trajectory, Turn


def add(a: int, b: int) -> int:
    return a + b


def mul(a: int, b: int) -> int:
    return a * b


def fail() -> None:
    raise RuntimeError("broken")


def call(name: str, **arguments: int) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def question(text: str = "2 + 3?", **fields: object) -> Task:
    return Task(id="q", prompt=(Message(role="user", content=text),), **fields)  # type: ignore[arg-type]


TWO_ROUNDS = question(
    gold_rounds=((call("add", a=2, b=3), call("add", a=1, b=1)), (call("mul", a=5, b=2),)),
    answer="10",
    thoughts=("Sum first.", "Then the product.", "Done."),
)


@pytest.fixture
def toolbox(tiny: SimpleNamespace) -> PythonToolbox:
    return PythonToolbox({"add": add, "mul": mul, "fail": fail}, tiny.tools.values(), isolation="inline")


def play(
    tiny: SimpleNamespace, texts: Sequence[str], task: Task, toolbox: PythonToolbox, **settings: int
) -> Trajectory:
    """The attempt of a policy that writes `texts`, turn by turn."""
    policy = ScriptedPolicy(lambda _, turns: texts[len(turns)], tiny.renderer)
    request = RolloutRequest(task)
    limits = RolloutSettings(**settings)  # type: ignore[arg-type]
    return rollout([request], policy, tiny.renderer, tiny.dialect, tiny.tools, toolbox, limits)[0]


def test_oracle_plays_gold_in_two_steps(tiny: SimpleNamespace, toolbox: PythonToolbox) -> None:
    policy = ScriptedPolicy(oracle(tiny.dialect), tiny.renderer)
    trajectory = rollout([RolloutRequest(TWO_ROUNDS)], policy, tiny.renderer, tiny.dialect, tiny.tools, toolbox)[0]
    assert trajectory.stop is StopReason.ANSWERED
    assert trajectory.answer == "10"
    assert trajectory.calls == TWO_ROUNDS.gold_calls
    assert trajectory.selected == ("add", "mul")
    assert [turn.text for turn in trajectory.turns] == [
        "<think>\nSum first.\n</think>\n<tool_token>\n<<add>>\n</tool_token>",
        '<tool_call>\n{"name": "<<add>>", "arguments": {"a": 2, "b": 3}}\n'
        '{"name": "<<add>>", "arguments": {"a": 1, "b": 1}}\n</tool_call>',
        "<think>\nThen the product.\n</think>\n<tool_token>\n<<mul>>\n</tool_token>",
        '<tool_call>\n{"name": "<<mul>>", "arguments": {"a": 5, "b": 2}}\n</tool_call>',
        "<think>\nDone.\n</think>\n<answer>10</answer>",
    ]
    replies = [[message.content for message in turn.reply] for turn in trajectory.turns]
    assert replies == [[print_document(tiny.tools["add"])], ["5\n2"], [print_document(tiny.tools["mul"])], ["10"], []]
    assert [result.content for result in trajectory.turns[1].results] == ["5", "2"]
    assert not any(turn.problems for turn in trajectory.turns)


def test_oracle_plays_gold_by_plain_name(tiny: SimpleNamespace, toolbox: PythonToolbox) -> None:
    dialect = Dialect()
    settings = RolloutSettings(prompt="documents")
    policy = ScriptedPolicy(oracle(dialect), tiny.renderer)
    (trajectory,) = rollout([RolloutRequest(TWO_ROUNDS)], policy, tiny.renderer, dialect, tiny.tools, toolbox, settings)
    assert trajectory.calls == TWO_ROUNDS.gold_calls
    assert (trajectory.stop, trajectory.answer, len(trajectory.turns)) == (StopReason.ANSWERED, "10", 3)
    assert "Multiply two integers." in tiny.renderer.decode(trajectory.prompt_ids)


def test_every_turn_sees_exactly_the_ids_before_it(tiny: SimpleNamespace, toolbox: PythonToolbox) -> None:
    seen: list[GenerateRequest] = []

    class Spy(ScriptedPolicy):
        def write(self, request: GenerateRequest) -> Generation:
            seen.append(request)
            return super().write(request)

    policy = Spy(oracle(tiny.dialect), tiny.renderer)
    (trajectory,) = rollout([RolloutRequest(TWO_ROUNDS)], policy, tiny.renderer, tiny.dialect, tiny.tools, toolbox)
    before = trajectory.prompt_ids
    for request, turn in zip(seen, trajectory.turns, strict=True):
        assert request.ids == before
        before = (*before, *turn.ids, *turn.reply_ids)
    assert trajectory.turns[-1].reply_ids == ()
    assert len({request.seed for request in seen}) == len(seen)
    # Documents and results are not trained, everything the policy wrote is.
    row = token_row(trajectory)
    assert list(row.completion_ids) == list(before[len(trajectory.prompt_ids) :])
    assert list(row.tool_mask) == [
        mark for turn in trajectory.turns for mark in [1] * len(turn.ids) + [0] * len(turn.reply_ids)
    ]
    # Rendering the messages anew gives the same ids here, since all of it was canonical text.
    assert list(before[: len(seen[-1].ids)]) == tiny.renderer.prompt_ids(seen[-1].messages)


SELECT_ADD = "<tool_token>\n<<add>>\n</tool_token>"
CALL_ADD = '<tool_call>\n{"name": "<<add>>", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
CALL_MUL = '<tool_call>\n{"name": "<<mul>>", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
ANSWER = "<answer>5</answer>"
UNKNOWN = "<tool_token>\nsub\n</tool_token>"


@pytest.mark.parametrize(
    ("texts", "stop"),
    [
        ([ANSWER], StopReason.ANSWERED),
        ([SELECT_ADD, ANSWER], StopReason.ANSWERED),  # selecting and not calling is well-formed
        (["hello"], StopReason.MALFORMED),
        ([SELECT_ADD, "hello"], StopReason.MALFORMED),
        ([CALL_ADD], StopReason.MALFORMED),  # called without having selected
        ([SELECT_ADD, CALL_MUL], StopReason.MALFORMED),  # called another than selected
        ([SELECT_ADD, SELECT_ADD], StopReason.MALFORMED),  # two selections in one round
        ([SELECT_ADD, CALL_ADD, CALL_ADD], StopReason.MALFORMED),  # a new round begins with a selection
        ([UNKNOWN, UNKNOWN], StopReason.ABSTAINED),
        ([UNKNOWN, SELECT_ADD, CALL_ADD, ANSWER], StopReason.ANSWERED),  # the retry is used
        ([UNKNOWN, SELECT_ADD, CALL_ADD, UNKNOWN], StopReason.ABSTAINED),  # one retry an attempt
        ([UNKNOWN, "hello"], StopReason.MALFORMED),
    ],
)
def test_stop_reasons(tiny: SimpleNamespace, toolbox: PythonToolbox, texts: list[str], stop: StopReason) -> None:
    trajectory = play(tiny, texts, question(), toolbox)
    assert trajectory.stop is stop
    assert len(trajectory.turns) == len(texts)
    assert bool(trajectory.turns[-1].problems) == (stop in (StopReason.MALFORMED, StopReason.ABSTAINED))
    assert trajectory.turns[-1].reply == ()


def test_unknown_tool_is_named_to_the_policy(tiny: SimpleNamespace, toolbox: PythonToolbox) -> None:
    trajectory = play(tiny, [UNKNOWN, ANSWER], question(), toolbox)
    assert "unknown tool 'sub'" in trajectory.turns[0].reply[0].content
    assert trajectory.turns[0].problems == ("unknown tool 'sub'",)


def test_limits(tiny: SimpleNamespace, toolbox: PythonToolbox) -> None:
    texts = [SELECT_ADD, CALL_ADD] * 4
    assert play(tiny, texts, question(), toolbox, max_calls=1).stop is StopReason.MAX_CALLS
    turns = play(tiny, texts, question(), toolbox, max_turns=3)
    assert (turns.stop, len(turns.turns)) == (StopReason.MAX_TURNS, 3)
    assert turns.turns[-1].reply == ()  # nothing follows the last turn
    short = play(tiny, [ANSWER], question(), toolbox, max_new_tokens=3)
    assert (short.stop, len(short.turns[0].ids)) == (StopReason.MAX_TOKENS, 3)
    assert tiny.renderer.end_of_turn_id not in short.turns[0].ids
    whole = play(tiny, texts, question(), toolbox, max_tokens=150)
    assert whole.stop is StopReason.MAX_TOKENS
    assert sum(len(turn.ids) + len(turn.reply_ids) for turn in whole.turns) <= 150


def test_a_last_call_over_the_limit_is_recorded_and_not_run(tiny: SimpleNamespace, toolbox: PythonToolbox) -> None:
    trajectory = play(tiny, [SELECT_ADD, CALL_ADD, SELECT_ADD, CALL_ADD], question(), toolbox, max_calls=1)
    assert len(trajectory.calls) == 2
    assert trajectory.turns[-1].results == ()


def test_calls_only_stops_when_the_calls_are_made(tiny: SimpleNamespace) -> None:
    policy = ScriptedPolicy(oracle(tiny.dialect), tiny.renderer)
    task = TWO_ROUNDS.model_copy(update={"calls_only": True})
    (trajectory,) = rollout([RolloutRequest(task)], policy, tiny.renderer, tiny.dialect, tiny.tools)
    assert trajectory.stop is StopReason.CALLS_COMPLETE
    assert trajectory.calls == TWO_ROUNDS.gold_rounds[0]  # type: ignore[index]
    assert trajectory.turns[-1].results == ()


def test_no_tool_task_is_answered(tiny: SimpleNamespace) -> None:
    policy = ScriptedPolicy(oracle(tiny.dialect), tiny.renderer)
    task = question("Hello!", gold_rounds=(), calls_only=True)
    (trajectory,) = rollout([RolloutRequest(task)], policy, tiny.renderer, tiny.dialect, tiny.tools)
    assert (trajectory.stop, trajectory.answer) == (StopReason.ANSWERED, "Done.")


def test_a_raising_tool_is_text_for_the_policy(tiny: SimpleNamespace, toolbox: PythonToolbox) -> None:
    texts = [
        "<tool_token>\n<<fail>>\n</tool_token>",
        '<tool_call>\n{"name": "<<fail>>", "arguments": {}}\n</tool_call>',
        ANSWER,
    ]
    trajectory = play(tiny, texts, question(), toolbox)
    assert trajectory.stop is StopReason.ANSWERED
    assert trajectory.turns[1].results[0].error is ToolErrorKind.RAISED
    assert "broken" in trajectory.turns[1].reply[0].content


def test_one_step_dialect_calls_straight_away(tiny: SimpleNamespace, toolbox: PythonToolbox) -> None:
    dialect = replace(tiny.dialect, two_step=False)
    policy = ScriptedPolicy(oracle(dialect), tiny.renderer)
    (trajectory,) = rollout([RolloutRequest(TWO_ROUNDS)], policy, tiny.renderer, dialect, tiny.tools, toolbox)
    assert (trajectory.stop, trajectory.calls) == (StopReason.ANSWERED, TWO_ROUNDS.gold_calls)
    assert trajectory.selected == ()


def test_a_silent_endpoint_stops_its_attempt_only(tiny: SimpleNamespace, toolbox: PythonToolbox) -> None:
    class Flaky(ScriptedPolicy):
        def write(self, request: GenerateRequest) -> Generation:
            return Generation((), (), "", "failed") if request.task.id == "bad" else super().write(request)

    policy = Flaky(oracle(tiny.dialect), tiny.renderer)
    requests = [RolloutRequest(TWO_ROUNDS), RolloutRequest(TWO_ROUNDS.model_copy(update={"id": "bad"}))]
    good, bad = rollout(requests, policy, tiny.renderer, tiny.dialect, tiny.tools, toolbox)
    assert good.stop is StopReason.ANSWERED
    assert (bad.stop, bad.turns, bad.answer) == (StopReason.POLICY_FAILED, (), None)


def test_what_the_caller_got_wrong_raises(tiny: SimpleNamespace, toolbox: PythonToolbox) -> None:
    policy = ScriptedPolicy(oracle(tiny.dialect), tiny.renderer)
    with pytest.raises(RolloutError, match="toolbox"):
        rollout([RolloutRequest(TWO_ROUNDS)], policy, tiny.renderer, tiny.dialect, tiny.tools)
    task = question(tools=("nope",))
    with pytest.raises(RolloutError, match="lacks"):
        rollout([RolloutRequest(task)], policy, tiny.renderer, tiny.dialect, tiny.tools, toolbox)


def test_prompt_documents(tiny: SimpleNamespace) -> None:
    def names(task: Task, **settings: object) -> list[str]:
        return [tool.name for tool in Prompts(tiny.tools, RolloutSettings(**settings)).documents(task)]  # type: ignore[arg-type]

    task = question("multiply 2 and 3")
    assert names(task) == []
    assert names(task, prompt="documents") == ["add", "mul", "fail"]
    assert names(task, prompt="retrieve", k=1) == ["mul"]
    few = task.model_copy(update={"tools": ("fail", "add")})
    assert names(few, prompt="documents") == ["fail", "add"]
    assert set(names(few, prompt="retrieve", k=5)) == {"add", "fail"}


def test_groups_have_copies_with_their_own_seeds(tiny: SimpleNamespace, toolbox: PythonToolbox) -> None:
    tasks = [question("2 + 3?").model_copy(update={"id": str(i)}) for i in range(3)]
    policy = TransformersPolicy(tiny.model, tiny.renderer, temperature=2.0)
    settings = RolloutSettings(max_new_tokens=10)
    args = (policy, tiny.renderer, tiny.dialect, tiny.tools, toolbox, settings)
    groups = rollout_groups(tasks, 4, *args, seed=1)
    assert [group.task_id for group in groups] == ["0", "1", "2"]
    flat = [trajectory for group in groups for trajectory in group.trajectories]
    assert [t.copy_index for t in flat] == [0, 1, 2, 3] * 3
    assert len({t.seed for t in flat}) == 12
    assert len({t.turns[0].ids for t in flat}) > 6
    # Other company in the batch, same attempt.
    assert rollout_groups(tasks[1:2], 4, *args, seed=1)[0] == groups[1]
    assert all(math.isfinite(logp) for t in flat for logp in t.turns[0].logps)
    assert all(len(turn.logps) == len(turn.ids) for t in flat for turn in t.turns)


def test_scripted_policy_is_cut_off_at_its_budget(tiny: SimpleNamespace) -> None:
    def script(task: Task, turns: Sequence[Turn]) -> str:
        return ANSWER

    policy = ScriptedPolicy(script, tiny.renderer)
    request = GenerateRequest(question(), (), (), (), seed=0, max_new_tokens=2)
    (generation,) = policy.generate([request])
    assert generation.finish == "length"
    assert ANSWER.startswith(generation.text)


class Gate:
    """Runs `mul` only after `add` ran `times` times; says in `order` what ran."""

    def __init__(self, times: int):
        self.times, self.order, self.open = times, [], threading.Event()

    def run(self, call: ToolCall) -> ToolResult:
        if call.name == "mul" and not self.open.wait(timeout=10):
            return ToolResult(name="mul", content="nobody came")
        self.order.append(call.name)
        if self.order.count("add") == self.times:
            self.open.set()
        return ToolResult(name=call.name, content=call.name)


def slow_and_quick(gate_times: int) -> tuple[list[RolloutRequest], "Gate"]:
    slow = question(gold_rounds=((call("mul", a=1, b=1),),), answer="1").model_copy(update={"id": "slow"})
    quick = question(gold_rounds=((call("add", a=1, b=1),),) * 3, answer="2")
    return [RolloutRequest(slow), RolloutRequest(quick), RolloutRequest(quick)], Gate(gate_times)


def test_a_slow_tool_delays_its_own_attempt_only(tiny: SimpleNamespace) -> None:
    # The slow tool ends only after all six calls of the other two attempts: in step it never would.
    requests, gate = slow_and_quick(6)
    policy = ScriptedPolicy(oracle(tiny.dialect), tiny.renderer)
    slow, *others = rollout(requests, policy, tiny.renderer, tiny.dialect, tiny.tools, gate)
    assert gate.order == ["add"] * 6 + ["mul"]
    assert [result.content for turn in slow.turns for result in turn.results] == ["mul"]
    assert {t.stop for t in (slow, *others)} == {StopReason.ANSWERED}


def test_calls_of_one_turn_run_beside_each_other_and_keep_their_order(tiny: SimpleNamespace) -> None:
    task = question(gold_rounds=((call("mul", a=1, b=1), call("add", a=1, b=1)),), answer="1")
    policy = ScriptedPolicy(oracle(tiny.dialect), tiny.renderer)
    gate = Gate(1)
    (trajectory,) = rollout([RolloutRequest(task)], policy, tiny.renderer, tiny.dialect, tiny.tools, gate)
    assert gate.order == ["add", "mul"]
    assert trajectory.turns[1].reply[0].content == "mul\nadd"


def test_without_threads_calls_run_in_the_order_of_the_requests(tiny: SimpleNamespace) -> None:
    requests, gate = slow_and_quick(0)
    gate.open.set()
    policy = ScriptedPolicy(oracle(tiny.dialect), tiny.renderer)
    rollout(requests, policy, tiny.renderer, tiny.dialect, tiny.tools, gate, RolloutSettings(workers=0))
    assert gate.order == ["mul"] + ["add"] * 6


def test_a_broken_toolbox_stops_the_rollout(tiny: SimpleNamespace) -> None:
    class Broken:
        def run(self, call: ToolCall) -> ToolResult:
            raise ToolboxError("no workers")

    policy = ScriptedPolicy(oracle(tiny.dialect), tiny.renderer)
    with pytest.raises(ToolboxError, match="no workers"):
        rollout([RolloutRequest(TWO_ROUNDS)], policy, tiny.renderer, tiny.dialect, tiny.tools, Broken())
