"""In memory: the reference, to be read before another provider is written.

The providers of one process that name the same namespace meet at a *broker*: a table of queues, a table of bindings, and one
lock around both. It is there while a provider is open, and beyond that while a shared queue holds messages or is bound; so what
was put into a queue waits for the next provider of that namespace, until the process ends. The queues are in `_memory.py`.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Full
from time import monotonic
from typing import Any

from pymq.bus import EventBus
from pymq.exceptions import ProviderError, PublishFull
from pymq.provider import dataclass_from_url
from pymq.provider._memory import Inbox, LeaseReceipt, MemoryReadiness, SharedQueue
from pymq.provider._refusals import check, closed_in_vain, gone, lost
from pymq.provider.base import BUSY, IDLE, LATER, RUNNING, Delivery, Features, Provider, Receipt, WouldWait
from pymq.topics import Bindings, Turns, matcher

log: logging.Logger = logging.getLogger("pymq")


@dataclass(frozen=True)
class SimpleConfig:
    """The providers of this process that have the same `namespace` meet.

    A receiver buffers `max_pending` bytes, a shared queue holds `max_queue_bytes`; a publish waits at most `publish_timeout`
    seconds for the full ones.
    """

    namespace: str = "default"
    max_pending: int = 32 << 20
    publish_timeout: float = 1.0
    max_message_bytes: int = 64 << 20
    max_queue_bytes: int = 256 << 20

    def create(self) -> SimpleProvider:
        """A new provider, not open yet."""
        return SimpleProvider(self)

    @classmethod
    def from_url(cls, url: str) -> SimpleConfig:
        """`simple://namespace?publish_timeout=2`; every field but the namespace is an option. Raises ValueError."""
        return dataclass_from_url(cls, url)


class _Broker:
    """Where the providers of a namespace meet. Everything in here is touched under `lock` only."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # reentrant: a signal handler may publish in the middle of a publish
        self.room = threading.Condition(self.lock)
        self.queues: dict[str, Inbox | SharedQueue] = {}
        self.bindings = Bindings()
        self.members = 0
        self.next_warning = 0.0

    def find(self, queue: str) -> Inbox | SharedQueue:
        if queue not in self.queues:
            raise gone(queue)
        return self.queues[queue]

    def remove(self, queue: str) -> None:
        """The queue and its bindings, and its receipts settle nothing any more."""
        self.bindings.drop(queue)
        self.notify_all()
        removed = self.queues.pop(queue, None)
        if isinstance(removed, SharedQueue):
            removed.hidden.clear()

    def notify_all(self) -> None:
        for queue in self.queues.values():
            queue.changed.notify_all()
        self.room.notify_all()

    def leased(self, receipt: Receipt) -> LeaseReceipt:
        """The same receipt, valid. Raises LeaseLost."""
        assert isinstance(receipt, LeaseReceipt)
        receipt.home.show_due()
        if receipt.item.receipt is not receipt or receipt.item not in receipt.home.hidden:
            raise lost(receipt)
        return receipt

    def is_needed(self) -> bool:
        """Whether somebody is here, or might come back for something."""
        return bool(self.members or self.bindings.of() or any(queue.size() for queue in self.queues.values()))


_brokers: dict[str, _Broker] = {}
_brokers_lock = threading.RLock()


def _forget_in_child() -> None:
    """A forked child starts without brokers: a thread that it does not have may hold their locks for ever."""
    global _brokers_lock
    _brokers.clear()
    _brokers_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


class SimpleProvider(Provider):
    """The contract for the threads of one process. Made by `SimpleConfig.create`."""

    features: Features = Features(cross_process=False, durable="the end of every bus, not of the process", priorities=10)

    def __init__(self, config: SimpleConfig) -> None:
        self.max_message_bytes: int = config.max_message_bytes
        self._config = config
        self._broker = _Broker()
        self._is_open = False
        self._wakes = 0
        self._turns = Turns()

    def open(self) -> None:
        with _brokers_lock:
            self._broker = _brokers.setdefault(self._config.namespace, _Broker())
            self._broker.members += 1
            self._is_open = True

    def close(self) -> None:
        with _brokers_lock, self._broker.lock:
            if self._is_open:
                self._is_open = False
                self._leave()

    def _leave(self) -> None:
        self.wake()
        for name, queue in list(self._broker.queues.items()):
            if isinstance(queue, SharedQueue):
                self._give_back(queue)
            elif queue.owner is self:
                self._broker.remove(name)
        self._broker.members -= 1
        if not self._broker.is_needed():
            _brokers.pop(self._config.namespace, None)

    def _give_back(self, queue: SharedQueue) -> None:
        for item in list(queue.hidden):
            if item.receipt and item.receipt.taker is self:
                self.nack(item.receipt)

    def declare(self, queue: str, *, temporary: bool = False) -> None:
        with self._broker.lock:
            found = self._broker.queues.get(queue)
            if found is None:
                self._broker.queues[queue] = self._new(queue, temporary)
            elif isinstance(found, Inbox) != temporary or (isinstance(found, Inbox) and found.owner is not self):
                raise ProviderError(f"the queue {queue!r} exists already, of the other kind or for another receiver; rename it")

    def _new(self, queue: str, temporary: bool) -> Inbox | SharedQueue:
        if temporary:
            return Inbox(self, self._broker.lock, self._config.max_pending)
        return SharedQueue(queue, self._broker.lock, self._config.max_queue_bytes)

    def delete(self, queue: str) -> None:
        with self._broker.lock:
            self._broker.remove(queue)

    def send(
        self,
        queue: str,
        message: bytes,
        *,
        timeout: float | None = None,
        maxsize: int = 0,
        delay: float = 0,
        ttl: float | None = None,
        priority: int = 0,
    ) -> None:
        message = self._checked(message, delay, priority)
        deadline = math.inf if timeout is None else monotonic() + timeout
        with self._broker.lock:
            while not self._broker.find(queue).offer(message, self, maxsize=maxsize, delay=delay, ttl=ttl, priority=priority):
                if not self._is_open:
                    raise closed_in_vain(queue)
                if not _wait(self._broker.room, deadline):
                    raise Full(f"no room in the queue {queue!r} within {timeout} s")

    def _checked(self, message: bytes, delay: float, priority: int = 0) -> bytes:
        check(self, message, delay, priority)
        return bytes(message)

    def receive(
        self,
        queue: str,
        timeout: float | None = 0,
        *,
        limit: int = 1,
        lease: float | None = 30.0,
        watch: Sequence[str] = (),
        busy: bool = False,
    ) -> list[Delivery]:
        deadline = math.inf if timeout is None else monotonic() + timeout
        with self._broker.lock:
            wakes = self._wakes
            while self._wakes == wakes:
                found = self._broker.find(queue)
                found.state = BUSY if busy else RUNNING
                taken = found.take(limit, lease, self)
                self._broker.room.notify_all()
                if taken or not self._broker.queues.keys() >= set(watch):
                    return taken
                found.state = BUSY if busy else IDLE
                in_time = _wait(found.changed, deadline, found.due())
                found.state = BUSY if busy else RUNNING
                if not in_time:
                    return []
            return []

    def wake(self) -> None:
        with self._broker.lock:
            self._wakes += 1
            self._broker.notify_all()

    def ack(self, receipt: Receipt) -> None:
        with self._broker.lock:
            leased = self._broker.leased(receipt)
            leased.home.unhide(leased.item)
            leased.home.forget(leased.item)
            self._broker.room.notify_all()

    def nack(self, receipt: Receipt, delay: float = 0) -> None:
        with self._broker.lock:
            leased = self._broker.leased(receipt)
            leased.home.unhide(leased.item)
            leased.home.insert(leased.item, delay)

    def extend(self, receipt: Receipt, seconds: float) -> None:
        with self._broker.lock:
            leased = self._broker.leased(receipt)
            leased.home.hide(leased.item, seconds)

    def size(self, queue: str) -> int:
        with self._broker.lock:
            return self._broker.queues[queue].size() if queue in self._broker.queues else 0

    def readiness(self, queue: str) -> MemoryReadiness:
        with self._broker.lock:
            return MemoryReadiness(queue, self._broker.find(queue), self._broker.queues)

    def counters(self) -> dict[str, dict[str, int]]:
        with self._broker.lock:
            return {name: queue.counters() for name, queue in self._broker.queues.items()}

    def queues(self, prefix: str) -> Sequence[str]:
        with self._broker.lock:
            return [n for n, queue in self._broker.queues.items() if isinstance(queue, SharedQueue) and n.startswith(prefix)]

    def consumers(self, topic: str) -> Sequence[str]:
        with self._broker.lock:
            queues = self._broker.queues
            bound = [name for name in self._broker.bindings.bound(topic) if isinstance(queues[name], Inbox)]
            turn = next(self._turns[topic]) % max(1, len(bound))
            return sorted(bound[turn:] + bound[:turn], key=lambda name: (queues[name].size(), queues[name].state))

    def bind(self, queue: str, pattern: str, *, exact: bool) -> None:
        if not exact:
            matcher(pattern)  # a bad glob is refused here, not met by every publisher
        with self._broker.lock:
            self._broker.find(queue)
            self._broker.bindings.bind(queue, pattern, exact)

    def unbind(self, queue: str, pattern: str, *, exact: bool) -> None:
        with self._broker.lock:
            self._broker.bindings.unbind(queue, pattern, exact)

    def publish(
        self, topics: Sequence[str], message: bytes, *, timeout: float | None = None, delay: float = 0, ttl: float | None = None
    ) -> int:
        message = self._checked(message, delay)
        deadline = monotonic() + (self._config.publish_timeout if timeout in (None, LATER) else timeout)
        with self._broker.lock:
            targets = self._broker.bindings.matching(topics)
        return self._publish_to(targets, 0, message, deadline, timeout == LATER, delay=delay, ttl=ttl)

    def _publish_to(self, full: list[str], accepted: int, message: bytes, deadline: float, is_first: bool, **how: Any) -> int:
        broker = self._broker
        with broker.lock:
            while True:
                targets = [name for name in full if name in broker.queues]  # the others were deleted while this waited
                full = [name for name in targets if not broker.queues[name].offer(message, self, **how)]
                accepted += len(targets) - len(full)
                waits = self._worth_waiting(full)
                if is_first and waits:
                    raise WouldWait(partial(self._publish_to, full, accepted, message, deadline, False, **how))
                if not waits or not _wait(broker.room, deadline):
                    break
            groups = [name for name in full if isinstance(broker.queues[name], SharedQueue)]
            lost = [name for name in full if self._drop(broker.queues[name])]
        self._warn(lost)
        if groups:
            raise PublishFull(accepted, groups)
        return accepted

    def _worth_waiting(self, full: Iterable[str]) -> bool:
        """A receiver that has been waited for in vain is not waited for again before it has caught up."""
        queues = [self._broker.queues[name] for name in full]
        return any(not (isinstance(queue, Inbox) and queue.behind) for queue in queues)

    def _drop(self, queue: Inbox | SharedQueue) -> bool:
        if isinstance(queue, SharedQueue):
            return False
        queue.behind = True
        queue.dropped += 1
        return True

    def _warn(self, lost: Sequence[str]) -> None:
        """At most once a second, and without the lock: a logging handler may take others, and publish."""
        if lost and monotonic() >= self._broker.next_warning:
            self._broker.next_warning = monotonic() + 1
            log.warning("a message was dropped: %d receivers do not keep up, that of %r among them", len(lost), lost[0])


def _wait(condition: threading.Condition, deadline: float, due: float = math.inf) -> bool:
    """Sleep until something changes, or may have by then; False at once where the deadline has passed."""
    now = monotonic()
    if now >= deadline:
        return False
    seconds = min(deadline, due) - now
    condition.wait(None if seconds == math.inf else min(max(seconds, 0), threading.TIMEOUT_MAX))
    return True


class SimpleEventBus(EventBus):
    """PyMQ's name for a bus in memory."""

    def __init__(self, config: SimpleConfig | None = None) -> None:
        super().__init__(config or SimpleConfig())
