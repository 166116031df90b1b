"""Any OpenAI-compatible endpoint as a policy (a teacher, usually).

The documents in the prompt and the dialect's format travel as text in the system message, not as the API's `tools`:
what comes back is then text in the dialect, read like every other policy's. Tool turns travel as user messages, since
the API accepts role "tool" only in answer to its own tool calls.
"""

import asyncio
import heapq
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai
from openai import AsyncOpenAI

from tirkit.rollout.policy import GenerateRequest, Generation, Policy, RolloutError, Session, written
from tirkit.text.control import THINK_CLOSE, THINK_OPEN
from tirkit.text.dialects import print_document
from tirkit.text.render import Renderer

logger = logging.getLogger(__name__)

MAX_WAIT_S = 300.0


class UnreadableAnswerError(Exception):
    """The endpoint answered "200 OK" with something that is no chat completion."""


TRANSIENT = (
    openai.APIConnectionError,  # timeouts included
    openai.RateLimitError,
    openai.InternalServerError,
    UnreadableAnswerError,
)


@dataclass(frozen=True)
class EndpointSettings:
    """How an endpoint is asked. `instructions` opens the system message: the dialect's format in words, examples.

    `max_concurrent` requests are in flight at once; one that fails is asked again up to `retries` times, after
    `backoff_s`, 2 · `backoff_s`, 4 · … seconds, or as many as the endpoint's Retry-After says, if that is longer.
    """

    model: str
    instructions: str = ""
    temperature: float = 1.0
    max_concurrent: int = 8
    retries: int = 4
    backoff_s: float = 1.0
    timeout_s: float = 120.0


class EndpointPolicy(Policy):
    """Asks an endpoint. `num_failures` counts generations that no retry got; they stop their attempt as policy_failed.

    connect: makes the client, e.g. `functools.partial(AsyncOpenAI, base_url=…, api_key=…)`; called for every session,
    since an HTTP connection belongs to the event loop it was opened in.
    """

    def __init__(self, connect: Callable[[], AsyncOpenAI], renderer: Renderer, settings: EndpointSettings):
        self.connect, self.renderer, self.settings = connect, renderer, settings
        self.name = settings.model
        self.num_failures = 0

    def session(self) -> Session:
        """A session with connections of its own. Must not be used inside a running event loop.

        `advance` raises RolloutError where the endpoint says that asking is no use: wrong key, wrong model, wrong
        address.
        """
        return _EndpointSession(self)

    async def ask(self, client: AsyncOpenAI, request: GenerateRequest) -> Generation:
        """One generation; "failed" after the last retry, or at once where asking again cannot help."""
        for attempt in range(self.settings.retries + 1):
            wait_s = self.settings.backoff_s * 2**attempt
            try:
                return await self._ask(client, request)
            except TRANSIENT as error:
                logger.warning("%s: try %d failed: %s", self.name, attempt + 1, error)
                wait_s = max(wait_s, _retry_after_s(error))
            except openai.BadRequestError as error:
                # This conversation is refused (too long, filtered); others may pass.
                logger.warning("%s: task %r refused: %s", self.name, request.task.id, error)
                break
            except openai.APIStatusError as error:
                raise RolloutError(f"endpoint {client.base_url} refused model {self.name!r}: {error}") from error
            if attempt < self.settings.retries:
                await asyncio.sleep(wait_s)
        self.num_failures += 1
        return Generation((), (), "", "failed")

    async def _ask(self, client: AsyncOpenAI, request: GenerateRequest) -> Generation:
        messages: Any = chat_messages(request, self.settings.instructions)
        try:
            completion = await client.chat.completions.create(
                model=self.settings.model,
                messages=messages,
                temperature=self.settings.temperature,
                max_tokens=request.max_new_tokens,
                seed=request.seed % 2**31,
                timeout=self.settings.timeout_s,
            )
            choice = completion.choices[0]
        except (ValueError, AttributeError, LookupError, TypeError) as error:  # no JSON, or JSON of another shape
            raise UnreadableAnswerError(f"no chat completion in the answer ({error!r})") from error
        text = (choice.message.content or "").strip()
        # Reasoning parsers of vLLM and others take the thinking out of the content; the dialect wants it in.
        if reasoning := getattr(choice.message, "reasoning_content", None):
            text = f"{THINK_OPEN}\n{reasoning.strip()}\n{THINK_CLOSE}\n{text}"
        if choice.finish_reason != "length":
            return written(self.renderer, text, max_new_tokens=10**9)
        ids = tuple(self.renderer.completion_ids(text))[:-1]  # cut off: no end of turn was written
        return Generation(ids, (), text, "length")


def _retry_after_s(error: Exception) -> float:
    """The seconds that the endpoint asks to wait; 0 where it says nothing, or a date."""
    headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    try:
        return min(float(headers.get("retry-after", 0)), MAX_WAIT_S)
    except ValueError:
        return 0.0


class _EndpointSession(Session):
    """At most `max_concurrent` requests in flight. What goes first is what the server most likely has in its prefix
    cache: conversations that go on, then new ones by key, so that the copies of a task follow each other.
    """

    def __init__(self, policy: EndpointPolicy):
        self._policy = policy
        self._queue: list[tuple[bool, int, GenerateRequest]] = []  # a heap; the first two fields order it
        self._flying: dict[asyncio.Task[Generation], int] = {}

    def __enter__(self) -> "_EndpointSession":
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._woken = asyncio.Event()
        self._client = self._policy.connect()
        self._asking = self._client.with_options(max_retries=0)  # retries are ours, so that they are counted and logged
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._flying:
            task.cancel()
        self._runner.run(self._client.close())
        self._runner.close()

    def submit(self, key: int, request: GenerateRequest) -> None:
        if request.begin:
            raise RolloutError(
                "an endpoint cannot be made to begin a turn: ask for the mode in its instructions instead"
            )
        heapq.heappush(self._queue, (not request.turns, key, request))

    def advance(self) -> list[tuple[int, Generation]]:
        return self._runner.run(self._next())

    async def _next(self) -> list[tuple[int, Generation]]:
        """What is done when the first is, in the order it was sent; nothing where `wake` came before."""
        while self._queue and len(self._flying) < self._policy.settings.max_concurrent:
            _, key, request = heapq.heappop(self._queue)
            self._flying[asyncio.create_task(self._policy.ask(self._asking, request))] = key
        waker = asyncio.create_task(self._woken.wait())
        done, _ = await asyncio.wait([*self._flying, waker], return_when=asyncio.FIRST_COMPLETED)
        waker.cancel()
        self._woken.clear()
        return [(self._flying.pop(task), task.result()) for task in list(self._flying) if task in done]

    def wake(self) -> None:
        self._loop.call_soon_threadsafe(self._woken.set)


def chat_messages(request: GenerateRequest, instructions: str) -> list[dict[str, str]]:
    """The conversation in the API's form: instructions and documents as a system message, tool turns as the user's."""
    documents = "\n".join(print_document(tool) for tool in request.tools)
    system = [message.content for message in request.messages if message.role == "system"]
    parts = [part for part in (instructions, documents and f"Tools:\n{documents}", *system) if part]
    head = [{"role": "system", "content": "\n\n".join(parts)}] if parts else []
    rest = [message for message in request.messages if message.role != "system"]
    return head + [
        {"role": "user" if message.role == "tool" else message.role, "content": message.content} for message in rest
    ]
