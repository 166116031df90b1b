"""Operations of HTTP services as tools: arguments → request → bounded text.

Nothing of a service is trusted: an answer is read for so long and so far and no further, a redirection is followed
within the same scheme, host and port only, cookies are not kept, and compressed answers are neither asked for nor read.
"""

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import quote, unquote, urlencode

import httpx
from pydantic import JsonValue

from tirkit.tools.http_loop import run_within
from tirkit.tools.http_secrets import fill_headers, redact, secret_names
from tirkit.tools.remote import TRANSIENT_STATUS, retry_after_s
from tirkit.tools.worker import Answer, TransientToolError
from tirkit.types import HttpOrigin, Place, ToolErrorKind

MAX_BYTES = 1 << 20  # of an answer to a call
MAX_REDIRECTS = 3
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
HOLE = re.compile(r"\{([^{}]*)\}")
SEPARATORS = {"comma": ",", "space": " ", "pipe": "|"}
TEXT_TYPES = re.compile(r"text/|.*[/+](json|xml|yaml|x-www-form-urlencoded|javascript|graphql)\b", re.IGNORECASE)


class HttpError(ValueError):
    """A request that must not be made, or an answer that must not be read; the message is for the model."""


@dataclass(frozen=True)
class Request:
    """One request; `content` is sent where it is not None."""

    method: str
    url: str
    headers: dict[str, str]
    content: bytes | None = None


@dataclass(frozen=True)
class Response:
    """What came back: the first `max_bytes` of the answer, and whether there was more."""

    status: int
    content_type: str
    body: bytes
    cut: bool
    retry_after: str = ""

    def text(self) -> str:
        """The answer as text; what is no text is only named."""
        if self.body and self.content_type and not TEXT_TYPES.match(self.content_type):
            return f"[{self.content_type.partition(';')[0]}, {len(self.body):,} bytes]"
        charset = re.search(r"charset=\"?([\w-]+)", self.content_type)
        try:
            return self.body.decode(charset[1] if charset else "utf-8", "replace")
        except LookupError:
            return self.body.decode("utf-8", "replace")


def exchange(request: Request, timeout_s: float, max_bytes: int = MAX_BYTES) -> Response:
    """What the service answers.

    timeout_s: for all of it, from the name's look-up to the last byte read. Raises HttpError for what is not followed
    or not read, TimeoutError, and httpx.HTTPError or httpx.InvalidURL where there is no answer.
    """
    return run_within(_exchange(request, timeout_s, max_bytes), timeout_s)


async def _exchange(request: Request, timeout_s: float, max_bytes: int) -> Response:
    url = httpx.URL(request.url)
    for _ in range(MAX_REDIRECTS + 1):
        async with _client().stream(
            request.method, url, headers=request.headers, content=request.content, timeout=timeout_s
        ) as response:
            if not response.has_redirect_location:
                return await _read(response, max_bytes)
            target = url.join(response.headers["location"])
            if _site(target) != _site(url) or request.method not in ("GET", "HEAD"):
                raise HttpError(
                    f"{url.host} redirects to {target.host}, which is not followed ({response.status_code})"
                )
            url = target
    raise HttpError(f"{url.host} redirects more than {MAX_REDIRECTS} times")


@functools.cache
def _client() -> httpx.AsyncClient:
    """The client of the network thread, on which alone this is called: it keeps connections, and nothing else."""
    no_cookies = CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(trust_env=False, follow_redirects=False, cookies=no_cookies)


async def _read(response: httpx.Response, max_bytes: int) -> Response:
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise HttpError(f"{response.url.host} answers compressed ({encoding[:20]}), which was not asked for")
    data = bytearray()
    async for piece in response.aiter_raw():
        data += piece
        if len(data) > max_bytes:
            break
    headers = response.headers
    return Response(
        response.status_code,
        headers.get("content-type", ""),
        bytes(data[:max_bytes]),
        len(data) > max_bytes,
        headers.get("retry-after", ""),
    )


def _site(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


@dataclass(frozen=True)
class HttpTool:
    """An operation, for a PythonToolbox with isolation="inline": it keeps limits of its own.

    timeout_s: for one call. Failures that may pass are raised as TransientToolError where the operation changes
    nothing; one that does is never repeated.
    """

    origin: HttpOrigin
    timeout_s: float = 10.0
    max_bytes: int = MAX_BYTES

    def __call__(self, /, **arguments: JsonValue) -> Answer:
        """Make the request. Raises SecretError where a secret is not set."""
        names = secret_names(self.origin.headers)
        try:
            return self._answer(build_request(self.origin, arguments), names)
        except HttpError as error:
            return Answer(redact(str(error), names), ToolErrorKind.RAISED)
        except TimeoutError:
            return Answer(f"no answer within {self.timeout_s:g} s", ToolErrorKind.TIMEOUT)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return self._passing(redact(f"no answer: {type(error).__name__} {error}".strip(), names))

    def _answer(self, request: Request, names: tuple[str, ...]) -> Answer:
        got = exchange(request, self.timeout_s, self.max_bytes)
        text = redact(got.text(), names)
        if got.cut and names:  # the cut may have gone through a secret
            text = text[: -3 * max(map(len, request.headers.values()))]
        if got.status in TRANSIENT_STATUS:
            return self._passing(f"HTTP {got.status}: {' '.join(text.split())[:300]}", retry_after_s(got.retry_after))
        if got.status >= 300:
            return Answer(f"HTTP {got.status}: {text}".rstrip(": "), ToolErrorKind.RAISED, got.cut)
        return Answer(text or f"HTTP {got.status}, no content", truncated=got.cut)

    def _passing(self, message: str, retry_in_s: float = 0.0) -> Answer:
        if self.origin.read_only:
            raise TransientToolError(message, retry_in_s)
        return Answer(message, ToolErrorKind.UNAVAILABLE)


def build_request(origin: HttpOrigin, arguments: dict[str, JsonValue]) -> Request:
    """The request that calls an operation. Raises HttpError for arguments that would change what is called.

    >>> pets = HttpOrigin(kind="http", method="GET", url="https://zoo.example/pets/{id}", places={
    ...     "id": Place(at="path"), "tags": Place(at="query", name="tag", style="comma")})
    >>> build_request(pets, {"id": "a/b", "tags": ["x", 1, True]}).url
    'https://zoo.example/pets/a%2Fb?tag=x%2C1%2Ctrue'
    """
    path: dict[str, str] = {}
    query: list[tuple[str, str]] = []
    headers = {"accept": "application/json, text/*;q=0.9, */*;q=0.1", "accept-encoding": "identity"}
    content: bytes | None = None
    for argument, value in arguments.items():
        place = origin.places.get(argument)
        if place is None or (value is None and place.at != "json_body"):
            continue
        name = place.name or argument
        if place.at == "path":
            path[name] = _path_segment(name, _joined(value, place))
        elif place.at == "query":
            query += _pairs(name, value, place)
        elif place.at == "header":
            headers[name] = _header(name, _joined(value, place))
        elif place.at == "json_body":
            headers["content-type"] = "application/json"
            content = json.dumps(value, ensure_ascii=False).encode()
        else:
            headers["content-type"] = "application/x-www-form-urlencoded"
            content = urlencode(list(_form(value))).encode()
    if missing := [hole for hole in HOLE.findall(origin.url) if hole not in path]:
        raise HttpError(f"argument {missing[0]!r} is missing")
    url = HOLE.sub(lambda hole: path[hole[1]], origin.url) + ("?" + urlencode(query) if query else "")
    return Request(origin.method, url, headers | fill_headers(origin.headers, url), content)


def _path_segment(name: str, text: str) -> str:
    """`text` as one segment of a path. Raises HttpError where a server might read another path in it."""
    plain = text
    while (once := unquote(plain)) != plain:
        plain = once
    if not plain or {".", ".."} & set(re.split(r"[/\\;]", plain)) or CONTROL.search(plain):
        raise HttpError(f"argument {name!r} can't be {text[:100]!r}: it would lead to another path")
    return quote(text, safe="")


def _header(name: str, text: str) -> str:
    if CONTROL.search(text) or not text.isascii():
        raise HttpError(f"argument {name!r} goes into a header: plain ASCII text only")
    return text


def _scalar(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _joined(value: JsonValue, place: Place) -> str:
    if place.style == "json" or not isinstance(value, list | dict):
        return json.dumps(value) if place.style == "json" else _scalar(value)
    items = value if isinstance(value, list) else [part for pair in value.items() for part in pair]
    return SEPARATORS.get(place.style, ",").join(map(_scalar, items))


def _pairs(name: str, value: JsonValue, place: Place) -> Iterator[tuple[str, str]]:
    if place.style == "repeat" and isinstance(value, list):
        yield from ((name, _scalar(item)) for item in value)
    elif place.style == "repeat" and isinstance(value, dict):
        yield from ((key, _scalar(item)) for key, item in value.items())
    elif place.style == "deep":
        yield from _form(value, name)
    else:
        yield name, _joined(value, place)


def _form(value: JsonValue, name: str = "") -> Iterator[tuple[str, str]]:
    """Keys and values of a form, nested ones as `outer[inner]`, lists as their key again for each item."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _form(item, f"{name}[{key}]" if name else key)
    elif isinstance(value, list):
        for item in value:
            yield from _form(item, name)
    elif value is not None:
        yield name, _scalar(value)


def get_text(url: str, timeout_s: float, max_bytes: int) -> str:
    """The text of a page. Raises HttpError where it can't be had whole."""
    try:
        headers = {"accept": "application/json, */*;q=0.5", "accept-encoding": "identity"}
        got = exchange(Request("GET", url, headers), timeout_s, max_bytes)
    except TimeoutError:
        raise HttpError(f"no answer within {timeout_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise HttpError(f"no answer: {type(error).__name__} {error}".strip()) from error
    if got.status != 200 or got.cut:
        raise HttpError(f"it has more than {max_bytes >> 20} MB" if got.cut else f"HTTP {got.status}")
    return got.body.decode("utf-8-sig", "replace")
