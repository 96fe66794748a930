"""What the tests' emulated AWS refuses beyond what moto does: each rule is asked for by itself, without pymq."""

from __future__ import annotations

import json
import secrets
from typing import Any

import boto3
import pytest
from aws_server import emulator
from botocore.exceptions import ClientError
from harness import eventually

from pymq.provider._aws.names import delivery_policy

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
ACCOUNT = "123456789012"


@pytest.fixture
def sqs() -> Any:
    return boto3.client("sqs", "us-east-1", endpoint_url=emulator(), **KEYS)


@pytest.fixture
def sns() -> Any:
    return boto3.client("sns", "us-east-1", endpoint_url=emulator(), **KEYS)


@pytest.fixture
def name() -> str:
    return secrets.token_hex(4)


def code_of(call: Any, **parameters: Any) -> str:
    with pytest.raises(ClientError) as refused:
        call(**parameters)
    return str(refused.value.response["Error"]["Code"])


def test_the_name_of_a_deleted_queue_is_refused(sqs, name):
    sqs.delete_queue(QueueUrl=sqs.create_queue(QueueName=name)["QueueUrl"])
    assert code_of(sqs.create_queue, QueueName=name) == "AWS.SimpleQueueService.QueueDeletedRecently"


def test_a_queue_with_other_tags_exists_otherwise(sqs, name):
    sqs.create_queue(QueueName=name, tags={"a": "1"})
    assert sqs.create_queue(QueueName=name, tags={"a": "1"})
    assert code_of(sqs.create_queue, QueueName=name, tags={"a": "2"}) == "QueueAlreadyExists"


def test_a_new_queue_is_not_known_at_once(sqs, name):
    sqs.create_queue(QueueName=name)
    assert code_of(sqs.get_queue_url, QueueName=name) == "AWS.SimpleQueueService.NonExistentQueue"
    eventually(lambda: knows(sqs, name))


def knows(sqs: Any, name: str) -> bool:
    try:
        return bool(sqs.get_queue_url(QueueName=name))
    except ClientError:
        return False


@pytest.mark.parametrize(("allowed", "arrived"), [("pymq-*", 1), ("other-*", 0)])
def test_a_topic_delivers_to_the_queues_whose_policy_allows_it(sqs, sns, name, allowed, arrived):
    queue = f"arn:aws:sqs:us-east-1:{ACCOUNT}:{name}"
    policy = delivery_policy(queue, f"arn:aws:sns:us-east-1:{ACCOUNT}:{allowed}")
    assert json.loads(policy)["Statement"]
    url = sqs.create_queue(QueueName=name, Attributes={"Policy": policy})["QueueUrl"]
    topic = sns.create_topic(Name=f"pymq-{name}")["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue, Attributes={"RawMessageDelivery": "true"})
    sns.publish(TopicArn=topic, Message="x")
    assert len(sqs.receive_message(QueueUrl=url).get("Messages", [])) == arrived
    sqs.delete_queue(QueueUrl=url)
    assert sns.publish(TopicArn=topic, Message="x")["MessageId"], "it does not mind that the queue is gone"


@pytest.mark.parametrize("fifo", [False, True])
def test_a_receipt_whose_time_is_over_is_refused(sqs, name, fifo):
    name, attributes, group = (
        (f"{name}.fifo", {"FifoQueue": "true"}, {"MessageGroupId": "g", "MessageDeduplicationId": "d"}) if fifo else (name, {}, {})
    )
    url = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="x", **group)
    (message,) = sqs.receive_message(QueueUrl=url, VisibilityTimeout=0)["Messages"]
    receipt = {"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]}
    eventually(
        lambda: sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]["ApproximateNumberOfMessages"] == "1"
    )
    assert code_of(sqs.change_message_visibility, VisibilityTimeout=5, **receipt) == "InvalidParameterValue"
    if fifo:
        assert code_of(sqs.delete_message, **receipt) == "ReceiptHandleIsInvalid"
    else:
        sqs.delete_message(**receipt)
