"""API-Bank, levels 1 to 3: the next call of a dialogue, in the 597-item form that papers since ToolRL report.

Asked as the item has it: its tools as documents, the dialogue so far as messages (calls and results included), the
request for exactly one call. Right: the one call is the gold call, by name, parameter names and values; values are
compared as text, numbers as numbers (the gold holds "40.7128" where the document says float). Running the calls, the
second metric of the original, wants API-Bank's own tools: they are not part of the data.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

from tirkit.evaluation.benchmarks.base import Benchmark, Case, Loaded, Score, Source, own_tools, records
from tirkit.evaluation.benchmarks.parts import called, category_means, said
from tirkit.scoring.calls import predicted_calls
from tirkit.scoring.match import number
from tirkit.tools.lines import FileIssue
from tirkit.types import Message, Task, ToolCall, Trajectory

LEVELS = ("level-1", "level-2", "level-3")
_TOOL = re.compile(
    r"^\d+\. (?:Name: )?(\w+)(?:\nDescription)?: (.*?)\nParameters: (\{.*?\})$", re.MULTILINE | re.DOTALL
)
_PIECE = re.compile(r"<(user|response|tool_call|obs)>(.*?)</\1>", re.DOTALL)


def read(folder: Path) -> Loaded:
    """Cases of processed/LEVEL-api_processed.json."""
    cases: list[Case] = []
    issues: list[FileIssue] = []
    for level in LEVELS:
        path = folder / "processed" / f"{level}-api_processed.json"
        for place, record in enumerate(records(path, issues)):
            try:
                cases.append(_case(record.value, level, place))  # type: ignore[arg-type]
            except (KeyError, ValueError, SyntaxError) as error:
                issues.append(FileIssue(str(path), record.line, f"{type(error).__name__}: {error}"))
    return Loaded(tuple(cases), issues=tuple(issues))


def _case(record: dict[str, Any], level: str, place: int) -> Case:
    answer = record["answer"]
    answer = answer[0] if isinstance(answer, list) else answer
    tools = own_tools(_documents(record["system"]), "api_bank")
    prompt = _messages(record["user"])
    task = Task(
        id=f"{level}-{place}",
        prompt=prompt,
        tools=tuple(tool.name for tool in tools),
        gold_rounds=((ToolCall(name=answer["name"], arguments=answer["parameters"]),),),
        calls_only=True,
        kind=level,
        # The last message is the same in all items, the request for one call: what the user wants stands before it.
        query="\n".join(message.content for message in prompt[:-1] if message.role == "user"),
    )
    return Case(task, tools)


def _documents(system: str) -> list[Any]:
    """The tools named in the system text; all their parameters are required."""
    found = _TOOL.findall(system.split("**Steps for Each Turn**")[0])
    if not found:
        raise ValueError("no tool in the system text")
    documents: list[Any] = []
    for name, description, text in found:
        properties = ast.literal_eval(text)
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        documents.append({"name": name, "description": description, "parameters": schema})
    return documents


def _messages(text: str) -> tuple[Message, ...]:
    messages: list[Message] = []
    for kind, body in _PIECE.findall(text):
        body = body.strip()
        if kind == "tool_call":
            calls = [json.loads(line) for line in body.splitlines() if line.strip()]
            messages.append(called([ToolCall(name=c["name"], arguments=c["parameters"]) for c in calls]))
        elif kind == "response":
            messages.append(said(body))
        else:
            messages.append(Message(role="tool" if kind == "obs" else "user", content=body))
    return tuple(messages)


def score(trajectory: Trajectory, case: Case) -> Score:
    """Whether the only call is the gold call."""
    calls = predicted_calls(trajectory)
    if not calls:
        return Score(right=0.0, why="unreadable call" if calls is None else "no call")
    first, *more = calls
    why = "several calls" if more else next(_problem(gold, first) for gold in case.task.gold_calls or ())
    return Score(right=float(not why), why=why)


def _problem(gold: ToolCall, call: ToolCall) -> str:
    if call.name != gold.name:
        return "wrong tool"
    if call.arguments.keys() != gold.arguments.keys():
        return "other parameters"
    same = all(_same(value, call.arguments[name]) for name, value in gold.arguments.items())
    return "" if same else "wrong value"


def _same(gold: Any, value: Any) -> bool:
    if isinstance(value, bool) or isinstance(gold, bool) or not isinstance(value, str | int | float):
        return gold == value and type(gold) is type(value)
    a, b = number(str(gold)), number(str(value))
    return str(gold).strip() == str(value).strip() or (not isinstance(value, str) and a is not None and a == b)


API_BANK = Benchmark(
    name="api-bank",
    folder="api_bank",
    source=Source(
        "https://github.com/qiancheng0/ToolRL (benchmarks/API-Bank), from AlibabaResearch/DAMO-ConvAI",
        "8cee13ec0ca72f0461da372a93a6fd8140dbb840",
        "Apache-2.0",
    ),
    categories=LEVELS,
    prompting="the dialogue so far as messages, the item's tools as documents, one call",
    read=read,
    score=score,
    totals=category_means,
)
