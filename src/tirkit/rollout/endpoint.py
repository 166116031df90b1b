"""Any OpenAI-compatible endpoint as a policy (a teacher, usually).

The documents in the prompt and the dialect's format travel as text in the system message, not as the API's `tools`:
what comes back is then text in the dialect, read like every other policy's. Tool turns travel as user messages, since
the API accepts role "tool" only in answer to its own tool calls.

A request takes a thread of its own and the standard library's HTTP client, which costs 0.4 ms of CPU; general clients
cost 2 to 5, which 32 requests in flight do not have (`python -m benchmarks.serving`). It knows no proxies.
"""

import heapq
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from queue import SimpleQueue
from urllib.parse import urlsplit

from tirkit.rollout.policy import GenerateRequest, Generation, Policy, RolloutError, Session, written
from tirkit.text.control import THINK_CLOSE, THINK_OPEN
from tirkit.text.dialects import print_document
from tirkit.text.render import Renderer

logger = logging.getLogger(__name__)

MAX_WAIT_S = 300.0
REASONING = ("reasoning", "reasoning_content")  # vLLM's name today, and its old one, which others have
OPENAI = "https://api.openai.com/v1"


class TransientError(Exception):
    """What asking again may mend. `wait_s`: how long the endpoint asks to wait before."""

    wait_s = 0.0


class RefusedError(Exception):
    """The endpoint refuses this conversation (too long, filtered); it may take others."""


@dataclass(frozen=True)
class EndpointSettings:
    """How an endpoint is asked. `instructions` opens the system message: the dialect's format in words, examples.

    `max_concurrent` requests are in flight at once; one that fails is asked again up to `retries` times, after
    `backoff_s`, 2 · `backoff_s`, 4 · … seconds, or as many as the endpoint's Retry-After says, if that is longer.
    `timeout_s` is how long it may be silent.
    """

    model: str
    instructions: str = ""
    temperature: float = 1.0
    max_concurrent: int = 8
    retries: int = 4
    backoff_s: float = 1.0
    timeout_s: float = 120.0


class EndpointPolicy(Policy):
    """Asks the endpoint at `base_url`, such as "http://localhost:8000/v1".

    `num_failures` counts generations that no retry got; they stop their attempt as policy_failed.
    """

    def __init__(self, base_url: str, api_key: str, renderer: Renderer, settings: EndpointSettings):
        """RolloutError where `base_url` is none."""
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise RolloutError(f"base_url {base_url!r} is not an address like http://localhost:8000/v1")
        self.base_url, self.renderer, self.settings = base_url, renderer, settings
        self.name = settings.model
        self.num_failures = 0
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {api_key}"}

    def session(self) -> Session:
        """A session with connections of its own.

        `advance` raises RolloutError where the endpoint says that asking is no use: wrong key, wrong model, wrong
        address.
        """
        return _EndpointSession(self)

    def connect(self) -> "Connection":
        """A connection, for one thread."""
        return Connection(self.base_url, self._headers, self.settings.timeout_s)

    def ask(self, connection: "Connection", request: GenerateRequest, wait: Callable[[float], bool]) -> Generation:
        """One generation; "failed" after the last retry, or at once where asking again cannot help.

        wait: sleeps before a retry; gives True where nobody waits for the generation any more.
        """
        for attempt in range(self.settings.retries + 1):
            try:
                return self._generation(self._ask(connection, request), request)
            except RefusedError as error:
                logger.warning("%s: task %r refused: %s", self.name, request.task.id, error)
                break
            except TransientError as error:
                logger.warning("%s: try %d failed: %s", self.name, attempt + 1, error)
                if attempt < self.settings.retries and wait(max(self.settings.backoff_s * 2**attempt, error.wait_s)):
                    break
        return Generation((), (), "", "failed")

    def _ask(self, connection: "Connection", request: GenerateRequest) -> bytes:
        """The body of a good answer."""
        body = {
            "model": self.settings.model,
            "messages": chat_messages(request, self.settings.instructions),
            "temperature": self.settings.temperature,
            "max_tokens": request.max_new_tokens,
            "seed": request.seed % 2**31,
        }
        try:
            response, content = connection.post("chat/completions", json.dumps(body).encode())
        except (OSError, HTTPException) as error:
            raise TransientError(repr(error)) from error
        if response.status == 200:
            return content
        reason = f"{response.status} {response.reason}: {content[:1000].decode(errors='replace')}"
        if response.status == 400:
            raise RefusedError(reason)
        if response.status == 429 or response.status >= 500:
            error = TransientError(reason)
            error.wait_s = _retry_after_s(response)
            raise error
        raise RolloutError(f"endpoint {self.base_url} refused model {self.name!r}: {reason}")

    def _generation(self, content: bytes, request: GenerateRequest) -> Generation:
        try:
            choice = json.loads(content)["choices"][0]
            message, finish = choice["message"], choice.get("finish_reason")
            text = (message.get("content") or "").strip()
            reasoning = next((message[key].strip() for key in REASONING if message.get(key)), "")
        except (ValueError, AttributeError, LookupError, TypeError) as error:  # no JSON, or JSON of another shape
            raise TransientError(f"no chat completion in the answer ({error!r})") from error
        # Reasoning parsers of vLLM and others take the thinking out of the content; the dialect wants it in.
        if reasoning:
            text = f"{THINK_OPEN}\n{reasoning}\n{THINK_CLOSE}\n{text}"
        if finish != "length":
            return written(self.renderer, text, max_new_tokens=10**9)
        ids = tuple(self.renderer.completion_ids(text))[:-1]  # cut off: no end of turn was written
        return Generation(ids, (), text, "length")


def _retry_after_s(response: HTTPResponse) -> float:
    """The seconds that the endpoint asks to wait; 0 where it says nothing, or a date."""
    try:
        return min(float(response.headers.get("retry-after", 0)), MAX_WAIT_S)
    except ValueError:
        return 0.0


class Connection:
    """A connection that is kept open between requests."""

    def __init__(self, base_url: str, headers: Mapping[str, str], timeout_s: float):
        url = urlsplit(base_url)
        kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
        self._http = kind(url.netloc, timeout=timeout_s)
        self._path, self._headers = url.path.rstrip("/"), headers

    def post(self, path: str, body: bytes) -> tuple[HTTPResponse, bytes]:
        """The answer and its body. Raises OSError and HTTPException, after which it may be used again."""
        kept = self._http.sock is not None
        try:
            return self._post(path, body)
        except ConnectionError:
            if not kept:
                raise
            return self._post(path, body)  # a connection that lay idle is closed by the other side at any time

    def _post(self, path: str, body: bytes) -> tuple[HTTPResponse, bytes]:
        try:
            self._http.request("POST", f"{self._path}/{path}", body, dict(self._headers))
            response = self._http.getresponse()
            return response, response.read()
        except BaseException:
            self._http.close()
            raise

    def close(self) -> None:
        """Free it."""
        self._http.close()


class _EndpointSession(Session):
    """At most `max_concurrent` requests in flight. What goes first is what the server most likely has in its prefix
    cache: conversations that go on, then new ones by key, so that the copies of a task follow each other.
    """

    def __init__(self, policy: EndpointPolicy):
        self._policy = policy
        self._queue: list[tuple[bool, int, GenerateRequest]] = []  # a heap; the first two fields order it
        self._sent: SimpleQueue[tuple[int, GenerateRequest] | None] = SimpleQueue()  # None: it was the last
        self._answers: SimpleQueue[tuple[int, Generation | Exception] | None] = SimpleQueue()  # None: wake up
        self._num_flying, self._num_threads = 0, 0
        self._left = threading.Event()

    def __exit__(self, *_error: object) -> None:
        # Nobody waits for what is in flight: a silent endpoint would hold up the end for minutes.
        self._left.set()
        for _ in range(self._num_threads):
            self._sent.put(None)

    def submit(self, key: int, request: GenerateRequest) -> None:
        if request.begin:
            raise RolloutError(
                "an endpoint cannot be made to begin a turn: ask for the mode in its instructions instead"
            )
        heapq.heappush(self._queue, (not request.turns, key, request))

    def advance(self) -> list[tuple[int, Generation]]:
        while self._queue and self._num_flying < self._policy.settings.max_concurrent:
            _, key, request = heapq.heappop(self._queue)
            self._sent.put((key, request))
            self._num_flying += 1
            if self._num_flying > self._num_threads:
                self._num_threads += 1
                threading.Thread(target=self._work, daemon=True).start()
        events = [self._answers.get()]
        while not self._answers.empty():
            events.append(self._answers.get())
        done: list[tuple[int, Generation]] = []
        for key, answer in filter(None, events):
            if isinstance(answer, Exception):
                raise answer
            self._policy.num_failures += answer.finish == "failed"
            done.append((key, answer))
        self._num_flying -= len(done)
        return done

    def _work(self) -> None:
        connection = self._policy.connect()
        while job := self._sent.get():
            key, request = job
            try:
                answer = self._policy.ask(connection, request, self._left.wait)
            except Exception as error:  # it belongs to the thread that asks for the answers
                answer = error
            self._answers.put((key, answer))
        connection.close()

    def wake(self) -> None:
        self._answers.put(None)


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
