"""One event loop on a thread of its own for everything that waits on the network: any wait on it can be cut short."""

import asyncio
import functools
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

ValueT = TypeVar("ValueT")
GRACE_S = 5.0  # for what is cut short to clean up
_LOCK = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    with _LOCK:  # the cache alone would let two threads make one each
        return _new_loop()


@functools.cache
def _new_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="tirkit-network", daemon=True).start()
    return loop


def run_within(work: Coroutine[Any, Any, ValueT], timeout_s: float) -> ValueT:
    """The result of `work`, from any other thread. Raises TimeoutError where it takes longer, and what it raises."""

    async def bounded() -> ValueT:
        async with asyncio.timeout(timeout_s):
            return await work

    future = asyncio.run_coroutine_threadsafe(bounded(), _loop())
    try:
        return future.result(timeout_s + GRACE_S)
    except BaseException:
        future.cancel()
        raise
