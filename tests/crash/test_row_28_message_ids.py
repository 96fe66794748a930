"""Row 28: ids of messages are the sender's token and its count: none is given out twice, by threads, forked children or processes."""

from __future__ import annotations

import threading
from pathlib import Path

from harness import GUARD
from stage import Nursery

import pymq
from pymq.provider.shm import ShmConfig

EACH = 20_000


def test_no_two_messages_have_the_same_id(actors: Nursery, stage: Path) -> None:
    config = ShmConfig("faults", str(stage / "pymq"))
    ids: set[int] = set()
    total, done = [0], threading.Event()

    def count(text: str, message: pymq.Message) -> None:
        ids.add(message.id)
        total[0] += 1
        if total[0] == 4 * EACH:
            done.set()

    with pymq.EventBus(config) as bus:
        bus.subscribe(count, "numbers")
        senders = [actors.begin("publish_from_everywhere", config.home, EACH) for _ in range(4)]
        for sender in senders:
            assert actors.end(sender) == 0, actors.board(sender)
        assert done.wait(6 * GUARD)
        assert len(ids) == 4 * EACH
    assert list((stage / "pymq").rglob("*")) == []
