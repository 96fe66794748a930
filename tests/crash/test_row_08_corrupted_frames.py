"""Row 8: every byte of a queue's log and state, of an inbox's pipe and log and of the journal of bindings, flipped, and strange bytes
in between: no crash, no wrong value, and the next good one arrives.

The layers below have tests of their own: tests/unit/test_shm_queue.py (also the state file) and tests/unit/test_shm_inbox.py.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

import pymq
from pymq.provider._shm.frames import LOGGED
from pymq.provider._shm.registry import Registry
from pymq.provider._shm.state import LEVELS, OWNERS, RECEIVERS, SENDERS, SLOTS
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


@pytest.mark.parametrize(("size", "mask"), [(10, 0x01), (10, 0x10), (10, 0xFF), (4200, 0x10)], ids=["pipe", "pipe", "pipe", "log"])
def test_an_inboxes_frames(size: int, mask: int, bus: pymq.EventBus, stage: Path) -> None:
    """The bytes as a sender would write them, with one flipped, and others in between."""
    receiver, rng = bus.config.create(), random.Random(7)
    receiver.open()
    receiver.declare("inbox", temporary=True)
    receiver.bind("inbox", "e/news", exact=True)
    inbox = receiver._inboxes["inbox"]
    frame = 12 + len(message_of(receiver, bus, size))
    for place in range(frame):
        noise = rng.randbytes(rng.randrange(200))
        bus.publish("x" * size, "news")
        data = bytearray(os.read(inbox._fifo, 1 << 16))
        if inbox.head[LOGGED]:
            (log,) = stage.rglob("inbox.log")
            flip(log, place, mask)
        else:
            data[place] ^= mask
        os.write(inbox._fifo, data + noise)
        before = inbox.corrupted
        got = [message for _ in range(3) for message in received(receiver)]
        bus.publish("good", "news")
        got += received(receiver)
        assert len(got) == 1, place
        assert b"good" in got[0], place
        assert inbox.corrupted > before, place
    receiver.close()


def message_of(receiver: ShmProvider, bus: pymq.EventBus, size: int) -> bytes:
    bus.publish("x" * size, "news")
    (message,) = received(receiver)
    return message


def received(provider: ShmProvider) -> list[bytes]:
    return [message for message, _ in provider.receive("inbox", 0)]


@pytest.mark.parametrize("mask", [0x41])
def test_a_queues_state(mask: int, bus: pymq.EventBus, stage: Path) -> None:
    """Something waits, something is lent, something is delayed: an error that says that it is damaged, or none, and no wrong value."""
    words = [*range(15), *range(LEVELS, LEVELS + 16), RECEIVERS, SENDERS, OWNERS, OWNERS + 1, *range(SLOTS, SLOTS + 16)]
    for place in (8 * word + byte for word in words for byte in range(8)):
        jobs = bus.queue("jobs")
        for item in ITEMS:
            jobs.put(item)
        jobs.put("delayed", delay=1000)
        jobs.receive(timeout=0, lease=1000)
        (state,) = stage.rglob("state")
        with state.open("r+b") as file:
            before = file.read(8 * (SLOTS + 16))
        flip(state, place, mask)
        for use in (pymq.Queue.qsize, put_good, take_all, take_all):
            try:
                got = use(jobs)
            except (pymq.ProviderError, pymq.Full, pymq.Empty):
                continue
            if isinstance(got, list):
                assert [item for item in got if item not in (*ITEMS, "good", "delayed")] == [], place
        with state.open("r+b") as file:
            file.write(before)
        jobs.free()


def put_good(jobs: Any) -> None:
    jobs.put("good", timeout=0)


@pytest.mark.parametrize("mask", [0x01, 0x0A, 0x80, 0xFF])
def test_the_journal_of_bindings(mask: int, stage: Path) -> None:
    """Each byte costs the binding in whose line it is, if any, and is counted; never is anything bound that nobody has bound."""
    first = ShmConfig("journal", str(stage / "pymq")).create()
    first.open()
    bindings = {("inbox", "e/news", True), ("inbox", "e/[ab]*", False), ("inbox", "e/\n \u00e4", True)}
    first.declare("inbox", temporary=True)
    for queue, pattern, exact in bindings:
        first.bind(queue, pattern, exact=exact)
    (journal,) = stage.rglob("journal.*")
    size = journal.stat().st_size
    for place in range(size):
        flip(journal, place, mask)
        replica = Registry(str(stage / "pymq"), "journal")
        flip(journal, place, mask)
        found = set(replica.bindings.of())
        assert found <= bindings, place
        assert len(found) >= len(bindings) - 1, place
        assert replica.corrupted >= len(bindings) - len(found), place
        replica.leave(lambda stem: False)
    assert journal.stat().st_size == size
    replica = Registry(str(stage / "pymq"), "journal")
    assert (set(replica.bindings.of()), replica.corrupted) == (bindings, 0)
    replica.leave(lambda stem: False)
    first.close()


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_the_word_that_commits_bindings(mask: int, stage: Path) -> None:
    """An error, or a beginning anew, in which everybody meets again; nothing is bound that nobody has bound."""
    config = ShmConfig("word", str(stage / "pymq"))
    for place in range(24):
        with pymq.EventBus(config) as bus:
            got: SimpleQueue[str] = SimpleQueue()
            bus.subscribe(got.put, "news")
            (registry,) = stage.rglob("registry")
            flip(registry, place, mask)
            try:
                with pymq.EventBus(config) as newcomer:
                    newcomer.publish("others", "others")
                    bus.health()
                    assert newcomer.publish("news", "news") in (0, 1)
                    assert bus.publish("news", "news") in (0, 1)
            except pymq.ProviderError as error:
                assert re.search("of another version|is not pymq's", str(error)), place  # noqa: PT017
                flip(registry, place, mask)
            while not got.empty():
                assert got.get() == "news"
        shutil.rmtree(stage / "pymq", ignore_errors=True)
