"""The page of evaluations: every case that is not right beside its gold; two models, case by case."""

import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tirkit.evaluation.benchmarks.base import BenchmarkError
from tirkit.evaluation.benchmarks.bfcl import BFCL
from tirkit.evaluation.benchmarks.folder import BenchmarkSetting
from tirkit.evaluation.benchmarks.metatool import METATOOL
from tirkit.evaluation.benchmarks.report import report_evaluations
from tirkit.evaluation.benchmarks.runner import Asking, run_benchmarks
from tirkit.rollout.policy import ScriptedPolicy, oracle
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.types import Task, ToolCall, Turn

Script = Callable[[Task, Sequence[Turn]], str]
ORACLE = oracle(Dialect(), "No tool fits.")
EVIL = "</div></script><script>alert(1)</script>"


class Page(HTMLParser):
    """Collects tags, the cases' attributes and what stands in their parts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.cases: list[dict[str, str | None]] = []
        self.said: list[tuple[str, str]] = []
        self._who = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert not [name for name in found if name.startswith("on")]
        self.tags.append(tag)
        kind = found.get("class") or ""
        if kind == "case":
            self.cases.append(found)
        self._who = kind.removeprefix("said ") if kind.startswith("said ") else self._who

    def handle_endtag(self, tag: str) -> None:
        self._who = "" if tag == "div" else self._who

    def handle_data(self, data: str) -> None:
        if self._who and self.tags[-1] == "b" and data not in (self._who, "\n"):
            self.said.append((self._who, data))


@pytest.fixture
def evaluated(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, script: Script, arm: str = "", benchmarks: Sequence[object] = (BFCL,)) -> Path:
        asking = Asking(ScriptedPolicy(script, renderer), renderer, Dialect())
        run_benchmarks(asking, benchmarks, tiny_data, tmp_path / name, BenchmarkSetting(arm=arm or name))  # type: ignore[arg-type]
        return tmp_path / name

    return run


def stubborn(task: Task, turns: Sequence[Turn]) -> str:
    """Right in the parallel category alone."""
    return ORACLE(task, turns) if task.kind == "parallel" else Dialect().print_answer(f"No. {EVIL}")


def test_every_failed_attempt_stands_beside_its_gold(evaluated: Callable[..., Path], tmp_path: Path) -> None:
    folder = evaluated("stubborn", stubborn, benchmarks=(BFCL, METATOOL))
    path = report_evaluations([folder], tmp_path / "page")
    text = path.read_text()
    page = Page(text)
    # BFCL: 9 cases, right are the parallel one and, since it does not call, the irrelevant one; MetaTool's 2 are wrong.
    assert len(page.cases) == 7 + 2
    assert [case["data-side"] for case in page.cases] == ["0"] * 9
    assert [case["data-benchmark"] for case in page.cases] == ["0"] * 7 + ["1"] * 2
    assert {case["data-kind"] for case in page.cases} == {"0 "}
    assert '<option value="0">no call</option>' in text
    replies = [said for who, said in page.said if who == "assistant"]
    assert replies == [f"<answer>No. {EVIL}</answer>"] * 9
    assert ("calls", '{"name": "FinanceTool", "arguments": {}}') in page.said
    assert page.tags.count("script") == 1
    assert not re.search(r"<script[^>]+src|https?://(?!github)", text)
    assert "overlap with training not checked" in text
    assert list(path.parent.iterdir()) == [path]


def test_markup_in_a_models_name_stays_text(evaluated: Callable[..., Path], tmp_path: Path) -> None:
    plain = Page(report_evaluations([evaluated("a", stubborn, "arm")], tmp_path / "a").read_text())
    evil = Page(report_evaluations([evaluated("b", stubborn, EVIL)], tmp_path / "b").read_text())
    assert evil.tags == plain.tags


def test_two_models_are_compared_case_by_case(evaluated: Callable[..., Path], tmp_path: Path) -> None:
    def other(task: Task, turns: Sequence[Turn]) -> str:
        """Right where the stubborn one is wrong, wrong in the parallel category, and where no call is right."""
        return (
            Dialect().print_calls([ToolCall(name="f")])
            if task.kind in ("parallel", "irrelevance")
            else ORACLE(task, turns)
        )

    folders = [evaluated("stubborn", stubborn), evaluated("other", other)]
    text = report_evaluations(folders, tmp_path / "page").read_text()
    page = Page(text)
    # Of 9 cases the first has 2 right, the second 6 (live_relevance is right with any call, and the oracle makes none).
    assert sorted(case["data-side"] or "" for case in page.cases) == ["00", *["01"] * 6, *["10"] * 2]
    assert "8 of 9 items changed side: 2 only the first has right, 6 only the second" in text
    # 2 * (1 + 8 + 28) / 2**8
    assert "<td>0.29</td>" in text
    assert "<td>-44.4</td>" in text  # 2/9 - 6/9
    links = re.findall(r'<a href="#(case-\d+)">([\w-]+)</a>', text)
    by_id = {case["id"]: case for case in page.cases}
    assert len(links) == 8
    assert by_id[{name: anchor for anchor, name in links}["parallel_0"]]["data-side"] == "10"


def test_evaluations_of_one_model_are_told_apart(evaluated: Callable[..., Path], tmp_path: Path) -> None:
    folders = [evaluated("one", ORACLE, "same"), evaluated("two", ORACLE, "same")]
    text = report_evaluations(folders, tmp_path / "page").read_text()
    assert f"same, documents: all ({folders[0]})" in text
    assert "0 of 9 items changed side" in text


def test_what_is_no_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"is no evaluation \(no setting.json\)"):
        report_evaluations([tmp_path], tmp_path / "page")
