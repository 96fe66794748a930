"""Row 25: SQS and SNS refuse the n-th request, for every n: it is made again, and nothing is lost or handled twice.

What else they may do (duplicates, order, expired receipts, policies) is in tests/provider/test_aws_faults.py.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aws_wire import Answer, Call, Wire
from harness import GUARD, Heard, eventually

import pymq


class NthRefused(dict[str, Answer]):
    """The wire's answers: AWS's own, but for the n-th."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.asked = 0
        self.refused = ""

    def get(self, name: str, default: Any = None) -> Any:
        if name == "GetCallerIdentity":
            return default
        self.asked += 1
        if self.asked != self.number:
            return default
        self.refused = name
        return throttled


def throttled(call: Call) -> tuple[int, dict[str, str], bytes]:
    """SNS speaks XML, and its requests say a version; SQS speaks JSON."""
    if "Version" in call.parameters:
        text = "<ErrorResponse><Error><Type>Sender</Type><Code>Throttling</Code><Message>no</Message></Error></ErrorResponse>"
        return 400, {"content-type": "text/xml"}, text.encode()
    headers = {"content-type": "application/x-amz-json-1.0", "x-amzn-query-error": "RequestThrottled;Sender"}
    return 400, headers, b'{"__type": "RequestThrottled", "message": "no"}'


def put_and_take(bus: pymq.EventBus) -> None:
    jobs = bus.queue("jobs")
    for number in range(3):
        jobs.put(number)
    taken = set()
    while len(taken) < 3:
        with jobs.take(timeout=GUARD) as job:
            assert job.value not in taken
            taken.add(job.value)
    jobs.free()


def publish(bus: pymq.EventBus) -> None:
    heard, grouped = Heard(), Heard()
    bus.subscribe(heard, "news")
    bus.subscribe(grouped, "news", group="members")
    for number in range(3):
        bus.publish(number, "news")
    assert sorted(heard.take(3)) == sorted(grouped.take(3)) == [0, 1, 2]
    eventually(lambda: not bus.stats()["in_flight"])
    assert heard.rest() == grouped.rest() == []
    bus.group("members").delete()


def requests_of(use: Callable[[pymq.EventBus], None], number: int) -> NthRefused:
    wire = Wire()
    wire.answers = answers = NthRefused(number)
    with pymq.EventBus(wire.config()) as bus:
        use(bus)
    return answers


def test_put_and_take() -> None:
    every_request_refused_once(put_and_take)


def test_publish() -> None:
    every_request_refused_once(publish)


def every_request_refused_once(use: Callable[[pymq.EventBus], None]) -> None:
    """Several at once, since each waits a second before it is made again."""
    count = min(requests_of(use, 0).asked, 40)
    assert count > 5
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda number: requests_of(use, number), range(1, count + 1)))
    names = {answers.refused for answers in found}
    print(count, names)
    assert len(names - {""}) >= 4
