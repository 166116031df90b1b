import json
from pathlib import Path

import pytest

from examples import airline
from tirkit.evaluation.score_file import score_file


def line(task: int, trial: int, reward: float, words: str) -> str:
    call = {"id": "c", "type": "function", "function": {"name": "book", "arguments": "{}"}}
    said = [
        {"role": "user", "content": f"Task {task}."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "name": "book", "content": "Error: full" if trial == 1 else "booked"},
        {"role": "assistant", "content": words},
    ]
    return json.dumps({"task_id": task, "trial": trial, "reward": reward, "traj": said})


def test_a_log_becomes_pairs_and_relations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "one two three four five six seven eight"
    log = [line(0, 0, 1.0, "Done."), line(0, 1, 0.0, long), line(0, 2, 1.0, "Done, thanks."), line(1, 0, 0.0, "Sorry.")]
    path, out = tmp_path / "log.jsonl", tmp_path / "new" / "airline.json"
    path.write_text("\n".join(log) + "\n{oops\n")
    airline.main(path, out)
    report = airline.Report.model_validate_json(out.read_text())
    assert (report.attempts, report.tasks, report.successes, report.bad_lines) == (4, 2, 2, 1)
    assert (report.calls, report.tool_errors) == (4, 1)
    # Of task 0 both successes and the one failure; task 1 has no success. The failure is by far the longest.
    assert (report.pairs, report.tasks_with_pairs, report.higher_score) == (2, 1, 2)
    # The shortest right attempt is as long as L*, itself; measured against the others it is not.
    scored = score_file(path)
    assert scored.scores[0].quality.total == 1
    assert airline.make_report(scored)[1][0].chosen_score < 1
    words = next(relation for relation in report.relations if relation.dimension == "fewer words")
    assert words.within.mean == 1
    assert "2 pairs success ≻ failure of 1 tasks" in " ".join(capsys.readouterr().out.split())


def test_the_shared_log(shared_data: Path) -> None:
    report, pairs = airline.make_report(score_file(shared_data / "tau_bench" / "gpt4o_airline_trajectories.jsonl"))
    assert (report.attempts, report.tasks, report.successes, report.bad_lines) == (60, 15, 17, 0)
    assert (report.pairs, report.tasks_with_pairs) == (27, 8)
    rewards = {(p.chosen.task_id, p.chosen.copy_index) for p in pairs}
    assert not rewards & {(p.rejected.task_id, p.rejected.copy_index) for p in pairs}
