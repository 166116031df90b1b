import doctest
import json
from pathlib import Path
from typing import Any

import pytest

from examples import real_tools
from tirkit.tools.python import PYTHON_SCHEMA, PythonTool
from tirkit.tools.questions import QuestionError
from tirkit.tools.runtime import PythonToolbox
from tirkit.tools.sandbox import Sandbox
from tirkit.tools.search import Bm25Searcher, Passage, SearchError
from tirkit.types import Message, Task, UserError

GSM8K = [
    ("Six times seven, less two?", "6*7=<<6*7=42>>42. 42-2=<<42-2=40>>40\n#### 40"),
    ("Last step without a note?", "6*7=<<6*7=42>>42, and 2 fewer are 40\n#### 40"),
    ("Note that is no code?", "6*7=<<6*/7=42>>42\n#### 42"),
    ("No note?", "It is 5.\n#### 5"),
]
PASSAGES = [
    Passage(title="Foo Bar", text="Foo Bar, film by Jane Roe."),
    Passage(title="Jane Roe", text="Jane Roe, daughter to Ada Poe."),
    Passage(title="Rome", text="Rome, a city."),
]


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in GSM8K))
    return path


def python(function: Any = None) -> PythonToolbox:
    tool = function or PythonTool(Sandbox(isolation="unsafe_subprocess"))
    return PythonToolbox({"python": tool}, [PYTHON_SCHEMA], isolation="inline")


def test_its_doctests_hold() -> None:
    tested = doctest.testmod(real_tools)
    assert tested.attempted == 2
    assert not tested.failed


def test_sums_are_answered_with_what_the_last_call_printed(gsm8k: Path) -> None:
    tasks, calculator = real_tools.load_gsm8k(gsm8k)
    attempts, seconds = real_tools.answer_all(tasks, calculator, python(), PYTHON_SCHEMA)
    assert [attempt.answer for attempt in attempts] == ["40", "42", real_tools.UNKNOWN, real_tools.UNKNOWN]
    row = real_tools.summarise("sums", tasks, attempts, seconds)
    assert (row.questions, row.calls, row.errors, row.accuracy.mean) == (4, 4, {"raised": 1}, 0.25)


def test_a_broken_tool_makes_wrong_answers(gsm8k: Path) -> None:
    tasks, calculator = real_tools.load_gsm8k(gsm8k)
    attempts, _ = real_tools.answer_all(tasks, calculator, python(lambda code: "0"), PYTHON_SCHEMA)
    assert real_tools.summarise("sums", tasks, attempts, None).accuracy.mean == 0


def test_an_answer_is_read_in_passages_or_not_known() -> None:
    question = Message(role="user", content="Who is the mother of the maker of Foo Bar?")
    task = Task(id="q", prompt=(question,), answer="Ada Poe", comparison="qa")
    (row,) = real_tools.search_rows("all", [task], Bm25Searcher(PASSAGES))
    # Asked for: the question (brings "Foo Bar"), the name in it (the same), then the name that was read, "Jane Roe".
    assert (row.accuracy.mean, row.calls) == (1, 3)
    found = real_tools.search_rows("one", [task], Bm25Searcher([PASSAGES[0], PASSAGES[2]]))
    assert found[0].accuracy.mean == 0
    lost = Task(id="r", prompt=(Message(role="user", content="Who else?"),), answer="Ada Poe", comparison="qa")
    rows = real_tools.search_rows("two", [task, lost], Bm25Searcher(PASSAGES))
    assert [(row.questions, row.accuracy.mean) for row in rows] == [(2, 0.5), (1, 1)]


def test_no_call_is_lost_and_lost_ones_are_counted() -> None:
    sandbox = Sandbox(isolation="unsafe_subprocess")
    load = real_tools.measure_load(python(PythonTool(sandbox)), sandbox, calls=40, slots=2)
    assert (load.calls, load.lost) == (40, 0)
    assert 0 < load.median_ms <= load.p95_ms <= load.p99_ms
    assert real_tools.measure_load(python(lambda code: "4"), sandbox, calls=5, slots=2).lost == 4  # all but 2 ** 2


def test_all_of_it(gsm8k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        Sandbox().run("1")
    except UserError as error:
        pytest.skip(str(error))
    corpus, wiki, out = tmp_path / "corpus.jsonl", tmp_path / "wiki.jsonl", tmp_path / "new" / "out.json"
    corpus.write_text("".join(passage.model_dump_json() + "\n" for passage in PASSAGES))
    wiki.write_text('{"question": "Who made Foo Bar?", "answer": ["Jane Roe"]}\n')
    context = {"title": ["A", "B"], "sentences": [["Ann was", " born in Bonn."], ["B is b."]]}
    hotpot = tmp_path / "hotpot.jsonl"
    hotpot.write_text(json.dumps({"question": "Where was Ann born?", "answer": "Bonn", "context": context}) + "\n")
    real_tools.main(gsm8k, wiki, corpus, hotpot, out, calls=3)
    report = real_tools.Report.model_validate_json(out.read_text())
    assert [(row.questions, row.accuracy.mean) for row in report.rows] == [(4, 0.25), (1, 1), (1, 1)]
    assert report.load.lost == 0
    assert "3 Python calls, 16 in flight" in capsys.readouterr().out


def test_missing_and_strange_files_are_named(gsm8k: Path, tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match=r"nowhere\.jsonl cannot be read"):
        real_tools.load_gsm8k(tmp_path / "nowhere.jsonl")
    with pytest.raises(SearchError, match=r"nowhere\.jsonl cannot be read"):
        real_tools.main(gsm8k, gsm8k, tmp_path / "nowhere.jsonl")
    gsm8k.write_text('{"question": "1 + 1?", "answer": "2 #### 2"}\n')
    with pytest.raises(QuestionError, match=r"no solution in .*gsm8k\.jsonl has calculator notes"):
        real_tools.load_gsm8k(gsm8k)
    with pytest.raises(QuestionError, match="brings a context"):
        real_tools.load_hotpot(gsm8k)
