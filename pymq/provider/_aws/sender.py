"""Sending into queues of SQS: envelopes, delays, order, and waiting for room."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable
from queue import Full
from typing import Any

from pymq.exceptions import QueueNotFound
from pymq.provider._aws.account import Account
from pymq.provider._aws.batches import Batches
from pymq.provider._aws.directory import Directory
from pymq.provider._aws.envelope import Envelope
from pymq.provider._aws.names import is_dead
from pymq.provider._refusals import closed_in_vain, gone

NATIVE_DELAY = 900
"""Seconds that SQS delays a message by itself; what is due later is hidden again by whoever gets it then."""


class Sender:
    """Sends for one provider, whose name is `token`. Safe in all threads."""

    def __init__(self, account: Account, directory: Directory, ordered: bool, token: str) -> None:
        self._account = account
        self._directory = directory
        self._ordered = ordered
        self._token = token
        self._numbers = itertools.count(1)
        self._batches = Batches(self._send_batch, ordered)

    def _send_batch(self, url: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
        return self._account.sqs("send_message_batch", QueueUrl=url, Entries=entries)

    def envelope(self, message: bytes, ttl: float | None, **fields: Any) -> Envelope:
        """One for a new message."""
        expires = None if ttl is None else self._account.now() + ttl
        return Envelope(bytes(message), expires=expires, id=f"{self._token}-{next(self._numbers):x}", **fields)

    def send(self, queue: str, envelope: Envelope, delay: float = 0.0) -> None:
        """SQS has it when this returns. Raises QueueNotFound, MessageTooLarge."""
        native = 0 if self._ordered else min(math.ceil(delay), NATIVE_DELAY)
        if delay > native:
            envelope = envelope._replace(due=self._account.now() + delay)
        elif envelope.expires is not None:  # SQS's seconds are whole, and to round one up must not use up the message's life
            envelope = envelope._replace(expires=envelope.expires + native - delay)
        entry: dict[str, Any] = {"MessageBody": envelope.pack()}
        if native:
            entry["DelaySeconds"] = native
        if self._ordered:  # what is delayed must not hold up this sender's other messages, nor one dead letter the others
            group = envelope.id if envelope.due or is_dead(queue) else self._token
            entry |= {"MessageGroupId": group, "MessageDeduplicationId": envelope.id}
        place = self._directory.find(queue)
        try:
            self._batches.add(place.url, entry, len(entry["MessageBody"]))
        except QueueNotFound:
            self._directory.forget(queue)
            raise gone(queue) from None

    def wait_for_room(self, queue: str, maxsize: int, timeout: float | None, is_closed: Callable[[], bool]) -> None:
        """As well as can be told: SQS counts approximately, and others may send between the look and the sending. Raises Full."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while self.size(queue) >= maxsize:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Full(f"no room in the queue {queue!r} within {timeout} s")
            if is_closed():
                raise closed_in_vain(queue)
            time.sleep(min(left, random.uniform(0.1, 0.3)))

    def size(self, queue: str) -> int:
        """How many messages wait there, the delayed ones included, about. Raises QueueNotFound."""
        return self.counts(queue)["waiting"]

    def counts(self, queue: str) -> dict[str, int]:
        """How many messages are "waiting" and "leased" there, as SQS knows: about, and of a moment ago. Raises QueueNotFound."""
        asked = [f"ApproximateNumberOfMessages{kind}" for kind in ("", "Delayed", "NotVisible")]
        place = self._directory.find(queue)
        try:
            found = self._account.sqs("get_queue_attributes", QueueUrl=place.url, AttributeNames=asked)["Attributes"]
        except QueueNotFound:
            self._directory.forget(queue)
            raise gone(queue) from None
        visible, delayed, leased = (int(found.get(name, 0)) for name in asked)
        return {"waiting": visible + delayed, "leased": leased}
