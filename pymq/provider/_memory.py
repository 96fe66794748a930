"""The two kinds of queue of the provider in memory. Not thread-safe: their broker holds its lock, around which `changed` waits."""

from __future__ import annotations

import heapq
import itertools
import math
import os
import threading
from collections.abc import Mapping
from time import monotonic

from pymq.exceptions import QueueNotFound
from pymq.provider.base import IDLE, RUNNING, Delivery, Provider, Receipt


class Changed(threading.Condition):
    """What threads wait on, and event loops, by the write ends of their pipes."""

    def __init__(self, lock: threading.RLock) -> None:
        super().__init__(lock)
        self.pipes: list[int] = []

    def notify_all(self) -> None:
        super().notify_all()
        for pipe in self.pipes:
            try:
                os.write(pipe, b"!")
            except BlockingIOError:
                pass  # it is readable for sure


class MemoryReadiness:
    """A pipe into which every change of a queue writes. Its broker's lock is held by whoever makes one."""

    fd: int

    def __init__(self, name: str, queue: Inbox | SharedQueue, queues: Mapping[str, object]) -> None:
        self._name = name
        self._queue = queue
        self._queues = queues
        self.fd, self._pipe = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._pipe, False)
        queue.changed.pipes.append(self._pipe)

    def arm(self) -> float | None:
        queue = self._queue
        with queue.changed:
            try:
                os.read(self.fd, 65536)
            except BlockingIOError:
                pass
            if self._queues.get(self._name) is not queue:
                raise QueueNotFound(f"the queue {self._name!r} was deleted")
            queue.state = IDLE
            if queue.holds_ready():
                return 0.0
            due = queue.due()
            return None if due == math.inf else max(0.0, due - monotonic())

    def watch(self, queue: str) -> bool:
        """Every queue that goes is told to all, also as a change of this one."""
        return queue in self._queues

    def close(self) -> None:
        with self._queue.changed:
            self._queue.changed.pipes.remove(self._pipe)
        os.close(self.fd)
        os.close(self._pipe)


class Inbox:
    """A temporary queue: what has come since its receiver last looked, at most `limit` bytes of it."""

    def __init__(self, owner: Provider, lock: threading.RLock, limit: int) -> None:
        self.owner = owner
        self.changed: Changed = Changed(lock)
        self.behind: bool = False
        self.state = RUNNING
        self.dropped = 0
        self._limit = limit
        self._messages: list[bytes] = []
        self._bytes = 0

    def offer(self, message: bytes, sender: Provider, **_: object) -> bool:
        """Append it, unless there is no room. The owner never waits for itself: nobody else would make room."""
        if self._messages and self._bytes + len(message) > self._limit and sender is not self.owner:
            return False
        self._messages.append(message)
        self._bytes += len(message)
        self.changed.notify_all()
        return True

    def take(self, limit: int, lease: float | None, taker: Provider) -> list[Delivery]:
        """All of it; the receiver has caught up."""
        messages, self._messages, self._bytes, self.behind = self._messages, [], 0, False
        return [(message, None) for message in messages]

    def due(self) -> float:
        """When something comes up by time alone."""
        return math.inf

    def holds_ready(self) -> bool:
        return bool(self._messages)

    def size(self) -> int:
        return len(self._messages)

    def counters(self) -> dict[str, int]:
        return {"waiting": self.size(), "leased": 0, "dropped": self.dropped, "expired": 0}


class Item:
    """A message in a shared queue, which is sorted by `place`; `receipt` is the valid one while it is leased."""

    __slots__ = ("attempt", "expires", "message", "place", "receipt")

    def __init__(self, message: bytes, place: tuple[int, int], expires: float) -> None:
        self.message: bytes = message
        self.place: tuple[int, int] = place
        self.expires: float = expires
        self.attempt: int = 0
        self.receipt: LeaseReceipt | None = None


class LeaseReceipt(Receipt):
    __slots__ = ("home", "item", "taker")

    def __init__(self, queue: str, home: SharedQueue, item: Item, taker: Provider) -> None:
        super().__init__(queue, item.attempt)
        self.home: SharedQueue = home
        self.item: Item = item
        self.taker: Provider = taker


class SharedQueue:
    """Each item is either *ready*, or *hidden* until a time: delayed, or leased (then it has a receipt)."""

    def __init__(self, name: str, lock: threading.RLock, limit: int) -> None:
        self.changed: Changed = Changed(lock)
        self.state = RUNNING
        self.hidden: dict[Item, float] = {}
        self._ready: list[tuple[tuple[int, int], Item]] = []
        self._timers: list[tuple[float, int, Item]] = []  # void where `hidden` has another time
        self._name = name
        self._limit = limit
        self._numbers = itertools.count()
        self._bytes = self._leased = self._expired = 0

    def offer(
        self, message: bytes, sender: Provider, *, maxsize: int = 0, delay: float = 0, ttl: float | None = None, priority: int = 0
    ) -> bool:
        """Append it, unless there is no room. One message, however large, always fits into an empty queue."""
        if (maxsize and self.size() >= maxsize) or ((self._ready or self.hidden) and self._bytes + len(message) > self._limit):
            return False
        self._bytes += len(message)
        self.insert(Item(message, (-priority, next(self._numbers)), math.inf if ttl is None else monotonic() + ttl), delay)
        return True

    def take(self, limit: int, lease: float | None, taker: Provider) -> list[Delivery]:
        """The first ones that have not expired: removed, or hidden until the lease ends."""
        self.show_due()
        taken: list[Delivery] = []
        while self._ready and len(taken) < limit:
            item = heapq.heappop(self._ready)[1]
            if item.expires <= monotonic():
                self._expired += 1
                self.forget(item)
            else:
                taken.append(self._deliver(item, lease, taker))
        return taken

    def _deliver(self, item: Item, lease: float | None, taker: Provider) -> Delivery:
        item.attempt += 1
        if lease is None:
            self.forget(item)
        else:
            item.receipt = LeaseReceipt(self._name, self, item, taker)
            self._leased += 1
            self.hide(item, lease)
        return item.message, item.receipt

    def forget(self, item: Item) -> None:
        self._bytes -= len(item.message)

    def insert(self, item: Item, delay: float = 0) -> None:
        """Into its place, now or after the delay."""
        if delay > 0:
            self.hide(item, delay)
        else:
            heapq.heappush(self._ready, (item.place, item))
            self.changed.notify_all()

    def hide(self, item: Item, seconds: float) -> None:
        until = monotonic() + seconds
        if until < self.due():
            self.changed.notify_all()  # the sleepers must wake earlier than they meant to
        self.hidden[item] = until
        heapq.heappush(self._timers, (until, next(self._numbers), item))
        if len(self._timers) > 2 * len(self.hidden) + 64:  # else what is acked would be kept until its lease would have ended
            self._timers = [timer for timer in self._timers if self.hidden.get(timer[2]) == timer[0]]
            heapq.heapify(self._timers)

    def unhide(self, item: Item) -> None:
        del self.hidden[item]
        if item.receipt is not None:
            item.receipt = None
            self._leased -= 1

    def show_due(self) -> None:
        """Make ready what was hidden until now."""
        while self.due() <= monotonic():
            until, _, item = heapq.heappop(self._timers)
            if self.hidden.get(item) == until:
                self.unhide(item)
                self.insert(item)

    def due(self) -> float:
        """When something comes up by time alone."""
        return self._timers[0][0] if self._timers else math.inf

    def holds_ready(self) -> bool:
        self.show_due()
        return bool(self._ready)

    def size(self) -> int:
        """How many wait: the delayed count, the leased do not."""
        self.show_due()
        return len(self._ready) + len(self.hidden) - self._leased

    def counters(self) -> dict[str, int]:
        return {"waiting": self.size(), "leased": self._leased, "dropped": 0, "expired": self._expired}
