"""Row 31: what is published is a copy, on every provider: neither its sender nor another handler can change it afterwards."""

from __future__ import annotations

import threading

from harness import GUARD


def test_what_was_published_does_not_change_afterwards(bus, heard):
    ready = threading.Event()

    def handler(value: list[int]):
        ready.wait(GUARD)
        heard(value)

    bus.subscribe(handler, "c")
    value = [1]
    bus.publish(value, "c")
    value.append(2)
    bus.publish(value, "c")
    ready.set()
    assert heard.take(2) == [[1], [1, 2]]


def test_each_handler_has_its_own_copy(bus, heard):
    def spoil(value: list[int]):
        value.append(99)
        heard(value)

    def look(value: list[int]):
        heard(value)

    bus.subscribe(spoil, "c")
    bus.subscribe(look, "c")
    bus.publish([1], "c")
    assert sorted(heard.take(2)) == [[1], [1, 99]]
