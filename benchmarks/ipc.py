"""`python -m benchmarks ipc`: the ipc provider beside a bare kernel queue of its size, and beside shm."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from time import perf_counter
from typing import Any

from benchmarks import ours
from benchmarks.contest import Measure, Rival, Row, Skipped
from benchmarks.events import TRADE
from benchmarks.measuring import LATENCY, Processors, apart, calls, conversation, directory, scaled, started, stream, together
from benchmarks.processes import Child, Program
from pymq import EventBus
from pymq.provider.ipc import IpcConfig

MESSAGES, MESSAGE_BYTES = 10, 1024


def rows() -> list[Row]:
    """What docs/providers/ipc.md says of its speed."""
    frame = ours.frame_size()
    return [
        Row(
            "ipc-events",
            "typed event through ipc",
            "events/s",
            events,
            (
                Rival(f"bare kernel queue, {frame} bytes", partial(queue_messages, size=frame), at_least=0.28),
                Rival("pymq with shm", partial(ours.events, count=30_000)),
            ),
        ),
        _calling("ipc-call", "typed call through ipc, two processors, p50", frame, apart, 1500),
        _calling("ipc-call-one", "typed call through ipc, one processor, p50", frame, together, 3000),
    ]


def _calling(name: str, title: str, frame: int, place: Callable[[], Processors], count: int) -> Row:
    bare = partial(ping_pong, size=frame, place=place, count=count)
    shm = partial(ours.remote_calls, place=place, figure=LATENCY, count=count)
    rivals = Rival("bare kernel queue ping-pong", bare, at_most=6), Rival("pymq with shm", shm)
    return Row(name, title, "us", partial(remote_calls, place=place, count=count), rivals)


@contextmanager
def events(scale: float, count: int = 30_000) -> Iterator[Measure]:
    """Deliveries per second of a typed event to a process that subscribes to its class."""
    with directory() as home, EventBus(IpcConfig(home=home)) as bus, started(1, ours.subscribe, IpcConfig(home=home)) as receivers:

        def send(number: int) -> None:
            publish = bus.publish
            for _ in range(number):
                publish(TRADE)

        yield lambda: stream(receivers, send, scaled(count, scale))


@contextmanager
def remote_calls(scale: float, place: Callable[[], Processors], count: int) -> Iterator[Measure]:
    """Typed round trips to a remote function."""
    with directory() as home:
        config = IpcConfig(home=home)
        with conversation(ours.serve, ours.call, (config,), place=place, figure=LATENCY, count=scaled(count, scale)) as measure:
            yield measure


@contextmanager
def queue_messages(scale: float, size: int, count: int = 60_000) -> Iterator[Measure]:
    """Messages per second through a bare kernel queue, sent and received blocking."""
    with _queues(1) as (name,), Child(count_messages, name) as receiver:
        queue = _open(name)

        def send(number: int) -> None:
            put, message = queue.send, bytes(size)
            for _ in range(number):
                put(message)

        yield lambda: stream([receiver], send, scaled(count, scale))
        queue.close()


def count_messages(name: str) -> Program:
    """Receives as many as it is asked for."""
    receive, answer = _open(name).receive, None
    while True:
        count = yield answer
        yield
        for _ in range(count):
            receive()
        answer = perf_counter()


@contextmanager
def ping_pong(scale: float, size: int, place: Callable[[], Processors], count: int) -> Iterator[Measure]:
    """Round trips of such a message through two bare kernel queues."""
    with (
        _queues(2) as names,
        conversation(echo, ask, (*names, size), place=place, figure=LATENCY, count=scaled(count, scale)) as measure,
    ):
        yield measure


def echo(there: str, back: str, size: int) -> Program:
    """Sends back what it receives, until that is empty."""
    yield
    came, goes = _open(there), _open(back)
    while message := came.receive()[0]:
        goes.send(message)


def ask(there: str, back: str, size: int) -> Program:
    """Measures as many round trips as it is asked for."""
    goes, comes = _open(there), _open(back)
    message = bytes(size)

    def call() -> Any:
        goes.send(message)
        return comes.receive()

    try:
        yield from calls(call)
    finally:
        goes.send(b"")


@contextmanager
def _queues(count: int) -> Iterator[tuple[str, ...]]:
    """New kernel queues, removed afterwards."""
    try:
        posix_ipc = import_module("posix_ipc")
    except ImportError:
        raise Skipped("posix_ipc is not installed") from None
    names = tuple(f"/pymq-bench-{os.getpid()}-{secrets.token_hex(4)}" for _ in range(count))
    for name in names:
        posix_ipc.MessageQueue(name, posix_ipc.O_CREX, max_messages=MESSAGES, max_message_size=MESSAGE_BYTES).close()
    try:
        yield names
    finally:
        for name in names:
            posix_ipc.unlink_message_queue(name)


def _open(name: str) -> Any:
    return import_module("posix_ipc").MessageQueue(name)
