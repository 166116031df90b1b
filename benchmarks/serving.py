"""Throughput by hand, on an idle machine: `python -m benchmarks.serving`.

1,000 calls of the Python tool with 16 in flight, none lost; and an endpoint that takes 200 ms and lets 32 in, asked by
EndpointPolicy: how much of its capacity is used. Prints rates, medians and 99th percentiles.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn

from tirkit.embedded.model import load_base
from tirkit.rollout.endpoint import EndpointPolicy, EndpointSettings
from tirkit.rollout.policy import GenerateRequest
from tirkit.text.render import Renderer
from tirkit.tools.python import PYTHON_SCHEMA, PythonTool
from tirkit.tools.runtime import PythonToolbox
from tirkit.types import Message, Task, ToolCall

DELAY_S, IN_FLIGHT = 0.2, 32


def measure_python(count: int, in_flight: int) -> str:
    """Calls a second and what each took, one at a time and together."""
    box = PythonToolbox({"python": PythonTool()}, [PYTHON_SCHEMA], isolation="inline")

    def call(number: int) -> float:
        start = time.perf_counter()
        result = box.run(ToolCall(name="python", arguments={"code": f"print({number} ** 2)"}))
        assert result.content == str(number**2), result
        return time.perf_counter() - start

    alone = [call(number) for number in range(50)]
    start = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as pool:
        together = list(pool.map(call, range(count)))
    rate = count / (time.perf_counter() - start)
    return f"Python tool: alone {spread(alone)}; {count} calls, {in_flight} in flight: {rate:.0f}/s, {spread(together)}"


def spread(seconds: list[float]) -> str:
    """Least, median and 99th percentile, in milliseconds."""
    ordered = sorted(1000 * s for s in seconds)
    median, p99 = ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]
    return f"least {ordered[0]:.0f} ms, median {median:.0f}, p99 {p99:.0f}"


async def slow(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """An endpoint that takes its time and says "x"."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(DELAY_S)
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}
    body = json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


def serve_slow(port: int) -> None:
    """Serve `slow` until killed."""
    uvicorn.run(slow, port=port, log_level="error")


def measure_endpoint(count: int) -> str:
    """Share of the endpoint's capacity that EndpointPolicy uses."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve_slow, args=(port,), daemon=True)
    server.start()
    while socket.socket().connect_ex(("127.0.0.1", port)):
        time.sleep(0.1)
    settings = EndpointSettings("m", max_concurrent=IN_FLIGHT)
    policy = EndpointPolicy(f"http://127.0.0.1:{port}/v1", "none", Renderer(load_base()[1]), settings)
    message = (Message(role="user", content="?"),)
    request = GenerateRequest(Task(id="t", prompt=message), (), message, (), 0, 16)
    policy.generate([request] * IN_FLIGHT)  # connections are opened
    start, cpu = time.perf_counter(), time.process_time()
    generations = policy.generate([request] * count)
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    server.kill()
    assert [generation.text for generation in generations] == ["x"] * count
    share = count / wall_s / (IN_FLIGHT / DELAY_S)
    cost = f"{1000 * cpu_s / count:.1f} ms of CPU a request"
    return f"slow endpoint: {count / wall_s:.0f} requests/s, {share:.0%} of its capacity; {cost}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Throughput of the Python tool and of a slow endpoint.")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--requests", type=int, default=1600)
    arguments = parser.parse_args()
    print(measure_python(arguments.calls, arguments.in_flight), flush=True)
    print(measure_endpoint(arguments.requests), flush=True)
