"""Mailboxes: one queue of SQS for all temporary queues of a bus, read by one thread, which hands each message to its inbox.

What says that the process lives is a lease in the mailbox's tags, renewed three times in its length. Whoever finds it expired
removes the mailbox; a process that was only stopped finds that out when it goes on, says so, and makes it anew.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from pymq.dispatch import back_off, persist
from pymq.exceptions import ProviderError, QueueNotFound
from pymq.provider._aws.account import Account
from pymq.provider._aws.batches import in_one_call
from pymq.provider._aws.directory import NEW_SECONDS, Directory, Place
from pymq.provider._aws.envelope import Envelope, Window, unpack
from pymq.provider._aws.names import EVERYTHING, tagged, tags_of_many
from pymq.provider._aws.topics import Topics
from pymq.provider._refusals import gone
from pymq.provider.base import Delivery
from pymq.topics import Bindings

log = logging.getLogger("pymq")

MAX_PENDING = 32 << 20
"""Bytes that may wait for the receiver of one temporary queue in memory; what comes then for it is dropped and counted."""
HIDDEN_SECONDS = 30
"""How long SQS hides what was received before it comes again, where removing it failed."""


class Inbox:
    """A temporary queue: what has come since its receiver last looked. Under the provider's lock, as `changed` is."""

    def __init__(self, lock: threading.RLock) -> None:
        self.changed = threading.Condition(lock)
        self.error: Exception | None = None
        self.dropped = 0
        self._messages: list[bytes] = []
        self._bytes = 0

    def put(self, message: bytes) -> None:
        """Append it, or count it where the receiver does not keep up."""
        if self._messages and self._bytes + len(message) > MAX_PENDING:
            self.dropped += 1
            return
        self._messages.append(message)
        self._bytes += len(message)
        self.changed.notify_all()

    def take(self, limit: int = 0) -> list[Delivery]:
        """All of it, whatever the limit is."""
        messages, self._messages, self._bytes = self._messages, [], 0
        return [(message, None) for message in messages]

    def __len__(self) -> int:
        return len(self._messages)


class Mailbox:
    """The temporary queues of one bus. `poll` is how long SQS is asked to wait, `lease` what each renewal adds, in seconds."""

    def __init__(self, account: Account, directory: Directory, topics: Topics, lock: threading.RLock, name: str, owner: str) -> None:
        self._account = account
        self._directory = directory
        self._topics = topics
        self._lock = lock
        self._name = name
        self._owner = owner
        self._changing = threading.RLock()
        self._bindings = Bindings()
        self._subscriptions: dict[str, str | None] = {}
        self._lost: set[str] = set()
        self._seen = Window()
        self._closed = False
        self.inboxes: dict[str, Inbox] = {}

    def open(self, lease: float, poll: int) -> None:
        """It exists and is read from now on."""
        self._lease = lease
        self._poll = poll
        self._place = self._make()
        threading.Thread(target=persist, args=[self._read], name="pymq-aws-mailbox", daemon=True).start()

    def _make(self, instead_of: Place | None = None) -> Place:
        bound = [tags_of_many("inbox", name) for name in self._bound()]
        tags = self._directory.lease_tags(self._lease) | tagged("owner", self._owner)  # for people: host and process
        tags = {key: value for each in (tags, *bound) for key, value in each.items()}
        return self._directory.make_mailbox(self._name, tags, instead_of)

    def _bound(self) -> list[str]:
        return list(dict.fromkeys(name for name, _, _ in self._bindings.of()))

    # ------------------------------------------------------------------ bindings

    def bind(self, queue: str, pattern: str, exact: bool) -> None:
        """Subscribe the mailbox, unless it is; the inbox's name goes into the tags, where callers of remotes look for it."""
        with self._changing:
            if queue not in self._bound():
                self._tag(tags_of_many("inbox", queue))
            with self._lock:
                self._bindings.bind(queue, pattern, exact)
            self._subscribe(pattern if exact else EVERYTHING)

    def _subscribe(self, topic: str) -> None:
        if self._subscriptions.get(topic) is None:
            self._subscriptions[topic] = None  # where this fails, it may be there all the same
            self._subscriptions[topic] = self._topics.subscribe(topic, self._directory.arn(self._place))

    def unbind(self, queue: str, pattern: str, exact: bool) -> None:
        """Unsubscribe it where nothing else needs the topic."""
        with self._changing:
            with self._lock:
                self._bindings.unbind(queue, pattern, exact)
            self._end_subscriptions(set(self._subscriptions) - self._needed())
            if queue not in self._bound():
                with suppress(QueueNotFound):  # made anew, it will not have them
                    self._directory.untag(self._place.url, tags_of_many("inbox", queue))

    def _tag(self, tags: dict[str, str]) -> None:
        try:
            self._directory.tag(self._place.url, tags)
        except QueueNotFound:
            self._revive()
            self._directory.tag(self._place.url, tags)

    def _needed(self) -> set[str]:
        return {pattern if exact else EVERYTHING for _, pattern, exact in self._bindings.of()}

    def _end_subscriptions(self, topics: Iterable[str]) -> None:
        concurrently(self._end_subscription, topics)

    def _end_subscription(self, topic: str) -> None:
        """It is known until it has ended: what fails is tried again, at the latest by `close`. Nobody else would find it then."""
        arn = self._subscriptions[topic] or self._topics.find(topic, self._directory.arn(self._place))
        if arn is not None:
            self._topics.unsubscribe(arn)
        del self._subscriptions[topic]

    def remove(self, queue: str) -> None:
        """That temporary queue is gone."""
        with self._changing:
            for _, pattern, exact in self._bindings.of(queue):
                self.unbind(queue, pattern, exact)
            with self._lock:
                inbox = self.inboxes.pop(queue)
                inbox.error = gone(queue)
                inbox.changed.notify_all()

    # ------------------------------------------------------------------ reading

    def _read(self) -> None:
        failures = 0
        while not self._closed:
            try:
                self._receive()
                failures = 0
            except Exception as error:
                if not self._closed:
                    failures += 1
                    log.warning("receiving from SQS failed; trying again: %s", error, exc_info=not isinstance(error, ProviderError))
                    time.sleep(back_off(failures))

    def _receive(self) -> None:
        try:
            messages = self._account.poll(
                QueueUrl=self._place.url, MaxNumberOfMessages=10, WaitTimeSeconds=self._poll, VisibilityTimeout=HIDDEN_SECONDS
            )
            self._hand_over(messages)
        except QueueNotFound:
            if not self._revive():
                time.sleep(NEW_SECONDS)
        if self._lost:
            self._subscribe_again()

    def _hand_over(self, messages: list[dict[str, Any]]) -> None:
        """To the inboxes first, then SQS may forget them: where that fails they come again, and are known."""
        with self._lock:
            for message in messages:
                self._sort(unpack(message["Body"]))
        if messages and not self._closed:
            handles = [{"ReceiptHandle": message["ReceiptHandle"]} for message in messages]
            in_one_call(lambda entries: self._account.sqs("delete_message_batch", QueueUrl=self._place.url, Entries=entries), handles)

    def _sort(self, envelope: Envelope) -> None:
        if envelope.id and not self._seen.note(envelope.id):
            return  # it came through another topic as well, or twice, as SQS's messages may
        names = self._bindings.matching(envelope.topics) if envelope.topics else [envelope.queue]
        for name in names:
            if name in self.inboxes:
                self.inboxes[name].put(envelope.message)

    def renew(self) -> None:
        """This process lives."""
        try:
            self._directory.tag(self._place.url, self._directory.lease_tags(self._lease))
        except QueueNotFound:
            self._revive()

    def _revive(self) -> bool:
        """Somebody has removed it, as that of a dead process: the lease had ended. False where nobody has, or this process, to end."""
        with self._changing:
            if self._closed or self._directory.tags(self._place.url):
                return False
            log.warning("the mailbox of this process was removed, since it had not renewed its lease; what was sent meanwhile is lost")
            self._place = self._make(instead_of=self._place)
            self._lost |= self._subscriptions.keys()
            self._subscriptions.clear()
            self._subscribe_again()
            return True

    def _subscribe_again(self) -> None:
        """To what the mailbox that was removed was subscribed to, as far as it is needed still. The reader goes on where this fails."""
        with self._changing:
            for topic in list(self._lost):
                if topic in self._needed() and not self._closed:
                    self._subscribe(topic)
                self._lost.discard(topic)

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Unsubscribe, and remove it: in this order, so that a sweep finds what is left where AWS fails."""
        self._closed = True
        with self._changing:
            try:
                self._end_subscriptions(list(self._subscriptions))
            finally:
                self._wake_reader()
            self._directory.delete_mailbox(self._place.url)
            self._directory.forget(f"inbox/{self._name}")

    def _wake_reader(self) -> None:
        """A poll cannot be interrupted, but answered; the message is for nobody."""
        try:
            self._account.sqs("send_message", QueueUrl=self._place.url, MessageBody=Envelope(b"").pack(), **self._fifo())
        except ProviderError:
            pass  # then it ends with its time

    def _fifo(self) -> dict[str, str]:
        return {"MessageGroupId": "wake", "MessageDeduplicationId": "wake"} if self._place.name.endswith(".fifo") else {}


def concurrently(function: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """Call it for each, eight at a time: a call takes AWS some 20 ms. One after the other where the interpreter is ending.

    One that fails keeps none of the others from being called; then the first error is raised.
    """
    left = deque(items)
    errors: list[Exception] = []
    arguments = function, left, errors
    threads = [threading.Thread(target=_call_for_each, args=arguments, daemon=True) for _ in range(min(8, len(left)) - 1)]
    with suppress(RuntimeError):  # no thread can be started any more
        for thread in threads:
            thread.start()
    _call_for_each(*arguments)
    for thread in threads:
        if thread.is_alive():
            thread.join()
    if errors:
        raise errors[0]


def _call_for_each(function: Callable[[Any], Any], left: deque[Any], errors: list[Exception]) -> None:
    with suppress(IndexError):
        while True:
            item = left.popleft()
            try:
                function(item)
            except Exception as error:
                errors.append(error)
