"""Find the tools whose documents fit a question: the BM25 baseline."""

import re
from collections.abc import Iterable, Sequence

import bm25s
import numpy as np

from tirkit.types import ToolSchema

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")


def words(text: str) -> list[str]:
    """Lower-case words; names are taken apart at capitals, digits and underscores.

    >>> words("getHTTPStatus_code of the page2")
    ['get', 'http', 'status', 'code', 'of', 'the', 'page', '2']
    """
    return [word.lower() for word in WORD.findall(text)]


def document_text(tool: ToolSchema) -> str:
    """What is searched: name and description of the tool and of its parameters."""
    parts = [tool.name, tool.description]
    properties = tool.parameters.get("properties")
    for name, schema in properties.items() if isinstance(properties, dict) else ():
        parts += [name, str(schema.get("description", "")) if isinstance(schema, dict) else ""]
    return " ".join(parts)


class ToolRetriever:
    """BM25 (Lucene's variant, k1 1.5, b 0.75) over the documents of `tools`; equal scores keep the tools' order."""

    def __init__(self, tools: Iterable[ToolSchema]) -> None:
        tools = list(tools)
        self.names = [tool.name for tool in tools]
        self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        self._index.index([words(document_text(tool)) for tool in tools], show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """BM25 score of every tool, shape (num_tools,); zeros where no word of the query occurs anywhere."""
        known: Sequence[str] = [word for word in words(query) if word in self._index.vocab_dict]
        return self._index.get_scores(known) if known else np.zeros(len(self.names), dtype=np.float32)

    def top(self, query: str, k: int) -> list[str]:
        """Names of the k best tools, best first (fewer if there are fewer)."""
        order = np.argsort(-self.scores(query), kind="stable")
        return [self.names[i] for i in order[:k]]
