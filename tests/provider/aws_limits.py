"""What AWS's documents allow a request to be, beyond what botocore checks itself: moto does not mind most of it."""

from __future__ import annotations

import re
from typing import Any

BATCH_BYTES = 256 << 10


def check(name: str, parameters: dict[str, Any]) -> None:
    """Raises AssertionError for a request that AWS would refuse, or would take and do otherwise."""
    entries = _entries(parameters)
    ids = [entry["Id"] for entry in entries]
    assert len(entries) <= 10, f"{name}: {len(entries)} entries"
    assert len(set(ids)) == len(ids), f"{name}: ids {ids}"
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", each) for each in ids), f"{name}: ids {ids}"
    bodies = [str(each[key]) for each in [parameters, *entries] for key in ("MessageBody", "Message") if key in each]
    assert sum(len(body.encode()) for body in bodies) <= BATCH_BYTES, f"{name}: too many bytes"
    assert all(re.fullmatch(r"[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+", body) for body in bodies), (
        f"{name}: illegal text"
    )
    assert not any("MessageAttributes" in each for each in entries), f"{name}: attributes, which are silently discarded beyond ten"
    for each in [parameters, *entries]:
        _check_numbers(name, each)
    if "QueueName" in parameters:
        assert re.fullmatch(r"(?=.{1,80}$)[A-Za-z0-9_-]+(\.fifo)?", parameters["QueueName"]), parameters["QueueName"]
    _check_tags(parameters.get("tags") or parameters.get("Tags") or {})
    if name == "CreateQueue":
        assert ("FifoQueue" in parameters["Attributes"]) == parameters["QueueName"].endswith(".fifo")


def _entries(parameters: dict[str, Any]) -> list[dict[str, str]]:
    """Of SQS's requests, and of SNS's, which come as `PublishBatchRequestEntries.member.1.Id`."""
    if "Entries" in parameters:
        return list(parameters["Entries"])
    found: dict[str, dict[str, str]] = {}
    for key, value in parameters.items():
        if key.startswith("PublishBatchRequestEntries.member."):
            _, _, number, field = key.split(".", 3)
            found.setdefault(number, {})[field] = value
    return list(found.values())


LIMITS = {"WaitTimeSeconds": 20, "VisibilityTimeout": 43200, "DelaySeconds": 900, "MaxNumberOfMessages": 10}


def _check_numbers(name: str, parameters: dict[str, Any]) -> None:
    for key, most in LIMITS.items():
        assert 0 <= int(parameters.get(key, 0)) <= most, f"{name}: {key}={parameters[key]}"
    for key in ("MessageGroupId", "MessageDeduplicationId"):
        assert len(parameters.get(key, "")) <= 128, f"{name}: {key}={parameters[key]}"
    fifo = str(parameters.get("QueueUrl", parameters.get("TopicArn", ""))).endswith(".fifo")
    assert not (fifo and "DelaySeconds" in parameters), f"{name}: no delay for one message of a FIFO queue"


def _check_tags(tags: dict[str, str]) -> None:
    assert len(tags) <= 50
    for key, value in tags.items():
        assert re.fullmatch(r"[\w .:/=+@-]{1,128}", key), key
        assert not key.startswith("aws:"), key
        assert re.fullmatch(r"[\w .:/=+@-]{0,256}", value), value
