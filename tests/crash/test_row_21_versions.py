"""Messages and files of other versions: what this one wrote once it must read for ever; what it does not know it skips, and says so."""

from __future__ import annotations

import logging
import re
from queue import SimpleQueue
from typing import Any

import pytest
from harness import GUARD

import pymq
from pymq import message as frames
from pymq.message import Prefix

GOLDEN = bytes.fromhex("07000000000000001c00010102002a00000000000000") + b'["n", "str", []]"golden"'
"""Version 1 of an event, as it was when that version was made."""


def test_a_golden_frame() -> None:
    prefix = Prefix(frames.EVENT, 2, 0, 42, "n", "str", ())
    assert frames.pack_sequence(7) + frames.pack_prefix(prefix) + b'"golden"' == GOLDEN
    assert frames.unpack(GOLDEN) == frames.Frame(7, prefix, {}, b'"golden"')


@pytest.mark.parametrize("place", ["simple", "shm"], indirect=True)
@pytest.mark.parametrize("way", ["inbox", "group", "queue"])
def test_a_newer_version_is_skipped_and_reported(way: str, bus: pymq.EventBus, caplog: pytest.LogCaptureFixture) -> None:
    newer = bytearray(GOLDEN)
    newer[10] = 2
    got: SimpleQueue[Any] = SimpleQueue()
    bus.subscribe(got.put, "n", group="members" if way == "group" else None)
    jobs = bus.queue("jobs")
    target = {"inbox": bus.inbox, "group": bus.group("members").queue_of("n", False), "queue": "queue/jobs"}[way]
    with caplog.at_level(logging.WARNING, "pymq"):
        bus.provider.send(target, bytes(newer))
        bus.provider.send(target, GOLDEN)
        if way == "queue":
            with pytest.raises(pymq.CodecError, match="version 2"):
                jobs.get(timeout=0)
            assert jobs.get(timeout=0) == "golden"
            assert len(jobs.dead) == 1
        else:
            assert got.get(timeout=GUARD) == "golden"
            assert any(re.search("version 2|newer pymq", record.getMessage()) for record in caplog.records)
    jobs.dead.purge()
    jobs.free()
    bus.provider.delete("queue-dead/jobs")
    bus.group("members").delete()
