import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tirkit.tools.remote import RemoteError
from tirkit.tools.runtime import PythonToolbox
from tirkit.tools.search import (
    SEARCH_SCHEMA,
    Bm25Searcher,
    Passage,
    RemoteSearcher,
    Searcher,
    SearchError,
    SearchTool,
)
from tirkit.types import ToolCall, ToolErrorKind, ToolResult

CORPUS = (
    Passage(title="Oslo", text="Oslo is the capital of Norway."),
    Passage(title="Bergen", text="Bergen is a city in Norway."),
    Passage(title="Rome", text="Rome is the capital of Italy. " + "It is old. " * 200),
)
URL = "http://search.test/search"


def run(searcher: Searcher, query: str, **settings: int) -> ToolResult:
    tool = SearchTool(searcher, **settings)
    box = PythonToolbox({"search": tool}, [SEARCH_SCHEMA], isolation="inline", retries=2, backoff_s=0.001)
    return box.run(ToolCall(name="search", arguments={"query": query}))


def test_the_best_passages_come_first() -> None:
    searcher = Bm25Searcher(CORPUS)
    assert [passage.title for passage in searcher.search("capital of Norway", 3)] == ["Oslo", "Bergen", "Rome"]
    assert [passage.title for passage in searcher.search("BERGEN?", 2)] == ["Bergen"]  # no filling up
    assert searcher.search("xyz", 2) == searcher.search("", 2) == []


def test_the_result_is_numbered_text() -> None:
    result = run(Bm25Searcher(CORPUS), "Norway", k=2)
    text = "[1] Oslo\nOslo is the capital of Norway.\n[2] Bergen\nBergen is a city in Norway."
    assert (result.content, result.error, result.truncated) == (text, None, False)
    assert run(Bm25Searcher(CORPUS), "xyz").content == "(nothing found)"


def test_long_passages_are_cut() -> None:
    result = run(Bm25Searcher(CORPUS), "Rome", max_chars=100)
    assert result.truncated
    assert result.content.startswith("[1] Rome\nRome is the capital of")
    assert len(result.content) == 100 + len("[1] Rome\n")


def test_a_corpus_is_loaded_or_its_bad_line_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(passage.model_dump_json() + "\n" for passage in CORPUS))
    assert Bm25Searcher.load(path).passages == CORPUS
    path.write_text('{"text": "fine"}\n{"title": "no text"}\n')
    with pytest.raises(SearchError, match=r"1 bad records in the corpus: .*corpus.jsonl:2: .*text"):
        Bm25Searcher.load(path)
    with pytest.raises(SearchError, match=r"nowhere\.jsonl cannot be read"):
        Bm25Searcher.load(tmp_path / "nowhere.jsonl")
    path.write_text("")
    with pytest.raises(SearchError, match="no passage to search"):
        Bm25Searcher.load(path)


def test_threads_search_at_once() -> None:
    searcher = Bm25Searcher(CORPUS)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: searcher.search(CORPUS[i % 3].title, 1)[0].title, range(300)))
    assert found == [CORPUS[i % 3].title for i in range(300)]


def remote(*answers: httpx.Response | Exception) -> tuple[RemoteSearcher, list[dict[str, object]]]:
    """A searcher whose endpoint gives `answers` in turn, and what it was asked."""
    asked: list[dict[str, object]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        answer = answers[len(asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return RemoteSearcher(URL, client=httpx.Client(transport=httpx.MockTransport(handler))), asked


def found(*passages: Passage) -> httpx.Response:
    return httpx.Response(200, json={"passages": [passage.model_dump() for passage in passages]})


def test_an_endpoint_answers_like_a_corpus() -> None:
    searcher, asked = remote(found(*CORPUS[:2]))
    assert run(searcher, "Norway", k=2).content == run(Bm25Searcher(CORPUS), "Norway", k=2).content
    assert asked == [{"query": "Norway", "k": 2}]


@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(429, headers={"retry-after": "0.01"}),
        httpx.Response(503, text="down"),
        httpx.Response(200, text='{"passages": [{"ti'),
        httpx.Response(200, json={"results": []}),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut off"),
    ],
)
def test_what_may_pass_is_tried_again(failure: httpx.Response | Exception) -> None:
    searcher, asked = remote(failure, failure, found(CORPUS[0]))
    assert run(searcher, "Oslo").error is None
    assert len(asked) == 3
    searcher, asked = remote(failure, failure, failure)
    assert run(searcher, "Oslo").error == ToolErrorKind.UNAVAILABLE
    assert len(asked) == 3


def test_what_will_not_pass_stops_the_run() -> None:
    searcher, asked = remote(httpx.Response(401, text="bad key"))
    with pytest.raises(RemoteError, match=r"http://search.test/search answered 401: bad key; check the address"):
        run(searcher, "Oslo")
    assert len(asked) == 1


def test_the_2wiki_passages_are_found_by_their_titles(shared_data: Path) -> None:
    searcher = Bm25Searcher.load(shared_data / "qa" / "2wiki_corpus.jsonl")
    assert len(searcher.passages) == 6119
    sample = searcher.passages[::200]
    hits = [passage in searcher.search(passage.title, 3) for passage in sample if passage.title]
    assert sum(hits) / len(hits) > 0.9
