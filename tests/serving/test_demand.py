"""tool_choice, parallel_tool_calls and offered tools, over real HTTP."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from openai import OpenAI

from tirkit.rollout.call_grammar import CallGrammar
from tirkit.rollout.policy import ScriptedPolicy, oracle
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.serving.chat import Chat, Served
from tirkit.serving.conversation import task_by_question
from tirkit.serving.server import chat_app
from tirkit.text.dialects import Dialect
from tirkit.types import Message, Task, ToolCall

Serve = Callable[..., AbstractContextManager[str]]
TASK = Task(
    id="t",
    prompt=(Message(role="user", content="sum?"),),
    gold_rounds=((ToolCall(name="add", arguments={"a": 2}), ToolCall(name="mul", arguments={"a": 3})),),
    answer="5",
)
DIALECTS = {"names": lambda _: Dialect(), "one step": lambda i: Dialect(i, two_step=False), "two steps": Dialect}


@pytest.fixture(params=DIALECTS)
def script(
    request: pytest.FixtureRequest, tiny: SimpleNamespace, typing: Any, serve: Serve
) -> Iterator[SimpleNamespace]:
    """A server that plays TASK, its policy, and the kind of its dialect."""
    dialect = DIALECTS[request.param](tiny.index)
    policy = typing(ScriptedPolicy(oracle(dialect), tiny.renderer))
    tools = tiny.tools if dialect.index else {}
    chat = Chat(Served("m", policy, tiny.renderer, dialect, tools, task_by_question([TASK])))
    with serve(chat_app(chat)) as url:
        yield SimpleNamespace(url=url, policy=policy, kind=request.param, renderer=tiny.renderer)
    chat.close()


def tool(name: str) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


@cache
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def ask(url: str, **fields: Any) -> Any:
    fields = {
        "model": "m",
        "messages": [{"role": "user", "content": "sum?"}],
        "tools": [tool("add"), tool("mul")],
    } | fields
    return client(url).chat.completions.create(**fields).choices[0]


def names(choice: Any) -> list[str]:
    return [call.function.name for call in choice.message.tool_calls or []]


def named(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


def begins(script: SimpleNamespace) -> list[str]:
    return [script.renderer.decode_all(request.begin) for request in script.policy.requests]


def test_auto_is_left_to_the_model(script: SimpleNamespace) -> None:
    for choice in ("auto", None):
        assert names(ask(script.url, tool_choice=choice)) == ["add", "mul"]
    assert set(begins(script)) == {""}


def test_one_call_at_a_time(script: SimpleNamespace) -> None:
    choice = ask(script.url, parallel_tool_calls=False)
    assert (names(choice), choice.finish_reason) == (["add"], "tool_calls")


def test_a_required_call_is_begun_for_the_model(script: SimpleNamespace) -> None:
    assert names(ask(script.url, tool_choice="required")) == ["add", "mul"]
    assert begins(script) == (["<tool_token>", "<tool_call>"] if script.kind == "two steps" else ["<tool_call>"])


def test_a_named_tool_is_called_once(script: SimpleNamespace) -> None:
    choice = ask(script.url, tool_choice=named("add"))
    assert (names(choice), choice.finish_reason) == (["add"], "tool_calls")
    (begin,) = begins(script)  # the selection is made without the model
    assert begin == f'<tool_call>\n{{"name": "{"add" if script.kind == "names" else "<<add>>"}", "arguments":'
    (request,) = script.policy.requests
    assert [turn.selected for turn in request.turns] == ([("add",)] if script.kind == "two steps" else [])


def test_none_gets_text_or_a_refusal(script: SimpleNamespace) -> None:
    choice = ask(script.url, tool_choice="none")  # the script calls nevertheless
    assert names(choice) == []
    assert "calls 'add', which this request does not allow" in choice.message.refusal
    assert (choice.message.content, choice.finish_reason) == (None, "stop")
    assert begins(script)[0] == ("" if script.kind == "names" else "<answer>")
    assert script.policy.requests[0].tools == ()


def test_only_offered_tools_are_called(script: SimpleNamespace) -> None:
    choice = ask(script.url, tools=[tool("add")])
    assert (names(choice), choice.finish_reason) == ([], "stop")
    assert "calls 'mul', which this request does not allow" in choice.message.refusal


def test_contradictions_are_refused(script: SimpleNamespace) -> None:
    for fields, part in (
        ({"tool_choice": named("sub")}, "tool_choice names 'sub', which is not among the tools"),
        ({"tools": [tool("add")], "tool_choice": named("mul")}, "tool_choice names 'mul'"),
        ({"tools": [tool("add"), tool("add")]}, "the tool 'add' is given twice"),
        ({"model": "m:text", "tool_choice": "required"}, "served as text chooses for itself"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ):
        with pytest.raises(openai.BadRequestError, match=part):
            ask(script.url, **fields)
    if script.kind == "names":
        with pytest.raises(openai.BadRequestError, match="'required' needs tools"):
            ask(script.url, tools=[], tool_choice="required")


@pytest.fixture(scope="module", params=["one step", "two steps"])
def held(request: pytest.FixtureRequest, tiny: SimpleNamespace, serve: Serve) -> Iterator[str]:
    """A random model that is held to the grammar of its calls."""
    dialect = DIALECTS[request.param](tiny.index)
    allow = CallGrammar(tiny.tokenizer, tiny.renderer, dialect, tuple(tiny.tools.values()))
    policy = TransformersPolicy(tiny.model, tiny.renderer, allow=allow)
    chat = Chat(Served("m", policy, tiny.renderer, dialect, tiny.tools, max_tokens=300))
    with serve(chat_app(chat)) as url:
        yield url
    chat.close()


@pytest.mark.parametrize("name", ["add", "mul"])
def test_a_model_held_to_the_grammar_makes_the_call_that_is_demanded(held: str, name: str) -> None:
    choice = ask(held, tool_choice=named(name), seed=0)
    assert (names(choice), choice.finish_reason) == ([name], "tool_calls")
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments).keys() == {"a", "b"}


def test_a_model_that_must_not_call_replies(held: str) -> None:
    choice = ask(held, tool_choice="none", seed=0, max_tokens=5)
    assert (names(choice), choice.finish_reason) == ([], "length")
    assert choice.message.content
