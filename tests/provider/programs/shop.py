"""A shop's events, and the handlers and remotes that its participants use; each is made for one participant.

The annotations are strings here (`from __future__ import annotations`), as in many a program.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import pymq
from programs.participant import Participant


@dataclass
class OrderPlaced:
    order_id: int
    total: Decimal = Decimal("9.50")


@dataclass
class RushOrder(OrderPlaced):
    hours: int = 24


@dataclass
class GiftOrder(OrderPlaced):
    text: str = ""


@dataclass
class RushGift(RushOrder, GiftOrder):
    """Reaches the handlers of OrderPlaced by two ways."""


@pymq.event("sensors.reading")
@dataclass
class Reading:
    value: float
    unit: str = "C"


@dataclass
class Numbered:
    """An event of a known publisher and place in its order."""

    publisher: int
    number: int
    padding: str = ""


class Basket(NamedTuple):
    items: list[str]
    orders: dict[int, OrderPlaced]


@dataclass
class Secret:
    """Never named by a fresh participant that only subscribes to channels."""

    word: str = field(default="xyzzy")


# --- handlers ---------------------------------------------------------------------------------------------------------


def orders(me: Participant) -> Callable[..., Any]:
    def on_order(event: OrderPlaced) -> None:
        me.say(event)

    return on_order


def orders_too(me: Participant) -> Callable[..., Any]:
    def on_order_too(event: OrderPlaced) -> None:
        me.say(("too", event))

    return on_order_too


def rush_orders(me: Participant) -> Callable[..., Any]:
    def on_rush(event: RushOrder) -> None:
        me.say(("rush", event))

    return on_rush


def readings(me: Participant) -> Callable[..., Any]:
    def on_reading(event: Reading) -> None:
        me.say(event)

    return on_reading


def numbered(me: Participant) -> Callable[..., Any]:
    def on_numbered(event: Numbered) -> None:
        me.say((event.publisher, event.number))

    return on_numbered


def counting(me: Participant) -> Callable[..., Any]:
    """Says how many came from whom, and whether in order, when the publisher's last (number -1) comes."""
    seen: dict[int, list[int]] = {}

    def on_counted(event: Numbered) -> None:
        numbers = seen.setdefault(event.publisher, [])
        if event.number >= 0:
            return numbers.append(event.number)
        return me.say((event.publisher, len(numbers), numbers == sorted(numbers)))

    return on_counted


def counting_when_released(me: Participant) -> Callable[..., Any]:
    """The same, but busy with its first event until it is released."""
    count = counting(me)

    def on_numbered(event: Numbered) -> None:
        me.gate.wait()
        count(event)

    return on_numbered


def anything(me: Participant) -> Callable[..., Any]:
    def on_anything(event: Any) -> None:
        me.say(event)

    return on_anything


def anything_too(me: Participant) -> Callable[..., Any]:
    def on_anything_too(event: Any) -> None:
        me.say(event)

    return on_anything_too


def channels(me: Participant) -> Callable[..., Any]:
    def on_channel(event: Any, message: pymq.Message) -> None:
        me.say(message.channel)

    return on_channel


def envelopes(me: Participant) -> Callable[..., Any]:
    """Says all that a message tells, and the value."""

    def on_message(event: Any, message: pymq.Message) -> None:
        me.say((event, *_envelope(message)))

    return on_message


def _envelope(message: pymq.Message) -> tuple[Any, ...]:
    return message.channel, dict(message.headers or {}), message.attempt, message.id, message.sender, message.type_name


def attempts(me: Participant) -> Callable[..., Any]:
    def on_attempt(event: Any, message: pymq.Message) -> None:
        me.say((event, message.attempt))

    return on_attempt


def held(me: Participant) -> Callable[..., Any]:
    """Says what came, then keeps it until it is released."""

    def on_held(event: Any, message: pymq.Message) -> None:
        me.say((event, message.attempt))
        me.gate.wait()

    return on_held


def held_async(me: Participant) -> Callable[..., Any]:
    async def on_held_async(event: Any, message: pymq.Message) -> None:
        me.say((event, message.attempt))
        while not me.gate.is_set():
            await asyncio.sleep(0.01)

    return on_held_async


def working(me: Participant) -> Callable[..., Any]:
    """Says what it has done in which process, after a moment of work."""
    pause = threading.Event()

    def on_work(event: Any) -> None:
        pause.wait(0.001)
        me.say((event, os.getpid()))

    return on_work


def poisoned(me: Participant) -> Callable[..., Any]:
    """Fails on "poison", every time."""

    def on_poison(event: str, message: pymq.Message) -> None:
        me.say((event, message.attempt))
        if event == "poison":
            raise LookupError("no antidote", 42)

    return on_poison


# --- remotes ----------------------------------------------------------------------------------------------------------


def add(me: Participant) -> Callable[..., Any]:
    def add(a: int, b: int = 2) -> int:
        return a + b

    return add


def who(me: Participant) -> Callable[..., Any]:
    def who() -> int:
        me.say("asked")
        return os.getpid()

    return who


def kinds(me: Participant) -> Callable[..., Any]:
    """Tells of every argument what it came as."""

    def kinds(first: OrderPlaced, second: Decimal = Decimal(1), *rest: timedelta, named: set[int], **more: Basket) -> list[str]:
        return [repr(value) for value in (first, second, *rest, named, *more.values())]

    return kinds


def double(me: Participant) -> Callable[..., Any]:
    def double(order: OrderPlaced) -> OrderPlaced:
        return OrderPlaced(order.order_id * 2, order.total * 2)

    return double


def later(me: Participant) -> Callable[..., Any]:
    async def later(value: str) -> str:
        await asyncio.sleep(0)
        return value.upper()

    return later


def refuse(me: Participant) -> Callable[..., Any]:
    def refuse(reason: str) -> None:
        raise LookupError(reason, 42)

    return refuse


def refuse_here_only(me: Participant) -> Callable[..., Any]:
    """Fails in the participants that were told so."""

    def refuse_here_only() -> str:
        if "fails" in me.made:
            raise LookupError("here")
        return "fine"

    return refuse_here_only


def fail_here(me: Participant) -> None:
    me.made["fails"] = True


def hang(me: Participant) -> Callable[..., Any]:
    def hang(value: Any = None) -> Any:
        me.say(("begun", value))
        me.gate.wait()
        return value

    return hang


def product_by_stub(me: Participant) -> Callable[..., Any]:
    """Calls `add` of its own process, while it is being called."""

    def product(a: int, b: int) -> int:
        total = 0
        for _ in range(b):
            total = me.bus.stub("add", timeout=10)(total, b=a)
        return total

    return product


# --- whole errands ----------------------------------------------------------------------------------------------------


def publish_numbered(me: Participant, publisher: int, count: int, channel: str | None = None, padding: str = "") -> int:
    """Publishes that many and the last (number -1); how many copies were accepted."""
    accepted = 0
    for number in (*range(count), -1):
        accepted += me.bus.publish(Numbered(publisher, number, padding), channel) or 0
    return accepted


def produce(me: Participant, name: str, producer: int, count: int) -> None:
    queue = me.bus.queue(name)
    for number in range(count):
        queue.put([producer, number])


def consume(me: Participant, name: str) -> list[Any]:
    """Everything up to None, which stays for the other consumers."""
    queue, items = me.bus.queue(name), []
    while (item := queue.get(timeout=20)) is not None:
        items.append(item)
    queue.put(None)
    return items


def call(me: Participant, name: Any, *args: Any, timeout: float | None = 10, multi: bool = False, **kwargs: Any) -> Any:
    return me.bus.stub(name, timeout=timeout, multi=multi)(*args, **kwargs)


def get_as(me: Participant, name: str, type: Any) -> Any:
    return me.bus.queue(name, type=type).get(timeout=10)


def take_and_hold(me: Participant, name: str, lease: float = 30.0) -> None:
    """Takes an item, says so, and keeps it until it is released."""
    with me.bus.queue(name).take(timeout=10, lease=lease) as job:
        me.say((job.value, job.attempt))
        me.gate.wait()


def receive_and_keep(me: Participant, name: str, lease: float = 30.0) -> tuple[Any, int]:
    me.made["delivery"] = delivery = me.bus.queue(name).receive(timeout=10, lease=lease)
    return delivery.value, delivery.attempt


def settle(me: Participant, verb: str, *args: Any) -> None:
    """ack, nack or extend what was kept."""
    getattr(me.made["delivery"], verb)(*args)


def pid(me: Participant) -> int:
    return os.getpid()


def unexpose(me: Participant, name: str) -> None:
    me.bus.unexpose(name)


def bind(me: Participant, group: str, channel: str) -> None:
    me.bus.group(group).bind(channel)


def stats(me: Participant) -> dict[str, dict[str, int]]:
    return me.bus.stats()


def hang_on_one(me: Participant) -> Callable[..., Any]:
    def hang_on_one(number: int) -> int:
        if number == 1:
            me.say("begun")
            me.gate.wait()
        return number

    return hang_on_one


def subscribe_with_a_small_pipe(me: Participant) -> None:
    """`counting_when_released`, from an inbox whose pipe holds 8 KiB."""
    from pymq.provider._shm import inbox as _inbox

    usual, _inbox._PIPE_BYTES = _inbox._PIPE_BYTES, 8192
    try:
        me.bus.subscribe(counting_when_released(me))
    finally:
        _inbox._PIPE_BYTES = usual
