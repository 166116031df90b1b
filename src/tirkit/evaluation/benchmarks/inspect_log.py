"""Evaluations as logs of inspect-ai (JSON, version 2), for its viewer and data frames.

https://inspect.aisi.org.uk/eval-logs.html; the package itself is not needed. Turns stand in a sample's messages as they
were written, calls as text: what they were read as is in the sample's metadata.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tirkit.evaluation.benchmarks.base import CaseAttempt
from tirkit.evaluation.benchmarks.folder import (
    SETTING,
    AskedCase,
    Outcome,
    read_asked,
    read_outcomes,
    read_results,
    records_path,
)
from tirkit.store import write_atomic
from tirkit.text.dialects import print_json
from tirkit.types import Message, StopReason

STOPS = {StopReason.MAX_TOKENS: "max_tokens", StopReason.MAX_CALLS: "unknown", StopReason.MAX_TURNS: "unknown"}


def write_inspect_logs(folder: Path) -> list[Path]:
    """Write a log a benchmark into FOLDER/inspect; their paths. BenchmarkError where the folder is no evaluation."""
    paths: list[Path] = []
    for outcome in read_outcomes(folder):
        path = folder / "inspect" / f"{outcome.benchmark.name}.json"
        write_atomic(path, json.dumps(inspect_log(folder, outcome), ensure_ascii=False))
        paths.append(path)
    return paths


def inspect_log(folder: Path, outcome: Outcome) -> dict[str, Any]:
    """One benchmark's log, as JSON values."""
    setting, name, checker = outcome.setting, outcome.benchmark.name, outcome.summary.checker
    created = datetime.fromtimestamp((folder / SETTING).stat().st_mtime, UTC).isoformat()
    totals = {key: value for key, value in outcome.totals.items() if value is not None}
    samples = list(_samples(folder, outcome))
    return {
        "version": 2,
        "status": "success" if not outcome.unanswered else "started",
        "eval": {
            "run_id": f"{setting.arm} {created}",
            "task_id": name,
            "created": created,
            "task": name,
            "dataset": {
                "name": name,
                "location": outcome.benchmark.source.url,
                "samples": outcome.summary.num_cases,
                "sample_ids": [sample["id"] for sample in samples],
            },
            "model": setting.arm,
            "config": {"limit": setting.limit or None, "epochs": 1},
            "metadata": {**setting.model_dump(), "overlap": str(outcome.summary.overlap)},
        },
        "plan": {"name": "tirkit", "config": {"max_tokens": setting.max_new_tokens}},
        "results": {
            "total_samples": outcome.summary.num_cases,
            "completed_samples": len(samples),
            "scores": [
                {
                    "name": checker,
                    "scorer": checker,
                    "metrics": {key: {"name": key, "value": value} for key, value in totals.items()},
                }
            ],
        },
        "stats": {"started_at": created, "completed_at": created},
        "samples": samples,
    }


def _samples(folder: Path, outcome: Outcome) -> Iterator[dict[str, Any]]:
    name = outcome.benchmark.name
    asked = {case.task.id: case for case in read_asked(folder, name)}
    stored = {attempt.case_id: attempt for attempt in read_results(records_path(folder, name))}
    for case_id, case in asked.items():
        if attempt := stored.get(case_id):
            yield _sample(case, attempt, outcome)


def _sample(case: AskedCase, attempt: CaseAttempt, outcome: Outcome) -> dict[str, Any]:
    made, model, score = attempt.trajectory, outcome.setting.arm, attempt.score
    prompt = [_message(message) for message in made.prompt]
    said: list[dict[str, Any]] = []
    for turn in made.turns:
        said += [{"role": "assistant", "content": turn.text, "model": model}, *map(_message, turn.reply)]
    last = made.turns[-1].text if made.turns else ""
    choice = {
        "message": {"role": "assistant", "content": last, "model": model},
        "stop_reason": STOPS.get(made.stop, "stop"),
    }
    return {
        "id": attempt.case_id,
        "epoch": 1,
        "input": prompt,
        "target": _target(case),
        "messages": [*prompt, *said],
        "output": {"model": model, "choices": [choice]},
        "scores": {
            outcome.summary.checker: {
                "value": score.right,
                "answer": made.answer or "\n".join(print_json(call.model_dump()) for call in made.calls),
                "explanation": score.why or None,
                "metadata": dict(score.values),
            }
        },
        "metadata": {
            "category": attempt.category,
            "group": attempt.group,
            "stop": str(made.stop),
            "calls": [call.model_dump() for call in made.calls],
            "metrics": attempt.item.metrics,
        },
        "total_time": attempt.item.metrics.get("seconds"),
    }


def _message(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}


def _target(case: AskedCase) -> str:
    if case.task.answers:
        return case.task.answers[0]
    return "\n".join(print_json(call.model_dump()) for call in case.task.gold_calls or ())
