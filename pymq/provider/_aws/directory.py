"""Which queues of SQS a namespace has: finding, making and removing them, and whether the process behind a mailbox still lives.

A queue that is deleted and made again gets another name: SQS refuses the old one for a minute, in which it may still answer for the
queue that is gone, and what was subscribed or sent to that one must not meet the new one. All participants compute the same new
name, `Names.queue(kind, name, number)`, from what the name's *tombstone* says: an empty queue of SQS whose tags are the numbers that
were used up. Whoever deletes the queue with a number first adds that number to the tombstone; the current number is one more than
the largest, or 0 while there is no tombstone, so numbers only grow, whoever adds them in whichever order. Two who declare at once
make the same queue, which SQS allows; two who delete at once add the same number. Whoever has looked too early is told by SQS that
the name was deleted, and looks again. A tombstone stays until the namespace is purged.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pymq.exceptions import QueueNotFound
from pymq.provider._aws.account import DELETED_RECENTLY, EXISTS_OTHERWISE, Account, AwsError
from pymq.provider._aws.names import (
    BURIED,
    MAILBOX,
    SHARED,
    TAG,
    Names,
    delivery_policy,
    is_temporary,
    mailbox_of,
    number_of,
    tagged,
    untagged,
)
from pymq.provider._refusals import gone

BLOCKED_SECONDS = 60
"""How long SQS refuses the name of a deleted queue."""
NEW_SECONDS = 1.0
"""How long some of SQS's servers may not know a queue that is new."""
KEPT_SECONDS = 14 * 86400
"""How long SQS keeps what nobody takes: its maximum."""
MAILBOX_SECONDS = 3600
MANY_DELIVERIES = 1000
"""SQS's maximum. The core counts failures itself; this stops a message that kills SQS's every receiver before that."""
_DELETED = f"{TAG}deleted."


class Place(NamedTuple):
    """A queue of SQS."""

    kind: str
    url: str
    name: str


class Directory:
    """The queues of one namespace, in both directions. Safe in all threads."""

    def __init__(self, account: Account, names: Names, ordered: bool) -> None:
        self._account = account
        self.names = names
        self._ordered = ordered
        self._places: dict[tuple[str, str], Place] = {}
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
        for way in ways:
            if (place := self._look(*way)) is not None:
                return place
        raise gone(queue)

    def find_shared(self, queue: str) -> Place | None:
        """The same for a shared one."""
        return self._places.get((SHARED, queue)) or self._look(SHARED, queue)

    def used(self) -> list[str]:
        """The shared queues that this process has found."""
        return [name for kind, name in list(self._places) if kind == SHARED]

    def learn(self, inboxes: Iterable[str], url: str) -> None:
        """These are in the mailbox with that URL: nobody has to look for them by their names."""
        for inbox in inboxes:
            self._know(MAILBOX, mailbox_of(inbox), url.rpartition("/")[2], url)

    def forget(self, queue: str) -> None:
        """A call has shown that it is gone."""
        for way in ((SHARED, queue), (MAILBOX, mailbox_of(queue))):
            self._places.pop(way, None)

    def is_there_all_the_same(self, queue: str, place: Place) -> bool:
        """Whether a call that said otherwise has asked too early; then it may be made again."""
        self.forget(queue)
        if self.find_shared(queue) != place:
            return False
        time.sleep(NEW_SECONDS)
        return True

    def _look(self, kind: str, name: str) -> Place | None:
        sqs_name = self.names.queue(kind, name, self._number(kind, name))
        url = self._url(sqs_name)
        return None if url is None else self._know(kind, name, sqs_name, url)

    def _know(self, kind: str, name: str, sqs_name: str, url: str) -> Place:
        place = self._places[kind, name] = Place(kind, url, sqs_name)
        return place

    def _url(self, sqs_name: str) -> str | None:
        try:
            url: str = self._account.sqs("get_queue_url", QueueName=sqs_name)["QueueUrl"]
            return url
        except QueueNotFound:
            return None

    # ------------------------------------------------------------------ tombstones

    def _number(self, kind: str, name: str) -> int:
        """That of the queue which stands for the name now."""
        url = self._url(self.names.tombstone(self.names.queue(kind, name, 0)))
        return 0 if url is None else 1 + max(_numbers(self.tags(url)), default=-1)

    def _entomb(self, kind: str, name: str, number: int) -> None:
        """From now on nobody takes this number for the name."""
        tombstone = self.names.tombstone(self.names.queue(kind, name, number))
        url = self._url(tombstone) or self._create_patiently(tombstone)
        self.tag(url, self.names.tags | tagged("name", name) | {f"{_DELETED}{number}": f"{self._account.now():.0f}"})
        if smaller := [known for known in _numbers(self.tags(url)) if known < number]:
            self.untag(url, [f"{_DELETED}{known}" for known in smaller])

    def _create_patiently(self, tombstone: str) -> str:
        """A purge has removed it, if SQS does not want it within a minute."""
        deadline = time.monotonic() + BLOCKED_SECONDS + 5
        while True:
            try:
                return self._create(tombstone, {}, {})
            except AwsError as error:
                if error.code not in DELETED_RECENTLY or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    # ------------------------------------------------------------------ making and removing

    def make_shared(self, queue: str) -> Place:
        """The shared queue, which exists from now on and keeps its messages."""
        if (place := self._present(SHARED, queue)) is not None:
            return place
        buried = self._present(BURIED, "") or self._make(BURIED, "", {})
        redrive = f'{{"deadLetterTargetArn":"{self.arn(buried)}","maxReceiveCount":"{MANY_DELIVERIES}"}}'
        place = self._make(SHARED, queue, tagged("name", queue), RedrivePolicy=redrive)
        self._full_names[place.name] = queue
        return place

    def _present(self, kind: str, name: str) -> Place | None:
        """The queue that is there now: another process may have deleted the one that we know, or purged the namespace."""
        known = self._places.get((kind, name))
        return known if known is not None and self.exists(known.url) else self._look(kind, name)

    def make_mailbox(self, name: str, tags: Mapping[str, str], instead_of: Place | None = None) -> Place:
        """A new mailbox, whose number its owner has to leave behind where somebody has removed the one before."""
        if instead_of is not None:
            self._entomb(MAILBOX, name, number_of(instead_of.name))
        return self._make(MAILBOX, name, tags, MessageRetentionPeriod=str(MAILBOX_SECONDS))

    def _make(self, kind: str, name: str, tags: Mapping[str, str], **attributes: str) -> Place:
        while True:
            number = self._number(kind, name)
            sqs_name = self.names.queue(kind, name, number)
            try:
                return self._know(kind, name, sqs_name, self._create(sqs_name, tags, attributes))
            except AwsError as error:
                if error.code not in DELETED_RECENTLY:
                    raise
            self._entomb(kind, name, number)

    def _create(self, sqs_name: str, tags: Mapping[str, str], attributes: Mapping[str, str]) -> str:
        """The URL of a queue that exists, made by this call, or by somebody who was faster and has given it other tags since."""
        identity = self._account.identity
        policy = delivery_policy(identity.arn("sqs", sqs_name), identity.arn("sns", self.names.prefix + "*"))
        usual = {"MessageRetentionPeriod": str(KEPT_SECONDS), "Policy": policy}
        fifo = {"FifoQueue": "true", "DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId"}
        asked = usual | (fifo if self._ordered else {}) | dict(attributes)
        try:
            self._account.sqs("create_queue", QueueName=sqs_name, Attributes=asked, tags=self.names.tags | dict(tags))
        except AwsError as error:
            if error.code not in EXISTS_OTHERWISE:
                raise
        return self._usable(sqs_name)

    def _usable(self, sqs_name: str) -> str:
        """A new queue can be used after a second or so: wait until SQS knows it."""
        for _ in range(50):
            if (url := self._url(sqs_name)) is not None:
                return url
            time.sleep(0.1)
        raise QueueNotFound(f"SQS does not know the queue {sqs_name!r} 5 s after it has made it")

    def delete_shared(self, queue: str) -> None:
        """The queue of SQS is gone, and its name; an unknown one is ignored. What an interrupted call began is finished by the next."""
        number = self._number(SHARED, queue)
        current = self._url(self.names.queue(SHARED, queue, number))
        if current is not None:
            self._entomb(SHARED, queue, number)
            self.delete_at(current)
        elif number and (entombed := self._url(self.names.queue(SHARED, queue, number - 1))) is not None:
            self.delete_at(entombed)
        self._places.pop((SHARED, queue), None)

    def delete_mailbox(self, url: str) -> None:
        """A mailbox is gone, by its URL. Its name, which is its bus's alone, will not be used again, so no tombstone must stay."""
        self.delete_at(url)
        if number_of(url) and (tombstone := self._url(self.names.tombstone(url.rpartition("/")[2]))) is not None:
            self.delete_at(tombstone)

    def delete_at(self, url: str) -> None:
        """The queue of SQS with that URL is gone; an unknown one is ignored."""
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
        """The names of the shared queues that begin with the prefix, among them those used here that SQS does not list yet."""
        names = [*self.used(), *map(self._full_name, self.listed(SHARED))]
        return [name for name in dict.fromkeys(names) if name is not None and name.startswith(prefix)]

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
        return self._url(queue_arn.rpartition(":")[2])

    def exists(self, url: str) -> bool:
        """Whether the queue with that URL is there."""
        return self._url(url.rpartition("/")[2]) is not None

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

    def untag(self, url: str, keys: Iterable[str]) -> None:
        """Remove some. Raises QueueNotFound."""
        self._account.sqs("untag_queue", QueueUrl=url, TagKeys=list(keys))

    def lease_tags(self, seconds: float) -> dict[str, str]:
        """What says that a mailbox's process lives for so long."""
        return {f"{TAG}lease": f"{self._account.now() + seconds:.3f}"}

    def lives(self, tags: Mapping[str, str]) -> bool:
        """Whether the mailbox with these tags has a process; one without a lease is gone, or just being removed."""
        return float(tags.get(f"{TAG}lease", 0)) > self._account.now()


def _numbers(tags: Mapping[str, str]) -> list[int]:
    """Those that a tombstone says are used up."""
    return [int(key.removeprefix(_DELETED)) for key in tags if key.startswith(_DELETED)]
