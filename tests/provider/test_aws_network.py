"""The aws provider over a network that refuses, loses, cuts and repeats: botocore's own retries, over real connections."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from aws_proxy import Proxy
from aws_server import emulator
from harness import GUARD, Heard, eventually

import pymq
from pymq.exceptions import ConnectionLost
from pymq.provider.aws import AwsProvider, LocalstackConfig


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy(emulator()) as proxy:
        yield proxy


def config(proxy: Proxy, **options) -> LocalstackConfig:
    return LocalstackConfig(proxy.url, namespace=secrets.token_hex(4), **({"lease": 30.0, "refresh": 0.0, "poll": 1.0} | options))


@pytest.fixture
def bus(proxy: Proxy) -> Iterator[pymq.EventBus]:
    with pymq.EventBus(config(proxy)) as bus:
        yield bus


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.mark.parametrize("fault", ["refuse", "lose", "repeat"])
def test_a_subscriber_handles_an_event_once(proxy, bus, heard, fault):
    bus.subscribe(heard, "c")
    proxy.faults["PublishBatch"] = [fault]
    for event in ("first", "last"):
        bus.publish(event, "c")
    assert sorted(heard.take(2)) == ["first", "last"]
    assert heard.waiting() == 0
    assert proxy.faults["PublishBatch"] == []


@pytest.mark.parametrize("fault", ["refuse", "lose", "repeat"])
def test_a_group_handles_an_event_once(proxy, bus, heard, fault):
    bus.subscribe(heard, "c", group="workers")
    proxy.faults["PublishBatch"] = [fault]
    bus.publish("event", "c")
    assert heard.next() == "event"
    eventually(lambda: not bus.group("workers").qsize() and not bus.stats()["in_flight"])
    assert heard.waiting() == 0


@pytest.mark.parametrize(("fault", "items"), [("refuse", 1), ("lose", 2), ("repeat", 2)])
def test_an_item_whose_answer_was_lost_may_be_there_twice(proxy, bus, fault, items):
    proxy.faults["SendMessageBatch"] = [fault]
    jobs = bus.queue("jobs")
    jobs.put("item")
    assert [jobs.get(timeout=GUARD) for _ in range(items)] == ["item"] * items
    assert jobs.empty()


@pytest.mark.parametrize("fault", ["refuse", "lose", "repeat"])
def test_but_not_in_a_fifo_queue(proxy, fault):
    with pymq.EventBus(config(proxy, ordered=True)) as bus:
        proxy.faults["SendMessageBatch"] = [fault]
        jobs = bus.queue("jobs")
        jobs.put("item")
        assert jobs.get(timeout=GUARD) == "item"
        assert jobs.empty()


def test_half_an_answer_leaves_open_whether_the_call_took_place(proxy, bus, heard):
    """Botocore takes half an answer in JSON, which SQS gives, for an empty one, and does not make the call again in either case."""
    bus.subscribe(heard, "c")
    jobs = bus.queue("jobs")
    proxy.faults |= {"PublishBatch": ["cut"], "SendMessageBatch": ["cut"]}
    with pytest.raises(ConnectionLost, match="not known whether"):
        bus.publish("event", "c")
    with pytest.raises(ConnectionLost, match="not known whether"):
        jobs.put("item")
    assert (heard.next(), jobs.get(timeout=GUARD)) == ("event", "item")


@pytest.mark.parametrize("fault", ["refuse", "lose", "repeat"])
def test_a_request_is_executed_once(proxy, bus, heard, fault):
    bus.expose(heard, "tell")
    proxy.faults["SendMessageBatch"] = [fault, "", fault]
    tell = bus.stub("tell", timeout=GUARD)
    assert [tell("one"), tell("two")] == [None, None]
    assert heard.rest() == ["one", "two"]


@pytest.mark.parametrize("fault", ["refuse", "lose", "repeat"])
def test_an_ack_takes_place(proxy, bus, fault):
    jobs = bus.queue("jobs")
    jobs.put("item")
    proxy.faults["DeleteMessageBatch"] = [fault]
    with jobs.take(timeout=GUARD) as job:
        assert job.value == "item"
    assert bus.stats()["in_flight"] == {}
    assert jobs.empty()


@pytest.mark.parametrize(("fault", "attempt"), [("refuse", 1), ("lose", 2), ("cut", 2), ("repeat", 2)])
def test_what_was_received_in_vain_comes_again_after_its_lease(proxy, fault, attempt):
    provider = AwsProvider(config(proxy))
    provider.open()
    provider.declare("jobs")
    provider.send("jobs", b"x")
    proxy.faults["ReceiveMessage"] = [fault]
    ((message, receipt),) = provider.receive("jobs", GUARD, lease=1.0)
    assert (message, receipt.attempt) == (b"x", attempt)
    provider.close()


@pytest.mark.parametrize("call", ["CreateQueue", "Subscribe", "CreateTopic", "TagQueue", "GetQueueUrl"])
@pytest.mark.parametrize("fault", ["refuse", "lose", "repeat"])
def test_what_is_made_is_made_once(proxy, heard, call, fault):
    with pymq.EventBus(config(proxy)) as bus:
        proxy.faults[call] = [fault]
        bus.subscribe(heard, "c")
        bus.publish("event", "c")
        assert heard.next() == "event"
        assert proxy.faults[call] == []
    provider = AwsProvider(bus.config)
    provider.open()
    assert [found.kind for found in provider.sweeper.inventory()] == ["topic"]


def test_a_deletion_whose_answer_was_lost_is_one(proxy, bus):
    jobs = bus.queue("jobs")
    jobs.put("old")
    proxy.faults["DeleteQueue"] = ["lose"]
    jobs.free()
    jobs.put("new")
    assert jobs.get(timeout=GUARD) == "new"
    assert jobs.empty()


def test_a_subscriber_survives_a_network_that_is_down(proxy, bus, heard):
    bus.subscribe(heard, "c")
    proxy.faults["ReceiveMessage"] = ["refuse"] * 12  # more than botocore tries in one call
    bus.publish("event", "c")
    eventually(lambda: not proxy.faults["ReceiveMessage"], timeout=6 * GUARD)
    assert heard.next(6 * GUARD) == "event"
