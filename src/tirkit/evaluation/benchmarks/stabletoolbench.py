"""StableToolBench, selection: which of the listed APIs a question needs; arguments and answers have no gold.

Asked with the item's APIs as documents, under ToolBench's names (api_for_tool). Right: the calls are to exactly the
relevant APIs. Solving the task wants the virtual API server and a judge: not done.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tirkit.evaluation.benchmarks.base import Benchmark, Case, CaseResult, Loaded, Source, Totals, own_tools, records
from tirkit.evaluation.benchmarks.parts import category_means, chosen_right, f1
from tirkit.tools.catalogue import TYPES
from tirkit.tools.lines import FileIssue
from tirkit.types import Message, Task, ToolCall

GROUPS = ("G1_instruction", "G1_category", "G1_tool", "G2_instruction", "G2_category", "G3_instruction")


def read(folder: Path) -> Loaded:
    """Cases of test_instruction/GROUP.json."""
    cases: list[Case] = []
    issues: list[FileIssue] = []
    for group in GROUPS:
        path = folder / "test_instruction" / f"{group}.json"
        for record in records(path, issues):
            try:
                cases.append(_case(record.value, group))  # type: ignore[arg-type]
            except (KeyError, ValueError) as error:
                issues.append(FileIssue(str(path), record.line, f"{type(error).__name__}: {error}"))
    return Loaded(tuple(cases), issues=tuple(issues))


def _case(record: dict[str, Any], group: str) -> Case:
    # An API that is listed twice is one tool.
    documents = {_name(api["tool_name"], api["api_name"]): api for api in record["api_list"]}
    tools = own_tools([_document(name, api) for name, api in documents.items()], "stabletoolbench")
    gold = dict.fromkeys(_name(tool, api) for tool, api in record["relevant APIs"])
    if not gold or gold.keys() - documents.keys():
        raise ValueError("a relevant API is not among the listed ones" if gold else "no relevant API")
    task = Task(
        id=f"{group}-{record['query_id']}",
        prompt=(Message(role="user", content=record["query"]),),
        tools=tuple(documents),
        gold_rounds=(tuple(ToolCall(name=name) for name in gold),),
        calls_only=True,
        kind=group,
    )
    return Case(task, tools)


def _name(tool: str, api: str) -> str:
    return "_for_".join(re.sub(r"\W+", "_", part).strip("_").lower() for part in (api, tool))


def _document(name: str, api: dict[str, Any]) -> Any:
    required, optional = api["required_parameters"], api["optional_parameters"]
    properties = {
        parameter["name"]: {
            "type": TYPES.get(str(parameter["type"]).lower()) or "string",
            "description": str(parameter["description"] or ""),
        }
        for parameter in (*required, *optional)
    }
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(dict.fromkeys(parameter["name"] for parameter in required)),
    }
    return {"name": name, "description": api["api_description"] or "", "parameters": schema}


def totals(results: Sequence[CaseResult]) -> Totals:
    """Exact selection by group, and F1 of the chosen APIs."""
    return {**category_means(results), "tool F1": f1(results, "tool")}


STABLETOOLBENCH = Benchmark(
    name="stabletoolbench",
    folder="stabletoolbench",
    source=Source(
        "https://github.com/THUNLP-MT/StableToolBench", "aa4ed9f4737ad98bd706663f01d63623c3427812", "Apache-2.0"
    ),
    categories=GROUPS,
    prompting="the question, the item's APIs as documents, one turn",
    read=read,
    score=chosen_right,
    totals=totals,
)
