import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tirkit.evaluation.attempts import Attempt, Case
from tirkit.evaluation.charts import Curve, Panel, accuracy_figure, knowledge_figure, panel_figure
from tirkit.evaluation.metrics import Item, Knowledge
from tirkit.evaluation.pages import MAX_TEXT, script_json, shown
from tirkit.evaluation.report import ReportData, Table, write_report
from tirkit.evaluation.run import EvaluationResult, KnowledgeResult
from tirkit.evaluation.tables import arm_rows, counts, differences, not_compared, pooled, seeds_note
from tirkit.evaluation.terminal import difference_lines
from tirkit.types import StopReason

EVIL = "</script><script>alert(1)</script>"


def result(
    arm: str, successes: str, seed: int = 0, tokens: float = 20, problems: tuple[str, ...] = ()
) -> EvaluationResult:
    items = [
        Item(
            task_id=str(n),
            kind="k1" if n % 2 else "k0",
            seen=n < 2,
            metrics={"success": float(digit), "call_em": float(digit), "prompt_tokens": tokens, "seconds": 0.5},
            stop=StopReason.ANSWERED if digit == "1" else StopReason.MALFORMED,
            problems=problems,
        )
        for n, digit in enumerate(successes)
    ]
    return EvaluationResult(arm=arm, seed=seed, items=tuple(items), seconds=1.0)


def everything(text: str) -> ReportData:
    knowledge = (Knowledge(name=text, memorise=1.0, recall=0.0, recall_f1=0.5),)
    attempt = Attempt(arm=text, verdict="right", spans=((text, "prompt"),))
    return ReportData(
        title=text,
        intro=text,
        facts=((text, text),),
        arms=(result(text, "1110", problems=(text,)), result("other", "1000", tokens=400)),
        panels=(
            Panel(title=text, note=text, x_label=text, y_label=text, curves=(Curve(name=text, x=(1.0,), y=(2.0,)),)),
        ),
        knowledge=(KnowledgeResult(phase=text, tools=knowledge),),
        cases=(Case(id=text, asked=((text, text),), attempts=(attempt,)),),
        tables=(Table(title=text, note=text, head=(text,), rows=((text,),)),),
        config=text,
    )


class Page(HTMLParser):
    """Collects elements, attributes that run code, and the JSON in script elements."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.figures: list[Any] = []
        self._attrs: dict[str, str | None] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._attrs = dict(attrs)
        assert not [name for name in self._attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self._attrs.get("type") == "application/json" and data.strip():
            self.figures.append(json.loads(data))
            self._attrs = {}


def test_the_page_is_whole_and_offline(tmp_path: Path) -> None:
    path = write_report(tmp_path / "report", everything("plain"))
    assert path == tmp_path / "report" / "index.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["attempts.html", "index.html", "plotly.min.js"]
    text = path.read_text()
    page = Page(text)
    assert page.tags.count("script") == 2 + 3  # plotly.js, ours, and three figures
    assert len(page.figures) == 3
    assert not re.search(r"https?://", text)
    assert "75.0 ± 25.0" in text
    assert "One seed (0)" in text
    assert "+50.0" in text  # 3/4 - 1/4
    assert not re.search(r"https?://|<script[^>]+src", (path.parent / "attempts.html").read_text())
    assert "malformed" in text


@pytest.mark.parametrize("evil", [EVIL, "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "<!--", "{{ 7*7 }}"])
def test_nothing_from_outside_becomes_markup(tmp_path: Path, evil: str) -> None:
    good = Page(write_report(tmp_path / "good", everything("plain")).read_text())
    page = Page(write_report(tmp_path / "evil", everything(evil)).read_text())
    assert page.tags == good.tags
    attempts, plain = (Page((tmp_path / name / "attempts.html").read_text()) for name in ("evil", "good"))
    assert attempts.tags == plain.tags
    arms, (case,), _ = attempts.figures
    assert (arms, case["id"], case["attempts"][0]["spans"]) == ([evil], evil, [[evil, "prompt"]])
    # Plotly reads a little HTML in labels: there the text is escaped once more.
    assert "<img" not in json.dumps(page.figures)
    assert "<script" not in json.dumps(page.figures)


def test_an_empty_report_is_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, ReportData(title="Nothing yet")).read_text())
    assert "table" not in page.tags


def test_writing_again_replaces_the_page(tmp_path: Path) -> None:
    write_report(tmp_path, ReportData(title="first"))
    before = (tmp_path / "plotly.min.js").stat().st_mtime_ns
    assert "second" in write_report(tmp_path, ReportData(title="second")).read_text()
    assert (tmp_path / "plotly.min.js").stat().st_mtime_ns == before


def test_report_data_is_json() -> None:
    data = everything("x")
    assert ReportData.model_validate_json(data.model_dump_json()) == data


def test_long_and_odd_text_is_shown_safely() -> None:
    assert shown("a\x1bb\n") == "a\\x1bb\n"
    text = shown("x" * (MAX_TEXT + 7) + "end")
    assert len(text) < MAX_TEXT + 60
    assert "[… 10 characters left out …]" in text
    assert text.endswith("end")


def test_script_json_cannot_close_its_element() -> None:
    text = script_json({"a": EVIL})
    assert "<" not in text
    assert json.loads(text) == {"a": EVIL}


def test_long_curves_get_a_running_mean() -> None:
    n = tuple(float(i) for i in range(2000))
    figure = panel_figure(Panel(title="", curves=(Curve(name="loss", x=n, y=n),)))
    faint, smooth = figure["data"]
    assert faint["opacity"] < 1
    assert len(smooth["x"]) == len(smooth["y"]) <= 800
    short = panel_figure(
        Panel(title="", curves=(Curve(name="loss", x=(1.0,), y=(1.0,)), Curve(name="none", x=(), y=())))
    )
    assert [len(trace["x"]) for trace in short["data"]] == [1, 0]


def test_accuracy_figure_takes_a_log_axis_where_costs_are_far_apart() -> None:
    near, far = result("a", "11", tokens=10), result("b", "10", tokens=1000)
    figure = accuracy_figure(arm_rows([near, far]))
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert [(t["x"], t["y"]) for t in figure["data"]] == [([10], [1]), ([1000], [0.5])]
    assert figure["data"][1]["error_y"]["array"] == [pytest.approx(0.5)]  # s = √.5, / √2
    assert "type" not in accuracy_figure(arm_rows([near]))["layout"]["xaxis"]


def test_knowledge_figure() -> None:
    tools = tuple(Knowledge(name=str(n), memorise=1.0, recall=float(n), recall_f1=0.5) for n in range(2))
    figure = knowledge_figure([KnowledgeResult(phase="one", tools=tools), KnowledgeResult(phase="none", tools=())])
    assert [(t["x"], t["y"]) for t in figure["data"]] == [(["one"], [1]), (["one"], [0.5]), (["one"], [0.5])]


def test_seeds_of_an_arm_are_pooled_task_by_task() -> None:
    arms = [result("m", "11"), result("m", "10", seed=1), result("b", "00")]
    assert pooled(arms[:2], "success") == {"0": 1, "1": 0.5}
    first, second = arm_rows(arms)
    assert (first.arm, first.seeds, first.cells["success"]) == ("m", (0, 1), "75.0 ± 25.0")
    assert second.cells["success"] == "0.0 ± 0.0"
    assert "seeds 0, 1" in seeds_note(arms)
    ((arm, value),) = differences(arms)
    assert (arm, value.mean) == ("b", 1.0)  # seed 0, which both have
    assert difference_lines(arms).splitlines()[0] == "m − b: +100.0 points [100.0, 100.0]"
    assert difference_lines(arms[:2]) == ""
    assert differences([arms[0], result("c", "111")]) == []  # other tasks: no pairs
    assert not_compared(arms) == []
    assert not_compared([arms[0], result("c", "111")]) == ["c"]
    assert difference_lines([arms[0], result("c", "111")]).endswith("− c: not compared, other questions")
    assert differences([]) == []


def test_counts_by_arm() -> None:
    stops, problems = counts([result("m", "110", problems=("unknown tool 'x'", "call 3: bad"))])
    assert stops == {"m": {"answered": 2, "malformed": 1}}
    assert problems == {"m": {"unknown tool '…'": 3, "call: bad": 3}}
