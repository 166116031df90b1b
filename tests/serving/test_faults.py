"""EndpointPolicy against an endpoint that fails: everything is retried or reported, nothing is lost or slowed down."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tirkit.rollout.endpoint import EndpointPolicy, EndpointSettings
from tirkit.rollout.policy import GenerateRequest, Generation
from tirkit.types import Message, Task

ALL = ["malformed", "429", "500", "hang", "truncated", "disconnect"]


def ask(text: str) -> GenerateRequest:
    messages = (Message(role="user", content=text),)
    return GenerateRequest(Task(id=text, prompt=messages), (), messages, (), seed=0, max_new_tokens=50)


def policy(tiny: SimpleNamespace, url: str, **settings: Any) -> EndpointPolicy:
    settings = {"backoff_s": 0.01, "retries": 2, "timeout_s": 1.0, "max_concurrent": 8} | settings
    return EndpointPolicy(f"{url}/v1", "none", tiny.renderer, EndpointSettings(model="m", **settings))


def texts(generations: list[Generation]) -> list[str]:
    return [generation.text or generation.finish for generation in generations]


@pytest.mark.parametrize("fault", ALL)
def test_a_passing_fault_is_retried_and_costs_nobody_else(tiny: SimpleNamespace, faulty: Any, fault: str) -> None:
    endpoint, url = faulty
    endpoint.faults = {"3": [fault], "5": [fault, fault]}
    asked = policy(tiny, url)
    assert texts(asked.generate([ask(str(i)) for i in range(8)])) == [str(i) for i in range(8)]
    assert asked.num_failures == 0
    assert dict(endpoint.num_tries) == {str(i): {3: 2, 5: 3}.get(i, 1) for i in range(8)}


@pytest.mark.parametrize("fault", ALL)
def test_a_lasting_fault_is_reported_for_that_request_alone(tiny: SimpleNamespace, faulty: Any, fault: str) -> None:
    endpoint, url = faulty
    endpoint.faults = {"1": [fault] * 9}
    asked = policy(tiny, url, timeout_s=0.3)
    assert texts(asked.generate([ask(str(i)) for i in range(3)])) == ["0", "failed", "2"]
    assert (asked.num_failures, endpoint.num_tries["1"]) == (1, 3)


def test_retry_after_is_obeyed(tiny: SimpleNamespace, faulty: Any) -> None:
    endpoint, url = faulty
    endpoint.faults = {"1": ["429"]}  # with "retry-after: 0.3"
    policy(tiny, url).generate([ask("1")])
    first, second = endpoint.tried_at["1"]
    assert second - first >= 0.3


def test_nobody_there_is_reported(tiny: SimpleNamespace) -> None:
    asked = policy(tiny, "http://127.0.0.1:9")  # refused
    assert texts(asked.generate([ask("0"), ask("1")])) == ["failed", "failed"]
    assert asked.num_failures == 2


def test_a_slow_endpoint_is_kept_busy(tiny: SimpleNamespace, faulty: Any) -> None:
    endpoint, url = faulty
    endpoint.delay_s = 0.2
    asked = policy(tiny, url, max_concurrent=32, timeout_s=30)
    count = 160
    start = time.monotonic()
    assert texts(asked.generate([ask(str(i)) for i in range(count)])) == [str(i) for i in range(count)]
    wall_s = time.monotonic() - start
    print(f"{count / wall_s:.0f} of 160 requests/s that 32 in flight allow at 200 ms")
    assert endpoint.most == 32  # never fewer for want of work: as many as may be, and as many waves as need be


def test_throughput_recovers_after_an_outage(tiny: SimpleNamespace, faulty: Any) -> None:
    endpoint, url = faulty
    endpoint.delay_s = 0.05
    endpoint.faults = {str(i): ["500", "429"] for i in range(40)}
    asked = policy(tiny, url, max_concurrent=8, retries=4)
    assert texts(asked.generate([ask(str(i)) for i in range(80)])) == [str(i) for i in range(80)]
    assert endpoint.most == 8
    assert asked.num_failures == 0
