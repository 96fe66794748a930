"""What a namespace owns in AWS: listing it, removing what the dead have left, removing everything."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from pymq.exceptions import ProviderError
from pymq.provider._aws.directory import Directory
from pymq.provider._aws.names import BURIED, MAILBOX, SHARED, TOMBSTONE, all_of_many, untagged
from pymq.provider._aws.topics import Topics

log = logging.getLogger("pymq")

KINDS = {SHARED: "queue", MAILBOX: "mailbox", BURIED: "undeliverable", TOMBSTONE: "tombstone"}


class Resource(NamedTuple):
    """One thing that a namespace owns: what it is, its name in AWS, what it stands for, and how to remove it."""

    kind: str
    name: str
    stands_for: str
    remove: Callable[[], None]


class Sweeper:
    """Finds and removes. Safe in all threads."""

    def __init__(self, directory: Directory, topics: Topics) -> None:
        self._directory = directory
        self._topics = topics
        self._known: dict[str, dict[str, str]] = {}

    def mailboxes(self) -> list[str]:
        """The URLs of all mailboxes, also of those that were deleted a moment ago."""
        return self._directory.listed(MAILBOX)

    def sweep(self) -> int:
        """Remove the mailboxes whose processes have died, with their subscriptions; how many there were."""
        dead = [url for url in self.mailboxes() if self._is_dead(url)]
        self._remove_mailboxes(dead)
        return len(dead)

    def _is_dead(self, url: str) -> bool:
        tags = self._directory.tags(url)
        return bool(tags) and not self._directory.lives(tags)

    def remove_if_dead(self, url: str) -> bool:
        """Whether the mailbox's process is dead; then nothing of it is left."""
        if not self._directory.exists(url):
            return True
        tags = self._tags(url)
        if tags and self._directory.lives(tags):
            return False
        if tags:
            self._remove_mailboxes([url])
        return True

    def _tags(self, url: str) -> dict[str, str]:
        """A mailbox's tags; those that name an inbox are believed until their lease has ended, since no process dies sooner.

        SQS answers for tags five times a second, for the whole account.
        """
        known = self._known.pop(url, {})
        if not self._directory.lives(known) or not all_of_many("inbox", known):
            known = self._directory.tags(url)
        if self._directory.lives(known):
            self._known[url] = known
        return known

    def _remove_mailboxes(self, urls: list[str]) -> None:
        """First their subscriptions, which are found among all of the account: SNS knows no other way from a queue to them."""
        names = {url.rpartition("/")[2] for url in urls}
        if names:
            for subscription in list(self._topics.all_subscriptions()):
                if subscription.queue_arn.rpartition(":")[2] in names:
                    self._topics.unsubscribe(subscription.arn)
        for url in urls:
            log.info("removing the mailbox of a process that has died: %s", url)
            self._directory.delete_mailbox(url)

    def consumers(self, topic: str) -> list[str]:
        """The live temporary queues that are subscribed to a topic; what is left of dead ones is removed."""
        found: list[str] = []
        for queue_arn, subscription_arn in self._topics.subscriptions(topic):
            if self._directory.names.kind_of(queue_arn) != MAILBOX:
                continue
            url = self._directory.url_of(queue_arn)
            tags = {} if url is None else self._tags(url)
            if url is not None and self._directory.lives(tags):
                inboxes = all_of_many("inbox", tags)
                found += inboxes
                self._directory.learn(inboxes, url)
            else:
                self._remove_remains(url, subscription_arn)
        return found

    def _remove_remains(self, url: str | None, subscription_arn: str) -> None:
        self._topics.unsubscribe(subscription_arn)
        if url is not None:
            self.remove_if_dead(url)

    def inventory(self) -> Iterator[Resource]:
        """Everything that the namespace owns, in the order in which to remove it: what sends before what is sent to."""
        topics, directory = self._topics, self._directory
        for queue_arn, arn in topics.all_subscriptions():
            topic, _, number = arn.rpartition(":")
            yield Resource("subscription", number, f"{_last(topic)} to {_last(queue_arn)}", partial(topics.unsubscribe, arn))
        for arn in topics.listed():
            yield Resource("topic", _last(arn), topics.name_of(arn), partial(topics.delete, arn))
        for url in directory.listed():
            kind = KINDS.get(directory.names.kind_of(url), "queue")
            yield Resource(kind, _last(url), self._describe(kind, directory.tags(url)), partial(directory.delete_at, url))

    def _describe(self, kind: str, tags: dict[str, str]) -> str:
        if kind != "mailbox":
            return untagged("name", tags) or ""
        state = "" if self._directory.lives(tags) else ", dead"
        return f"{untagged('owner', tags) or 'unknown'}{state}"


def _last(resource: str) -> str:
    """The name in an ARN or a URL."""
    return re.split("[:/]", resource)[-1]


def quietly(action: Callable[[], object], what: str) -> None:
    """For what is done beside the user's calls: an error is logged."""
    try:
        action()
    except ProviderError as error:
        log.warning("%s failed: %s", what, error)
