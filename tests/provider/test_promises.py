"""The promises at the limits: full, stopped, idle, ending, foreign bytes."""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading
import time

import pytest
from harness import GUARD, Heard, eventually, in_thread
from programs import shop

import pymq
from pymq import message as frames
from pymq.dispatch import Reader
from pymq.exceptions import PublishFull


@pytest.fixture
def heard() -> Heard:
    return Heard()


def _limited(place, **limits):
    """The config with these limits, where the provider has them."""
    if not all(hasattr(place.config, name) for name in limits):
        pytest.skip("the service buffers")
    return dataclasses.replace(place.config, **limits)


# --- receivers that do not keep up ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["def", "async def", "workers"])
def test_what_waits_for_a_slow_handler_is_bounded(bus, heard, monkeypatch, how):
    gate = threading.Event()
    for module in ("dispatch", "subscriptions"):
        monkeypatch.setattr(f"pymq.{module}.MAX_BACKLOG", 5000)

    def slow(text: str) -> None:
        heard(text)
        gate.wait(GUARD)

    async def slow_in_the_loop(text: str) -> None:
        slow(text)

    bus.subscribe(slow_in_the_loop if how == "async def" else slow, "c", workers=2 if how == "workers" else 1)
    for _ in range(200):
        bus.publish("x" * 100, "c")
    bus.subscribe(heard, "done")
    bus.publish("done", "done")
    while heard.next() != "done":  # all others have been received by then
        pass
    gate.set()
    stats = eventually(lambda: found if sum((found := bus.stats())[k].get("c", 0) for k in ("delivered", "dropped")) == 200 else None)
    assert 150 < stats["dropped"]["c"] < 200


def test_a_full_group_is_named_as_the_user_named_it(place, heard):
    limit = {"max_queue_bytes": 200_000} if hasattr(place.config, "max_queue_bytes") else {"max_pending": 200_000}
    with pymq.EventBus(_limited(place, publish_timeout=0.05, **limit)) as bus:
        group = bus.group("billing/eu")
        group.bind("c")
        group.bind("c*", pattern=True)
        bus.subscribe(lambda text: heard(len(text)), "c")
        try:
            for publish in (bus.publish, lambda *event: bus.publish(*event, headers={"a": 1})):
                with pytest.raises(pymq.Full) as caught:
                    _until_it_raises(publish)
                assert isinstance(caught.value, PublishFull)
                assert (caught.value.accepted, caught.value.groups) == (1, ("billing/eu",))
        finally:
            group.delete()


def _until_it_raises(publish):
    for _ in range(100):
        publish("x" * 20_000, "c")


def test_a_full_server_does_not_spoil_a_call_to_all(separate, place, peers):
    config = _limited(place, max_pending=100_000)
    alice, stopped = peers(2, config)
    for peer in (alice, stopped):
        peer.expose(shop.hang, "hang")
        peer.release()
    stopped.stop()
    with pymq.EventBus(config) as bus:
        for _ in range(4):
            results = bus.stub("hang", multi=True, timeout=0.3)("x" * 60_000)
            assert {type(result) for result in results} == {pymq.RpcTimeout, str}


def test_what_waits_for_a_slow_remote_is_answered_to_its_own_caller(config, bus, heard):
    gate = threading.Event()

    def slow(value: str) -> str:
        heard(value)
        gate.wait(GUARD)
        return value

    bus.expose(slow, "slow")
    with pymq.EventBus(config) as other:
        first = in_thread(bus.stub("slow", timeout=GUARD), "first")
        assert heard.next() == "first"
        second = in_thread(other.stub("slow", timeout=GUARD), "second")
        eventually(lambda: bus.remotes.get("slow").serial.backlog)
        gate.set()
        assert (first.result(GUARD), second.result(GUARD)) == ("first", "second")


def test_what_waits_for_a_slow_handler_keeps_its_class(bus, heard):
    gate = threading.Event()

    def slow(event: shop.OrderPlaced) -> None:
        heard(event)
        gate.wait(GUARD)

    bus.subscribe(slow)
    events = [shop.OrderPlaced(1), shop.RushOrder(2, hours=3), shop.OrderPlaced(4)]
    for event in events:
        bus.publish(event)
    assert heard.next() == events[0]
    eventually(lambda: len(bus.subscriptions.all()[0].serial.backlog) == 2)
    gate.set()
    assert heard.take(2) == events[1:]


# --- nothing to do ----------------------------------------------------------------------------------------------------


# --- delayed events ---------------------------------------------------------------------------------------------------


def test_many_delayed_events_take_one_thread_and_come_in_turn(bus, heard):
    inside = threading.Lock()

    def handler(value: int) -> None:
        if inside.acquire(blocking=False):
            threading.Event().wait(0.002)
            inside.release()
            heard(value)
        else:
            heard("two at once")

    bus.subscribe(handler, "c")
    bus.publish(-1, "c", delay=60)
    assert heard.waiting() == 0
    before = threading.active_count()
    for value in range(50):
        bus.publish(value, "c", delay=0.3)
    assert threading.active_count() <= before + 1
    assert sorted(heard.take(50), key=str) == sorted(range(50), key=str)


# --- coming and going -------------------------------------------------------------------------------------------------


def test_an_unsubscribed_member_takes_nothing_more(bus, heard, monkeypatch):
    """Also one that was just about to wait, which no single wake-up can reach."""
    entered, receive = threading.Event(), bus.provider.receive

    def late(queue, *args, **kwargs):
        if queue.startswith("group/"):
            entered.set()
            threading.Event().wait(0.1)
        return receive(queue, *args, **kwargs)

    monkeypatch.setattr(bus.provider, "receive", late)
    bus.subscribe(heard, "c", group="billing")
    try:
        assert entered.wait(GUARD)
        bus.unsubscribe(heard)
        assert bus.publish(1, "c") == 1
        threading.Event().wait(0.2)
        assert (heard.rest(), bus.group("billing").qsize()) == ([], 1)
    finally:
        bus.group("billing").delete()


@pytest.mark.parametrize("group", [None, "billing"])
def test_a_subscription_that_failed_is_none(bus, heard, monkeypatch, group):
    def refuse(*args, **kwargs):
        raise pymq.ProviderError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(bus.provider, "bind", refuse)
        with pytest.raises(pymq.ProviderError):
            bus.subscribe(heard, "c", group=group)
    with pytest.raises(ValueError, match="not subscribed"):
        bus.unsubscribe(heard)
    bus.group("billing").delete()


def test_shutdown_waits_once_for_all_members_that_hang(config, heard, caplog):
    gate = threading.Event()

    def hanging(value: int) -> None:
        heard("begun")
        gate.wait(GUARD * 2)

    bus = pymq.EventBus(config)
    bus.start()
    names = [f"group {number}" for number in range(12)]
    for name in names:
        bus.subscribe(hanging, "c", group=name)
    bus.publish(1, "c")
    heard.take(len(names))
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "pymq"):
        bus.shutdown(timeout=1)
    ended = time.monotonic()
    gate.set()
    assert ended - started < 6, "one timeout in all, not one per member"
    assert all(name in caplog.text for name in names)
    with pymq.EventBus(config) as again:
        for name in names:
            again.group(name).delete()


def test_shutdown_lets_concurrent_handlers_end(config, heard):
    gate = threading.Event()

    def slow(value: int) -> None:
        heard("begun")
        gate.wait(GUARD)
        heard("ended")

    bus = pymq.EventBus(config)
    bus.start()
    bus.subscribe(slow, "c", workers=2)
    for value in range(3):
        bus.publish(value, "c")
    assert heard.take(2) == ["begun"] * 2
    ending = in_thread(bus.shutdown, timeout=GUARD)
    threading.Event().wait(0.2)
    assert not ending.done()
    gate.set()
    ending.result(GUARD)
    assert sorted(heard.rest()) == ["begun"] + ["ended"] * 3


def test_shutdown_says_which_concurrent_handler_it_abandoned(config, heard, caplog):
    gate = threading.Event()

    def hanging(value: int) -> None:
        heard("begun")
        gate.wait(GUARD * 2)

    bus = pymq.EventBus(config)
    bus.start()
    bus.subscribe(hanging, "c", workers=2)
    bus.publish(1, "c")
    assert heard.next() == "begun"
    with caplog.at_level(logging.WARNING, "pymq"):
        bus.shutdown(timeout=0.2)
    gate.set()
    assert "hanging" in caplog.text


def test_a_takeover_that_comes_to_nothing_leaves_a_reader(bus, heard):
    bus.subscribe(heard, "c")
    dispatcher = bus._dispatcher
    old = eventually(lambda: dispatcher._reader)
    with dispatcher._lock:  # as in a takeover: another reader is in the place of the old one, which looks just then
        dispatcher._reader = Reader()
        bus.publish(1, "c")
        threading.Event().wait(0.05)
        dispatcher._reader = old
    bus.publish(2, "c")
    assert heard.take(2) == [1, 2]


@pytest.mark.parametrize("how", ["get", "take", "put", "call"])
def test_ctrl_c_ends_what_waits_and_harms_nothing(bus, heard, how):
    gate = threading.Event()
    jobs = bus.queue("jobs", maxsize=1)
    bus.expose(lambda: gate.wait(GUARD), "hang")
    waits = {"get": jobs.get, "take": jobs.take, "put": lambda: jobs.put("more"), "call": bus.stub("hang")}
    if how == "put":
        jobs.put("first")
    timer = threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        waits[how]()
    timer.join()
    gate.set()
    if how != "put":
        jobs.put("first")
    assert jobs.get(timeout=GUARD) == "first"
    assert jobs.empty()
    assert bus.stub("hang", timeout=GUARD)() is True
    jobs.free()


# --- bytes that no pymq of this version sent --------------------------------------------------------------------------


def test_foreign_bytes_do_not_make_a_bus_deaf(bus, heard, caplog):
    bus.subscribe(heard, "c")
    bus.expose(lambda value: value, "same")
    start = frames.pack_sequence(1)
    foreign = [
        b"\xff" * 40,
        start + frames.pack_prefix(frames.Prefix(frames.EVENT, 77, 0, 5, "c", "int", ())) + b"1",
        start + frames.pack_prefix(frames.Prefix(frames.EVENT, 0, frames.OPTIONS, 5, "c", "int", ())) + b"1",
        start + frames.pack_prefix(frames.Prefix(frames.REQUEST, 0, 0, 5, "same", "reply/of nobody", ())) + b"1",
        start + frames.pack_prefix(frames.Prefix(frames.REQUEST, 0, 0, 5, "nothing", "reply/of nobody", ())) + b"1",
    ]
    for message in foreign:
        assert bus.provider.publish(("e/c",), message) == 1
    bus.publish("after", "c")
    assert heard.next() == "after"
    assert bus.stub("same", timeout=GUARD)(1) == 1
