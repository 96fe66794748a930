"""Many machines, through Amazon SNS and SQS: events through topics, everything else directly into queues.

========================  ===========================================================================================
a temporary queue         an entry in this bus's *mailbox*, one queue of SQS that a thread reads (`_aws.mailbox`)
a shared queue            a queue of SQS; its visibility timeout is the lease (`_aws.queue`)
a topic                   a topic of SNS; a pattern: the namespace's topic for everything, filtered here (`_aws.topics`)
who serves a topic        its subscriptions, and leases in the mailboxes' tags (`_aws.sweep`)
========================  ===========================================================================================
"""

from __future__ import annotations

import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pymq.bus import EventBus
from pymq.exceptions import ProviderError, QueueNotFound
from pymq.provider._aws.account import LONGEST_POLL, Account
from pymq.provider._aws.config import AwsConfig, LocalstackConfig
from pymq.provider._aws.directory import Directory, Place
from pymq.provider._aws.envelope import LARGEST_MESSAGE
from pymq.provider._aws.keeper import Keeper
from pymq.provider._aws.leases import Leases
from pymq.provider._aws.mailbox import Inbox, Mailbox, concurrently
from pymq.provider._aws.names import EVERYTHING, SHARED, Names, all_of_many, mailbox_of, tags_of_many
from pymq.provider._aws.queue import SharedQueue, SqsReceipt, Waiter
from pymq.provider._aws.sender import Sender
from pymq.provider._aws.shared import SharedQueues
from pymq.provider._aws.sweep import Sweeper, quietly
from pymq.provider._aws.topics import Topics
from pymq.provider._refusals import check, gone
from pymq.provider.base import Delivery, Features, Provider, Receipt
from pymq.topics import Remembered, Turns, matcher

__all__ = ["AwsConfig", "AwsEventBus", "AwsProvider", "LocalstackConfig"]

SHORTEST_LEASE = 1.0


class AwsProvider(Provider):
    """The contract over SNS and SQS. Made by `AwsConfig.create`."""

    features: Features = Features(
        cross_machine=True,
        durable="whatever SQS survives, for 14 days",
        ordered=False,
        counts_receivers=False,
        exactly_bound=False,
        weighs_consumers=False,
        waits_on_io=True,
        death_seconds=AwsConfig.lease,
        max_delay=12 * 3600.0,
        max_message_bytes=LARGEST_MESSAGE,
    )

    def __init__(self, config: AwsConfig) -> None:
        if not (SHORTEST_LEASE <= config.lease < math.inf and 1 <= config.poll <= LONGEST_POLL and 0 <= config.refresh < math.inf):
            asked = f"lease={config.lease}, poll={config.poll}, refresh={config.refresh}"
            raise ValueError(f"{asked}: at least {SHORTEST_LEASE:.0f}, 1 to {LONGEST_POLL}, and at least 0 seconds are possible")
        self.features = replace(type(self).features, ordered=config.ordered, death_seconds=config.lease)
        self.max_message_bytes = LARGEST_MESSAGE
        self._config = config
        self._lock = threading.RLock()
        self._token = secrets.token_hex(8)
        self._wakes = 0
        self._closed = False
        self._mailboxes: dict[str, Mailbox] = {}
        self._owners: dict[str, Mailbox] = {}
        self._consumers: Remembered[tuple[float, list[str]]] = Remembered()
        self._turns = Turns()
        self._keeper = Keeper(config.lease / 3)
        self._leases = Leases(self._keeper, config.lease)
        self._making = threading.Lock()

    # ------------------------------------------------------------------ open and close

    def open(self) -> None:
        config = self._config
        self._account = Account(config.session, config.region, config.endpoint_url, config.emulated)
        self.clock: Callable[[], float] = self._account.now
        names = Names(config.namespace, config.ordered)
        self._directory = Directory(self._account, names, config.ordered)
        self._topics = Topics(self._account, names, config.ordered, config.refresh, self._token)
        self.sweeper: Sweeper = Sweeper(self._directory, self._topics)
        self._sender = Sender(self._account, self._directory, config.ordered, self._token)
        self._shared = SharedQueues(self._account, self._directory, self._sender, self._leases, self._lock, config)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.wake()
            for shared in self._shared.all():
                shared.end()
            mailboxes = list(self._mailboxes.values())
        self._keeper.close()
        self._topics.close()
        self._account.hurry()
        concurrently(lambda mailbox: quietly(mailbox.close, "removing this process's mailbox"), mailboxes)
        self._leases.give_back()

    def wake(self) -> None:
        with self._lock:
            self._wakes += 1
            waiting: list[Inbox | SharedQueue] = [*self._shared.all()]
            for mailbox in self._mailboxes.values():
                waiting += mailbox.inboxes.values()
            for each in waiting:
                each.changed.notify_all()

    # ------------------------------------------------------------------ queues

    def declare(self, queue: str, *, temporary: bool = False) -> None:
        if temporary:
            return self._declare_temporary(queue)
        if queue in self._owners:
            raise ProviderError(f"the queue {queue!r} exists already, of the other kind; rename it")
        with self._making:
            self._directory.make_shared(queue)
        return None

    def _declare_temporary(self, queue: str) -> None:
        with self._making:
            name = mailbox_of(queue)
            if name not in self._mailboxes:
                owner = f"{socket.gethostname()}/{os.getpid()}"
                mailbox = Mailbox(self._account, self._directory, self._topics, self._lock, name, owner)
                mailbox.open(self._config.lease, math.ceil(self._config.poll))
                self._add(name, mailbox)
                self._keeper.add(mailbox.renew, "renewing the lease of this process")
                self._sweep_once()
            mailbox = self._mailboxes[name]
            with self._lock:
                self._owners[queue] = mailbox
                if queue not in mailbox.inboxes:
                    mailbox.inboxes[queue] = Inbox(self._lock)

    def _add(self, name: str, mailbox: Mailbox) -> None:
        """Unless `close`, which removes those that it knows, has come meanwhile."""
        with self._lock:
            if not self._closed:
                self._mailboxes[name] = mailbox
                return
        quietly(mailbox.close, "removing this process's mailbox")
        raise ProviderError("the bus was shut down while its mailbox was made")

    def _sweep_once(self) -> None:
        """The first mailbox of a bus looks after those of the dead, without making anybody wait."""
        if len(self._mailboxes) == 1:
            arguments = self.sweeper.sweep, "looking for the remains of dead processes"
            threading.Thread(target=quietly, args=arguments, name="pymq-aws-sweep", daemon=True).start()

    def delete(self, queue: str) -> None:
        with self._lock:
            mailbox = self._owners.pop(queue, None)
        if mailbox is not None:
            return self._delete_temporary(queue, mailbox)
        self._directory.forget(queue)  # somebody may have deleted the one that we know, and another made it anew
        if (place := self._directory.find_shared(queue)) is not None:
            arn = self._directory.arn(place)
            concurrently(self._topics.unsubscribe, [found.arn for found in self._topics.all_subscriptions() if found.queue_arn == arn])
        self._directory.delete_shared(queue)
        self._shared.end(queue)
        return None

    def _delete_temporary(self, queue: str, mailbox: Mailbox) -> None:
        mailbox.remove(queue)
        if not mailbox.inboxes:
            self._keeper.remove(mailbox.renew)
            mailbox.close()
            with self._lock:
                self._mailboxes.pop(mailbox_of(queue), None)

    def size(self, queue: str) -> int:
        with self._lock:
            if queue in self._owners:
                return len(self._owners[queue].inboxes[queue])
        try:
            return self._sender.size(queue)
        except QueueNotFound:
            return 0

    def queues(self, prefix: str) -> Sequence[str]:
        return self._directory.shared(prefix)

    def counters(self) -> dict[str, dict[str, int]]:
        """Of this bus's temporary queues, and of the shared ones that it has used, for each of which SQS is asked, and answers about.

        `expired` is what this process has dropped.
        """
        with self._lock:
            inboxes = [item for mailbox in self._mailboxes.values() for item in mailbox.inboxes.items()]
            found = {name: {"waiting": len(inbox), "leased": 0, "dropped": inbox.dropped, "expired": 0} for name, inbox in inboxes}
            expired = {shared.name: shared.expired for shared in self._shared.all()}

        def look(queue: str) -> None:
            with suppress(QueueNotFound):
                found[queue] = self._sender.counts(queue) | {"dropped": 0, "expired": expired.get(queue, 0)}

        concurrently(look, self._directory.used())
        return found

    # ------------------------------------------------------------------ send

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
        check(self, message, delay, priority)
        with self._lock:
            if queue in self._owners:
                return self._owners[queue].inboxes[queue].put(bytes(message))
        if maxsize:
            self._sender.wait_for_room(queue, maxsize, timeout, lambda: self._closed)
        try:
            self._sender.send(queue, self._sender.envelope(message, ttl, queue=queue), delay)
        except QueueNotFound:
            self._consumers.clear()  # it may have been a server
            raise
        return None

    # ------------------------------------------------------------------ receive

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
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self._lock:
            wakes, mailbox = self._wakes, self._owners.get(queue)
        if mailbox is None:
            waiter = Waiter(limit, lease, deadline)
            return self._shared.receive(queue, waiter, lambda shared: self._wait(shared, limit, wakes, deadline, watch))
        inbox = mailbox.inboxes.get(queue)
        if inbox is None:
            raise gone(queue)
        return self._wait(inbox, limit, wakes, deadline, watch)

    def _wait(self, queue: Inbox | SharedQueue, limit: int, wakes: int, deadline: float, watch: Sequence[str]) -> list[Any]:
        """What comes before the deadline, a wake, or the death of a process that is watched."""
        between = self._config.lease / 6 if watch else math.inf
        while True:
            taken = self._wait_until(min(deadline, time.monotonic() + between), queue, limit, wakes)
            if taken or self._is_over(deadline, wakes):
                return taken
            if not all(map(self._lives, watch)):
                with self._lock:
                    return queue.take(limit)

    def _wait_until(self, until: float, queue: Inbox | SharedQueue, limit: int, wakes: int) -> list[Any]:
        with self._lock:
            while not (taken := queue.take(limit)):
                if queue.error is not None:
                    raise queue.error
                if self._is_over(until, wakes):
                    break
                queue.changed.wait(None if until == math.inf else min(until - time.monotonic(), threading.TIMEOUT_MAX))
            return taken

    def _is_over(self, deadline: float, wakes: int) -> bool:
        return self._wakes != wakes or self._closed or time.monotonic() >= deadline

    def _lives(self, queue: str) -> bool:
        if queue in self._owners:
            return True
        try:
            dead = self.sweeper.remove_if_dead(self._directory.find(queue).url)
        except QueueNotFound:
            return False
        except ProviderError:
            return True  # as far as is known: the next look may tell, and a reply may be on its way
        if dead:
            self._directory.forget(queue)
        return not dead

    # ------------------------------------------------------------------ settle

    def ack(self, receipt: Receipt) -> None:
        assert isinstance(receipt, SqsReceipt)
        self._shared.ack(receipt)

    def nack(self, receipt: Receipt, delay: float = 0) -> None:
        assert isinstance(receipt, SqsReceipt)
        self._shared.nack(receipt, delay)

    def extend(self, receipt: Receipt, seconds: float) -> None:
        assert isinstance(receipt, SqsReceipt)
        self._leases.extend(receipt, seconds)

    # ------------------------------------------------------------------ topics

    def bind(self, queue: str, pattern: str, *, exact: bool) -> None:
        if not exact:
            matcher(pattern)  # a bad glob is refused here, not met by every receiver
        if queue in self._owners:
            return self._owners[queue].bind(queue, pattern, exact)
        place = self._directory.find(queue)
        if place.kind != SHARED:
            raise ProviderError(f"the queue {queue!r} is another process's; only that one binds it")
        if exact:
            self._topics.subscribe(pattern, self._directory.arn(place))
        else:
            self._bind_pattern(queue, place, pattern)
        return None

    def _bind_pattern(self, queue: str, place: Place, pattern: str) -> None:
        """Where that is new, wait until all receivers of the queue have looked again."""
        self._shared.of(queue).bound(pattern, True)
        known = pattern in all_of_many("pattern", self._directory.tags(place.url))
        if not known:
            self._directory.tag(place.url, tags_of_many("pattern", pattern))
        begun = time.monotonic()  # until now a receiver may have looked in vain
        self._topics.subscribe(EVERYTHING, self._directory.arn(place))
        if not known:
            self._topics.wait(begun)

    def unbind(self, queue: str, pattern: str, *, exact: bool) -> None:
        if queue in self._owners:
            return self._owners[queue].unbind(queue, pattern, exact)
        place = self._directory.find_shared(queue)
        if place is None:
            return None
        if not exact:
            self._directory.untag(place.url, tags_of_many("pattern", pattern))
            self._shared.of(queue).bound(pattern, False)
            if all_of_many("pattern", self._directory.tags(place.url)):
                return None
        if (subscription := self._topics.find(pattern if exact else EVERYTHING, self._directory.arn(place))) is not None:
            self._topics.unsubscribe(subscription)
        return None

    def publish(
        self, topics: Sequence[str], message: bytes, *, timeout: float | None = None, delay: float = 0, ttl: float | None = None
    ) -> None:
        check(self, message, delay)
        due = self._account.now() + delay if delay else 0.0
        self._topics.publish(self._sender.envelope(message, ttl, topics=tuple(topics), due=due))

    def consumers(self, topic: str) -> Sequence[str]:
        """Looked up anew after `refresh` seconds, and always where nobody was there."""
        until, found = self._consumers.get(topic, (0.0, []))
        if not found or time.monotonic() >= until:
            found = self.sweeper.consumers(topic)
            self._consumers[topic] = time.monotonic() + self._config.refresh, found
        turn = next(self._turns[topic]) % max(1, len(found))
        return found[turn:] + found[:turn]


class AwsEventBus(EventBus):
    """PyMQ's name for a bus over SNS and SQS."""

    def __init__(self, config: AwsConfig | None = None) -> None:
        super().__init__(config or AwsConfig())
