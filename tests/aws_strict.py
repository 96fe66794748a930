"""What AWS refuses and moto allows, added to moto: so that every test over the emulator is held to it.

From AWS's documents, and from what others report of it: a deleted queue's name is refused for 60 s; a queue that exists with other
tags exists otherwise; a queue gets from a topic what its policy allows; a new queue is not known at once; a receipt whose time is
over is an InvalidParameterValue; a topic does not mind that a queue is gone.
"""

from __future__ import annotations

import fnmatch
import json
import time
from typing import Any

from moto.sns.models import Subscription
from moto.sqs import models
from moto.sqs.exceptions import InvalidParameterValue, QueueAlreadyExists, QueueDoesNotExist, SQSException

BLOCKED_SECONDS = 60.0
UNKNOWN_SECONDS = 0.05
"""AWS says that it may be a second, which all tests together would wait for long."""


class QueueDeletedRecently(SQSException):
    def __init__(self) -> None:
        text = "You must wait 60 seconds after deleting a queue before you can create another with the same name."
        super().__init__("AWS.SimpleQueueService.QueueDeletedRecently", text)


def be_strict() -> None:
    """From now on, in this process."""
    _refuse_deleted_names()
    _compare_tags()
    _know_queues_late()
    _ask_policies()
    _refuse_spent_receipts()


def _refuse_deleted_names() -> None:
    deleted: dict[tuple[Any, str], float] = {}
    create, delete = models.SQSBackend.create_queue, models.SQSBackend.delete_queue

    def create_queue(self: Any, name: str, *args: Any, **options: Any) -> Any:
        if time.monotonic() - deleted.get((self.region_name, name), -BLOCKED_SECONDS) < BLOCKED_SECONDS:
            raise QueueDeletedRecently
        return create(self, name, *args, **options)

    def delete_queue(self: Any, queue_name: str) -> None:
        delete(self, queue_name)
        deleted[self.region_name, queue_name] = time.monotonic()

    models.SQSBackend.create_queue, models.SQSBackend.delete_queue = create_queue, delete_queue


def _compare_tags() -> None:
    create = models.SQSBackend.create_queue

    def create_queue(self: Any, name: str, tags: dict[str, str] | None = None, **options: Any) -> Any:
        if name in self.queues and (tags or {}) != (self.queues[name].tags or {}):
            raise QueueAlreadyExists("A queue already exists with the same name and a different value for a tag")
        return create(self, name, tags, **options)

    models.SQSBackend.create_queue = create_queue


def _know_queues_late() -> None:
    get = models.SQSBackend.get_queue_url

    def get_queue_url(self: Any, queue_name: str) -> Any:
        queue = get(self, queue_name)
        if time.monotonic() - queue.__dict__.setdefault("first_asked", time.monotonic()) < UNKNOWN_SECONDS:
            raise QueueDoesNotExist
        return queue

    models.SQSBackend.get_queue_url = get_queue_url


def _ask_policies() -> None:
    publish = Subscription.publish

    def publish_if_allowed(self: Any, *args: Any, **options: Any) -> None:
        queue = models.sqs_backends[self.account_id][self.endpoint.split(":")[3]].queues.get(self.endpoint.split(":")[-1])
        if queue is not None and _allows(json.loads(queue.policy or "{}"), self.endpoint, self.topic.arn):
            publish(self, *args, **options)

    Subscription.publish = publish_if_allowed


def _allows(policy: dict[str, Any], queue: str, topic: str) -> bool:
    return any(
        statement["Effect"] == "Allow"
        and statement["Principal"] == {"Service": "sns.amazonaws.com"}
        and statement["Action"] == "sqs:SendMessage"
        and statement["Resource"] == queue
        and fnmatch.fnmatchcase(topic, statement["Condition"]["ArnLike"]["aws:SourceArn"])
        for statement in policy.get("Statement", [])
    )


def _refuse_spent_receipts() -> None:
    """To change a visibility that is over, in every queue; to delete, in a FIFO one."""
    change, delete = models.SQSBackend.change_message_visibility, models.Queue.delete_message

    def change_message_visibility(self: Any, queue_name: str, receipt_handle: str, visibility_timeout: int) -> None:
        if _is_spent(self.get_queue(queue_name), receipt_handle):
            reason = "Message does not exist or is not available for visibility timeout change."
            raise InvalidParameterValue(f"Value {receipt_handle} for parameter ReceiptHandle is invalid. Reason: {reason}")
        change(self, queue_name, receipt_handle, visibility_timeout)

    def delete_message(self: Any, receipt_handle: str) -> None:
        if self.fifo_queue and _is_spent(self, receipt_handle):
            raise models.ReceiptHandleIsInvalid
        delete(self, receipt_handle)

    models.SQSBackend.change_message_visibility, models.Queue.delete_message = change_message_visibility, delete_message


def _is_spent(queue: Any, receipt_handle: str) -> bool:
    return any(message.visible for message in queue._messages if message.had_receipt_handle(receipt_handle))
