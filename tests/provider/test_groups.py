"""Work that must not be lost: consumer groups, takes, leases, retries, dead letters and statistics."""

from __future__ import annotations

import asyncio
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from harness import GUARD, Heard, eventually
from programs import shop
from programs.shop import OrderPlaced, RushOrder

import pymq


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def group(bus) -> Iterator[Any]:
    """The group "billing", gone afterwards."""
    group = bus.group("billing")
    yield group
    group.delete()


@pytest.fixture
def jobs(bus) -> Iterator[Any]:
    """The queue "jobs", gone afterwards with its dead letters."""
    jobs = bus.queue("jobs")
    yield jobs
    jobs.dead.purge()
    jobs.free()


# --- who gets an event ------------------------------------------------------------------------------------------------


def test_each_event_goes_to_one_member(peers, bus, group):
    members = peers(3)
    for member in members:
        member.subscribe(shop.working, "c", group="billing")
    for number in range(90):
        assert bus.publish(number, "c") == 1
    handled = [member.hear() for member in _by_arrival(members, 90)]
    assert sorted(number for number, _ in handled) == list(range(90))


def _by_arrival(peers: list[Any], count: int) -> Iterator[Any]:
    """Whoever has said something, as often as something is said."""
    for _ in range(count):
        yield eventually(lambda: next((peer for peer in peers if peer.heard.waiting()), None))


def test_members_share_the_work(peers, bus, group, place):
    """None is left out, and none does most; `tests/crash` measures how fair it is."""
    count = int(2000 * place.scale)
    members = peers(4)
    for member in members:
        member.subscribe(shop.working, "c", group="billing")
    for number in range(count):
        bus.publish(number, "c")
    eventually(lambda: sum(member.heard.waiting() for member in members) == count, timeout=GUARD * 3)
    shares = [len(member.heard.rest()) for member in members]
    assert all(0 < share <= 0.75 * count for share in shares), shares


def test_the_members_of_several_groups_and_plain_subscribers(peers, bus, group, heard):
    alice, bob = peers(2)
    alice.subscribe(shop.orders, group="billing")
    bob.subscribe(shop.orders, group="billing")
    bob.subscribe(shop.orders_too, group="shipping")
    bus.subscribe(heard, "programs.shop.OrderPlaced")
    assert bus.publish(OrderPlaced(1)) == 3, "two groups and a bus"
    assert heard.next() == OrderPlaced(1)
    assert {repr(peer.hear()) for peer in _by_arrival([alice, bob], 2)} == {repr(OrderPlaced(1)), repr(("too", OrderPlaced(1)))}
    bus.group("shipping").delete()


def test_the_decorator(bus, group, heard):
    @bus.subscriber(group="billing")
    def bill(event: OrderPlaced, message: pymq.Message):
        heard((event, message.attempt))

    @bus.subscriber("sensors/*", pattern=True, group="billing", retries=1, backoff=0.01, lease=10, workers=2)
    async def read(value: float, message):
        heard((message.channel, value))

    assert bus.publish(RushOrder(1)) == 1
    assert heard.next() == (RushOrder(1), 1)
    assert bus.publish(21.5, "sensors/7") == 1
    assert heard.next() == ("sensors/7", 21.5)


def test_a_group_keeps_the_order_with_one_member(peers, bus, group):
    (alice,) = peers(1)
    alice.subscribe(shop.attempts, "c", group="billing")
    for number in range(200):
        bus.publish(number, "c", headers={"n": str(number)})
    assert [alice.hear() for _ in range(200)] == [(number, 1) for number in range(200)]


def test_a_member_gets_used_to_new_channels_for_ever(bus, group, heard, monkeypatch):
    monkeypatch.setattr("pymq.groups.MAX_PLAIN", 3)

    def handler(value: int) -> None:
        heard(value)

    bus.subscribe(handler, "user/*", pattern=True, group="billing")
    for user in range(8):
        bus.publish(user, f"user/{user}")
        assert heard.next() == user
    (member,) = bus._members
    assert len(member._plain) <= 3
    assert any(b"user/7" in packed for packed in member._plain), "else its events took the long way, from the 10,000th sender on"


def test_a_group_outlives_its_members(peers, bus, group):
    alice, bob = peers(2)
    assert bus.publish(0, "c") == 0, "nothing published before is kept"
    alice.subscribe(shop.attempts, "c", group="billing")
    assert bus.publish(1, "c") == 1
    assert alice.hear() == (1, 1)
    alice.close()
    for number in (2, 3):
        assert bus.publish(number, "c") == 1
    bob.subscribe(shop.attempts, "c", group="billing")
    assert [bob.hear(), bob.hear()] == [(2, 1), (3, 1)]


def test_unsubscribe_leaves_the_group(peers, bus, group):
    alice, bob = peers(2)
    alice.subscribe(shop.attempts, "c", group="billing")
    alice.unsubscribe(shop.attempts, "c")
    assert bus.publish(1, "c") == 1
    bob.subscribe(shop.attempts, "c", group="billing")
    assert bob.hear() == (1, 1)
    assert alice.heard.rest() == []


def test_bind_makes_the_queue_before_any_member(peers, bus, group):
    (alice,) = peers(1)
    group.bind(OrderPlaced)
    group.bind("c")
    group.bind("sensors/*", pattern=True)
    assert bus.publish(RushOrder(1)) == 1
    assert bus.publish(2, "c") == 1
    assert bus.publish(3, "sensors/7") == 1
    alice.subscribe(shop.orders, group="billing")
    assert alice.hear() == RushOrder(1)
    alice.subscribe(shop.attempts, "c", group="billing")
    assert alice.hear() == (2, 1)
    alice.subscribe(shop.channels, "sensors/*", pattern=True, group="billing")
    assert alice.hear() == "sensors/7"


def test_a_group_survives_without_any_process(separate, place, peers):
    alice, bob = peers(2)
    alice.call(shop.bind, "billing", "c")
    assert alice.publish("kept", "c") == 1
    for peer in (alice, bob):
        peer.close()
    with pymq.EventBus(place.config) as bus:
        heard = Heard()
        bus.subscribe(heard, "c", group="billing")
        assert heard.next() == "kept"
        bus.group("billing").delete()


def test_delete(peers, bus, place):
    group = bus.group("billing")
    group.bind("c")
    assert bus.publish(1, "c") == 1
    group.delete()
    assert bus.publish(2, "c") == 0
    group.bind("c")
    assert bus.publish(3, "c") == 1
    (alice,) = peers(1)
    alice.subscribe(shop.attempts, "c", group="billing")
    assert alice.hear() == (3, 1)
    group.delete()


def test_who_deletes_a_group_is_not_warned_and_the_others_are(peers, bus, config, caplog):
    """Also where a handler is at work meanwhile."""
    with pymq.EventBus(config) as other, caplog.at_level("INFO"):
        begun, let = threading.Barrier(2), threading.Event()

        def work(value: int):
            begun.wait(GUARD)
            let.wait(GUARD)

        bus.subscribe(shop.attempts(lambda item: None), "c", group="billing")
        bus.subscribe(work, "busy", group="billing")
        other.subscribe(print, "c", group="billing")
        bus.publish(1, "busy")
        begun.wait(GUARD)
        bus.group("billing").delete()
        let.set()
        eventually(lambda: sum("was deleted" in record.getMessage() for record in caplog.records) == 3)
        assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == [
            "the group 'billing' was deleted; print stops"
        ]


# --- busy, stopped and dead members -----------------------------------------------------------------------------------


def test_an_idle_member_does_not_sleep_while_another_is_busy(peers, bus, group):
    members = peers(2)
    for member in members:
        member.subscribe(shop.held, "c", group="billing")
    for _ in range(2):
        bus.publish("work", "c")
    assert [member.hear() for member in members] == [("work", 1)] * 2


def test_a_killed_member_gives_its_event_back_at_once(separate, peers, bus, group):
    alice, bob = peers(2)
    alice.subscribe(shop.held, "c", group="billing", lease=60)
    bus.publish("work", "c")
    assert alice.hear() == ("work", 1)
    bob.subscribe(shop.attempts, "c", group="billing")
    alice.kill()
    assert bob.hear(timeout=3 * GUARD) == ("work", 2), "long before its lease ends"


def test_a_stopped_member_gives_its_event_back_after_the_lease(separate, peers, bus, group):
    alice, bob = peers(2)
    alice.subscribe(shop.held, "c", group="billing", lease=0.5)
    bus.publish("work", "c")
    assert alice.hear() == ("work", 1)
    bob.subscribe(shop.attempts, "c", group="billing", lease=0.5)
    alice.stop()
    assert bob.hear(timeout=10) == ("work", 2)
    alice.resume()
    alice.release()
    bus.publish("next", "c")
    assert ("next", 1) in [member.hear() for member in _by_arrival([alice, bob], 1)]


def test_a_member_that_shuts_down_gives_back_what_it_had_not_begun(peers, bus, group):
    alice, bob = peers(2)
    alice.subscribe(shop.held, "c", group="billing", lease=60)
    for number in range(5):
        bus.publish(number, "c")
    assert alice.hear() == (0, 1)
    alice.close()
    bob.subscribe(shop.attempts, "c", group="billing")
    handled = {bob.hear()[0] for _ in range(4)} | {item[0] for item in alice.heard.rest()}
    assert handled | {0} == set(range(5))


def test_what_a_shutdown_cancels_comes_again_and_was_no_failure(config, bus, group, heard, caplog):
    async def hangs(value: int) -> None:
        heard("begun")
        await asyncio.sleep(GUARD * 2)

    ending = pymq.EventBus(config)
    ending.start()
    ending.subscribe(hangs, "c", group="billing", retries=0)
    bus.publish(1, "c")
    assert heard.next() == "begun"
    with caplog.at_level(logging.WARNING):
        ending.shutdown(timeout=0.1)
    assert [record.getMessage().partition(" abandoned ")[2] for record in caplog.records] == [
        f"the handler {hangs.__qualname__}, which still ran"
    ]
    bus.subscribe(lambda value, message: heard((value, message.attempt)), "c", group="billing", retries=0)
    assert heard.next() == (1, 2)
    assert group.dead.qsize() == 0


class Unread:
    """An event that takes its time to be read."""

    begun = threading.Event()
    goes_on = threading.Event()

    def __init__(self, number: int) -> None:
        self.number = number
        self.begun.set()
        self.goes_on.wait(GUARD)


def test_what_a_shutdown_meets_before_its_coroutine_begins_comes_again(config, bus, group, heard, caplog):
    async def handler(event: Unread) -> None:
        heard("of the bus that has ended")

    def handler_after(event: Unread) -> None:
        heard(event.number)

    group.bind(Unread)
    Unread.goes_on.set()
    event = Unread(1)
    Unread.begun.clear()
    Unread.goes_on.clear()
    ending = pymq.EventBus(config)
    ending.start()
    ending.subscribe(handler, group="billing")
    bus.publish(event)
    assert Unread.begun.wait(GUARD)
    ending.shutdown(timeout=0)
    Unread.goes_on.set()
    eventually(lambda: not {"pymq-async", "pymq-billing"} & {thread.name for thread in threading.enumerate()})
    bus.subscribe(handler_after, group="billing")
    assert heard.next() == 1


def test_a_handler_that_unsubscribes_takes_nothing_more(bus, group, heard):
    def handler(value: int):
        heard(value)
        bus.unsubscribe(handler, "c")

    group.bind("c")
    for number in range(5):
        bus.publish(number, "c")
    bus.subscribe(handler, "c", group="billing")
    first = heard.next()
    bus.subscribe(heard, "c", group="billing")
    assert sorted([first, *heard.take(4)]) == [0, 1, 2, 3, 4]
    assert heard.rest() == []


def test_the_lease_is_extended_while_the_handler_runs(peers, bus, group):
    alice, bob = peers(2)
    alice.subscribe(shop.held, "c", group="billing", lease=0.8)
    bus.publish("long work", "c")
    assert alice.hear() == ("long work", 1)
    bob.subscribe(shop.attempts, "c", group="billing", lease=0.8)
    threading.Event().wait(1.6)  # two leases
    assert bob.heard.rest() == []
    alice.release()
    bus.publish("next", "c")
    assert [member.hear() for member in _by_arrival([alice, bob], 1)] == [("next", 1)]


def test_workers_run_concurrently(bus, group, heard):
    together = threading.Barrier(3)

    def handler(value: int):
        together.wait(GUARD)
        heard(value)

    bus.subscribe(handler, "c", group="billing", workers=3)
    for number in range(6):
        bus.publish(number, "c")
    assert sorted(heard.take(6)) == list(range(6))


def test_one_worker_is_serial(bus, group, heard):
    inside = 0

    def handler(value: int):
        nonlocal inside
        inside += 1
        threading.Event().wait(0.01)
        heard((value, inside))
        inside -= 1

    bus.subscribe(handler, "c", group="billing")
    for number in range(10):
        bus.publish(number, "c")
    assert heard.take(10) == [(number, 1) for number in range(10)]


def test_async_handlers_are_acked_after_they_have_returned(separate, peers, bus, group):
    alice, bob = peers(2)
    alice.subscribe(shop.held_async, "c", group="billing", lease=60)
    bus.publish("work", "c")
    assert alice.hear() == ("work", 1)
    bob.subscribe(shop.attempts, "c", group="billing")
    alice.kill()
    assert bob.hear(timeout=3 * GUARD) == ("work", 2), "long before its lease ends"


@pytest.mark.parametrize("times", [1, 2])
def test_what_only_returns_a_coroutine_has_failed_and_is_not_acked(bus, group, heard, caplog, times):
    """Also the second event, which comes a shorter way."""

    async def inner(value: int) -> None:
        raise AssertionError("nothing awaits it")

    handlers = [heard] * (times - 1) + [inner]
    bus.subscribe(lambda value: handlers[value](value), "c", group="billing", retries=0)
    for value in range(times):
        bus.publish(value, "c")
    eventually(lambda: group.dead.qsize() == 1)
    (letter,) = group.dead
    assert "returned a coroutine, which nothing runs" in letter.headers["dead-text"]
    assert bus.stats()["delivered"] == ({"c": 1} if times == 2 else {})


def test_a_group_handler_may_publish_put_and_call(bus, group, heard):
    bus.expose(lambda value: value + 1, "next")

    def handler(value: int):
        heard(bus.stub("next", timeout=10)(value))
        if value:
            bus.publish(value - 1, "c")

    bus.subscribe(handler, "c", group="billing")
    bus.publish(3, "c")
    assert heard.take(4) == [4, 3, 2, 1]


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failing_event_is_retried_and_then_dead(peers, bus, group):
    (alice,) = peers(1)
    began = time.time()
    alice.subscribe(shop.poisoned, "c", group="billing", retries=2, backoff=0.01)
    bus.publish("poison", "c", headers={"trace": "abc"})
    assert [alice.hear() for _ in range(3)] == [("poison", attempt) for attempt in (1, 2, 3)]
    eventually(lambda: group.dead.qsize() == 1)
    assert len(group.dead) == 1
    (letter,) = group.dead
    assert (letter.value, letter.channel, letter.headers["trace"]) == ("poison", "c", "abc")
    headers = letter.headers
    assert headers["dead-error"].endswith("LookupError")
    assert "no antidote" in headers["dead-text"]
    assert 'raise LookupError("no antidote", 42)' in headers["dead-traceback"]
    assert int(headers["dead-attempts"]) == 3
    assert headers["dead-channel"] == "c"
    assert began - 1 <= float(headers["dead-first-failure"]) <= time.time()
    bus.publish("fine", "c")
    assert alice.hear() == ("fine", 1)


def test_the_log_says_what_failed_where_how_often_and_what_happens_next(bus, group, heard, caplog):
    def bill(value: int, message: pymq.Message):
        heard(message.attempt)
        raise [ValueError("no account"), pymq.Retry(), ValueError("still none"), pymq.Reject("never")][message.attempt - 1]

    bus.subscribe(bill, "orders/*", pattern=True, group="billing", retries=2, backoff=0.01)
    bus.publish(1, "orders/7")
    heard.take(4)
    eventually(lambda: len(group.dead) == 1)
    said = [re.sub(r"^.*bill of|[\d.]+(?= s$)", "", record.getMessage()) for record in caplog.records if record.levelname == "ERROR"]
    assert said == [
        " group 'billing' failed on 'orders/7', attempt 1 of 3: again in  s",
        " group 'billing' failed on 'orders/7', attempt 2 of 3: again in  s",
        " group 'billing': an event on 'orders/7' goes to the dead letters: never",
    ]


def test_no_retries(peers, bus, group):
    (alice,) = peers(1)
    alice.subscribe(shop.poisoned, "c", group="billing", retries=0)
    bus.publish("poison", "c")
    assert alice.hear() == ("poison", 1)
    eventually(lambda: len(group.dead) == 1)


def test_a_retry_holds_up_nothing(bus, group, heard):
    def handler(value: str, message: pymq.Message):
        heard((value, message.attempt))
        if value == "fails once" and message.attempt == 1:
            raise LookupError

    bus.subscribe(handler, "c", group="billing", backoff=0.5)
    for value in ("fails once", "behind", "further behind"):
        bus.publish(value, "c")
    assert heard.take(4) == [("fails once", 1), ("behind", 1), ("further behind", 1), ("fails once", 2)]


def test_backoff_grows(bus, group):
    times: list[float] = []

    def handler(value: str):
        times.append(time.monotonic())
        raise LookupError

    bus.subscribe(handler, "c", group="billing", retries=3, backoff=0.1)
    bus.publish("poison", "c")
    eventually(lambda: len(group.dead) == 1)
    first, second, third = (later - earlier for earlier, later in pairwise(times))
    assert 0.04 < first < 2
    assert second > first
    assert third > second


def test_an_event_that_cannot_be_decoded_goes_to_the_dead_letters(bus, group, heard):
    def handler(event: OrderPlaced):
        heard(event)

    bus.subscribe(handler, "c", group="billing", retries=1, backoff=0.01)
    bus.publish("not an order", "c")
    bus.publish(OrderPlaced(1), "c")
    assert heard.next() == OrderPlaced(1)
    eventually(lambda: len(group.dead) == 1)
    (letter,) = group.dead
    assert letter.headers["dead-error"].endswith("CodecError")


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "5"])
def test_a_retry_after_no_time_is_a_failure_of_the_handler(bus, group, delay):
    def handler(value: int) -> None:
        raise pymq.Retry(delay)

    bus.subscribe(handler, "c", group="billing", retries=0)
    bus.publish(1, "c")
    eventually(lambda: group.dead.qsize() == 1)
    (letter,) = group.dead
    assert (letter.headers["dead-error"], letter.headers["dead-attempts"]) == ("ValueError", 1)


def test_reject_goes_straight_to_the_dead_letters(bus, group, heard):
    def handler(value: int):
        heard(value)
        raise pymq.Reject("not for us")

    bus.subscribe(handler, "c", group="billing", retries=5)
    bus.publish(1, "c")
    eventually(lambda: len(group.dead) == 1)
    assert (heard.next(), heard.rest()) == (1, [])
    (letter,) = group.dead
    assert "not for us" in letter.headers["dead-text"]


def test_retry_is_no_failure(bus, group, heard):
    def handler(value: int, message: pymq.Message):
        heard(message.attempt)
        if message.attempt <= 4:
            raise pymq.Retry(delay=0.01)

    bus.subscribe(handler, "c", group="billing", retries=0)
    bus.publish(1, "c")
    assert heard.take(5) == [1, 2, 3, 4, 5]
    assert len(group.dead) == 0


def test_a_crash_counts(separate, peers, bus, group):
    victims = peers(2)
    bob = peers(1)[0]
    for attempt, victim in enumerate(victims, 1):
        victim.subscribe(shop.held, "c", group="billing", retries=1, lease=60)
        if attempt == 1:
            bus.publish("deadly", "c")
        assert victim.hear() == ("deadly", attempt)
        victim.kill()
    bob.subscribe(shop.attempts, "c", group="billing", retries=1)
    eventually(lambda: len(group.dead) == 1)
    assert bob.heard.rest() == []


def test_a_member_whose_provider_fails_asks_less_and_less_often(bus, group, heard, monkeypatch):
    """And says so as often, in the log; but whoever unsubscribes it does not wait."""
    asked = []

    def fail(*args, **options):
        asked.append(time.monotonic())
        raise pymq.ProviderError("expired credentials")

    receive = bus.provider.receive
    monkeypatch.setattr(
        bus.provider,
        "receive",
        lambda queue, *args, **options: (fail if queue.startswith("group/") else receive)(queue, *args, **options),
    )
    monkeypatch.setattr("pymq.dispatch.LONGEST_PAUSE", 60.0)
    bus.subscribe(heard, "c", group="billing")
    eventually(lambda: len(asked) == 5)
    assert asked[4] - asked[0] >= 0.1 + 0.2 + 0.4 + 0.8
    monkeypatch.setattr("pymq.groups.back_off", lambda failures: 60.0)
    eventually(lambda: len(asked) == 6)
    bus.unsubscribe(heard, "c", group="billing")


# --- dead letters -----------------------------------------------------------------------------------------------------


def test_requeue_brings_the_dead_back(bus, group, heard):
    cured = threading.Event()

    def handler(value: int, message: pymq.Message):
        heard((value, message.attempt, dict(message.headers)))
        if not cured.is_set():
            raise LookupError

    bus.subscribe(handler, "c", group="billing", retries=1, backoff=0.01)
    for value in (1, 2):
        bus.publish(value, "c", headers={"trace": str(value)})
    eventually(lambda: len(group.dead) == 2)
    assert len(heard.take(4)) == 4
    assert sorted(letter.value for letter in group.dead) == [1, 2]
    assert len(group.dead) == 2, "looking takes nothing"
    cured.set()
    group.dead.requeue()
    back = sorted(heard.take(2), key=lambda item: item[0])
    assert [(value, attempt) for value, attempt, _ in back] == [(1, 1), (2, 1)]
    assert [headers["trace"] for *_, headers in back] == ["1", "2"]
    assert len(group.dead) == 0


def test_requeue_takes_longer_than_a_lease(bus, jobs, monkeypatch):
    """As over a network, where there are many. Each comes back once, also when it dies again at once."""
    monkeypatch.setattr("pymq.queues.LEASE", 3.0)
    for number in range(30):
        jobs.put(number)
        reject_one(jobs)
    send = bus.provider.send

    def slowly(queue, message, **options):
        time.sleep(0.11)
        send(queue, message, **options)

    monkeypatch.setattr(bus.provider, "send", slowly)
    assert (jobs.dead.requeue(), len(jobs.dead), jobs.qsize()) == (30, 0, 30)


def test_what_leaves_no_room_for_reasons_is_dead_without_them_and_comes_back(bus, jobs, monkeypatch):
    monkeypatch.setattr(bus.provider, "max_message_bytes", 2000)
    item = "x" * 1900
    jobs.put(item)
    with pytest.raises(pymq.CodecError):
        bus.queue("jobs", int).get(timeout=GUARD)
    assert [(letter.value, letter.headers) for letter in jobs.dead] == [(item, {})]
    assert jobs.dead.requeue() == 1
    with pytest.raises(LookupError), bus.queue("jobs", retries=0).take(GUARD):
        raise LookupError
    assert [(letter.value, letter.headers) for letter in jobs.dead] == [(item, {})]
    assert jobs.dead.requeue() == 1
    assert jobs.get(timeout=GUARD) == item


def test_what_dies_again_during_a_requeue_stays_dead(bus, jobs, monkeypatch):
    for number in range(3):
        jobs.put(number)
        reject_one(jobs)
    send = bus.provider.send

    def die_again(queue, message, **options):
        send(queue, message, **options)
        if queue == "queue/jobs":
            reject_one(jobs)

    monkeypatch.setattr(bus.provider, "send", die_again)
    assert (jobs.dead.requeue(), len(jobs.dead), jobs.qsize()) == (3, 3, 0)


def reject_one(jobs: pymq.Queue) -> None:
    with suppress(pymq.Reject), jobs.take(GUARD):
        raise pymq.Reject


def test_purge_forgets_the_dead(bus, group):
    def handler(value: int):
        raise pymq.Reject

    bus.subscribe(handler, "c", group="billing")
    for value in range(3):
        bus.publish(value, "c")
    eventually(lambda: len(group.dead) == 3)
    group.dead.purge()
    assert (len(group.dead), list(group.dead)) == (0, [])


def test_dead_letters_belong_to_their_group(bus, group):
    other = bus.group("shipping")

    def handler(value: int):
        raise pymq.Reject

    bus.subscribe(handler, "c", group="billing")
    other.bind("c")
    bus.publish(1, "c")
    eventually(lambda: len(group.dead) == 1)
    assert len(other.dead) == 0
    other.delete()


def test_names_of_groups_and_queues_never_meet(bus, group):
    group.bind("c")
    bus.publish(1, "c")
    for name in ("billing", "billing.dead", "c"):
        assert bus.queue(name).empty()
        bus.queue(name).free()
    assert bus.publish(2, "c") == 1


# --- take and receive -------------------------------------------------------------------------------------------------


def test_take_acks_when_the_block_ends_well(jobs):
    jobs.put("work")
    with jobs.take(timeout=5) as job:
        assert (job.value, job.attempt) == ("work", 1)
        assert jobs.qsize() == 0, "what is leased does not count"
    with pytest.raises(queue.Empty), jobs.take(timeout=0.05):
        pass


def test_take_gives_back_when_the_block_raises(jobs):
    jobs.put("work")
    with pytest.raises(LookupError), jobs.take(timeout=5):
        raise LookupError
    with jobs.take(timeout=5) as job:
        assert (job.value, job.attempt) == ("work", 2)


def test_take_and_reject(jobs):
    jobs.put("work")
    with pytest.raises(pymq.Reject), jobs.take(timeout=5):
        raise pymq.Reject("no good")
    assert jobs.empty()
    (letter,) = jobs.dead
    assert letter.value == "work"
    jobs.dead.requeue()
    assert jobs.get(timeout=5) == "work"
    assert len(jobs.dead) == 0


def test_take_waits(peers, jobs):
    (alice,) = peers(1)
    with pytest.raises(queue.Empty), jobs.take(timeout=0):
        pass
    with pytest.raises(ValueError, match="timeout"), jobs.take(timeout=-1):
        pass
    taking = alice.begin(shop.take_and_hold, "jobs")
    jobs.put("work")
    assert alice.hear() == ("work", 1)
    alice.release()
    taking.result(GUARD)
    assert jobs.empty()


def test_what_is_taken_is_nobody_elses(peers, jobs):
    alice, bob = peers(2)
    jobs.put("first")
    jobs.put("second")
    for peer in (alice, bob):
        peer.begin(shop.take_and_hold, "jobs")
    assert sorted(peer.hear() for peer in (alice, bob)) == [("first", 1), ("second", 1)]
    with pytest.raises(queue.Empty):
        jobs.get_nowait()


def test_a_killed_taker_gives_back_at_once(separate, peers, jobs):
    alice, bob = peers(2)
    jobs.put("work")
    alice.begin(shop.take_and_hold, "jobs", lease=60)
    assert alice.hear() == ("work", 1)
    taking = bob.begin(shop.receive_and_keep, "jobs")
    alice.kill()
    assert taking.result(5) == ("work", 2)
    bob.call(shop.settle, "ack")


def test_the_item_of_the_last_process_comes_back_to_the_next(separate, place, peers):
    (alice,) = peers(1)
    alice.queue("jobs", "put", "work")
    alice.begin(shop.take_and_hold, "jobs", lease=60)
    assert alice.hear() == ("work", 1)
    alice.kill()
    with pymq.EventBus(place.config) as bus:
        with bus.queue("jobs").take(timeout=5) as job:
            assert (job.value, job.attempt) == ("work", 2)
        bus.queue("jobs").free()


def test_receive_and_ack(jobs):
    jobs.put("work")
    delivery = jobs.receive(timeout=5)
    assert (delivery.value, delivery.attempt) == ("work", 1)
    delivery.ack()
    assert jobs.empty()
    with pytest.raises(queue.Empty):
        jobs.receive(timeout=0)


def test_receive_and_nack(jobs):
    jobs.put("work")
    jobs.receive(timeout=5).nack()
    started = time.monotonic()
    jobs.receive(timeout=5).nack(delay=0.2)
    delivery = jobs.receive(timeout=5)
    assert time.monotonic() - started >= 0.2
    assert delivery.attempt == 3
    delivery.ack()


def test_a_lost_lease(peers, jobs):
    (alice,) = peers(1)
    jobs.put("work")
    late = jobs.receive(timeout=5, lease=0.1)
    assert alice.call(shop.receive_and_keep, "jobs", lease=60) == ("work", 2)
    for settle in (late.ack, late.nack, lambda: late.extend(10)):
        with pytest.raises(pymq.LeaseLost):
            settle()
    assert jobs.empty(), "nothing was given back"
    alice.call(shop.settle, "nack")
    delivery = jobs.receive(timeout=5)
    assert delivery.attempt == 3, "it was not acked by the late one"
    delivery.ack()


def test_an_extended_lease(jobs):
    jobs.put("work")
    delivery = jobs.receive(timeout=5, lease=0.2)
    delivery.extend(60)
    with pytest.raises(queue.Empty):
        jobs.receive(timeout=0.5)
    delivery.ack()
    assert jobs.empty()


def test_a_delivery_is_settled_once(jobs):
    jobs.put("work")
    delivery = jobs.receive(timeout=5)
    delivery.ack()
    with pytest.raises(pymq.LeaseLost):
        delivery.ack()
    with pytest.raises(pymq.LeaseLost):
        delivery.nack()
    assert jobs.empty()


def test_the_lease_is_extended_while_the_block_runs(jobs):
    jobs.put("work")
    with jobs.take(timeout=5, lease=0.5), pytest.raises(queue.Empty):
        jobs.receive(timeout=1.5)
    assert jobs.empty()


def test_a_stopped_taker_gives_back_after_the_lease(separate, peers, jobs):
    (alice,) = peers(1)
    jobs.put("work")
    taking = alice.begin(shop.take_and_hold, "jobs", lease=0.3)
    assert alice.hear() == ("work", 1)
    alice.stop()
    delivery = jobs.receive(timeout=10)
    assert (delivery.value, delivery.attempt) == ("work", 2)
    alice.resume()
    alice.release()
    with pytest.raises(pymq.LeaseLost):
        taking.result(GUARD)
    delivery.nack()
    assert jobs.get(timeout=5) == "work", "the late ack was not ours"


def test_an_outage_of_a_second_does_not_empty_a_queue_into_the_dead_letters(jobs):
    """It took 2 ms for six attempts."""
    for number in range(3):
        jobs.put(number)
    over, done = time.monotonic() + 1, []
    while len(done) < 3:
        with suppress(ConnectionError), jobs.take(timeout=GUARD) as job:
            if time.monotonic() < over:
                raise ConnectionError("the database is away")
            done.append(job.value)
    assert (sorted(done), len(jobs.dead)) == ([0, 1, 2], 0)


def test_how_often_and_after_how_long_a_taken_item_comes_again(bus, jobs):
    impatient, patient = bus.queue("jobs", retries=1, backoff=0.01), bus.queue("jobs", retries=2, backoff=20)
    jobs.put("poison")
    for attempt in (1, 2):
        with pytest.raises(LookupError), impatient.take(timeout=GUARD) as job:
            raise LookupError(job.attempt)
        assert job.attempt == attempt
    assert [letter.headers["dead-attempts"] for letter in jobs.dead] == [2]
    jobs.dead.requeue()
    with pytest.raises(LookupError), patient.take(timeout=GUARD) as job:
        raise LookupError(job.attempt)
    assert jobs.qsize() == 1
    with pytest.raises(queue.Empty):
        jobs.take(timeout=0)


@pytest.mark.parametrize("wrong", [{"retries": -1}, {"retries": 1.5}, {"backoff": -1}, {"backoff": float("nan")}, {"backoff": "1"}])
def test_a_queue_that_cannot_try_so_often_is_refused(bus, wrong):
    with pytest.raises(ValueError, match=re.escape("{}={!r}".format(*next(iter(wrong.items()))))):
        bus.queue("jobs", **wrong)
    with pytest.raises(ValueError, match=re.escape("{}={!r}".format(*next(iter(wrong.items()))))):
        bus.subscribe(print, "c", group="billing", **wrong)


@pytest.mark.parametrize("told", [KeyboardInterrupt, SystemExit])
def test_a_taker_that_is_told_to_end_has_not_failed(bus, jobs, told):
    jobs.put("work")
    jobs = bus.queue("jobs", retries=0)
    for _ in range(2):
        with pytest.raises(told), jobs.take(timeout=GUARD):
            raise told
    assert (jobs.get(timeout=GUARD), len(jobs.dead)) == ("work", 0)


def test_a_taker_that_always_fails(bus, jobs):
    jobs.put("poison")
    jobs = bus.queue("jobs", backoff=0.01)
    for attempt in range(1, 7):
        with pytest.raises(LookupError, match=f"attempt {attempt}"), jobs.take(timeout=5) as job:
            raise LookupError(f"no antidote at attempt {job.attempt}")
    assert jobs.empty()
    (letter,) = jobs.dead
    assert (letter.value, "no antidote" in letter.headers["dead-text"]) == ("poison", True)


@pytest.mark.parametrize("number", [-1, float("nan"), float("inf"), "1"])
def test_numbers_that_cannot_be_meant_are_refused(bus, jobs, group, number):
    jobs.put(1)
    job = jobs.receive(timeout=GUARD)
    calls = [
        lambda: job.extend(number),
        lambda: jobs.put(1, priority=number),
        lambda: jobs.put(1, delay=number),
        lambda: bus.publish(1, "c", delay=number),
        lambda: bus.subscribe(print, "c", group="billing", lease=number),
    ]
    if number != float("inf"):
        calls += [lambda: job.nack(number), lambda: jobs.put(1, ttl=number)]
    for call in calls:
        with pytest.raises(ValueError, match=re.escape(repr(number))):
            call()
    job.ack()
    assert jobs.empty()


def test_very_long_times(jobs):
    jobs.put("for ever", ttl=float("inf"))
    jobs.put("for a thousand years", ttl=3e10, delay=Fraction(1, 1000))
    assert [jobs.get(timeout=1e9), jobs.get(timeout=float("inf"))] == ["for ever", "for a thousand years"]


@pytest.mark.parametrize("lease", [0, -1, float("nan"), float("inf")])
def test_a_lease_is_positive(jobs, lease):
    jobs.put(1)
    with pytest.raises(ValueError, match="lease"):
        jobs.receive(timeout=5, lease=lease)


# --- delay and ttl ----------------------------------------------------------------------------------------------------


def test_a_delayed_event(bus, group, heard):
    started = time.monotonic()
    bus.subscribe(lambda value: heard(("group", value, time.monotonic())), "c", group="billing")
    bus.subscribe(lambda value: heard(("plain", value, time.monotonic())), "c")
    bus.publish("late", "c", delay=0.3)
    bus.publish("early", "c")
    said = heard.take(4)
    assert [value for _, value, _ in said] == ["early", "early", "late", "late"]
    assert {who for who, value, _ in said if value == "late"} == {"group", "plain"}
    assert all(moment - started >= 0.3 for _, value, moment in said if value == "late")


def test_an_expired_event(bus, group, heard):
    group.bind("c")
    bus.publish("expired", "c", ttl=0.05)
    bus.publish("lasting", "c", ttl=60)
    threading.Event().wait(0.1)
    bus.subscribe(heard, "c", group="billing")
    assert heard.next() == "lasting"


# --- statistics -------------------------------------------------------------------------------------------------------


def test_stats_tell_what_happened(bus, group, jobs, heard):
    def handler(value: str, message: pymq.Message):
        heard(value)
        if value == "poison":
            raise LookupError

    bus.subscribe(handler, "c", group="billing", retries=1, backoff=0.01)
    for value in ("a", "b", "poison"):
        bus.publish(value, "c")
    eventually(lambda: len(group.dead) == 1)
    bus.subscribe(heard, "plain")
    bus.publish(1, "plain")
    for headers in (None, {"a": 1}):
        with pytest.raises(pymq.CodecError):
            bus.publish(object(), "plain", headers)
    assert sorted(map(str, heard.take(5))) == ["1", "a", "b", "poison", "poison"]
    jobs.put("taken")
    jobs.put("waiting")
    taken = jobs.receive(timeout=5)
    stats = eventually(lambda: stats if (stats := bus.stats())["delivered"].get("plain") else None)
    assert stats["published"] == {"c": 3, "plain": 1}
    assert stats["delivered"] == {"c": 2, "plain": 1}
    assert stats["failed"] == {"c": 2}
    assert stats["retried"] == {"c": 1}
    assert stats["dead"] == {"c": 1}
    assert _of(stats["in_flight"], "jobs") == 1
    assert _of(stats["backlog"], "jobs") == 1
    taken.ack()
    assert _of(bus.stats()["in_flight"], "jobs") == 0
    jobs.get(timeout=5)


def _of(counts: dict[str, int], queue: str) -> int:
    return sum(count for name, count in counts.items() if queue in name)


def test_stats_count_what_expired(bus, jobs):
    jobs.put("short-lived", ttl=0.01)
    threading.Event().wait(0.05)
    assert jobs.empty() or jobs.qsize() == 1
    with pytest.raises(queue.Empty):
        jobs.get_nowait()
    assert _of(bus.stats()["expired"], "jobs") == 1


# --- wrong use --------------------------------------------------------------------------------------------------------

WRONG: dict[str, Callable[[Any], Any]] = {
    "retries": lambda bus: bus.subscribe(print, "c", group="billing", retries=-1),
    "backoff": lambda bus: bus.subscribe(print, "c", group="billing", backoff=-1),
    "lease": lambda bus: bus.subscribe(print, "c", group="billing", lease=0),
    "workers": lambda bus: bus.subscribe(print, "c", group="billing", workers=0),
    "group": lambda bus: bus.subscribe(print, "c", group=42),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_use_is_refused(bus, group, wrong):
    with pytest.raises((ValueError, TypeError), match=wrong):
        WRONG[wrong](bus)
