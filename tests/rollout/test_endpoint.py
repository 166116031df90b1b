import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from tirkit.rollout.endpoint import EndpointPolicy, EndpointSettings, chat_messages
from tirkit.rollout.loop import rollout
from tirkit.rollout.policy import GenerateRequest, RolloutError, RolloutRequest
from tirkit.text.dialects import Dialect
from tirkit.types import Message, Task, ToolCall, ToolResult, Turn

SETTINGS = EndpointSettings(model="m", backoff_s=0.001, retries=2, max_concurrent=2)
Answer = tuple[int, Any]  # status, body
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(handler, …)` is the address of an endpoint that answers the last message of a request's body with it.

    seen: gets each connection's client. hang_up: the connection is closed after every answer, without a word.
    """
    with ExitStack() as stack:

        def start(handler: Callable[[str, dict[str, Any]], Answer], seen: Any = None, hang_up: bool = False) -> str:
            class Handler(BaseHTTPRequestHandler):
                protocol_version = "HTTP/1.1"

                def do_POST(self) -> None:
                    assert self.path == "/v1/chat/completions"
                    if seen is not None:
                        seen.add(self.client_address)
                    body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                    status, answer = handler(body["messages"][-1]["content"], body)
                    content = json.dumps(answer).encode()
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                    self.close_connection = hang_up

                def log_message(self, *_: object) -> None: ...

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            server.daemon_threads = True
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            return f"http://127.0.0.1:{server.server_port}/v1"

        yield start


def completion(text: str, finish: str = "stop", **fields: str) -> Answer:
    message = {"role": "assistant", "content": text, **fields}
    return 200, {"choices": [{"index": 0, "finish_reason": finish, "message": message}]}


def error(status: int, message: str) -> Answer:
    return status, {"error": {"message": message}}


def endpoint(tiny: SimpleNamespace, url: str, settings: EndpointSettings = SETTINGS) -> EndpointPolicy:
    return EndpointPolicy(url, "none", tiny.renderer, settings)


def ask(number: int, *messages: Message) -> GenerateRequest:
    messages = messages or (Message(role="user", content=f"question {number}"),)
    return GenerateRequest(Task(id=str(number), prompt=messages), (), messages, (), seed=number, max_new_tokens=50)


def test_texts_come_back_in_order_with_bounded_concurrency(tiny: SimpleNamespace, serve: Serve) -> None:
    running, most = 0, 0

    def handler(text: str, body: dict[str, Any]) -> Answer:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        number = int(text.split()[-1])
        time.sleep(0.01 if number % 2 else 0.001)
        running -= 1
        assert (body["max_tokens"], body["seed"], body["model"]) == (50, number, "m")
        return completion(f"<answer>{number}</answer>")

    clients: set[Any] = set()
    policy = endpoint(tiny, serve(handler, clients))
    for _ in range(2):
        generations = policy.generate([ask(i) for i in range(6)])
        assert [generation.text for generation in generations] == [f"<answer>{i}</answer>" for i in range(6)]
    assert most == 2
    assert len(clients) == 4  # two a session, kept open
    assert generations[0].ids == tuple(tiny.renderer.completion_ids("<answer>0</answer>"))
    assert (generations[0].logps, generations[0].finish, policy.num_failures) == ((), "stop", 0)


def test_retries_then_gives_up_on_that_one_only(tiny: SimpleNamespace, serve: Serve) -> None:
    tries: dict[str, int] = {}

    def handler(text: str, body: dict[str, Any]) -> Answer:
        tries[text] = tries.get(text, 0) + 1
        if text == "question 0" and tries[text] < 3:
            return error(429, "slow down")
        if text == "question 1":
            return error(503, "down")
        if text == "question 2":
            return error(400, "too long")
        return completion("<answer>ok</answer>")

    policy = endpoint(tiny, serve(handler))
    finishes = [generation.finish for generation in policy.generate([ask(i) for i in range(4)])]
    assert finishes == ["stop", "failed", "failed", "stop"]
    assert tries == {"question 0": 3, "question 1": 3, "question 2": 1, "question 3": 1}
    assert policy.num_failures == 2


def test_a_connection_that_was_closed_meanwhile_is_opened_again(tiny: SimpleNamespace, serve: Serve) -> None:
    url = serve(lambda text, _: completion(text), hang_up=True)
    policy = endpoint(tiny, url, replace(SETTINGS, max_concurrent=1, retries=0))
    assert [generation.text for generation in policy.generate([ask(i) for i in range(3)])] == [
        f"question {i}" for i in range(3)
    ]


def test_a_wrong_key_stops_the_run_without_waiting_for_the_others(tiny: SimpleNamespace, serve: Serve) -> None:
    over, answered = threading.Event(), threading.Event()

    def handler(text: str, body: dict[str, Any]) -> Answer:
        if text == "question 0":
            over.wait(20)
            answered.set()
        return error(401, "bad key")

    with pytest.raises(RolloutError, match=r"endpoint http://127.*/v1 refused model 'm': 401 .*bad key"):
        endpoint(tiny, serve(handler)).generate([ask(0), ask(1)])
    assert not answered.is_set()
    over.set()


@pytest.mark.parametrize("url", ["localhost:8000/v1", "", "ftp://host/v1"])
def test_what_is_no_address_is_refused(tiny: SimpleNamespace, url: str) -> None:
    with pytest.raises(RolloutError, match="is not an address like http://localhost:8000/v1"):
        endpoint(tiny, url)


@pytest.mark.parametrize(
    "field", [{"reasoning_content": "hm"}, {"reasoning": "hm"}, {"reasoning": "hm", "reasoning_content": None}]
)
def test_cut_off_and_reasoning(tiny: SimpleNamespace, serve: Serve, field: dict[str, Any]) -> None:
    answers = iter([completion("<answer>1", "length"), completion("<answer>1</answer>", **field)])
    policy = endpoint(tiny, serve(lambda *_: next(answers)))
    (cut,) = policy.generate([ask(0)])
    assert (cut.finish, cut.text) == ("length", "<answer>1")
    assert tiny.renderer.end_of_turn_id not in cut.ids
    (thought,) = policy.generate([ask(0)])
    assert thought.text == "<think>\nhm\n</think>\n<answer>1</answer>"


@pytest.mark.parametrize("answer", [[], {}, {"choices": []}, {"choices": [{"message": {"content": ["x"]}}]}])
def test_an_answer_of_another_shape_is_asked_for_again(tiny: SimpleNamespace, serve: Serve, answer: Any) -> None:
    answers = iter([(200, answer), completion("x")])
    (generation,) = endpoint(tiny, serve(lambda *_: next(answers))).generate([ask(0)])
    assert generation.text == "x"


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


def test_what_goes_on_is_asked_before_what_is_new(tiny: SimpleNamespace, serve: Serve) -> None:
    seen: list[str] = []

    def handler(text: str, body: dict[str, Any]) -> Answer:
        seen.append(text)
        return completion("<answer>ok</answer>")

    policy = endpoint(tiny, serve(handler), replace(SETTINGS, max_concurrent=1))
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


def test_a_tool_that_ends_wakes_a_waiting_session(tiny: SimpleNamespace, serve: Serve) -> None:
    """The endpoint answers the second attempt only after the first one's next turn was asked for."""
    tool_ran = threading.Event()

    def handler(text: str, body: dict[str, Any]) -> Answer:
        if text == "wait":
            assert tool_ran.wait(10)
            return completion("<answer>late</answer>")
        if text == "5":  # the tool's result
            tool_ran.set()
            return completion("<answer>5</answer>")
        return completion(Dialect().print_calls((ToolCall(name="add", arguments={"a": 2, "b": 3}),)))

    class Slow:
        def run(self, call: ToolCall) -> ToolResult:
            time.sleep(0.05)
            return ToolResult(name=call.name, content="5")

    policy = endpoint(tiny, serve(handler))
    tasks = [Task(id=text, prompt=(Message(role="user", content=text),)) for text in ("call", "wait")]
    requests = [RolloutRequest(task) for task in tasks]
    first, second = rollout(requests, policy, tiny.renderer, Dialect(), tiny.tools, Slow())
    assert (first.answer, second.answer) == ("5", "late")
