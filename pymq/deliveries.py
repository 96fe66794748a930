"""At least once: what happens to a leased message after its handler returned, raised or died. For groups and for `Queue.take`.

A failed message is not given back as it is: a copy with what is known of the failures goes to the end of the queue, due after the
back-off, and then the original is acked. So its counts survive everybody, on every provider, and it never blocks what is behind
it. A crash between the two leaves both: at least once, and the attempt is above 1.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
import traceback
from collections.abc import Callable
from functools import cached_property
from numbers import Real
from queue import Full
from typing import Any, NamedTuple

from pymq import message as frames
from pymq.dispatch import persist
from pymq.exceptions import CodecError, LeaseLost, ProviderError, PymqError, Reject, Retry
from pymq.message import Frame, Message, Prefix
from pymq.provider.base import Provider, Receipt

log: logging.Logger = logging.getLogger("pymq")

DEAD_HEADERS = ("dead-error", "dead-text", "dead-traceback", "dead-attempts", "dead-channel", "dead-first-failure")
RETRIES = 5
BACKOFF = 1.0
MAX_BACKOFF = 3600.0
LEASE = 30.0
UNREADABLE = 255
"""The form of a payload that is whatever came in the place of a frame: no codec reads it."""


class Policy(NamedTuple):
    """What to do with failures: how often to try again, after how many seconds at first, and where to put what failed too often."""

    retries: int
    backoff: float
    dead_queue: str

    def delay(self, failures: int) -> float:
        """Seconds until the next attempt: doubling, at most an hour, with a jitter of a quarter so that retries spread."""
        return min(self.backoff * 2.0 ** min(failures - 1, 40), MAX_BACKOFF) * random.uniform(0.75, 1.0)


def check_retries(retries: int, backoff: float) -> None:
    """Raises ValueError for what cannot be."""
    if not (isinstance(retries, int) and retries >= 0 and isinstance(backoff, Real) and backoff >= 0):
        raise ValueError(f"retries={retries!r}, backoff={backoff!r}: a number of times and one of seconds, 0 or more")


class Leased:
    """One delivery of a message that must be settled."""

    def __init__(self, provider: Provider, data: bytes, receipt: Receipt, policy: Policy) -> None:
        self._provider = provider
        self.receipt = receipt
        self.policy = policy
        self.frame: Frame = unpack_anything(data)

    @property
    def attempt(self) -> int:
        """Counts deliveries from 1, over all copies."""
        return int(self.frame.options.get("attempts", 0)) + self.receipt.attempt

    @property
    def failures(self) -> int:
        """How many attempts have failed, should the present one fail as well; those that died count, `Retry` does not."""
        return self.attempt - int(self.frame.options.get("uncounted", 0))

    @cached_property
    def pause(self) -> float | None:
        """Seconds until the next attempt, should this one fail; None: it was the last one."""
        return None if self.failures > self.policy.retries else self.policy.delay(self.failures)

    def raise_if_exhausted(self) -> None:
        """Raises Reject, which takes it to the dead letters, where the attempts before this one, each ended by a crash or a lost lease,
        were already one too many.
        """
        if self.failures > self.policy.retries + 1:
            raise Reject(f"{self.attempt - 1} deliveries ended without an ack")

    def about(self) -> Message:
        """What the handler may ask for beside the event."""
        return Message(self.frame.sequence, self.frame.prefix, self.frame.options, self.attempt)

    def fail(self, error: BaseException) -> str:
        """After an error: "retried", or "dead" after the last attempt. Raises LeaseLost."""
        if self.pause is None:
            self.bury(error)
            return "dead"
        first = self.frame.options.get("first-failure", time.time())
        self._again(self.pause, {"first-failure": first})
        return "retried"

    def retry(self, again: Retry) -> None:
        """Once more, without counting a failure. Raises LeaseLost."""
        self._again(again.delay, {"uncounted": int(self.frame.options.get("uncounted", 0)) + 1})

    def _again(self, delay: float, noted: dict[str, Any]) -> None:
        options = self.frame.options | noted | {"attempts": self.attempt}
        self._move(self.receipt.queue, self.frame._replace(options=options), delay)

    def bury(self, error: BaseException) -> None:
        """To the dead letters, with headers that say why, as far as there is room for them. Raises LeaseLost."""
        self._provider.declare(self.policy.dead_queue)
        letter = dead_letter(self.frame, error, self.attempt, self.receipt.queue, self._provider.max_message_bytes)
        self._move(self.policy.dead_queue, letter, 0)

    def _move(self, queue: str, copy: Frame, delay: float) -> None:
        """First the copy, then the ack: a crash in between repeats the message, it never loses it."""
        self._provider.extend(self.receipt, LEASE)  # not ours any more: then the copy is somebody else's to make
        try:
            self._send(queue, copy, delay)
        except (Full, ProviderError) as error:  # to wait for room could be for ever: those who make it may all be waiting here
            log.warning("a failed message waits as it is, without what was noted of its failure: %s", error or f"{queue!r} is full")
            return self._provider.nack(self.receipt, max(delay, 1.0))
        return self._provider.ack(self.receipt)

    def put_again(self) -> None:
        """To the end of its queue, whatever waits there: what was acked, and is not wanted after all."""
        self._send(self.receipt.queue, self.frame, 0)

    def _send(self, queue: str, copy: Frame, delay: float) -> None:
        expires = copy.options.get("expires")
        ttl = None if expires is None else max(0.0, expires - self._provider.clock())
        how = {"delay": delay, "ttl": ttl, "priority": copy.options.get("priority", 0)}
        self._provider.send(queue, copy.pack(), timeout=0, **how)


def dead_letter(frame: Frame, error: BaseException, attempts: int, origin: str, most: int) -> Frame:
    """What goes to the dead letters: the message with the queue that `requeue` gives it back to, and, where that is no more than `most`
    bytes, headers that say why.
    """
    first = frame.options.get("first-failure", time.time())
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    why = (type(error).__name__, str(error), trace, attempts, frame.prefix.channel, first)
    headers = frame.options.get("headers", {}) | dict(zip(DEAD_HEADERS, why))
    letter = frame._replace(options={"headers": headers, "origin": origin})
    return letter if len(letter.pack()) <= most else letter._replace(options={"origin": origin})


def unpack_anything(data: bytes) -> Frame:
    """The frame; bytes that are none become the payload of one, so that they can be dead-lettered like everything else."""
    try:
        return frames.unpack(data)
    except CodecError:
        return Frame(0, Prefix(frames.ITEM, UNREADABLE, 0, 0, "", "bytes", ()), {}, data)


class Leases:
    """Extends the leases of what is being handled, from one thread that sleeps without a time limit while there is nothing."""

    def __init__(self, provider: Callable[[], Provider]) -> None:
        self._provider = provider
        self._held: dict[Receipt, list[float]] = {}  # for so many seconds at a time, and when it is to be extended
        self._next = math.inf
        self._latest = -math.inf  # when the one that was held last is to be extended, if it is held then
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # reentrant: a signal handler may take in the middle of a take
        self._closed = False

    def hold(self, receipt: Receipt, lease: float) -> None:
        """Keep it leased, `lease` seconds at a time, until `release`."""
        due = time.monotonic() + lease / 3
        self._held[receipt] = [lease, due]
        self._latest = due
        if due < self._next:
            try:
                self._wake()
            except BaseException:  # no thread to be had: its lease ends, and it comes again
                self.release(receipt)
                raise

    def release(self, receipt: Receipt) -> None:
        """No longer."""
        self._held.pop(receipt, None)

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._held.clear()
        self._changed.set()
        if self._thread is not None:
            self._thread.join(1)

    def _wake(self) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=persist, args=[self._run], name="pymq-leases", daemon=True)
                thread.start()  # first: the system may refuse it, and one that has not begun cannot be waited for
                self._thread = thread
        self._changed.set()

    def _run(self) -> None:
        while not self._closed:
            self._next = self._first_due()
            if self._next == math.inf and self._latest > time.monotonic():
                # between two events: else each wake-up could be followed by another, a fifth of a group's time
                self._next = self._latest
            if self._first_due() < self._next:
                continue  # of one who came in between, and did not know when this would wake
            left = max(0.0, self._next - time.monotonic())
            self._changed.wait(None if left == math.inf else min(left, threading.TIMEOUT_MAX))
            self._changed.clear()
            now = time.monotonic()
            for receipt, entry in list(self._held.items()):
                lease, due = entry
                if due <= now and receipt in self._held:
                    entry[1] = now + lease / 3  # in place: one that is released at this moment must not come back
                    self._begin_to_extend(receipt, lease)

    def _first_due(self) -> float:
        return min([due for _, due in list(self._held.values())], default=math.inf)

    def _begin_to_extend(self, receipt: Receipt, lease: float) -> None:
        """Over a network each from a thread of its own: a lost packet, and 15 s of waiting for its answer, cost others' leases."""
        if self._provider().features.waits_on_io:
            threading.Thread(target=self._extend, args=(receipt, lease), name="pymq-lease", daemon=True).start()
        else:
            self._extend(receipt, lease)

    def _extend(self, receipt: Receipt, lease: float) -> None:
        try:
            self._provider().extend(receipt, lease)
        except LeaseLost:
            self._held.pop(receipt, None)
        except PymqError as error:
            if not self._closed:
                log.warning("a lease on %r could not be extended: %s", receipt.queue, error)
