import json
import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tirkit.methods.tinr.corpus import (
    CorpusSettings,
    alignment_corpus,
    keywords,
    loss_weights,
    memorise,
    pseudo_call,
    recall,
    split_name,
    use,
    view,
)
from tirkit.methods.tinr.values import MAX_ITEMS, random_arguments
from tirkit.rollout.loop import RolloutSettings
from tirkit.text.dialects import Dialect, print_document
from tirkit.text.masks import token_row
from tirkit.text.render import encode
from tirkit.text.schema import validate_arguments
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, StopReason, Task, ToolCall, ToolSchema

SETTINGS = CorpusSettings()


def test_counts_weights_and_determinism(four: SimpleNamespace) -> None:
    corpus = alignment_corpus(four.tools, four.dialect, SETTINGS, seed=3)
    # per tool 6 memorise + 1 recall + 4 views + 3 pseudo calls, four tools
    assert Counter(example.kind for example in corpus) == {"memorise": 24, "recall": 4, "view": 16, "pseudo_call": 12}
    assert {(example.kind, example.weight) for example in corpus} == {
        ("memorise", "memorise"),
        ("recall", "recall"),
        ("view", "memorise"),
        ("pseudo_call", "use"),
    }
    assert loss_weights(CorpusSettings(alpha=0.3, beta=2.0)) == {"memorise": 1.0, "recall": 0.3, "use": 2.0}
    assert corpus == alignment_corpus(four.tools, four.dialect, SETTINGS, seed=3)
    assert corpus != alignment_corpus(four.tools, four.dialect, SETTINGS, seed=4)
    # An example is a function of (seed, tool, i): other tools and other counts beside it change nothing.
    few = alignment_corpus(four.tools[1:2], four.dialect, replace(SETTINGS, memorise=2), seed=3)
    assert [e for e in few if e.kind != "memorise"] == [
        e for e in corpus if e.trajectory.task_id.split("/")[1] == "mul" and e.kind != "memorise"
    ]
    assert len({e.trajectory.task_id for e in corpus}) == len(corpus)


def test_ablations(four: SimpleNamespace) -> None:
    def kinds(**changes: float) -> set[str]:
        settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
        return {example.kind for example in alignment_corpus(four.tools, four.dialect, settings)}

    assert kinds(alpha=0) == {"memorise", "view", "pseudo_call"}
    assert kinds(beta=0) == {"memorise", "recall", "view"}
    assert kinds(views=0, pseudo_calls=0) == {"memorise", "recall"}
    assert kinds(alpha=0, beta=0, views=0) == {"memorise"}


def test_memorise_reads_the_document_and_writes_the_token(four: SimpleNamespace) -> None:
    tool = four.tools[0]
    whole = memorise(tool, four.dialect, SETTINGS, 0, 0).trajectory
    assert print_document(tool) in whole.prompt[0].content
    assert [turn.text for turn in whole.turns] == ["<tool_token>\n<<add_two>>\n</tool_token>"]
    varied = {memorise(tool, four.dialect, SETTINGS, 0, i).trajectory.prompt[0].content for i in range(30)}
    assert len(varied) > 15
    assert all("add_two" in content or "Add two integers." in content for content in varied)
    assert any("parameters" not in content for content in varied)  # a field was dropped
    hidden = replace(SETTINGS, names_in_documents=False)
    for i in range(30):
        assert "add_two" not in memorise(tool, four.dialect, hidden, 0, i).trajectory.prompt[0].content


def test_what_is_trained_position_by_position(four: SimpleNamespace) -> None:
    decode, tool = four.renderer.decode, four.tools[2]
    row = token_row(encode(four.renderer, recall(tool, four.dialect).trajectory))
    # recall: the token is given, as the real token; the document and its end are trained
    token = four.renderer.completion_ids("<<get weather>>")[0]
    assert row.prompt_ids.count(token) == 1
    assert token not in row.completion_ids
    assert set(row.tool_mask) == {1}
    assert decode(row.completion_ids) == print_document(tool)
    assert row.completion_ids[-1] == four.renderer.end_of_turn_id
    # pseudo call: selection and call are trained, the document between them is not
    trajectory = encode(four.renderer, pseudo_call(tool, four.dialect, SETTINGS, 0, 0).trajectory)
    row = token_row(trajectory)
    trained = [i for i, mark in zip(row.completion_ids, row.tool_mask, strict=True) if mark]
    masked = [i for i, mark in zip(row.completion_ids, row.tool_mask, strict=True) if not mark]
    assert print_document(tool) in decode(masked)
    assert trained == [*trajectory.turns[0].ids, *trajectory.turns[1].ids]
    # a memorise prompt that spells the token does not hold it
    spelled = tool.model_copy(update={"description": "Like <<mul>> or </tool_token>."})
    row = token_row(encode(four.renderer, memorise(spelled, four.dialect, SETTINGS, 0, 0).trajectory))
    assert four.renderer.completion_ids("<<mul>>")[0] not in row.prompt_ids


def test_everything_reads_back_as_well_formed(four: SimpleNamespace) -> None:
    for example in alignment_corpus(four.tools, four.dialect, SETTINGS):
        for turn in example.trajectory.turns:
            if example.kind != "recall":
                assert four.dialect.parse(turn.text).problems == ()


def test_views_speak_like_users(four: SimpleNamespace) -> None:
    contents = [view(four.tools[0], four.dialect, SETTINGS, 0, i).trajectory.prompt[0].content for i in range(40)]
    assert len(set(contents)) > 8
    assert any("Add two integers" in content for content in contents)
    assert any("add two" in content for content in contents)
    assert not any("{" in content for content in contents)
    bare = [view(four.tools[3], four.dialect, SETTINGS, 0, i).trajectory.prompt[0].content for i in range(5)]
    assert all("ping" in content for content in bare)  # no description: the name is all there is


def test_pseudo_calls_state_the_values_they_call_with(four: SimpleNamespace) -> None:
    for i in range(30):
        trajectory = pseudo_call(four.tools[2], four.dialect, SETTINGS, 0, i).trajectory
        (call,) = trajectory.calls
        assert validate_arguments(four.tools[2], call.arguments) == ()
        assert all(str(value) in trajectory.prompt[0].content for value in call.arguments.values())
        assert four.dialect.parse(trajectory.turns[1].text).calls == (call,)
    one_step = pseudo_call(four.tools[2], replace(four.dialect, two_step=False), SETTINGS, 0, 0).trajectory
    assert len(one_step.turns) == 1


def test_a_schema_that_cannot_be_met_gives_a_view(four: SimpleNamespace) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "string", "pattern": "^Q{9}$"}}, "required": ["x"]}
    tool = ToolSchema(name="mul", description="Odd.", parameters=parameters)
    assert pseudo_call(tool, four.dialect, SETTINGS, 0, 0).kind == "view"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 3, "maximum": 5},
        {"type": "number", "minimum": 0.5, "maximum": 1.5},
        {"type": ["integer", "null"]},
        {"type": "boolean"},
        {"type": "array", "items": {"type": "integer"}, "minItems": 3},
        {"enum": ["x", "y"]},
        {"const": 4},
        {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
        {"type": "string", "format": "date-time"},
        {},
    ],
)
def test_random_arguments_fit_their_schema(schema: dict[str, object]) -> None:
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    tool = ToolSchema(name="t", parameters=parameters)  # type: ignore[arg-type]
    for seed in range(20):
        arguments = random_arguments(tool.parameters, random.Random(seed))
        assert validate_arguments(tool, arguments) == ()
        assert json.loads(json.dumps(arguments)) == arguments


def test_half_of_the_values_are_a_schemas_examples() -> None:
    parameters = {"properties": {"x": {"type": "string", "examples": ["Pier12", "Dune7"]}}, "required": ["x"]}
    drawn = [random_arguments(parameters, random.Random(seed))["x"] for seed in range(400)]  # type: ignore[arg-type]
    known = [value for value in drawn if value in ("Pier12", "Dune7")]
    assert set(known) == {"Pier12", "Dune7"}
    assert abs(len(known) - 200) < 40  # four standard deviations of 10
    odd = {"properties": {"x": {"type": "integer", "examples": {"one": 1}}}, "required": ["x"]}  # not a list: no matter
    assert isinstance(random_arguments(odd, random.Random(0))["x"], int)  # type: ignore[arg-type]


def test_random_lists_stay_short_whatever_the_schema_asks() -> None:
    arguments = random_arguments({"properties": {"x": {"type": "array", "minItems": 10**9}}}, random.Random(1))
    assert len(arguments["x"]) == MAX_ITEMS  # type: ignore[arg-type]


def test_split_name() -> None:
    assert [split_name(name) for name in ("get_weather", "HTTPStatus", "a.b-c D")] == [
        "get weather",
        "httpstatus",
        "a b c d",
    ]


def add(a: int, b: int) -> int:
    return a + b


TASK = Task(
    id="q",
    prompt=(Message(role="user", content="2 + 3?"),),
    gold_rounds=((ToolCall(name="add_two", arguments={"a": 2, "b": 3}),),),
    answer="5",
    thoughts=("Hm.", "Five."),
)


def test_use_plays_gold_without_reasoning(four: SimpleNamespace) -> None:
    toolbox = PythonToolbox({"add_two": add}, four.tools, isolation="inline")
    dialect = replace(four.dialect, think="required")  # the recipe's dialect; phase 1 has no reasoning all the same
    (example,) = use([TASK], four.renderer, dialect, four.by_name, toolbox)
    assert (example.kind, example.weight) == ("use", "use")
    assert [turn.text for turn in example.trajectory.turns] == [
        "<tool_token>\n<<add_two>>\n</tool_token>",
        '<tool_call>\n{"name": "<<add_two>>", "arguments": {"a": 2, "b": 3}}\n</tool_call>',
        "<answer>5</answer>",
    ]
    (example,) = use([TASK], four.renderer, four.dialect, four.by_name)  # nothing to run the calls with
    assert (len(example.trajectory.turns), example.trajectory.stop) == (2, StopReason.CALLS_COMPLETE)
    documents = RolloutSettings(prompt="documents")
    (example,) = use([TASK], four.renderer, Dialect(), four.by_name, toolbox, documents)
    assert "Multiply two integers." in four.renderer.decode(example.trajectory.prompt_ids)
    assert use([TASK], four.renderer, four.dialect, four.by_name, toolbox, RolloutSettings(max_turns=2)) == []


@pytest.mark.parametrize(("share", "expected"), [(0.0, {False}), (1.0, {True}), (0.5, {False, True})])
@pytest.mark.parametrize("kind", ["view", "pseudo_call"])
def test_queries_name_the_tool_in_a_thought_before_they_select_it(four: SimpleNamespace, kind, share, expected) -> None:
    settings = CorpusSettings(views=8, pseudo_calls=8, thoughts=share)
    found, restated = set(), set()
    described = four.tools[:3]  # the last one has no description to restate
    for example in alignment_corpus(described, four.dialect, settings):
        if example.kind != kind:
            continue
        read = four.dialect.parse(example.trajectory.turns[0].text)
        found.add(read.think is not None)
        if read.think is not None:
            tool = next(tool for tool in four.tools if tool.name == read.selected[0])
            words, surface = read.think.split(" : ")
            assert surface == four.index.surface(tool.name)
            whole = tool.description.rstrip(".").lower()
            restated.add(words.lower() == whole)
            assert whole.endswith(words.lower()) or set(words.split()) <= set(whole.split())
    assert found == expected
    assert restated == ({True, False} if share else set())  # the description as it is, and its keywords


def test_keywords_leave_out_function_words_and_the_possessive() -> None:
    assert sorted(keywords("Returns a boat's price, in the end.", random.Random(0))) == [
        *("boat", "end", "price", "returns"),
    ]
    assert keywords("of the", random.Random(0)) == []
