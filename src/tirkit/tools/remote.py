"""Ask a service over HTTP, and tell failures that may pass from those that will not."""

import math
import time
from email.utils import parsedate_to_datetime

import httpx
from pydantic import JsonValue

from tirkit.tools.worker import TransientToolError
from tirkit.types import UserError

TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
MAX_BYTES = 64 << 20


class RemoteError(UserError):
    """A service refuses what it is asked, and would again; the message holds its address and its reason."""


def post(client: httpx.Client, url: str, body: JsonValue, within_s: float = math.inf) -> str:
    """The answer's text; redirections are not followed.

    within_s: for the answer as a whole (the client's own timeouts are for each piece of it). Raises TransientToolError
    where there was no connection, no answer in time, half of one, or a status that may pass (429 and 5xx; with the wait
    that the service asks for); RemoteError on any other status but 2xx, and where the answer exceeds `MAX_BYTES`.
    """
    try:
        with client.stream("POST", url, json=body) as response:
            text = _read(response, url, time.monotonic() + within_s)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise RemoteError(f"{url} is not an address ({error}); give one like http://host:port/path") from error
    except httpx.RequestError as error:
        raise TransientToolError(f"{url} gave no answer: {type(error).__name__} {error}") from error
    if response.is_success:
        return text
    reason = " ".join(text.split())[:300]
    if response.status_code in TRANSIENT_STATUS:
        wait_s = retry_after_s(response.headers.get("retry-after", ""))
        raise TransientToolError(f"{url} answered {response.status_code}: {reason}", wait_s)
    raise RemoteError(f"{url} answered {response.status_code}: {reason}; check the address, the key and the request")


def _read(response: httpx.Response, url: str, deadline: float) -> str:
    """The text of an answer that is still coming in."""
    data = bytearray()
    for piece in response.iter_bytes():
        data += piece
        if len(data) > MAX_BYTES:
            raise RemoteError(f"{url} answers with more than {MAX_BYTES >> 20} MB; check the address, or ask for less")
        if time.monotonic() > deadline:
            raise TransientToolError(f"{url} gave no answer in time: it came in too slowly")
    return data.decode(response.encoding or "utf-8", "replace")


def retry_after_s(header: str) -> float:
    """Seconds to wait by a Retry-After header (a number or a date); 0 where it says nothing readable.

    >>> retry_after_s("2.5"), retry_after_s("soon"), retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT")
    (2.5, 0.0, 0.0)
    """
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
