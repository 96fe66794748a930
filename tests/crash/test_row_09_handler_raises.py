"""Row 9: a handler raises, whatever it is. The loop goes on, it is logged and counted; a group retries, then buries the event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from harness import eventually


@pytest.fixture
def group(bus) -> Iterator[Any]:
    """The group "billing", gone afterwards."""
    group = bus.group("billing")
    yield group
    group.delete()


class Unusual(BaseException):
    pass


FAILURES = [
    ValueError("no"),
    SystemExit(3),
    KeyboardInterrupt(),
    RecursionError("deep"),
    MemoryError(),
    GeneratorExit(),
    StopIteration(),
    asyncio.CancelledError(),
    Unusual(),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_handler_that_raises_ends_nothing(bus, heard, caplog, failure, kind):
    def handler(value: int):
        heard(value)
        if value == 0:
            raise failure

    async def coroutine(value: int):
        handler(value)

    with caplog.at_level(logging.ERROR, "pymq"):
        bus.subscribe(handler if kind == "def" else coroutine, "c")
        bus.subscribe(heard, "other")
        for value in range(3):
            assert bus.publish(value, "c") == 1
        assert heard.take(3) == [0, 1, 2]
        bus.publish("still here", "other")
        assert heard.next() == "still here"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.name.split(".")[0] == "pymq"
    assert record.exc_info is not None
    assert "handler" in record.getMessage() or "coroutine" in record.getMessage()


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_whatever_a_handler_raises_is_a_failure(bus, group, heard, failure, kind):
    def handler(value: int):
        heard(value)
        if value == 0:
            raise failure

    async def handler_async(value: int):
        handler(value)

    bus.subscribe(handler if kind == "def" else handler_async, "c", group="billing", retries=1, backoff=0.01)
    bus.publish(0, "c")
    assert heard.take(2) == [0, 0]
    bus.publish(1, "c")
    assert heard.next() == 1
    eventually(lambda: len(group.dead) == 1)
