"""Streams as the openai client reads them: what they add up to, when they come, and what they never hold."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tirkit.rollout.policy import ScriptedPolicy, oracle
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.serving.chat import Chat, Served
from tirkit.serving.conversation import task_by_question
from tirkit.serving.server import chat_app
from tirkit.text.control import CONTROL_STRINGS
from tirkit.text.dialects import Dialect
from tirkit.types import Message, Task, ToolCall

Serve = Callable[..., AbstractContextManager[str]]
QUESTION = "What is 2 + 3, times 4?"
TASK = Task(
    id="t",
    prompt=(Message(role="user", content=QUESTION),),
    gold_rounds=(
        (ToolCall(name="add", arguments={"a": 2, "b": 3}), ToolCall(name="add", arguments={"a": 0, "b": 0})),
        (ToolCall(name="mul", arguments={"a": 5, "b": 4}),),
    ),
    answer="It is 20 … or élan.",
    thoughts=("add first", "then multiply", "done"),
)
DIALECTS = {"names": lambda _: Dialect(), "one step": lambda i: Dialect(i, two_step=False), "two steps": Dialect}


@cache
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


@dataclass
class Answer:
    """What a choice's deltas add up to."""

    content: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: list[list[str]] = field(default_factory=list)
    finish: str | None = None
    roles: int = 0
    num_pieces: int = 0


def added_up(stream: Any) -> tuple[dict[int, Answer], Any]:
    """The answers by their index, and the usage."""
    answers: dict[int, Answer] = {}
    usage = None
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            answer = answers.setdefault(choice.index, Answer())
            assert answer.finish is None, "nothing comes after the end"
            delta = choice.delta
            assert (delta.role == "assistant") == (answer.roles == 0), "the role comes first, once"
            answer.roles += delta.role is not None
            answer.num_pieces += bool(delta.content)
            answer.content += delta.content or ""
            answer.refusal += delta.refusal or ""
            answer.reasoning += getattr(delta, "reasoning_content", None) or ""
            for call in delta.tool_calls or []:
                if call.id:
                    assert call.index == len(answer.calls)
                    answer.calls.append([call.function.name, ""])
                answer.calls[call.index][1] += call.function.arguments or ""
            answer.finish = choice.finish_reason
    return answers, usage


def whole(choice: Any) -> Answer:
    """The same of a choice that is not streamed."""
    message = choice.message
    calls = [[call.function.name, call.function.arguments] for call in message.tool_calls or []]
    reasoning = getattr(message, "reasoning_content", None) or ""
    return Answer(message.content or "", reasoning, message.refusal or "", calls, choice.finish_reason)


def same(answer: Answer, other: Answer) -> bool:
    names = ("content", "reasoning", "refusal", "calls", "finish")
    return all(getattr(answer, name) == getattr(other, name) for name in names)


@pytest.fixture
def typed(tiny: SimpleNamespace, typing: Any) -> Iterator[Callable[..., Any]]:
    """A function from a dialect to a server's chat, which plays a task in it, and its policy."""
    chats: list[Chat] = []

    def make(dialect: Dialect, task: Task = TASK, **settings: Any) -> tuple[Chat, Any]:
        policy = typing(ScriptedPolicy(oracle(dialect), tiny.renderer), **settings)
        tools = tiny.tools if dialect.index else {}
        chats.append(Chat(Served("m", policy, tiny.renderer, dialect, tools, task_by_question([task]))))
        return chats[-1], policy

    yield make
    for chat in chats:
        chat.close()


@pytest.mark.parametrize("kind", DIALECTS)
def test_streams_add_up_to_the_answers(tiny: SimpleNamespace, typed: Any, serve: Serve, kind: str) -> None:
    chat, _ = typed(DIALECTS[kind](tiny.index))
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    finishes = []
    with serve(chat_app(chat)) as url:
        for _ in range(3):
            asked: Any = {"model": "m", "messages": messages, "seed": 1}
            completion = client(url).chat.completions.create(**asked)
            stream = client(url).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
            answers, usage = added_up(stream)
            assert same(answers[0], whole(completion.choices[0]))
            assert usage == completion.usage
            said = answers[0].content + answers[0].reasoning
            assert not any(control in said for control in (*CONTROL_STRINGS, "<<", '"name"'))
            message = completion.choices[0].message
            finishes.append(answers[0].finish)
            messages.append(message.model_dump(exclude_none=True))
            calls: Any = message.tool_calls or []
            messages += [{"role": "tool", "tool_call_id": call.id, "content": "1"} for call in calls]
    assert finishes == ["tool_calls", "tool_calls", "stop"]
    assert answers[0].content == TASK.answer
    assert answers[0].num_pieces > 5  # token by token


@pytest.fixture(scope="module")
def url(tiny: SimpleNamespace, serve: Serve) -> Iterator[str]:
    policy = TransformersPolicy(tiny.model, tiny.renderer)
    chat = Chat(Served("m", policy, tiny.renderer, Dialect(tiny.index), tiny.tools, max_tokens=24, max_context=200))
    with serve(chat_app(chat)) as address:
        yield address
    chat.close()


@pytest.mark.parametrize("model", ["m", "m:text"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_models_streams_add_up_to_its_answers(url: str, model: str, temperature: float) -> None:
    messages: Any = [{"role": "user", "content": "sum"}]
    asked: Any = {"model": model, "messages": messages, "seed": 4, "n": 3, "temperature": temperature}
    completion = client(url).chat.completions.create(**asked)
    stream = client(url).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    answers, usage = added_up(stream)
    assert usage == completion.usage
    for choice in completion.choices:
        assert same(answers[choice.index], whole(choice))
    assert answers[0].num_pieces > 3


def test_a_stop_string_ends_a_stream(url: str) -> None:
    asked: Any = {"model": "m:text", "messages": [{"role": "user", "content": "sum"}], "seed": 0}
    text = client(url).chat.completions.create(**asked).choices[0].message.content or ""
    stop = text[3:5]
    completion = client(url).chat.completions.create(**asked, stop=[stop])
    answers, usage = added_up(
        client(url).chat.completions.create(**asked, stop=stop, stream=True, stream_options={"include_usage": True})
    )
    assert (answers[0].content, answers[0].finish) == (text.split(stop)[0], "stop")
    assert same(answers[0], whole(completion.choices[0]))
    assert usage == completion.usage
    assert usage.completion_tokens < 24  # what comes behind is not written


def test_text_comes_while_the_rest_is_being_written(tiny: SimpleNamespace, typed: Any, serve: Serve) -> None:
    task = TASK.model_copy(update={"gold_rounds": (), "thoughts": ()})
    chat, policy = typed(Dialect(tiny.index), task, ahead=8)
    with serve(chat_app(chat)) as url:
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": QUESTION}]}
        text = ""
        for chunk in client(url).chat.completions.create(**asked, stream=True):
            text += chunk.choices[0].delta.content or ""
            if text:
                policy.go.set()  # without it no more is written
        assert text == task.answer


def test_the_clients_own_accumulator_reads_it(tiny: SimpleNamespace, typed: Any, serve: Serve) -> None:
    chat, _ = typed(Dialect(tiny.index))
    with serve(chat_app(chat)) as url:
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": QUESTION}]}
        with client(url).chat.completions.stream(**asked) as stream:
            choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls or []] == [
        {"a": 2, "b": 3},
        {"a": 0, "b": 0},
    ]


def test_events_on_the_wire(tiny: SimpleNamespace, typed: Any, serve: Serve) -> None:
    chat, _ = typed(Dialect(tiny.index))
    with serve(chat_app(chat)) as url:
        body = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {(chunk["id"], chunk["model"]) for chunk in chunks} == {(chunks[0]["id"], "m")}
    assert "usage" not in chunks[-1]  # it was not asked for


def test_what_fails_is_said(tiny: SimpleNamespace, typed: Any, serve: Serve, url: str) -> None:
    asked: Any = {"messages": [{"role": "user", "content": QUESTION}], "stream": True}
    with pytest.raises(openai.NotFoundError, match="is not served here"):  # before anything is streamed: a status
        client(url).chat.completions.create(model="gpt-9", **asked)
    task = TASK.model_copy(update={"gold_rounds": (), "thoughts": ()})
    chat, _ = typed(Dialect(tiny.index), task, breaks_at=8)
    with serve(chat_app(chat)) as own:
        text: list[str] = []
        with pytest.raises(openai.APIError, match=r"^internal error$"):
            text.extend(
                chunk.choices[0].delta.content or ""
                for chunk in client(own).chat.completions.create(model="m", **asked)
            )
        assert 0 < len("".join(text)) < len(TASK.answer)
        assert TASK.answer.startswith("".join(text))
