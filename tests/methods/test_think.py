from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tirkit.methods.tinr.think import (
    MENTIONS_LIST,
    Rejection,
    ThinkSettings,
    Warmup,
    candidates,
    replay_mix,
    tokens_for_names,
    warm_up,
)
from tirkit.rollout.policy import ScriptedPolicy, oracle
from tirkit.text.dialects import Dialect, print_document
from tirkit.text.render import encode
from tirkit.tools.retrieve import ToolRetriever
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, Task, ToolCall, ToolSchema, Turn


def add(a: int, b: int) -> int:
    return a + b


TASK = Task(
    id="q",
    prompt=(Message(role="user", content="2 + 3?"),),
    gold_rounds=((ToolCall(name="add_two", arguments={"a": 2, "b": 3}),),),
    answer="5",
    thoughts=("I need add_two, not mul.", "add_two gave 5."),
)
CHAT = Task(id="chat", prompt=(Message(role="user", content="Hello"),), gold_rounds=())


def run(
    four: SimpleNamespace, *texts: str, task: Task = TASK, dialect: Dialect | None = None, samples: int = 1
) -> Warmup:
    """What is made of a teacher that writes `texts`; of one that plays gold where there are none."""
    toolbox = PythonToolbox({"add_two": add, "mul": add}, four.tools, isolation="inline")

    def script(task: Task, turns: Sequence[Turn]) -> str:
        return texts[len(turns)] if texts else oracle(Dialect())(task, turns)

    teacher = ScriptedPolicy(script, four.renderer, "teacher")
    settings = ThinkSettings(candidates=3, samples=samples)
    return warm_up([task], teacher, four.renderer, dialect or four.dialect, four.by_name, toolbox, settings)


def test_gold_becomes_two_step_with_tokens_in_the_reasoning(four: SimpleNamespace) -> None:
    warmup = run(four)
    assert warmup.rejected == {}
    (trajectory,) = warmup.kept
    texts = [turn.text for turn in trajectory.turns]
    assert texts[0].endswith("\n</think>\n<tool_token>\n<<add_two>>\n</tool_token>")
    assert "I need <<add_two>>, not " in texts[0]
    assert texts[1] == '<tool_call>\n{"name": "<<add_two>>", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
    assert texts[2] == "<think>\n<<add_two>> gave 5.\n</think>\n<answer>5</answer>"
    replies = [[message.content for message in turn.reply] for turn in trajectory.turns]
    assert replies == [[print_document(four.by_name["add_two"])], ["5"], []]
    # The candidates are gone: the prompt is the question alone, and nothing of the teacher's ids is left.
    assert (trajectory.prompt, trajectory.prompt_ids, trajectory.turns[1].ids) == (TASK.prompt, (), ())
    filled = encode(four.renderer, trajectory)
    assert "Multiply" not in four.renderer.decode(filled.prompt_ids)
    assert four.renderer.completion_ids("<<add_two>>")[0] in filled.turns[0].ids
    assert trajectory.policy == "teacher"


def test_other_student_dialects(four: SimpleNamespace) -> None:
    (one_step,) = run(four, dialect=replace(four.dialect, two_step=False)).kept
    assert [bool(turn.calls) for turn in one_step.turns] == [True, False]
    assert one_step.turns[0].text.startswith("<think>\nI need <<add_two>>")
    (plain,) = run(four, dialect=Dialect()).kept
    assert "I need add_two, not mul." in plain.turns[0].text


def test_no_tool_items_are_plain_replies(four: SimpleNamespace) -> None:
    (kept,) = run(four, "<think>\nJust talk.\n</think>\n<answer>Hi!</answer>", task=CHAT).kept
    assert [turn.text for turn in kept.turns] == ["<think>\nJust talk.\n</think>\n<answer>Hi!</answer>"]


def calls(name: str = "add_two", b: str = "3") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {{"a": 2, "b": {b}}}}}\n</tool_call>'


FIVE = "<answer>5</answer>"


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["what?"], Rejection.UNFINISHED),
        ([calls("nope"), calls("nope")], Rejection.UNFINISHED),
        ([FIVE], Rejection.WRONG_TOOLS),
        ([calls("mul"), FIVE], Rejection.WRONG_TOOLS),
        ([calls(), calls(), FIVE], Rejection.WRONG_TOOLS),
        ([calls(b="4"), FIVE], Rejection.WRONG_ARGUMENTS),
        ([calls(b="3.0"), FIVE], Rejection.WRONG_ARGUMENTS),  # types are strict
        ([calls(), "<answer>6</answer>"], Rejection.WRONG_ANSWER),
        (["<think>\nOf the candidates add_two fits.\n</think>\n" + calls(), FIVE], Rejection.LIST_MENTIONED),
        (["<think>\nNot <<mul>>.\n</think>\n" + calls(), FIVE], Rejection.MISSPELLED),
    ],
)
def test_rejections(four: SimpleNamespace, texts: list[str], reason: Rejection) -> None:
    warmup = run(four, *texts)
    assert (warmup.kept, warmup.rejected) == ((), {reason: 1})


def test_a_student_that_must_think_gets_no_thoughtless_examples(four: SimpleNamespace) -> None:
    warmup = run(four, calls(), FIVE, dialect=replace(four.dialect, think="required"))
    assert warmup.rejected == {Rejection.MISSPELLED: 1}


def test_equal_attempts_at_a_task_are_kept_once(four: SimpleNamespace) -> None:
    warmup = run(four, samples=3)
    assert (len(warmup.kept), warmup.rejected) == (1, {Rejection.DUPLICATE: 2})


@pytest.mark.parametrize(
    ("thought", "mentions"),
    [
        ("Among the candidate tools, add fits.", True),
        ("The tools listed above include add.", True),
        ("I look at the available tools.", True),
        ("Looking at the list of functions, add fits.", True),
        ("None of the tools I was given does this.", True),
        ("I can list files with ls.", False),
        ("The first tool gives 3, the second one needs it.", False),
        ("I add the numbers in a list.", False),
    ],
)
def test_mentions_of_the_list(thought: str, mentions: bool) -> None:
    assert bool(MENTIONS_LIST.search(thought)) == mentions


def test_names_are_rewritten_longest_first_and_whole(four: SimpleNamespace) -> None:
    names = ["get weather", "mul", "ping"]
    text = "`mul` (not simultaneous, mul_2 or add_two), then get weather; ping."
    expected = "`<<mul>>` (not simultaneous, mul_2 or add_two), then <<get weather>>; <<ping>>."
    assert tokens_for_names(text, names, four.index) == expected
    assert tokens_for_names(text, [], four.index) == text


def test_candidates_are_gold_then_half_retrieved_then_random() -> None:
    tools = {f"t{i}": ToolSchema(name=f"t{i}", description=f"about subject{i % 10}") for i in range(40)}
    retriever = ToolRetriever(tools.values())
    task = Task(
        id="x", prompt=(Message(role="user", content="subject3 please"),), gold_rounds=((ToolCall(name="t5"),),)
    )
    chosen = candidates(task, retriever, tools, 10, seed=0)
    assert len(set(chosen)) == len(chosen) == 10
    assert "t5" in chosen
    # 9 places left: 5 retrieved, of which the 4 about subject3 come first
    assert {"t3", "t13", "t23", "t33"} <= set(chosen)
    assert chosen == candidates(task, retriever, tools, 10, seed=0) != candidates(task, retriever, tools, 10, seed=1)
    other = task.model_copy(update={"query": "subject4 please"})  # searched by its query where it has one
    assert {"t4", "t14", "t24", "t34"} <= set(candidates(other, retriever, tools, 10, seed=0))
    assert len(candidates(task, ToolRetriever(list(tools.values())[:6]), dict(list(tools.items())[:6]), 10, 0)) == 6


def test_replay_makes_up_its_fraction() -> None:
    # 90 + r = n with r / n = .1: r = 10
    mixed = replay_mix(["m"] * 90, [f"r{i}" for i in range(50)], 0.1, seed=1)
    replayed = [item for item in mixed if item != "m"]
    assert (len(mixed), len(replayed), len(set(replayed))) == (100, 10, 10)
    assert replay_mix(["m"] * 4, ["r"], 0.5, seed=1).count("r") == 4  # too few: repeated
    assert replay_mix(["m"], ["r"], 0.0, seed=1) == ["m"]
    assert replay_mix(["m"], [], 0.5, seed=1) == ["m"]
    with pytest.raises(ValueError, match="fraction"):
        replay_mix(["m"], ["r"], 1.0, seed=1)
