"""NESTFUL v1: sequences of calls in which later ones use the results of earlier ones.

Asked with all tools of the part as documents, and with the rule for references. Right: exactly the gold sequence (the
paper's full match). The gold closes with `var_result`, which names what to report and is no tool: it is left out.
References are to the place of a call, so the order counts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from tirkit.evaluation.benchmarks.base import Benchmark, Case, CaseResult, Loaded, Score, Source, Totals, records
from tirkit.evaluation.benchmarks.parts import agreement, category_means, f1, value_mean
from tirkit.scoring.calls import predicted_calls
from tirkit.text.schema import canonical, canonical_value
from tirkit.tools.catalogue import TYPES, read_tool
from tirkit.tools.lines import FileIssue
from tirkit.types import Message, Task, ToolCall, ToolSchema, Trajectory

PARTS = {
    "executable": "executable/executable",
    "glaive": "non-executable/non-executable-glaive",
    "sgd": "non-executable/non-executable-sgd",
}
RULE = (
    "Make all calls that the request needs at once, in order. Where an argument is the result of an earlier call, "
    "write $var1$ for the result of the first call, $var2$ for that of the second and so on, and $var1.name$ for its "
    "field `name`."
)


def read(folder: Path) -> Loaded:
    """Cases of PART-data.json with the tools of PART-spec.json."""
    cases: list[Case] = []
    issues: list[FileIssue] = []
    for part, stem in PARTS.items():
        tools = tuple(_tool(record.value) for record in records(folder / f"{stem}-spec.json", issues))  # type: ignore[arg-type]
        path = folder / f"{stem}-data.json"
        for place, record in enumerate(records(path, issues)):
            try:
                cases.append(_case(record.value, part, place, tools))  # type: ignore[arg-type]
            except (KeyError, ValueError) as error:
                issues.append(FileIssue(str(path), record.line, f"{type(error).__name__}: {error}"))
    return Loaded(tuple(cases), issues=tuple(issues))


def _case(record: dict[str, Any], part: str, place: int, tools: tuple[ToolSchema, ...]) -> Case:
    steps = [step for step in record["output"] if step["name"] != "var_result"]
    labels = {step["label"]: f"var{i}" for i, step in enumerate(steps, 1)}
    gold = tuple(ToolCall(name=s["name"], arguments=_placed(s["arguments"], labels)) for s in steps)
    known = {tool.name for tool in tools}
    if missing := [call.name for call in gold if call.name not in known]:
        raise ValueError(f"no specification of {missing[0]!r}")
    task = Task(
        id=f"{part}-{place}",
        prompt=(Message(role="system", content=RULE), Message(role="user", content=record["input"])),
        tools=tuple(tool.name for tool in tools),
        gold_rounds=(gold,),
        calls_only=True,
        kind=part,
    )
    return Case(task, tools)


def _placed(value: Any, labels: dict[str, str]) -> Any:
    """References by label as references by place."""
    if isinstance(value, str) and value.startswith("$"):
        name, dot, rest = value.strip("$").partition(".")
        return f"${labels.get(name, name)}{dot}{rest}$"
    if isinstance(value, list):
        return [_placed(item, labels) for item in value]
    return {key: _placed(item, labels) for key, item in value.items()} if isinstance(value, dict) else value


def _tool(spec: dict[str, Any]) -> ToolSchema:
    given = spec.get("query_parameters", spec.get("arguments", {}))
    properties: dict[str, JsonValue] = {}
    for name, parameter in given.items():
        kind = TYPES.get(str(parameter.get("type", "string")).lower()) or "string"
        values = parameter.get("enum") or parameter.get("allowed_values")
        properties[name] = {"type": kind, "description": parameter.get("description", "")} | (
            {"enum": values} if values and isinstance(values, list) else {}
        )
    results = ", ".join(spec.get("output_parameters", {}))
    return read_tool(
        {
            "name": spec["name"],
            "description": f"{spec['description']} Result fields: {results}." if results else spec["description"],
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": [name for name, parameter in given.items() if parameter.get("required")],
            },
            "source": "nestful",
        }
    )


def score(trajectory: Trajectory, case: Case) -> Score:
    """Full match of the sequence; the share of gold calls in their place; counts for the paper's F1s."""
    calls, gold = predicted_calls(trajectory), case.task.gold_calls or ()
    made = calls or ()
    placed = [canonical(a, "lenient") == canonical(b, "lenient") for a, b in zip(gold, made, strict=False)]
    right = len(made) == len(gold) and all(placed)
    wrong = "wrong tools" if [c.name for c in made] != [c.name for c in gold] else "wrong parameters"
    why = "" if right else "unreadable call" if calls is None else "no call" if not calls else wrong
    values = agreement((c.name for c in gold), (c.name for c in made), "tool")
    values |= agreement(_slots(gold), _slots(made), "parameter") | {"partial": sum(placed) / len(gold)}
    return Score(right=float(right), why=why, values=values)


def _slots(calls: Sequence[ToolCall]) -> list[str]:
    return [f"{c.name}.{n}={canonical_value(v, 'lenient')}" for c in calls for n, v in c.arguments.items()]


def totals(results: Sequence[CaseResult]) -> Totals:
    """Full match by part, partial match, F1 of functions and of parameters."""
    return {
        **category_means(results),
        "partial match": value_mean(results, "partial"),
        "tool F1": f1(results, "tool"),
        "parameter F1": f1(results, "parameter"),
    }


NESTFUL = Benchmark(
    name="nestful",
    folder="nestful",
    source=Source("https://github.com/IBM/NESTFUL", "053cbde0446dddd31e8293f179085e1b39ab79b5", "Apache-2.0"),
    categories=tuple(PARTS),
    prompting="the request, all tools of the part as documents, the rule for references, one turn",
    read=read,
    score=score,
    totals=totals,
)
