"""The endpoint over real HTTP, with the openai client and with EndpointPolicy, over scripts and over a model."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tirkit.rollout.endpoint import EndpointPolicy, EndpointSettings
from tirkit.rollout.loop import RolloutSettings, rollout
from tirkit.rollout.policy import GenerateRequest, Generation, Policy, RolloutRequest, ScriptedPolicy, Session, oracle
from tirkit.rollout.transformers_policy import TransformersPolicy
from tirkit.serving.api import ApiError, ChatRequest
from tirkit.serving.chat import Chat, Served
from tirkit.serving.conversation import task_by_question
from tirkit.serving.server import chat_app
from tirkit.text.dialects import Dialect
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, StopReason, Task, ToolCall

Serve = Callable[[Any], AbstractContextManager[str]]
QUESTION = "What is 2 + 3, times 4?"
TASK = Task(
    id="t",
    prompt=(Message(role="user", content=QUESTION),),
    gold_rounds=(
        (ToolCall(name="add", arguments={"a": 2, "b": 3}), ToolCall(name="add", arguments={"a": 0, "b": 0})),
        (ToolCall(name="mul", arguments={"a": 5, "b": 4}),),
    ),
    answer="20",
    thoughts=("add first", "then multiply", "done"),
)


class Keeping(Policy):
    """Passes on what another policy does and keeps the requests."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.name, self.requests = policy, policy.name, []

    def session(self) -> Session:
        session = self.policy.session()
        submit = session.submit
        session.submit = lambda key, request: (self.requests.append(request), submit(key, request))  # type: ignore[method-assign]
        return session


def scripted(tiny: SimpleNamespace, dialect: Dialect) -> Keeping:
    return Keeping(ScriptedPolicy(oracle(dialect), tiny.renderer))


def served(tiny: SimpleNamespace, policy: Policy, dialect: Dialect, **settings: Any) -> Chat:
    tools = tiny.tools if dialect.index else {}
    if isinstance(policy, Keeping):
        settings = {"task": task_by_question([TASK])} | settings
    max_waiting = settings.pop("max_waiting", 256)
    return Chat(Served("m", policy, tiny.renderer, dialect, tools, **settings), max_waiting)


DIALECTS = {"names": lambda _: Dialect(), "one step": lambda i: Dialect(i, two_step=False), "two steps": Dialect}


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest, tiny: SimpleNamespace) -> Dialect:
    return DIALECTS[request.param](tiny.index)


@pytest.fixture
def script(tiny: SimpleNamespace, serve: Serve, dialect: Dialect) -> Iterator[tuple[Keeping, str]]:
    policy = scripted(tiny, dialect)
    chat = served(tiny, policy, dialect)
    with serve(chat_app(chat)) as url:
        yield policy, url
    chat.close()


def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)


def run_tool(name: str, a: int, b: int) -> str:
    return str(a + b if name == "add" else a * b)


def test_a_client_with_tools_gets_plain_calls_and_the_answer(
    tiny: SimpleNamespace, script: tuple[Keeping, str], dialect: Dialect
) -> None:
    policy, url = script
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    documents = [tool.model_dump(include={"name", "description", "parameters"}) for tool in tiny.tools.values()]
    tools: list[Any] = [{"type": "function", "function": document} for document in documents]
    made: list[tuple[str, dict[str, int]]] = []
    for _ in range(5):
        completion = client(url).chat.completions.create(model="m", messages=messages, tools=tools, seed=1)
        choice = completion.choices[0]
        messages.append(choice.message.model_dump(exclude_none=True))
        if choice.finish_reason != "tool_calls":
            break
        assert choice.message.content is None
        for call in reversed(choice.message.tool_calls or []):  # the order of the results is not the calls'
            arguments = json.loads(call.function.arguments)  # type: ignore[union-attr]
            made.append((call.function.name, arguments))  # type: ignore[union-attr]
            content = run_tool(call.function.name, **arguments)  # type: ignore[union-attr]
            messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
    assert made == [("add", {"a": 0, "b": 0}), ("add", {"a": 2, "b": 3}), ("mul", {"a": 5, "b": 4})]
    assert (choice.finish_reason, choice.message.content) == ("stop", "20")
    # Each turn was asked for with the very ids of a rollout.
    functions = {name: partial(run_tool, name) for name in ("add", "mul")}
    toolbox = PythonToolbox(functions, tiny.tools.values(), isolation="inline")
    own = scripted(tiny, dialect)
    settings = RolloutSettings(prompt="none" if dialect.index else "documents", workers=0)
    (trajectory,) = rollout([RolloutRequest(TASK)], own, tiny.renderer, dialect, tiny.tools, toolbox, settings)
    assert trajectory.stop == StopReason.ANSWERED
    assert [request.ids for request in policy.requests] == [request.ids for request in own.requests]
    assert completion.usage is not None
    assert completion.usage.completion_tokens == len(trajectory.turns[-1].ids)
    assert completion.usage.prompt_tokens == len(own.requests[-1].ids)


def test_thoughts_travel_as_reasoning(script: tuple[Keeping, str]) -> None:
    completion = client(script[1]).chat.completions.create(model="m", messages=[{"role": "user", "content": QUESTION}])
    assert completion.choices[0].message.reasoning_content == "add first"  # type: ignore[attr-defined]


def test_endpoint_policy_rolls_out_over_http(
    tiny: SimpleNamespace, script: tuple[Keeping, str], dialect: Dialect
) -> None:
    _, url = script
    settings = EndpointSettings(model="m:text", instructions="Use tools.")
    policy = EndpointPolicy(f"{url}/v1", "none", tiny.renderer, settings)
    functions = {name: partial(run_tool, name) for name in ("add", "mul")}
    toolbox = PythonToolbox(functions, tiny.tools.values(), isolation="inline")
    limits = RolloutSettings(prompt="none" if dialect.index else "documents", workers=0)
    requests = [RolloutRequest(TASK, copy_index=i, seed=i) for i in range(3)]
    for trajectory in rollout(requests, policy, tiny.renderer, dialect, tiny.tools, toolbox, limits):
        assert trajectory.stop == StopReason.ANSWERED
        assert trajectory.answer == "20"
        assert trajectory.calls == TASK.gold_calls


@pytest.fixture(scope="module")
def model(tiny: SimpleNamespace) -> Iterator[tuple[Chat, Serve]]:
    dialect = Dialect(tiny.index)
    policy = TransformersPolicy(tiny.model, tiny.renderer)
    chat = Chat(Served("m", policy, tiny.renderer, dialect, tiny.tools, max_tokens=8, max_context=200))
    yield chat, chat_app(chat)  # type: ignore[misc]
    chat.close()


@pytest.fixture(scope="module")
def url(model: tuple[Chat, Any], serve: Serve) -> Iterator[str]:
    with serve(model[1]) as address:
        yield address


def complete(url: str, **fields: Any) -> Any:
    fields = {"model": "m:text", "messages": [{"role": "user", "content": "sum of 1"}]} | fields
    return client(url).chat.completions.create(**fields)


def test_seed_temperature_and_n(url: str) -> None:
    first, again = complete(url, seed=7, n=3), complete(url, seed=7, n=3)
    contents = [choice.message.content for choice in first.choices]
    assert contents == [choice.message.content for choice in again.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(contents)) == 3
    assert contents[0] == complete(url, seed=7).choices[0].message.content
    assert complete(url).choices[0].message.content != complete(url).choices[0].message.content
    greedy = {complete(url, temperature=0, seed=seed).choices[0].message.content for seed in range(3)}
    assert len(greedy) == 1


def test_the_budget_counts(url: str) -> None:
    completion = complete(url, max_tokens=5, seed=0, n=2)
    assert [choice.finish_reason for choice in completion.choices] == ["length", "length"]
    assert completion.usage.completion_tokens == 10
    assert completion.usage.total_tokens == 10 + completion.usage.prompt_tokens
    assert complete(url, seed=0).usage.completion_tokens == 8  # the server's own bound
    assert complete(url, seed=0, max_completion_tokens=3).usage.completion_tokens == 3


def test_documents_count_against_the_context(tiny: SimpleNamespace, serve: Serve) -> None:
    dialect = Dialect(tiny.index)

    def ask(max_context: int) -> tuple[list[GenerateRequest], Any]:
        policy = scripted(tiny, dialect)
        chat = served(tiny, policy, dialect, max_context=max_context)
        with serve(chat_app(chat)) as url:
            choice = complete(url, model="m", messages=[{"role": "user", "content": QUESTION}]).choices[0]
        chat.close()
        return policy.requests, choice

    (_, calls), choice = ask(10_000)
    assert (calls.max_new_tokens < 512, choice.finish_reason) == (True, "tool_calls")
    (_, tight), choice = ask(len(calls.ids) + 3)
    assert (tight.max_new_tokens, choice.finish_reason) == (3, "length")
    requests, choice = ask(len(calls.ids))
    assert (len(requests), choice.finish_reason, choice.message.tool_calls) == (1, "length", None)


def test_text_ends_at_a_stop_string(url: str) -> None:
    whole = complete(url, seed=0).choices[0].message.content
    at = whole[2]
    choice = complete(url, seed=0, stop=[at]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (whole.split(at)[0], "stop")


def test_what_stands_beside_a_request_changes_nothing(tiny: SimpleNamespace, url: str) -> None:
    alone = [complete(url, seed=seed).choices[0].message.content for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = [c.choices[0].message.content for c in pool.map(lambda seed: complete(url, seed=seed), range(8))]
    assert together == alone


def test_requests_at_the_same_time_share_forwards(tiny: SimpleNamespace, serve: Serve) -> None:
    policy = TransformersPolicy(tiny.model, tiny.renderer)
    chat = Chat(Served("m", policy, tiny.renderer, Dialect(tiny.index), tiny.tools))
    with serve(chat_app(chat)) as url:
        complete(url, n=16, max_tokens=10, seed=0)
    chat.close()
    assert policy.counts.decoded > 5 * policy.counts.forwards


@pytest.mark.parametrize(
    ("fields", "status", "part"),
    [
        ({"model": "gpt-9"}, 404, "the model 'gpt-9' is not served here"),
        ({"max_tokens": 0}, 400, "max_tokens: "),
        ({"max_tokens": 500}, 400, "more than the 200 of this model"),
        ({"n": 0}, 400, "n: "),
        ({"messages": []}, 400, "messages: "),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "first message must not be the assistant's"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]},
            400,
            "last message must not be the assistant's",
        ),
        ({"model": "m", "messages": [{"role": "tool", "tool_call_id": "a", "content": "x"}]}, 400, "must follow"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "text": "x"}]}]}, 400, "messages.0.content"),
        ({"tools": [{"type": "function", "function": {"name": "sub"}}]}, 400, "it does not know 'sub'"),
        ({"model": "m", "messages": [{"role": "user"}, {"role": "assistant", "content": "</answer>"}]}, 400, "spells"),
    ],
)  # fmt: skip
def test_errors_are_openais(url: str, fields: dict[str, Any], status: int, part: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        complete(url, **fields)
    assert caught.value.status_code == status
    assert part in caught.value.message
    assert caught.value.type == "invalid_request_error"


def test_calls_must_be_answered(script: tuple[Keeping, str]) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    said: list[Any] = [{"role": "user", "content": QUESTION}, {"role": "assistant", "tool_calls": [call]}]
    with pytest.raises(openai.BadRequestError, match="must be answered by one message of role 'tool'"):
        complete(script[1], model="m", messages=said)
    with pytest.raises(openai.BadRequestError, match="must be answered"):
        complete(script[1], model="m", messages=[*said, {"role": "tool", "tool_call_id": "c2", "content": "5"}])
    for arguments in ("[1", "[1]", '{"a": NaN}', '{"a": "\\ud800"}', "[" * 100_000):
        call["function"] = {"name": "add", "arguments": arguments}
        with pytest.raises(openai.BadRequestError, match="not a JSON object"):
            complete(script[1], model="m", messages=[*said, {"role": "tool", "tool_call_id": "c1", "content": "5"}])


def test_calls_with_one_id_get_their_results_in_order(script: tuple[Keeping, str]) -> None:
    policy, url = script
    call = {"id": "same", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    results = [{"role": "tool", "tool_call_id": "same", "content": content} for content in ("first", "second")]
    said: list[Any] = [{"role": "user", "content": QUESTION}, {"role": "assistant", "tool_calls": [call, call]}]
    complete(url, model="m", messages=[*said, *results])
    assert "first\nsecond" in [message.content for request in policy.requests for message in request.messages]


def test_null_is_as_good_as_left_out(url: str) -> None:
    tool = {"type": "function", "function": {"name": "add", "description": None, "parameters": None}}
    left_out = {"type": "function", "function": {"name": "add"}}
    texts = [complete(url, tools=tools, functions=given, seed=0).choices[0].message.content
             for tools, given in (([tool], []), ([left_out], None))]  # fmt: skip
    assert texts[0] == texts[1]


async def _race(chat: Chat, request: ChatRequest) -> int:
    """How often another request was refused while one was answered; whoever was accepted is answered."""
    first = asyncio.create_task(chat.complete(chat.prepare(request)))
    refused = 0
    while not first.done():
        await asyncio.sleep(0)
        if not first.done():
            with contextlib.suppress(ApiError):
                await chat.complete(chat.prepare(request))
                continue
            refused += 1
    await first
    return refused


def test_what_was_accepted_is_written_to_its_end(tiny: SimpleNamespace) -> None:
    dialect = Dialect(tiny.index)
    chat = served(tiny, scripted(tiny, dialect), dialect, max_waiting=1)
    request = ChatRequest(model="m", messages=[{"role": "user", "content": QUESTION}])  # type: ignore[list-item]
    for _ in range(20):  # two turns each: between them nobody takes the place
        assert asyncio.run(_race(chat, request)) > 0
    assert chat.num_answers == 0
    chat.close()


def test_a_script_knows_its_tasks_only(script: tuple[Keeping, str]) -> None:
    with pytest.raises(openai.BadRequestError, match="holds no task that asks 'Who\\?'"):
        complete(script[1], messages=[{"role": "user", "content": "Who?"}])


def test_models_health_and_wrong_paths(url: str) -> None:
    assert [model.id for model in client(url).models.list()] == ["m", "m:text"]
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    answer = httpx.get(f"{url}/v1/nothing")
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "GET /v1/nothing: Not Found")
    answer = httpx.post(f"{url}/v1/chat/completions", content=b"{oops")
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


class Broken(Policy):
    """Fails as told."""

    name = "broken"

    def __init__(self, result: Generation | Exception) -> None:
        self.result = result

    def session(self) -> Session:
        return BrokenSession(self)


class BrokenSession(Session):
    def __init__(self, policy: Broken) -> None:
        self.policy, self.keys = policy, []

    def submit(self, key: int, request: GenerateRequest) -> None:
        self.keys.append(key)

    def advance(self) -> list[tuple[int, Generation]]:
        if isinstance(self.policy.result, Exception):
            raise self.policy.result
        keys, self.keys = self.keys, []
        return [(key, self.policy.result) for key in keys]


def test_a_policy_that_breaks_is_logged_and_used_again(
    tiny: SimpleNamespace, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Broken(RuntimeError("out of memory"))
    chat = served(tiny, policy, Dialect())
    with serve(chat_app(chat)) as url:
        with pytest.raises(openai.InternalServerError) as broken:
            complete(url)
        assert broken.value.response.json()["error"]["message"] == "internal error"
        assert "RuntimeError: out of memory" in caplog.text
        policy.result = Generation((), (), "", "failed")
        with pytest.raises(openai.InternalServerError, match="could not be asked") as caught:
            complete(url)
        assert caught.value.status_code == 502
        policy.result = Generation((1,), (), "hello", "stop")
        assert complete(url).choices[0].message.content == "hello"
        # What the dialect cannot read is passed on.
        assert complete(url, model="m").choices[0].message.content == "hello"
    chat.close()


def test_too_many_requests_are_refused(tiny: SimpleNamespace, serve: Serve) -> None:
    chat = served(tiny, Broken(Generation((1,), (), "x", "stop")), Dialect(), max_waiting=2)
    with serve(chat_app(chat)) as url:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="no more than 2 answers"):
                complete(url, n=3, stream=stream)
        assert complete(url, n=2).choices[1].message.content == "x"
    chat.close()
