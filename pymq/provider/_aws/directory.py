"""Which queues of SQS a namespace has: finding, making and removing them, and whether the process behind a mailbox still lives."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pymq.exceptions import QueueNotFound
from pymq.provider._aws.account import DELETED_RECENTLY, Account, AwsError
from pymq.provider._aws.names import BURIED, MAILBOX, SHARED, TAG, Names, delivery_policy, is_temporary, mailbox_of, tagged, untagged

GENERATIONS = 3
"""AWS refuses a deleted queue's name for 60 s: a queue that is made again within them gets the next number."""
BLOCKED_SECONDS = 60
KEPT_SECONDS = 14 * 86400
"""How long SQS keeps what nobody takes: its maximum."""
MAILBOX_SECONDS = 3600
MANY_DELIVERIES = 1000
"""SQS's maximum. The core counts failures itself; this stops a message that kills SQS's every receiver before that."""


class Place(NamedTuple):
    """A queue of SQS."""

    kind: str
    url: str
    name: str
    generation: int


class Directory:
    """The queues of one namespace, in both directions. Safe in all threads."""

    def __init__(self, account: Account, names: Names, ordered: bool) -> None:
        self._account = account
        self.names = names
        self._ordered = ordered
        self._places: dict[tuple[str, str], Place] = {}
        self._deleted: dict[tuple[str, str], tuple[int, float]] = {}
        self._full_names: dict[str, str] = {}

    # ------------------------------------------------------------------ by our names

    def find(self, queue: str) -> Place:
        """The queue of SQS for a shared or temporary queue. Raises QueueNotFound."""
        ways = [(SHARED, queue), (MAILBOX, mailbox_of(queue))]
        if is_temporary(queue):
            ways.reverse()
        for way in ways:
            if way in self._places:
                return self._places[way]
        for generation in range(GENERATIONS):
            for kind, name in ways:
                if (place := self._look(kind, name, generation)) is not None:
                    return place
        raise QueueNotFound(f"there is no queue {queue!r}: it was not declared, was deleted, or its owner has ended")

    def find_shared(self, queue: str) -> Place | None:
        """The same for a shared one."""
        known = self._places.get((SHARED, queue))
        return known or next(self._existing(SHARED, queue), None)

    def forget(self, queue: str) -> None:
        """A call has shown that it is gone."""
        for way in ((SHARED, queue), (MAILBOX, mailbox_of(queue))):
            self._places.pop(way, None)

    def _existing(self, kind: str, name: str) -> Iterator[Place]:
        found = (self._look(kind, name, generation) for generation in range(GENERATIONS))
        return (place for place in found if place is not None)

    def _look(self, kind: str, name: str, generation: int) -> Place | None:
        sqs_name = self.names.queue(kind, name, generation)
        try:
            url = self._account.sqs("get_queue_url", QueueName=sqs_name)["QueueUrl"]
        except QueueNotFound:
            return None
        place = self._places[kind, name] = Place(kind, url, sqs_name, generation)
        return place

    # ------------------------------------------------------------------ making and removing

    def make_shared(self, queue: str) -> Place:
        """The shared queue, which exists from now on and keeps its messages."""
        if (place := self.find_shared(queue)) is not None:
            return place
        buried = self._existing_or_new(BURIED, "")
        redrive = f'{{"deadLetterTargetArn":"{self.arn(buried)}","maxReceiveCount":"{MANY_DELIVERIES}"}}'
        place = self._make(SHARED, queue, tagged("name", queue), RedrivePolicy=redrive)
        self._full_names[place.name] = queue
        return place

    def make_mailbox(self, name: str, tags: Mapping[str, str]) -> Place:
        """A new mailbox."""
        return self._make(MAILBOX, name, tags, MessageRetentionPeriod=str(MAILBOX_SECONDS))

    def _existing_or_new(self, kind: str, name: str) -> Place:
        return self._places.get((kind, name)) or next(self._existing(kind, name), None) or self._make(kind, name, {})

    def _make(self, kind: str, name: str, tags: Mapping[str, str], **attributes: str) -> Place:
        deadline = time.monotonic() + BLOCKED_SECONDS + 5
        while True:
            for generation in range(self._first_generation(kind, name), GENERATIONS):
                try:
                    return self._create(kind, name, generation, tags, attributes)
                except AwsError as error:
                    if error.code not in DELETED_RECENTLY or time.monotonic() > deadline:
                        raise
            time.sleep(1)

    def _first_generation(self, kind: str, name: str) -> int:
        generation, when = self._deleted.get((kind, name), (-1, 0.0))
        return (generation + 1) % GENERATIONS if time.monotonic() - when < BLOCKED_SECONDS else 0

    def _create(self, kind: str, name: str, generation: int, tags: Mapping[str, str], attributes: Mapping[str, str]) -> Place:
        sqs_name = self.names.queue(kind, name, generation)
        identity = self._account.identity
        policy = delivery_policy(identity.arn("sqs", sqs_name), identity.arn("sns", self.names.prefix + "*"))
        usual = {"MessageRetentionPeriod": str(KEPT_SECONDS), "Policy": policy}
        fifo = {"FifoQueue": "true", "DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId"}
        self._account.sqs(
            "create_queue",
            QueueName=sqs_name,
            Attributes=usual | (fifo if self._ordered else {}) | dict(attributes),
            tags=self.names.tags | dict(tags),
        )
        return self._usable(kind, name, generation)

    def _usable(self, kind: str, name: str, generation: int) -> Place:
        """A new queue can be used after a second or so: wait until SQS knows it."""
        for _ in range(50):
            if (place := self._look(kind, name, generation)) is not None:
                return place
            time.sleep(0.1)
        raise QueueNotFound(f"SQS does not know the queue for {name!r} 5 s after it has made it")

    def delete(self, kind: str, name: str) -> None:
        """The queue of SQS is gone; an unknown one is ignored."""
        for place in list(self._existing(kind, name)):
            self.delete_at(place.url)
            self._deleted[kind, name] = place.generation, time.monotonic()
        self._places.pop((kind, name), None)

    def delete_at(self, url: str) -> None:
        """The same by its URL."""
        try:
            self._account.sqs("delete_queue", QueueUrl=url)
        except QueueNotFound:
            pass

    def arn(self, place: Place) -> str:
        """Its full name."""
        return self._account.identity.arn("sqs", place.name)

    # ------------------------------------------------------------------ from SQS's names

    def listed(self, kind: str = "") -> list[str]:
        """The URLs of the namespace's queues, or of those of one kind."""
        urls: list[str] = []
        page: dict[str, Any] = {"MaxResults": 1000, "QueueNamePrefix": self.names.prefix + (f"{kind}-" if kind else "")}
        while True:
            answer = self._account.sqs("list_queues", **page)
            urls += answer.get("QueueUrls", [])
            if not answer.get("NextToken"):
                return urls
            page["NextToken"] = answer["NextToken"]

    def shared(self, prefix: str) -> Sequence[str]:
        """The names of the shared queues that begin with the prefix."""
        names = [self._full_name(url) for url in self.listed(SHARED)]
        return [name for name in names if name is not None and name.startswith(prefix)]

    def _full_name(self, url: str) -> str | None:
        sqs_name = url.rpartition("/")[2]
        if sqs_name not in self._full_names:
            name = untagged("name", self.tags(url))
            if name is None:
                return None
            self._full_names[sqs_name] = name
        return self._full_names[sqs_name]

    def url_of(self, queue_arn: str) -> str | None:
        """The URL of a queue that is given by its ARN; None where it is gone."""
        try:
            url: str = self._account.sqs("get_queue_url", QueueName=queue_arn.rpartition(":")[2])["QueueUrl"]
            return url
        except QueueNotFound:
            return None

    # ------------------------------------------------------------------ tags and leases

    def tags(self, url: str) -> dict[str, str]:
        """The queue's tags; none where it is gone."""
        try:
            tags: dict[str, str] = self._account.sqs("list_queue_tags", QueueUrl=url).get("Tags", {})
            return tags
        except QueueNotFound:
            return {}

    def tag(self, url: str, tags: Mapping[str, str]) -> None:
        """Set some. Raises QueueNotFound."""
        self._account.sqs("tag_queue", QueueUrl=url, Tags=dict(tags))

    def untag(self, url: str, tags: Mapping[str, str]) -> None:
        """Remove some. Raises QueueNotFound."""
        self._account.sqs("untag_queue", QueueUrl=url, TagKeys=list(tags))

    def lease_tags(self, seconds: float) -> dict[str, str]:
        """What says that a mailbox's process lives for so long."""
        return {f"{TAG}lease": f"{self._account.now() + seconds:.3f}"}

    def lives(self, tags: Mapping[str, str]) -> bool:
        """Whether the mailbox with these tags has a process; one without a lease is gone, or just being removed."""
        return float(tags.get(f"{TAG}lease", 0)) > self._account.now()


def owner_tags(owner: str) -> dict[str, str]:
    """Who made it, for people: host and process."""
    return tagged("owner", owner)
