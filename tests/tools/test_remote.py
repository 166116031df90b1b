"""The search tool and an endpoint on this machine, over real HTTP."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from tirkit.tools import remote
from tirkit.tools.remote import RemoteError
from tirkit.tools.runtime import PythonToolbox, run_all
from tirkit.tools.search import SEARCH_SCHEMA, Bm25Searcher, Passage, RemoteSearcher, SearchTool
from tirkit.types import ToolCall, ToolErrorKind, ToolResult

CORPUS = [Passage(title="Oslo", text="The capital of Norway, æøå."), Passage(title="Bergen", text="A city in Norway.")]
GOOD = json.dumps({"passages": [passage.model_dump() for passage in CORPUS]}).encode()


class Handler(BaseHTTPRequestHandler):
    """Gives the server's `faults` one after another, then the two passages."""

    server: Any

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.asked.append((asked, time.monotonic()))
            fault = self.server.faults.pop(0) if self.server.faults else "none"
        getattr(self, f"answer_{fault}")()

    def answer(self, body: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def answer_none(self) -> None:
        self.answer(GOOD)

    def answer_500(self) -> None:
        self.answer(b"oh no", 500)

    def answer_429(self) -> None:
        self.answer(b"slower", 429, retry_after="0.3")

    def answer_401(self) -> None:
        self.answer(b"bad key", 401)

    def answer_302(self) -> None:
        self.answer(b"", 302, location="http://elsewhere.test/")

    def answer_malformed(self) -> None:
        self.answer(b'{"passages": [{"title": 1}]}')

    def answer_binary(self) -> None:
        self.answer(b"\xff\xfe\x00")

    def answer_zipped(self) -> None:
        self.answer(b"not gzip", content_encoding="gzip")

    def answer_bomb(self) -> None:
        self.answer(gzip.compress(bytes(3 << 20)), content_encoding="gzip")

    def answer_truncated(self) -> None:
        self.answer(GOOD[:40], length=len(GOOD))
        self.close_connection = True

    def answer_disconnect(self) -> None:
        self.close_connection = True

    def answer_hang(self) -> None:
        self.server.over.wait(20)

    def answer_drip(self) -> None:  # each piece in time, all of them never
        self.answer(b"", length=100)
        while not self.server.over.wait(0.05):
            self.wfile.write(b" ")
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[SimpleNamespace]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = SimpleNamespace(faults=[], asked=[], over=threading.Event(), lock=threading.Lock())
    vars(server).update(vars(state))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/search"
    yield state
    state.over.set()
    server.shutdown()
    server.server_close()


def box(url: str, timeout_s: float = 0.5, retries: int = 2) -> PythonToolbox:
    tool = SearchTool(RemoteSearcher(url, timeout_s), k=2)
    return PythonToolbox({"search": tool}, [SEARCH_SCHEMA], isolation="inline", retries=retries, backoff_s=0.01)


def run(url: str, query: str = "Norway") -> ToolResult:
    return box(url).run(ToolCall(name="search", arguments={"query": query}))


def test_an_endpoint_answers_as_a_corpus_would(endpoint: SimpleNamespace) -> None:
    local = PythonToolbox({"search": SearchTool(Bm25Searcher(CORPUS), k=2)}, [SEARCH_SCHEMA], isolation="inline")
    there, here = run(endpoint.url), local.run(ToolCall(name="search", arguments={"query": "capital of Norway"}))
    assert (there.content, there.error) == (here.content, None)
    assert endpoint.asked[0][0] == {"query": "Norway", "k": 2}


PASSING = ["500", "429", "malformed", "binary", "zipped", "truncated", "disconnect", "hang", "drip"]


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_tried_again_and_a_lasting_one_told(endpoint: SimpleNamespace, fault: str) -> None:
    endpoint.faults += [fault]
    assert run(endpoint.url).error is None
    assert len(endpoint.asked) == 2
    endpoint.faults += [fault] * 3
    result = run(endpoint.url)
    assert (result.error, len(endpoint.asked)) == (ToolErrorKind.UNAVAILABLE, 5)
    assert endpoint.url in result.content or "search endpoint" in result.content
    assert ("came in too slowly" in result.content) == (fault == "drip")


def test_retry_after_is_obeyed(endpoint: SimpleNamespace) -> None:
    endpoint.faults += ["429"]
    assert run(endpoint.url).error is None
    (_, first), (_, second) = endpoint.asked
    assert second - first >= 0.3


@pytest.mark.parametrize(
    ("fault", "message"),
    [("401", "answered 401: bad key; check"), ("302", "answered 302"), ("bomb", "more than 2 MB")],
)
def test_what_will_not_pass_stops_the_run(
    endpoint: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES", 2 << 20)
    endpoint.faults += [fault]
    with pytest.raises(RemoteError, match=message):
        run(endpoint.url)
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "no address", "http://h:port/x"])
def test_what_is_no_address_stops_the_run(url: str) -> None:
    with pytest.raises(RemoteError, match="is not an address"):
        run(url)


def test_nobody_there_is_told() -> None:
    result = run("http://127.0.0.1:9/search")
    assert result.error == ToolErrorKind.UNAVAILABLE
    assert "ConnectError" in result.content


def test_sixteen_callers_lose_nothing_to_faults(endpoint: SimpleNamespace) -> None:
    endpoint.faults += ["500", "truncated", "malformed", "disconnect"] * 2
    shared = box(endpoint.url, timeout_s=20, retries=8)  # all eight may meet one call
    results = run_all(shared, [ToolCall(name="search", arguments={"query": str(i)}) for i in range(40)], workers=16)
    assert all(result.error is None for result in results)
    assert len(endpoint.asked) == 48
    assert {asked["query"] for asked, _ in endpoint.asked} == {str(i) for i in range(40)}
