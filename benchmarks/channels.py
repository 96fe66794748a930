"""`python -m benchmarks channels`: pymq.pubsub beside a bare FIFO, and beside formix-pubsub where that is importable."""

from __future__ import annotations

import importlib
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from time import perf_counter
from typing import Any, TypeAlias

from benchmarks import floors
from benchmarks.contest import Contestant, Measure, Rival, Row
from benchmarks.measuring import LATENCY, Processors, apart, conversation, directory, scaled, stream
from benchmarks.processes import Child, Program

SMALL = 100
OURS, FORMIX = "pymq.pubsub", "pubsub"

Receive: TypeAlias = "Callable[..., Program]"


def rows() -> list[Row]:
    """What the page of the channels says of their speed."""
    return [
        Row(
            "channels",
            f"bytes through a channel ({SMALL} B)",
            "messages/s",
            partial(messages, OURS, receive=by_subscribe, count=60_000),
            (
                Rival("bare FIFO", partial(floors.fifo_frames, size=SMALL), at_least=0.5),
                *_formix("subscribe", by_subscribe, count=100),
            ),
        ),
        Row(
            "channels-fetch",
            "the same, fetched",
            "messages/s",
            partial(messages, OURS, receive=by_fetch, count=60_000),
            _formix("fetch", by_fetch, count=1000),
        ),
        Row(
            "channels-latency",
            "there and back through two channels, p50",
            "us",
            partial(round_trips, OURS, place=apart, count=1500),
            (
                Rival("bare FIFO ping-pong", partial(floors.ping_pong, size=SMALL, place=apart, figure=LATENCY, count=1500), at_most=3),
                *_formix_latency(),
            ),
        ),
    ]


def formix_is_available() -> bool:
    """Whether formix-pubsub is what `import pubsub` gives; there are others of that name."""
    try:
        return bool(distribution("formix-pubsub"))
    except PackageNotFoundError:
        return False


def _formix(label: str, receive: Receive, count: int) -> tuple[Rival, ...]:
    contestant: Contestant = partial(messages, FORMIX, receive=receive, count=count)
    return (Rival(f"formix-pubsub, {label}", contestant),) if formix_is_available() else ()


def _formix_latency() -> tuple[Rival, ...]:
    contestant: Contestant = partial(round_trips, FORMIX, place=apart, count=20)
    return (Rival("formix-pubsub", contestant),) if formix_is_available() else ()


@contextmanager
def messages(module: str, scale: float, receive: Receive, count: int) -> Iterator[Measure]:
    """Messages per second from one process to another."""
    with directory() as home, Child(publish_bytes, module, home) as sender, Child(receive, module, home) as receiver:
        yield lambda: stream([receiver], sender.ask, scaled(count, scale))


def _library(module: str, home: str) -> Any:
    """The library under test, at home in a place that both read from the environment."""
    os.environ["PUBSUB_HOME"] = home
    for name in ("PYMQ_HOME", "PYMQ_URL"):
        os.environ.pop(name, None)
    return importlib.import_module(module)


def publish_bytes(module: str, home: str) -> Program:
    """Publishes until as many messages as it is asked for were received; formix-pubsub fails to deliver one of some hundred."""
    publish, content = _library(module, home).publish, bytes(SMALL)
    count = yield
    while True:
        received = 0
        while received < count:
            received += publish("bench.stream", content)
        count = yield


def by_subscribe(module: str, home: str) -> Program:
    """Answers when its callback has read as many messages as it was asked for."""
    library = _library(module, home)
    with library.Channel(topic="bench.stream") as channel:
        answer: float | None = None
        while True:
            count = yield answer
            yield
            reader = Reader(count)
            with suppress(Done):
                library.subscribe(channel, reader.read)
            answer = perf_counter()


class Done(BaseException):
    """Ends a `subscribe`, which goes on after every Exception."""


class Reader:
    """Reads so many messages."""

    def __init__(self, count: int) -> None:
        self._missing = count

    def read(self, message: Any) -> None:
        """Raises Done with the last of them."""
        assert len(message.content) == SMALL
        self._missing -= 1
        if not self._missing:
            raise Done


def by_fetch(module: str, home: str) -> Program:
    """Answers when it has fetched as many messages as it was asked for."""
    library = _library(module, home)
    fetch = library.fetch
    with library.Channel(topic="bench.stream") as channel:
        answer: float | None = None
        while True:
            missing = yield answer
            yield
            while missing:
                message = fetch(channel)
                if message is not None:
                    assert len(message.content) == SMALL
                    missing -= 1
            answer = perf_counter()


@contextmanager
def round_trips(module: str, scale: float, place: Callable[[], Processors], count: int) -> Iterator[Measure]:
    """The median of a message to another process and one back, in microseconds."""
    with (
        directory() as home,
        conversation(echo, measure_echoes, (module, home), place=place, figure=LATENCY, count=scaled(count, scale)) as measure,
    ):
        yield measure


def echo(module: str, home: str) -> Program:
    """Sends back what it gets, until that is nothing."""
    library = _library(module, home)

    def handle(message: Any) -> None:
        if not message.content:
            raise Done
        library.publish("bench.back", message.content)

    with library.Channel(topic="bench.there") as channel:
        yield
        with suppress(Done):
            library.subscribe(channel, handle)


def measure_echoes(module: str, home: str) -> Program:
    """Answers with the median of as many round trips as it is asked for, and how many there were in a second."""
    library, content = _library(module, home), bytes(SMALL)
    try:
        with library.Channel(topic="bench.back") as channel:
            count = yield
            while True:
                times: list[float] = []
                begin = last = perf_counter()

                def handle(message: Any) -> None:
                    nonlocal last
                    times.append(perf_counter() - last)  # noqa: B023 - called before the next turn only
                    if len(times) == count:  # noqa: B023
                        raise Done
                    last = perf_counter()
                    library.publish("bench.there", content)

                library.publish("bench.there", content)
                with suppress(Done):
                    library.subscribe(channel, handle)
                count = yield statistics.median(times) * 1e6, count / (perf_counter() - begin)
    finally:
        library.publish("bench.there", b"")
