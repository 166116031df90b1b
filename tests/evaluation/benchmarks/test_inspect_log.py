"""Evaluations as inspect-ai's logs; where the package is there, it reads them."""

import json
from pathlib import Path

import pytest

from tirkit.evaluation.benchmarks.bfcl import BFCL
from tirkit.evaluation.benchmarks.folder import BenchmarkSetting
from tirkit.evaluation.benchmarks.inspect_log import write_inspect_logs
from tirkit.evaluation.benchmarks.qa import QA
from tirkit.evaluation.benchmarks.runner import Asking, run_benchmarks
from tirkit.rollout.policy import ScriptedPolicy, oracle
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer


@pytest.fixture
def logs(tiny_data: Path, renderer: Renderer, tmp_path: Path) -> list[Path]:
    policy = ScriptedPolicy(oracle(Dialect(), "No tool fits."), renderer)
    run_benchmarks(Asking(policy, renderer, Dialect()), [BFCL, QA], tiny_data, tmp_path, BenchmarkSetting(arm="oracle"))
    return write_inspect_logs(tmp_path)


def test_a_log_holds_every_attempt_with_its_score(logs: list[Path]) -> None:
    assert [path.name for path in logs] == ["bfcl.json", "qa.json"]
    log = json.loads(logs[0].read_text())
    assert (log["version"], log["status"], log["eval"]["task"], log["eval"]["model"]) == (
        2,
        "success",
        "bfcl",
        "oracle",
    )
    assert log["results"]["scores"][0]["metrics"]["live"]["value"] == 1.0
    assert len(log["samples"]) == log["results"]["total_samples"] == 9
    sample = next(sample for sample in log["samples"] if sample["id"] == "live_simple_0")
    assert sample["target"] == '{"name": "weather", "arguments": {"sea": "North Sea"}}'
    assert sample["messages"][:-1] == sample["input"]
    assert sample["messages"][-1]["content"] == f"<tool_call>\n{sample['target']}\n</tool_call>"
    assert sample["scores"]["tirkit"]["value"] == 1.0
    missed = next(sample for sample in log["samples"] if sample["id"] == "live_relevance_0")
    assert missed["scores"]["tirkit"] == {
        "value": 0.0,
        "answer": "No tool fits.",
        "explanation": "no call",
        "metadata": {},
    }


def test_inspect_reads_it(logs: list[Path]) -> None:
    inspect_ai = pytest.importorskip("inspect_ai.log", reason="inspect-ai is not installed: pip install inspect-ai")
    log = inspect_ai.read_eval_log(str(logs[1]))
    assert [sample.scores["tirkit"].value for sample in log.samples] == [1.0, 1.0, 1.0]
