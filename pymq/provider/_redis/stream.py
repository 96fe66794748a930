"""Messages that are taken in advance for a fast consumer, and acks that travel together.

A thread that receives from a queue without a timeout, again and again, is a consumer that goes on. When its messages come without a
wait it gets more of them in each round trip, as many as it handles in `AHEAD` seconds by the measure of the last ones; and while some
of these are left, its acks wait to be sent with that of the last one. What is not handled in `HELD` seconds goes back, as if it had
not been taken, so that idle consumers get it: a consumer that dies has at most that much handled and not acked.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from pymq.exceptions import ProviderError
from pymq.provider._redis.operations import Operation, encoded, packed
from pymq.provider.base import Receipt

log = logging.getLogger("pymq")

AHEAD = 0.05
HELD = 0.1
MOST = 100
SHORTEST_LEASE = 1.0
"""Seconds; with a shorter lease nothing is taken in advance."""


class RedisReceipt(Receipt):
    __slots__ = ("identity", "stream")

    def __init__(self, queue: str, attempt: int, identity: bytes, stream: Stream | None = None) -> None:
        super().__init__(queue, attempt)
        self.identity = identity
        self.stream = stream


class Stream:
    """What one thread has taken from one queue and not handled or not acked yet."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.since = monotonic()
        self._lock = threading.RLock()
        self._ahead: deque[tuple[bytes, RedisReceipt]] = deque()
        self._acks: list[RedisReceipt] = []
        self._count = 0

    def next(self) -> tuple[bytes, RedisReceipt] | None:
        """One that was taken in advance."""
        try:
            return self._ahead.popleft()
        except IndexError:
            return None

    def wanted(self) -> int:
        """How many to take."""
        if not self._count:
            return 1
        each = (monotonic() - self.since) / self._count
        return max(1, min(MOST, 4 * self._count, int(AHEAD / max(each, 1e-6))))

    def load(self, found: Sequence[tuple[bytes, RedisReceipt]], has_waited: bool) -> None:
        """These were taken."""
        self.since = monotonic()
        self._count = 0 if has_waited else len(found)
        self._ahead.extend(found)

    def put_off(self, receipt: RedisReceipt) -> bool:
        """Whether its ack goes with a later one."""
        with self._lock:
            if not self._ahead:
                return False
            self._acks.append(receipt)
            return True

    def acks(self) -> list[RedisReceipt]:
        """Those that were put off, which now are the caller's to send."""
        with self._lock:
            acks, self._acks = self._acks, []
            return acks

    def unload(self) -> list[RedisReceipt]:
        """Those that nobody has seen, to be given back."""
        with self._lock:
            ahead: list[RedisReceipt] = []
            while (found := self.next()) is not None:
                ahead.append(found[1])
            return ahead

    @property
    def is_loaded(self) -> bool:
        return bool(self._ahead or self._acks)


class Streams:
    """The streams of one provider. A thread looks after those that are loaded, and sleeps without end while there is none."""

    def __init__(self, call: Callable[[Operation], Any]) -> None:
        self._call = call
        self._own = threading.local()
        self._lock = threading.RLock()
        self._loaded: set[Stream] = set()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def of(self, queue: str) -> Stream:
        """This thread's."""
        streams: dict[str, Stream] = self._own.__dict__
        if queue not in streams:
            streams[queue] = Stream(queue)
        return streams[queue]

    def watch(self, stream: Stream) -> None:
        """Give back what is not handled in time."""
        with self._lock:
            if stream in self._loaded:
                return
            self._loaded.add(stream)
            if self._thread is None and not self._ended.is_set():
                self._thread = threading.Thread(target=self._look_after, name="pymq-redis-ahead", daemon=True)
                self._thread.start()
        self._changed.set()

    def settle(self, queue: str, receipts: Sequence[RedisReceipt]) -> list[int]:
        """Ack them, in one operation; 1 for each whose lease was valid, else 0."""
        identities, attempts = [receipt.identity for receipt in receipts], [b"%d" % receipt.attempt for receipt in receipts]
        count = b"%d" % len(receipts)
        outcomes: list[int] = self._call(packed(b"ack", encoded(queue), count, *identities, count, *attempts))
        return outcomes

    def flush(self, stream: Stream, *last: RedisReceipt) -> int:
        """Send the acks that were put off, and, with them, a last one: what became of that."""
        acks = stream.acks()
        if not acks and not last:
            return 1
        outcomes = self.settle(stream.queue, [*acks, *last])
        if lost := outcomes[: len(acks)].count(0):
            log.warning("%d events from %r took longer than their leases, and come again", lost, stream.queue)
        return outcomes[-1]

    def close(self) -> None:
        """Settle and give back everything."""
        self._ended.set()
        self._changed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1)
        for stream in list(self._loaded):
            self._empty(stream)

    def _look_after(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                self._loaded = {stream for stream in self._loaded if stream.is_loaded}
                if not self._loaded:
                    self._changed.clear()
            self._changed.wait()
            if self._ended.is_set():
                return
            for stream in list(self._loaded):
                if stream.is_loaded and monotonic() - stream.since > HELD:
                    self._empty(stream)
            self._ended.wait(AHEAD)

    def _empty(self, stream: Stream) -> None:
        try:
            self.flush(stream)
            for receipt in stream.unload():
                unused = receipt.identity, b"%d" % receipt.attempt, b"0", b"1"
                self._call(packed(b"nack", encoded(stream.queue), *unused))
        except ProviderError as error:
            log.warning("what was taken in advance from %r comes again when its lease ends: %s", stream.queue, error)
