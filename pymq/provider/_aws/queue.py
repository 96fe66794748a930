"""Shared queues: receiving from SQS under leases.

A long poll cannot be interrupted, so it is made by a thread of its own, and whoever receives waits for that thread, for a `wake`
or for the end of its time. What a poll brings when nobody waits any more is kept for a second for whoever comes next, then
given back: as a copy, since SQS would count it as delivered, and who had less than a second to wait waits until the poll has ended.

SQS's visibility timeout is the lease, in whole seconds and at most as long as the provider's own lease: longer ones are extended
by the keeper while this process lives, so that what a dead process had comes again.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from pymq.exceptions import LeaseLost, ProviderError, QueueNotFound
from pymq.provider._aws.account import Account
from pymq.provider._aws.batches import Batches
from pymq.provider._aws.config import AwsConfig
from pymq.provider._aws.directory import Directory, Place
from pymq.provider._aws.envelope import Envelope, Window, unpack
from pymq.provider._aws.names import all_of_many
from pymq.provider._aws.sweep import quietly
from pymq.provider.base import Receipt
from pymq.topics import matcher

log = logging.getLogger("pymq")

GET_SECONDS = 30
"""How long what is received without a lease is hidden, should removing it fail."""
KEPT_FOR_THE_NEXT = 1.0
LONGEST_REST = 2.0
"""Seconds: a poll that was begun in the last second of somebody's time has ended then, unless AWS is slow."""
LONGEST_HIDDEN = 43200
"""Seconds; SQS's maximum for a message from the moment it was received."""


class SqsReceipt(Receipt):
    """A delivery: `until` is the lease's end and `hidden_until` the visibility timeout's, by the monotonic clock."""

    __slots__ = ("__weakref__", "envelope", "handle", "hidden_until", "home", "lease", "message_id", "until", "url")

    def __init__(self, home: SharedQueue, message: dict[str, Any], lease: float | None, hidden_until: float) -> None:
        envelope = unpack(message["Body"])
        super().__init__(home.name, _attempt(envelope, message["Attributes"]))
        self.home = home
        self.url = home.place.url
        self.handle: str = message["ReceiptHandle"]
        self.message_id: str = message["MessageId"]
        self.envelope = envelope
        self.lease = lease
        self.until = monotonic() + (lease or GET_SECONDS)
        self.hidden_until = hidden_until


class Waiter(NamedTuple):
    """Somebody who waits for a poll's result."""

    limit: int
    lease: float | None
    deadline: float


class SharedQueue:
    """One shared queue as one provider receives from it."""

    def __init__(
        self,
        account: Account,
        directory: Directory,
        deletes: Batches,
        lock: threading.RLock,
        name: str,
        place: Place,
        config: AwsConfig,
        give_back: Callable[[SqsReceipt], None],
    ) -> None:
        self._account = account
        self._give_back = give_back
        self._directory = directory
        self._deletes = deletes
        self.changed = threading.Condition(lock)
        self.name = name
        self.place = place
        self.waiters: list[Waiter] = []
        self.error: Exception | None = None
        self.closed = False
        self.expired = 0
        self._stash: list[SqsReceipt] = []
        self._polling = False
        self._polls = 0
        self._own_patterns: set[str] = set()
        self._patterns: set[str] = set()
        self._refresh = config.refresh
        self._longest_lease = config.lease
        self._longest_poll = math.ceil(config.poll)
        self._patterns_until = 0.0
        self._held: WeakValueDictionary[str, SqsReceipt] = WeakValueDictionary()
        self._settled = Window()
        self._done = Window()

    # ------------------------------------------------------------------ polling

    def poll(self, limit: int, lease: float | None, wait: int) -> list[SqsReceipt]:
        """Ask SQS, which answers after `wait` seconds at the latest, or at once where it has something."""
        visibility = seconds(min(lease or GET_SECONDS, self._longest_lease))
        messages = self._account.poll(
            QueueUrl=self.place.url,
            MaxNumberOfMessages=min(limit, 10),
            WaitTimeSeconds=wait,
            VisibilityTimeout=visibility,
            AttributeNames=["ApproximateReceiveCount", "ApproximateFirstReceiveTimestamp"],
        )
        end = monotonic() + visibility
        accepted = [self._accept_or_leave(message, lease, end) for message in messages]
        return [receipt for receipt in accepted if receipt is not None]

    def _accept_or_leave(self, message: dict[str, Any], lease: float | None, end: float) -> SqsReceipt | None:
        """Where AWS fails, only this message comes again when its time is over."""
        try:
            return self._accept(message, lease, end)
        except ProviderError as error:
            log.warning("a message of the queue %r stays there for now: %s", self.name, error)
            return None

    def _accept(self, message: dict[str, Any], lease: float | None, end: float) -> SqsReceipt | None:
        """The message, unless it is not for this queue, not due yet, expired, or a copy of one that was here."""
        receipt = SqsReceipt(self, message, lease, end)
        now = self._account.now()
        if receipt.envelope.due > now:
            self.hide(receipt, receipt.envelope.due - now)
            return None
        if self._is_superfluous(receipt, now):
            self._remove(receipt)
            return None
        if (left := self._left_of_copy(receipt)) > 0:
            self.hide(receipt, left)
            return None
        self._held[receipt.envelope.id] = receipt
        return receipt

    def _left_of_copy(self, receipt: SqsReceipt) -> float:
        """For how many seconds this process holds another copy of an event, and may handle it."""
        held = self._held.get(receipt.envelope.id) if receipt.envelope.topics else None
        return 0.0 if held is None or held.message_id == receipt.message_id else held.until - monotonic()

    def _is_superfluous(self, receipt: SqsReceipt, now: float) -> bool:
        envelope = receipt.envelope
        if envelope.expires is not None and envelope.expires <= now:
            self.expired += 1
            return True
        if receipt.message_id in self._done:  # SQS delivers a deleted one again, rarely
            return True
        if envelope.to_everything and not self._is_bound(envelope.topics):
            return True
        return bool(envelope.topics) and envelope.id in self._settled

    def _is_bound(self, topics: tuple[str, ...]) -> bool:
        """Whether a pattern matches: one that this process has bound, or one in the queue's tags, read anew after `refresh` seconds."""
        if _any_matches(self._own_patterns | self._patterns, topics):
            return True
        now = monotonic()
        if now < self._patterns_until:
            return False
        self._patterns = set(all_of_many("pattern", self._directory.tags(self.place.url)))
        self._patterns_until = now + self._refresh  # only now: while nobody knows, nothing is superfluous
        return _any_matches(self._patterns, topics)

    # ------------------------------------------------------------------ waiting

    def take(self, limit: int) -> list[SqsReceipt]:
        """What a poll has brought. Under the lock."""
        taken, self._stash = self._stash[:limit], self._stash[limit:]
        if taken and not self._stash:
            self.changed.notify_all()
        return taken

    def take_late(self, limit: int) -> list[SqsReceipt]:
        """What a poll brings that ends just after the time of the only one for whom it was begun. Under the lock."""
        polls = self._polls
        self.changed.wait_for(lambda: self.waiters or not self._polling or self._polls != polls or self.closed, LONGEST_REST)
        return self.take(limit)

    def wait_with(self, waiter: Waiter) -> None:
        """Somebody waits: let there be a poll. Under the lock."""
        if not self._polling:
            threading.Thread(target=self._serve, name="pymq-aws-poll", daemon=True).start()
            self._polling = True
            self.error = None
        self.waiters.append(waiter)

    def _serve(self) -> None:
        while (waiters := self._next()) is not None:
            left = max(waiter.deadline for waiter in waiters) - monotonic()
            wait = max(1, math.ceil(min(left, self._longest_poll)))
            try:
                found = self.poll(sum(waiter.limit for waiter in waiters), waiters[0].lease, wait)
            except Exception as error:
                return self._fail(error)
            with self.changed:
                self._stash += found
                self._polls += 1
                self.changed.notify_all()
        return None

    def _next(self) -> list[Waiter] | None:
        """Who waits; None where nobody does, and what was brought in vain has been given back."""
        with self.changed:
            if self._stash:
                self.changed.wait_for(lambda: not self._stash or self.closed, KEPT_FOR_THE_NEXT)
            vain, self._stash = self._stash, []
            waiters = None if self.closed or not self.waiters else list(self.waiters)
            self._polling = waiters is not None
        for receipt in vain:
            quietly(partial(self._give_back, receipt), "giving a message back")
        return waiters

    def _fail(self, error: Exception) -> None:
        with self.changed:
            self.error = error
            self._polling = False
            self.changed.notify_all()

    # ------------------------------------------------------------------ settling

    def claim(self, receipt: SqsReceipt, lease: float | None) -> bool:
        """Whether the receiver gets it: with its own lease, or, without one, removed first."""
        if lease is None:
            return self.forget(receipt)
        if receipt.lease != lease or receipt.until - monotonic() < 0.75 * lease:
            receipt.lease = lease
            if not self.hide(receipt, min(lease, self._longest_lease)):
                return False
            receipt.until = monotonic() + lease
        return True

    def forget(self, receipt: SqsReceipt) -> bool:
        """Remove it, and its copies when they come; False where it was somebody else's by now."""
        if not self._remove(receipt):
            return False
        self._settled.note(receipt.envelope.id)
        return True

    def _remove(self, receipt: SqsReceipt) -> bool:
        try:
            self._deletes.add(receipt.url, {"ReceiptHandle": receipt.handle})
        except (LeaseLost, QueueNotFound):
            return False
        self._done.note(receipt.message_id)
        return True

    def hide(self, receipt: SqsReceipt, length: float) -> bool:
        """Nobody gets it for so long; False where it was somebody else's by now."""
        visibility = seconds(length)
        try:
            self._account.sqs(
                "change_message_visibility", QueueUrl=receipt.url, ReceiptHandle=receipt.handle, VisibilityTimeout=visibility
            )
        except (LeaseLost, QueueNotFound):
            return False
        receipt.hidden_until = monotonic() + visibility
        return True

    def bound(self, pattern: str, is_bound: bool) -> None:
        """This provider has bound it to a pattern, or unbound it."""
        (self._own_patterns.add if is_bound else self._own_patterns.discard)(pattern)
        self._patterns_until, self._patterns = 0.0, set()

    def end(self, error: Exception | None = None) -> None:
        """Whoever waits gets the error, or nothing. Under the lock."""
        self.closed = True
        self.error = error
        self.changed.notify_all()


def _any_matches(patterns: set[str], topics: tuple[str, ...]) -> bool:
    return any(matcher(pattern)(topic) for pattern in patterns for topic in topics)


def _attempt(envelope: Envelope, attributes: dict[str, str]) -> int:
    """Which delivery it is: the one that only found out that it was not due yet does not count."""
    came_early = int(attributes["ApproximateFirstReceiveTimestamp"]) / 1000 < envelope.due
    return envelope.attempts + max(1, int(attributes["ApproximateReceiveCount"]) - came_early)


def seconds(length: float) -> int:
    """In SQS's whole seconds, rounded up."""
    return min(LONGEST_HIDDEN, max(0, math.ceil(length)))
