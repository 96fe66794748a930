"""`python -m benchmarks aws`: how many calls of AWS an event takes, which is what AWS is paid for, counted against moto's server.

Calls are counted where botocore sends them, those that it repeats included. How long they take says nothing of AWS, and is not shown.
"""

from __future__ import annotations

import itertools
import secrets
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

from benchmarks.contest import Measure, Row, Skipped
from benchmarks.events import TRADE, Trade
from benchmarks.measuring import scaled
from pymq import EventBus
from pymq.provider.aws import AwsConfig

EVENTS = 200
CROWD = 60
"""Threads that publish at once, where there is load."""
PUBLISHING = ("PublishBatch",)
RECEIVING = ("ReceiveMessage",)
SETTLING = ("DeleteMessageBatch", "ChangeMessageVisibility")


def rows() -> list[Row]:
    """What docs/providers/aws.md says of costs."""
    return [
        Row("aws-publish", "SNS publish calls per event, one thread", "calls", publishing, limit=1, runs=1),
        Row("aws-publish-load", f"the same, while {CROWD} threads publish", "calls", crowding, limit=0.1, runs=1),
        Row("aws-look-up", "SNS look-ups for patterns per minute of publishing", "calls", looking_up, runs=1),
        Row("aws-receive", "SQS receive calls per 1,000 events, subscriber under load", "calls", partial(receiving, RECEIVING), runs=1),
        Row("aws-delete", "SQS delete calls per 1,000 events, the same", "calls", partial(receiving, SETTLING), runs=1),
        Row("aws-group", "SQS receive calls per 1,000 events, group, one worker", "calls", partial(grouped, RECEIVING, 1), runs=1),
        Row("aws-group-workers", "the same, ten workers", "calls", partial(grouped, RECEIVING, 10), runs=1),
        Row(
            "aws-group-delete", "SQS delete calls per 1,000 events, group, ten workers", "calls", partial(grouped, SETTLING, 10), runs=1
        ),
        Row("aws-idle", "SQS calls of an idle subscriber in 60 s", "calls", idling, runs=1),
    ]


class Counted:
    """A session whose calls are counted, and a config for it."""

    def __init__(self, url: str, **options: Any) -> None:
        import boto3

        self.session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
        self.session.events.register("before-send.*.*", self._count)
        self.session.events.register("provide-client-params.sns.PublishBatch", self._count_entries)
        self.config = AwsConfig(self.session, endpoint_url=url, namespace=secrets.token_hex(4), **options)
        self.calls: Counter[str] = Counter()

    def _count(self, event_name: str, **_: Any) -> None:
        self.calls[event_name.rpartition(".")[2]] += 1

    def _count_entries(self, params: dict[str, Any], **_: Any) -> None:
        self.calls["entries"] += len(params["PublishBatchRequestEntries"])

    def since(self, before: Counter[str], names: tuple[str, ...]) -> int:
        """How many calls with these names since then."""
        return sum((self.calls - before)[name] for name in names)


SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
from werkzeug.serving import WSGIRequestHandler
WSGIRequestHandler.protocol_version = "HTTP/1.1"
logging.getLogger("werkzeug").disabled = True
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""
"""Ends with its standard input, so that it cannot outlive us."""


@contextmanager
def counted(**options: Any) -> Iterator[Counted]:
    """Against a server of its own, in a process of its own."""
    if find_spec("moto") is None:
        raise Skipped("needs moto: pip install -e '.[test]'")
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield Counted(server.stdout.readline().strip(), **options)
        server.kill()


class Heard:
    """A handler that counts."""

    def __init__(self, expected: int) -> None:
        self._left = expected
        self._lock = threading.Lock()
        self.all = threading.Event()

    def __call__(self, event: Trade) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self.all.set()


def publish(bus: EventBus, count: int, threads: int) -> None:
    """So many events, from so many threads."""
    with ThreadPoolExecutor(threads) as pool:
        for published in [pool.submit(bus.publish, TRADE) for _ in range(count)]:
            published.result()


@contextmanager
def publishing(scale: float) -> Iterator[Measure]:
    """SNS calls per event of one thread; the look-up for patterns apart."""
    count = scaled(EVENTS, scale)
    with counted() as aws, EventBus(aws.config) as bus:
        bus.subscribe(Heard(count))

        def measure() -> float:
            before = Counter(aws.calls)
            publish(bus, count, 1)
            return aws.since(before, PUBLISHING) / count

        yield measure


@contextmanager
def crowding(scale: float) -> Iterator[Measure]:
    """The same while all threads publish: from when each has published once until the first has published its last."""
    each = max(2, scaled(12, scale))
    with counted() as aws, EventBus(aws.config) as bus:
        bus.subscribe(Heard(CROWD * each))

        def measure() -> float:
            began, ended = itertools.count(1), itertools.count(1)
            counts: list[Counter[str]] = []

            def publish_many() -> None:
                bus.publish(TRADE)
                if next(began) == CROWD:
                    counts.append(Counter(aws.calls))
                for _ in range(each):
                    bus.publish(TRADE)
                if next(ended) == 1:
                    counts.append(Counter(aws.calls))

            with ThreadPoolExecutor(CROWD) as pool:
                for published in [pool.submit(publish_many) for _ in range(CROWD)]:
                    published.result()
            under_load = counts[1] - counts[0]
            return sum(under_load[name] for name in PUBLISHING) / under_load["entries"]

        yield measure


@contextmanager
def looking_up(scale: float) -> Iterator[Measure]:
    """SNS calls that ask whether somebody binds a pattern, in a minute in which events are published all the time."""
    seconds = scaled(15, scale)
    with counted() as aws, EventBus(aws.config) as bus:

        def measure() -> float:
            before, over = Counter(aws.calls), threading.Event()
            threading.Timer(seconds, over.set).start()
            while not over.is_set():
                bus.publish(TRADE)
            return 60 / seconds * aws.since(before, ("ListSubscriptionsByTopic",))

        yield measure


@contextmanager
def receiving(names: tuple[str, ...], scale: float) -> Iterator[Measure]:
    """SQS calls per 1,000 events of a subscriber, while they are published by many."""
    count = scaled(EVENTS, scale)
    yield _received(names, count, lambda bus, heard: bus.subscribe(heard))


@contextmanager
def grouped(names: tuple[str, ...], workers: int, scale: float) -> Iterator[Measure]:
    """The same for a group with so many workers, of events that wait already."""
    count = scaled(EVENTS, scale)
    yield _received(names, count, lambda bus, heard: bus.subscribe(heard, group="workers", workers=workers))


def _received(names: tuple[str, ...], count: int, subscribe: Callable[[EventBus, Heard], None]) -> Measure:
    def measure() -> float:
        heard = Heard(count)
        with counted() as aws, EventBus(aws.config) as bus:
            subscribe(bus, heard)
            before = Counter(aws.calls)
            publish(bus, count, CROWD)
            if not heard.all.wait(300):
                raise TimeoutError("not all events came")
            return 1000 * aws.since(before, names) / count

    return measure


@contextmanager
def idling(scale: float) -> Iterator[Measure]:
    """SQS calls of a process that has subscribed and hears nothing."""
    seconds = scaled(60, scale)
    with counted() as aws, EventBus(aws.config) as bus:
        bus.subscribe(Heard(1))

        def measure() -> float:
            before = Counter(aws.calls)
            threading.Event().wait(seconds)
            return 60 / seconds * aws.since(before, (*RECEIVING, "TagQueue"))

        yield measure
