"""Any OpenAI-compatible endpoint as a policy (a teacher, usually).

The documents in the prompt and the dialect's format travel as text in the system message, not as the API's `tools`:
what comes back is then text in the dialect, read like every other policy's. Tool turns travel as user messages, since
the API accepts role "tool" only in answer to its own tool calls.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import openai
from openai import AsyncOpenAI

from tirkit.rollout.policy import GenerateRequest, Generation, RolloutError, written
from tirkit.text.control import THINK_CLOSE, THINK_OPEN
from tirkit.text.dialects import print_document
from tirkit.text.render import Renderer

logger = logging.getLogger(__name__)
TRANSIENT = (
    openai.APIConnectionError,  # timeouts included
    openai.RateLimitError,
    openai.InternalServerError,
)


@dataclass(frozen=True)
class EndpointSettings:
    """How an endpoint is asked. `instructions` opens the system message: the dialect's format in words, examples.

    `max_concurrent` requests are in flight at once; one that fails is asked again up to `retries` times, after
    `backoff_s`, 2 · `backoff_s`, 4 · … seconds.
    """

    model: str
    instructions: str = ""
    temperature: float = 1.0
    max_concurrent: int = 8
    retries: int = 4
    backoff_s: float = 1.0
    timeout_s: float = 120.0


class EndpointPolicy:
    """Asks an endpoint. `num_failures` counts generations that no retry got; they stop their attempt as policy_failed.

    connect: makes the client, e.g. `functools.partial(AsyncOpenAI, base_url=…, api_key=…)`; called for every batch,
    since an HTTP connection belongs to the event loop it was opened in.
    """

    def __init__(self, connect: Callable[[], AsyncOpenAI], renderer: Renderer, settings: EndpointSettings):
        self.connect, self.renderer, self.settings = connect, renderer, settings
        self.name = settings.model
        self.num_failures = 0

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """One generation a request, same order. Must not be called inside a running event loop.

        Raises RolloutError where the endpoint says that asking is no use: wrong key, wrong model, wrong address.
        """
        generations = asyncio.run(self._generate_all(requests))
        self.num_failures += sum(generation.finish == "failed" for generation in generations)
        return generations

    async def _generate_all(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        gate = asyncio.Semaphore(self.settings.max_concurrent)
        async with self.connect() as client:
            asking = client.with_options(max_retries=0)  # retries are ours, so that they are counted and logged
            return list(await asyncio.gather(*(self._generate(asking, gate, request) for request in requests)))

    async def _generate(self, client: AsyncOpenAI, gate: asyncio.Semaphore, request: GenerateRequest) -> Generation:
        """One generation; "failed" after the last retry, or at once where asking again cannot help."""
        for attempt in range(self.settings.retries + 1):
            try:
                async with gate:
                    return await self._ask(client, request)
            except TRANSIENT as error:
                logger.warning("%s: try %d failed: %s", self.name, attempt + 1, error)
            except openai.BadRequestError as error:
                # This conversation is refused (too long, filtered); others may pass.
                logger.warning("%s: task %r refused: %s", self.name, request.task.id, error)
                break
            except openai.APIStatusError as error:
                raise RolloutError(f"endpoint {client.base_url} refused model {self.name!r}: {error}") from error
            if attempt < self.settings.retries:
                await asyncio.sleep(self.settings.backoff_s * 2**attempt)
        return Generation((), (), "", "failed")

    async def _ask(self, client: AsyncOpenAI, request: GenerateRequest) -> Generation:
        messages: Any = chat_messages(request, self.settings.instructions)
        completion = await client.chat.completions.create(
            model=self.settings.model,
            messages=messages,
            temperature=self.settings.temperature,
            max_tokens=request.max_new_tokens,
            seed=request.seed % 2**31,
            timeout=self.settings.timeout_s,
        )
        choice = completion.choices[0]
        text = (choice.message.content or "").strip()
        # Reasoning parsers of vLLM and others take the thinking out of the content; the dialect wants it in.
        if reasoning := getattr(choice.message, "reasoning_content", None):
            text = f"{THINK_OPEN}\n{reasoning.strip()}\n{THINK_CLOSE}\n{text}"
        if choice.finish_reason != "length":
            return written(self.renderer, text, max_new_tokens=10**9)
        ids = tuple(self.renderer.completion_ids(text))[:-1]  # cut off: no end of turn was written
        return Generation(ids, (), text, "length")


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
