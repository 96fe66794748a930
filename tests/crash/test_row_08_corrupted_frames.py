"""Every byte of a queue's log and of an inbox's pipe and log, flipped: no crash, no wrong value, and the next good one arrives.

The layers below have tests of their own: tests/unit/test_shm_queue.py (also the state file) and tests/unit/test_shm_inbox.py.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pymq
from pymq.provider._shm.frames import LOGGED
from pymq.provider.shm import ShmConfig, ShmProvider

ITEMS = ["first " + "a" * 30, {"second": [1, 2.5, None]}, "third " + "c" * 30]


@pytest.fixture
def bus(stage: Path) -> Iterator[pymq.EventBus]:
    with pymq.EventBus(ShmConfig("flipped", str(stage / "pymq"), max_pending=20_000)) as bus:  # so small that arenas are no use
        yield bus


def flip(path: Path, place: int, mask: int) -> None:
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, place)
        os.pwrite(file.fileno(), bytes([byte[0] ^ mask]), place)


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_a_queues_log(mask: int, bus: pymq.EventBus, stage: Path) -> None:
    for place in range(8, 10_000):  # the first word of a segment counts claims, and is derived again
        jobs = bus.queue("jobs")
        for item in ITEMS:
            jobs.put(item)
        (log,) = stage.rglob("log.*")
        if place >= log.stat().st_size:
            break
        flip(log, place, mask)
        got = take_all(jobs)
        assert [item for item in got if item not in ITEMS] == [], place
        assert len(got) >= len(ITEMS) - 1, place
        counted = bus.provider.counters()["queue/jobs"]["corrupt"] + len(jobs.dead)
        assert counted == len(ITEMS) - len(got) or got == ITEMS, place
        jobs.put("good")
        assert take_all(jobs) == ["good"], place
        jobs.dead.purge()
        jobs.free()
    else:
        pytest.fail("the log has no end")
    bus.provider.delete("queue-dead/jobs")


def take_all(jobs: Any) -> list[Any]:
    got = []
    while True:
        try:
            got.append(jobs.get(timeout=0))
        except pymq.Empty:
            return got
        except pymq.CodecError:
            pass  # it is in the dead letters


@pytest.mark.parametrize("size", [10, 5000], ids=["pipe", "log"])
def test_an_inboxes_frames(size: int, bus: pymq.EventBus, stage: Path) -> None:
    """The bytes as a sender would write them, with one flipped, and others in between."""
    receiver, rng = bus.config.create(), random.Random(7)
    receiver.open()
    receiver.declare("inbox", temporary=True)
    receiver.bind("inbox", "e/news", exact=True)
    inbox = receiver._inboxes["inbox"]
    for place in range(0, size + 12, 1 + size // 400):
        noise = rng.randbytes(rng.randrange(200))
        bus.publish(f"{place} " + "x" * size, "news")
        data = bytearray(os.read(inbox._fifo, 1 << 16))
        if inbox.head[LOGGED]:
            (log,) = stage.rglob("inbox.log")
            flip(log, place, 0x10)
        else:
            data[place] ^= 0x10
        os.write(inbox._fifo, data + noise)
        before = inbox.corrupted
        got = [message for _ in range(3) for message in received(receiver)]
        bus.publish("good", "news")
        got += received(receiver)
        assert len(got) == 1, place
        assert b"good" in got[0], place
        assert inbox.corrupted > before, place
    receiver.close()


def received(provider: ShmProvider) -> list[bytes]:
    return [message for message, _ in provider.receive("inbox", 0)]
