"""Row 25: SQS and SNS refuse the first request of every kind: it is made again, and nothing is lost or handled twice.

What else they may do (duplicates, order, expired receipts, policies) is in tests/provider/test_aws_faults.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aws_wire import Answer, Call, Wire
from harness import GUARD, Heard, eventually

import pymq


class FirstRefused(dict[str, Answer]):
    """The wire's answers: AWS's own, but to the first request of a kind."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[str] = []

    def get(self, name: str, default: Any = None) -> Any:
        if name == "GetCallerIdentity" or name in self.refused:
            return default
        self.refused.append(name)
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


@pytest.mark.parametrize("use", [put_and_take, publish])
def test_the_first_request_of_every_kind_is_refused(use: Callable[[pymq.EventBus], None]) -> None:
    wire = Wire()
    wire.answers = answers = FirstRefused()
    with pymq.EventBus(wire.config()) as bus:
        use(bus)
    assert len(answers.refused) >= 5, answers.refused
