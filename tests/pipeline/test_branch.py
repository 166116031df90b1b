"""Arms share the stages before their settings begin to differ."""

import hashlib
import json
from pathlib import Path

import pytest

from tirkit.config import RunConfig, parse_config
from tirkit.evaluation.run import EvaluationResult
from tirkit.pipeline.branch import FIRST_READER, branch, shared_stages
from tirkit.pipeline.compare import arm_sources, compare_arms
from tirkit.pipeline.context import STAGE_ORDER
from tirkit.pipeline.run import run_stages
from tirkit.store import RunFolder, StoreError

SMALL = {
    "catalogue": {"num_tools": 16},
    "tasks": {"num_train": 30, "num_rl": 10, "num_validation": 4, "num_test": 6},
    "internalise": {"steps": 3, "batch_size": 8},
    "warmup": {"steps": 2, "batch_size": 8},
    "candidates": {"enabled": True, "num_tasks": 10, "samples": 2},
    "repair": {"enabled": True},
    "pairs": {"enabled": True},
    "finetune": {"enabled": True, "steps": 2, "batch_size": 4},
    "rl": {"steps": 1, "batch_size": 2, "num_generations": 2, "min_success": 0},
    "rollout": {"max_new_tokens": 12},
    "evaluate": {"knowledge_items": 2, "general_items": 0},
}


def small(**changed: dict[str, object]) -> RunConfig:
    sections = {name: {**SMALL.get(name, {}), **changed.get(name, {})} for name in {*SMALL, *changed}}
    return parse_config(sections, "test")


def files(root: Path) -> dict[str, str]:
    """Models and records of a run that hold no times."""
    found = [p for p in root.rglob("*") if p.is_file() and p.parent.name != "stages" and "report" not in p.parts]
    timed = ("manifest.json", ".lock", "test_results.jsonl", "synthesis.jsonl", "synthesis_chunks.jsonl")
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in found
        if p.name not in timed and not p.name.startswith("validation_")
    }


def successes(root: Path) -> list[tuple[str, str, float | None]]:
    results = RunFolder.read(root).read_records("test_results", EvaluationResult)
    return [(result.stage, item.task_id, item.metrics["success"]) for result in results for item in result.items]


def test_stages_are_shared_up_to_the_first_that_reads_what_differs() -> None:
    assert shared_stages(small(), small()) == STAGE_ORDER[: STAGE_ORDER.index("evaluate")]
    for section, stage in (
        ("finetune", "finetune"),
        ("rl", "refine"),
        ("warmup", "warmup"),
        ("internalise", "prepare"),
    ):
        changed = small(**{section: {"steps": 9}})
        assert shared_stages(small(), changed) == STAGE_ORDER[: STAGE_ORDER.index(stage)]
    assert shared_stages(small(), small(pairs={"repairs": "none"}, rl={"steps": 2}))[-1] == "repair"
    assert shared_stages(small(), small(evaluate={"forced": False, "earlier": False}))[-1] == "grow"
    assert shared_stages(small(), small(evaluate={"general_items": 1})) == ()  # asked after every phase
    known = {name: set(section) for name, section in RunConfig().model_dump().items() if isinstance(section, dict)}
    for section, _, key in (name.partition(".") for name in FIRST_READER):
        assert key in {"", *known[section]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "run"
    run_stages(small(), root)
    return root


def test_a_branch_ends_as_if_it_had_run_alone(whole: Path, tmp_path: Path) -> None:
    other = small(pairs={"repairs": "none"})
    run_stages(other, tmp_path / "alone")
    taken = branch(whole, other, tmp_path / "branch")
    assert taken == ("prepare", "internalise", "synthesise", "warmup", "candidates", "repair")
    mark = RunFolder.read(tmp_path / "branch").mark("repair")
    assert mark is not None
    assert mark.facts["taken_from"] == str(whole)
    run_stages(other, tmp_path / "branch")
    assert files(tmp_path / "branch") == files(tmp_path / "alone")
    assert successes(tmp_path / "branch") == successes(tmp_path / "alone")


def test_a_branch_with_nothing_changed_takes_all_that_training_left(whole: Path, tmp_path: Path) -> None:
    branch(whole, small(), tmp_path / "same")
    theirs = {name: digest for name, digest in files(whole).items() if not name.startswith("records/test")}
    assert files(tmp_path / "same") == theirs  # a record file that no stage owns would be missing here


def test_a_run_that_is_there_is_left_alone_and_a_source_that_is_not_is_named(whole: Path, tmp_path: Path) -> None:
    RunFolder.open(tmp_path / "run", small()).close()
    assert branch(whole, small(), tmp_path / "run") == ()
    assert RunFolder.read(tmp_path / "run").mark("prepare") is None
    with pytest.raises(StoreError, match="nowhere is not a run folder"):
        branch(tmp_path / "nowhere", small(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="mine is not empty and not a run folder"):
        branch(whole, small(), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_arms_of_a_comparison_take_over_what_they_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "small.toml"
    config.write_text(
        'name = "method"\n'
        + "".join(
            f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in SMALL[section].items())
            for section in ("catalogue", "tasks", "internalise", "warmup", "rl", "rollout", "evaluate")
        )
        + '[arms.longer]\n"rl.steps" = 2\n'
    )
    compare_arms(config, [], ["method", "longer"], [0], tmp_path / "out", jobs=2)
    said = capsys.readouterr().out
    assert "longer-0 │ taken from" in said
    assert "\nmethod − longer: +0.0 points [0.0, 0.0]" in said  # nobody gets anything right
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["differences"]["longer"]["n"] == 6
    marks = {arm: RunFolder.read(tmp_path / "out" / f"{arm}-0").mark("warmup") for arm in ("method", "longer")}
    assert {arm: mark and "taken_from" in mark.facts for arm, mark in marks.items()} == {
        "method": False,
        "longer": True,
    }


def test_an_arm_begins_with_the_earlier_one_it_shares_most_with() -> None:
    arms = {
        "method": small(),
        "retrieve": small(catalogue={"indexing": "none"}),
        "kept": small(pairs={"repairs": "none"}),
        "kept_more": small(pairs={"repairs": "none"}, finetune={"steps": 3}),
    }
    assert arm_sources(arms) == {"method": "", "retrieve": "", "kept": "method", "kept_more": "kept"}
