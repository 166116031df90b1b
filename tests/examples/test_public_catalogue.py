"""The example that makes one catalogue of three sets: what it writes, what it leaves out, what its table says."""

import json
from pathlib import Path

import pytest

from examples import public_catalogue as example
from tirkit.embedded.model import build_tokenizer
from tirkit.evaluation.benchmarks.api_bank import API_BANK
from tirkit.evaluation.benchmarks.folder import BenchmarkSetting, Outcome
from tirkit.evaluation.benchmarks.registry import benchmark
from tirkit.evaluation.benchmarks.runner import Asking, run_benchmarks
from tirkit.evaluation.benchmarks.worlds import Pool
from tirkit.rollout.policy import ScriptedPolicy, oracle
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer
from tirkit.tools.catalogue import load_catalogue
from tirkit.tools.questions import load_tasks
from tirkit.types import ToolSchema

DATA = Path(__file__).parents[1] / "evaluation" / "benchmarks" / "data"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("public")
    more = [
        {"source": "bfcl", "name": "weather", "description": "Another tool of that name."},
        {"source": "bfcl_multi_turn:math_api", "name": "sum", "description": "Add."},
        {"source": "tau_bench:retail", "name": "refund", "description": "Of another set."},
    ]
    (folder / "more.jsonl").write_text("\n".join(map(json.dumps, more)))
    example.write_files(DATA, folder, folder / "more.jsonl", generated=20)
    return folder


def test_the_catalogue_has_what_the_three_sets_are_about(out: Path) -> None:
    catalogue = load_catalogue(out / "tools.jsonl")
    pool = Pool(catalogue.tools)
    for name in example.REMEMBERED:
        assert all(pool.has(case) and pool.knows(case.task) for case in benchmark(name).load(DATA).cases)
    # Both of BFCL's `weather`, not the third; one more of BFCL's, none of another set.
    assert [tool.name for tool in catalogue.tools if "weather" in tool.name] == ["weather", "weather_2"]
    assert {"sum", "refund"} & catalogue.by_name.keys() == {"sum"}
    files = json.loads((out / "files.json").read_text())
    assert sum(files["tools"].values()) == len(catalogue.tools)
    assert files["tools"]["seal-tools"] == 3
    assert files["renamed"] == 1


def test_no_question_that_is_trained_on_is_evaluated(out: Path) -> None:
    tasks = load_tasks(out / "questions.jsonl", load_catalogue(out / "tools.jsonl").by_name)
    assert not tasks.issues
    # One of the two of the dev part: 5 / 7 of 2 is 1.4.
    assert [task.id for task in tasks.tasks if "dev-" in task.id] == ["dev-difficult-1"]
    assert len(tasks.tasks) == 21
    copy = API_BANK.load(DATA).cases[0].task.model_copy(update={"id": "x"})
    kept, left_out = example.clean(DATA, (*tasks.tasks, copy))
    assert (kept, left_out) == (list(tasks.tasks), 1)


def test_the_training_part_is_taken_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "seal_tools").mkdir()
    (tmp_path / "seal_tools" / "train.jsonl").write_text(
        '{"id": "t", "query": "Tide?", "calling": [{"api": "getTide", "parameters": {}}]}\n'
    )
    part, tasks = example.seal_questions(tmp_path, ["getTide"])
    assert (part, [task.id for task in tasks]) == ("train.jsonl", ["t"])


def test_the_table_has_both_arms(tmp_path: Path) -> None:
    renderer = Renderer(build_tokenizer(["user assistant tool"], size=300))
    asking = Asking(ScriptedPolicy(oracle(Dialect(), "None."), renderer), renderer, Dialect())

    def outcomes(*names: str) -> list[Outcome]:
        setting = BenchmarkSetting(arm="oracle")
        return run_benchmarks(asking, map(benchmark, names), DATA, tmp_path / names[0], setting)

    first, second = outcomes("api-bank"), outcomes("api-bank", "nestful")
    lines = example.table({"a": first, "b": second}).splitlines()
    assert lines[0].startswith("| benchmark | n | a: right % |")
    assert lines[2].startswith("| api-bank | 2 / 2 | 100.0 ± 0.0 | 100.0 ± 0.0 | ")
    assert lines[3].startswith("| nestful | 1 | – | – | – | 100.0 |")
    numbers = example.row(first[0])
    assert numbers["n"] == 2
    assert numbers["success"] == {"mean": 1.0, "stderr": 0.0, "n": 2}
    assert numbers["wrong_since"] == {}
    assert "not checked" in str(numbers["contamination"])
    cases = API_BANK.load(DATA).cases
    tools = tuple(Pool.of(cases).tools.values())
    found = example.found_by_bm25(tools, first[0], cases)
    assert found is not None
    assert (found.mean, found.n) == (1, 2)  # five documents are shown, and there are no more
    asked = " ".join(case.task.query for case in cases)
    nearer = [ToolSchema(name=f"f{i}", description=asked) for i in range(5)]
    assert example.found_by_bm25([*tools, *nearer], first[0], cases).mean == 0  # type: ignore[union-attr]
