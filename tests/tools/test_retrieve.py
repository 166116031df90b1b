import math
from pathlib import Path

import pytest

from tirkit.tools.catalogue import SEAL_TOOLS_SAMPLE, load_catalogue
from tirkit.tools.questions import load_tasks
from tirkit.tools.retrieve import ToolRetriever
from tirkit.types import ToolSchema

TOOLS = [
    ToolSchema(name="getWeather", description="Weather of a city"),
    ToolSchema(name="book_flight", description="Book a flight between cities"),
    ToolSchema(
        name="x1",
        parameters={"type": "object", "properties": {"dish": {"type": "string", "description": "food to cook"}}},
    ),
]


def test_names_descriptions_and_parameters_are_searched() -> None:
    retriever = ToolRetriever(TOOLS)
    assert retriever.top("What is the weather?", 1) == ["getWeather"]
    assert retriever.top("a FLIGHT, please", 1) == ["book_flight"]
    assert retriever.top("which dish?", 1) == ["x1"]


def test_equal_scores_keep_the_order_of_the_tools() -> None:
    names = [tool.name for tool in TOOLS]
    for query in ("", "zzz", "?!"):
        assert ToolRetriever(TOOLS).top(query, 9) == names
    assert ToolRetriever(TOOLS).top("zzz", 2) == names[:2]


def test_scores_are_bm25() -> None:
    # "weather" is in 1 of 3 documents, twice in getWeather's 6 words; the documents have 6, 7, 6 words, mean 19/3.
    # idf = ln(1 + (3 - 1 + .5) / (1 + .5)); score = idf * 2 / (2 + 1.5 * (1 - .75 + .75 * 6 / (19/3)))
    expected = math.log(1 + 2.5 / 1.5) * 2 / (2 + 1.5 * (0.25 + 0.75 * 6 / (19 / 3)))
    scores = ToolRetriever(TOOLS).scores("weather")
    assert scores.tolist() == pytest.approx([expected, 0, 0], abs=1e-5)


def test_recall_on_real_questions() -> None:
    retriever = ToolRetriever(load_catalogue(SEAL_TOOLS_SAMPLE / "tools.jsonl").tools)
    tasks = load_tasks(Path(SEAL_TOOLS_SAMPLE / "questions.jsonl")).tasks
    hits = [call.name in retriever.top(task.prompt[0].content, 5) for task in tasks for call in task.gold_calls or ()]
    assert sum(hits) / len(hits) > 0.9
