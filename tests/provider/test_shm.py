"""What only the default provider promises, through the public API; `tests/unit` has its parts."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import GUARD, run_program
from programs import shop

import pymq

pytestmark = pytest.mark.parametrize("place", ["shm"], indirect=True)


def test_a_burst_is_kept_where_pipes_are_small(peers):
    """A user whose pipes have used up what the kernel allows gets pipes of 8 KiB."""
    count = 100_000
    alice, bob = peers(2)
    bob.call(shop.subscribe_with_a_small_pipe)
    assert alice.begin(shop.publish_numbered, 7, count, padding="x" * 100).result(GUARD * 4) == count + 1
    bob.release()
    assert bob.hear(GUARD * 4) == (7, count, True)


def test_threads_publish_to_new_channels_while_others_subscribe(place):
    """Whoever publishes forgets then what it knew of the receivers, also what another thread is just learning."""
    with pymq.EventBus(place.config) as bus, ThreadPoolExecutor(1) as pool:
        publishers = pool.submit(lambda: [bus.provider.publisher((f"new/{number}",)) for number in range(30_000)])
        for number in itertools.count():
            bus.subscribe(print, f"other/{number}")
            assert bus.publish("unheard", "nobody/there") == 0
            if publishers.done():
                break
        assert not any(publish(b"") for publish in publishers.result())


def test_ctrl_c_costs_at_most_the_item_in_hand(place):
    assert run_program("interrupted.py") == ["True True True", "True"]
    assert place.leftovers() == []
