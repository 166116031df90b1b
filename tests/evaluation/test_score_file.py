import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tirkit.evaluation.score_file import ScoreError, print_scores, score_file
from tirkit.scoring.match import Verdict
from tirkit.types import Message, StopReason, Task, ToolCall, Trajectory, Turn

PROMPT = (Message(role="user", content="1 + 2?"),)
ADD = ToolCall(name="add", arguments={"a": 1, "b": 2})
TASKS = [
    Task(id="sum", prompt=PROMPT, gold_rounds=((ADD,),), answer="3"),
    Task(id="open", prompt=PROMPT),
]
RIGHT = (Turn(text="", selected=("add",)), Turn(text="", calls=(ADD,)), Turn(text="", answer="3"))


def attempt(task_id: str, *turns: Turn) -> str:
    return Trajectory(task_id=task_id, prompt=PROMPT, turns=turns, stop=StopReason.ANSWERED).model_dump_json()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    lines = [
        attempt("sum", *RIGHT),
        "{not json",
        attempt("sum", *RIGHT[1:]),  # documents in the prompt: no selection
        "",
        '{"task_id": "sum"}',
        attempt("open", Turn(text="", answer="hm")),
        attempt("lost", *RIGHT),
        attempt("sum", Turn(text="", answer="3")),
    ]
    trajectories, tasks = tmp_path / "trajectories.jsonl", tmp_path / "tasks.jsonl"
    trajectories.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    tasks.write_text("".join(task.model_dump_json() + "\n" for task in TASKS) + '{"id": "bad"}\n')
    return trajectories, tasks


def test_good_lines_are_scored_and_bad_ones_named(files: tuple[Path, Path]) -> None:
    scored = score_file(*files)
    found = [(s.line, str(s.verdict), s.reward and s.reward.total) for s in scored.scores]
    # the last: right answer without the call: format 0 (calls are required), calls 0
    assert found == [(1, "right", 3), (3, "right", 3), (6, "unscored", None), (8, "wrong", 0)]
    issues = [(Path(issue.file).name, issue.line) for issue in scored.issues]
    where = [(files[0].name, n) for n in (2, 5, 7, 9)]
    assert issues == [*where, (files[1].name, 3)]
    assert "no task 'lost'" in scored.issues[2].reason


def test_without_tasks_nothing_is_judged(files: tuple[Path, Path]) -> None:
    scored = score_file(files[0])
    assert {score.verdict for score in scored.scores} == {Verdict.UNSCORED}
    assert len(scored.scores) == 5


def test_what_is_printed(files: tuple[Path, Path]) -> None:
    out = Console(width=60, file=io.StringIO())
    assert print_scores(*files, out) == 1
    text = out.file.getvalue()  # type: ignore[attr-defined]
    quality = "S 1.000 (hesitation 1, length 1.00, repetition 1.00)"  # no words at all
    assert f"1: 'sum' right, {quality}, keep, reward 3 (format 1, calls 2), answered\n" in text
    assert f"{files[0]}:2: not JSON" in text
    means = "mean S 1.000, mean reward 2.000, 2 to keep, 1 to repair, 1 to leave"
    assert f"4 trajectories, 2 of 3 judged ones right, {means}, 5 bad lines" in " ".join(text.split())


def chat(reply: str, **fields: object) -> dict[str, object]:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    messages = [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "3"},
        {"role": "assistant", "content": reply},
    ]
    return {"messages": messages, **fields}


def test_other_forms_with_and_without_tasks(tmp_path: Path) -> None:
    sharegpt = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "maybe hello"}]}
    lines = [chat("3", task_id="sum", reward=0.0), sharegpt, {"messages": []}, chat("4 or so", task_id="sum", reward=1)]
    path, tasks = tmp_path / "log.jsonl", tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    scored = score_file(path)
    # the log's word; the ShareGPT line says nothing
    assert [str(s.verdict) for s in scored.scores] == ["wrong", "unscored", "right"]
    assert [str(issue) for issue in scored.issues] == [f"{path}:3: no message of the assistant"]
    assert scored.scores[0].quality.reference_words == scored.scores[2].quality.words
    assert scored.scores[0].blind.reference_words == scored.scores[2].quality.words
    assert scored.scores[2].blind.reference_words is None  # the other attempt is wrong
    tasks.write_text(TASKS[0].model_dump_json() + "\n")
    judged = score_file(path, tasks)  # the task's word counts more
    assert [(s.line, str(s.verdict), s.reward and s.reward.total) for s in judged.scores] == [
        (1, "right", 3),
        (4, "wrong", 3),  # the calls are right, and calls are what this reward is about
    ]
    out = Console(width=120, file=io.StringIO())
    assert print_scores(path, None, out) == 1
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "how the scores go with success" in text
    assert "within tasks" in text


def test_a_good_file_exits_with_zero(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(attempt("sum", *RIGHT) + "\n")
    (tmp_path / "q.jsonl").write_text(TASKS[0].model_dump_json() + "\n")
    assert print_scores(tmp_path / "t.jsonl", tmp_path / "q.jsonl", Console(file=io.StringIO())) == 0


def test_no_file_stops_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match="give a file of trajectories"):
        score_file(tmp_path / "none.jsonl")
