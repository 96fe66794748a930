"""The shared queues of one provider: receiving from them, and settling what was received."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from pymq.exceptions import ProviderError, QueueNotFound
from pymq.provider._aws.account import Account
from pymq.provider._aws.batches import Batches
from pymq.provider._aws.config import AwsConfig
from pymq.provider._aws.directory import Directory
from pymq.provider._aws.leases import Leases
from pymq.provider._aws.queue import SharedQueue, SqsReceipt, Waiter
from pymq.provider._aws.sender import Sender
from pymq.provider._refusals import gone, lost
from pymq.provider.base import Delivery


class SharedQueues:
    """Those that this provider has received from. Safe in all threads."""

    def __init__(
        self, account: Account, directory: Directory, sender: Sender, leases: Leases, lock: threading.RLock, config: AwsConfig
    ) -> None:
        self._account = account
        self._directory = directory
        self._sender = sender
        self._leases = leases
        self._lock = lock
        self._config = config
        self._deletes = Batches(self._delete_batch, False)
        self._queues: dict[str, SharedQueue] = {}

    def _delete_batch(self, url: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
        return self._account.sqs("delete_message_batch", QueueUrl=url, Entries=entries)

    def of(self, queue: str) -> SharedQueue:
        """The one with that name. Raises QueueNotFound."""
        place = self._directory.find_shared(queue)
        if place is None:
            raise gone(queue)
        with self._lock:
            shared = self._queues.get(queue)
            if shared is None or shared.place != place:  # deleted and made anew, perhaps by others
                shared = SharedQueue(
                    self._account, self._directory, self._deletes, self._lock, queue, place, self._config, self._give_back
                )
                self._queues[queue] = shared
            return shared

    def all(self) -> list[SharedQueue]:
        """Those that were received from so far. Under the lock."""
        return list(self._queues.values())

    def end(self, queue: str) -> None:
        """It was deleted: whoever waits for it gets QueueNotFound."""
        with self._lock:
            if (ended := self._queues.pop(queue, None)) is not None:
                ended.end(gone(queue))

    # ------------------------------------------------------------------ receiving

    def receive(self, queue: str, waiter: Waiter, wait: Callable[[SharedQueue], list[SqsReceipt]]) -> list[Delivery]:
        """What `wait` brings, which is called when SQS is being asked, or what there is where there is no time to wait."""
        shared = self.of(queue)
        while True:
            try:
                taken = self._look(shared, waiter) if waiter.deadline <= time.monotonic() else self._wait(shared, waiter, wait)
                return self._claimed(shared, taken, waiter.lease)
            except QueueNotFound:
                if not self._directory.is_there_all_the_same(queue, shared.place):
                    self._forget(queue, shared)
                    raise gone(queue) from None

    def _look(self, shared: SharedQueue, waiter: Waiter) -> list[SqsReceipt]:
        """What is there now. A short poll asks some of SQS's servers only: where it is told in vain, a long one asks all."""
        with self._lock:
            if taken := shared.take(waiter.limit):
                return taken
        found = shared.poll(waiter.limit, waiter.lease, 0)
        if not found and self._sender.size(shared.name):
            found = shared.poll(waiter.limit, waiter.lease, 1)
        return found

    def _wait(self, shared: SharedQueue, waiter: Waiter, wait: Callable[[SharedQueue], list[SqsReceipt]]) -> list[SqsReceipt]:
        with self._lock:
            shared.wait_with(waiter)
        try:
            taken = wait(shared)
        finally:
            with self._lock:
                shared.waiters.remove(waiter)
        if taken or waiter.deadline > time.monotonic():
            return taken
        with self._lock:
            return shared.take_late(waiter.limit)

    def _forget(self, queue: str, shared: SharedQueue) -> None:
        with self._lock:
            self._directory.forget(queue)
            if self._queues.get(queue) is shared:
                del self._queues[queue]

    def _claimed(self, shared: SharedQueue, taken: list[SqsReceipt], lease: float | None) -> list[Delivery]:
        """Where AWS fails in the middle: what is claimed so far, since nobody else gets that; the rest comes again."""
        claimed: list[Delivery] = []
        for receipt in taken:
            try:
                if shared.claim(receipt, lease):
                    claimed.append(self._delivery(receipt, lease))
            except ProviderError:
                if not claimed:
                    raise
                break
        return claimed

    def _delivery(self, receipt: SqsReceipt, lease: float | None) -> Delivery:
        if lease is None:
            return receipt.envelope.message, None
        self._leases.hold(receipt)
        return receipt.envelope.message, receipt

    # ------------------------------------------------------------------ settling

    def ack(self, receipt: SqsReceipt) -> None:
        """SQS forgets it. Raises LeaseLost."""
        self._leases.spend(receipt)
        if not receipt.home.forget(receipt):
            raise lost(receipt)

    def nack(self, receipt: SqsReceipt, delay: float) -> None:
        """It is visible again after `delay`. Raises LeaseLost."""
        self._leases.spend(receipt)
        if delay > 0:  # SQS does not count what is hidden among the waiting
            self._replace(receipt, receipt.attempt, delay)
        elif not receipt.home.hide(receipt, 0):
            raise lost(receipt)

    def _give_back(self, receipt: SqsReceipt) -> None:
        """Nobody has got it: that is no attempt. But a FIFO queue's copy would come behind what is younger."""
        if self._config.ordered:
            receipt.home.hide(receipt, 0)
        else:
            self._replace(receipt, receipt.attempt - 1, 0)

    def _replace(self, receipt: SqsReceipt, attempts: int, delay: float) -> None:
        """By a copy that was delivered so often already."""
        again = self._sender.envelope(receipt.envelope.message, None, queue=receipt.queue, attempts=attempts)
        self._sender.send(receipt.queue, again._replace(expires=receipt.envelope.expires), delay)
        receipt.home.forget(receipt)
