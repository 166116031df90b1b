"""`tirkit eval --benchmark` and `tirkit contaminate`, from the command line's function to the folder that is left."""

import inspect
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tirkit.cli import FOR_BENCHMARKS, FOR_ENDPOINTS, FOR_QUESTIONS, app, evaluate
from tirkit.config import parse_config
from tirkit.evaluation.benchmarks.base import BenchmarkError
from tirkit.evaluation.benchmarks.folder import BenchmarkSetting, read_results
from tirkit.evaluation.benchmarks.metatool import METATOOL
from tirkit.pipeline.context import Context, Loaded
from tirkit.pipeline.run import run_stages
from tirkit.rollout.policy import ScriptedPolicy, oracle
from tirkit.types import UserError

DATA = Path(__file__).parents[1] / "evaluation" / "benchmarks" / "data"
QUESTION = "What is the stock of ACME worth?"  # the fixture's first question of MetaTool


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is prepared: a random model that has MetaTool's three tools as tokens, and one of its questions."""
    folder = tmp_path_factory.mktemp("benchmarks")
    tools = METATOOL.load(DATA).tools
    (folder / "tools.jsonl").write_text("".join(f"{tool.model_dump_json()}\n" for tool in tools))
    texts = [QUESTION, "What else?", "And then?", "Is that all?", "Who said so?"]
    questions = [
        {"id": f"q{n}", "query": text, "calling": [{"api": "PoemTool", "parameters": {}}]}
        for n, text in enumerate(texts)
    ]
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(question) for question in questions))
    config = {
        "name": "small",
        "model": {"scratch": True, "vocab_size": 400},
        "catalogue": {"path": str(folder / "tools.jsonl")},
        "tasks": {"path": str(folder / "questions.jsonl"), "num_validation": 1, "num_test": 1},
        "internalise": {"enabled": False},
        "warmup": {"enabled": False},
        "rl": {"enabled": False},
    }
    run_stages(parse_config(config, "test"), folder / "run", ["prepare"])
    return folder / "run"


def tirkit(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def said(*arguments: str | Path) -> str:
    done = tirkit(*arguments)
    assert done.exit_code == 0, done.exception
    return done.stdout


def error(*arguments: str | Path) -> str:
    done = tirkit(*arguments)
    assert isinstance(done.exception, UserError), done.exception
    return str(done.exception)


def play(ctx: Context, loaded: Loaded, temperature: float) -> ScriptedPolicy:
    """Context.policy, with the gold instead of the model."""
    assert temperature == 0
    return ScriptedPolicy(oracle(ctx.dialect), loaded.renderer)


def test_a_run_that_remembers_the_tools_is_asked_in_its_own_way(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "policy", play)
    text = said("eval", run, "--benchmark", "metatool", "--data", DATA)
    assert "| metatool | 2 | 100.0 ± 0.0 |" in text
    assert "| multi | 1 | 100.0" in text
    assert "of 2 equal one" in text  # the contamination line
    out = run / "benchmarks" / "prepare-none"
    assert (out / "results.md").read_text() == text
    (single, multi) = read_results(out / "records" / "metatool.jsonl")
    assert single.trajectory.turns[0].text.startswith("<tool_token>\n<<FinanceTool>>")  # two steps, through the index
    assert multi.trajectory.calls[1].name == "NewsTool"

    def refuse(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(ScriptedPolicy, "write", refuse)
    assert said("eval", run, "--benchmark", "metatool", "--data", DATA) == text
    assert "No case is wrong." in (out / "report" / "index.html").read_text()
    assert said("report", out, out).replace("\n", "") == f"report: {out / 'report' / 'index.html'}"


def test_with_documents_the_model_itself_is_asked_by_plain_names(run: Path, tmp_path: Path) -> None:
    command = ("eval", run, "--benchmark", "metatool,bfcl", "--data", DATA, "--limit", "1", "--max-new-tokens", "4")
    text = said(*command, "--documents", "retrieve", "--out", tmp_path, "--categories", "single,simple_python")
    assert "| metatool | 1 |" in text
    assert "| bfcl | 1 |" in text
    setting = BenchmarkSetting.model_validate_json((tmp_path / "setting.json").read_text())
    assert (setting.documents, setting.limit, setting.max_tokens) == ("retrieve", 1, 32)
    assert setting.arm.startswith("small (prepare, ")
    (result,) = read_results(tmp_path / "records" / "metatool.jsonl")
    prompt_tokens = result.item.metrics["prompt_tokens"]
    assert prompt_tokens is not None
    assert prompt_tokens > 60  # the documents' own: the question takes under 30
    assert "documents was 'retrieve', is 'all'" in error(*command, "--documents", "all", "--out", tmp_path)


def test_with_documents_calls_name_the_benchmarks_tools(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "policy", play)
    command = ("eval", run, "--benchmark", "bfcl", "--data", DATA, "--categories", "simple_python")
    assert "| simple_python | 2 | 100.0" in said(*command, "--documents", "all", "--out", tmp_path)
    result = next(read_results(tmp_path / "records" / "bfcl.jsonl"))  # its tool is none of the run's three
    assert result.trajectory.turns[0].text.startswith('<tool_call>\n{"name": "')


def test_mistakes_are_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no benchmark 'nope'; there are bfcl, " in error("eval", run, "--benchmark", "nope", "--data", DATA)
    known = ("eval", run, "--benchmark", "metatool", "--data", DATA)
    assert "no category 'x' in metatool; there are single, multi" in error(*known, "--categories", "x")
    assert "--documents 'some': give all, pool, retrieve, none" in error(*known, "--documents", "some")
    assert "has no model of stage 'rl'; it has: prepare" in error(*known, "--stage", "rl")
    assert "remembers no tool that bfcl is about: give" in error("eval", run, "--benchmark", "bfcl", "--data", DATA)
    assert "give either a run folder, or --model" in error("eval", "--model", "gpt")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    asked = ("eval", "--model", "gpt", "--benchmark", "metatool", "--data", DATA)
    assert "--model gpt: an endpoint needs its key" in error(*asked)
    assert "knows no tool but those it is shown" in error(*asked, "--documents", "none")


def test_options_that_would_change_nothing_are_refused(run: Path) -> None:
    options = inspect.signature(evaluate).parameters
    assert options.keys() >= FOR_QUESTIONS | FOR_BENCHMARKS | FOR_ENDPOINTS
    benchmark = ("--benchmark", "metatool", "--data", DATA)
    assert "--documents is for benchmarks" in error("eval", run, "--documents", "retrieve")
    assert "--out is for benchmarks" in error("eval", run, "--out", "x")
    assert "--held-out is for benchmarks" in error("eval", run, "--held-out")
    assert "--prompt is for a run's questions" in error("eval", run, "--prompt", "none", *benchmark)
    assert "--base-url is for an endpoint" in error("eval", run, "--base-url", "http://x", *benchmark)
    assert "--stage is for a run's questions" in error("eval", "--model", "gpt", "--stage", "rl", *benchmark)


def test_what_is_shared_with_training_is_said(run: Path, tmp_path: Path) -> None:
    done = tirkit("contaminate", run.parent / "questions.jsonl", "metatool", "--data", DATA)
    assert done.exit_code == 1
    # Five training questions, one of them MetaTool's; its gold tools are Finance and News, and PoemTool is called.
    assert done.stdout.splitlines() == [
        "single-0: equals training question q0",
        "checked against 5 training questions: 1 of 2 equal one, 0 more share 13 words in a row with one; "
        "0 of 2 tool names occur in training",
    ]
    words = " ".join(f"w{n}" for n in range(13))
    rows = [json.dumps({"id": n, "question": f"{n} {words}", "answer": "1"}) for n in ("a", "b")]
    for name, row in zip("ab", rows, strict=True):
        (tmp_path / name).write_text(row)
    done = tirkit("contaminate", tmp_path / "a", tmp_path / "b")
    assert (done.exit_code, done.stdout.splitlines()[0]) == (1, "b: shares 13 words with training question a")
    # A run: its three training questions, and its catalogue as what it was trained on.
    assert "checked against 3 training questions" in tirkit("contaminate", run, "metatool", "--data", DATA).output
    assert "2 of 2 tool names" in tirkit("contaminate", run, "metatool", "--data", DATA).output
    assert tirkit("contaminate", tmp_path / "b", "metatool", "--data", DATA).exit_code == 0
    assert "give the folder of its data" in error("contaminate", tmp_path / "a", "metatool")
    assert "neither a file of questions nor a benchmark" in error("contaminate", "nope", "metatool", "--data", DATA)


def test_cases_that_a_run_was_trained_on_can_be_left_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "policy", play)
    command = ("eval", run, "--benchmark", "metatool", "--data", DATA)
    assert "| metatool | 2 |" in said(*command, "--out", tmp_path / "all")
    held_out = said(*command, "--held-out", "--out", tmp_path / "held_out")
    assert "| metatool | 1 |" in held_out
    assert "1 cases left out: training questions equal or resemble them" in held_out


def test_data_that_is_not_there_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"no data of metatool at .*; get https://"):
        raise tirkit("eval", run, "--benchmark", "metatool", "--data", tmp_path).exception or AssertionError


def test_changes_are_run_besides_and_told_as_deltas(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "policy", play)
    command = ("eval", run, "--benchmark", "metatool", "--data", DATA, "--documents", "all", "--out", tmp_path)
    text = said(*command, "--robustness", "every")
    # Nothing is executed, and the pool is whole: neither poison nor distractors apply.
    rows = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| metatool |")]
    assert rows == ["2", "masked", "renamed", "paraphrased"]
    assert text.count("| +0.0 | +0.0 … +0.0 | 0 / 0 | 1 | – |") == 3
    assert (tmp_path / "masked" / "records" / "metatool.jsonl").exists()
    assert said("report", tmp_path, tmp_path / "masked").startswith("report: ")
    assert "documents: all, masked" in (tmp_path / "report" / "index.html").read_text()
    assert "--robustness 'nope': give some of masked, " in error(*command, "--robustness", "nope")
