"""Queues: the whole of `queue.Queue` that makes sense between processes, and what only processes need."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import wait
from decimal import Decimal
from typing import Any

import pytest
from harness import GUARD, in_thread
from programs import shop
from programs.shop import Basket, OrderPlaced, RushOrder

import pymq
from pymq.message import unpack


@pytest.fixture
def jobs(bus) -> Iterator[pymq.Queue]:
    """The queue "jobs", gone afterwards."""
    jobs = bus.queue("jobs")
    yield jobs
    jobs.dead.purge()
    jobs.free()


def test_first_in_first_out(jobs):
    for number in range(100):
        jobs.put(number)
    assert [jobs.get() for _ in range(100)] == list(range(100))


def test_items_of_several_senders_and_types_in_turn(config, jobs):
    with pymq.EventBus(config) as second:
        senders = [jobs, second.queue("jobs")]
        items = [item for number in range(5) for item in (number, number, str(number), b"%d" % number, [number])]
        for place, item in enumerate(items):
            senders[place // 3 % 2].put(item, ttl=GUARD if place % 4 == 0 else None)
        assert [jobs.get() for _ in items] == items


def test_it_is_a_queue(jobs):
    assert isinstance(jobs, pymq.Queue)
    assert jobs.name == "jobs"
    assert pymq.Empty is queue.Empty
    assert pymq.Full is queue.Full


def test_sizes(jobs):
    assert (jobs.qsize(), jobs.empty(), jobs.full()) == (0, True, False)
    jobs.put("a")
    jobs.put_nowait("b")
    assert (jobs.qsize(), jobs.empty(), jobs.full()) == (2, False, False)
    assert jobs.get_nowait() == "a"
    assert jobs.qsize() == 1
    assert jobs.get() == "b"
    assert jobs.empty()


def test_empty(jobs):
    with pytest.raises(queue.Empty):
        jobs.get_nowait()
    with pytest.raises(queue.Empty):
        jobs.get(False)
    with pytest.raises(queue.Empty):
        jobs.get(block=True, timeout=0)
    started = time.monotonic()
    with pytest.raises(queue.Empty):
        jobs.get(timeout=0.1)
    assert time.monotonic() - started >= 0.1


def test_a_queue_that_nobody_made_is_empty(bus):
    assert bus.queue("never used").qsize() == 0
    with pytest.raises(queue.Empty):
        bus.queue("never used").get_nowait()
    bus.queue("never used").free()


def test_full(bus, jobs):
    small = bus.queue("jobs", maxsize=2)
    small.put(1)
    assert not small.full()
    small.put(2)
    assert small.full()
    for refused in (
        lambda: small.put_nowait(3),
        lambda: small.put(3, False),
        lambda: small.put(3, block=False),
        lambda: small.put(3, timeout=0),
    ):
        with pytest.raises(queue.Full, match=r"^no room in the queue 'jobs'$"):
            refused()
    started = time.monotonic()
    with pytest.raises(queue.Full):
        small.put(3, timeout=0.1)
    assert time.monotonic() - started >= 0.1
    assert [small.get(), small.get()] == [1, 2]
    assert small.empty(), "what was refused is not there"


def test_a_blocked_put_goes_on_when_there_is_room(peers, bus, jobs):
    small = bus.queue("jobs", maxsize=1)
    small.put("first")
    (alice,) = peers(1)
    blocked = in_thread(small.put, "second", timeout=GUARD)
    assert not blocked.done()
    assert alice.queue("jobs", "get") == "first"
    blocked.result(GUARD)
    assert alice.queue("jobs", "get") == "second"


def test_a_blocked_put_ends_with_its_bus(config, bus, jobs):
    """As a blocked get does: a program whose producer waits for room must come to its end."""
    jobs.put("first")
    ending = pymq.EventBus(config)
    ending.start()
    blocked = in_thread(ending.queue("jobs", maxsize=1).put, "second")
    assert not wait([blocked], 0.3).done
    ending.shutdown()
    with pytest.raises(pymq.PymqError, match=r"closed|not started"):
        blocked.result(GUARD)
    assert (jobs.get(timeout=GUARD), jobs.qsize()) == ("first", 0)
    jobs.put("the queue is as it was", timeout=GUARD)
    assert jobs.get(timeout=GUARD) == "the queue is as it was"


def test_a_negative_maxsize_is_no_bound(bus, jobs):
    small = bus.queue("jobs", maxsize=-1)
    small.put("as with queue.Queue", timeout=0)
    assert (small.full(), jobs.get(timeout=GUARD)) == (False, "as with queue.Queue")


def test_racing_producers_never_exceed_maxsize(bus, jobs, place):
    def fill() -> int:
        small, accepted = bus.queue("jobs", maxsize=10), 0
        while True:
            try:
                small.put_nowait(accepted)
            except queue.Full:
                return accepted
            accepted += 1

    accepted = sum(future.result(GUARD) for future in [in_thread(fill) for _ in range(4)])
    assert (accepted, jobs.qsize()) == (10, 10)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_a_negative_timeout_is_refused(jobs, timeout):
    with pytest.raises(ValueError, match="timeout"):
        jobs.get(timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        jobs.put(1, timeout=timeout)
    assert jobs.empty()


def test_a_put_is_not_stopped_by_who_frees_the_queue_again_and_again(bus):
    jobs, stop = bus.queue("freed"), threading.Event()

    def free() -> None:
        while not stop.is_set():
            bus.queue("freed").free()

    freeing = in_thread(free)
    try:
        for number in range(200):
            jobs.put(number)
    finally:
        stop.set()
        freeing.result(GUARD)
        jobs.free()


def test_without_block_the_timeout_does_not_count(jobs):
    with pytest.raises(queue.Empty):
        jobs.get(block=False, timeout=-1)


def test_wrong_use_is_refused(bus, jobs):
    for wrong, named in (
        (lambda: bus.queue(42), "42"),
        (lambda: jobs.put(1, delay=-1), "delay"),
        (lambda: jobs.put(1, ttl=-1), "ttl"),
        (lambda: jobs.put(1, priority=-1), "priority"),
        (lambda: jobs.put(1, priority=1000), "priority"),
        (lambda: bus.queue("jobs", maxsize="many"), "maxsize"),
    ):
        with pytest.raises((ValueError, TypeError), match=named):
            wrong()
    with pytest.raises(pymq.CodecError):
        jobs.put(object())
    assert jobs.empty()


# --- between participants ---------------------------------------------------------------------------------------------


def test_an_item_goes_to_one_consumer(peers, jobs):
    alice, bob = peers(2)
    alice.queue("jobs", "put", "only one")
    assert jobs.qsize() == 1
    assert bob.queue("jobs", "get", timeout=10) == "only one"
    assert jobs.qsize() == 0
    with pytest.raises(queue.Empty):
        alice.queue("jobs", "get_nowait")


def test_many_producers_and_many_consumers(peers, jobs, place):
    count = int(1000 * place.scale)
    workers = peers(3)
    consuming = [peer.begin(shop.consume, "jobs") for peer in workers]
    producing = [peer.begin(shop.produce, "jobs", number, count) for number, peer in enumerate(workers)]
    for future in producing:
        future.result(GUARD * 3)
    jobs.put(None)
    consumed = [future.result(GUARD * 3) for future in consuming]
    assert sorted(item for items in consumed for item in items) == [
        [producer, number] for producer in range(3) for number in range(count)
    ]
    for items in consumed:
        for producer in range(3):
            numbers = [number for who, number in items if who == producer]
            assert numbers == sorted(numbers)


def test_items_wait_while_no_process_is_attached(separate, place, peers):
    alice, bob = peers(2)
    for number in range(3):
        alice.queue("jobs", "put", number)
    for peer in (alice, bob):
        peer.close()
    assert place.leftovers(), "they are somewhere"
    with pymq.EventBus(place.config) as bus:
        jobs = bus.queue("jobs")
        assert jobs.qsize() == 3
        assert [jobs.get(timeout=5) for _ in range(3)] == [0, 1, 2]


def test_a_killed_consumer_has_taken_nothing_more(separate, peers, jobs):
    alice, bob = peers(2)
    for number in range(3):
        jobs.put(number)
    assert alice.queue("jobs", "get") == 0
    alice.kill()
    assert bob.call(shop.get_as, "jobs", int) == 1
    assert jobs.get(timeout=5) == 2


def test_a_blocked_get_wakes(peers, jobs):
    alice, bob = peers(2)
    for number in range(20):
        blocked = bob.begin(shop.get_as, "jobs", Any)
        alice.queue("jobs", "put", number)
        assert blocked.result(5) == number


def test_each_of_many_blocked_getters_gets_one(peers, bus, jobs):
    alice, bob = peers(2)
    blocked = [peer.begin(shop.get_as, "jobs", Any) for peer in (alice, bob, alice, bob)]
    blocked += [in_thread(bus.queue("jobs").get, timeout=GUARD) for _ in range(2)]
    for number in range(6):
        jobs.put(number)
    assert sorted(future.result(GUARD) for future in blocked) == list(range(6))


def test_a_blocked_get_does_not_hold_up_the_bus(bus, jobs):
    heard: queue.Queue[Any] = queue.Queue()
    bus.subscribe(heard.put, "c")
    bus.expose(lambda: "pong", "ping")
    blocked = in_thread(jobs.get)
    bus.publish(1, "c")
    assert heard.get(timeout=GUARD) == 1
    assert bus.stub("ping", timeout=10)() == "pong"
    assert not blocked.done()
    jobs.put("at last")
    assert blocked.result(GUARD) == "at last"


# --- types ------------------------------------------------------------------------------------------------------------


def test_items_arrive_as_they_were_put(peers, bus, jobs):
    (alice,) = peers(1)
    items = [None, True, 1, 1.0, "ä", b"\0", (1, (2,)), {1: "a", (1, 2): None}, {1, 2}, OrderPlaced(1, Decimal("2.50"))]
    typed = bus.queue("jobs", type=OrderPlaced)
    assert typed.name == "jobs"
    for item in items:
        alice.queue("jobs", "put", item)
    assert [repr(jobs.get(timeout=5)) for _ in items] == [repr(item) for item in items]


def test_type_decides_what_an_item_becomes(peers, bus, jobs):
    (alice,) = peers(1)
    alice.queue("jobs", "put", {"order_id": 1, "total": "2.50"})
    alice.queue("jobs", "put", OrderPlaced(2))
    orders = bus.queue("jobs", type=OrderPlaced)
    assert [orders.get(timeout=5), orders.get(timeout=5)] == [OrderPlaced(1, Decimal("2.50")), OrderPlaced(2)]
    basket = Basket(["a"], {1: OrderPlaced(1)})
    alice.queue("jobs", "put", basket)
    got = bus.queue("jobs", type=Basket).get(timeout=5)
    assert (type(got), got) == (Basket, basket)
    alice.queue("jobs", "put", [(1, None)])
    assert bus.queue("jobs", type=list[tuple[int, int | None]]).get(timeout=5) == [(1, None)]


@pytest.mark.parametrize("wrong", ["not an order", 1, None, [OrderPlaced(1)], {"no": 1}, Basket([], {})], ids=repr)
def test_an_item_that_is_not_of_the_queues_type_is_refused_where_it_is_put(bus, jobs, wrong):
    orders = bus.queue("jobs", type=OrderPlaced)
    for _ in range(2):
        with pytest.raises(pymq.CodecError, match=r"(?s)queue 'jobs' is of .*OrderPlaced"):
            orders.put(wrong)
    assert jobs.empty()


def test_an_item_that_becomes_the_queues_type_may_be_put(bus, jobs):
    orders = bus.queue("jobs", type=OrderPlaced | int)
    items = [OrderPlaced(1), {"order_id": 2, "total": "2.50"}, 3, RushOrder(4)]
    for item in items:
        orders.put(item)
    assert [orders.get(timeout=5) for _ in items] == [OrderPlaced(1), OrderPlaced(2, Decimal("2.50")), 3, RushOrder(4)]


def test_an_item_of_another_type_is_an_error_that_names_it(bus, jobs):
    jobs.put("not an order")
    jobs.put(OrderPlaced(1))
    orders = bus.queue("jobs", type=OrderPlaced)
    with pytest.raises(pymq.CodecError, match="OrderPlaced"):
        orders.get(timeout=5)
    assert orders.get(timeout=5) == OrderPlaced(1)


def test_an_unknown_class_arrives_as_plain_data(separate, peers, bus, jobs):
    """A fresh process has not named the class: nothing of it is imported, called or built."""
    (stranger,) = peers(1, fresh=True)
    jobs.put(shop.Secret("word"))
    assert stranger.queue("jobs", "get", timeout=5) == {"word": "word"}


# --- close and free ---------------------------------------------------------------------------------------------------


def test_free_forgets_everything(peers, bus, jobs):
    (alice,) = peers(1)
    jobs.put(1)
    alice.queue("jobs", "free")
    assert jobs.qsize() == 0
    jobs.put("made anew")
    assert alice.queue("jobs", "get", timeout=5) == "made anew"


def test_free_wakes_who_waits(peers, bus, jobs):
    alice, bob = peers(2)
    jobs.put("so that it exists")
    assert bob.queue("jobs", "get", timeout=5) == "so that it exists"
    blocked = [bob.begin(shop.get_as, "jobs", Any), in_thread(jobs.get, timeout=GUARD)]
    wait(blocked, timeout=0.2)  # gives them the time to block
    while not all(future.done() for future in blocked):  # one that comes late to a freed queue makes it anew, and waits there
        alice.queue("jobs", "free")
        wait(blocked, timeout=0.2)
    for future in blocked:
        with pytest.raises(pymq.QueueNotFound, match="jobs"):
            future.result(GUARD)


def test_close_leaves_the_items(bus, jobs):
    mine = bus.queue("jobs")
    mine.put(1)
    mine.close()
    assert jobs.get(timeout=5) == 1


def test_a_freed_queue_leaves_nothing_behind(place):
    with pymq.EventBus(place.config) as bus:
        bus.queue("a/b.c\n*").put(1)
        bus.queue("a/b.c\n*").free()
    assert place.leftovers() == []


def test_names_are_not_paths_and_never_meet(bus):
    names = ["a", "A", "a/b", "a%2Fb", "..", ".", "/", "a\0b", "ä", "x" * 300, "x" * 301, "a ", "-", "*"]
    for name in names:
        bus.queue(name).put(name)
    for name in names:
        assert bus.queue(name).get(timeout=5) == name
        assert bus.queue(name).empty()
        bus.queue(name).free()


def test_a_program_may_make_an_object_for_each_item_for_ever(bus, jobs):
    """Each may take one of 2 ** 64 numbers, and not one of the few millions of ranges of them."""
    for value in range(3):
        bus.queue(jobs.name).put(value)
    taken = [bus.provider.receive(f"queue/{jobs.name}", GUARD, lease=None)[0][0] for _ in range(3)]
    numbers = sorted(unpack(message).sequence for message in taken)
    assert len(set(numbers)) == 3
    assert numbers[2] - numbers[0] < 1 << 20


def test_shutdown_ends_a_blocked_get(config):
    bus = pymq.EventBus(config)
    bus.start()
    blocked = in_thread(bus.queue("jobs").get)
    threading.Event().wait(0.05)
    bus.shutdown()
    with pytest.raises(pymq.PymqError):
        blocked.result(GUARD)


# --- delay, ttl and priority ------------------------------------------------------------------------------------------


def test_a_delayed_item_comes_when_it_is_due(peers, jobs):
    (alice,) = peers(1)
    waiting = alice.begin(shop.get_as, "jobs", Any)
    started = time.monotonic()
    jobs.put("late", delay=0.3)
    jobs.put("early")
    assert waiting.result(GUARD) == "early"
    assert jobs.qsize() == 1, "the delayed are counted"
    with pytest.raises(queue.Empty):
        jobs.get_nowait()
    assert alice.call(shop.get_as, "jobs", Any) == "late"
    assert 0.3 <= time.monotonic() - started < 5


def test_an_earlier_item_wakes_who_waits_for_a_later_one(peers, bus, jobs):
    (alice,) = peers(1)
    started = time.monotonic()
    jobs.put("late", delay=30)
    waiting = [alice.begin(shop.get_as, "jobs", Any), in_thread(bus.queue("jobs").get, timeout=GUARD)]
    jobs.put("first", delay=0.2)
    jobs.put("second", delay=0.1)
    assert sorted(future.result(GUARD) for future in waiting) == ["first", "second"]
    assert time.monotonic() - started < 10


def test_an_expired_item_is_dropped(bus, jobs):
    jobs.put("short-lived", ttl=0.05)
    jobs.put("lasting", ttl=60)
    jobs.put("for ever")
    threading.Event().wait(0.1)
    assert [jobs.get(timeout=5), jobs.get(timeout=5)] == ["lasting", "for ever"]
    assert jobs.empty()


def test_an_item_that_expires_while_it_is_waited_for(jobs):
    jobs.put("seen", delay=0.1, ttl=10)
    jobs.put("never seen", delay=0.1, ttl=0)
    assert jobs.get(timeout=10) == "seen"
    with pytest.raises(queue.Empty):
        jobs.get(timeout=0.3)


def test_a_delay_does_not_use_up_the_ttl(jobs):
    jobs.put("seen", delay=0.3, ttl=0.2)
    assert jobs.get(timeout=10) == "seen"


def test_priority(bus, jobs, place):
    levels = place.config.create().features.priorities
    if levels < 3:
        with pytest.raises(ValueError, match="priorit"):
            jobs.put(1, priority=levels)
        return
    jobs.put("low 1")
    jobs.put("high 1", priority=levels - 1)
    jobs.put("middle", priority=(levels - 1) // 2)
    jobs.put("low 2", priority=0)
    jobs.put("high 2", priority=levels - 1)
    assert [jobs.get(timeout=5) for _ in range(5)] == ["high 1", "high 2", "middle", "low 1", "low 2"]
