"""The tool loop: tasks → trajectories, one generation a turn, every attempt at its own pace.

One turn of an attempt: the policy writes; what it wrote is read by the dialect; then

    a selection        → the documents of exactly those tools are handed back in one tool message
    calls              → they run, their results are handed back in one tool message, one line a result
    an answer          → done
    an unknown tool    → one message that names it; the second time the attempt is over (abstained)
    anything else      → over (malformed)

Token-in, token-out: the ids a turn sees are prompt_ids + every earlier turn's ids + reply_ids, as they were; nothing
is decoded and encoded again. The loop raises for what the caller got wrong (no toolbox for tasks that execute their
calls, an unknown tool in a task's toolset); what the policy got wrong ends up in the trajectory.

Tools with state (`tools.state`) have one for each attempt: it begins as every other's does and ends with the attempt.

One event loop: a finished turn is read at once; documents are handed back at once; calls run on threads while the other
attempts are being written, so a slow tool delays its own attempt only. With `workers=0` calls run on the loop's own
thread: then all events come in an order that follows from the requests, and a run can be repeated bit for bit. With
threads it follows from time, so the company that a row is computed in does, and with it the last bits of log-probs.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tirkit.rollout.calls import Calls
from tirkit.rollout.policy import GenerateRequest, Generation, Policy, RolloutError, RolloutRequest
from tirkit.text.control import MODE_TAGS
from tirkit.text.dialects import UNKNOWN_TOOL, Dialect, ParsedTurn, print_document
from tirkit.text.render import Renderer
from tirkit.tools.retrieve import ToolRetriever
from tirkit.tools.runtime import Toolbox
from tirkit.types import Message, Mode, StopReason, Task, ToolCall, ToolResult, ToolSchema, Trajectory, Turn


@dataclass(frozen=True)
class RolloutSettings:
    """Limits of an attempt, and which documents stand in its prompt.

    `max_new_tokens` is per turn, `max_tokens` for the whole completion, replies included. `prompt`: "none" (tools are
    in the weights), "documents" (of the task's toolset, or of the whole catalogue), "retrieve" (the `k` of those that
    BM25 ranks first for the last user message). `workers` calls run at the same time, on threads; 0 is for tools that
    take microseconds: they run between two steps of the policy, in an order that can be repeated.
    """

    max_turns: int = 8
    max_calls: int = 8
    max_new_tokens: int = 256
    max_tokens: int = 4096
    prompt: Literal["none", "documents", "retrieve"] = "none"
    k: int = 5
    workers: int = 16


def rollout(
    requests: Sequence[RolloutRequest],
    policy: Policy,
    renderer: Renderer,
    dialect: Dialect,
    tools: Mapping[str, ToolSchema],
    toolbox: Toolbox | None = None,
    settings: RolloutSettings | None = None,
    watch: Callable[[Turn], None] | None = None,
) -> list[Trajectory]:
    """One trajectory a request, in their order.

    tools: the catalogue by name. toolbox: runs the calls; needed unless every task is `calls_only`. watch: told of each
    turn when it is written, before its calls run.
    Raises RolloutError where a task executes calls and there is no toolbox, or names a tool outside the catalogue.
    """
    settings = settings or RolloutSettings()
    for task in (request.task for request in requests):
        if toolbox is None and not task.calls_only:
            raise RolloutError(f"task {task.id!r} executes its calls: pass a toolbox, or mark the task calls_only")
        if missing := [name for name in task.tools if name not in tools]:
            raise RolloutError(f"task {task.id!r} names tools that the catalogue lacks: {missing[:5]}")
    loop = _Loop(renderer, dialect, tools, settings)
    attempts = loop.start(requests)
    with policy.session() as session, Calls(toolbox, settings.workers, session.wake) as calls:
        writing = set(range(len(attempts)))
        for key in sorted(writing):
            session.submit(key, loop.ask(attempts[key]))

        def go_on(key: int) -> None:
            attempt = attempts[key]
            if attempt.stop is not None:
                session.forget(key)
                calls.end(key)
            elif attempt.waiting:
                calls.start(key, attempt.waiting)
            else:
                session.submit(key, loop.ask(attempt))
                writing.add(key)

        while writing or calls.running:
            for key, generation in session.advance() if writing else ():
                writing.remove(key)
                loop.read(attempts[key], generation)
                if watch and generation.finish != "failed":
                    watch(attempts[key].turns[-1])
                go_on(key)
            for key, results in calls.finished(wait=not writing):
                loop.hand_back(attempts[key], results)
                go_on(key)
    return [attempt.trajectory(policy.name) for attempt in attempts]


@dataclass
class _Attempt:
    """An attempt in progress. `selected` is None outside a round, else the tools whose documents were handed back."""

    request: RolloutRequest
    documents: tuple[ToolSchema, ...]
    prompt_ids: tuple[int, ...]
    turns: list[Turn] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    selected: tuple[str, ...] | None = None
    retried: bool = False
    mode: Mode | None = None
    stop: StopReason | None = None
    waiting: tuple[ToolCall, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of the completion so far."""
        return len(self.ids) - len(self.prompt_ids)

    def trajectory(self, policy: str) -> Trajectory:
        """The finished record."""
        assert self.stop is not None
        task, request = self.request.task, self.request
        return Trajectory(
            task_id=task.id,
            prompt=task.prompt,
            prompt_ids=self.prompt_ids,
            turns=tuple(self.turns),
            stop=self.stop,
            mode=self.mode,
            seed=request.seed,
            copy_index=request.copy_index,
            policy=policy,
        )


@dataclass(frozen=True)
class _Loop:
    renderer: Renderer
    dialect: Dialect
    tools: Mapping[str, ToolSchema]
    settings: RolloutSettings

    def start(self, requests: Sequence[RolloutRequest]) -> list[_Attempt]:
        """Attempts with their prompts; copies of one task share the work."""
        prompts = Prompts(self.tools, self.settings)
        rendered: dict[int, tuple[tuple[ToolSchema, ...], tuple[int, ...]]] = {}
        attempts: list[_Attempt] = []
        for request in requests:
            task = request.task
            if id(task) not in rendered:
                documents = prompts.documents(task)
                rendered[id(task)] = documents, tuple(self.renderer.prompt_ids(task.prompt, documents))
            documents, prompt_ids = rendered[id(task)]
            attempts.append(_Attempt(request, documents, prompt_ids, ids=list(prompt_ids), messages=list(task.prompt)))
        return attempts

    def ask(self, attempt: _Attempt) -> GenerateRequest:
        """The request for the attempt's next turn; its seed depends on nothing but the attempt's and the turn."""
        budget = min(self.settings.max_new_tokens, self.settings.max_tokens - attempt.num_tokens)
        return GenerateRequest(
            attempt.request.task,
            tuple(attempt.turns),
            tuple(attempt.messages),
            tuple(attempt.ids),
            stable_seed(attempt.request.seed, len(attempt.turns)),
            budget,
            attempt.documents,
            () if attempt.turns else self._tag(attempt.request.mode),
        )

    def _tag(self, mode: Mode | None) -> tuple[int, ...]:
        """The ids of a mode's tag."""
        return tuple(self.renderer.completion_ids(MODE_TAGS[mode])[:-1]) if mode else ()

    def read(self, attempt: _Attempt, generation: Generation) -> None:
        """Add the turn that was written, then go on or stop as it says."""
        if generation.finish == "failed":
            attempt.stop = StopReason.POLICY_FAILED
            return
        parsed = self.dialect.parse(generation.text)
        unknown, problems = self._problems(attempt, generation.text, parsed)
        first, request = not attempt.turns, attempt.request
        turn = Turn(
            text=generation.text,
            ids=generation.ids,
            logps=generation.logps,
            selected=parsed.selected,
            calls=parsed.calls,
            answer=parsed.answer,
            problems=(*unknown, *problems),
            given=len(self._tag(request.mode)) if first and not request.trains_mode else 0,
        )
        attempt.turns.append(turn)
        attempt.ids.extend(generation.ids)
        attempt.messages.append(Message(role="assistant", content=generation.text))
        attempt.mode = attempt.mode or parsed.mode
        attempt.stop = self._stop(attempt, generation, turn, problems, unknown)
        if attempt.stop is not None:
            return
        if unknown:
            attempt.retried = True
            self._reply(attempt, "\n".join(unknown) + "\nUse only tools that you know.")
        elif turn.calls:
            attempt.waiting = turn.calls
        else:
            attempt.selected = turn.selected
            self._reply(attempt, "\n".join(print_document(self.tools[name]) for name in turn.selected))

    def _problems(self, attempt: _Attempt, text: str, parsed: ParsedTurn) -> tuple[list[str], list[str]]:
        """(problems with unknown tools, all others), what only the course of the attempt shows included."""
        names = dict.fromkeys((*parsed.selected, *(call.name for call in parsed.calls)))
        unknown = [problem for problem in parsed.problems if UNKNOWN_TOOL.match(problem)]
        unknown += [f"unknown tool {name!r}" for name in names if name not in self.tools]
        problems = [problem for problem in parsed.problems if not UNKNOWN_TOOL.match(problem)]
        if parsed.selected and attempt.selected is not None:
            problems.append("a second selection in one round")
        problems += self._mode_problems(attempt, text, parsed)
        if self.dialect.selects and parsed.calls:
            chosen = attempt.selected or ()
            called = dict.fromkeys(call.name for call in parsed.calls if call.name in self.tools)
            problems += [f"{name!r} was called but not selected in this round" for name in called if name not in chosen]
        return unknown, problems

    def _mode_problems(self, attempt: _Attempt, text: str, parsed: ParsedTurn) -> list[str]:
        """With modes, an attempt begins with its tag, has no other, and one without thinking has none in any turn."""
        if not self.dialect.modes:
            return []
        if not attempt.turns:
            return [] if parsed.mode and not text[0].isspace() else ["no mode tag at the start"]
        late = ["a mode tag after the first turn"] if parsed.mode else []
        thinks = attempt.mode == "no_think" and parsed.think is not None
        return late + (["thinking in an attempt without"] if thinks else [])

    def _stop(
        self, attempt: _Attempt, generation: Generation, turn: Turn, problems: list[str], unknown: list[str]
    ) -> StopReason | None:
        """Why the attempt ends with this turn; None where it goes on."""
        num_calls = sum(len(turn.calls) for turn in attempt.turns)
        ends: tuple[tuple[bool, StopReason], ...] = (
            (generation.finish == "length", StopReason.MAX_TOKENS),
            (bool(problems), StopReason.MALFORMED),
            (bool(unknown) and attempt.retried, StopReason.ABSTAINED),
            (bool(turn.calls) and not unknown and attempt.request.task.calls_only, StopReason.CALLS_COMPLETE),
            (turn.answer is not None and not unknown, StopReason.ANSWERED),
            (num_calls > self.settings.max_calls, StopReason.MAX_CALLS),
            (len(attempt.turns) >= self.settings.max_turns, StopReason.MAX_TURNS),
        )
        return next((reason for holds, reason in ends if holds), None)

    def hand_back(self, attempt: _Attempt, results: tuple[ToolResult, ...]) -> None:
        """Hand the results of the calls it waits for back."""
        attempt.waiting, attempt.selected = (), None
        self._reply(attempt, "\n".join(result.content for result in results), results)

    def _reply(self, attempt: _Attempt, content: str, results: tuple[ToolResult, ...] = ()) -> None:
        """Hand `content` back; an attempt it leaves no token to go on with ends before it."""
        message = Message(role="tool", content=content)
        ids = tuple(self.renderer.reply_ids((message,)))
        if attempt.num_tokens + len(ids) >= self.settings.max_tokens:
            attempt.stop = StopReason.MAX_TOKENS
            attempt.turns[-1] = attempt.turns[-1].model_copy(update={"results": results})
            return
        attempt.turns[-1] = attempt.turns[-1].model_copy(
            update={"results": results, "reply": (message,), "reply_ids": ids}
        )
        attempt.ids.extend(ids)
        attempt.messages.append(message)


class Prompts:
    """Chooses the documents that stand in a task's prompt."""

    def __init__(self, tools: Mapping[str, ToolSchema], settings: RolloutSettings):
        self.tools, self.settings = tools, settings
        self._retrievers: dict[tuple[str, ...], ToolRetriever] = {}

    def documents(self, task: Task) -> tuple[ToolSchema, ...]:
        """The documents for `task`, by `settings.prompt`."""
        if self.settings.prompt == "none":
            return ()
        toolset = tuple(self.tools[name] for name in task.tools) or tuple(self.tools.values())
        if self.settings.prompt == "documents":
            return toolset
        if task.tools not in self._retrievers:
            self._retrievers[task.tools] = ToolRetriever(toolset)
        names = self._retrievers[task.tools].top(searched_by(task), self.settings.k)
        return tuple(self.tools[name] for name in names)


def searched_by(task: Task) -> str:
    """What documents are searched by for `task`: its `query`, else the last user message."""
    return task.query or last_user(task.prompt)


def last_user(messages: Iterable[Message]) -> str:
    """The last user message's text; "" where there is none."""
    return next((message.content for message in reversed(tuple(messages)) if message.role == "user"), "")


def stable_seed(*parts: object) -> int:
    """A seed in [0, 2^63) that depends on the parts alone, the same on every machine and in every process.

    >>> stable_seed(0, "task", 3) == stable_seed(0, "task", 3) != stable_seed(0, "task", 4)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
