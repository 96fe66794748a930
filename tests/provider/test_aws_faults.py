"""The aws provider where AWS is busy, forgets, repeats itself or says no; and what it asks of AWS."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator

import botocore.exceptions
import pytest
from aws_wire import Answer, Wire, refused
from harness import GUARD, Heard, eventually, in_thread

import pymq
from pymq.exceptions import ConnectionLost, LeaseLost, ProviderError, QueueNotFound
from pymq.provider._aws.account import AwsError
from pymq.provider._aws.envelope import unpack
from pymq.provider._aws.keeper import Keeper
from pymq.provider._aws.mailbox import Mailbox
from pymq.provider._aws.queue import Waiter
from pymq.provider.aws import AwsConfig, AwsProvider, LocalstackConfig


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    assert wire.refusals == []


@pytest.fixture
def provider(wire: Wire) -> Iterator[AwsProvider]:
    provider = wire.config().create()
    provider.open()
    yield provider
    provider.close()


@pytest.fixture
def heard() -> Heard:
    return Heard()


def some(provider: AwsProvider, queue: str, **options):
    return provider.receive(queue, GUARD, **options)


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_the_policy_is_in_the_request_that_makes_the_queue(wire, provider):
    provider.declare("jobs")
    provider.declare("inbox/7f", temporary=True)
    made = [call.parameters for call in wire.named("CreateQueue")]
    assert [name[-2:] for name in (queue["QueueName"] for queue in made)] == ["-0"] * 3  # the third for what SQS gives up on
    for queue in made:
        (statement,) = json.loads(queue["Attributes"]["Policy"])["Statement"]
        assert statement["Resource"].split(":")[-1] == queue["QueueName"]
        allowed = statement["Condition"]["ArnLike"]["aws:SourceArn"]
        assert allowed == f"arn:aws:sns:us-east-1:123456789012:{provider._directory.names.prefix}*"
    assert wire.named("SetQueueAttributes") == []


def test_redrive_is_a_backstop_far_above_retries(wire, provider):
    provider.declare("jobs")
    (attributes,) = [call.parameters["Attributes"] for call in wire.named("CreateQueue") if "-s-" in call.parameters["QueueName"]]
    redrive = json.loads(attributes["RedrivePolicy"])
    assert int(redrive["maxReceiveCount"]) == 1000
    (target,) = [found.name for found in provider.sweeper.inventory() if found.kind == "undeliverable"]
    assert redrive["deadLetterTargetArn"] == f"arn:aws:sqs:us-east-1:123456789012:{target}"


def test_a_mailbox_says_whose_it_is_and_until_when(wire, provider):
    provider.declare("inbox/7f", temporary=True)
    (tags,) = [call.parameters["tags"] for call in wire.named("CreateQueue")]
    assert {key.partition(".")[0] for key in tags} == {"pymq:namespace", "pymq:owner", "pymq:lease"}
    assert 0 < float(tags["pymq:lease"]) - provider.clock() <= 30


def test_long_polls_take_20_seconds_by_default(wire):
    with pymq.EventBus(wire.config(poll=AwsConfig.poll)) as bus:
        bus.subscribe(lambda event: None, "c")
        (poll,) = eventually(lambda: wire.named("ReceiveMessage"))
    assert poll.parameters["WaitTimeSeconds"] == 20


def long_polls(wire: Wire) -> list[object]:
    """Those that were begun."""
    return [call for call in wire.named("ReceiveMessage") if call.parameters["WaitTimeSeconds"] == 20]


def test_shutdown_does_not_wait_for_a_poll(wire):
    bus = pymq.EventBus(wire.config(poll=20.0))
    bus.start()
    bus.subscribe(lambda event: None, "c")
    getting = in_thread(bus.queue("jobs").get)
    eventually(lambda: len(long_polls(wire)) == 2)
    begun = time.monotonic()
    bus.shutdown()
    with pytest.raises(pymq.PymqError):
        getting.result(GUARD)
    assert time.monotonic() - begun < GUARD


def test_a_mailbox_that_is_being_made_at_a_shutdown_is_removed(wire):
    """Nobody else would: it renews its own lease."""
    provider = wire.config().create()
    provider.open()
    may_be_made = threading.Event()

    def wait(call):
        assert may_be_made.wait(GUARD)

    wire.answers["CreateQueue"] = wait
    declaring = in_thread(provider.declare, "reply/7f/1", temporary=True)
    eventually(lambda: wire.named("CreateQueue"))
    provider.close()
    may_be_made.set()
    with pytest.raises(ProviderError, match="shut down"):
        declaring.result(GUARD)
    with AwsOther(wire, provider) as other:
        assert other.sweeper.mailboxes() == []


def test_what_cannot_be_removed_at_a_shutdown_is_left_to_the_sweep(wire, caplog):
    """The mailbox, too: by it the sweep finds the subscriptions that are left."""
    provider = wire.config().create()
    provider.open()
    provider.declare("inbox/7f", temporary=True)
    for number in range(12):
        provider.bind("inbox/7f", f"e/{number}", exact=True)
    wire.answers["Unsubscribe"] = refused("AuthorizationError", 403, times=3)
    provider.close()
    assert "removing this process's mailbox failed" in caplog.text
    with AwsOther(wire, provider) as other:
        assert len(list(other._topics.all_subscriptions())) == 3
        other.sweeper._remove_mailboxes(other.sweeper.mailboxes())
        assert {found.kind for found in other.sweeper.inventory()} == {"topic"}


def test_a_subscription_that_could_not_be_ended_at_once_is_ended_by_the_shutdown(wire, heard):
    config = wire.config()
    with pymq.EventBus(config) as bus:
        bus.subscribe(heard, "c")
        wire.answers["Unsubscribe"] = refused("AuthorizationError", 403)
        with pytest.raises(ProviderError):
            bus.unsubscribe(heard, "c")
    assert remains(config) == []


def test_a_subscription_of_which_sns_did_not_tell_is_ended_by_the_shutdown(wire, heard):
    """One to everything costs each publisher of the namespace a call for each event."""
    config = wire.config()
    with pymq.EventBus(config) as bus:
        wire.answers["ListSubscriptionsByTopic"] = refused("AuthorizationError", 403)
        with pytest.raises(ProviderError):
            bus.subscribe(heard, "c*", pattern=True)
        assert remains(config) == ["subscription", "mailbox"]
    assert remains(config) == []


def remains(config: AwsConfig) -> list[str]:
    """What there is of mailboxes."""
    provider = config.create()
    provider.open()
    return [found.kind for found in provider.sweeper.inventory() if found.kind in ("mailbox", "subscription")]


def test_a_shutdown_does_not_wait_for_who_binds_a_pattern(wire):
    provider = wire.config(refresh=3600.0).create()
    provider.open()
    for queue, options in (("inbox/7f", {"temporary": True}), ("jobs", {})):
        provider.declare(queue, **options)
    before = len(wire.named("Subscribe"))
    binding = [in_thread(provider.bind, queue, "e/*", exact=False) for queue in ("inbox/7f", "jobs")]
    eventually(lambda: len(wire.named("Subscribe")) == before + 2)
    provider.close()
    for each in binding:
        each.result(GUARD)


def test_what_an_abandoned_poll_receives_comes_back(wire):
    """It cannot be interrupted, so what is sent after the shutdown comes to it."""
    bus = pymq.EventBus(wire.config(poll=20.0))
    bus.start()
    getting = in_thread(bus.queue("jobs").get)
    eventually(lambda: len(long_polls(wire)) == 1)
    bus.shutdown()
    with pytest.raises(pymq.PymqError):
        getting.result(GUARD)
    received = []
    wire.changes["ReceiveMessage"] = lambda parsed: received.extend(parsed.get("Messages", []))
    with pymq.EventBus(wire.config(namespace=bus.config.namespace)) as other:
        other.queue("jobs").put("item")
        eventually(lambda: received)
        assert other.queue("jobs").get(timeout=GUARD) == "item"


def test_subscribe_returns_when_sns_has_confirmed_it(wire, provider):
    provider.declare("jobs")
    known = []

    def pend(parsed):
        known.append(parsed["SubscriptionArn"])
        parsed["SubscriptionArn"] = "pending confirmation"

    def confirm_late(parsed):
        if len(wire.named("ListSubscriptionsByTopic")) < 3:
            parsed["Subscriptions"] = []

    wire.changes |= {"Subscribe": pend, "ListSubscriptionsByTopic": confirm_late}
    arn = provider._topics.subscribe("e/c", provider._directory.arn(provider._directory.find("jobs")))
    assert [arn] == known
    assert len(wire.named("ListSubscriptionsByTopic")) == 3


def test_a_subscription_that_sns_does_not_confirm_is_an_error(wire, provider, monkeypatch):
    monkeypatch.setattr("pymq.provider._aws.topics.CONFIRM_SECONDS", 0.5)
    provider.declare("jobs")
    wire.changes["Subscribe"] = lambda parsed: parsed.update(SubscriptionArn="pending confirmation")
    wire.changes["ListSubscriptionsByTopic"] = lambda parsed: parsed.update(Subscriptions=[])
    with pytest.raises(ProviderError, match="did not confirm"):
        provider.bind("jobs", "e/c", exact=True)


@pytest.mark.parametrize("what", ["Tags", "Attributes"])
def test_a_topic_whose_tags_or_attributes_somebody_has_changed_is_there(wire, provider, what):
    provider.declare("jobs")
    provider.bind("jobs", "e/c", exact=True)
    text = f"Invalid parameter: {what} Reason: Topic already exists with different {what.lower()}"
    wire.answers["CreateTopic"] = refused("InvalidParameter", text=text)
    provider.declare("others")
    provider.bind("others", "e/c", exact=True)
    provider.publish(["e/c"], b"x")
    assert some(provider, "others", lease=None) == [(b"x", None)]


def test_a_subscription_that_is_listed_though_it_has_ended_is_none(wire):
    """SNS lists it for days, with the word "Deleted" in the place of its ARN, which is none to end it by."""
    config = wire.config()

    def list_deleted(parsed):
        parsed["Subscriptions"].append({"SubscriptionArn": "Deleted", "Endpoint": gone, "Protocol": "sqs"})

    with pymq.EventBus(config) as server, pymq.EventBus(config) as bus:
        gone = server.provider._directory.names.queue("m", "dead", 0)
        server.expose(lambda: "here", "who")
        wire.changes |= {"ListSubscriptionsByTopic": list_deleted, "ListSubscriptions": list_deleted}
        assert bus.stub("who", timeout=GUARD)() == "here"
        bus.queue("jobs").free()
    assert all(call.parameters["SubscriptionArn"].startswith("arn:") for call in wire.named("Unsubscribe"))


def test_an_exact_channel_gets_nothing_else(wire, heard):
    """Neither by a topic of SNS for all, nor by a filter: what is not for it does not come to its mailbox at all."""
    received = []
    wire.changes["ReceiveMessage"] = lambda parsed: received.extend(parsed.get("Messages", []))
    with pymq.EventBus(wire.config()) as bus, pymq.EventBus(wire.config(namespace=bus.config.namespace)) as other:
        bus.subscribe(heard, "wanted")
        other.subscribe(lambda event: None, "unwanted")
        other.publish(1, "unwanted")
        other.publish(2, "wanted")
        assert heard.next() == 2
        topics = [json.loads(message["Body"].partition("\n")[0]).get("topics") for message in received]
    assert topics.count(["e/wanted"]) == 1
    assert topics.count(["e/unwanted"]) == 1


def test_an_event_is_one_call_while_nobody_binds_a_pattern(wire, heard):
    with pymq.EventBus(wire.config(refresh=60.0)) as bus:
        bus.subscribe(heard, "c")
        bus.publish(0, "c")
        before = len(wire.calls)
        for number in range(1, 6):
            bus.publish(number, "c")
        sent = [call.name for call in wire.calls[before:] if call.name not in ("ReceiveMessage", "DeleteMessageBatch")]
        assert sent == ["PublishBatch"] * 5
        assert sorted(heard.take(6)) == list(range(6))


def test_the_first_pattern_waits_until_every_publisher_has_looked_again(wire, heard):
    """The publisher has just seen that there is none, and may believe it for `refresh` seconds."""
    config = wire.config(refresh=1.5)
    with pymq.EventBus(config) as publisher, pymq.EventBus(config) as bus:
        publisher.publish("nobody listens", "sensors/7")
        bus.subscribe(heard, "sensors/*", pattern=True)
        publisher.publish("heard", "sensors/7")
        assert heard.next() == "heard"
        before = len(wire.named("ListSubscriptionsByTopic"))
        bus.subscribe(heard, "doors/*", pattern=True)
        assert len(wire.named("ListSubscriptionsByTopic")) == before, "the topic was subscribed to already"


def test_so_does_another_pattern_while_the_first_one_still_waits(wire, heard):
    config = wire.config(refresh=1.5)
    with pymq.EventBus(config) as publisher, pymq.EventBus(config) as first, pymq.EventBus(config) as second:
        for bus in (first, second):
            bus.subscribe(lambda event: None, "c")
        publisher.publish("nobody listens", "sensors/7")
        before = len(wire.named("Subscribe"))
        subscribing = in_thread(first.subscribe, lambda event: None, "sensors/*", pattern=True)
        eventually(lambda: len(wire.named("Subscribe")) > before)
        second.subscribe(heard, "sensors/*", pattern=True)
        publisher.publish("heard", "sensors/7")
        assert heard.next() == "heard"
        subscribing.result(GUARD)


def test_who_serves_is_looked_up_once_in_a_while(wire):
    config = wire.config(refresh=60.0)
    with pymq.EventBus(config) as server, pymq.EventBus(config) as bus:
        assert bus.stub("double", multi=True)(1) == []
        server.expose(lambda number: 2 * number, "double")
        double = bus.stub("double", timeout=GUARD)
        assert double(2) == 4
        before = len(wire.named("ListSubscriptionsByTopic"))
        assert double(3) == 6
        assert len(wire.named("ListSubscriptionsByTopic")) == before


def test_calls_to_two_remotes_in_turn_spread_over_the_servers_of_each(wire):
    config = wire.config(refresh=60.0)
    with pymq.EventBus(config) as one, pymq.EventBus(config) as other, pymq.EventBus(config) as bus:
        for server in (one, other):
            for name in ("a", "b"):
                server.expose(lambda: "here", name)
        first = [(bus.provider.consumers("r/a")[0], bus.provider.consumers("r/b")[0]) for _ in range(4)]
        assert [len(set(servers)) for servers in zip(*first)] == [2, 2]


def test_a_server_is_found_where_its_subscription_says(wire):
    """Not looked for by its name, which costs two calls more."""
    config = wire.config(refresh=60.0)
    with pymq.EventBus(config) as server, pymq.EventBus(config) as bus:
        server.expose(lambda: "here", "who")
        before = len(wire.named("GetQueueUrl"))
        tokens = bus.provider.consumers("r/who")
        assert bus.provider._directory.find(tokens[0]).kind == "m"
        assert len(wire.named("GetQueueUrl")) == before + 1


def test_multi_returns_the_results_there_are(wire):
    gate = threading.Event()
    config = wire.config()
    with pymq.EventBus(config) as quick, pymq.EventBus(config) as slow, pymq.EventBus(config) as bus:
        quick.expose(lambda: "result", "work")
        slow.expose(lambda: gate.wait(GUARD), "work")
        results = bus.stub("work", timeout=4, multi=True)()
        assert sorted(type(result).__name__ for result in results) == ["RpcTimeout", "str"]
        gate.set()


def test_that_a_server_lives_is_believed_until_its_lease_ends(wire):
    """Asking for tags is what AWS allows least of: five times a second in all."""
    config = wire.config()
    with pymq.EventBus(config) as server, pymq.EventBus(config) as bus:
        server.expose(lambda number: 2 * number, "double")
        double = bus.stub("double", timeout=GUARD)
        assert double(1) == 2
        before = len(wire.named("ListQueueTags"))
        assert [double(number) for number in (2, 3)] == [4, 6]
        assert len(wire.named("ListQueueTags")) == before


def test_a_look_at_the_server_that_fails_does_not_end_the_call(wire):
    may_end = threading.Event()
    config = wire.config(lease=3.0)
    with pymq.EventBus(config) as server, pymq.EventBus(config) as bus:
        server.expose(lambda: may_end.wait(GUARD), "slow")
        slow = bus.stub("slow", timeout=GUARD)
        looks: list[object] = []

        def fail(call):
            looks.append(call)
            return refused("ExpiredToken", 403)(call)

        calling = in_thread(slow)
        eventually(lambda: wire.named("SendMessageBatch"))
        wire.answers["GetQueueUrl"] = fail
        eventually(lambda: looks)
        wire.answers.clear()
        may_end.set()
        assert calling.result(GUARD) is True


def test_what_no_pattern_matches_is_looked_up_once_in_a_while(wire, heard):
    with pymq.EventBus(wire.config(refresh=1.0)) as bus:
        bus.subscribe(heard, "sensors/*", pattern=True, group="workers")
        before = len(wire.named("ListQueueTags"))
        for number in range(5):
            bus.publish(number, "doors/1")
        bus.publish("heard", "sensors/1")
        assert heard.next() == "heard"
        assert len(wire.named("ListQueueTags")) <= before + 2


def test_a_new_pattern_of_a_queue_waits_until_its_receivers_have_looked_again(wire):
    """The receiver has just seen that the queue is bound to another one."""
    config = wire.config(refresh=1.5)
    one, other = config.create(), config.create()
    for provider in (one, other):
        provider.open()
    one.declare("jobs")
    one.bind("jobs", "e/a*", exact=False)
    one.publish(["e/a"], b"a")
    one.publish(["e/b"], b"nobody's")
    assert some(other, "jobs", lease=None) == [(b"a", None)]
    assert other.receive("jobs", 1.0, lease=None) == []
    one.bind("jobs", "e/b*", exact=False)
    one.publish(["e/b"], b"b")
    assert some(other, "jobs", lease=None) == [(b"b", None)]
    for provider in (one, other):
        provider.close()


def test_a_new_pattern_of_a_queue_waits_for_receivers_that_have_looked_until_its_tag_was_set(wire):
    """Which takes long where AWS is throttling: it sets five tags a second."""
    config = wire.config(refresh=1.5)
    one, other = config.create(), config.create()
    for provider in (one, other):
        provider.open()
    one.declare("jobs")
    one.bind("jobs", "e/a*", exact=False)
    may_tag = threading.Event()

    def throttle(call):
        assert may_tag.wait(GUARD)

    wire.answers["TagQueue"] = throttle
    begun = time.monotonic()
    binding = in_thread(one.bind, "jobs", "e/b*", exact=False)
    eventually(lambda: time.monotonic() > begun + 1.5)
    one.publish(["e/c"], b"nobody's")
    assert other.receive("jobs", 1.0, lease=None) == []
    may_tag.set()
    binding.result(GUARD)
    one.publish(["e/b"], b"b")
    assert some(other, "jobs", lease=None) == [(b"b", None)]
    for provider in (one, other):
        provider.close()


def test_no_event_is_forgotten_while_the_patterns_cannot_be_looked_up(wire):
    """What could not be judged stays; and so does what comes after it."""
    other = wire.config(refresh=60.0).create()
    other.open()
    with AwsOther(wire, other) as binder:
        binder.declare("jobs")
        binder.bind("jobs", "e/*", exact=False)
    wire.answers["ListQueueTags"] = refused("AccessDenied", 403)
    for message in (b"1", b"2"):
        other.publish(["e/c"], message)
    received = []
    while len(received) < 2:
        found = some(other, "jobs", limit=10, lease=1.0)
        assert found
        for message, receipt in found:
            other.ack(receipt)
            received.append(message)
    assert sorted(received) == [b"1", b"2"]
    other.close()


# --- what AWS may do --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("SendMessageBatch", "RequestThrottled"),
        ("PublishBatch", "Throttling"),
        ("PublishBatch", "ThrottlingException"),
        ("PublishBatch", "Throttled"),
        ("SendMessageBatch", "KmsThrottled"),
        ("ReceiveMessage", "ThrottlingException"),
        ("DeleteMessageBatch", "RequestThrottled"),
    ],
)
def test_throttled_calls_are_made_again(wire, provider, call, code):
    provider.declare("jobs")
    provider.bind("jobs", "e/c", exact=True)
    wire.answers[call] = refused(code, times=2)
    provider.send("jobs", b"sent")
    provider.publish(["e/c"], b"published")
    received = [some(provider, "jobs", lease=None)[0] for _ in range(2)]
    assert sorted(received) == [(b"published", None), (b"sent", None)]
    assert len(wire.named(call)) >= 3


def test_a_throttled_call_is_not_made_again_for_ever(wire, provider, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    provider.declare("jobs")
    wire.answers["SendMessageBatch"] = refused("KmsThrottled", times=100)
    with pytest.raises(AwsError, match="KmsThrottled"):
        provider.send("jobs", b"x")
    assert len(wire.named("SendMessageBatch")) == 6


@pytest.mark.parametrize(
    ("code", "status"), [("Throttling", 400), ("InternalError", 500), ("ServiceUnavailable", 503), ("ExpiredToken", 403)]
)
def test_a_publisher_that_is_not_told_about_patterns_assumes_there_are_some(wire, provider, code, status):
    wire.answers["ListSubscriptionsByTopic"] = refused(code, status, times=100)
    provider.publish(["e/c"], b"x")
    assert len(wire.named("PublishBatch")) == 2
    assert len(wire.named("ListSubscriptionsByTopic")) == 1, "it does not wait for AWS to have time"


def test_a_publisher_that_gets_no_answer_about_patterns_assumes_the_same(wire, provider):
    """The event is out already: to raise would have it published again."""

    def no_answer(call):
        raise botocore.exceptions.ReadTimeoutError(endpoint_url="http://sns")

    wire.answers["ListSubscriptionsByTopic"] = no_answer
    provider.publish(["e/c"], b"x")
    assert len(wire.named("PublishBatch")) == 2


def test_many_threads_look_for_patterns_once(wire):
    provider = wire.config(refresh=60.0).create()
    provider.open()
    publishing = [in_thread(provider.publish, ["e/c"], b"x") for _ in range(8)]
    for each in publishing:
        each.result(GUARD)
    assert len(wire.named("ListSubscriptionsByTopic")) == 1
    provider.close()


def test_an_entry_of_a_batch_that_failed_is_sent_again(wire, provider):
    provider.declare("jobs")
    changed = []

    def fail_once(parsed):
        if not changed:
            changed.append(True)
            parsed["Failed"] = [{"Id": "0", "SenderFault": False, "Code": "InternalError", "Message": "busy"}]

    wire.changes["SendMessageBatch"] = fail_once
    provider.send("jobs", b"x")
    assert len(wire.named("SendMessageBatch")) == 2


def test_an_entry_that_is_refused_is_an_error(wire, provider):
    provider.declare("jobs")
    refusal = {"Id": "0", "SenderFault": True, "Code": "InvalidMessageContents", "Message": "illegal"}
    wire.changes["SendMessageBatch"] = lambda parsed: parsed.update(Failed=[refusal])
    with pytest.raises(ProviderError, match=r"illegal.*InvalidMessageContents"):
        provider.send("jobs", b"x")


def test_a_message_that_comes_twice_is_handled_once(wire, heard):
    """SQS repeats one now and then; the repetition carries the same body, and the same MessageId."""
    wire.changes["ReceiveMessage"] = lambda parsed: parsed.update(Messages=2 * parsed.get("Messages", []))
    with pymq.EventBus(wire.config()) as bus:
        bus.subscribe(heard, "c")
        for number in range(3):
            bus.publish(number, "c")
        assert sorted(heard.take(3)) == [0, 1, 2]
        bus.publish("last", "c")
        assert heard.next() == "last"
        assert heard.waiting() == 0


def test_two_copies_of_an_event_do_not_take_each_other_away(wire):
    """Two processes hold one each, as after a publish whose answer was lost, and handle neither."""
    config = wire.config()
    one, other = config.create(), config.create()
    for provider in (one, other):
        provider.open()
    one.declare("jobs")
    for topic in ("e/a", "e/b"):
        one.bind("jobs", topic, exact=True)
    one.publish(["e/a", "e/b"], b"event")
    ((_, first),), ((_, second),) = some(one, "jobs"), some(other, "jobs")
    one.nack(first)
    assert other.receive("jobs", lease=1.0) == [], "it holds the other copy"
    other.nack(second)
    assert [message for message, _ in some(one, "jobs")] == [b"event"]
    for provider in (one, other):
        provider.close()


def test_a_message_that_comes_again_after_its_ack_is_forgotten(wire, provider):
    provider.declare("jobs")
    provider.send("jobs", b"once")
    received = []
    wire.changes["ReceiveMessage"] = lambda parsed: received.extend(parsed.get("Messages", []))
    ((_, receipt),) = some(provider, "jobs")
    provider.ack(receipt)
    wire.changes["ReceiveMessage"] = lambda parsed: parsed.update(Messages=received)
    assert provider.receive("jobs") == []


def test_a_message_is_deleted_only_after_the_handler_returned(wire, heard):
    gate = threading.Event()

    def handler(event):
        heard(event)
        assert gate.wait(GUARD)

    with pymq.EventBus(wire.config()) as bus:
        bus.subscribe(handler, "c", group="workers")
        bus.publish("work", "c")
        assert heard.next() == "work"
        assert wire.named("DeleteMessageBatch") == []
        gate.set()
        eventually(lambda: wire.named("DeleteMessageBatch"))


def test_visibility_is_extended_while_the_handler_runs(wire, heard):
    gate = threading.Event()

    def handler(event):
        heard(event)
        assert gate.wait(GUARD)

    with pymq.EventBus(wire.config()) as bus:
        bus.subscribe(handler, "c", group="workers", lease=1.5)
        bus.publish("work", "c")
        assert heard.next() == "work"
        eventually(lambda: len(wire.named("ChangeMessageVisibility")) >= 3)
        gate.set()
        eventually(lambda: not bus.group("workers").qsize() and wire.named("DeleteMessageBatch"))
        assert heard.waiting() == 0


def test_a_lease_that_is_longer_than_the_processs_own_is_extended_piece_by_piece(wire):
    provider = wire.config(lease=1.5).create()
    provider.open()
    provider.declare("jobs")
    provider.send("jobs", b"long")
    ((_, receipt),) = some(provider, "jobs", lease=1000.0)
    poll = wire.named("ReceiveMessage")[0]
    assert poll.parameters["VisibilityTimeout"] == 2
    eventually(lambda: len(wire.named("ChangeMessageVisibility")) >= 5)
    assert provider.receive("jobs") == []
    provider.ack(receipt)
    provider.close()


def test_a_lease_whose_extension_fails_does_not_end_the_others(wire):
    provider = wire.config(lease=1.5).create()
    provider.open()
    provider.declare("jobs")
    for message in (b"1", b"2"):
        provider.send("jobs", message)
    receipts = [some(provider, "jobs", lease=1000.0)[0][1] for _ in range(2)]
    doomed = receipts[0].handle
    wire.answers["ChangeMessageVisibility"] = lambda call: (
        refused("AccessDenied", 403)(call) if call.parameters["ReceiptHandle"] == doomed else None
    )
    before = receipts[1].hidden_until
    eventually(lambda: receipts[1].hidden_until > before)
    provider.close()


def test_what_is_removed_already_is_returned_though_aws_fails_then(wire, provider):
    provider.declare("jobs")
    for message in (b"1", b"2", b"3"):
        provider.send("jobs", message)
    deleted = []
    wire.answers["DeleteMessageBatch"] = lambda call: (
        deleted.append(call) or (None if len(deleted) == 1 else refused("AccessDenied", 403)(call))
    )
    assert len(provider.receive("jobs", GUARD, limit=3, lease=None)) == 1


def test_an_item_whose_removal_takes_too_long_is_not_got_twice(wire, caplog):
    """It is hidden for as long as a lease may be, 30 s at most; then the next one gets it."""
    config = wire.config(lease=1.0)
    one, other = config.create(), config.create()
    for provider in (one, other):
        provider.open()
    one.declare("jobs")
    one.send("jobs", b"once")
    may_be_removed = threading.Event()
    calls = itertools.count()

    def wait(call):
        assert next(calls) or may_be_removed.wait(GUARD)

    wire.answers["DeleteMessageBatch"] = wait
    getting = in_thread(one.receive, "jobs", 0, lease=None)
    eventually(lambda: wire.named("DeleteMessageBatch"))
    assert some(other, "jobs", lease=None) == [(b"once", None)]
    may_be_removed.set()
    assert getting.result(GUARD) == []
    assert "somebody else may have it" in caplog.text
    for provider in (one, other):
        provider.close()


EXPIRED = "Value AQEB for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available."


def test_a_message_that_cannot_be_dealt_with_does_not_hold_up_the_others(wire, provider, caplog):
    provider.declare("jobs")
    provider.bind("jobs", "e/c", exact=True)
    provider.publish(["e/c"], b"not due yet", delay=5000)
    provider.send("jobs", b"due")
    wire.answers["ChangeMessageVisibility"] = refused("AccessDenied", 403, times=100)
    assert some(provider, "jobs", limit=10, lease=None) == [(b"due", None)]
    assert "stays there for now" in caplog.text


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("ReceiptHandleIsInvalid", "no"),
        ("AWS.SimpleQueueService.MessageNotInflight", "no"),
        ("InvalidParameterValue", EXPIRED),
    ],
)
def test_a_receipt_that_sqs_does_not_know_any_more_is_a_lost_lease(wire, provider, code, text):
    provider.declare("jobs")
    provider.send("jobs", b"x")
    ((_, receipt),) = some(provider, "jobs")
    wire.answers["ChangeMessageVisibility"] = refused(code, text=text)
    with pytest.raises(LeaseLost):
        provider.extend(receipt, 10)
    with pytest.raises(LeaseLost):
        provider.ack(receipt)


def shared_names(wire: Wire) -> list[str]:
    """Of the shared queues that somebody asked SQS to make, in order."""
    return [call.parameters["QueueName"] for call in wire.named("CreateQueue") if "-s-" in call.parameters["QueueName"]]


def test_a_name_is_never_used_again(wire, provider):
    """Neither by the process that deleted the queue, nor by one that comes later and knows nothing of it."""
    for _ in range(2):
        with AwsOther(wire, provider) as other:
            for _ in range(3):
                other.declare("jobs")
                other.delete("jobs")
    assert len(set(shared_names(wire))) == 6
    assert len({name[:-1] for name in shared_names(wire)}) == 1, "only the number differs"


def test_a_mailbox_that_is_made_anew_has_another_name_however_long_it_was_gone(wire, provider):
    """Found by its bus's token all the same. Its tombstone goes with it."""
    provider.declare("inbox/7f", temporary=True)
    (url,) = provider.sweeper.mailboxes()
    provider.sweeper._remove_mailboxes([url])
    eventually(lambda: provider._mailboxes["7f"]._place.url != url)
    made = [call.parameters["QueueName"] for call in wire.named("CreateQueue") if "-m-" in call.parameters["QueueName"]]
    assert [name[-2:] for name in made] == ["-0", "-1"]
    with AwsOther(wire, provider) as other:
        other.send("inbox/7f", b"x")
        assert some(provider, "inbox/7f") == [(b"x", None)]
        provider.delete("inbox/7f")
        assert list(other.sweeper.inventory()) == []


@pytest.mark.parametrize("refusal", ["CreateQueue", "TagQueue", "Subscribe"])
def test_a_mailbox_that_cannot_be_made_anew_at_once_is_tried_again(wire, provider, refusal):
    """By its reader, who else would be none; as is each topic, where only some could be subscribed to."""
    provider.declare("inbox/7f", temporary=True)
    topics = ("e/a", "e/b", "e/c")
    for topic in topics:
        provider.bind("inbox/7f", topic, exact=True)
    wire.answers[refusal] = after(1 if refusal == "Subscribe" else 0, refused("AccessDenied", 403, times=2))
    provider.sweeper._remove_mailboxes(provider.sweeper.mailboxes())
    eventually(lambda: [found.queue_arn[-2:] for topic in topics for found in provider._topics.subscriptions(topic)] == ["-1"] * 3)
    with AwsOther(wire, provider) as other:
        for topic in topics:
            other.publish((topic,), topic.encode())
            assert some(provider, "inbox/7f") == [(topic.encode(), None)]


def test_a_mailbox_is_read_again_however_often_that_has_failed(wire, provider, monkeypatch):
    """For hours, say: 0.1 * 2**1024 is no float any more."""
    monkeypatch.setattr("pymq.dispatch.LONGEST_PAUSE", 0.0)
    failures = itertools.count()
    receive = Mailbox._receive

    def fail(mailbox):
        if next(failures) < 1100:
            raise ProviderError("no")
        receive(mailbox)

    monkeypatch.setattr(Mailbox, "_receive", fail)
    provider.declare("inbox/7f", temporary=True)
    with AwsOther(wire, provider) as other:
        other.send("inbox/7f", b"x")
        assert some(provider, "inbox/7f") == [(b"x", None)]


def after(count: int, answer: Answer) -> Answer:
    """AWS itself answers so many; then this does."""
    left = itertools.count(count, -1)
    return lambda call: None if next(left) > 0 else answer(call)


def test_two_that_declare_a_deleted_queue_meet(wire, provider):
    provider.declare("jobs")
    provider.delete("jobs")
    with AwsOther(wire, provider) as other:
        declaring = [in_thread(each.declare, "jobs") for each in (provider, other)]
        for each in declaring:
            each.result(GUARD)
        other.send("jobs", b"new")
        assert some(provider, "jobs", lease=None) == [(b"new", None)]


def test_two_that_delete_a_queue_use_up_one_number(wire, provider):
    provider.declare("jobs")
    with AwsOther(wire, provider) as other:
        assert other.size("jobs") == 0
        deleting = [in_thread(each.delete, "jobs") for each in (provider, other)]
        for each in deleting:
            each.result(GUARD)
        provider.declare("jobs")
        assert [name[-2:] for name in dict.fromkeys(shared_names(wire))] == ["-0", "-1"]


def test_a_deletion_that_comes_late_does_not_bring_a_used_number_back(wire, provider):
    """It has read the number, then slept while others deleted the queue twice."""
    for _ in range(3):
        provider.declare("jobs")
        provider.delete("jobs")
    provider._directory._entomb("s", "jobs", 0)
    assert provider._directory._number("s", "jobs") == 3
    provider.declare("jobs")
    assert shared_names(wire)[-1].endswith("-3")


def test_a_deletion_by_one_who_knows_an_older_queue_deletes_the_present_one(wire, provider):
    with AwsOther(wire, provider) as other:
        other.declare("jobs")
        provider.delete("jobs")
        provider.declare("jobs")
        provider.bind("jobs", "e/c", exact=True)
        other.delete("jobs")
        with pytest.raises(QueueNotFound):
            provider.send("jobs", b"x")
        assert [found for found in provider.sweeper.inventory() if found.kind in ("queue", "subscription")] == []


def test_a_deletion_that_was_interrupted_is_finished_by_the_next(wire, provider):
    """Its number was used up, but the queue was not deleted."""
    provider.declare("jobs")
    wire.answers["DeleteQueue"] = refused("AccessDenied", 403)
    with pytest.raises(ProviderError):
        provider.delete("jobs")
    provider.delete("jobs")
    kinds = sorted(found.kind for found in provider.sweeper.inventory())
    assert kinds == ["tombstone", "undeliverable"]


def test_one_who_looked_too_early_is_told_by_sqs_and_looks_again(wire, provider):
    """It saw no queue and no tombstone; then others made the queue and deleted it."""
    refusals = refused("AWS.SimpleQueueService.QueueDeletedRecently")
    wire.answers["CreateQueue"] = lambda call: refusals(call) if "-s-" in call.parameters["QueueName"] else None
    provider.declare("jobs")
    assert [name[-2:] for name in shared_names(wire)] == ["-0", "-1"]
    with AwsOther(wire, provider) as other:
        other.send("jobs", b"new")
        assert some(provider, "jobs", lease=None) == [(b"new", None)]


def test_a_queue_that_somebody_made_meanwhile_is_there(wire, provider):
    """And has tags that it did not have when it was made, of which CreateQueue says that it exists otherwise."""
    with AwsOther(wire, provider) as other:
        other.declare("jobs")
    wire.answers["CreateQueue"] = refused("QueueAlreadyExists", times=10)
    url = provider._directory._create(provider._directory.names.queue("s", "jobs", 0), {}, {})
    assert url.endswith("-0")


def test_the_names_of_a_purged_namespace_are_used_again_after_a_minute_only(wire, provider, monkeypatch):
    """A purge takes the tombstones too, and SQS refuses their names as well."""
    monkeypatch.setattr("pymq.provider._aws.directory.time.sleep", lambda seconds: None)
    wire.answers["CreateQueue"] = refused("AWS.SimpleQueueService.QueueDeletedRecently", times=5)
    provider.declare("jobs")
    assert provider.size("jobs") == 0


class AwsOther:
    """Another participant of the same namespace."""

    def __init__(self, wire: Wire, provider: AwsProvider) -> None:
        self.provider = wire.config(namespace=provider._config.namespace).create()

    def __enter__(self) -> AwsProvider:
        self.provider.open()
        return self.provider

    def __exit__(self, *_: object) -> None:
        self.provider.close()


def test_a_denied_call_says_what_to_do(wire, provider):
    wire.answers["CreateQueue"] = refused("AccessDenied", 403)
    with pytest.raises(ProviderError, match="pymq aws policy"):
        provider.declare("jobs")


@pytest.mark.parametrize("kind", [AwsConfig, LocalstackConfig])
def test_half_of_the_credentials_are_none(monkeypatch, kind):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(ProviderError, match="no credentials"):
        kind(region="eu-west-1").create().open()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("InvalidClientTokenId", "credentials are not right"),
        ("SignatureDoesNotMatch", "clock"),
        ("ExpiredToken", "credentials are over"),
    ],
)
def test_credentials_that_aws_does_not_take_are_told_as_such(wire, code, told):
    """Who has none that are valid is not helped by a policy."""
    wire.answers["GetCallerIdentity"] = refused(code, 403)
    with pytest.raises(ProviderError, match=told) as error:
        wire.config().create().open()
    assert "pymq aws policy" not in str(error.value)


def test_an_aws_that_is_not_there_is_named(monkeypatch):
    wire = Wire()
    config = AwsConfig(wire.session, endpoint_url="http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:9"):
        config.create().open()


def test_a_profile_that_does_not_exist_is_told_as_our_error(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobodys")
    with pytest.raises(ProviderError, match="nobodys"):
        AwsConfig(region="eu-west-1").create().open()


def test_without_a_region_or_credentials_it_says_so(monkeypatch):
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ProviderError, match="no region"):
        AwsConfig().create().open()
    with pytest.raises(ProviderError, match="no credentials"):
        AwsConfig(region="eu-west-1").create().open()


def test_a_queue_that_was_deleted_elsewhere_is_not_found(wire, provider):
    provider.declare("jobs")
    provider.send("jobs", b"x")
    with AwsOther(wire, provider) as other:
        other.delete("jobs")
    with pytest.raises(QueueNotFound, match="jobs"):
        provider.send("jobs", b"y")


def test_a_poll_that_could_not_be_begun_is_begun_by_the_next_receive(provider, monkeypatch):
    """The machine has no thread left, for a moment."""
    provider.declare("jobs")
    refuse_once(monkeypatch, "pymq-aws-poll")
    with pytest.raises(RuntimeError):
        provider.receive("jobs", GUARD)
    provider.send("jobs", b"x")
    assert some(provider, "jobs", lease=None) == [(b"x", None)]


def test_a_keeper_that_could_not_be_started_is_started_by_the_next_job(monkeypatch):
    keeper, called = Keeper(0.01), threading.Event()
    refuse_once(monkeypatch, "pymq-aws-keeper")
    with pytest.raises(RuntimeError):
        keeper.add(called.set, "one")
    keeper.add(called.set, "another")
    assert called.wait(GUARD)
    keeper.close()


def test_a_job_that_hangs_does_not_hold_up_the_others():
    """The extension of one lease, say: the process would be taken for dead."""
    keeper, may_end, called = Keeper(0.01), threading.Event(), threading.Event()
    keeper.add(may_end.wait, "one that hangs")
    keeper.add(called.set, "another")
    assert called.wait(GUARD)
    keeper.close()
    may_end.set()


def refuse_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The first thread of that name does not start."""
    start, refusals = threading.Thread.start, [RuntimeError("can't start new thread")]

    def refuse(thread):
        if thread.name == name and refusals:
            raise refusals.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_what_a_poll_brings_in_vain_comes_again_as_if_for_the_first_time(wire):
    """Else an event of a group that allows no retries goes to the dead letters, and nobody has handled it."""
    config = wire.config(poll=20.0)
    one, other = config.create(), config.create()
    for provider in (one, other):
        provider.open()
    one.declare("jobs")
    waiting = in_thread(one.receive, "jobs", None)
    eventually(lambda: long_polls(wire))
    eventually(lambda: one.wake() or waiting.done())
    received = []
    wire.changes["ReceiveMessage"] = lambda parsed: received.extend(parsed.get("Messages", []))
    other.send("jobs", b"x")
    eventually(lambda: received)
    ((message, receipt),) = some(other, "jobs")
    assert (message, receipt.attempt) == (b"x", 1)
    for provider in (one, other):
        provider.close()


def test_who_had_less_than_a_second_gets_what_the_poll_brings_all_the_same(wire, provider, monkeypatch):
    """SQS knows whole seconds: each poll for less would bring what it brings in vain."""
    monkeypatch.setattr("pymq.provider._aws.queue.LONGEST_REST", GUARD)
    provider.declare("jobs")
    sent = threading.Event()

    def wait(call):
        assert sent.wait(GUARD)

    wire.answers["ReceiveMessage"] = wait
    begun = time.monotonic()
    receiving = in_thread(provider.receive, "jobs", 0.1, lease=None)
    eventually(lambda: wire.named("ReceiveMessage") and time.monotonic() > begun + 0.2)
    provider.send("jobs", b"x")
    sent.set()
    assert receiving.result(GUARD) == [(b"x", None)]


def test_a_look_is_not_waited_for_as_a_long_poll_is(wire, provider, monkeypatch):
    """Who asks what is there now waits for AWS as for each other call, 15 s, and not the 35 s of one that AWS may answer late."""
    provider.declare("jobs")
    provider.send("jobs", b"x")
    monkeypatch.setattr(provider._account, "_clients", provider._account._clients._replace(polls=None))
    assert provider.receive("jobs", 0, lease=None) == [(b"x", None)]


def test_what_cannot_be_given_back_does_not_end_the_polling(wire, provider, monkeypatch):
    """A poll has brought it, and AWS fails before the one who begins to wait has looked."""
    monkeypatch.setattr("pymq.provider._aws.queue.KEPT_FOR_THE_NEXT", 0.0)
    provider.declare("jobs")
    provider.send("jobs", b"in vain")
    wire.answers |= dict.fromkeys(["ChangeMessageVisibility", "SendMessageBatch"], refused("AccessDenied", 403))
    shared = provider._shared.of("jobs")
    with provider._lock:
        shared.wait_with(Waiter(1, 30.0, time.monotonic() + GUARD))
    eventually(lambda: wire.named("ChangeMessageVisibility") or wire.named("SendMessageBatch")[1:])
    monkeypatch.undo()
    wire.answers.clear()
    provider.send("jobs", b"x")
    assert some(provider, "jobs", lease=None) == [(b"x", None)]


def test_a_queue_that_was_deleted_elsewhere_is_made_anew_by_who_declares_it_again(wire, provider):
    """Who has used it already believes in it no longer."""
    provider.declare("jobs")
    provider.send("jobs", b"old")
    assert some(provider, "jobs", lease=None) == [(b"old", None)]
    with AwsOther(wire, provider) as other:
        other.delete("jobs")
        provider.declare("jobs")
        provider.bind("jobs", "e/c", exact=True)
        other.publish(["e/c"], b"new")
        assert some(provider, "jobs", lease=None) == [(b"new", None)]


def test_a_queue_is_made_after_another_process_has_purged_the_namespace(wire, provider):
    """Also that to which SQS moves what was delivered too often is gone then."""
    provider.declare("jobs")
    with AwsOther(wire, provider) as other:
        for resource in list(other.sweeper.inventory()):
            resource.remove()
    for queue in ("others", "jobs"):
        provider.declare(queue)
        provider.send(queue, b"x")
        assert some(provider, queue, lease=None) == [(b"x", None)]


def test_a_queue_that_sqs_does_not_know_yet_is_asked_again(wire, provider):
    """For a second after it was made: a group's member must not take it for deleted, and stop."""
    provider.declare("jobs")
    provider.send("jobs", b"x")
    wire.answers["ReceiveMessage"] = refused("QueueDoesNotExist", times=2)
    assert some(provider, "jobs", lease=None) == [(b"x", None)]


def test_a_mailbox_that_sqs_does_not_know_yet_is_asked_once_a_second(wire, provider):
    asked: list[float] = []
    refusal = refused("QueueDoesNotExist", times=3)

    def refuse(call):
        asked.append(time.monotonic())
        return refusal(call)

    wire.answers["ReceiveMessage"] = refuse
    provider.declare("inbox/7f", temporary=True)
    with AwsOther(wire, provider) as other:
        other.send("inbox/7f", b"x")
        assert some(provider, "inbox/7f") == [(b"x", None)]
    assert asked[3] - asked[0] >= 3.0


# --- what SQS cannot do by itself --------------------------------------------------------------------------------------


def test_a_delay_beyond_15_minutes_is_hidden_again(wire, provider):
    provider.declare("jobs")
    provider.send("jobs", b"tomorrow", delay=5000)
    (sent,) = wire.named("SendMessageBatch")
    assert sent.parameters["Entries"][0]["DelaySeconds"] == 900
    assert provider.size("jobs") == 1
    with pytest.raises(ValueError, match="delay=50000"):
        provider.send("jobs", b"never", delay=50_000)


def test_a_delay_that_is_rounded_up_does_not_use_up_the_ttl(wire, provider):
    provider.declare("jobs")
    before = provider.clock()
    provider.send("jobs", b"short-lived", delay=0.3, ttl=0.5)  # 0.3 s invisible, then 0.2 s to live
    entry = wire.named("SendMessageBatch")[0].parameters["Entries"][0]
    assert entry["DelaySeconds"] == 1
    assert unpack(entry["MessageBody"]).expires - before >= 1 + 0.2


def test_what_is_received_before_it_is_due_stays_hidden_until_then(wire, provider):
    """As a message that SQS has delayed for its 15 minutes and that is due later: here one published with a delay."""
    provider.declare("jobs")
    provider.bind("jobs", "e/c", exact=True)
    provider.publish(["e/c"], b"later", delay=5000)
    assert provider.receive("jobs", 0.5) == []
    (hidden,) = wire.named("ChangeMessageVisibility")
    assert 4990 <= hidden.parameters["VisibilityTimeout"] <= 5000


def test_a_message_that_came_early_has_its_first_attempt_when_it_is_due(wire, provider):
    provider.declare("jobs")
    provider.bind("jobs", "e/c", exact=True)
    provider.publish(["e/c"], b"later", delay=1.5)
    assert provider.receive("jobs", 0.5) == []
    ((_, receipt),) = some(provider, "jobs")
    assert receipt.attempt == 1


def test_attempts_count_on_when_a_message_is_given_back_with_a_delay(wire, provider):
    """That makes a copy, since SQS would not count a hidden one among the waiting."""
    provider.declare("jobs")
    provider.send("jobs", b"x")
    for attempt in (1, 2, 3):
        ((_, receipt),) = some(provider, "jobs")
        assert receipt.attempt == attempt
        provider.nack(receipt, 0.5 if attempt == 1 else 0)


def test_a_fifo_queue_delays_as_well(wire):
    """SQS knows no delay for one message of such a queue; and what is delayed must not hold up the same sender's others."""
    provider = wire.config(ordered=True).create()
    provider.open()
    provider.declare("jobs")
    begun = time.monotonic()
    provider.send("jobs", b"later", delay=2)
    provider.send("jobs", b"now")
    assert [some(provider, "jobs", lease=None) for _ in range(2)] == [[(b"now", None)], [(b"later", None)]]
    assert time.monotonic() - begun >= 2
    provider.close()


def test_a_delayed_event_does_not_hold_up_its_publishers_others(wire):
    provider = wire.config(ordered=True).create()
    provider.open()
    provider.declare("jobs")
    provider.bind("jobs", "e/c", exact=True)
    provider.publish(["e/c"], b"later", delay=5000)
    provider.publish(["e/c"], b"now")
    assert some(provider, "jobs", lease=None) == [(b"now", None)]
    provider.close()


def test_all_dead_letters_of_a_fifo_queue_are_seen_at_once(wire):
    """SQS gives ten messages of a sender at most, and nobody the next while these are leased."""
    provider = wire.config(ordered=True).create()
    provider.open()
    provider.declare("queue-dead/jobs")
    letters = {b"%d" % number for number in range(12)}
    for letter in letters:
        provider.send("queue-dead/jobs", letter)
    received = [message for _ in range(2) for message, _ in some(provider, "queue-dead/jobs", limit=10)]
    assert set(received) == letters
    provider.close()


def test_a_fifo_queue_leaves_out_what_was_sent_twice(wire):
    """As botocore does where the answer to the first was lost."""
    provider = wire.config(ordered=True).create()
    provider.open()
    provider.declare("jobs")
    lost = []

    def lose_the_first(parsed):
        lost.append(True)
        if len(lost) == 1:
            parsed["Failed"] = [{"Id": "0", "SenderFault": False, "Code": "InternalError"}]

    wire.changes["SendMessageBatch"] = lose_the_first
    provider.send("jobs", b"once")
    assert len(lost) == 2
    assert some(provider, "jobs", lease=None) == [(b"once", None)]
    assert provider.receive("jobs") == []
    provider.close()
