import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tirkit.rollout.endpoint import EndpointPolicy, EndpointSettings, chat_messages
from tirkit.rollout.loop import rollout
from tirkit.rollout.policy import GenerateRequest, RolloutError, RolloutRequest
from tirkit.text.dialects import Dialect
from tirkit.types import Message, Task, ToolCall, ToolResult, Turn

SETTINGS = EndpointSettings(model="m", backoff_s=0.001, retries=2, max_concurrent=2)


def completion(text: str, finish: str = "stop", **fields: str) -> httpx.Response:
    message = {"role": "assistant", "content": text, **fields}
    choice = {"index": 0, "finish_reason": finish, "message": message}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return httpx.Response(200, json=body)


def connect(handler: Callable[[httpx.Request], Any]) -> AsyncOpenAI:
    client = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    return AsyncOpenAI(base_url="http://endpoint/v1", api_key="none", http_client=client)


def ask(number: int, *messages: Message) -> GenerateRequest:
    messages = messages or (Message(role="user", content=f"question {number}"),)
    return GenerateRequest(Task(id=str(number), prompt=messages), (), messages, (), seed=number, max_new_tokens=50)


def test_texts_come_back_in_order_with_bounded_concurrency(tiny: SimpleNamespace) -> None:
    running, most = 0, 0

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        body = json.loads(request.content)
        number = body["messages"][-1]["content"].split()[-1]
        await asyncio.sleep(0.01 if int(number) % 2 else 0.001)
        running -= 1
        assert (body["max_tokens"], body["seed"], body["model"]) == (50, int(number), "m")
        return completion(f"<answer>{number}</answer>")

    policy = EndpointPolicy(partial(connect, handler), tiny.renderer, SETTINGS)
    for _ in range(2):  # a second batch runs in a second event loop
        generations = policy.generate([ask(i) for i in range(6)])
        assert [generation.text for generation in generations] == [f"<answer>{i}</answer>" for i in range(6)]
    assert most == 2
    assert generations[0].ids == tuple(tiny.renderer.completion_ids("<answer>0</answer>"))
    assert (generations[0].logps, generations[0].finish, policy.num_failures) == ((), "stop", 0)


def test_retries_then_gives_up_on_that_one_only(tiny: SimpleNamespace) -> None:
    tries: dict[str, int] = {}

    def handler(request: httpx.Request) -> httpx.Response:
        text = json.loads(request.content)["messages"][-1]["content"]
        tries[text] = tries.get(text, 0) + 1
        if text == "question 0" and tries[text] < 3:
            return httpx.Response(429, json={"error": {"message": "slow down"}})
        if text == "question 1":
            return httpx.Response(503, json={"error": {"message": "down"}})
        if text == "question 2":
            return httpx.Response(400, json={"error": {"message": "too long"}})
        return completion("<answer>ok</answer>")

    policy = EndpointPolicy(partial(connect, handler), tiny.renderer, SETTINGS)
    finishes = [generation.finish for generation in policy.generate([ask(i) for i in range(4)])]
    assert finishes == ["stop", "failed", "failed", "stop"]
    assert tries == {"question 0": 3, "question 1": 3, "question 2": 1, "question 3": 1}
    assert policy.num_failures == 2


def test_a_wrong_key_stops_the_run(tiny: SimpleNamespace) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"error": {"message": "bad key"}})

    with pytest.raises(RolloutError, match=r"endpoint http://endpoint/v1/ refused model 'm'.*bad key"):
        EndpointPolicy(partial(connect, handler), tiny.renderer, SETTINGS).generate([ask(0)])


def test_cut_off_and_reasoning(tiny: SimpleNamespace) -> None:
    answers = iter([completion("<answer>1", "length"), completion("<answer>1</answer>", reasoning_content="hm")])
    policy = EndpointPolicy(partial(connect, lambda _: next(answers)), tiny.renderer, SETTINGS)
    (cut,) = policy.generate([ask(0)])
    assert (cut.finish, cut.text) == ("length", "<answer>1")
    assert tiny.renderer.end_of_turn_id not in cut.ids
    (thought,) = policy.generate([ask(0)])
    assert thought.text == "<think>\nhm\n</think>\n<answer>1</answer>"


def test_chat_messages_carry_documents_and_tool_turns_as_text(tiny: SimpleNamespace) -> None:
    request = ask(
        0,
        Message(role="system", content="Be brief."),
        Message(role="user", content="2 + 3?"),
        Message(role="assistant", content="<tool_call>…"),
        Message(role="tool", content="5"),
    )
    request = GenerateRequest(request.task, (), request.messages, (), 0, 5, (tiny.tools["fail"],))
    messages = chat_messages(request, "Use the format.")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith('Use the format.\n\nTools:\n{"name": "fail"')
    assert messages[0]["content"].endswith("\n\nBe brief.")
    assert messages[-1]["content"] == "5"


def test_what_goes_on_is_asked_before_what_is_new(tiny: SimpleNamespace) -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content)["messages"][-1]["content"])
        return completion("<answer>ok</answer>")

    policy = EndpointPolicy(partial(connect, handler), tiny.renderer, replace(SETTINGS, max_concurrent=1))
    with policy.session() as session:
        for key in (2, 0, 1):
            session.submit(key, ask(key))
        done = session.advance()
        assert [key for key, _ in done] == [0]
        session.submit(0, replace(ask(9), turns=(Turn(text="a"),)))
        while len(done) < 4:
            done += session.advance()
    assert [key for key, _ in done] == [0, 0, 1, 2]
    assert seen == ["question 0", "question 9", "question 1", "question 2"]


def test_a_tool_that_ends_wakes_a_waiting_session(tiny: SimpleNamespace) -> None:
    """The endpoint answers the second attempt only after the first one's next turn was asked for."""
    tool_ran = asyncio.Event()

    async def handler(request: httpx.Request) -> httpx.Response:
        last = json.loads(request.content)["messages"][-1]
        if last["content"] == "wait":
            await asyncio.wait_for(tool_ran.wait(), 10)
            return completion("<answer>late</answer>")
        if last["content"] == "5":  # the tool's result
            tool_ran.set()
            return completion("<answer>5</answer>")
        return completion(Dialect().print_calls((ToolCall(name="add", arguments={"a": 2, "b": 3}),)))

    class Slow:
        def run(self, call: ToolCall) -> ToolResult:
            time.sleep(0.05)
            return ToolResult(name=call.name, content="5")

    policy = EndpointPolicy(partial(connect, handler), tiny.renderer, SETTINGS)
    tasks = [Task(id=text, prompt=(Message(role="user", content=text),)) for text in ("call", "wait")]
    requests = [RolloutRequest(task) for task in tasks]
    first, second = rollout(requests, policy, tiny.renderer, Dialect(), tiny.tools, Slow())
    assert (first.answer, second.answer) == ("5", "late")
