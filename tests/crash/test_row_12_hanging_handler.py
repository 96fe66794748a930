"""Row 12: a handler hangs while the bus is shut down, or the program ends. Both take bounded time, and say what they abandoned."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from contextlib import suppress

import pytest
from harness import GUARD, eventually, in_thread, start_program

import pymq
from pymq.groups import Member


@pytest.mark.parametrize("kind", ["def", "async def", "remote"])
def test_shutdown_is_bounded_and_says_what_it_abandoned(config, heard, caplog, kind):
    gate = threading.Event()

    def hanging(value: int) -> None:
        heard("begun")
        gate.wait(GUARD * 2)

    async def hanging_in_the_loop(value: int) -> None:
        hanging(value)

    bus = pymq.EventBus(config)
    bus.start()
    calling = None
    if kind == "remote":
        bus.expose(hanging, "hanging")
        calling = in_thread(bus.stub("hanging", timeout=GUARD), 1)
    else:
        bus.subscribe(hanging if kind == "def" else hanging_in_the_loop, "c")
        bus.publish(1, "c")
    assert heard.next() == "begun"
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "pymq"):
        bus.shutdown(timeout=0.3)
    ended = time.monotonic()
    gate.set()
    assert ended - started < 6
    assert any("hanging" in record.getMessage() for record in caplog.records)
    if calling is not None:
        assert calling.exception(GUARD) is not None, "a caller of one's own bus is not left waiting"


def test_all_that_a_shutdown_cancels_has_one_time_to_end(config, heard, monkeypatch):
    """And not each thread that is waited for its own, one after the other."""
    gate, deadlines = threading.Event(), []

    async def blocking(value: int) -> None:
        heard("begun")
        gate.wait(GUARD * 2)

    bus = pymq.EventBus(config)
    bus.start()
    for group in ("a", "b"):
        bus.subscribe(blocking, "c", group=group)
    bus.publish(1, "c")
    assert heard.next() == "begun"
    join = Member.join
    monkeypatch.setattr(Member, "join", lambda member, deadline: deadlines.append(deadline) or join(member, deadline))
    bus.shutdown(timeout=0.1)
    gate.set()
    with bus:
        for group in ("a", "b"):
            bus.group(group).delete()
    assert len(deadlines) == 4
    assert max(deadlines) <= min(deadlines) + 0.5


@pytest.mark.parametrize("kind", ["def", "workers", "async def"])
def test_what_waits_for_a_hanging_handler_is_not_begun_and_is_told(config, heard, caplog, kind):
    gate = threading.Event()

    def hanging(value: int) -> None:
        heard(value)
        gate.wait(GUARD * 2)

    async def hanging_task(value: int) -> None:
        heard(value)
        await asyncio.sleep(GUARD * 2)

    bus = pymq.EventBus(config)
    bus.start()
    bus.subscribe(hanging_task if kind == "async def" else hanging, "c", workers=2 if kind == "workers" else 1)
    begun = 2 if kind == "workers" else 1
    for value in range(begun + 3):
        bus.publish(value, "c")
    assert sorted(heard.take(begun)) == list(range(begun))
    (subscription,) = bus.subscriptions.all()
    eventually(lambda: subscription._queue.qsize() == 3 if kind == "workers" else subscription.waiting == 3)
    with caplog.at_level(logging.WARNING):
        bus.shutdown(timeout=0.1)
    gate.set()
    assert f"3 messages that waited for the handler {subscription.name}" in caplog.text
    assert [(record.name, record.getMessage()[:14]) for record in caplog.records] == [("pymq", "shutdown after")]
    assert heard.rest() == []


def test_a_handler_that_ignores_its_cancellation_is_abandoned_and_has_not_failed(config, heard, caplog):
    async def stubborn(value: int) -> None:
        heard("begun")
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(GUARD)

    bus = pymq.EventBus(config)
    bus.start()
    bus.subscribe(stubborn, "c")
    bus.publish(1, "c")
    assert heard.next() == "begun"
    with caplog.at_level(logging.WARNING):
        bus.shutdown(timeout=0.1)
        gc.collect()
    assert [record.getMessage()[:14] for record in caplog.records if record.name == "pymq"] == ["shutdown after"]


def test_no_thread_waits_for_ever_for_a_handler_that_was_abandoned(config, heard):
    async def stubborn(value: int) -> None:
        heard("begun")
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(GUARD)

    before = set(threading.enumerate())
    bus = pymq.EventBus(config)
    bus.start()
    bus.subscribe(stubborn, "c", group="workers")
    bus.publish(1, "c")
    assert heard.next() == "begun"
    bus.shutdown(timeout=0.1)
    eventually(lambda: set(threading.enumerate()) <= before)
    with bus:
        bus.group("workers").delete()


@pytest.mark.parametrize("how", ["def", "async", "remote", "error"])
def test_a_program_ends_though_a_handler_hangs(place, how):
    with start_program("hanging.py", how) as process:
        out, err = process.communicate(timeout=6 * GUARD)
        ended = time.monotonic()
    assert ended - float(out) < 6 * GUARD, "20 times the 3 s that it takes on an idle machine"
    assert "hang" in err, "it says what was abandoned"
    assert "Traceback" not in err
    assert process.returncode == (1 if how == "error" else 0)
    assert place.leftovers() == []
