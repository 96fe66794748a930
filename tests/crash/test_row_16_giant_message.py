"""Row 16: giant messages. Every size up to the stated maximum arrives; above it the sender is told before anything is written."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from harness import GUARD, eventually
from programs import shop

import pymq


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 65_535, 65_537, 1 << 20, 5_000_000])
def test_events_of_any_size(peers, size, place):
    alice, bob = peers(2)
    bob.subscribe(shop.anything, "bytes")
    bob.subscribe(shop.orders, "text")
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert alice.publish(payload, "bytes") == 1
    assert bob.hear() == payload
    alice.publish("ä" * size, "bytes")
    assert bob.hear() == "ä" * size


@pytest.mark.parametrize("place", ["simple", "shm", "ipc"], indirect=True)
@pytest.mark.parametrize("verb", ["publish", "publish to a group", "put", "call"])
def test_the_largest_message_and_one_byte_more(verb: str, place: Any, heard: Any) -> None:
    config = dataclasses.replace(place.config, max_message_bytes=300_000)
    with pymq.EventBus(config) as bus:
        jobs = bus.queue("jobs")
        bus.subscribe(lambda event: heard(len(event)), "events")
        bus.subscribe(lambda event: heard(len(event)), "tasks", group="members")
        bus.expose(lambda value: heard(len(value)), "remote")
        verbs = {
            "publish": lambda value: bus.publish(value, "events"),
            "publish to a group": lambda value: bus.publish(value, "tasks"),
            "put": lambda value: (jobs.put(value), heard(len(jobs.get(timeout=GUARD)))),
            "call": bus.stub("remote", timeout=GUARD),
        }
        largest = size_of_the_largest(verbs[verb])
        assert 299_000 < largest < 300_000, "the maximum, but for the header"
        while heard.next() != largest:
            pass
        with pytest.raises(pymq.MessageTooLarge, match="300000"):
            verbs[verb](b"x" * (largest + 1))
        assert heard.rest() == []
        assert jobs.empty()
        assert bus.group("members").qsize() == 0
        jobs.free()
        eventually(lambda: not bus.stats()["in_flight"])
        bus.group("members").delete()


def size_of_the_largest(send: Any) -> int:
    """By halving; what is sent on the way there is heard, too."""
    fits, too_large = 299_000, 300_001
    while too_large - fits > 1:
        size = (fits + too_large) // 2
        try:
            send(b"x" * size)
            fits = size
        except pymq.MessageTooLarge:
            too_large = size
    return fits
