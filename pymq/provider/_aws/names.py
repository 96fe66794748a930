"""How queues and topics are called in AWS, whose names hold 80 characters of a small alphabet.

A name is `pymq-<namespace>-<digest>-<kind>-<readable part>-<digest>-<number>`. The digests make it injective; what it stands
for in full is in the resource's tags. The kinds: `s` shared queue, `m` mailbox (the temporary queues of one process), `d` where
SQS puts what was received 1,000 times, `t` topic, `x` tombstone. A queue's number is 0, or one more than that of the queue that
was deleted last under this name, which the name's tombstone knows (`_aws.directory`): so no name is used twice.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

SHARED, MAILBOX, BURIED, TOPIC, TOMBSTONE = "smdtx"
EVERYTHING = "\0everything"
"""In the place of a topic's name: the topic of a namespace to which everything is published while a pattern is bound."""

TAG = "pymq:"
_CHUNK = 252
"""Characters of a tag's value, of the 256 that AWS allows: a multiple of 4, so that each piece is whole base64."""
_CHUNKS = 16


class Names:
    """The names of one namespace; all of them begin with `prefix`."""

    def __init__(self, namespace: str, ordered: bool) -> None:
        self.namespace = namespace
        self.tags: dict[str, str] = tagged("namespace", namespace)
        self.prefix: str = f"pymq-{_slug(namespace)}-{_digest(namespace, 10)}-"
        self._suffix = ".fifo" if ordered else ""

    def queue(self, kind: str, name: str, number: int) -> str:
        """The queue's name in SQS: at most 80 characters, of which ten are the number's."""
        return f"{self.prefix}{kind}-{_slug(name)}-{self._digest(kind, name)}-{number:x}{self._suffix}"

    def tombstone(self, queue: str) -> str:
        """The name of the tombstone of that queue, whichever its number is."""
        kind, _, rest = queue.removeprefix(self.prefix).partition("-")
        return f"{self.prefix}{TOMBSTONE}-{rest.rpartition('-')[0]}-{kind}{'.fifo' if rest.endswith('.fifo') else ''}"

    def topic(self, name: str) -> str:
        """The topic's name in SNS."""
        return f"{self.prefix}{TOPIC}-{_slug(name)}-{self._digest(TOPIC, name)}{self._suffix}"

    def _digest(self, kind: str, name: str) -> str:
        return _digest(f"{self.namespace}\0{kind}\0{name}", 20)

    def kind_of(self, resource: str) -> str:
        """The kind of a queue or topic, given by its name, ARN or URL; empty for one of somebody else."""
        name = re.split(r"[:/]", resource)[-1]
        return name[len(self.prefix)] if name.startswith(self.prefix) else ""


def number_of(queue: str) -> int:
    """The number of a queue of SQS, given by its name or URL."""
    return int(queue.removesuffix(".fifo").rpartition("-")[2], 16)


def mailbox_of(queue: str) -> str:
    """Temporary queues whose names have the same second part share a mailbox: `inbox/7f` and `reply/7f/1` are in `7f`.

    A queue of SQS for each thread that calls a remote would be slow and dear, and whoever replies must find it by its name alone.
    """
    parts = queue.split("/")
    return parts[1] if len(parts) > 1 else queue


def is_temporary(queue: str) -> bool:
    """Whether the name looks like a temporary queue's: where to look first."""
    return queue.startswith(("inbox/", "reply/"))


def is_dead(queue: str) -> bool:
    """Whether the name looks like a dead-letter queue's."""
    return queue.startswith(("queue-dead/", "group-dead/"))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:12].strip("-") or "x"


def _digest(text: str, characters: int) -> str:
    return base64.b32encode(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()).decode().lower()[:characters]


def tagged(key: str, text: str) -> dict[str, str]:
    """The text as tags, whose values hold any text as base64, in pieces. Raises ValueError where it is too long."""
    coded = base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode()
    pieces = [coded[start : start + _CHUNK] for start in range(0, len(coded), _CHUNK)] or [""]
    if len(pieces) > _CHUNKS:
        raise ValueError(f"{text[:40]!r}… is too long for AWS: a name has at most {_CHUNKS * _CHUNK * 3 // 4} bytes")
    return {f"{TAG}{key}.{number}": piece for number, piece in enumerate(pieces)}


def untagged(key: str, tags: Mapping[str, str]) -> str | None:
    """The text that `tagged` made tags of."""
    if f"{TAG}{key}.0" not in tags:
        return None
    pieces = "".join(tags.get(f"{TAG}{key}.{number}", "") for number in range(_CHUNKS))
    return base64.urlsafe_b64decode(pieces).decode("utf-8", "surrogatepass")


def tags_of_many(kind: str, text: str) -> dict[str, str]:
    """Tags for one text of several."""
    return tagged(f"{kind}.{_digest(text, 10)}", text)


def all_of_many(kind: str, tags: Mapping[str, str]) -> list[str]:
    """All texts that `tags_of_many` made tags of."""
    keys = {key.removeprefix(TAG).rpartition(".")[0] for key in tags if key.startswith(f"{TAG}{kind}.")}
    return [text for key in sorted(keys) if (text := untagged(key, tags)) is not None]


def delivery_policy(queue_arn: str, topics_arn: str) -> str:
    """The queue's policy: the namespace's topics, and no others, may send to it."""
    statement: dict[str, Any] = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
        "Condition": {"ArnLike": {"aws:SourceArn": topics_arn}},
    }
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def access_policy(names: Names, partition: str = "aws", region: str = "*", account: str = "*") -> dict[str, Any]:
    """The IAM policy that a participant needs, as narrow as AWS allows: four calls cannot be restricted to names."""
    queues, topics = (f"arn:{partition}:{service}:{region}:{account}:{names.prefix}*" for service in ("sqs", "sns"))
    sqs = ("CreateQueue", "DeleteQueue", "GetQueueUrl", "GetQueueAttributes", "ListQueueTags", "TagQueue", "UntagQueue")
    messages = ("SendMessage", "ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility")
    sns = ("CreateTopic", "DeleteTopic", "TagResource", "ListTagsForResource", "Publish", "Subscribe", "ListSubscriptionsByTopic")
    anywhere = ["sqs:ListQueues", "sns:ListTopics", "sns:ListSubscriptions", "sns:Unsubscribe"]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Sid": "Queues", "Effect": "Allow", "Action": [f"sqs:{verb}" for verb in (*sqs, *messages)], "Resource": queues},
            {"Sid": "Topics", "Effect": "Allow", "Action": [f"sns:{verb}" for verb in sns], "Resource": topics},
            {"Sid": "NotRestrictable", "Effect": "Allow", "Action": anywhere, "Resource": "*"},
        ],
    }
