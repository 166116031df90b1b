"""Where tools and questions come from: real tools, and training questions that resemble evaluation questions."""

import json
import shutil
from pathlib import Path

import pytest

from tirkit.config import ConfigError, RunConfig, parse_config
from tirkit.evaluation.terminal import Progress
from tirkit.pipeline.context import Context
from tirkit.pipeline.sources import Sources, load_sources, load_toolbox, load_tools
from tirkit.store import RunFolder
from tirkit.tools.catalogue import CatalogueError
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import ToolCall


def configured(tmp_path: Path, questions: list[str], **tasks: object) -> RunConfig:
    lines = [json.dumps({"question": question, "answer": f"so #### {i}"}) for i, question in enumerate(questions)]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"title": "Oslo", "text": "Oslo is the capital of Norway."}))
    sections = {
        "catalogue": {"path": "python_search", "corpus": str(tmp_path / "corpus.jsonl"), "indexing": "none"},
        "tasks": {"path": str(tmp_path / "questions.jsonl"), "num_validation": 1, "num_test": 1, **tasks},
        "internalise": {"enabled": False},
        "rollout": {"prompt": "documents", "max_result_chars": 60},
    }
    return parse_config(sections, "test")


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
def test_python_and_search_really_run(tmp_path: Path) -> None:
    config = configured(tmp_path, ["What is 1 + 1?", "What is 1 + 2?", "What is 1 + 3?", "What is 1 + 4?"])
    sources = load_sources(config)
    assert [tool.name for tool in sources.tools] == ["python", "search"]
    assert {task.comparison for task in sources.tasks["train"]} == {"maths"}
    ctx = Context(config, RunFolder.open(tmp_path / "run", config), Progress())
    assert ctx.toolbox is not None
    said = ctx.toolbox.run(ToolCall(name="python", arguments={"code": "print('x' * 50 + 'y' * 50)"})).content
    assert said == f"{'x' * 15} … [71 characters left out] … {'y' * 14}"  # 60 characters, what is said included
    assert "capital" in ctx.toolbox.run(ToolCall(name="search", arguments={"query": "capital of Norway"})).content
    assert ctx.rollout_settings.workers == 16


def test_the_config_says_whose_state_it_is(tmp_path: Path) -> None:
    origin = {"kind": "mcp", "server": "python notes.py", "tool": "note"}
    tool = {"name": "note", "description": "Notes.", "origin": origin}
    service = {
        "name": "post",
        "description": "Posts.",
        "origin": {"kind": "http", "method": "POST", "url": "http://x.y"},
    }
    (tmp_path / "tools.jsonl").write_text(f"{json.dumps(tool)}\n{json.dumps(service)}\n")

    def toolbox(allow: tuple[str, ...], **more: object) -> PythonToolbox:
        catalogue = {"path": str(tmp_path / "tools.jsonl"), "allow": allow, **more}
        config = parse_config({"catalogue": catalogue, "tasks": {"path": "questions.jsonl"}}, "test")
        made = load_toolbox(config, load_tools(config.catalogue)[0])
        assert made is not None
        return made

    assert toolbox(("*",)).stateful == set()
    assert toolbox(("note",), state="attempt").stateful == {"note"}
    with pytest.raises(CatalogueError, match="tool 'post' changes a service"):
        toolbox(("*",), state="attempt")
    with pytest.raises(ConfigError, match='state = "attempt" is for MCP servers of your own'):
        parse_config({"catalogue": {"state": "attempt"}}, "test")


def test_training_questions_that_resemble_evaluation_questions_are_left_out_and_said(tmp_path: Path) -> None:
    same = "How many apples does Ann have?"
    questions = [*(f"{same} {'?' * i}" for i in range(4)), "Something else entirely"]
    dirty = load_sources(configured(tmp_path, questions))
    assert len(dirty.tasks["train"]) == 3
    clean = load_sources(configured(tmp_path, questions, decontaminate=True))
    evaluated = [task.prompt[0].content for split in ("validation", "test") for task in clean.tasks[split]]
    assert any(same in text for text in evaluated)
    assert [task.prompt[0].content for task in clean.tasks["train"]] == [questions[-1]]
    assert "2 training questions are left out" in clean.issues[-1]
    with pytest.raises(ConfigError, match="decontaminate leaves no training question"):
        load_sources(configured(tmp_path, questions[:4], decontaminate=True))


@pytest.mark.parametrize("kinds", [(), ("single", "no_tool")])
def test_another_test_seed_draws_other_test_questions_and_nothing_else(kinds: tuple[str, ...]) -> None:
    def drawn(seed: int) -> Sources:
        tasks = {"num_train": 9, "num_validation": 6, "num_test": 30, "test_seed": seed, "kinds": kinds}
        return load_sources(parse_config({"catalogue": {"num_tools": 16}, "tasks": tasks}, "test"))

    one, other = drawn(0), drawn(1)
    assert one.tasks["train"] == other.tasks["train"]
    assert one.tasks["validation"] == other.tasks["validation"]
    questions = [{task.prompt[0].content for task in sources.tasks["test"]} for sources in (one, other)]
    assert len(questions[0] & questions[1]) < 3  # remarks are few
    assert {task.kind for task in one.tasks["test"]} == {task.kind for task in other.tasks["test"]}
