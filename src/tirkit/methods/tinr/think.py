"""Phase 2: worked examples with reasoning, from a teacher that is shown ten candidate tools.

    candidates = gold ∪ retrieved ∪ random (10)                     → the teacher's prompt holds their documents
    teacher writes several attempts with plain names                → rejection on tools, arguments and answer
    names in the reasoning become tool tokens, blocks become two-step, the candidate list leaves the prompt

An attempt whose reasoning mentions the list it was shown is dropped: the student never sees one (ours).
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from tirkit.rollout.group import rollout_groups
from tirkit.rollout.loop import RolloutSettings, searched_by, stable_seed
from tirkit.rollout.policy import Policy
from tirkit.scoring.match import Verdict, verdict
from tirkit.text.control import CONTROL_STRINGS
from tirkit.text.dialects import Dialect, print_document
from tirkit.text.index import ToolIndex
from tirkit.text.render import Renderer
from tirkit.text.schema import canonical
from tirkit.tools.retrieve import ToolRetriever
from tirkit.tools.runtime import Toolbox
from tirkit.types import Message, StopReason, Task, ToolSchema, Trajectory, Turn

T = TypeVar("T")

_THINGS = r"(?:tools|functions|documents)"
MENTIONS_LIST = re.compile(
    rf"""\bcandidates?\b
    | \b(?:these|those|given|available|provided|listed|following)\s+{_THINGS}\b
    | \b{_THINGS}\s+(?:(?:that|which)\s+)?(?:(?:are|were|I\s+(?:have|am|was))\s+)?
      (?:above|below|listed|provided|given|available)\b
    | \b(?:list|set|choice)\s+of\s+{_THINGS}\b
    | \b(?:in|from|on)\s+(?:the|my|this)\s+(?:list|prompt)\b""",
    re.IGNORECASE | re.VERBOSE,
)


class Rejection(StrEnum):
    """Why an attempt of the teacher's was not kept; the first that applies."""

    UNFINISHED = "unfinished"  # malformed, too long, endpoint failed, …
    WRONG_TOOLS = "wrong_tools"
    WRONG_ARGUMENTS = "wrong_arguments"
    WRONG_ANSWER = "wrong_answer"
    LIST_MENTIONED = "list_mentioned"
    MISSPELLED = "misspelled"  # its text spells a control string or a tool token, or the student's dialect refuses it
    DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Warmup:
    """Phase 2's yield: kept trajectories in the student's format, without ids, and the number of each rejection."""

    kept: tuple[Trajectory, ...]
    rejected: Mapping[Rejection, int]


@dataclass(frozen=True)
class ThinkSettings:
    """`candidates` tools are shown to the teacher, which writes `samples` attempts a task."""

    candidates: int = 10
    samples: int = 1
    rollout: RolloutSettings = field(default_factory=lambda: RolloutSettings(prompt="documents", max_new_tokens=1024))


def warm_up(
    tasks: Sequence[Task],
    teacher: Policy,
    renderer: Renderer,
    dialect: Dialect,
    tools: Mapping[str, ToolSchema],
    toolbox: Toolbox | None = None,
    settings: ThinkSettings | None = None,
    seed: int = 0,
) -> Warmup:
    """Let `teacher` attempt the tasks with candidates' documents in the prompt; keep what is right.

    renderer: the teacher's prompts (ids matter only to a teacher that reads them); it needs no tool tokens.
    dialect: the student's, in which kept attempts are written. Attempts at tasks that need no tool
    (`gold_rounds == ()`) are kept as plain replies.
    """
    settings = settings or ThinkSettings()
    retriever = ToolRetriever(tuple(tools.values()))
    shown = [_with_candidates(task, retriever, tools, settings.candidates, seed) for task in tasks]
    groups = rollout_groups(
        shown, settings.samples, teacher, renderer, TEACHER_DIALECT, tools, toolbox, settings.rollout, seed
    )
    kept: list[Trajectory] = []
    rejected: Counter[Rejection] = Counter()
    for task, group in zip(shown, groups, strict=True):
        seen: set[tuple[str, ...]] = set()
        for attempt in group.trajectories:
            result = convert(attempt, task, dialect, tools)
            if not isinstance(result, Rejection):
                texts = tuple(turn.text for turn in result.turns)
                if texts not in seen:
                    seen.add(texts)
                    kept.append(result)
                    continue
                result = Rejection.DUPLICATE
            rejected[result] += 1
    return Warmup(tuple(kept), dict(rejected))


TEACHER_DIALECT = Dialect(index=None)


def candidates(
    task: Task, retriever: ToolRetriever, tools: Mapping[str, ToolSchema], size: int, seed: int
) -> tuple[str, ...]:
    """gold ∪ retrieved ∪ random: all gold tools, then half of the rest retrieved, the others random; shuffled."""
    rng = random.Random(stable_seed(seed, "candidates", task.id))
    gold = list(dict.fromkeys(call.name for call in task.gold_calls or ()))
    similar = [name for name in retriever.top(searched_by(task), size) if name not in gold]
    chosen = gold + similar[: max(0, size - len(gold) + 1) // 2]
    others = [name for name in tools if name not in chosen]
    chosen += rng.sample(others, min(len(others), max(0, size - len(chosen))))
    rng.shuffle(chosen)
    return tuple(chosen)


def _with_candidates(
    task: Task, retriever: ToolRetriever, tools: Mapping[str, ToolSchema], size: int, seed: int
) -> Task:
    return task.model_copy(update={"tools": candidates(task, retriever, tools, size, seed)})


def convert(
    attempt: Trajectory, task: Task, dialect: Dialect, tools: Mapping[str, ToolSchema]
) -> Trajectory | Rejection:
    """The teacher's attempt in the student's dialect, or why it is rejected. `task.tools` are its candidates."""
    thoughts = [TEACHER_DIALECT.parse(turn.text).think or "" for turn in attempt.turns]
    if reason := _rejection(attempt, task, thoughts, dialect.index):
        return reason
    turns: list[Turn] = []
    for turn, thought in zip(attempt.turns, thoughts, strict=True):
        think = tokens_for_names(thought, task.tools, dialect.index) if dialect.index else thought
        turns += _student_turns(turn, think, dialect, tools)
    # Printing must be undone by parsing, or the student would learn from something it could not be read by.
    if any(dialect.parse(turn.text).problems for turn in turns):
        return Rejection.MISSPELLED
    return attempt.model_copy(update={"turns": tuple(turns), "prompt": task.prompt, "prompt_ids": ()})


def _rejection(attempt: Trajectory, task: Task, thoughts: Sequence[str], index: ToolIndex | None) -> Rejection | None:
    """Why the attempt is not kept; None where it is."""
    whole = (StopReason.ANSWERED, StopReason.CALLS_COMPLETE)
    if attempt.stop not in whole or any(turn.problems for turn in attempt.turns):
        return Rejection.UNFINISHED
    if task.gold_calls is not None:
        if Counter(call.name for call in attempt.calls) != Counter(call.name for call in task.gold_calls):
            return Rejection.WRONG_TOOLS
        strict = [Counter(canonical(call, "strict") for call in calls) for calls in (attempt.calls, task.gold_calls)]
        if strict[0] != strict[1]:
            return Rejection.WRONG_ARGUMENTS
    if verdict(attempt, task) is Verdict.WRONG:
        return Rejection.WRONG_ANSWER
    entries = (*CONTROL_STRINGS, *(index.tokens if index else ()))
    if any(entry in text for entry in entries for text in (*thoughts, attempt.answer or "")):
        return Rejection.MISSPELLED
    if any(MENTIONS_LIST.search(thought) for thought in thoughts):
        return Rejection.LIST_MENTIONED
    return None


def _student_turns(turn: Turn, think: str, dialect: Dialect, tools: Mapping[str, ToolSchema]) -> list[Turn]:
    """One turn of the teacher's as the student writes it: a round of calls becomes selection, documents, calls."""
    if not turn.calls:
        answer = turn.answer or ""
        return [Turn(text=dialect.print_answer(answer, think), answer=answer)]
    two_step = dialect.selects
    calls = turn.model_copy(
        update={
            "text": dialect.print_calls(turn.calls, "" if two_step else think),
            "ids": (),
            "logps": (),
            "reply_ids": (),
        }
    )
    if not two_step:
        return [calls]
    names = tuple(dict.fromkeys(call.name for call in turn.calls))
    documents = "\n".join(print_document(tools[name]) for name in names)
    reply = (Message(role="tool", content=documents),)
    return [Turn(text=dialect.print_selection(names, think), selected=names, reply=reply), calls]


def tokens_for_names(text: str, names: Iterable[str], index: ToolIndex) -> str:
    """`text` with every mention of a tool among `names` written as the index writes it: longest match, whole words.

    >>> from tirkit.text.index import build_index
    >>> index = build_index([ToolSchema(name="add"), ToolSchema(name="add two")])
    >>> tokens_for_names("add, then add two; additive", ["add", "add two"], index)
    '<<add>>, then <<add two>>; additive'
    """
    longest_first = sorted(set(names), key=lambda name: (-len(name), name))
    if not longest_first:
        return text
    mention = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
    return mention.sub(lambda match: index.surface(match.group()), text)


def replay_mix(main: Sequence[T], replay: Sequence[T], fraction: float, seed: int) -> list[T]:
    """`main` with so many of `replay` among it that they make up `fraction` of the result, shuffled.

    Drawn without replacement while there are enough; deterministic. fraction 0.05–0.1 holds memory in phase 2;
    0.4 of document-derived views carried unseen tools through SFT in our study.

    >>> sum(x == "r" for x in replay_mix("mmmmmmmmm", "r", 0.1, seed=0))
    1
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the replayed fraction must be in [0, 1), not {fraction}")
    rng = random.Random(stable_seed(seed, "replay"))
    wanted = round(len(main) * fraction / (1 - fraction)) if replay else 0
    mixed = list(main)
    while wanted > 0:
        mixed += rng.sample(list(replay), min(wanted, len(replay)))
        wanted -= len(replay)
    rng.shuffle(mixed)
    return mixed
