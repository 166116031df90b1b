"""What a policy is: something that continues conversations. Plus the policy that plays a script.

A request carries the same conversation three ways, so that every kind of policy finds what it needs: token `ids` (a
model), `messages` and `tools` (an endpoint), `task` and `turns` (a script). Only a script may look at a task's gold.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from tirkit.text.dialects import Dialect
from tirkit.text.mode import split_mode
from tirkit.text.render import Renderer
from tirkit.types import Message, Mode, Task, ToolSchema, Trajectory, Turn, UserError

Script = Callable[[Task, Sequence[Turn]], str]


class RolloutError(UserError):
    """The rollout cannot be done as asked for; the message says what to change."""


@dataclass(frozen=True)
class RolloutRequest:
    """One attempt to make at `task`. Everything random in it follows from `seed`: equal seeds give equal attempts.

    `mode` forces one by its tag at the start; None leaves it to the policy. With `trains_mode` the forced tag counts as
    the policy's own: it has its log-probability and is trained; else it is given, and never trained.
    """

    task: Task
    copy_index: int = 0
    seed: int = 0
    mode: Mode | None = None
    trains_mode: bool = False


RolloutFn = Callable[[Sequence[RolloutRequest]], list[Trajectory]]
"""Attempts what it is asked, in order: the tool loop with its policy, or anything in its place."""


@dataclass(frozen=True)
class GenerateRequest:
    """One turn to write: `ids` is all of the conversation so far, the beginning of the assistant's turn included.

    `messages` is the same conversation as messages; `tools` are the documents that stand in its prompt. The turn begins
    with `begin`, whatever the policy would write; a policy that cannot raises RolloutError. `temperature` takes the
    place of a model's own; other policies do not look at it.
    """

    task: Task
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    ids: tuple[int, ...]
    seed: int
    max_new_tokens: int
    tools: tuple[ToolSchema, ...] = ()
    begin: tuple[int, ...] = ()
    temperature: float | None = None


@dataclass(frozen=True)
class Generation:
    """What a policy wrote. `ids` ends with the end-of-turn token iff `finish` is "stop"; `text` leaves it out.

    `logps` is log p of each of `ids` under the policy at its sampling temperature, empty where unknown. `failed` says
    that the policy could not be asked at all (an endpoint that stays silent).
    """

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    text: str
    finish: Literal["stop", "length", "failed"]


class Session(ABC):
    """Turns being written. Any number are submitted, under keys of the caller's; they come back as they finish.

    A key stands for one conversation: its next turn is submitted under the same key, so that a policy can keep what it
    knows of it. A context manager; what it holds ends with it, and so must not outlive a change of the weights.
    """

    @abstractmethod
    def submit(self, key: int, request: GenerateRequest) -> None:
        """Ask for the next turn of conversation `key`; not while an earlier one is being written."""

    @abstractmethod
    def advance(self) -> list[tuple[int, Generation]]:
        """One bounded piece of work; the turns that it finished.

        Blocks only while there is nothing to do but to wait for others, and no longer than until `wake`.
        """

    def written(self) -> Sequence[tuple[int, Sequence[int]]]:
        """The ids so far of turns being written, by key; nothing where a policy knows whole turns only."""
        return ()

    def forget(self, key: int) -> None:  # noqa: B027 (most have nothing to do)
        """Conversation `key` has ended. A turn being written for it is given up, by policies that can: the others still
        give it.
        """

    def wake(self) -> None:  # noqa: B027
        """End a waiting `advance`; may be called from any thread."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027
        pass


class Policy(ABC):
    """Writes turns. What it writes for a request does not depend on the requests beside it."""

    name: str

    @abstractmethod
    def session(self) -> Session:
        """A new session, with nothing submitted."""

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """One generation a request, same order; requests of like length are submitted together."""
        done: dict[int, Generation] = {}
        with self.session() as session:
            for key in sorted(range(len(requests)), key=lambda i: len(requests[i].ids)):
                session.submit(key, requests[key])
            while len(done) < len(requests):
                for key, generation in session.advance():
                    session.forget(key)
                    done[key] = generation
        return [done[key] for key in range(len(requests))]


class ScriptedPolicy(Policy):
    """Plays `script(task, turns so far) -> text of the next turn`. The renderer gives ids; log-probs are unknown.

    A mode that is forced takes the place of the script's. A turn is cut off at its request's `max_new_tokens`.
    """

    def __init__(self, script: Script, renderer: Renderer, name: str = "scripted"):
        self.script, self.renderer, self.name = script, renderer, name

    def session(self) -> Session:
        """Everything submitted is written by the next `advance`."""
        return _ScriptedSession(self)

    def write(self, request: GenerateRequest) -> Generation:
        """The script's next turn."""
        text = self.script(request.task, request.turns)
        begin = self.renderer.decode_all(request.begin)
        if not text.startswith(begin):
            text = begin + split_mode(text)[1]
        return written(self.renderer, text, request.max_new_tokens)


class _ScriptedSession(Session):
    def __init__(self, policy: ScriptedPolicy):
        self._policy = policy
        self._submitted: list[tuple[int, GenerateRequest]] = []

    def submit(self, key: int, request: GenerateRequest) -> None:
        self._submitted.append((key, request))

    def advance(self) -> list[tuple[int, Generation]]:
        submitted, self._submitted = self._submitted, []
        return [(key, self._policy.write(request)) for key, request in submitted]


def written(renderer: Renderer, text: str, max_new_tokens: int) -> Generation:
    """The generation of a policy that writes text: tokenised as the assistant's own words, cut off where too long."""
    ids = tuple(renderer.completion_ids(text))
    if len(ids) <= max_new_tokens:
        return Generation(ids, (), text, "stop")
    ids = ids[:max_new_tokens]
    return Generation(ids, (), renderer.decode(ids), "length")


def oracle(dialect: Dialect, reply: str = "Done.") -> Script:
    """The script that plays a task's gold: each round's selection and calls, then its answer, with its thoughts.

    A round's thought precedes its first block. A task whose answer is not known is closed with `reply`.
    """
    return functools.partial(_play_gold, dialect, reply)


def _play_gold(dialect: Dialect, reply: str, task: Task, turns: Sequence[Turn]) -> str:
    rounds = task.gold_rounds or ()
    done = sum(bool(turn.calls) for turn in turns)
    think = task.thoughts[done] if done < len(task.thoughts) else ""
    if done == len(rounds):
        return dialect.print_answer(task.answer or reply, think)
    if not dialect.selects:
        return dialect.print_calls(rounds[done], think)
    if turns and turns[-1].selected:
        return dialect.print_calls(rounds[done])
    return dialect.print_selection(tuple(dict.fromkeys(call.name for call in rounds[done])), think)
