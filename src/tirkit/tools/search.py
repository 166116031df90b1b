"""The search tool: a query in, the passages that fit it best out, from a corpus here or an endpoint elsewhere."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import bm25s
import httpx
import numpy as np
from pydantic import ValidationError

from tirkit.tools.lines import convert_records, parse_as, read_records
from tirkit.tools.remote import post
from tirkit.tools.worker import Answer, TransientToolError, clip
from tirkit.types import Record, ToolSchema, UserError

SEARCH_SCHEMA = ToolSchema(
    name="search",
    description="Search a collection of documents and return the passages that fit the query best.",
    parameters={
        "type": "object",
        "properties": {"query": {"type": "string", "description": "what to look for"}},
        "required": ["query"],
    },
)


_WORD = re.compile(r"\w+")


class SearchError(UserError):
    """A corpus cannot be searched; the message says why and what to do."""


class Passage(Record):
    """One piece of a corpus."""

    title: str = ""
    text: str


class Passages(Record):
    """What a search endpoint answers."""

    passages: tuple[Passage, ...]


class Searcher(Protocol):
    """Finds passages; may be asked from several threads at once."""

    def search(self, query: str, k: int) -> list[Passage]:
        """The k passages that fit best, best first; fewer where fewer fit."""
        ...


class SearchTool:
    """`search(query)`, for a PythonToolbox with isolation="inline": the text of the `k` best passages.

    Each passage is a line with its number and title, then its text, cut to `max_chars` (head … tail).
    """

    def __init__(self, searcher: Searcher, k: int = 3, max_chars: int = 1000) -> None:
        self.searcher, self.k, self.max_chars = searcher, k, max_chars

    def __call__(self, query: str) -> Answer:
        """Search for `query`."""
        found = self.searcher.search(query, self.k)
        cuts = [clip(passage.text, self.max_chars) for passage in found]
        texts = [
            f"[{number}] {passage.title}\n{text}"
            for number, (passage, (text, _)) in enumerate(zip(found, cuts, strict=True), 1)
        ]
        return Answer("\n".join(texts) or "(nothing found)", truncated=any(cut for _, cut in cuts))


class Bm25Searcher:
    """BM25 (Lucene's variant, k1 1.5, b 0.75) over titles and texts; of equal scores the earlier passage wins.

    Passages that share no word with the query are not found.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        if not passages:
            raise SearchError("there is no passage to search; give a corpus that holds some")
        self.passages = tuple(passages)
        self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self._index.index([terms(f"{one.title} {one.text}") for one in passages], show_progress=False)

    @classmethod
    def load(cls, path: Path) -> "Bm25Searcher":
        """Index a corpus file: JSON or JSONL records of `title` (may be left out) and `text`.

        Raises SearchError naming file, line and remedy where a record cannot be used.
        """
        try:
            values, issues = read_records(path)
        except OSError as error:
            raise SearchError(f"corpus {path} cannot be read ({error.strerror}); give a JSONL file") from error
        passages = [passage for _, passage in convert_records(path, values, parse_as(Passage), issues)]
        if issues:
            raise SearchError(f"{len(issues)} bad records in the corpus: {issues[0]}; each needs a text (and a title)")
        return cls(passages)

    def search(self, query: str, k: int) -> list[Passage]:
        """See Searcher."""
        known = [word for word in terms(query) if word in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        best = np.argsort(-scores, kind="stable")[:k]
        return [self.passages[i] for i in best if scores[i] > 0]


def terms(text: str) -> list[str]:
    """The words that are compared: case and accents left out.

    >>> terms("Sancho Ramírez's ŁÓDŹ, Ægir 2")
    ['sancho', 'ramirez', 's', 'łodz', 'ægir', '2']
    """
    letters = unicodedata.normalize("NFKD", text.casefold())
    return _WORD.findall("".join(c for c in letters if not unicodedata.combining(c)))


class RemoteSearcher:
    """An endpoint that takes POST {"query": …, "k": …} and answers {"passages": [{"title": …, "text": …}, …]}.

    What may pass (no connection, timeouts, 429 and 5xx, an answer that is cut off) raises TransientToolError, which
    the toolbox tries again; what will not pass (wrong address, wrong key) raises RemoteError.
    """

    def __init__(self, url: str, timeout_s: float = 10.0, client: httpx.Client | None = None) -> None:
        self.url, self.timeout_s = url, timeout_s
        self._client = client or httpx.Client(timeout=timeout_s)

    def search(self, query: str, k: int) -> list[Passage]:
        """See Searcher."""
        body = post(self._client, self.url, {"query": query, "k": k}, within_s=self.timeout_s)
        return list(_read(body).passages[:k])


def _read(body: str) -> Passages:
    try:
        return Passages.model_validate_json(body)
    except ValidationError as error:
        raise TransientToolError(f"the search endpoint's answer cannot be read: {error.errors()[0]['msg']}") from error
