"""Row 3: a subscriber that is stopped or slow. One bounded wait, the others have everything, each loss is counted on both sides."""

from __future__ import annotations

import dataclasses
import logging
import time

import pytest
from harness import GUARD, eventually
from programs import shop
from programs.shop import Numbered

import pymq


def test_a_stopped_receiver_does_not_delay_the_others(separate, peers, place):
    if not hasattr(place.config, "max_pending"):
        pytest.skip("the service buffers")
    count = 2000
    small = dataclasses.replace(place.config, max_pending=100_000, publish_timeout=0.25)
    (alice, stopped), (bob, carol) = peers(2, config=small), peers(2)  # these two have room for all: they may be slow
    for peer in (bob, carol, stopped):
        peer.subscribe(shop.counting)
    stopped.stop()
    started = time.monotonic()
    accepted = alice.begin(shop.publish_numbered, 1, count, padding="x" * 1000).result(GUARD)
    assert time.monotonic() - started < 10, "one publish_timeout in all, not one per publish"
    for peer in (bob, carol):
        assert peer.hear() == (1, count, True)
    assert 2 * (count + 1) < accepted < 3 * (count + 1), "what was dropped was not counted"
    stopped.resume()
    eventually(lambda: alice.publish(Numbered(1, -1)) == 3)
    assert stopped.hear() == (1, accepted - 2 * (count + 1), True), "what was counted arrived"


def test_drops_are_counted_on_both_sides(separate, place, peers, caplog):
    if not hasattr(place.config, "max_pending"):
        pytest.skip("the service buffers")
    config = dataclasses.replace(place.config, max_pending=100_000, publish_timeout=0.05)
    (stopped,) = peers(1, config)
    stopped.subscribe(shop.anything, "c")
    stopped.stop()
    with pymq.EventBus(config) as bus, caplog.at_level(logging.WARNING, "pymq"):
        accepted = sum(bus.publish("x" * 1000, "c") for _ in range(1000))
        assert 0 < accepted < 1000
        assert "drop" in caplog.text
        stopped.resume()
        for _ in range(accepted):
            stopped.hear()
        assert sum(stopped.call(shop.stats)["dropped"].values()) == 1000 - accepted
