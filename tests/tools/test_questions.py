import json
from pathlib import Path

import pytest

from tirkit.tools.questions import QuestionError, load_tasks
from tirkit.types import Message, Task, ToolCall

SEAL = {
    "id": "s1",
    "query": "How warm is it in Oslo, in Fahrenheit?",
    "calling": [
        {"api": "weather", "parameters": {"city": "Oslo"}, "responses": ["API_call_0"]},
        {"api": "convert", "parameters": {"value": "API_call_0"}, "responses": ["API_call_1"]},
    ],
}
OURS = Task(id="o1", prompt=(Message(role="user", content="2 + 3?"),), tools=("add",), answer="5")


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_both_forms_in_one_file(tmp_path: Path) -> None:
    file = load_tasks(write(tmp_path / "q.jsonl", SEAL, OURS.model_dump_json()))
    seal, ours = file.tasks
    assert ours == OURS
    assert seal == Task(
        id="s1",
        prompt=(Message(role="user", content="How warm is it in Oslo, in Fahrenheit?"),),
        gold_rounds=(
            (
                ToolCall(name="weather", arguments={"city": "Oslo"}),
                ToolCall(name="convert", arguments={"value": "API_call_0"}),
            ),
        ),
        calls_only=True,
        kind="nested",
    )
    assert file.issues == ()
    (tmp_path / "q.json").write_text(json.dumps([SEAL, json.loads(OURS.model_dump_json())], indent=1))
    assert load_tasks(tmp_path / "q.json") == file


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        (SEAL | {"id": 3}, "id: Input should be a valid string"),
        (SEAL | {"query": " "}, "the question is empty"),
        (SEAL | {"query": 5}, "content: Input should be a valid string"),
        (SEAL | {"calling": []}, '"calling" must be a list of calls'),
        (SEAL | {"calling": [{"parameters": {}}]}, 'needs "api"'),
        (SEAL | {"calling": [{"api": "weather", "parameters": [1]}]}, "arguments"),
        (SEAL | {"id": "s2", "calling": [{"api": "fly"}]}, "names the tool 'fly', which the catalogue lacks"),
        (SEAL, "the id 's1' was used before"),
        ({"id": "x"}, "prompt: Field required"),
        ({"id": "x", "prompt": [], "colour": 1}, "colour: Extra inputs are not permitted"),
        ({"id": "x", "prompt": []}, "the question is empty"),
    ],
)
def test_a_broken_line_is_named_and_the_rest_is_kept(tmp_path: Path, line: object, reason: str) -> None:
    path = write(tmp_path / "q.jsonl", SEAL, line, OURS.model_dump_json())
    file = load_tasks(path, known={"weather", "convert", "add"})
    assert [task.id for task in file.tasks] == ["s1", "o1"]
    (issue,) = file.issues
    assert (issue.file, issue.line) == (str(path), 2)
    assert reason in issue.reason


def test_a_file_without_questions_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match="cannot be read"):
        load_tasks(tmp_path / "missing.jsonl")
    with pytest.raises(QuestionError, match="nothing in it"):
        load_tasks(write(tmp_path / "empty.jsonl"))
    with pytest.raises(QuestionError, match=r"first reason: .*bad\.jsonl:1: not JSON"):
        load_tasks(write(tmp_path / "bad.jsonl", "what?"))


def test_questions_with_answers(tmp_path: Path) -> None:
    gsm8k = {"question": "2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}
    maths = {"problem": "Half?", "solution": "So $\\boxed{\\frac12}$", "answer": "\\frac12", "unique_id": "m/1"}
    qa = {"question": "Who?", "answer": ["Ada", "Ada Lovelace", "Ada"]}
    bad = [{"question": "Who?", "answer": []}, {"question": "Who?", "answer": [1]}, {"problem": 5, "answer": "x"}]
    file = load_tasks(write(tmp_path / "q.jsonl", gsm8k, maths, qa, *bad))
    assert [(t.answer, t.other_answers, t.comparison) for t in file.tasks] == [
        ("5", (), "maths"),
        ("\\frac12", (), "maths"),
        ("Ada", ("Ada Lovelace",), "qa"),
    ]
    assert [task.id for task in file.tasks][1:2] == ["m/1"]
    assert len({task.id for task in file.tasks}) == 3
    assert [issue.line for issue in file.issues] == [4, 5, 6]
    assert file.tasks[0].gold_calls is None


@pytest.mark.parametrize(
    ("name", "number"), [("math/gsm8k_test", 150), ("math/math500", 141), ("qa/2wiki", 73), ("qa/hotpotqa", 70)]
)
def test_real_questions_with_answers(shared_data: Path, name: str, number: int) -> None:
    file = load_tasks(shared_data / f"{name}.jsonl")
    assert (len(file.tasks), file.issues) == (number, ())
    assert {task.comparison for task in file.tasks} == {"maths" if name.startswith("math") else "qa"}
