"""Row 4: a full pipe. What `publish` counted is what arrives, whatever the sizes of pipe and message; the rest is dropped, counted."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from pymq.provider._shm.frames import DROPPED
from pymq.provider.shm import ShmConfig


@pytest.mark.parametrize("pipe", [8192, 65_536, 1 << 20], ids=["8 KiB, as beyond a user's soft limit", "64 KiB", "1 MiB"])
@pytest.mark.parametrize("size", [8, 1000, 2049, 4084, 4085, 4096, 100_000])
def test_what_is_counted_arrives(pipe: int, size: int, stage: Path) -> None:
    config = ShmConfig("full", str(stage / "pymq"), max_pending=200_000, publish_timeout=0.01)
    receiver, sender = config.create(), config.create()
    for provider in (receiver, sender):
        provider.open()
    receiver.declare("inbox", temporary=True)
    receiver.bind("inbox", "topic", exact=True)
    fcntl.fcntl(receiver._inboxes["inbox"]._fifo, fcntl.F_SETPIPE_SZ, pipe)
    for _ in range(2):  # a second time after it was drained
        sent, dropped, received = [], 0, []
        before = receiver._inboxes["inbox"].head[DROPPED]
        while dropped < 3:
            message = b"%d " % (len(sent) + dropped) + b"x" * size
            if sender.publish(("topic",), message[:size]) == 1:
                sent.append(message[:size])
            else:
                dropped += 1
        assert receiver._inboxes["inbox"].head[DROPPED] - before == dropped
        while batch := receiver.receive("inbox", 0):
            received += [message for message, _ in batch]
        assert received == sent
        assert receiver._inboxes["inbox"].corrupted == 0
    for provider in (receiver, sender):
        provider.close()
    assert list((stage / "pymq").rglob("*")) == []
