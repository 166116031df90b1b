"""OpenAI's chat completions over any policy, with tools; `tirkit.serving.server` puts them on HTTP.

Every served model has two names. `NAME` speaks the API: tools and results go in and tool_calls with plain names come
out, also where the model writes tool tokens; its selections are answered here, with the documents, and never seen.
`NAME:text` says what the model says, in its dialect, and takes it back as it was: for clients that read the dialect
themselves, such as `rollout.endpoint.EndpointPolicy`.

A whole answer is what its stream adds up to: there is one way to write it.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import aclosing
from dataclasses import dataclass, field

from pydantic import JsonValue

from tirkit.rollout.loop import stable_seed
from tirkit.rollout.policy import GenerateRequest, Generation, Policy
from tirkit.serving.api import ApiError, ChatRequest, Choice, Delta, Envelope, delta_bodies
from tirkit.serving.batcher import Batcher
from tirkit.serving.conversation import Conversation, converse, documents, plain_messages, tool_messages
from tirkit.serving.demand import Demand, make_demand, outcome
from tirkit.serving.reader import PlainReader, Reader
from tirkit.text.dialects import Dialect
from tirkit.text.render import Renderer, TextStream
from tirkit.types import Task, ToolSchema, Turn

TEXT = ":text"
MOST_TOKENS = 1 << 17  # of prompt and completion, where a model says nothing of its context

Tell = Callable[[int, Delta], None]


def _any_task(conversation: Conversation) -> Task:
    """A task that holds nothing but the conversation's prompt: a model needs no more."""
    return Task(id="request", prompt=conversation.prompt)


@dataclass(frozen=True)
class Served:
    """What is served. `tools` are those the dialect's index knows, by name; none where documents come with a request.

    task: finds a conversation's task, for policies that look at one. max_tokens: written a turn where the request does
    not say; temperature likewise. max_context: tokens of prompt and completion together. max_selections: of a round,
    hidden ones.
    """

    name: str
    policy: Policy
    renderer: Renderer
    dialect: Dialect
    tools: Mapping[str, ToolSchema] = field(default_factory=dict)
    task: Callable[[Conversation], Task] = _any_task
    max_tokens: int = 512
    temperature: float = 1.0
    max_context: int = MOST_TOKENS
    max_selections: int = 2


@dataclass(frozen=True)
class Job:
    """A request that can be answered. `budget`: tokens that a choice may have, hidden turns included."""

    request: ChatRequest
    as_text: bool
    conversation: Conversation
    demand: Demand
    task: Task
    budget: int
    temperature: float
    seed: int

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens read before the first is written."""
        return len(self.conversation.ids)

    @property
    def listens(self) -> bool:
        """Whether the turns are read while they are written, for the client or to end them early."""
        return bool(self.request.stream or self.request.stops or self.demand.must)

    def choices(self) -> list[Choice]:
        """One a requested answer, with nothing written."""
        return [Choice() for _ in range(self.request.n or 1)]


@dataclass(frozen=True)
class _Piece:
    """Text that was written; the turn's last piece has all of it."""

    text: str = ""
    num_tokens: int = 0
    whole: Generation | None = None


class Chat:
    """Answers chat completions; `close` ends its thread. max_waiting: answers to all clients, written or waiting."""

    def __init__(self, served: Served, max_waiting: int = 256) -> None:
        self.served, self.max_waiting = served, max_waiting
        self.num_answers = 0  # being written or waiting; what was accepted is written to its end
        self.batcher = Batcher(served.policy)

    def close(self) -> None:
        """Cancel what is being written."""
        self.batcher.close()

    def prepare(self, request: ChatRequest) -> Job:
        """What is to be written; may be called from any thread. ApiError where the request cannot be answered."""
        served = self.served
        if request.model not in (served.name, served.name + TEXT):
            names = f"{served.name!r} and {served.name + TEXT!r}"
            raise ApiError(
                404, f"the model {request.model!r} is not served here; {names} are", "model_not_found", "model"
            )
        if (request.n or 1) > self.max_waiting:
            raise ApiError(400, f"n: this server writes no more than {self.max_waiting} answers at a time", param="n")
        as_text = request.model.endswith(TEXT)
        demand = make_demand(request, as_text, served.dialect, served.tools)
        if as_text:
            parts = plain_messages(request.messages)
        else:
            parts = tool_messages(request.messages, served.dialect, served.tools)
        conversation = converse(parts, demand.documents, served.renderer, served.dialect)
        task = served.task(conversation)
        if demand.selects:
            turn = Turn(text=demand.opening(conversation), selected=demand.selects)
            handed_back = [documents(demand.selects, served.tools)]
            conversation = conversation.followed(served.renderer, turn, handed_back)
        # Equal seeds give equal answers; without one they differ.
        seed = secrets.randbits(62) if request.seed is None else request.seed
        temperature = served.temperature if request.temperature is None else request.temperature
        budget = self._budget(request, len(conversation.ids))
        return Job(request, as_text, conversation, demand, task, budget, temperature, seed)

    def _budget(self, request: ChatRequest, num_prompt_tokens: int) -> int:
        """Tokens that may be written."""
        asked = request.max_completion_tokens or request.max_tokens
        room = self.served.max_context - num_prompt_tokens
        if room < (asked or 1):
            wanted = f"{num_prompt_tokens} tokens of prompt and {asked or 1} to write"
            raise ApiError(
                400, f"{wanted} are more than the {self.served.max_context} of this model", "context_length_exceeded"
            )
        return asked or min(self.served.max_tokens, room)

    async def complete(self, job: Job) -> dict[str, JsonValue]:
        """The whole completion."""
        choices = job.choices()
        await self._write(job, choices, lambda *_: None)
        return Envelope(job.request.model).completion(choices, job.num_prompt_tokens)

    async def stream(self, job: Job) -> AsyncGenerator[dict[str, JsonValue], None]:
        """The completion in chunks. Close it to give up what is being written."""
        envelope, choices = Envelope(job.request.model), job.choices()
        told: asyncio.Queue[tuple[int, Delta] | None] = asyncio.Queue()
        task = asyncio.create_task(self._write(job, choices, lambda *delta: told.put_nowait(delta)))
        task.add_done_callback(lambda _: told.put_nowait(None))
        begun: set[int] = set()
        try:
            while (item := await told.get()) is not None:
                index, delta = item
                if index not in begun:
                    begun.add(index)
                    yield envelope.chunk(index, {"role": "assistant", "content": ""})
                for said in delta_bodies(delta):
                    yield envelope.chunk(index, said)
                if delta.finish:
                    yield envelope.chunk(index, {}, delta.finish)
            await task
        finally:
            task.cancel()
        if job.request.stream_options and job.request.stream_options.include_usage:
            yield envelope.usage_chunk(choices, job.num_prompt_tokens)

    async def _write(self, job: Job, choices: Sequence[Choice], tell: Tell) -> None:
        """Write all choices; each is told of once its first turn is begun, and then as it grows."""
        if self.num_answers + len(choices) > self.max_waiting:
            raise ApiError(429, "too many requests are waiting; ask again later", "overloaded")
        self.num_answers += len(choices)
        try:
            async with asyncio.TaskGroup() as group:
                for index, choice in enumerate(choices):
                    group.create_task(self._write_choice(job, index, choice, tell))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self.num_answers -= len(choices)

    async def _write_choice(self, job: Job, index: int, choice: Choice, tell: Tell) -> None:
        """One answer; selections in it are answered with their documents until it calls or replies."""
        served, conversation = self.served, job.conversation
        reader = (PlainReader if job.as_text else Reader)(served.dialect, job.request.stops)
        most, room = served.max_selections, job.budget

        def grow(delta: Delta) -> None:
            choice.add(delta)
            tell(index, delta)

        for selection in range(most + 1):
            request = self._request(job, conversation, stable_seed(job.seed, index), selection, room)
            whole = None
            async with aclosing(self._pieces(request, job.listens)) as pieces:
                async for piece in pieces:
                    choice.num_tokens += piece.num_tokens
                    whole = piece.whole
                    grow(reader.feed(piece.text))
                    # Behind a call that was demanded nothing is wanted.
                    if reader.stopped or (job.demand.must and reader.called):
                        break
            delta, acts = reader.end_turn()
            grow(delta)
            if reader.stopped:
                return grow(Delta(finish="stop"))
            full = bool(acts.selected) and choice.num_tokens >= job.budget
            cut = full or (whole is not None and whole.finish == "length")
            if whole is None or cut or acts.problem or acts.calls or not acts.selected or selection == most:
                grow(reader.finish())
                return grow(outcome(job.demand, acts, cut))
            turn = Turn(text=whole.text, ids=whole.ids, selected=acts.selected)
            conversation = conversation.followed(served.renderer, turn, [documents(acts.selected, served.tools)])
            # The documents take room too.
            room = min(job.budget - choice.num_tokens, served.max_context - len(conversation.ids))
            if room < 1:
                grow(reader.finish())
                return grow(Delta(finish="length"))
        raise AssertionError("the last selection is returned")

    def _request(self, job: Job, conversation: Conversation, seed: int, turn: int, room: int) -> GenerateRequest:
        begin = job.demand.begin(conversation, turn)
        return GenerateRequest(
            job.task,
            conversation.turns,
            conversation.messages,
            conversation.ids,
            stable_seed(seed, turn),
            room,
            conversation.tools,
            tuple(self.served.renderer.completion_ids(begin)[:-1]) if begin else (),
            job.temperature,
        )

    async def _pieces(self, request: GenerateRequest, listens: bool) -> AsyncGenerator[_Piece, None]:
        """The next turn: an empty piece when it is accepted, then as it is written if `listens`, else all at once.

        Close it to give the turn up. ApiError where there is none.
        """
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Sequence[int] | Future[Generation]] = asyncio.Queue()

        def put(item: Sequence[int] | Future[Generation]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(told.put_nowait, item)

        future = self.batcher.submit(request, put if listens else None)
        future.add_done_callback(put)
        text, num_tokens = TextStream(self.served.renderer), 0
        try:
            yield _Piece()
            while not isinstance(item := await told.get(), Future):
                num_tokens += len(item)
                yield _Piece(text.feed(item), len(item))
            whole = self._result(item)
            rest = whole.ids[num_tokens:]
            end = whole.text
            if num_tokens:
                written = rest[:-1] if whole.finish == "stop" else rest
                end = text.feed(written) + text.finish()
            yield _Piece(end, len(rest), whole)
        finally:
            future.cancel()

    def _result(self, future: Future[Generation]) -> Generation:
        try:
            generation = future.result()
        except CancelledError:
            raise ApiError(503, "the server is being shut down", "shut_down") from None
        if generation.finish == "failed":
            raise ApiError(502, f"{self.served.name} could not be asked", "policy_failed")
        return generation
