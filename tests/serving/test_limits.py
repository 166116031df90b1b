"""What a client may cost, and who may ask: over real sockets, with clients that behave badly."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tirkit.pipeline.serve import Access
from tirkit.rollout.policy import GenerateRequest, ScriptedPolicy
from tirkit.serving.chat import Chat, Served
from tirkit.serving.limits import Limits
from tirkit.serving.server import chat_app
from tirkit.text.dialects import Dialect

Serve = Callable[..., AbstractContextManager[str]]
ASKED: Any = {"model": "m", "messages": [{"role": "user", "content": "?"}]}


@cache
def client(url: str, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


def says(text: str) -> Callable[..., str]:
    return lambda *_: f"<answer>{text}</answer>"


@pytest.fixture
def endless(tiny: SimpleNamespace, typing: Any) -> Iterator[SimpleNamespace]:
    """A chat that types for a minute if nobody stops it."""
    policy = typing(ScriptedPolicy(says("word " * 6000), tiny.renderer), step_s=0.01)
    chat = Chat(Served("m", policy, tiny.renderer, Dialect(), max_tokens=6000), max_waiting=4)
    yield SimpleNamespace(chat=chat, policy=policy)
    chat.close()


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def post(url: str, body: bytes, length: int | None = None) -> socket.socket:
    """A connection on which a request was sent, or the beginning of one."""
    connection = connect(url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length or len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_written_for_no_longer(endless: SimpleNamespace, serve: Serve, stream: bool) -> None:
    with serve(chat_app(endless.chat)) as url:
        connections = [post(url, json.dumps(ASKED | {"stream": stream, "n": 2}).encode()) for _ in range(2)]
        wait_until(lambda: endless.chat.num_answers == 4 and endless.policy.num_typed > 3)
        with pytest.raises(openai.RateLimitError) as caught:
            client(url).chat.completions.create(**ASKED)
        assert caught.value.response.headers["retry-after"] == "1"
        connections.pop().close()
        wait_until(lambda: endless.chat.num_answers == 2)
        with pytest.raises(openai.RateLimitError):  # a status, though two of the three would find room
            client(url).chat.completions.create(**ASKED, n=3, stream=stream)
        connections.pop().close()
        wait_until(lambda: endless.chat.num_answers == 0)
        assert endless.policy.num_typed < 6000


def test_a_request_has_a_time(endless: SimpleNamespace, serve: Serve) -> None:
    with serve(chat_app(endless.chat, limits=Limits(max_request_s=0.5))) as url:
        with pytest.raises(openai.InternalServerError, match=r"was not complete within 0\.5 s") as caught:
            client(url).chat.completions.create(**ASKED)
        assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        text: list[str] = []
        with pytest.raises(openai.APIError, match="was not complete"):
            text.extend(
                chunk.choices[0].delta.content or ""
                for chunk in client(url).chat.completions.create(**ASKED, stream=True)
            )
        assert ("word " * 6000).startswith("".join(text))  # what was written until then has come
        wait_until(lambda: endless.chat.num_answers == 0)


@pytest.fixture
def chat(tiny: SimpleNamespace) -> Iterator[Chat]:
    chat = Chat(Served("m", ScriptedPolicy(says("5"), tiny.renderer), tiny.renderer, Dialect()))
    yield chat
    chat.close()


def test_bodies_have_a_size(chat: Chat, serve: Serve) -> None:
    with serve(chat_app(chat, limits=Limits(max_body_bytes=2000))) as url:
        big: Any = ASKED | {"messages": [{"role": "user", "content": "x" * 5_000_000}]}
        with pytest.raises(openai.APIStatusError, match="more than the 2,000 bytes") as caught:
            client(url).chat.completions.create(**big)
        assert (caught.value.status_code, caught.value.type) == (413, "invalid_request_error")
        assert client(url).chat.completions.create(**ASKED).choices[0].message.content == "5"


def test_requests_must_arrive(chat: Chat, serve: Serve) -> None:
    with serve(chat_app(chat), Limits(read_s=0.4)) as url:
        silent, half = connect(url), connect(url)
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        kept = post(url, json.dumps(ASKED).encode())
        assert kept.recv(20).startswith(b"HTTP/1.1 200")
        kept.sendall(b"GET /health HT")  # the second request of a connection is bounded too
        for connection in (silent, half, kept):
            assert ends(connection)
        assert httpx.get(f"{url}/health").status_code == 200
    with serve(chat_app(chat, limits=Limits(read_s=0.4))) as url:
        connection = post(url, b'{"model"', length=100)
        answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"too_slow"' in answer


def ends(connection: socket.socket) -> bool:
    """Whether the other side ends the connection."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def test_answers_must_be_read(tiny: SimpleNamespace, serve: Serve) -> None:
    size = 30_000_000

    class Long(ScriptedPolicy):
        def write(self, request: GenerateRequest) -> Any:
            return SimpleNamespace(ids=(1,), logps=(), text="x" * size, finish="stop")

    chat = Chat(Served("m", Long(says(""), tiny.renderer), tiny.renderer, Dialect()))
    with serve(chat_app(chat), Limits(read_s=0.4)) as url:
        connection = post(url, json.dumps(ASKED | {"model": "m:text"}).encode())
        assert connection.recv(10) == b"HTTP/1.1 2"
        time.sleep(3)
        received = 0
        try:
            while part := connection.recv(1 << 20):
                received += len(part)
        except ConnectionResetError:
            pass
        assert received < size
    chat.close()


def test_a_key_is_wanted(chat: Chat, serve: Serve) -> None:
    with serve(chat_app(chat, key="sesame-7")) as url:
        assert client(url, "sesame-7").chat.completions.create(**ASKED).choices[0].message.content == "5"
        assert [model.id for model in client(url, "sesame-7").models.list()] == ["m", "m:text"]
        for key in ("sesame-8", "sesame-77", "sesame"):
            with pytest.raises(openai.AuthenticationError, match="Bearer KEY") as caught:
                client(url, key).chat.completions.create(**ASKED)
            assert caught.value.code == "invalid_api_key"
        for headers in ({}, {"authorization": "Basic sesame-7"}, {"authorization": "sesame-7"}):
            answer = httpx.get(f"{url}/v1/models", headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert httpx.get(f"{url}/health").status_code == 200


def test_web_pages_may_not_ask_a_local_server(chat: Chat, serve: Serve) -> None:
    with serve(chat_app(chat, hosts=Access().hosts())) as url:
        for own in (url, url.replace("127.0.0.1", "localhost")):
            assert client(own).chat.completions.create(**ASKED).choices[0].message.content == "5"
        path, body = f"{url}/v1/chat/completions", json.dumps(ASKED)
        json_type, text_type = {"content-type": "application/json; charset=utf-8"}, {"content-type": "text/plain"}
        assert httpx.post(path, content=body, headers=json_type, timeout=60).status_code == 200
        for headers in (text_type, {}):  # what a page may send without being let
            assert httpx.post(path, content=body, headers=headers).status_code == 415
        assert httpx.options(path, headers={"origin": "http://evil.test"}).status_code == 405
        for name, status in (("evil.test", 400), ("evil.test:8000", 400), ("[::1]:8000", 200)):
            assert httpx.get(f"{url}/v1/models", headers={"host": name}).status_code == status
    assert Access(key_env="KEY").hosts() == Access("0.0.0.0", anyone=True).hosts() == ()


def test_odd_bodies_are_named(chat: Chat, serve: Serve) -> None:
    def error(body: bytes) -> tuple[int, str]:
        answer = httpx.post(f"{url}/v1/chat/completions", content=body, timeout=60)
        return answer.status_code, answer.json()["error"]["param"] or ""

    ask = json.dumps(ASKED)[:-1]
    with serve(chat_app(chat)) as url:
        assert error(b"") == (400, "")
        assert error(b"\xff\xfe{}") == (400, "")
        assert error(b"[" * 100_000) == (400, "")
        assert error(f'{ask}, "temperature": NaN}}'.encode()) == (400, "temperature")
        assert error(f'{ask}, "logprobs": true}}'.encode()) == (400, "logprobs")
        assert error(f'{ask}, "frequency_penalty": 0.5}}'.encode()) == (400, "frequency_penalty")
        assert error(f'{ask}, "response_format": {{"type": "json_object"}}}}'.encode()) == (400, "response_format.type")
        assert error(f'{ask}, "max_tokens": 1000000000}}'.encode()) == (400, "")
        assert error(f'{ask}, "tool_choice": 7}}'.encode()) == (400, "tool_choice")
        assert error(json.dumps(ASKED | {"messages": [{"role": "user", "content": "\ud800"}]}).encode())[0] == 400
        # What changes nothing is taken.
        client(url).chat.completions.create(
            **ASKED, frequency_penalty=0.0, top_p=1.0, logprobs=False, response_format={"type": "text"}, user="me"
        )
        assert client(url).models.retrieve("m:text").id == "m:text"
        with pytest.raises(openai.NotFoundError):
            client(url).models.retrieve("gpt-9")
