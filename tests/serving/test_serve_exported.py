"""`tirkit serve EXPORTED` speaks as the run it was exported from does."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tirkit.config import ConfigError, parse_config
from tirkit.pipeline.export import export_run
from tirkit.pipeline.run import run_stages
from tirkit.pipeline.serve import load_served
from tirkit.rollout.policy import GenerateRequest
from tirkit.serving.chat import Chat
from tirkit.serving.export import ExportError
from tirkit.serving.server import chat_app
from tirkit.text.control import CALL_OPEN, SELECT_OPEN
from tirkit.types import Message, Task

SMALL = {"catalogue": {"num_tools": 16}, "tasks": {"num_train": 6, "num_validation": 3, "num_test": 6}}


@pytest.fixture(scope="module", params=["atomic", "hierarchical", "none"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is prepared (`run`) and of its export (`out`), for each kind of index."""
    folder, kind = tmp_path_factory.mktemp("exported"), request.param
    rollout = {"constrain": "both", "modes": True, "max_new_tokens": 20, "prompt": "documents"}
    if kind != "none":
        rollout |= {"prompt": "none"}
    catalogue = {"num_tools": 16, "indexing": kind}
    config = SMALL | {"name": "small", "catalogue": catalogue, "rollout": rollout, "internalise": {"enabled": False}}
    run_stages(parse_config(config, "test"), folder / "run", ["prepare"])
    export_run(folder / "run", folder / "out", "prepare")
    return folder


def test_an_export_is_served_as_its_run_is(run: Path) -> None:
    ours, theirs = load_served(str(run / "run"), "prepare"), load_served(str(run / "out"))
    assert (theirs.name, theirs.max_tokens) == ("small", 20)
    assert theirs.dialect.modes
    assert theirs.dialect.selects == ours.dialect.selects
    if ours.dialect.index and theirs.dialect.index:
        assert theirs.dialect.index.surfaces == ours.dialect.index.surfaces
        assert set(theirs.dialect.index.tokens) == set(ours.dialect.index.tokens)
    assert theirs.tools.keys() == ours.tools.keys()
    prompt = (Message(role="user", content="How tall is <<it>>?"),)
    ids = ours.renderer.prompt_ids(prompt)
    assert theirs.renderer.prompt_ids(prompt) == ids
    # Within a block both are held to the tools, however little the model would say of its own accord.
    begin = tuple(ours.renderer.completion_ids(SELECT_OPEN if ours.dialect.selects else CALL_OPEN)[:-1])
    asked = GenerateRequest(Task(id="q", prompt=prompt), (), prompt, tuple(ids), 0, 20, begin=begin, temperature=5.0)
    (one,), (other,) = (served.policy.generate([asked]) for served in (ours, theirs))
    assert one.ids == other.ids


def test_the_models_tools_are_known_over_http(run: Path, serve: Callable[[Any], AbstractContextManager[str]]) -> None:
    chat = Chat(load_served(str(run / "out"), scripted=run / "run" / "records" / "tasks_test.jsonl"))
    lines = (run / "run" / "records" / "tasks_test.jsonl").read_text().splitlines()
    task = next(task for task in map(Task.model_validate_json, lines) if task.gold_calls)
    with serve(chat_app(chat)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        completion = client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": task.prompt[-1].content}]
        )
    chat.close()
    (call,) = completion.choices[0].message.tool_calls or []
    assert call.function.name == task.gold_calls[0].name  # type: ignore[union-attr, index]
    assert json.loads(call.function.arguments) == task.gold_calls[0].arguments  # type: ignore[union-attr, index]


def test_what_is_no_whole_export_is_said(run: Path, tmp_path: Path) -> None:
    config = parse_config(SMALL | {"model": {"path": str(run / "out")}}, "test")
    with pytest.raises(ConfigError, match="is an exported model, whose vocabulary"):
        run_stages(config, tmp_path / "again", ["prepare"])
    (tmp_path / "tools.json").write_text((run / "out" / "tools.json").read_text())
    with pytest.raises(ConfigError, match=r"run\.json, the settings an exported model was trained with, is missing"):
        load_served(str(tmp_path))
    (tmp_path / "tools.json").write_text('{"tools": [{}]}')
    with pytest.raises(ExportError, match=r"tools\.json is not what an export leaves \(KeyError"):
        load_served(str(tmp_path))
