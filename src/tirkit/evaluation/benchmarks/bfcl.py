"""BFCL v4, the parts that need neither the web nor a memory: single turn, judged by the calls' syntax tree.

Asked as a function-calling model is: the question's messages, the documents of its functions, one turn. In Java and
JavaScript every parameter is a string that holds source code, as the authors ask for it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from tirkit.evaluation.benchmarks.base import (
    Benchmark,
    Case,
    CaseResult,
    Loaded,
    Score,
    Source,
    Totals,
    average,
    by_category,
    mean,
    own_tools,
    records,
)
from tirkit.evaluation.benchmarks.bfcl_match import calls_problem
from tirkit.evaluation.benchmarks.bfcl_official import NAME, official_scorer
from tirkit.evaluation.benchmarks.bfcl_source import Language, print_source
from tirkit.evaluation.benchmarks.parts import ground_truths
from tirkit.scoring.calls import predicted_calls
from tirkit.tools.lines import FileIssue
from tirkit.types import Message, StopReason, Task, ToolCall, Trajectory

NON_LIVE = ("simple_python", "simple_java", "simple_javascript", "multiple", "parallel", "parallel_multiple")
LIVE = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
NO_CALL = ("irrelevance", "live_irrelevance")
SOME_CALL = ("live_relevance",)
MULTI_TURN = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")

NOTES: dict[Language, str] = {
    "java": " Give the value as Java source code in a string.",
    "javascript": " Give the value as JavaScript source code in a string.",
}


def language(category: str) -> Language:
    """The language whose values a category's calls hold."""
    return "java" if category.endswith("java") else "javascript" if category.endswith("javascript") else "python"


def read(folder: Path) -> Loaded:
    """Cases of the files BFCL_v4_CATEGORY.json, with their answers in possible_answer/."""
    cases: list[Case] = []
    issues: list[FileIssue] = []
    for category in (*NON_LIVE, *LIVE, *NO_CALL, *SOME_CALL):
        name = f"BFCL_v4_{category}.json"
        answers = ground_truths(folder / "possible_answer" / name, issues)
        for record in records(folder / name, issues):
            try:
                cases.append(_case(record.value, category, answers))  # type: ignore[arg-type]
            except (KeyError, ValueError) as error:
                issues.append(FileIssue(str(folder / name), record.line, f"{type(error).__name__}: {error}"))
    return Loaded(tuple(cases), issues=tuple(issues))


def _case(record: dict[str, Any], category: str, answers: dict[Any, Any]) -> Case:
    documents, spoken = record["function"], language(category)
    judged = category not in (*NO_CALL, *SOME_CALL)
    accepted: list[Any] = answers[record["id"]] if judged else []
    gold = tuple(first_answer(answer, documents, spoken) for answer in accepted)
    tools = own_tools([_shown(document, spoken) for document in documents], "bfcl")
    task = Task(
        id=record["id"],
        prompt=tuple(Message(role=m["role"], content=m["content"]) for m in record["question"][0]),
        tools=tuple(tool.name for tool in tools),
        gold_rounds=None if category in SOME_CALL else (gold,) if gold else (),
        calls_only=True,
        kind=category,
    )
    return Case(task, tools, {"function": documents, "ground_truth": accepted})


def first_answer(answer: dict[str, dict[str, list[Any]]], documents: list[Any], spoken: Language) -> ToolCall:
    """The call that takes of every parameter the first accepted value, and leaves out what may be left out."""
    name, accepted = next(iter(answer.items()))
    properties = next((d["parameters"]["properties"] for d in documents if d["name"] == name), {})
    arguments: dict[str, JsonValue] = {}
    for parameter, values in accepted.items():
        value = next((value for value in values if value != ""), "")
        if value == "" and "" in values:
            continue
        schema = properties.get(parameter, {})
        value = _first(value) if schema.get("type") == "dict" or _holds_dicts(schema) else value
        if spoken != "python":
            value = print_source(value, schema.get("type", ""), schema.get("items", {}).get("type"), spoken)
        arguments[parameter] = value
    return ToolCall(name=name, arguments=arguments)


def _holds_dicts(schema: dict[str, Any]) -> bool:
    return schema.get("items", {}).get("type") == "dict"


def _first(value: Any) -> Any:
    """Of a dict of accepted values, or a list of such, the first ones."""
    if isinstance(value, list):
        return [_first(item) for item in value]
    if not isinstance(value, dict):
        return value
    firsts = {key: next((v for v in values if v != ""), "") for key, values in value.items()}
    return {key: first for key, first in firsts.items() if first != "" or "" not in value[key]}


def _shown(document: dict[str, Any], spoken: Language) -> dict[str, Any]:
    """The document as the model sees it."""
    if spoken == "python":
        return document
    shown = json.loads(json.dumps(document))
    for name, schema in shown["parameters"]["properties"].items():
        inner = f" of {schema['items']['type']}" if "items" in schema else ""
        text = f"{schema.get('description', '')} ({schema['type']}{inner})"
        shown["parameters"]["properties"][name] = {"type": "string", "description": text + NOTES[spoken]}
    return shown


def score(trajectory: Trajectory, case: Case) -> Score:
    """By our own comparison. An attempt that cannot be read makes no call: right where none must be made."""
    return judge(trajectory, case, own_problem)


def own_problem(calls: Sequence[ToolCall], case: Case) -> str:
    """Why `calls` are wrong, "" where they are right, by our own comparison."""
    gold: Any = case.gold
    return calls_problem(gold["function"], calls, gold["ground_truth"], language(case.task.kind))


def judge(trajectory: Trajectory, case: Case, problem: Any) -> Score:
    """The verdict, where `problem(calls, case)` says why calls are not the possible answers.

    A task that needs no call is officially right with anything but a call, garbage included; `answered` says whether
    there was no call and a well-formed reply.
    """
    calls = predicted_calls(trajectory)
    if case.task.kind in NO_CALL:
        answered = float(not calls and trajectory.stop is StopReason.ANSWERED)
        return Score(right=float(not calls), why="a call" if calls else "", values={"answered": answered})
    if not calls:
        return Score(right=0.0, why="unreadable call" if calls is None else "no call")
    why = "" if case.task.kind in SOME_CALL else problem(calls, case)
    return Score(right=float(not why), why=why)


def totals(results: Sequence[CaseResult]) -> Totals:
    """The leaderboard's columns (eval_runner_helper.generate_leaderboard_csv of bfcl-eval 2026.3.23).

    Its overall gives 10 % each to non-live, live and irrelevance, 30 % to multi-turn, 40 % to agentic tasks, and counts
    a category that was not run as 0; `overall of what was run` spreads the weights over the parts that were.
    """
    groups = by_category(results)
    score_of = {category: mean(found) for category, found in groups.items()}
    simple = average(score_of.get(c) for c in NON_LIVE if c.startswith("simple"))
    non_live = average([simple, *(score_of.get(c) for c in NON_LIVE if not c.startswith("simple"))])
    live = mean(result for c in LIVE for result in groups.get(c, ()))
    parts = {
        "non-live": non_live,
        "live": live,
        "irrelevance": average(score_of.get(c) for c in NO_CALL),
        "multi-turn": average(score_of.get(c) for c in MULTI_TURN),
    }
    weights = {"non-live": 0.1, "live": 0.1, "irrelevance": 0.1, "multi-turn": 0.3}
    run = {part: value for part, value in parts.items() if value is not None}
    weighted = sum(weights[part] * value for part, value in run.items())
    return {
        **parts,
        "relevance": score_of.get("live_relevance"),
        "overall (leaderboard)": _leaderboard(score_of, groups),
        "overall of what was run": weighted / sum(weights[part] for part in run) if run else None,
    }


def _leaderboard(score_of: dict[str, float | None], groups: dict[str, list[CaseResult]]) -> float:
    """The overall score with what was not run counted as 0 (agentic tasks always are)."""

    def plain(*categories: str) -> float:
        return sum(score_of.get(category) or 0.0 for category in categories) / len(categories)

    simple = plain("simple_python", "simple_java", "simple_javascript")
    non_live = (simple + sum(score_of.get(c) or 0.0 for c in ("multiple", "parallel", "parallel_multiple"))) / 4
    live = mean(result for category in LIVE for result in groups.get(category, ())) or 0.0
    return 0.1 * non_live + 0.1 * live + 0.1 * plain(*NO_CALL) + 0.3 * plain(*MULTI_TURN)


def accepted_values(case: Case) -> list[dict[str, list[Any]]]:
    """Call by call, the accepted values of every parameter."""
    gold: Any = case.gold
    return [next(iter(answer.values())) for answer in gold["ground_truth"]]


BFCL = Benchmark(
    name="bfcl",
    folder="bfcl",
    source=Source("https://github.com/ShishirPatil/gorilla", "6ea57973c7a6097fd7c5915698c54c17c5b1b6c8", "Apache-2.0"),
    categories=(*NON_LIVE, *LIVE, *NO_CALL, *SOME_CALL),
    prompting="the question's messages, its functions as documents, one turn",
    read=read,
    score=score,
    official=lambda: official_scorer(judge, language),
    official_name=NAME,
    totals=totals,
)
