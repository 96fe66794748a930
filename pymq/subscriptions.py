"""Subscriptions: which handlers of this bus an event is for, and running them."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from pymq import message as frames
from pymq.dispatch import MAX_BACKLOG, Serial, Task, join, persist
from pymq.exceptions import CodecError, NotInitialized
from pymq.handlers import Handler, Shape, Target, describe, unrun
from pymq.loop import COUNTS_CANCELLATIONS, Loop, Shift, is_cancelled
from pymq.message import Message, Prefix, beside, size_of
from pymq.topics import matcher

if TYPE_CHECKING:
    from pymq.bus import EventBus

log: logging.Logger = logging.getLogger("pymq")

MOST_PREFIXES = 10_000


class Work:
    """One handler: decodes a message and calls it, and counts how that went. The base of subscriptions and group members."""

    def __init__(self, bus: EventBus, target: Target) -> None:
        self.bus = bus
        self.loop: Loop = bus.loop
        """That of now: a bus that was shut down, and starts again, has another."""
        self.target = target
        self.callback: Handler = target.callback
        self.shape: Shape = target.shape
        self.hint: Any = target.hint
        self.channel: str = target.channel
        self.pattern: bool = target.pattern
        self.name: str = describe(self.callback)
        self.matches: Callable[[str], bool] = matcher(target.channel) if target.pattern else target.channel.__eq__
        self.delivered = 0
        self.failed = 0
        self.expired = 0
        self._decoders: dict[tuple[int, str], Callable[[bytes], Any]] = {}

    def decoder(self, form: int, type_name: str) -> Callable[[bytes], Any]:
        """What makes an event of a payload, as the handler's hint wants it. Raises CodecError, as what it returns does."""
        try:
            return self._decoders[form, type_name]
        except KeyError:
            from pymq import codec

            found = self._decoders[form, type_name] = codec.decoder_for(form, type_name, self.hint)
            return found

    def counts(self) -> dict[str, int]:
        """For `EventBus.stats`."""
        found = {"delivered": self.delivered, "failed": self.failed, "expired": self.expired}
        return {kind: count for kind, count in found.items() if count}


class Subscription(Work):
    """A handler of events that come to the bus's inbox: serial, in order, at most once."""

    def __init__(self, bus: EventBus, target: Target) -> None:
        super().__init__(bus, target)
        self.serial: Serial = Serial()
        self.active: bool = True

    def run(self, message: bytes) -> None:
        """Handle one message; whatever the handler raises is logged and counted."""
        if not self.active:
            return
        try:
            event, about = self.unpack(message)
            args, kwargs = self.shape.arguments(event, about)
            result = self.callback(*args, **kwargs)
            if result is not None and (error := unrun(self.callback, result)):
                raise error
            self.delivered += 1
        except _Expired:
            self.expired += 1
        except BaseException as error:
            self.fail(error)

    def unpack(self, message: bytes) -> tuple[Any, Message | None]:
        """The event, and the `Message` where the handler wants it. Raises CodecError."""
        frame = frames.unpack(message)
        expires = frame.options.get("expires")
        if expires is not None and self.bus.provider.clock() > expires:
            raise _Expired
        event = self.decoder(frame.prefix.form, frame.prefix.type_name)(frame.payload)
        return event, Message(frame.sequence, frame.prefix, frame.options) if self.shape.wants_message else None

    def fail(self, error: BaseException) -> None:
        """Count and report what a handler raised: also SystemExit and KeyboardInterrupt, which must not end a loop."""
        self.failed += 1
        with suppress(Exception):  # of a log handler of the program's: the loop of an `async def` handler would end
            log.error("the handler %s failed for an event on %r", self.name, self.channel, exc_info=error)

    def counts(self) -> dict[str, int]:
        return super().counts() | ({"dropped": self.serial.dropped} if self.serial.dropped else {})

    @property
    def waiting(self) -> int:
        """How many messages have come and wait for the handler."""
        return len(self.serial.backlog)

    def end(self) -> None:
        """No event reaches the handler any more."""
        self.active = False


class _Expired(Exception):
    pass


class _Plain:
    """The hot path: a plain function that takes the event alone, and messages of one prefix without options."""

    __slots__ = ("name", "run", "serial")

    def __init__(self, subscription: Subscription, packed: bytes, prefix: Prefix) -> None:
        from pymq import codec

        decode = codec.decoder_for(prefix.form, prefix.type_name, subscription.hint)
        callback, start = subscription.callback, frames.START.size + len(packed) + frames.time_size(prefix)

        def run(message: bytes) -> None:
            try:
                if subscription.active:
                    result = callback(decode(message[start:] or beside(message)))
                    if result is not None and (failure := unrun(callback, result)):
                        raise failure
                    subscription.delivered += 1
            except BaseException as error:
                subscription.fail(error)

        self.run = run
        self.name = subscription.name
        self.serial = subscription.serial


class Coroutines(Subscription):
    """An `async def` handler: runs on the bus's loop, serial."""

    def __init__(self, bus: EventBus, target: Target) -> None:
        super().__init__(bus, target)
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._mutex = threading.Lock()
        self._busy = False

    def run(self, message: bytes) -> None:
        with self._mutex:
            if self._bytes + size_of(message) > MAX_BACKLOG and self._waiting:
                self.serial.dropped += 1
                return
            self._waiting.append(message)
            self._bytes += size_of(message)
            if self._busy:
                return
            self._busy = True
        try:
            self._begin()
        except BaseException:  # no thread to be had: the next event begins with this one
            self._busy = False
            raise

    def _begin(self) -> None:
        self.loop.submit(self.name, self._drain())

    async def _drain(self) -> None:
        shift, goes_on = Shift(), True
        while True:
            with self._mutex:
                if not self._waiting or not self.active or not goes_on:
                    self._busy = False
                    return None
                message = self._waiting.popleft()
                self._bytes -= size_of(message)
            is_well = await self._handle(message, shift)
            if not is_well or monotonic() > shift.turn_ends:
                goes_on = await shift.goes_on()
            if goes_on and not shift.is_clean():
                return shift.hand_over(self._begin)

    async def _handle(self, message: bytes, shift: Shift) -> bool:
        try:
            event, about = self.unpack(message)
            args, kwargs = self.shape.arguments(event, about)
            coroutine: Coroutine[Any, Any, Any] = self.callback(*args, **kwargs)
            await (coroutine if COUNTS_CANCELLATIONS else shift.apart(coroutine))
            self.delivered += 1
            return True
        except _Expired:
            self.expired += 1
        except BaseException as error:
            if self.active or not is_cancelled(error):  # what the end of the bus has cancelled is told by that
                self.fail(error)
        return False

    @property
    def waiting(self) -> int:
        return len(self._waiting)


class Pooled(Subscription):
    """A handler that `workers` threads run at once, in no order."""

    def __init__(self, bus: EventBus, target: Target, workers: int) -> None:
        super().__init__(bus, target)
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._mutex = threading.Lock()
        self._bytes = 0
        self.threads: list[threading.Thread] = [
            threading.Thread(target=persist, args=[self._work], name=f"pymq-{self.name}", daemon=True) for _ in range(workers)
        ]
        try:
            for thread in self.threads:
                thread.start()
        except BaseException:  # no more threads to be had
            self.stop()
            raise

    def run(self, message: bytes) -> None:
        with self._mutex:
            if self._bytes + size_of(message) > MAX_BACKLOG and self._bytes:
                self.serial.dropped += 1
                return
            self._bytes += size_of(message)
        self._queue.put(message)

    def _work(self) -> None:
        while (message := self._queue.get()) is not None:
            super().run(message)
            with self._mutex:  # afterwards: none means that nothing waits and nothing runs
                self._bytes -= size_of(message)

    @property
    def waiting(self) -> int:
        return max(0, self._queue.qsize() - len(self.threads))  # behind them is one None for each thread

    def stop(self) -> None:
        """The threads end when they have handled what has come."""
        for _ in self.threads:
            self._queue.put(None)

    def end(self) -> None:
        super().end()
        self.stop()


class Subscriptions:
    """The subscriptions of one bus that are not in a group, and how they are bound."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._lock = threading.RLock()
        self._all: list[Subscription] = []
        self.tasks: dict[bytes, tuple[Task, ...]] = {}

    def all(self) -> list[Subscription]:
        """Those that are active."""
        return list(self._all)

    def add(self, target: Target, workers: int) -> Subscription:
        """Subscribe; in force on return."""
        from pymq import codec

        codec.name_type(target.hint)
        inbox = self._bus.inbox_ready()
        subscription: Subscription
        if workers > 1 and not target.shape.is_async:
            subscription = Pooled(self._bus, target, workers)
        else:
            subscription = (Coroutines if target.shape.is_async else Subscription)(self._bus, target)
        with self._lock:
            self._all = [*self._all, subscription]
            self.tasks.clear()
        try:
            self._bus.provider.bind(inbox, "e/" + target.channel, exact=not target.pattern)
        except BaseException:
            self._forget([subscription])
            raise
        return subscription

    def finish(self, deadline: float) -> list[str]:
        """Let the handlers that have threads of their own handle what has come, until the deadline; say which still run."""
        pooled = [s for s in self._all if isinstance(s, Pooled)]
        for subscription in pooled:
            subscription.stop()
        return [f"the handler {s.name}, which still runs" for s in pooled if not join(s.threads, lambda: None, deadline)]

    def end(self) -> list[str]:
        """No handler is called any more: the bus ends. Say what waited for those that still ran."""
        ended = self._all
        abandoned = [f"{s.waiting} messages that waited for the handler {s.name}" for s in ended if s.waiting]
        self._forget(ended)
        return abandoned

    def remove(self, callback: Callable[..., Any], channel: str | None, pattern: bool) -> bool:
        """Unsubscribe; whether there was anything."""
        with self._lock:
            gone = [s for s in self._all if s.target.is_of(callback, channel, pattern)]
            self.drop(gone)
        return bool(gone)

    def drop(self, gone: list[Subscription]) -> None:
        """End these, and no other of the same handler."""
        with self._lock:
            self._forget(gone)
            still = {(s.channel, s.pattern) for s in self._all}
            for subscription in gone:
                if (subscription.channel, subscription.pattern) not in still:
                    self._bus.provider.unbind(self._bus.inbox, "e/" + subscription.channel, exact=not subscription.pattern)

    def _forget(self, gone: list[Subscription]) -> None:
        with self._lock:
            self._all = [s for s in self._all if s not in gone]
            self.tasks.clear()
        for subscription in gone:
            subscription.end()

    def look_up(self, packed: bytes, prefix: Prefix) -> tuple[Task, ...]:
        """The subscriptions that a message with this prefix is for, each once; kept until the subscriptions change."""
        topics = (prefix.channel, *prefix.topics)
        with self._lock:
            found = tuple(self._task(s, packed, prefix) for s in self._all if any(map(s.matches, topics)))
            return self.keep(packed, found)  # here: who subscribes in between would be left out of what is kept

    def keep(self, packed: bytes, found: tuple[Task, ...]) -> tuple[Task, ...]:
        """Who is to get messages with this prefix; callers come and go, and each thread of theirs has a prefix."""
        if len(self.tasks) >= MOST_PREFIXES:
            self.tasks.clear()
        self.tasks[packed] = found
        return found

    def _task(self, subscription: Subscription, packed: bytes, prefix: Prefix) -> Task:
        if prefix.flags & frames.OPTIONS:
            return _Due(self._bus, subscription)
        if type(subscription) is Subscription and not subscription.shape.wants_message:
            try:
                return _Plain(subscription, packed, prefix)
            except CodecError:
                pass  # of a form that only a newer pymq reads: the subscription reports each
        return subscription


class _Due:
    """A subscription as messages with options reach it: those that are not due yet wait for their time."""

    def __init__(self, bus: EventBus, task: Task) -> None:
        self._bus = bus
        self._task = task
        self.name = task.name
        self.serial = task.serial

    def run(self, message: bytes) -> None:
        try:
            due = frames.unpack(message).options.get("due")
            left = 0.0 if due is None else due - self._bus.provider.clock()
        except (CodecError, TypeError, NotInitialized):
            left = 0.0  # the task finds out and reports it
        if left > 0:
            self._bus.later(left, self._task, message)
        else:
            self._task.run(message)
