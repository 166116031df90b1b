"""MetaTool: which tool (or two) a question is for, of 199 ChatGPT plugins; arguments are not judged.

Asked with the descriptions of all tools as documents. (The original shows ten candidates a question, and has questions
that no tool fits; neither list is part of the data here.)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tirkit.evaluation.benchmarks.base import Benchmark, Case, CaseResult, Loaded, Source, Totals, records
from tirkit.evaluation.benchmarks.parts import category_means, chosen_right, f1
from tirkit.tools.catalogue import read_tool
from tirkit.tools.lines import FileIssue
from tirkit.types import Message, Task, ToolCall

KINDS = {"single": "single_tool.jsonl", "multi": "multi_tool.jsonl"}


def read(folder: Path) -> Loaded:
    """Cases of both files; the tools are those of plugin_des.json and big_tool_des.json."""
    issues: list[FileIssue] = []
    texts: dict[str, Any] = {}
    for name in ("plugin_des.json", "big_tool_des.json"):
        for record in records(folder / name, issues):
            texts |= {name: text for name, text in record.value.items() if name not in texts}  # type: ignore[union-attr]
    tools = [read_tool({"name": name, "description": text, "source": "metatool"}) for name, text in texts.items()]
    cases: list[Case] = []
    for kind, name in KINDS.items():
        for place, record in enumerate(records(folder / name, issues)):
            value: Any = record.value
            gold = value["tool"] if isinstance(value["tool"], list) else [value["tool"]]
            if missing := [tool for tool in gold if tool not in texts]:
                issues.append(FileIssue(str(folder / name), record.line, f"no description of {missing[0]!r}"))
                continue
            task = Task(
                id=f"{kind}-{place}",
                prompt=(Message(role="user", content=value["query"]),),
                gold_rounds=(tuple(ToolCall(name=tool) for tool in gold),),
                calls_only=True,
                kind=kind,
            )
            cases.append(Case(task))
    return Loaded(tuple(cases), tuple(tools), tuple(issues))


def totals(results: Sequence[CaseResult]) -> Totals:
    """Correct selection rate by category, and F1 of the chosen tools."""
    return {**category_means(results), "tool F1": f1(results, "tool")}


METATOOL = Benchmark(
    name="metatool",
    folder="metatool",
    source=Source("https://github.com/HowieHwong/MetaTool", "35e81bb7576826e980c80fed8f8c0a2b4a1e6fbb", "MIT"),
    categories=tuple(KINDS),
    prompting="the question, the 199 tools' descriptions as documents, one turn",
    read=read,
    score=chosen_right,
    totals=totals,
    shared_tools=True,
)
