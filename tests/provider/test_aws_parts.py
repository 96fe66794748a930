"""The parts of the aws provider that need no AWS: names, tags, the clock, envelopes, batches."""

from __future__ import annotations

import json
import math
import re
import threading
from email.utils import formatdate
from typing import Any

import boto3
import pytest
from aws_server import emulator
from harness import ROOT, Heard, eventually, in_thread
from hypothesis import given
from hypothesis import strategies as st

import pymq
from pymq.exceptions import ConnectionLost, LeaseLost, MessageTooLarge, ProviderError
from pymq.provider import config_from
from pymq.provider._aws.account import Clock
from pymq.provider._aws.batches import Batches, in_one_call
from pymq.provider._aws.envelope import LARGEST_BODY, LARGEST_MESSAGE, Envelope, Window, unpack
from pymq.provider._aws.mailbox import concurrently
from pymq.provider._aws.names import (
    Names,
    access_policy,
    all_of_many,
    delivery_policy,
    mailbox_of,
    number_of,
    tagged,
    tags_of_many,
    untagged,
)
from pymq.provider.aws import AwsConfig, AwsEventBus, LocalstackConfig

texts = st.text(max_size=100)


# --- names ------------------------------------------------------------------------------------------------------------


@given(texts, texts, st.booleans())
def test_names_are_valid(namespace, name, ordered):
    names = Names(namespace, ordered)
    queues = [names.queue(kind, name, number) for kind in "smd" for number in (0, 16**10 - 1)]
    for queue in [*queues, *map(names.tombstone, queues)]:
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,75}(\.fifo)?", queue)
        assert len(queue) <= 80
        assert queue.endswith(".fifo") == ordered
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,251}(\.fifo)?", names.topic(name))


@given(st.lists(st.tuples(texts, st.sampled_from("smd"), texts, st.integers(0, 1000)), min_size=2, max_size=2, unique=True))
def test_names_are_injective(two):
    one, other = (Names(namespace, False).queue(kind, name, number) for namespace, kind, name, number in two)
    assert one != other


@given(texts, st.booleans(), st.integers(0, 1000))
def test_all_queues_of_a_name_have_one_tombstone(name, ordered, number):
    names = Names("shop", ordered)
    tombstones = {kind: names.tombstone(names.queue(kind, name, number)) for kind in "sm"}
    assert tombstones == {kind: names.tombstone(names.queue(kind, name, 0)) for kind in "sm"}
    assert len(set(tombstones.values())) == 2
    assert {names.kind_of(tombstone) for tombstone in tombstones.values()} == {"x"}
    assert number_of(names.queue("s", name, number)) == number


def test_a_namespace_is_not_the_beginning_of_another():
    short, long = Names("shop", False), Names("shop-2", False)
    assert not long.queue("s", "x", 0).startswith(short.prefix)
    assert short.kind_of(long.topic("x")) == ""


def test_the_kind_is_seen_from_a_name_an_arn_and_a_url():
    names = Names("shop", False)
    queue = names.queue("m", "7f", 0)
    for resource in (queue, f"arn:aws:sqs:eu-west-1:123456789012:{queue}", f"http://127.0.0.1:4566/123456789012/{queue}"):
        assert names.kind_of(resource) == "m"


def test_the_temporary_queues_of_one_bus_share_a_mailbox():
    assert {mailbox_of(name) for name in ("inbox/7f", "reply/7f/1", "reply/7f/2")} == {"7f"}
    assert mailbox_of("inbox/80") != mailbox_of("inbox/7f")


@given(st.text(max_size=2500), texts)
def test_tags_hold_any_text(text, other):
    tags = tagged("name", text) | tags_of_many("pattern", text) | tags_of_many("pattern", other)
    assert untagged("name", tags) == text
    assert set(all_of_many("pattern", tags)) == {text, other}
    for key, value in tags.items():
        assert re.fullmatch(r"[\w.:/=+@-]{1,128}", key)
        assert re.fullmatch(r"[\w.:/=+@-]{0,256}", value)


def test_a_name_that_no_tags_hold_is_refused():
    with pytest.raises(ValueError, match="too long for AWS"):
        tagged("name", "x" * 5000)


def test_only_the_namespaces_topics_may_send_to_its_queues():
    (statement,) = json.loads(delivery_policy("arn:queue", "arn:topics-*"))["Statement"]
    assert statement["Principal"] == {"Service": "sns.amazonaws.com"}
    assert statement["Action"] == "sqs:SendMessage"
    assert statement["Resource"] == "arn:queue"
    assert statement["Condition"] == {"ArnLike": {"aws:SourceArn": "arn:topics-*"}}


def test_the_policy_of_a_participant_is_narrow():
    statements = access_policy(Names("shop", False), account="123456789012")["Statement"]
    anywhere = [action for statement in statements if statement["Resource"] == "*" for action in statement["Action"]]
    assert sorted(anywhere) == ["sns:ListSubscriptions", "sns:ListTopics", "sns:Unsubscribe", "sqs:ListQueues"]
    others = [statement["Resource"] for statement in statements if statement["Resource"] != "*"]
    assert all(re.fullmatch(r"arn:aws:(sqs|sns):\*:123456789012:pymq-shop-\w{10}-\*", resource) for resource in others)
    assert not any("*" in action for statement in statements for action in statement["Action"])


# --- configs ----------------------------------------------------------------------------------------------------------


def test_a_url_is_a_config():
    assert config_from("aws://eu-west-1/shop") == AwsConfig(region="eu-west-1", namespace="shop")
    assert config_from("aws") == config_from("aws://") == AwsConfig()
    url = "aws://us-east-1/a%2Fb?endpoint_url=http://localhost:4566&ordered=1&lease=30&refresh=1&poll=5"
    given = {"endpoint_url": "http://localhost:4566", "ordered": True, "lease": 30, "refresh": 1, "poll": 5}
    assert config_from(url) == AwsConfig(region="us-east-1", namespace="a/b", **given)


@pytest.mark.parametrize("url", ["aws://r/a/b", "aws://r/n?color=red", "aws://r/n?lease=long", "aws://r/n#x"])
def test_a_wrong_url_is_refused(url):
    with pytest.raises(ValueError, match="aws://r"):
        config_from(url)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"lease": 0}, {"lease": math.nan}, {"lease": math.inf}, {"poll": 0}, {"poll": 21}, {"poll": math.nan}),
        *({"refresh": -1}, {"refresh": math.nan}, {"refresh": math.inf}),
    ],
)
def test_a_wrong_config_is_refused(wrong):
    with pytest.raises(ValueError, match="=".join(map(str, *wrong.items()))):
        AwsConfig(**wrong).create()


def test_the_names_that_programs_import():
    assert LocalstackConfig() == LocalstackConfig("http://localhost:4566", "us-east-1")
    assert LocalstackConfig("http://localhost:1", "eu-west-1", namespace="n").region == "eu-west-1"
    assert AwsEventBus().config == AwsConfig()


WAYS = {
    "the environment": AwsConfig,
    "a session": lambda: AwsConfig(boto3.Session(region_name="us-east-1", **KEYS), endpoint_url=emulator()),
    "a region": lambda: AwsConfig(region="us-east-1", endpoint_url=emulator(), namespace="by-region"),
    "an emulator": lambda: LocalstackConfig(endpoint_url=emulator(), region="us-east-1"),
    "a URL": lambda: "aws://eu-west-1/by-url",
    "a class of PyMQ": lambda: AwsEventBus,
}
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}


@pytest.fixture
def environment(monkeypatch) -> None:
    said = {"AWS_ENDPOINT_URL": emulator(), "AWS_DEFAULT_REGION": "us-east-1"} | {key.upper(): value for key, value in KEYS.items()}
    for name, value in said.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("way", WAYS)
def test_init_takes(way):
    heard = Heard()
    with pymq.init(WAYS[way]()):
        pymq.subscribe(heard, "c")
        pymq.publish(way, "c")
        assert heard.next() == way


@pytest.mark.usefixtures("environment")
def test_each_init_finds_the_environment_of_its_time(monkeypatch):
    for region, key in (("us-east-1", "old"), ("eu-west-1", "new")):
        monkeypatch.setenv("AWS_DEFAULT_REGION", region)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        provider = AwsConfig().create()
        provider.open()
        client = provider._account._sqs
        assert (client.meta.region_name, client._request_signer._credentials.access_key) == (region, key)


def test_the_emulator_for_users_is_free_and_seen_from_this_machine_only():
    service = (ROOT / "docker-compose.yml").read_text().partition("\n  aws:\n")[2].partition("\n  redis:")[0]
    assert "image: motoserver/moto:latest" in service
    assert 'ports: ["127.0.0.1:4566:5000"]' in service
    assert LocalstackConfig().endpoint_url == "http://localhost:4566"


# --- the clock --------------------------------------------------------------------------------------------------------


class Times:
    """In the place of the module `time`: a machine's clock, and the monotonic one, which is not set."""

    def __init__(self) -> None:
        self.passed = 1000.0

    def monotonic(self) -> float:
        return self.passed

    def time(self) -> float:
        return 1.8e9 + self.passed


@pytest.fixture
def times(monkeypatch) -> Times:
    times = Times()
    monkeypatch.setattr("pymq.provider._aws.account.time", times)
    return times


def dated(date: str | float | None) -> dict[str, Any]:
    """An answer of AWS's."""
    text = formatdate(date, usegmt=True) if isinstance(date, float) else date
    return {"ResponseMetadata": {"HTTPHeaders": {} if text is None else {"date": text}}}


@pytest.mark.parametrize("wrong", [-3600, 0, 3600])
def test_the_clock_follows_the_dates_of_answers(times, wrong):
    """However wrong this machine's is, or long it was suspended, which the monotonic clock does not count."""
    clock = Clock()
    for _ in range(40):
        times.passed += 0.975
        clock.learn(dated(times.time() + wrong), times.monotonic() - 0.01)
    assert abs(clock.now() - times.time() - wrong) < 0.1


def test_an_answer_that_took_long_tells_little(times):
    clock = Clock()
    clock.learn(dated(times.time() - 100), times.monotonic() - 200)
    assert clock.now() == times.time()


@pytest.mark.parametrize("date", [None, "", "soon"])
def test_an_answer_without_a_date_tells_nothing(times, date):
    clock = Clock()
    clock.learn(dated(date), times.monotonic())
    assert clock.now() == times.time()


# --- envelopes --------------------------------------------------------------------------------------------------------

envelopes = st.builds(
    Envelope,
    message=st.binary(),
    queue=texts,
    topics=st.lists(texts).map(tuple),
    to_everything=st.booleans(),
    id=texts,
    due=st.floats(0, 1e10),
    expires=st.none() | st.floats(1, 1e10) | st.just(math.inf),
    attempts=st.integers(0, 100),
)


@given(envelopes)
def test_what_is_packed_is_unpacked(envelope):
    assert unpack(envelope.pack()) == envelope


@given(envelopes)
def test_a_body_is_legal_text(envelope):
    """XML 1.0 knows no other control characters than these, and no surrogates."""
    assert re.fullmatch(r"[\n\x20-\x7e]+", envelope.pack())


@given(st.text())
def test_what_somebody_else_wrote_is_a_message_as_it_is(body):
    assert unpack(body).message == body.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    "body",
    [
        *('{"queue":1}\nx', "[]\n", '{"topics":3}\n', '{"topics":"ab"}\n', "{}\nno base64!", '{"id":[]}\n', "[" * 100_000 + "\n"),
        *('{"due":"soon"}\n', '{"due":Infinity}\n', '{"due":1e999}\n', '{"expires":""}\n', '{"attempts":"x"}\n', '{"attempts":1.5}\n'),
        '{"due":1%s}\n' % ("0" * 400),
    ],
)
def test_what_only_looks_like_ours_is_a_message_as_it_is(body):
    assert unpack(body) == Envelope(body.encode())


def test_the_largest_message_fits_and_more_does_not():
    assert len(Envelope(bytes(LARGEST_MESSAGE), topics=("e/" + "x" * 1000,) * 10).pack()) <= LARGEST_BODY
    with pytest.raises(MessageTooLarge):
        Envelope(bytes(LARGEST_BODY)).pack()


def test_a_window_knows_the_latest():
    window = Window(2)
    assert [window.note("a"), window.note("a")] == [True, False]
    window.note("b")
    window.note("c")
    assert "a" not in window
    assert "c" in window


# --- batches ----------------------------------------------------------------------------------------------------------


def taken(entries, *failures):
    """AWS's answer: it has all entries but those that failed."""
    failed = {failure["Id"] for failure in failures}
    return {"Successful": [{"Id": entry["Id"]} for entry in entries if entry["Id"] not in failed], "Failed": list(failures)}


class Sent:
    """Calls that wait until they may go on."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def __call__(self, place, entries):
        self.calls.append([entry["Body"] for entry in entries])
        self.begun.release()
        assert self.may_end.acquire(timeout=10)
        return taken(entries)


def begin(batches: Batches, sent: Sent, names: list[str], waiting: int, size: int = 0):
    """Add them one by one, each after the one before is in a call or in the queue for the next."""
    adding = []
    for name in names:
        adding.append(in_thread(batches.add, "place", {"Body": name}, size))
        waiting += 1
        while sum(len(lane.waiting) for lane in batches._lanes.values()) + sum(map(len, sent.calls)) < waiting:
            pass
    return adding


def test_an_idle_one_sends_at_once_and_a_busy_one_ten_at_a_time():
    sent = Sent()
    batches = Batches(sent, in_order=True)
    adding = begin(batches, sent, list("abcdefghijkl"), 0)
    assert sent.calls == [["a"]]
    for call in (["a"], list("bcdefghijk"), ["l"]):
        assert sent.begun.acquire(timeout=10)
        assert sent.calls[-1] == call
        sent.may_end.release()
    assert [each.result(10) for each in adding] == [None] * 12
    assert batches._lanes == {}


def test_ten_that_wait_do_not_wait_for_a_call_unless_order_matters():
    sent = Sent()
    adding = begin(Batches(sent, in_order=False), sent, list("abcdefghijk"), 0)
    for _ in range(2):
        assert sent.begun.acquire(timeout=10)
    assert sent.calls == [["a"], list("bcdefghijk")]
    for _ in range(2):
        sent.may_end.release()
    for each in adding:
        each.result(10)


def test_what_waits_goes_when_all_calls_have_ended():
    """Not when the first of them has: that would be a call for few."""
    sent = Sent()
    batches = Batches(sent, in_order=False, patience=3600)
    adding = begin(batches, sent, list("abcdefghijk"), 0)
    for _ in range(2):
        assert sent.begun.acquire(timeout=10)
    adding += begin(batches, sent, list("lm"), 11)
    sent.may_end.release()
    eventually(lambda: sum(each.done() for each in adding) in (1, 10))
    assert len(sent.calls) == 2
    sent.may_end.release()
    assert sent.begun.acquire(timeout=10)
    assert sent.calls[-1] == ["l", "m"]
    sent.may_end.release()
    for each in adding:
        each.result(10)


def test_what_waits_does_not_wait_for_a_call_that_hangs():
    sent = Sent()
    batches = Batches(sent, in_order=False, patience=0.01)
    adding = begin(batches, sent, list("ab"), 0)
    for call in (["a"], ["b"]):
        assert sent.begun.acquire(timeout=10)
        assert sent.calls[-1] == call
    sent.may_end.release(2)
    for each in adding:
        each.result(10)


def test_a_call_holds_at_most_256_kib():
    sent = Sent()
    adding = begin(Batches(sent, in_order=True), sent, list("abcd"), 0, 100 << 10)
    for _ in range(3):
        sent.may_end.release()
    for each in adding:
        each.result(10)
    assert sent.calls == [["a"], ["b", "c"], ["d"]]


def test_an_error_of_a_call_is_everybodys():
    def fail(place, entries):
        raise ProviderError("no")

    with pytest.raises(ProviderError, match="no"):
        Batches(fail, False).add("place", {})


def test_a_call_that_is_interrupted_leaves_nobody_waiting():
    sent = Sent()

    def call(place, entries):
        sent(place, entries)
        if len(sent.calls) == 1:
            raise KeyboardInterrupt
        return taken(entries)

    batches = Batches(call, in_order=True)
    first, *others = begin(batches, sent, list("abc"), 0)
    sent.may_end.release(2)
    with pytest.raises(KeyboardInterrupt):
        first.result(10)
    assert [each.result(10) for each in others] == [None, None]
    assert batches._lanes == {}


def test_one_that_is_interrupted_before_its_call_leaves_nobody_waiting(monkeypatch):
    """Ctrl-C in the 5 ms in which it waits for company."""
    sent = Sent()
    batches = Batches(sent, in_order=False, patience=3600)
    first, second, third = begin(batches, sent, list("abc"), 0)
    (lane,) = batches._lanes.values()
    monkeypatch.setattr(lane, "filled", Interrupted())
    sent.may_end.release(2)
    assert first.result(10) is None
    with pytest.raises(KeyboardInterrupt):
        second.result(10)
    assert third.result(10) is None
    assert sent.calls == [["a"], ["c"]]
    assert batches._lanes == {}


class Interrupted(threading.Event):
    """The first who waits for it is interrupted."""

    interrupts = True

    def wait(self, timeout=None):
        if self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt
        return super().wait(timeout)


def test_a_part_that_failed_is_sent_again_where_that_helps():
    calls = []

    def call(entries):
        calls.append([entry["Id"] for entry in entries])
        failed = [
            {"Id": "0", "SenderFault": True, "Code": "ReceiptHandleIsInvalid"},
            {"Id": "1", "SenderFault": False, "Code": "InternalError"},
            {"Id": "2", "SenderFault": True, "Code": "RequestThrottled"},
            {"Id": "3", "SenderFault": True, "Code": "KmsThrottled"},
        ]
        return taken(entries, *(failed if len(calls) == 1 else []))

    errors = in_one_call(call, [{}] * 5)
    assert calls == [["0", "1", "2", "3", "4"], ["1", "2", "3"]]
    assert [type(error) for error in errors] == [LeaseLost, *[type(None)] * 4]


def test_an_error_of_the_second_call_is_not_one_of_what_the_first_has_sent():
    """Whoever sent that would send it again."""
    calls = []

    def call(entries):
        calls.append([entry["Id"] for entry in entries])
        if len(calls) == 2:
            raise ConnectionLost("no answer")
        return taken(entries, {"Id": "1", "SenderFault": False, "Code": "InternalError"})

    errors = in_one_call(call, [{}] * 3)
    assert calls == [["0", "1", "2"], ["1"]]
    assert [type(error) for error in errors] == [type(None), ConnectionLost, type(None)]


@pytest.mark.parametrize("wrong", [ProviderError("no"), IndexError("none")])
def test_what_fails_keeps_none_of_the_others_from_being_called(wrong):
    called = []

    def call(number):
        called.append(number)
        if number % 10 == 0:
            raise wrong

    with pytest.raises(type(wrong)) as raised:
        concurrently(call, range(30))
    assert raised.value is wrong
    assert sorted(called) == list(range(30))


def test_what_fails_again_and_again_is_an_error(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    failure = {"Id": "0", "SenderFault": False, "Code": "InternalError", "Message": "broken"}
    (error,) = in_one_call(lambda entries: taken(entries, failure), [{}])
    assert isinstance(error, ProviderError)
    assert "broken" in str(error)


def test_an_entry_of_which_aws_says_nothing_is_not_known_to_be_there():
    """Half of a JSON answer is an empty one to botocore."""
    errors = in_one_call(lambda entries: {"Successful": [{"Id": "0"}]}, [{}] * 2)
    assert [type(error) for error in errors] == [type(None), ConnectionLost]
