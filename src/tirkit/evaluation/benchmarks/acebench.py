"""ACEBench (English), its normal and special parts.

Normal: the dialogue so far, the item's functions, one turn of calls. Special: nothing can be called, and the reply must
say why in the form that the authors ask for. The agent part is a benchmark of its own, `acebench_agent`; its share of
the overall is left out and said to be.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tirkit.evaluation.benchmarks.acebench_match import calls_problem, same_calls
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
from tirkit.evaluation.benchmarks.parts import ground_truths, said, value_mean
from tirkit.scoring.calls import predicted_calls
from tirkit.tools.lines import FileIssue
from tirkit.types import Message, StopReason, Task, ToolCall, Trajectory

ATOM = tuple(f"normal_atom_{kind}" for kind in ("bool", "enum", "number", "list", "object_short", "object_deep"))
TURNS = ("normal_multi_turn_user_switch", "normal_multi_turn_user_adjust")
NORMAL = (
    *ATOM,
    "normal_single_turn_single_function",
    "normal_single_turn_parallel_function",
    *TURNS,
    "normal_similar_api",
    "normal_preference",
)
# What a reply must say, and none of the others: by category.
PHRASES = {
    "special_incomplete": "Missing necessary parameters",
    "special_error_param": "There is incorrect value",
    "special_irrelevant": "the limitations of the function",
}
SPECIAL = tuple(PHRASES)
RULES = {
    "normal": (
        "Make the calls that the user's last request needs. Take values from the conversation as the user put them; "
        "leave out parameters that nothing was said about, unless they are required."
    ),
    "special": (
        "Make the calls that the user's last request needs, if it can be done. If a value does not fit its parameter, "
        'reply: "There is incorrect value (VALUE) for the parameters (NAME) in the conversation history." If required '
        'parameters are missing, reply: "Missing necessary parameters (NAME, NAME) for the api (FUNCTION)". If no '
        'function can do it, reply: "Due to the limitations of the function, I cannot solve this problem."'
    ),
}
_SPEAKER = re.compile(r"^(user|system): ", re.MULTILINE)


def read(folder: Path) -> Loaded:
    """Cases of data_en/data_CATEGORY.json, with their answers in possible_answer/."""
    cases: list[Case] = []
    issues: list[FileIssue] = []
    for category in (*NORMAL, *SPECIAL):
        path = folder / "data_en" / f"data_{category}.json"
        answers = ground_truths(path.parent / "possible_answer" / path.name, issues)
        for record in records(path, issues):
            try:
                cases.append(_case(record.value, category, answers))  # type: ignore[arg-type]
            except (KeyError, ValueError) as error:
                issues.append(FileIssue(str(path), record.line, f"{type(error).__name__}: {error}"))
    return Loaded(tuple(cases), issues=tuple(issues))


def _case(record: dict[str, Any], category: str, answers: dict[Any, Any]) -> Case:
    answer, functions = answers[record["id"]], record["function"]
    special = category in SPECIAL
    about = [RULES["special" if special else "normal"], record.get("time", "")]
    about.append(f"The user's profile: {record['profile']}" if "profile" in record else "")
    tools = own_tools([document(function) for function in functions], "acebench")
    task = Task(
        id=record["id"],
        prompt=(Message(role="system", content="\n".join(filter(None, about))), *_messages(record["question"])),
        tools=tuple(tool.name for tool in tools),
        gold_rounds=() if special else (_first_answer(answer),),
        answer=_reply(category, answer) if special else None,
        calls_only=True,
        kind=category,
    )
    # A conversation of several turns counts as a whole: normal_multi_turn_user_adjust_CONVERSATION_TURN.
    group = record["id"].rpartition("_")[0] if category in TURNS else ""
    return Case(task, tools, {"function": functions, "ground_truth": answer}, group)


def document(function: dict[str, Any]) -> dict[str, Any]:
    """A function as the catalogue reads it."""
    parameters = function.get("parameters", function.get("arguments")) or {}
    return {"name": function["name"], "description": function["description"], "parameters": _schema(parameters)}


def _schema(value: Any) -> Any:
    """The document's schema with the type words that are ACEBench's alone replaced."""
    if isinstance(value, list):
        return [_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    words = {"objectArray": "array"}
    kind = value.get("type")
    known = {"type": words.get(kind, kind)} if isinstance(kind, str) else {}
    return {key: _schema(item) for key, item in value.items()} | known


def _messages(question: str) -> list[Message]:
    """The flat text as messages; "system" is what it calls the assistant."""
    pieces = _SPEAKER.split(question)[1:]
    if not pieces:
        raise ValueError("the question names no speaker")
    texts = zip(pieces[::2], (text.strip() for text in pieces[1::2]), strict=True)
    return [Message(role="user", content=text) if who == "user" else said(text) for who, text in texts]


def _first_answer(answer: Any) -> tuple[ToolCall, ...]:
    first = answer[0] if isinstance(answer, list) else answer
    return tuple(ToolCall(name=re.sub(r"_\d+$", "", name), arguments=given) for name, given in first.items())


def _reply(category: str, answer: Any) -> str:
    if category == "special_irrelevant":
        return answer
    name, values = next(iter(answer.items()))
    if category == "special_incomplete":
        return f"Missing necessary parameters ({', '.join(values)}) for the api ({name})"
    return f"There is incorrect value ({', '.join(values)}) for the parameters ({name}) in the conversation history."


Problem = Callable[[Sequence[ToolCall], Case], str]


def own_problem(calls: Sequence[ToolCall], case: Case) -> str:
    """Why `calls` are none of the answers, "" where they are one, by the authors' rules."""
    gold: Any = case.gold
    problems = [calls_problem(gold["function"], calls, answer) for answer in _answers(case)]
    return "" if "" in problems else problems[0]


def _answers(case: Case) -> list[Any]:
    gold: Any = case.gold
    return gold["ground_truth"] if isinstance(gold["ground_truth"], list) else [gold["ground_truth"]]


def score(trajectory: Trajectory, case: Case) -> Score:
    """By the authors' rules; `strict` by our own, which compare all that the answer holds (see `acebench_match`)."""
    calls = predicted_calls(trajectory)
    if case.task.kind in SPECIAL:
        return _special(trajectory, case, calls)
    if not calls:
        return Score(right=0.0, why="unreadable call" if calls is None else "no call", values={"strict": 0.0})
    why = own_problem(calls, case)
    strict = any(same_calls(calls, answer) for answer in _answers(case))
    return Score(right=float(not why), why=why, values={"strict": float(strict)})


def _special(trajectory: Trajectory, case: Case, calls: Sequence[ToolCall] | None) -> Score:
    """The authors look for a phrase and for names; we also want no call and one reason alone, so that a reply that
    says everything is not right everywhere.
    """
    reply = trajectory.answer if trajectory.stop is StopReason.ANSWERED else None
    if calls or not reply:
        return Score(right=0.0, why="a call" if calls else "no reply")
    reasons = [kind for kind, phrase in PHRASES.items() for _ in range(reply.count(phrase))]
    if reasons != [case.task.kind]:
        return Score(right=0.0, why="several reasons" if case.task.kind in reasons else "not noticed")
    gold: Any = case.gold
    answer = gold["ground_truth"]
    missing = isinstance(answer, dict) and not all(_names(case.task.kind, *item, reply) for item in answer.items())
    return Score(right=float(not missing), why="not said what" if missing else "")


def _names(kind: str, name: str, values: Sequence[str], reply: str) -> bool:
    """Whether the reply names the function (where parameters are missing) and all values."""
    return (kind != "special_incomplete" or name in reply) and all(value in reply for value in values)


def totals(results: Sequence[CaseResult]) -> Totals:
    """The leaderboard's columns (evaluation_helper.generate_result_csv): categories count alike, a conversation is
    right where all its turns are. Its overall is 0.578 normal + 0.2676 special + 0.1545 agent; without the agent part
    it cannot be had, and `overall without agent` spreads the weights over the two.
    """
    score_of = {name: _category(name, found) for name, found in by_category(results).items()}
    normal, special = (average(score_of.get(name) for name in names) for names in (NORMAL, SPECIAL))
    overall = None if normal is None or special is None else (0.578 * normal + 0.2676 * special) / (0.578 + 0.2676)
    return {
        "atom": average(score_of.get(name) for name in ATOM),
        "single-turn": average(score_of.get(name) for name in NORMAL if "single_turn" in name),
        "multi-turn": average(score_of.get(name) for name in TURNS),
        "normal": normal,
        "special": special,
        "overall without agent": overall,
        "normal cases, strictly": value_mean(results, "strict"),
    }


def _category(name: str, results: Sequence[CaseResult]) -> float | None:
    if name not in TURNS:
        return mean(results)
    groups: dict[str, list[float]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result.score.right)
    return average(min(rights) for rights in groups.values())


def accepted_values(case: Case) -> list[dict[str, list[Any]]]:
    """Call by call, the accepted values of every parameter."""
    return [{name: [value] for name, value in call.arguments.items()} for call in case.task.gold_calls or ()]


ACEBENCH = Benchmark(
    name="acebench",
    folder="acebench",
    source=Source("https://github.com/ACEBench/ACEBench", "e6db74b735ead22c24f27367606a9408573b848f", "MIT"),
    categories=(*NORMAL, *SPECIAL),
    prompting="the dialogue as messages, the item's functions as documents, the form of refusals in words; one turn",
    read=read,
    score=score,
    totals=totals,
    names_in_replies=True,
)
