"""Consumer groups: one shared queue per (group, channel or pattern), whose members compete and ack after their handlers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pymq import message as frames
from pymq.deliveries import BACKOFF, LEASE, RETRIES, Leased, Policy, check_retries
from pymq.dispatch import back_off, join, persist
from pymq.exceptions import CodecError, LeaseLost, PymqError, QueueNotFound, Reject, Retry
from pymq.handlers import Target, unrun
from pymq.loop import is_cancelled
from pymq.provider.base import Delivery, Receipt
from pymq.queues import DeadLetters
from pymq.routes import check_lease
from pymq.subscriptions import Work
from pymq.topics import check_channel, topic_of

if TYPE_CHECKING:
    from pymq.bus import EventBus

log: logging.Logger = logging.getLogger("pymq")

MAX_PLAIN = 10_000

Plain: TypeAlias = "tuple[bytes, int, Callable[[bytes], Any], int]"
"""A prefix with its length, where it ends, what decodes the payload, where that begins."""


class Options(NamedTuple):
    """How a group's member works: retries, seconds before the first of them, seconds of a lease, threads."""

    retries: int
    backoff: float
    lease: float
    workers: int

    @classmethod
    def of(
        cls,
        group: str | None = None,
        retries: int | None = None,
        backoff: float | None = None,
        lease: float | None = None,
        workers: int | None = None,
    ) -> Options:
        """With the defaults in the places of None. Raises ValueError for what cannot be, or means nothing without a group."""
        if group is None:
            refuse_without_group(retries=retries, backoff=backoff, lease=lease)
        else:
            check_group(group)
        retries, workers = RETRIES if retries is None else retries, 1 if workers is None else workers
        backoff, lease = BACKOFF if backoff is None else backoff, LEASE if lease is None else lease
        check_lease(lease)
        check_retries(retries, backoff)
        if not (isinstance(workers, int) and workers >= 1):
            raise ValueError(f"workers={workers!r}: a number of threads, at least 1")
        return cls(retries, backoff, lease, workers)


def refuse_without_group(**options: float | None) -> None:
    """Raises ValueError for one that is given."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name}={value!r} needs group=: it is for consumer groups, and would do nothing here")


def check_group(name: str) -> None:
    """Raises ValueError for what is no group's name."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"a group's name is a text without NUL, not {name!r}")


class Group:
    """A consumer group by its name; it exists from its first subscription or `bind` on, and lives until `delete`."""

    def __init__(self, bus: EventBus, name: str) -> None:
        check_group(name)
        self._bus = bus
        self.name = name

    def bind(self, channel: type | str, pattern: bool = False) -> None:
        """Keep what is published to the channel from now on, also while the group has no member."""
        name = topic_of(channel) if isinstance(channel, type) else channel
        check_channel(name, pattern)
        queue = self.queue_of(name, pattern)
        self._bus.provider.declare(queue)
        self._bus.provider.bind(queue, "e/" + name, exact=not pattern)

    def delete(self) -> None:
        """The group, all it keeps and its dead letters are gone; its members stop."""
        for member in self._bus._members:
            member.is_deleted_here = member.is_deleted_here or member.group.name == self.name
        for queue in self._queues():
            self._bus.provider.delete(queue)
        self._bus.provider.delete(self.dead_queue)

    def qsize(self) -> int:
        """How many events wait for a member: the leased do not count."""
        return sum(self._bus.provider.size(queue) for queue in self._queues())

    @property
    def dead(self) -> DeadLetters:
        """The events that failed too often or were rejected."""
        return DeadLetters(self._bus, self.dead_queue)

    @property
    def dead_queue(self) -> str:
        """The provider's name of the dead-letter queue."""
        return f"group-dead/{self.name}"

    def queue_of(self, channel: str, pattern: bool) -> str:
        """The provider's name of the group's queue for that channel or pattern."""
        return f"group/{self.name}\0{'~' if pattern else '='}{channel}"

    def _queues(self) -> list[str]:
        return list(self._bus.provider.queues(f"group/{self.name}\0"))

    def __repr__(self) -> str:
        return f"Group({self.name!r})"


class Member(Work):
    """One subscription with `group=`: its threads receive from the group's queue and run the handler themselves."""

    def __init__(
        self,
        bus: EventBus,
        group: Group,
        target: Target,
        options: Options,
    ) -> None:
        super().__init__(bus, target)
        retries, backoff, lease, workers = options
        self.group = group
        self.retried: int = 0
        self.dead: int = 0
        self._policy = Policy(retries, backoff, group.dead_queue)
        self._lease = lease
        self._queue = group.queue_of(target.channel, target.pattern)
        self.is_deleted_here: bool = False
        self._stopping = self._is_inherited = False
        self._handling: set[threading.Thread] = set()
        self._plain: dict[bytes, Plain] = {}
        self._latest: Plain = b"none yet", 8, bytes, 8
        self._threads = [
            threading.Thread(target=persist, args=[self._consume], name=f"pymq-{group.name}", daemon=True) for _ in range(workers)
        ]

    def start(self) -> None:
        """The group exists and this member takes part in it on return."""
        from pymq import codec

        codec.name_type(self.hint)
        self.group.bind(self.channel, self.pattern)
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # no more threads to be had: those that run would take events for nobody
            self.leave()
            raise

    def counts(self) -> dict[str, int]:
        more = {"retried": self.retried, "dead": self.dead}
        return super().counts() | {kind: count for kind, count in more.items() if count}

    def stop(self) -> None:
        """Take nothing more; `Provider.wake` ends the waiting."""
        self._stopping = True

    def end_with_the_handler(self) -> None:
        """In a forked child: the thread that has forked ends when its handler returns, and leaves the event to the parent."""
        self._stopping = self._is_inherited = True

    def leave(self) -> None:
        """Take nothing more: on return no event can come to it but those that it handles now."""
        self.stop()
        while waiting := [thread for thread in self._threads if thread.is_alive() and thread not in self._handling]:
            self.bus.provider.wake()
            waiting[0].join(0.01)

    def is_handling(self, thread: threading.Thread) -> bool:
        """Whether that thread runs the handler; not the event loop's."""
        return thread in self._handling

    def join(self, deadline: float) -> list[str]:
        """Wait for the handlers that run; say which still do."""
        if join(self._threads, self.bus.provider.wake, deadline):
            return []
        return [f"the handler {self.name} of group {self.group.name!r}, which still runs"]

    def _consume(self) -> None:
        provider, thread, failures = self.bus.provider, threading.current_thread(), 0
        while not self._stopping:
            try:
                found = provider.receive(self._queue, None, lease=self._lease)
                failures = 0
                while found:
                    found = self._handle(found, thread)
            except QueueNotFound:
                return self._tell_deleted()
            except Exception as error:
                if not self._stopping:
                    log.error("group %r: %s; trying again", self.group.name, error, exc_info=not isinstance(error, PymqError))
                    failures += 1
                    self._pause(back_off(failures))
        return None

    def _pause(self, length: float) -> None:
        """At most: whoever stops this member waits for its threads."""
        until = time.monotonic() + length
        while not self._stopping and time.monotonic() < until:
            time.sleep(0.1)

    def _tell_deleted(self) -> None:
        """Who has deleted the group knows; for everybody else its work ends without their doing."""
        level = logging.INFO if self.is_deleted_here else logging.WARNING
        log.log(level, "the group %r was deleted; %s stops", self.group.name, self.name)

    def _tell_late(self) -> None:
        if not self.is_deleted_here:
            log.warning("%s took longer than its lease; the event was given to another member", self.name)

    def _handle(self, found: list[Delivery], thread: threading.Thread) -> list[Delivery]:
        """Run the handler for one event and settle it by what came of it; the next one, where that is at hand."""
        ((message, receipt),) = found
        assert receipt is not None
        self.bus.leases.hold(receipt, self._lease)
        self._handling.add(thread)
        try:
            try:
                self._call(message, receipt)
            except BaseException as error:
                self.settle(message, receipt, error)
                return []
            finally:
                self._handling.discard(thread)  # before the next is taken, else `leave` would not wait for that
            if self._stopping:
                self.settle(message, receipt, None)
                return []
            return self._settle_and_receive(receipt)
        finally:
            self.bus.leases.release(receipt)

    def _settle_and_receive(self, receipt: Receipt) -> list[Delivery]:
        """Ack the event; the next one, where that is at hand: both at once take half the time."""
        try:
            found = self.bus.provider.ack_and_receive(receipt, lease=self._lease)
            self.delivered += 1
        except LeaseLost:
            self._tell_late()
            return []
        return found

    def settle(self, message: bytes, receipt: Receipt, error: BaseException | None) -> None:
        """Ack the event, or do with it what follows from the error; a handler that the end of the bus has cancelled has not failed."""
        if self._is_inherited:
            return
        try:
            if error is None:
                self.bus.provider.ack(receipt)
                self.delivered += 1
            else:
                abandoned = self._stopping and is_cancelled(error)
                self._fail(Leased(self.bus.provider, message, receipt, self._policy), Retry() if abandoned else error)
        except LeaseLost:
            self._tell_late()

    def _call(self, message: bytes, receipt: Receipt) -> None:
        """Most messages have no options, are delivered for the first time, and their handler takes the event alone: the hot path."""
        if receipt.attempt > 1:
            return self._call_with_care(message, receipt)
        known, end, decode, start = self._latest
        if message[8:end] != known:  # most have the prefix of the one before: 0.2 us less than to look it up
            plain = self._plain.get(frames.prefix_of(message))
            if plain is None:
                return self._call_with_care(message, receipt)
            self._latest = plain
            _, _, decode, start = plain
        result = self.callback(decode(message[start:]))
        if result is not None and (error := unrun(self.callback, result)):
            raise error
        return None

    def _call_with_care(self, message: bytes, receipt: Receipt) -> None:
        frame, args, kwargs = self._unpack(message, receipt)
        if not (frame.options or self.shape.wants_message or self.shape.is_async):
            if len(self._plain) >= MAX_PLAIN:  # senders come and go
                self._plain.clear()
            packed, prefix = frames.prefix_of(message), frame.prefix
            end, decode = frames.START.size + len(packed), self.decoder(prefix.form, prefix.type_name)
            self._plain[packed] = message[frames.SEQUENCE_BYTES : end], end, decode, end + frames.time_size(prefix)
        result = self.callback(*args, **kwargs)
        if self.shape.is_async:
            self.loop.wait_for(self.name, result)
        elif error := unrun(self.callback, result):
            raise error

    def _unpack(self, message: bytes, receipt: Receipt) -> tuple[frames.Frame, tuple[Any, ...], dict[str, Any]]:
        """What to call the handler with, and of which frame. Raises Reject where it has come too often, CodecError."""
        leased = Leased(self.bus.provider, message, receipt, self._policy)
        leased.raise_if_exhausted()
        frame = leased.frame
        event = self.decoder(frame.prefix.form, frame.prefix.type_name)(frame.payload)
        return frame, *self.shape.arguments(event, leased.about() if self.shape.wants_message else None)

    def _fail(self, leased: Leased, error: BaseException) -> None:
        where = f"{self.name} of group {self.group.name!r}", leased.frame.prefix.channel or self.channel
        if isinstance(error, Retry):
            self.retried += 1
            leased.retry(error)
        elif isinstance(error, Reject | CodecError):
            self.dead += 1
            log.error("%s: an event on %r goes to the dead letters: %s", *where, error)
            leased.bury(error)
        else:
            self.failed += 1
            then = "to the dead letters" if leased.pause is None else f"again in {round(leased.pause, 2)} s"
            tries = self._policy.retries + 1
            log.error("%s failed on %r, attempt %d of %d: %s", *where, leased.failures, tries, then, exc_info=error)
            if leased.fail(error) == "dead":  # no call between the look at a number and the sum: other workers count, too
                self.dead += 1
            else:
                self.retried += 1
