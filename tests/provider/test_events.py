"""Publish and subscribe, as users write it, between participants of every provider."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any, TypedDict

import pytest
from harness import GUARD, Heard, eventually, in_thread
from programs import shop
from programs.shop import GiftOrder, Numbered, OrderPlaced, Reading, RushGift, RushOrder

import pymq


@pytest.fixture
def heard() -> Heard:
    return Heard()


# --- by class ---------------------------------------------------------------------------------------------------------


def test_a_typed_dict_wants_a_channel(bus):
    class Level(TypedDict):
        value: float

    def handler(event: Level) -> None: ...

    with pytest.raises(ValueError, match=r"Level is a plain dict.*channel="):
        bus.subscribe(handler)
    bus.subscribe(handler, "readings")
    assert bus.publish(Level(value=1.0), "readings") == 1


def test_an_event_reaches_every_subscriber_of_its_class(peers):
    alice, bob, carol = peers(3)
    bob.subscribe(shop.orders)
    carol.subscribe(shop.orders)
    assert alice.publish(OrderPlaced(1, Decimal("1E+2"))) == 2
    for peer in (bob, carol):
        event = peer.hear()
        assert event == OrderPlaced(1, Decimal("1E+2"))
        assert repr(event.total) == "Decimal('1E+2')"


def test_subclasses_arrive_as_themselves(peers):
    alice, bob = peers(2)
    bob.subscribe(shop.orders)
    for event in (RushOrder(1, hours=2), GiftOrder(2, text="for you"), OrderPlaced(3)):
        assert alice.publish(event) == 1
        assert repr(bob.hear()) == repr(event)


def test_an_event_comes_once_per_handler_however_many_ways_lead_there(peers):
    alice, bob = peers(2)
    bob.subscribe(shop.orders)
    bob.subscribe(shop.rush_orders)
    assert alice.publish(RushGift(1)) == 1
    assert alice.publish(OrderPlaced(2)) == 1
    assert alice.publish(RushOrder(3)) == 1
    heard = [bob.hear() for _ in range(5)]
    assert [event for event in heard if isinstance(event, OrderPlaced)] == [RushGift(1), OrderPlaced(2), RushOrder(3)]
    assert [event for event in heard if isinstance(event, tuple)] == [("rush", RushGift(1)), ("rush", RushOrder(3))]


def test_a_base_class_does_not_reach_the_handlers_of_its_subclasses(peers):
    alice, bob = peers(2)
    bob.subscribe(shop.rush_orders)
    assert alice.publish(OrderPlaced(1)) == 0
    alice.publish(RushOrder(2))
    assert bob.hear() == ("rush", RushOrder(2))


def test_a_class_can_name_its_channel(peers):
    alice, bob, carol = peers(3)
    bob.subscribe(shop.readings)
    carol.subscribe(shop.channels, "sensors.*", pattern=True)
    assert alice.publish(Reading(21.5)) == 2
    assert bob.hear() == Reading(21.5)
    assert carol.hear() == "sensors.reading"


def test_the_channel_of_a_class_is_its_module_and_qualified_name(peers):
    alice, bob = peers(2)
    bob.subscribe(shop.channels, "programs.shop.OrderPlaced")
    assert alice.publish(OrderPlaced(1)) == 1
    assert bob.hear() == "programs.shop.OrderPlaced"


def test_an_explicit_channel_replaces_the_class(peers):
    alice, bob = peers(2)
    bob.subscribe(shop.orders, "special")
    bob.subscribe(shop.orders_too)
    assert alice.publish(RushOrder(1), channel="special") == 1
    assert alice.publish(RushOrder(2)) == 1
    assert sorted(map(repr, [bob.hear(), bob.hear()])) == sorted(map(repr, [RushOrder(1), ("too", RushOrder(2))]))


# --- by channel and pattern -------------------------------------------------------------------------------------------


def test_any_value_can_be_published_to_a_channel(peers):
    alice, bob = peers(2)
    bob.subscribe(shop.anything, "sensors/7")
    for value in (21.5, None, "text", b"bytes", [1, "2"], {"a": None}):
        assert alice.publish(value, "sensors/7") == 1
        assert bob.hear() == value


GLOBS = {
    "*": (["a", "a/b.c", "äö/*"], []),
    "sensors/*": (["sensors/7", "sensors/7/temperature", "sensors/", "sensors/a.b"], ["sensors", "xsensors/7"]),
    "*.created": (["order.created", "a/b.created", ".created"], ["order.created.x", "created"]),
    "a*b*c": (["abc", "a/b.c", "abcbc", "aXbXbXc"], ["ab", "acb", "abcd"]),
    "item-?": (["item-1", "item-/", "item-ä"], ["item-", "item-12"]),
    "[abc]x": (["ax", "bx", "cx"], ["dx", "x", "abx"]),
    "v[0-9]": (["v0", "v7"], ["va", "v", "v10"]),
    "[!a]": (["b", "!", "^"], ["a", "bb"]),
    "[^a]": (["b", "!", "^"], ["a", "bb"]),
    "[]]": (["]"], ["[", "[]]"]),
    "[a-]": (["a", "-"], ["b"]),
    r"a\*b": (["a*b"], ["axb", "ab", r"a\*b"]),
    r"\[x]": (["[x]"], ["x"]),
    r"\?": (["?"], ["a"]),
    "a[b": (["a[b"], ["ab"]),
    "a.c": (["a.c"], ["abc"]),
    "(a|b)+": (["(a|b)+"], ["a", "b"]),
    "line*": (["line\none"], ["\nline"]),
}


@pytest.mark.parametrize("glob", GLOBS)
def test_globs(peers, glob):
    hits, misses = GLOBS[glob]
    alice, bob = peers(2)
    bob.subscribe(shop.channels, glob, pattern=True)
    for topic in misses + hits:
        alice.publish("x", topic)
    assert [bob.hear() for _ in hits] == hits


def test_a_pattern_and_a_channel_of_the_same_name_are_two_things(peers):
    alice, bob = peers(2)
    bob.subscribe(shop.anything, "a*", pattern=True)
    bob.subscribe(shop.anything_too, "a*")
    assert alice.publish(1, "ab") == 1
    assert bob.hear() == 1
    bob.unsubscribe(shop.anything, "a*", pattern=True)
    assert alice.publish(2, "ab") == 0
    assert alice.publish(3, "a*") == 1
    assert bob.hear() == 3


# --- headers and the message ------------------------------------------------------------------------------------------


def test_headers_and_everything_else_a_message_tells(peers):
    alice, bob, carol = peers(3)
    for peer in (bob, carol):
        peer.subscribe(shop.envelopes, "a.channel")
    alice.publish(OrderPlaced(1), "a.channel", headers={"trace": "abc", "ü": "ä\n"})
    alice.publish("bare", "a.channel")
    bobs, carols = [[peer.hear()[1:], peer.hear()[1:]] for peer in (bob, carol)]  # the event's class may be named in one of them only
    assert bobs == carols
    (channel, headers, attempt, first_id, sender, type_name), (_, no_headers, _, second_id, same_sender, _) = bobs
    assert (channel, headers, attempt, type_name) == ("a.channel", {"trace": "abc", "ü": "ä\n"}, 1, "programs.shop.OrderPlaced")
    assert no_headers == {}
    assert first_id != second_id
    assert sender == same_sender


def test_ids_differ_between_publishers(peers):
    publishers, (bob,) = peers(2), peers(1)
    bob.subscribe(shop.envelopes, "c")
    for publisher in publishers:
        for _ in range(3):
            publisher.publish(0, "c")
    messages = [bob.hear() for _ in range(6)]
    assert len({message[4] for message in messages}) == 6
    assert len({message[5] for message in messages}) == 2


def test_a_message_knows_the_channel_it_was_published_to_not_the_pattern(peers):
    alice, bob = peers(2)
    bob.subscribe(shop.envelopes, "a/*", pattern=True)
    alice.publish(1, "a/b")
    assert bob.hear()[:2] == (1, "a/b")


def test_where_the_message_parameter_may_stand(bus, heard):
    def annotated(value, extra: pymq.Message):
        heard(("annotated", value, extra.channel))

    def second(value, anything):
        heard(("second", value, anything.channel))

    def keyword(value, *, message: pymq.Message):
        heard(("keyword", value, message.channel))

    def not_wanted(value, flag="own default"):
        heard(("not wanted", value, flag))

    def whatever(*args, **kwargs):
        heard(("whatever", *args, kwargs))

    async def coroutine(value, message):
        heard(("coroutine", value, message.channel))

    handlers = (annotated, second, keyword, not_wanted, coroutine)
    for handler in handlers:
        bus.subscribe(handler, "c")
    bus.publish(7, "c")
    names = [handler.__name__.replace("_", " ") for handler in handlers]
    expected = {(name, 7, "own default" if name == "not wanted" else "c") for name in names}
    assert set(heard.take(len(handlers))) == expected


def test_large_payloads_keep_their_place_among_small_ones(bus, heard):
    async def coroutine(value: bytes, message):
        heard(("coroutine", value, message.channel))

    for handler in (lambda value: heard(("plain", value)), lambda value, message: heard(("both", value, message.channel)), coroutine):
        bus.subscribe(handler, "sizes")
    payloads = [bytes([number]) * size for number, size in enumerate((3, 4_000, 5_000, 4, 70_000, 100_000, 5))]
    for payload in payloads:
        bus.publish(payload, "sizes")
    found = heard.take(3 * len(payloads))
    for name in ("plain", "both", "coroutine"):
        assert [value for kind, value, *_ in found if kind == name] == payloads
    assert {channel for _, _, *channel in found for channel in channel} == {"sizes"}


# --- handlers ---------------------------------------------------------------------------------------------------------


def test_async_handlers(bus, heard):
    async def handler(event: OrderPlaced):
        await asyncio.sleep(0)
        heard(event)

    bus.subscribe(handler)
    for number in range(20):
        bus.publish(OrderPlaced(number))
    assert heard.take(20) == [OrderPlaced(number) for number in range(20)]


def test_an_async_subscription_is_serial_and_does_not_hold_up_another(bus, heard):
    gates: dict[int, asyncio.Event] = {}
    loops: set[Any] = set()

    async def slow(value: int):
        loops.add(asyncio.get_running_loop())
        gates[value] = asyncio.Event()
        heard(("slow", value))
        await gates[value].wait()

    async def quick(value: int):
        loops.add(asyncio.get_running_loop())
        heard(("quick", value))

    bus.subscribe(slow, "slow")
    bus.subscribe(quick, "quick")
    bus.publish(1, "slow")
    bus.publish(2, "slow")
    assert heard.next() == ("slow", 1)
    bus.publish(3, "quick")
    assert heard.next() == ("quick", 3)
    assert heard.rest() == []
    (loop,) = loops
    loop.call_soon_threadsafe(gates[1].set)
    assert heard.next() == ("slow", 2)
    loop.call_soon_threadsafe(gates[2].set)


class Listener:
    """A handler with a state, equal to others of the same state: what counts is whose method it is."""

    def __init__(self, heard: Heard) -> None:
        self.heard = heard

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listener)

    __hash__ = None

    def on_order(self, event: OrderPlaced) -> None:
        self.heard((id(self), event))

    async def on_order_async(self, event: OrderPlaced, message: pymq.Message) -> None:
        self.heard((id(self), event, message.attempt))


def test_bound_methods(bus, heard):
    one, other = Listener(heard), Listener(heard)
    bus.subscribe(one.on_order)
    bus.subscribe(other.on_order)
    bus.publish(OrderPlaced(1))
    assert {who for who, _ in heard.take(2)} == {id(one), id(other)}
    bus.unsubscribe(one.on_order)
    bus.publish(OrderPlaced(2))
    assert heard.next() == (id(other), OrderPlaced(2))
    bus.unsubscribe(other.on_order)
    assert bus.publish(OrderPlaced(3)) == 0


def test_async_bound_methods(bus, heard):
    listener = Listener(heard)
    bus.subscribe(listener.on_order_async)
    bus.publish(OrderPlaced(1))
    assert heard.next() == (id(listener), OrderPlaced(1), 1)


def test_any_callable_can_be_a_handler(bus, heard):
    class Callable_:
        def __call__(self, value: int) -> None:
            heard(("object", value))

    bus.subscribe(Callable_(), "a")
    bus.subscribe(lambda value: heard(("lambda", value)), "b")
    bus.subscribe(partial(lambda label, value: heard((label, value)), "partial"), "c")
    bus.subscribe(heard, "d")
    for channel in "abcd":
        bus.publish(1, channel)
    assert sorted(map(repr, heard.take(4))) == sorted(map(repr, [("object", 1), ("lambda", 1), ("partial", 1), 1]))


@pytest.mark.parametrize("how", ["object", "partial", "static"])
def test_what_runs_on_the_loop(bus, heard, how):
    """Not only what is `async def` by itself."""

    class Callable_:
        async def __call__(self, event: OrderPlaced) -> None:
            heard(event)

    class Inherited(Callable_):
        pass

    bus.subscribe({"object": Inherited(), "partial": partial(Callable_()), "static": staticmethod(Inherited().__call__)}[how])
    assert bus.publish(OrderPlaced(1)) == 1
    assert heard.next() == OrderPlaced(1)


@pytest.mark.parametrize("form", [{}, {"headers": {"a": "b"}}])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_handler_that_only_returns_a_coroutine_has_failed(bus, heard, caplog, form, workers):
    async def inner(value: int) -> None:
        raise AssertionError("nothing awaits it")

    handlers = {0: inner, 1: heard}
    bus.subscribe(lambda value: handlers[value](value), "c", workers=workers)
    for value in handlers:
        bus.publish(value, "c", **form)
    assert heard.next() == 1
    eventually(lambda: (bus.stats()["failed"], bus.stats()["delivered"]) == ({"c": 1}, {"c": 1}))
    eventually(lambda: "returned a coroutine, which nothing runs" in caplog.text)


def test_several_handlers_on_a_channel(bus, heard):
    def first(value):
        heard(("first", value))

    def second(value):
        heard(("second", value))

    bus.subscribe(first, "c")
    bus.subscribe(second, "c")
    assert bus.publish(1, "c") == 1, "a bus is one receiver"
    assert sorted(heard.take(2)) == [("first", 1), ("second", 1)]
    bus.unsubscribe(first, "c")
    bus.publish(2, "c")
    assert heard.next() == ("second", 2)


def test_unsubscribe_inside_a_handler(bus, heard):
    def once(value):
        heard(("once", value))
        bus.unsubscribe(once, "c")

    def always(value):
        heard(("always", value))

    bus.subscribe(once, "c")
    bus.subscribe(always, "c")
    bus.publish(1, "c")
    assert sorted(heard.take(2)) == [("always", 1), ("once", 1)]
    bus.publish(2, "c")
    assert heard.next() == ("always", 2)
    assert heard.rest() == []


def test_unsubscribed_means_uncounted(peers):
    alice, bob, carol = peers(3)
    for peer in (bob, carol):
        peer.subscribe(shop.orders)
    bob.unsubscribe(shop.orders)
    assert alice.publish(OrderPlaced(1)) == 1
    assert carol.hear() == OrderPlaced(1)
    carol.unsubscribe(shop.orders)
    assert alice.publish(OrderPlaced(2)) == 0


def test_a_subscription_can_be_made_inside_a_handler(bus, heard):
    def on_value(value):
        bus.subscribe(heard, "answers")
        heard("subscribed")

    bus.subscribe(on_value, "c")
    bus.publish(1, "c")
    assert heard.next() == "subscribed"
    assert bus.publish("an answer", "answers") == 1
    assert heard.next() == "an answer"


# --- the decorator ----------------------------------------------------------------------------------------------------


def test_the_forms_of_the_decorator(bus, heard):
    @bus.subscriber
    def bare(event: OrderPlaced):
        heard(("bare", event.order_id))

    @bus.subscriber()
    def called(event: OrderPlaced):
        heard(("called", event.order_id))

    @bus.subscriber("c")
    def by_channel(value):
        heard(("channel", value))

    @bus.subscriber(channel="c")
    def by_keyword(value):
        heard(("keyword", value))

    @bus.subscriber("c*", pattern=True)
    def by_pattern(value: int, message):
        heard((message.channel, value))

    @bus.subscriber
    async def coroutine(event: OrderPlaced):
        heard(("async", event.order_id))

    bus.publish(OrderPlaced(1))
    assert sorted(heard.take(3)) == [("async", 1), ("bare", 1), ("called", 1)]
    bus.publish(2, "c")
    assert sorted(heard.take(3)) == [("c", 2), ("channel", 2), ("keyword", 2)]
    bare(OrderPlaced(3))
    assert heard.next() == ("bare", 3), "the decorated function is the function"


# --- topics -----------------------------------------------------------------------------------------------------------


def test_topics(peers, bus, heard):
    (alice,) = peers(1)
    topic = bus.topic("sensors/7")
    assert isinstance(topic, pymq.Topic)
    assert (topic.name, topic.is_pattern) == ("sensors/7", False)
    assert topic.publish(1) == 0
    topic.subscribe(heard)
    assert topic.publish(21.5) == 1
    assert alice.publish(22.5, "sensors/7") == 1
    assert heard.take(2) == [21.5, 22.5]


def test_a_topic_that_is_a_pattern_can_only_be_subscribed_to(bus, heard):
    topic = bus.topic("sensors/*", pattern=True)
    assert topic.is_pattern
    topic.subscribe(heard)
    bus.publish(1, "sensors/1")
    assert heard.next() == 1
    with pytest.raises(ValueError, match=r"sensors/\*"):
        topic.publish(2)


# --- counts, force and order ------------------------------------------------------------------------------------------


def test_publish_counts_receivers(peers, bus, heard):
    assert bus.publish(OrderPlaced(1)) == 0
    alice, bob = peers(2)
    alice.subscribe(shop.orders)
    alice.subscribe(shop.orders_too)
    assert bus.publish(OrderPlaced(2)) == 1, "two handlers of one bus are one receiver"
    bob.subscribe(shop.orders)
    bob.subscribe(shop.channels, "programs.*", pattern=True)
    assert bus.publish(OrderPlaced(3)) == 2
    bus.subscribe(heard, "programs.shop.OrderPlaced")
    assert bus.publish(OrderPlaced(4)) == 3, "the own bus is one, too"


def test_a_subscription_is_in_force_when_subscribe_returns(peers):
    alice, bob = peers(2)
    for number in range(30):
        bob.subscribe(shop.anything, f"channel-{number}")
        assert alice.publish(number, f"channel-{number}") == 1
        assert bob.hear() == number
        bob.unsubscribe(shop.anything, f"channel-{number}")
        assert alice.publish(number, f"channel-{number}") == 0


def test_every_publisher_is_heard_in_order_by_every_subscriber(peers, place):
    count = int(3000 * place.scale)
    publishers, subscribers = peers(2), peers(2)
    for subscriber in subscribers:
        subscriber.subscribe(shop.counting)
    running = [peer.begin(shop.publish_numbered, number, count) for number, peer in enumerate(publishers)]
    assert [future.result(GUARD * 3) for future in running] == [2 * (count + 1)] * 2
    for subscriber in subscribers:
        assert sorted([subscriber.hear(), subscriber.hear()]) == [(0, count, True), (1, count, True)]


def test_threads_share_a_bus(peers, bus, place):
    count = int(1000 * place.scale)
    (alice,) = peers(1)
    alice.subscribe(shop.counting)

    def publish(publisher):
        for number in (*range(count), -1):
            bus.publish(Numbered(publisher, number))

    for future in [in_thread(publish, publisher) for publisher in range(4)]:
        future.result(GUARD * 3)
    assert sorted(alice.hear() for _ in range(4)) == [(publisher, count, True) for publisher in range(4)]


# --- handlers that fail, are slow, or use the bus ---------------------------------------------------------------------


def test_a_sibling_is_called_though_a_handler_raised(bus, heard):
    def fails(value):
        raise LookupError

    bus.subscribe(fails, "c")
    bus.subscribe(heard, "c")
    bus.publish(1, "c")
    assert heard.next() == 1


@pytest.mark.parametrize("channel", ["the same", "another"])
def test_a_slow_handler_does_not_hold_up_another_subscription(bus, heard, channel):
    gate = threading.Event()

    def slow(value):
        heard("slow begun")
        gate.wait(GUARD)
        heard("slow ended")

    def quick(value):
        heard(("quick", value))

    bus.subscribe(slow, "the same")
    bus.subscribe(quick, channel)
    bus.publish(0, "the same")
    for value in range(1, 50):
        bus.publish(value, channel)
    try:
        wanted = [("quick", value) for value in range(0 if channel == "the same" else 1, 50)]
        said = heard.take(len(wanted) + 1)
        assert [item for item in said if item != "slow begun"] == wanted
        assert "slow begun" in said
    finally:
        gate.set()
    assert heard.next() == "slow ended"


def test_a_subscription_is_serial(bus, heard):
    inside = 0

    def handler(value):
        nonlocal inside
        inside += 1
        threading.Event().wait(0.02)
        heard(inside)
        inside -= 1

    bus.subscribe(handler, "c")
    for value in range(10):
        bus.publish(value, "c")
    assert heard.take(10) == [1] * 10


def test_a_burst_that_a_busy_handler_cannot_keep_up_with_is_kept(peers, place):
    count = int(100_000 * place.scale)
    alice, bob = peers(2)
    bob.subscribe(shop.counting_when_released)
    accepted = alice.begin(shop.publish_numbered, 7, count, padding="x" * 100).result(GUARD * 4)
    assert accepted == count + 1
    bob.release()
    assert bob.hear(GUARD * 4) == (7, count, True)


def test_a_builtin_that_tells_no_signature_may_be_a_handler(bus):
    """`print` tells none before Python 3.11."""
    known: dict[str, int] = {}
    bus.subscribe(known.update, "c")
    bus.publish({"a": 1}, "c")
    eventually(lambda: known == {"a": 1})


def test_a_handler_may_publish(bus, heard):
    def count_down(value: int):
        heard(value)
        if value:
            bus.publish(value - 1, "c")

    bus.subscribe(count_down, "c")
    bus.publish(300, "c")
    assert heard.take(301) == list(range(300, -1, -1))


def test_a_handler_may_flood_its_own_bus(bus, heard, place):
    count = int(20_000 * place.scale)

    def flood(value):
        heard(sum(bus.publish(Numbered(0, number, "x" * 200)) for number in range(count)))

    def on_numbered(event: Numbered):
        if event.number == count - 1:
            heard("the last")

    bus.subscribe(flood, "c")
    bus.subscribe(on_numbered)
    bus.publish(1, "c")
    assert {heard.next(GUARD * 3), heard.next(GUARD * 3)} == {count, "the last"}


def test_a_handler_may_put_and_call(bus, heard):
    def add(a: int, b: int) -> int:
        return a + b

    def handler(value: int):
        queue = bus.queue("jobs")
        queue.put(bus.stub("add", timeout=10)(value, b=1))
        heard(queue.get(timeout=10))

    bus.expose(add, "add")
    bus.subscribe(handler, "c")
    for value in range(5):
        bus.publish(value, "c")
    assert heard.take(5) == [1, 2, 3, 4, 5]
    bus.queue("jobs").free()


def test_an_async_handler_may_publish_put_and_call(bus, heard):
    bus.expose(lambda value: value * 2, "double")

    async def handler(value: int):
        bus.publish(value, "next")
        bus.queue("jobs").put(value)
        heard(bus.stub("double", timeout=10)(value))

    bus.subscribe(handler, "c")
    bus.subscribe(lambda value: heard(("next", value)), "next")
    bus.publish(4, "c")
    assert {heard.next(), heard.next()} == {8, ("next", 4)}
    bus.queue("jobs").free()


# --- receivers that are stopped, dead or behind -----------------------------------------------------------------------


# --- wrong use --------------------------------------------------------------------------------------------------------


def _no_hint(value):
    pass


def _no_parameter():
    pass


def _generator(value):
    yield


WRONG: dict[str, Callable[[pymq.EventBus], Any]] = {
    "a generator": lambda bus: bus.subscribe(_generator, "c"),
    "a generator as a remote": lambda bus: bus.expose(_generator),
    "no channel to derive": lambda bus: bus.subscribe(_no_hint),
    "no parameter": lambda bus: bus.subscribe(_no_parameter, "c"),
    "not callable": lambda bus: bus.subscribe("not callable", "c"),
    "channel is no text": lambda bus: bus.publish(1, 42),
    "subscribed channel is no text": lambda bus: bus.subscribe(_no_hint, 42),
    "not a glob": lambda bus: bus.subscribe(_no_hint, "[z-a]", pattern=True),
    "negative delay": lambda bus: bus.publish(1, "c", delay=-1),
    "negative ttl": lambda bus: bus.publish(1, "c", ttl=-1),
    "headers are no mapping": lambda bus: bus.publish(1, "c", headers=["a"]),
    "header is no text": lambda bus: bus.publish(1, "c", headers={"a": object()}),
    "pattern without one": lambda bus: bus.subscribe(_no_hint, pattern=True),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_use_is_refused(bus, wrong):
    with pytest.raises((ValueError, TypeError)) as caught:
        WRONG[wrong](bus)
    assert len(str(caught.value)) > 10, "says what is wrong"


@pytest.mark.parametrize("event", [OrderPlaced(1), ("hashable",)], ids=["not hashable", "hashable"])
@pytest.mark.parametrize("options", [{}, {"headers": {"a": "b"}}], ids=["plain", "headers"])
def test_publish_with_its_arguments_the_wrong_way_round(bus, event, options):
    said = r"publish\(event, channel\): the channel is a text, not " + re.escape(repr(event))
    with pytest.raises(TypeError, match=said):
        bus.publish("c", event, **options)


@pytest.mark.parametrize("channel", ["c", None])
def test_a_value_that_cannot_travel_is_refused_by_publish(bus, heard, channel):
    bus.subscribe(heard, "c")
    with pytest.raises(pymq.CodecError, match="object"):
        bus.publish(object(), channel)
    assert bus.publish("fine", "c") == 1
    assert heard.next() == "fine"


def test_a_value_that_does_not_fit_the_hint_does_not_reach_the_handler(bus, heard, caplog):
    def handler(event: OrderPlaced):
        heard(event)

    bus.subscribe(handler, "c")
    bus.publish("not an order", "c")
    bus.publish({"order_id": "not a number", "total": "1"}, "c")
    bus.publish(OrderPlaced(1), "c")
    assert heard.next() == OrderPlaced(1)
    assert [record.levelno >= logging.ERROR for record in caplog.records].count(True) == 2


# --- a bus that runs for weeks ----------------------------------------------------------------------------------------


def test_a_channel_for_each_user_is_not_kept_for_ever(bus, monkeypatch):
    monkeypatch.setattr("pymq.bus.MOST_CHANNELS", 5)
    monkeypatch.setattr("pymq.routes.MOST_CHANNELS", 5)
    heard = Heard()
    bus.subscribe(lambda value, message: heard((message.channel, int(value), message.id)), "user/*", pattern=True)
    values = [*range(12), *range(12)]
    for number, user in enumerate(values):
        bus.publish((number, str(number))[number % 2], f"user/{user}", headers=(None, {"a": "b"})[number % 3 == 0])
    found = sorted((heard.next() for _ in values), key=lambda event: event[1])
    assert [(channel, number) for channel, number, _ in found] == [(f"user/{user}", number) for number, user in enumerate(values)]
    assert len({identity for *_, identity in found}) == len(values)
    for earlier, later in zip(found[:12], found[12:]):
        assert int(earlier[2].rpartition("-")[2], 16) < int(later[2].rpartition("-")[2], 16)
    assert bus.stats()["published"] == {**{f"user/{user}": 2 for user in range(5)}, "": 14}
    assert len(bus.routes) <= 5


def test_ids_increase_in_a_channel_whatever_is_published_there(bus, heard):
    bus.subscribe(lambda value, message: heard((value, message.sequence)), "c")
    values = [1, "a", 2, "b", 1.5, 3]
    for value in values:
        bus.publish(value, "c")
    found = dict(heard.next() for _ in values)
    assert sorted(found, key=found.__getitem__) == values
    assert bus.stats()["published"] == {"c": len(values)}


# --- wait -------------------------------------------------------------------------------------------------------------


def test_wait_blocks_until_shutdown(config):
    bus = pymq.EventBus(config)
    bus.start()
    assert bus.wait(timeout=0) is False
    waiting = in_thread(bus.wait)
    assert not waiting.done()
    bus.shutdown()
    assert waiting.result(GUARD) is True
