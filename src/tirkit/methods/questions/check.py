"""Is a question any good? Its tools, its arguments, its words, whether it is new, and a run where that is allowed."""

import contextlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from enum import StrEnum

from pydantic import JsonValue

from tirkit.methods.autotraj.pairs import ngrams, question_words
from tirkit.methods.questions.slots import Draft, Slot
from tirkit.text.control import CONTROL_STRINGS
from tirkit.text.schema import validate_arguments
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, Task, ToolCall, ToolResult

SIMILAR = 0.7  # share of all three-word sequences of two questions that both have: from here on one is too many
MAX_ANSWER = 200  # characters of a result that a model is asked to repeat
_PLAIN_WORD = re.compile(r"[a-z]+")


class Rejection(StrEnum):
    """Why a question is not kept."""

    UNREADABLE = "not a line of the form asked for"
    UNASKED = "a number that was not asked for, or twice"
    MISSING = "not written"
    EMPTY = "no question, or no reply to one that needs no tool"
    OTHER_TOOLS = "other tools than asked for"
    ARGUMENTS = "arguments that do not fit the schema"
    UNSAID = "an argument that the question does not say"
    NAMED = "the question names its tool"
    CONTROL = "a reply that spells a control string"
    DUPLICATE = "a duplicate or near duplicate"
    FAILED = "the calls fail when they are run"


class Asked:
    """The questions there are; says whether another one resembles any of them.

    That is: equal words, 13 words in a row that one of them has too, or `SIMILAR` of the three-word sequences.
    """

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._long: set[tuple[str, ...]] = set()
        self._having: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)  # three words → numbers of questions
        self._sizes: list[int] = []

    def add(self, task: Task) -> None:
        """Remember a question."""
        words = question_words(task)
        grams = set(ngrams(words, 3))
        self._texts.add(" ".join(words))
        self._long |= set(ngrams(words))
        for gram in grams:
            self._having[gram].append(len(self._sizes))
        self._sizes.append(len(grams))

    def resembles(self, task: Task) -> bool:
        """Whether the question is a duplicate, or nearly."""
        words = question_words(task)
        if " ".join(words) in self._texts or not self._long.isdisjoint(ngrams(words)):
            return True
        grams = set(ngrams(words, 3))
        shared = Counter(number for gram in grams for number in self._having.get(gram, ()))
        return any(n >= SIMILAR * (len(grams) + self._sizes[number] - n) for number, n in shared.items())


def make_task(
    slot: Slot, draft: Draft, task_id: str, asked: Asked, toolbox: PythonToolbox | None = None
) -> Task | Rejection:
    """The task, or the first reason why there is none.

    Where the toolbox may run the calls they are run, in two attempts: equal short results are the task's answer. Else
    the task is about its calls alone; so is one with made-up values, which a tool need not know. Without a toolbox all
    are, as a run of these tools executes nothing either.
    """
    if (reason := _reason(slot, draft)) is not None:
        return reason
    task = Task(
        id=task_id,
        prompt=(Message(role="user", content=draft.question.strip()),),
        gold_rounds=(draft.calls,) if draft.calls else (),
        answer=None if draft.calls else draft.reply.strip(),
        calls_only=bool(draft.calls) or toolbox is None,
        kind=f"{slot.shape}_{slot.difficulty}",
    )
    if asked.resembles(task):
        return Rejection.DUPLICATE
    if toolbox is None or not draft.calls or any(call.name not in toolbox.functions for call in draft.calls):
        return task
    results = [_results(toolbox, draft.calls) for _ in range(2)]
    if any(result.error for run in results for result in run):
        return task if draft.made_up else Rejection.FAILED
    answer = _answer(results)
    return task.model_copy(update={"answer": answer, "calls_only": answer is None})


def _results(toolbox: PythonToolbox, calls: Sequence[ToolCall]) -> list[ToolResult]:
    with contextlib.closing(toolbox.attempt()) as attempt:
        return [attempt.run(call) for call in calls]


def _answer(runs: Sequence[Sequence[ToolResult]]) -> str | None:
    """The results in one line; None where the runs differ, or where that is nothing to be repeated."""
    texts = ["; ".join(result.content for result in run) for run in runs]
    text = texts[0].strip()
    plain = "\n" not in text and len(text) <= MAX_ANSWER and not any(control in text for control in CONTROL_STRINGS)
    return text if text and plain and texts[0] == texts[1] else None


def _reason(slot: Slot, draft: Draft) -> Rejection | None:
    """What is wrong with a draft by itself."""
    if not draft.question.strip() or not (draft.calls or draft.reply.strip()):
        return Rejection.EMPTY
    if sorted(call.name for call in draft.calls) != sorted(slot.names):
        return Rejection.OTHER_TOOLS
    tools = {tool.name: tool for tool in slot.tools}
    if any(validate_arguments(tools[call.name], call.arguments) for call in draft.calls):
        return Rejection.ARGUMENTS
    if any(_names(draft.question, name) for name in slot.names):
        return Rejection.NAMED
    if slot.difficulty == "easy" and not all(_says(draft.question, call) for call in draft.calls):
        return Rejection.UNSAID
    if any(control in draft.reply for control in CONTROL_STRINGS):
        return Rejection.CONTROL
    return None


def _names(question: str, name: str) -> bool:
    """Whether the question spells an identifier; a name that is a plain word is just a word."""
    return not _PLAIN_WORD.fullmatch(name) and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", question) is not None


def _says(question: str, call: ToolCall) -> bool:
    """Whether every text and number of the arguments stands in the question, but for what cannot: true, false, null."""
    folded = question.casefold()
    return all(value.casefold() in folded for value in _values(call.arguments))


def _values(value: JsonValue) -> list[str]:
    if isinstance(value, dict | list):
        return [text for inner in (value.values() if isinstance(value, dict) else value) for text in _values(inner)]
    if isinstance(value, str):
        return [value.strip()]
    return [] if value is None or isinstance(value, bool) else [json.dumps(value)]
