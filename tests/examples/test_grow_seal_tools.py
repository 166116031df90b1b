"""The example that adds tools five times: how tools and questions are divided, and the table, on the shipped sample."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from examples import grow_seal_tools as example

SAMPLE = Path(example.__file__).parents[1] / "src" / "tirkit" / "data" / "seal_tools_sample"
TINY = ["internalise.steps=2", "internalise.batch_size=4", "warmup.steps=1", "warmup.batch_size=2"]
FEW = ["tasks.num_train=20", "tasks.num_validation=2", "tasks.num_test=4", "tasks.min_seen_test=0"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(SAMPLE / "tools.jsonl", folder / "tool.jsonl")
    shutil.copy(SAMPLE / "questions.jsonl", folder / "dev.jsonl")
    return folder


def test_a_question_is_asked_when_all_of_its_tools_are_there(data: Path) -> None:
    groups, questions = example.divide(data, [150, 30, 20])
    names = [{tool.name for tool in group} for group in groups]
    assert [len(group) for group in names] == [150, 30, 20]
    assert not names[0] & names[1]
    assert questions[1]
    for i, asked in enumerate(questions):
        for task in asked:
            assert example.names(task) <= set().union(*names[: i + 1])
            assert example.names(task) & names[i]


def test_every_run_is_asked_about_the_same_tools(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["rollout.max_new_tokens=8", "evaluate.knowledge_items=1", "model.vocab_size=600"]
    command = ["x", str(data), "--out", str(tmp_path / "out"), "--sizes", "190", "4", "3"]
    command += ["--base", *TINY, *FEW, *settings, "--grow", "grow.steps=1", "evaluate.knowledge_items=1"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(example, "SAMPLE", 2)
    example.main()
    found = json.loads((tmp_path / "out" / "growth.json").read_text())
    assert list(found) == ["base", "all at once", "grown 1", "grown 2"]
    assert {found[run]["first"]["n"] for run in found} == {2}
    assert [found["grown 2"][part]["n"] for part in ("added 1", "added 2")] == [4, 3]
    assert found["base"]["first_minus_base"]["mean"] == 0.0
    assert "added 2" not in found["grown 1"]
    assert found["grown 2"]["success"]["n"] == found["all at once"]["success"]["n"] > 0
    assert "of all at once; first tools − base:" in capsys.readouterr().out
