"""Tools added to a finished run: what is learned, what stays bit for bit, what other commands make of it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import tirkit.pipeline.train
from tirkit.config import ConfigError, parse_config
from tirkit.embedded.world import World
from tirkit.evaluation.run import EvaluationResult
from tirkit.methods.tinr.grow import Grown
from tirkit.pipeline.export import export_run
from tirkit.pipeline.grow import grown_config, growth_table
from tirkit.pipeline.inspect import inspect_run
from tirkit.pipeline.run import evaluate_run, open_run, run_stages
from tirkit.pipeline.serve import load_served
from tirkit.store import RunFolder
from tirkit.training.callbacks import ProgressCallback
from tirkit.types import Message, Record, Task, ToolCall, ToolSchema, Trajectory

OLD, OTHERS = World(8), World(16, seed=1)
NEW = [tool for tool in OTHERS.catalogue if tool.name not in OLD.tools][:3]
SETTINGS: dict[str, Any] = {
    "name": "small",
    "tasks": {"num_validation": 4, "num_test": 8},
    "internalise": {
        "steps": 20,
        "batch_size": 8,
        "corpus": {"memorise": 4, "recall": 0, "views": 1, "pseudo_calls": 1, "questions": 20},
    },
    "warmup": {"steps": 4, "batch_size": 8},
    "rl": {"enabled": False},
    "rollout": {"max_new_tokens": 12},
    "evaluate": {"knowledge_items": 4, "general_items": 0},
}
SMALL = ["grow.steps=40", "grow.batch_size=8", "grow.save_every=5", "grow.replay=0.3", "grow.lr=0.01"]


@dataclass(frozen=True)
class Small:
    """A finished run, and the catalogue with three new tools, one changed and one removed."""

    folder: Path
    run: Path
    catalogue: str
    questions: str
    changed: str
    removed: str


def dump(path: Path, records: Any) -> str:
    path.write_text("".join(record.model_dump_json(exclude_defaults=True) + "\n" for record in records))
    return str(path)


def asked(world: World, split: str, n: int, tools: str) -> list[Task]:
    tasks = world.tasks(split, n, kinds=("single",), tools=tools)  # type: ignore[arg-type]
    return [task.model_copy(update={"calls_only": True, "answer": None}) for task in tasks]


@pytest.fixture(scope="module", autouse=True)
def short_documents() -> Iterator[None]:
    """None of these models recalls a document: let them not write on for long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tirkit.pipeline.train, "PROBE_TOKENS", 8)
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("grow")
    first, second, *rest = sorted(OLD.catalogue, key=lambda tool: tool.name in OLD.held_out)
    # A question whose gold never fitted its tool (real data has such) is none that the change makes wrong.
    odd = Task(
        id="odd",
        prompt=(Message(role="user", content="?"),),
        gold_rounds=((ToolCall(name=rest[0].name, arguments={"odd": 1}),),),
        calls_only=True,
    )
    old = [*asked(OLD, "train", 40, "seen"), odd]
    sources = {
        "catalogue": {"path": dump(folder / "old.jsonl", OLD.catalogue)},
        "tasks": SETTINGS["tasks"] | {"path": dump(folder / "tasks.jsonl", old)},
    }
    run_stages(parse_config(SETTINGS | sources, "test"), folder / "run")
    now = [first.model_copy(update={"description": "Gives something else altogether."}), *rest, *NEW]
    new = {tool.name for tool in NEW}
    about = [t for t in asked(OTHERS, "test", 64, "all") if {call.name for call in t.gold_calls or ()} <= new]
    return Small(
        folder,
        folder / "run",
        dump(folder / "now.jsonl", now),
        dump(folder / "new_questions.jsonl", about[:4]),
        first.name,
        second.name,
    )


@pytest.fixture(scope="module")
def grown(small: Small) -> Path:
    root = small.folder / "grown"
    run_stages(grown_config(small.run, small.catalogue, SMALL, remove=True, questions=small.questions), root)
    return root


def weights(root: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(RunFolder.read(root).model(stage) / "model.safetensors")


def facts(root: Path, stage: str) -> dict[str, Any]:
    mark = RunFolder.read(root).mark(stage)
    assert mark is not None
    return mark.facts


def records(root: Path, name: str, kind: type[Record]) -> list[Any]:
    return list(RunFolder.read(root).read_records(name, kind))


def test_new_tools_are_remembered_better_than_before_and_the_table_says_so(grown: Path) -> None:
    prepared, learned, tested = (facts(grown, stage) for stage in ("prepare", "grow", "evaluate"))
    counts = [prepared[name] for name in ("added", "changed", "removed", "kept", "retired")]
    assert counts == [3, 1, 1, 6, 1]
    assert learned["new_before_memorise"] <= 0.25
    assert learned["new_after_memorise"] >= 0.75
    assert learned["rows"] == 40 * 8
    assert {f"{stage}_success_{group}" for stage in ("prepare", "grow") for group in ("old", "new")} <= tested.keys()
    results: list[EvaluationResult] = records(grown, "test_results", EvaluationResult)
    assert [result.stage for result in results] == ["prepare", "grow"]
    tasks: list[Task] = records(grown, "tasks_test", Task)
    assert [item.task_id for item in results[1].items] == [task.id for task in tasks]
    assert sum(bool({c.name for c in t.gold_calls or ()} & {tool.name for tool in NEW}) for t in tasks) == 4
    console = Console(width=100, record=True)
    console.print(growth_table(grown))
    assert f"{100 * learned['new_after_memorise']:.1f}" in console.export_text()


def test_rows_that_are_not_learned_stay_bit_for_bit(small: Small, grown: Path) -> None:
    old, before, after = weights(small.run, "warmup"), weights(grown, "prepare"), weights(grown, "grow")
    (table,) = [name for name in old if "embed_tokens" in name]
    assert old.keys() == before.keys() == after.keys()
    assert all(torch.equal(old[name], before[name]) for name in old if name != table)
    learned = set(facts(grown, "prepare")["new_token_ids"])
    vocabulary = open_run(grown).load("grow").tokenizer.get_vocab()
    assert learned == {vocabulary[f"<<{name}>>"] for name in (*(tool.name for tool in NEW), small.changed)}
    known = open_run(small.run).load("warmup").tokenizer.get_vocab()
    added = {vocabulary[f"<<{tool.name}>>"] for tool in NEW}
    for row in known.values():
        assert row not in added
        assert torch.equal(old[table][row], before[table][row])
    for row in range(len(after[table])):
        assert torch.equal(before[table][row], after[table][row]) == (row not in learned)
    assert any(not torch.equal(before[name], after[name]) for name in before if name != table)  # LoRA, merged
    assert not [name for name in after if "lora" in name]


def test_questions_and_attempts_that_no_longer_hold_are_left_out(small: Small, grown: Path) -> None:
    splits = [f"tasks_{split}" for split in ("train", "validation", "test")]
    held: list[Task] = [task for split in splits for task in records(grown, split, Task)]
    before: list[Task] = [task for split in splits for task in records(small.run, split, Task)]
    gone = [task for task in before if small.removed in {call.name for call in task.gold_calls or ()}]
    assert facts(grown, "prepare")["dropped_questions"] == len(gone) > 0
    assert len(held) == len(before) - len(gone) + 4
    assert "odd" in {task.id for task in held}
    assert not {task.id for task in held} & {task.id for task in gone}
    attempts: list[Trajectory] = records(grown, "attempts", Trajectory)
    named = {call.name for attempt in attempts for call in attempt.calls}
    assert named
    assert named.isdisjoint((small.changed, small.removed))


def test_every_other_command_takes_the_grown_run(small: Small, grown: Path, tmp_path: Path) -> None:
    console = Console(width=200, record=True)
    console.print(evaluate_run(grown, Path(small.questions), "", "", 2))
    assert "small (grow)" in console.export_text()
    assert len(inspect_run(grown, "test", 2, "")) == 2
    assert "grow" in (grown / "report" / "index.html").read_text()
    export_run(grown, tmp_path / "export")
    file = json.loads((tmp_path / "export" / "tools.json").read_text())
    assert {tool["name"] for tool in file["tools"]} == {t.name for t in (*OLD.catalogue, *NEW)} - {small.removed}
    assert file["retired"] == [f"<<{small.removed}>>"]
    for source in (grown, tmp_path / "export"):
        assert {tool.name for tool in NEW} <= load_served(str(source)).tools.keys()


class KilledError(Exception):
    pass


def test_what_was_killed_ends_with_the_same_weights(small: Small, grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deadly(ProgressCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 13:
                raise KilledError

    config = grown_config(small.run, small.catalogue, SMALL, remove=True, questions=small.questions)
    root = small.folder / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(tirkit.pipeline.train, "ProgressCallback", Deadly)
        with pytest.raises(KilledError):
            run_stages(config, root, ["prepare", "grow"])
    assert (root / "work" / "grow" / "checkpoint-10").exists()
    run_stages(config, root, ["prepare", "grow"])
    expected, found = weights(grown, "grow"), weights(root, "grow")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_it_can_grow_again_and_a_retired_token_stays_retired(small: Small, grown: Path) -> None:
    back = dump(small.folder / "back.jsonl", [tool for tool in OLD.catalogue if tool.name == small.removed])
    root = small.folder / "again"
    run_stages(grown_config(grown, back, SMALL), root, ["prepare"])
    (record,) = records(root, "growth", Grown)
    assert (record.added, record.changed, record.removed) == ((small.removed,), (), ())  # nothing else was taken away
    assert dict(record.surfaces)[small.removed] == f"<<{small.removed}_2>>"
    assert record.retired == (f"<<{small.removed}>>",)
    assert len(records(root, "catalogue", ToolSchema)) == 8 - 1 + 3 + 1
    assert open_run(root).load("prepare").renderer  # every token of the index is in the vocabulary


def test_removal_alone_trains_nothing(small: Small) -> None:
    fewer = dump(small.folder / "fewer.jsonl", [tool for tool in OLD.catalogue if tool.name != small.removed])
    root = small.folder / "fewer"
    run_stages(grown_config(small.run, fewer, remove=True), root, ["prepare", "grow"])
    assert facts(root, "grow").keys() == {
        f"old_{w}_{m}" for m in ("memorise", "recall", "recall_f1") for w in ("before", "after")
    }
    old, now = weights(small.run, "warmup"), weights(root, "grow")
    assert all(torch.equal(old[name], now[name]) for name in old)


def test_what_cannot_grow_says_why(small: Small, tmp_path: Path) -> None:
    def prepare(change: Callable[[dict[str, Any]], Any] = lambda _: None, catalogue: str = small.catalogue) -> None:
        data = grown_config(small.run, catalogue).model_dump(mode="json")
        change(data)
        run_stages(parse_config(data, "test"), tmp_path / f"run{len(list(tmp_path.iterdir()))}", ["prepare"])

    with pytest.raises(ConfigError, match=r"has no tool that .* does not know"):
        prepare(catalogue=str(small.folder / "old.jsonl"))
    with pytest.raises(ConfigError, match="their sum must be below 1"):
        prepare(lambda data: data["grow"].update(replay=0.7, attempts=0.3))
    with pytest.raises(ConfigError, match="disable internalise, synthesise"):
        prepare(lambda data: data["warmup"].update(enabled=True))
    unfinished = tmp_path / "unfinished"
    config = RunFolder.read(small.run).manifest.config
    RunFolder.open(unfinished, config).close()
    with pytest.raises(ConfigError, match=r"unfinished is not finished \(stage warmup\)"):
        prepare(lambda data: data["grow"].update(run=str(unfinished)))
    embedded = tmp_path / "embedded"
    RunFolder.open(embedded, parse_config({}, "test")).close()
    with pytest.raises(ConfigError, match=r"built-in tools \(catalogue.path = 'embedded'\), which can't grow"):
        grown_config(embedded, small.catalogue)
