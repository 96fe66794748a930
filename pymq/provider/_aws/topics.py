"""What goes through SNS: one topic for each channel, and one for everything, which is used only while somebody binds a pattern.

A topic stays when its last subscription ends: it costs nothing, and removing it could take a new subscriber's. `pymq aws purge`
removes those of a namespace. A filter policy in its place would be in force up to 15 minutes after it was set, for each channel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from pymq.exceptions import LeaseLost, ProviderError, QueueNotFound
from pymq.provider._aws.account import Account, AwsError
from pymq.provider._aws.batches import Batches
from pymq.provider._aws.envelope import Envelope
from pymq.provider._aws.names import EVERYTHING, Names, tagged, untagged

CONFIRM_SECONDS = 10.0
EXISTS_WITH_OTHER = "already exists with different"
"""What CreateTopic says of a topic whose attributes, or tags, are others, with a code that it has for every wrong parameter."""


class Subscription(NamedTuple):
    """A queue of SQS that gets what is published to a topic."""

    queue_arn: str
    arn: str


class Topics:
    """The topics of one namespace. `refresh`: for how many seconds it may be believed that nobody binds a pattern."""

    def __init__(self, account: Account, names: Names, ordered: bool, refresh: float, sender: str) -> None:
        self._account = account
        self._names = names
        self._ordered = ordered
        self._refresh = refresh
        self._sender = sender
        self._batches = Batches(self._publish_batch, ordered)
        self._looking = threading.Lock()
        self._watched_until = 0.0
        self._patterns = False
        self._held: dict[str, float] = {}
        self._closing = threading.Event()

    def publish(self, envelope: Envelope) -> None:
        """One copy to each queue that is subscribed to any of the envelope's topics, or to everything."""
        body = envelope.pack()
        for topic in dict.fromkeys(envelope.topics):
            self._publish(topic, envelope, body)
        if self._anybody_binds_a_pattern():
            self._publish(EVERYTHING, envelope, envelope._replace(to_everything=True).pack())

    def _publish(self, topic: str, envelope: Envelope, body: str) -> None:
        entry = {"Message": body}
        if self._ordered:  # what is delayed must not hold up this sender's other events
            entry |= {"MessageGroupId": envelope.id if envelope.due else self._sender, "MessageDeduplicationId": envelope.id}
        try:
            self._batches.add(self._arn(topic), entry, len(body))
        except QueueNotFound:
            pass  # there is no such topic: nobody has ever subscribed

    def _publish_batch(self, arn: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
        return self._account.sns("publish_batch", TopicArn=arn, PublishBatchRequestEntries=entries)

    def _anybody_binds_a_pattern(self) -> bool:
        """Asked anew after `refresh` seconds, by one thread, for which the others wait."""
        if time.monotonic() < self._watched_until:
            return self._patterns
        with self._looking:
            if (now := time.monotonic()) >= self._watched_until:
                self._patterns = self._ask_for_patterns()
                self._watched_until = now + self._refresh
            return self._patterns

    def _ask_for_patterns(self) -> bool:
        """Where AWS does not say, the answer is yes: that may deliver too much only, and the event is out already."""
        try:
            return bool(self._account.ask_sns("list_subscriptions_by_topic", TopicArn=self._arn(EVERYTHING))["Subscriptions"])
        except QueueNotFound:
            return False
        except ProviderError:
            return True

    def subscribe(self, topic: str, queue_arn: str) -> str:
        """The queue gets what is published to the topic from now on; the subscription's ARN. Idempotent.

        That to everything waits until every publisher has looked again.
        """
        arn = self._create(topic)
        answer = self._account.sns(
            "subscribe", TopicArn=arn, Protocol="sqs", Endpoint=queue_arn, Attributes={"RawMessageDelivery": "true"}
        )
        subscription = self._confirmed(answer["SubscriptionArn"], topic, queue_arn)
        if topic == EVERYTHING:
            self._held.setdefault(subscription, time.monotonic())
            self._wait_for_publishers()
        return subscription

    def _wait_for_publishers(self) -> None:
        """Unless one that this process made so long ago is there still: others' may be just as new as this one."""
        old = {arn for arn, since in self._held.items() if since + self._refresh <= time.monotonic()}
        if not any(found.arn in old for found in self.subscriptions(EVERYTHING)):
            self._watched_until = 0.0
            self.wait(time.monotonic())

    def wait(self, begun: float) -> None:
        """Until everybody has looked again, by the monotonic clock, or until `close`."""
        self._closing.wait(max(0.0, begun + self._refresh - time.monotonic()))

    def close(self) -> None:
        """Nobody waits any more: a shutdown waits for who binds."""
        self._closing.set()

    def _create(self, topic: str) -> str:
        """The topic's ARN; it exists from now on, or did, perhaps with tags and attributes that somebody has changed since."""
        attributes = {"FifoTopic": "true", "ContentBasedDeduplication": "false"} if self._ordered else {}
        listed = [{"Key": key, "Value": value} for key, value in (self._names.tags | tagged("name", topic)).items()]
        try:
            self._account.sns("create_topic", Name=self._names.topic(topic), Attributes=attributes, Tags=listed)
        except AwsError as error:
            if EXISTS_WITH_OTHER not in str(error):
                raise
        return self._arn(topic)

    def _confirmed(self, arn: str, topic: str, queue_arn: str) -> str:
        """Of queues of the same account it is confirmed at once, and then has an ARN."""
        deadline = time.monotonic() + CONFIRM_SECONDS
        while not arn.startswith("arn:"):
            if time.monotonic() > deadline:
                raise ProviderError(f"SNS did not confirm the subscription of {queue_arn} to {topic!r} within {CONFIRM_SECONDS:.0f} s")
            time.sleep(0.2)
            arn = self.find(topic, queue_arn) or arn
        return arn

    def unsubscribe(self, subscription_arn: str) -> None:
        """End a subscription; an unknown one is ignored."""
        try:
            self._account.sns("unsubscribe", SubscriptionArn=subscription_arn)
        except (QueueNotFound, LeaseLost):
            pass
        self._watched_until = 0.0

    def find(self, topic: str, queue_arn: str) -> str | None:
        """The subscription of a queue to a topic."""
        return next((found.arn for found in self.subscriptions(topic) if found.queue_arn == queue_arn), None)

    def subscriptions(self, topic: str) -> Iterator[Subscription]:
        """The subscriptions to one topic."""
        try:
            yield from self._pages("list_subscriptions_by_topic", TopicArn=self._arn(topic))
        except QueueNotFound:
            pass  # no such topic

    def all_subscriptions(self) -> Iterator[Subscription]:
        """The subscriptions of the namespace's queues, among all that the account has: a call for each hundred."""
        return (found for found in self._pages("list_subscriptions") if self._names.kind_of(found.queue_arn))

    def _pages(self, verb: str, **page: Any) -> Iterator[Subscription]:
        while True:
            answer = self._account.sns(verb, **page)
            for found in answer.get("Subscriptions", []):
                if found["SubscriptionArn"].startswith("arn:"):  # else it says "Deleted", for days, or that it is not confirmed
                    yield Subscription(found["Endpoint"], found["SubscriptionArn"])
            if not answer.get("NextToken"):
                return
            page["NextToken"] = answer["NextToken"]

    def listed(self) -> list[str]:
        """The ARNs of the namespace's topics, among all that the account has: a call for each hundred."""
        arns: list[str] = []
        page: dict[str, str] = {}
        while True:
            answer = self._account.sns("list_topics", **page)
            arns += [found["TopicArn"] for found in answer.get("Topics", []) if self._names.kind_of(found["TopicArn"])]
            if not answer.get("NextToken"):
                return arns
            page = {"NextToken": answer["NextToken"]}

    def delete(self, arn: str) -> None:
        """The topic is gone, with its subscriptions."""
        self._account.sns("delete_topic", TopicArn=arn)

    def _arn(self, topic: str) -> str:
        return self._account.identity.arn("sns", self._names.topic(topic))

    def name_of(self, arn: str) -> str:
        """The topic that an ARN stands for, from its tags."""
        tags = self._account.sns("list_tags_for_resource", ResourceArn=arn).get("Tags", [])
        name = untagged("name", {tag["Key"]: tag["Value"] for tag in tags}) or ""
        return "everything, for patterns" if name == EVERYTHING else name
