"""The page of evaluations: every case that is not right beside its gold; two models, case by case."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

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


def cases_on(page: Path) -> dict[str, Any]:
    """Id → case, as the page of attempts beside `page` holds them."""
    text = (page.parent / "attempts.html").read_text()
    found = re.search(r'id="cases">(.*?)</script>', text, re.DOTALL)
    assert found
    return {case["id"]: case for case in json.loads(found[1])}


def verdicts(case: Any) -> str:
    return " ".join(attempt["verdict"] for attempt in case["attempts"])


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
    cases = list(cases_on(path).values())
    # BFCL: 9 cases, right are the parallel one and, since it does not call, the irrelevant one; MetaTool's 2 are wrong.
    assert [verdicts(case) for case in cases] == ["wrong"] * (7 + 2) + ["right"] * 2
    assert [case["kind"].partition(":")[0] for case in cases[:9]] == ["bfcl"] * 7 + ["metatool"] * 2
    assert {case["attempts"][0]["why"] for case in cases[:9]} == {"no call"}
    assert all(["answers", f"No. {EVIL}"] in case["attempts"][0]["said"] for case in cases[:9])
    assert ["calls", "FinanceTool {}"] in [part for case in cases for part in case["gold"]]
    text = path.read_text()
    assert not re.search(r"<script|https?://(?!github)", text)
    assert "overlap with training not checked" in text
    assert sorted(file.name for file in path.parent.iterdir()) == ["attempts.html", "index.html"]


def test_markup_in_a_models_name_stays_text(evaluated: Callable[..., Path], tmp_path: Path) -> None:
    path = report_evaluations([evaluated("b", stubborn, EVIL)], tmp_path / "b")
    assert EVIL not in path.read_text()
    assert EVIL not in (path.parent / "attempts.html").read_text()


def test_two_models_are_compared_case_by_case(evaluated: Callable[..., Path], tmp_path: Path) -> None:
    def other(task: Task, turns: Sequence[Turn]) -> str:
        """Right where the stubborn one is wrong, wrong in the parallel category, and where no call is right."""
        return (
            Dialect().print_calls([ToolCall(name="f")])
            if task.kind in ("parallel", "irrelevance")
            else ORACLE(task, turns)
        )

    folders = [evaluated("stubborn", stubborn), evaluated("other", other)]
    path = report_evaluations(folders, tmp_path / "page")
    text, cases = path.read_text(), cases_on(path)
    # Of 9 cases the first has 2 right, the second 6 (live_relevance is right with any call, and the oracle makes none).
    sides = ["right wrong"] * 2 + ["wrong right"] * 6 + ["wrong wrong"]
    assert sorted(map(verdicts, cases.values())) == sides
    assert "8 of 9 items changed side: 2 only the first has right, 6 only the second" in text
    # 2 * (1 + 8 + 28) / 2**8
    assert "<td>0.29</td>" in text
    assert "<td>-44.4</td>" in text  # 2/9 - 6/9
    links = dict(re.findall(r'<a href="attempts.html#([^"]+)">([\w-]+)</a>', text))
    assert len(links) == 8
    assert {verdicts(cases[unquote(anchor)]) for anchor in links} == {"right wrong", "wrong right"}
    assert verdicts(cases["bfcl/parallel_0"]) == "right wrong"


def test_evaluations_of_one_model_are_told_apart(evaluated: Callable[..., Path], tmp_path: Path) -> None:
    folders = [evaluated("one", ORACLE, "same"), evaluated("two", ORACLE, "same")]
    text = report_evaluations(folders, tmp_path / "page").read_text()
    assert f"same, documents: all ({folders[0]})" in text
    assert "0 of 9 items changed side" in text


def test_what_is_no_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"is no evaluation \(no setting.json\)"):
        report_evaluations([tmp_path], tmp_path / "page")
