"""Somebody removes the directory while it is in use, as systemd does at a logout: clear errors, no hang; a new start begins anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from harness import GUARD

import pymq
from pymq.provider.shm import ShmConfig


def test_what_is_open_goes_on_and_what_is_not_says_so(stage: Path) -> None:
    config = ShmConfig("removed", str(stage / "pymq"))
    got: SimpleQueue[Any] = SimpleQueue()
    sender, receiver = pymq.EventBus(config), pymq.EventBus(config)
    for bus in (sender, receiver):
        bus.start()
    receiver.subscribe(got.put, "news")
    jobs = sender.queue("jobs")
    jobs.put("before")
    assert sender.publish("before", "news") == 1
    shutil.rmtree(stage / "pymq")
    assert sender.publish("after", "news") == 1
    with pytest.raises(pymq.ProviderError, match="was removed: shut down, and start again"):
        jobs.get(timeout=0)
    assert [got.get(timeout=GUARD), got.get(timeout=GUARD)] == ["before", "after"]
    with pytest.raises(pymq.ProviderError, match="others"):
        sender.queue("others")
    for bus in (sender, receiver):
        try:
            bus.shutdown()
        except pymq.ProviderError as error:
            assert "removed" in str(error) or "No such file" in str(error)  # noqa: PT017 - it may also end well
        bus.start()
    receiver.subscribe(got.put, "news")
    assert sender.publish("anew", "news") == 1
    assert got.get(timeout=GUARD) == "anew"
    for bus in (sender, receiver):
        bus.shutdown()
    assert list((stage / "pymq").rglob("*")) == []
