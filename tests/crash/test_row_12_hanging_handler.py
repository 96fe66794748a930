"""Row 12: a handler hangs while the bus is shut down, or the program ends. Both take bounded time, and say what they abandoned."""

from __future__ import annotations

import logging
import threading
import time

import pytest
from harness import GUARD, in_thread, start_program

import pymq


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
