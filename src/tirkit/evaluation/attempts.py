"""The page to read attempts on: each question with its gold, and what every arm made of it, token by token.

The page is one file that works offline: its cases lie in it as JSON that cannot leave its script element, and its
script (attempts.js) only ever writes them as text.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from markupsafe import Markup

from tirkit.evaluation.pages import render, script_json, shown
from tirkit.evaluation.tables import LEGEND
from tirkit.store import write_atomic
from tirkit.text.dialects import Dialect, print_json
from tirkit.text.masks import Kind
from tirkit.types import Message, Record, Task, ToolCall, Trajectory, Turn

PAGE = "attempts.html"
MAX_PAGE = 12_000_000  # characters of all cases on a page: a browser opens it at once

Verdict = Literal["right", "wrong", "unscored"]
Parts = tuple[tuple[str, str], ...]
"""(who speaks or what it is, text), in order."""
Spans = tuple[tuple[str, Kind], ...]


class Attempt(Record):
    """An arm's attempt as the page shows it. `why` says in few different words what is wrong: it is filtered by."""

    arm: str
    verdict: Verdict
    why: str = ""
    mode: str = ""
    stop: str = ""
    said: Parts = ()
    spans: Spans = ()


class Case(Record):
    """A question, its gold and the attempts at it, at most one an arm. `id` is unique on the page, and its anchor."""

    id: str
    kind: str = ""
    asked: Parts
    gold: Parts = ()
    attempts: tuple[Attempt, ...]


def write_attempts(folder: Path, title: str, cases: Sequence[Case]) -> Path:
    """Write attempts.html into `folder`; its path.

    Of the cases, the first are shown, as many as `MAX_PAGE` has room for; the page says how many that are.
    """
    arms = list(dict.fromkeys(attempt.arm for case in cases for attempt in case.attempts))
    texts = [script_json(case.model_dump(mode="json")) for case in cases]
    kept: list[str] = []
    room = MAX_PAGE
    for text in texts:
        room -= len(text)
        if room < 0:
            break
        kept.append(text)
    page = render(
        "attempts.html.jinja",
        title=title,
        legend=Markup(script_json(LEGEND)),
        arms=Markup(script_json(arms)),
        cases=Markup("[" + ",\n".join(kept) + "]"),
        num_shown=len(kept),
        num_cases=len(texts),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / PAGE, page)
    return folder / PAGE


def spoken(messages: Sequence[Message]) -> Parts:
    """Messages as parts."""
    return tuple((message.role, shown(message.content)) for message in messages)


def gold_parts(task: Task) -> Parts:
    """What would be right: the calls of each round, the answers."""
    rounds = task.gold_rounds
    parts = [("calls", "none")] if rounds == () else []
    for number, calls in enumerate(rounds or (), start=1):
        parts.append((f"calls, round {number}" if len(rounds or ()) > 1 else "calls", _calls(calls)))
    if task.answers:
        parts.append(("answer", shown(" | ".join(task.answers))))
    return tuple(parts)


def said_parts(trajectory: Trajectory) -> Parts:
    """An attempt as it was read, turn by turn: thinking, selected tools, calls, answer, and what was handed back."""
    return tuple(part for turn in trajectory.turns for part in _turn_parts(turn))


def text_spans(trajectory: Trajectory) -> Spans:
    """The texts of an attempt whose tokens are unknown, coloured like tokens."""
    spans: list[tuple[str, Kind]] = [(_lines(trajectory.prompt), "prompt")]
    for turn in trajectory.turns:
        spans.append((shown(turn.text), "trained"))
        spans.append((f"\n{_lines(turn.reply)}", "masked"))
    return tuple(span for span in spans if span[0].strip())


def _turn_parts(turn: Turn) -> Iterator[tuple[str, str]]:
    think = Dialect().parse(turn.text).think
    read = [
        ("thinks", think or ""),
        ("selects", "\n".join(turn.selected)),
        ("calls", _calls(turn.calls)),
        ("answers", turn.answer or ""),
    ]
    found = [(what, shown(text)) for what, text in read if text]
    # What could not be read as a whole is shown as it was written.
    yield from found if found and not turn.problems else [("writes", shown(turn.text))]
    yield from (("problem", shown(problem)) for problem in turn.problems)
    yield from spoken(turn.reply)


def _calls(calls: Sequence[ToolCall]) -> str:
    return shown("\n".join(f"{call.name} {print_json(call.arguments)}" for call in calls))


def _lines(messages: Sequence[Message]) -> str:
    return "".join(f"{role}: {text}\n" for role, text in spoken(messages))
