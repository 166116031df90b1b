"""Load questions as tasks.

Forms, told apart by their keys, also mixed in one file (JSONL or one JSON array):
    ours         {"id", "prompt": [{"role", "content"}], …}: the fields of `Task`
    Seal-Tools   {"id", "query", "calling": [{"api", "parameters"}]}: judged by its calls alone, all in one round;
                 a value "API_call_2" stands for the result of an earlier call and is kept as that text
    maths        {"problem", "answer"} (MATH) or {"question", "answer": "… #### 5"} (GSM8K): answers compared as maths
    QA           {"question", "answer": text or a list of texts that are all right}: answers compared by F1
The last two get an id from their question where they bring none ("id" or "unique_id").
"""

import hashlib
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from tirkit.tools.lines import FileFormat, FileIssue, convert_records, parse_as, read_records
from tirkit.types import Message, Task, ToolCall, UserError

GSM8K_MARK = "####"  # before the final answer, after the worked solution

_parse_task = parse_as(Task)


class QuestionError(UserError):
    """A question file cannot be used at all; the message says which file, why, and what to do."""


@dataclass(frozen=True)
class TaskFile:
    """The tasks of a file, in its order, and what was wrong with the rest."""

    tasks: tuple[Task, ...]
    issues: tuple[FileIssue, ...] = ()


def load_tasks(path: str | Path, known: Container[str] | None = None, format: FileFormat = "auto") -> TaskFile:
    """Read a question file; broken records are left out and named in `issues`.

    known: names of the catalogue's tools; a task that names any other tool counts as broken.
    Raises `QuestionError` if the file cannot be read or has no usable question.
    """
    path = Path(path)
    try:
        records, issues = read_records(path, format)
    except OSError as error:
        raise QuestionError(
            f"question file {path} cannot be read ({error.strerror}); give the path of a JSON or JSONL file"
        ) from error
    tasks: dict[str, Task] = {}
    for line, task in convert_records(path, records, read_task, issues):
        missing = [] if known is None else [name for name in _tool_names(task) if name not in known]
        if task.id in tasks:
            issues.append(FileIssue(str(path), line, f"the id {task.id!r} was used before"))
        elif missing:
            issues.append(FileIssue(str(path), line, f"names the tool {missing[0]!r}, which the catalogue lacks"))
        else:
            tasks[task.id] = task
    issues.sort(key=lambda issue: issue.line)
    if not tasks:
        raise QuestionError(
            f"no usable question in {path}{f'; first reason: {issues[0]}' if issues else ' (nothing in it)'}\n"
            'A question is a JSON object with "id" and "prompt", or one of Seal-Tools with "id", "query" and "calling"'
        )
    return TaskFile(tuple(tasks.values()), tuple(issues))


def read_task(value: JsonValue) -> Task:
    """One question in any of the forms. Raises ValueError with the reason if it is none."""
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if "query" in value and "prompt" not in value:  # a task of ours may have both
        task = _seal_task(value)
    else:
        task = _answer_task(value) if "problem" in value or "question" in value else _parse_task(value)
    if not any(message.content.strip() for message in task.prompt):
        raise ValueError("the question is empty")
    return task


def _seal_task(value: dict[str, JsonValue]) -> Task:
    """A question of Seal-Tools; its `kind` is "single", "several" or "nested" (a call uses another one's result)."""
    calling = value.get("calling")
    if not isinstance(calling, list) or not calling:
        raise ValueError('"calling" must be a list of calls')
    calls = tuple(_seal_call(call) for call in calling)
    nested = any("API_call_" in text for call in calls for text in call.arguments.values() if isinstance(text, str))
    return Task(
        id=value.get("id"),  # type: ignore[arg-type]  # pydantic checks both and names what is wrong
        prompt=(Message(role="user", content=value["query"]),),  # type: ignore[arg-type]
        gold_rounds=(calls,),
        calls_only=True,
        kind="nested" if nested else "single" if len(calls) == 1 else "several",
    )


def _answer_task(value: dict[str, JsonValue]) -> Task:
    """A question with an answer."""
    question, answer = value.get("problem", value.get("question")), value.get("answer")
    answers = answer if isinstance(answer, list) else [answer]
    if not isinstance(question, str) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise ValueError('a question needs its text and "answer": a text, or a list of them')
    texts = [str(a) for a in answers]
    maths = "problem" in value or (isinstance(answer, str) and GSM8K_MARK in answer)
    if maths:
        texts = [text.rpartition(GSM8K_MARK)[2].strip() for text in texts]
    name = value.get("id", value.get("unique_id"))
    return Task(
        id=name if isinstance(name, str) else hashlib.blake2b(question.encode(), digest_size=6).hexdigest(),
        prompt=(Message(role="user", content=question),),
        answer=texts[0],
        other_answers=tuple(dict.fromkeys(text for text in texts[1:] if text != texts[0])),
        comparison="maths" if maths else "qa",
        kind="maths" if maths else "qa",
    )


def _seal_call(call: JsonValue) -> ToolCall:
    if not isinstance(call, dict) or not isinstance(call.get("api"), str):
        raise ValueError('every call needs "api", the name of a tool')
    return ToolCall(name=call["api"], arguments=call.get("parameters", {}))  # type: ignore[arg-type]


def _tool_names(task: Task) -> list[str]:
    return [*task.tools, *(call.name for call in task.gold_calls or ())]
