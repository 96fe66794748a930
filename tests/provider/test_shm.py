"""What only the default provider promises, through the public API; `tests/unit` has its parts."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from harness import GUARD, Heard, eventually, run_program
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
        bare = itertools.repeat(b""), bytes
        publishers = pool.submit(lambda: [bus.provider.publisher((f"new/{number}",), *bare) for number in range(30_000)])
        for number in itertools.count():
            bus.subscribe(print, f"other/{number}")
            assert bus.publish("unheard", "nobody/there") == 0
            if publishers.done():
                break
        assert not any(publish(b"") for publish in publishers.result())


def test_a_limit_below_what_a_pipe_takes_holds_for_every_way_to_send(place):
    config = dataclasses.replace(place.config, max_message_bytes=100)
    with pymq.EventBus(config) as bus, pymq.EventBus(config) as other:
        other.provider.declare("inbox", temporary=True)
        other.provider.bind("inbox", "news", exact=True)
        publish = bus.provider.publisher(("news",), itertools.repeat(b""), bytes)
        ways = [
            publish,
            lambda message: bus.provider.publish(("news",), message),
            lambda message: bus.provider.send("inbox", message),
        ]
        for way in ways:
            for _ in range(2):
                way(bytes(100))
                with pytest.raises(pymq.MessageTooLarge):
                    way(bytes(101))
        assert [message for message, _ in other.provider.receive("inbox", 0)] == 6 * [bytes(100)]


def test_a_publish_that_waits_for_a_full_receiver_ends_with_its_bus(place):
    """It sleeps on a descriptor that may be another file of the program's afterwards: what comes there is not for it to read."""
    config = dataclasses.replace(place.config, max_pending=100_000, publish_timeout=GUARD * 3)
    published = itertools.count()

    def publish() -> None:
        while ending.publish("x" * 3000, "c"):
            next(published)

    def stands_still() -> bool:
        before = repr(published)
        wait([publishing], 0.5)
        return before == repr(published) != "count(0)"

    with pymq.EventBus(config) as full, ThreadPoolExecutor(1) as pool:
        full.provider.declare("inbox", temporary=True)
        full.provider.bind("inbox", "e/c", exact=True)
        ending = pymq.EventBus(config)
        ending.start()
        publishing = pool.submit(publish)
        eventually(stands_still)
        assert not publishing.done()
        ending.shutdown()
        publishing.result(GUARD)


@pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "among others"])
def test_a_publish_in_the_middle_of_which_its_bus_ends_is_refused(place, monkeypatch, is_alone):
    """It went on with the numbers of descriptors that were closed, or another file's by then, or made the namespace again."""
    looked_up, ended = threading.Event(), threading.Event()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        other = stack.enter_context(pymq.EventBus(place.config))
        other.subscribe(print, "c")
        ending = pymq.EventBus(place.config)
        ending.start()
        registry = ending.provider._registry
        matching = registry.matching

        def match(topics):
            found = matching(topics)
            looked_up.set()
            assert ended.wait(GUARD)
            return found

        monkeypatch.setattr(registry, "matching", match)
        publishing = pool.submit(ending.publish, "x", "c")
        assert looked_up.wait(GUARD)
        ending.shutdown()
        if is_alone:
            other.shutdown()
        path = registry.directory.path
        for _ in range(100):  # these get the numbers that were given back
            stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
        ended.set()
        with pytest.raises(pymq.ProviderError, match="the provider was closed"):
            publishing.result(GUARD)
        assert os.path.exists(path) is not is_alone


def test_what_a_thread_declares_while_its_bus_ends_does_not_outlive_it(place, monkeypatch):
    """It would be a receiver that nobody reads, in a process that lives."""
    looked, ended = threading.Event(), threading.Event()
    with pymq.EventBus(place.config) as other, ThreadPoolExecutor(1) as pool:
        ending = pymq.EventBus(place.config)
        ending.start()
        provider = ending.provider
        look = provider._look

        def look_and_wait() -> bool:
            found = look()
            if threading.current_thread() is not threading.main_thread():
                looked.set()
                assert ended.wait(GUARD)
            return found

        monkeypatch.setattr(provider, "_look", look_and_wait)
        declaring = pool.submit(lambda: provider.declare("inbox", temporary=True))
        assert looked.wait(GUARD)
        ending.shutdown()
        ended.set()
        with pytest.raises(pymq.ProviderError, match="the provider was closed"):
            declaring.result(GUARD)
        assert other.provider._registry.inboxes.names() == []


def test_a_lost_lease_is_told_and_loses_nothing(bus, caplog, monkeypatch):
    group, heard = bus.group("billing"), Heard()
    monkeypatch.setattr(bus.leases, "hold", lambda receipt, lease: None)

    def handler(value: str, message: pymq.Message):
        heard((value, message.attempt))
        if (value, message.attempt) == ("long", 1):
            threading.Event().wait(1.0)

    group.bind("c")
    for value in ("short", "long", "next"):
        bus.publish(value, "c")
    bus.subscribe(handler, "c", group="billing", lease=0.5)
    assert sorted(heard.take(4)) == [("long", 1), ("long", 2), ("next", 1), ("short", 1)]
    eventually(lambda: bus.stats()["delivered"] == {"c": 3})
    assert "took longer than its lease" in caplog.text
    assert group.qsize() == 0
    group.delete()


def test_queues_that_others_have_freed_cost_no_descriptors(place):
    """A server that replies into a queue of each client's own."""
    with pymq.EventBus(place.config) as server, pymq.EventBus(place.config) as client:
        held = []
        for number in range(120):
            mine = client.queue(f"reply/{number}")
            server.queue(f"reply/{number}").put(number)
            assert mine.get(timeout=GUARD) == number
            mine.free()
            held.append(len(os.listdir("/proc/self/fd")))
        assert max(held[60:]) <= max(held[:60])


def test_a_death_may_be_watched_for_twice(place):
    with pymq.EventBus(place.config) as bus, pymq.EventBus(place.config) as other:
        bus.provider.declare("inbox", temporary=True)
        other.provider.declare("server", temporary=True)
        for _ in range(2):
            assert bus.provider.receive("inbox", 0.001, watch=["server", "server"]) == []
        assert bus.provider.receive("inbox", 0.001) == []


def test_ctrl_c_costs_at_most_the_item_in_hand(place):
    assert run_program("interrupted.py") == ["True True True", "True"]
    assert place.leftovers() == []
