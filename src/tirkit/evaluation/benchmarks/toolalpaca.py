"""ToolAlpaca, the simulated part: calls of one API's functions, by gold calls.

Asked with the API's functions as documents. Right: exactly the gold calls, in any order; empty values count as left
out, and values are compared leniently. (The paper has GPT-4 judge; the simulation wants a language model.)
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from tirkit.evaluation.benchmarks.base import Benchmark, Case, Loaded, Score, Source, own_tools, records
from tirkit.evaluation.benchmarks.parts import agreement, category_means
from tirkit.scoring.calls import predicted_calls
from tirkit.text.schema import canonical
from tirkit.tools.catalogue import TYPES
from tirkit.tools.lines import FileIssue
from tirkit.types import Message, Task, ToolCall, Trajectory

_DOCUMENT = re.compile(r"(.*?)\s*Parameters: (\{.*?\})\s*(?:Output:.*)?", re.DOTALL)
_PARAMETER = re.compile(r"\s*(?:Required\.\s*)?(\w+)", re.IGNORECASE)


def read(folder: Path) -> Loaded:
    """Cases of eval_simulated.json (and eval_real.json), an instruction each."""
    cases: list[Case] = []
    issues: list[FileIssue] = []
    for kind in ("simulated", "real"):
        path = folder / f"eval_{kind}.json"
        for record in records(path, issues):
            api: Any = record.value
            try:
                tools = own_tools(_documents(api["Function_Description"]), "toolalpaca")
            except (KeyError, ValueError) as error:
                issues.append(FileIssue(str(path), record.line, f"{type(error).__name__}: {error}"))
                continue
            names = {tool.name for tool in tools}
            for place, (text, steps) in enumerate(zip(api["Instructions"], api["Golden_Answers"], strict=True)):
                try:
                    gold = tuple(ToolCall(name=s["Action"], arguments=json.loads(s["Action_Input"])) for s in steps)
                    if not gold or any(call.name not in names for call in gold):
                        raise ValueError("the gold calls an unknown function, or none")
                except (KeyError, ValueError) as error:
                    issues.append(FileIssue(str(path), record.line, f"{api['Name']} {place}: {error}"))
                    continue
                task = Task(
                    id=f"{kind}-{api['Name']}-{place}",
                    prompt=(Message(role="user", content=text),),
                    tools=tuple(tool.name for tool in tools),
                    gold_rounds=(gold,),
                    calls_only=True,
                    kind=kind,
                )
                cases.append(Case(task, tools))
    return Loaded(tuple(cases), issues=tuple(issues))


def _documents(functions: dict[str, str]) -> list[Any]:
    documents: list[Any] = []
    for name, text in functions.items():
        if not (match := _DOCUMENT.fullmatch(text)):
            continue  # "components": shared schemas, no function
        properties: dict[str, JsonValue] = {}
        required: list[str] = []
        for parameter, about in json.loads(match[2]).items():
            word = _PARAMETER.match(about)
            kind = TYPES.get(word[1].lower()) if word else None
            properties[parameter] = {"type": kind or "string", "description": about}
            if "required." in about.lower():
                required.append(parameter)
        schema = {"type": "object", "properties": properties, "required": required}
        documents.append({"name": name, "description": match[1], "parameters": schema})
    return documents


def score(trajectory: Trajectory, case: Case) -> Score:
    """Whether the calls are the gold calls."""
    calls, gold = predicted_calls(trajectory), case.task.gold_calls or ()
    right = calls is not None and _texts(calls) == _texts(gold)
    names = agreement((c.name for c in gold), (c.name for c in calls or ()), "tool")
    wrong = "wrong parameters" if names["tool_hit"] == len(gold) == len(calls or ()) else "wrong tools"
    why = "" if right else "unreadable call" if calls is None else "no call" if not calls else wrong
    return Score(right=float(right), why=why, values=names)


def _texts(calls: Sequence[ToolCall]) -> list[str]:
    kept = [c.model_copy(update={"arguments": {n: v for n, v in c.arguments.items() if v != ""}}) for c in calls]
    return sorted(canonical(call, "lenient") for call in kept)


TOOLALPACA = Benchmark(
    name="toolalpaca",
    folder="toolalpaca",
    source=Source("https://github.com/tangqiaoyu/ToolAlpaca", "189069998d64a7baf1b4a1c3c4b2e75eb9d05532", "Apache-2.0"),
    categories=("simulated", "real"),
    prompting="the instruction, the API's functions as documents, one turn",
    read=read,
    score=score,
    totals=category_means,
)
