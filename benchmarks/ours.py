"""pymq through its public API: default settings, every check on, separate processes."""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter, sleep, time
from typing import Any

from benchmarks.contest import Measure, Skipped
from benchmarks.events import ORDER, TRADE, Receipt, Trade, settle
from benchmarks.measuring import Processors, bursts, calls, conversation, directory, scaled, started, stream
from benchmarks.processes import PATIENCE, Child, Program
from pymq import EventBus
from pymq.provider.shm import ShmConfig
from pymq.provider.simple import SimpleConfig

SPIN = 0.0001
"""Seconds that a waiting thread looks again before it blocks, in the rows that say `spin`."""


@contextmanager
def bus(spin: float | None = None) -> Iterator[tuple[EventBus, ShmConfig]]:
    """A bus of this process in a home of its own, and its config for others."""
    with directory() as home:
        config = ShmConfig(home=home, spin=spin)
        with EventBus(config) as opened:
            yield opened, config


def frame_size() -> int:
    """How many bytes of an event a publish hands to its provider: the size of the floor's frames."""
    sizes: list[int] = []

    class Measured(SimpleConfig):
        def create(self) -> Any:
            provider = super().create()
            publish = provider.publish

            def measured(topics: Sequence[str], message: bytes, **options: Any) -> int | None:
                sizes.append(len(message))
                return publish(topics, message, **options)

            setattr(provider, "publish", measured)  # noqa: B010 - a method, replaced on purpose
            return provider

    with EventBus(Measured("frame size")) as measured:
        measured.publish(TRADE)
    return sizes[-1]


class Counter:
    """A handler that counts: `wait` gives the moment of the last of those that were expected."""

    def __init__(self) -> None:
        self._missing = 0
        self._finished: queue.SimpleQueue[float] = queue.SimpleQueue()

    def expect(self, count: int) -> None:
        """How many are to come; before they are sent."""
        self._missing = count

    def count(self) -> None:
        """One has come."""
        self._missing -= 1
        if not self._missing:
            self._finished.put(perf_counter())

    def wait(self) -> float:
        """Raises queue.Empty when one was lost."""
        return self._finished.get(timeout=PATIENCE * 0.9)


def _publisher(bus: EventBus, event: object, channel: str | None = None) -> Callable[[int], None]:
    def send(count: int) -> None:
        publish = bus.publish
        if channel is None:
            for _ in range(count):
                publish(event)
        else:
            for _ in range(count):
                publish(event, channel)

    return send


@contextmanager
def events(scale: float, subscribers: int = 1, count: int = 60_000) -> Iterator[Measure]:
    """Deliveries per second of a typed event to processes that subscribe to its class."""
    with bus() as (publisher, config), started(subscribers, subscribe, config) as receivers:
        yield lambda: stream(receivers, _publisher(publisher, TRADE), scaled(count, scale))


@contextmanager
def group(scale: float, count: int) -> Iterator[Measure]:
    """Events per second through a consumer group of one member, handled and acked."""
    with bus() as (publisher, config), started(1, subscribe, config, "bench") as receivers:
        yield lambda: stream(receivers, _publisher(publisher, TRADE), scaled(count, scale))


@contextmanager
def publish_cost(scale: float, subscribers: int = 1, crowd: bool = False) -> Iterator[Measure]:
    """Microseconds of one publish while the subscribers keep up; with a crowd of other channels and patterns, if asked."""
    with (
        bus() as (publisher, config),
        started(subscribers, subscribe, config) as receivers,
        started(1 if crowd else 0, subscribe_crowd, config),
    ):
        yield lambda: bursts(receivers, _publisher(publisher, TRADE), scaled(100, scale))


@contextmanager
def payloads(scale: float, size: int, count: int) -> Iterator[Measure]:
    """`bytes` of that size per second, by a channel."""
    with bus() as (publisher, config), started(1, subscribe_bytes, config) as receivers:
        yield lambda: stream(receivers, _publisher(publisher, bytes(size), "payloads"), scaled(count, scale))


def subscribe(config: ShmConfig, group: str | None = None) -> Program:
    """Handles trades; answers when it has handled as many as it was asked for."""
    counter = Counter()

    def handle(event: Trade) -> None:
        counter.count()

    with EventBus(config) as bus:
        bus.subscribe(handle, group=group)
        yield from _counted(counter)


def subscribe_bytes(config: ShmConfig) -> Program:
    """The same with payloads."""
    counter = Counter()

    def handle(payload: bytes) -> None:
        counter.count()

    with EventBus(config) as bus:
        bus.subscribe(handle, "payloads")
        yield from _counted(counter)


def _counted(counter: Counter) -> Program:
    answer: float | None = None
    while True:
        counter.expect((yield answer))
        yield
        answer = counter.wait()


def subscribe_crowd(config: ShmConfig) -> Program:
    """Subscribes to 1,000 channels and 100 patterns on which nothing is published."""
    with EventBus(config) as bus:
        for number in range(1000):
            bus.subscribe(_ignore, f"channel/{number}")
        for number in range(100):
            bus.subscribe(_ignore, f"sensors/{number}/*", pattern=True)
        yield


def _ignore(value: Any) -> None:
    """Never called."""


@contextmanager
def queue_items(scale: float, item: object, count: int) -> Iterator[Measure]:
    """Items per second, put by one process and got by another."""
    with bus() as (producer, config):
        items = producer.queue("items")

        def send(number: int) -> None:
            put = items.put
            for _ in range(number):
                put(item)

        with Child(get_items, config, type(item)) as consumer:
            yield lambda: stream([consumer], send, scaled(count, scale))


def get_items(config: ShmConfig, cls: type) -> Program:
    """Gets as many items as it is asked for."""
    with EventBus(config) as bus:
        get, answer = bus.queue("items", type=cls).get, None
        while True:
            count = yield answer
            yield
            for _ in range(count):
                get()
            answer = perf_counter()


@contextmanager
def remote_calls(
    scale: float, place: Callable[[], Processors], figure: int, count: int, spin: float | None = None
) -> Iterator[Measure]:
    """Typed round trips to a remote function."""
    with directory() as home:
        config = ShmConfig(home=home, spin=spin)
        with conversation(serve, call, (config,), place=place, figure=figure, count=scaled(count, scale)) as measure:
            yield measure


def serve(config: ShmConfig) -> Program:
    """Exposes `settle`."""
    with EventBus(config) as bus:
        bus.expose(settle)
        while True:
            yield


def call(config: ShmConfig) -> Program:
    """Calls it as often as it is asked to."""
    with EventBus(config) as bus:
        stub = bus.stub(settle)
        assert stub(ORDER) == Receipt(17, 28.5)
        yield from calls(lambda: stub(ORDER))


_IMPORT = """
import sys, time
before = set(sys.modules)
start = time.perf_counter()
import pymq
print((time.perf_counter() - start) * 1e3)
print(len({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names - {"pymq"}))
"""


@contextmanager
def importing(scale: float, line: int) -> Iterator[Measure]:
    """What `import pymq` takes in a fresh interpreter that finds it compiled: milliseconds (line 0), packages outside the standard
    library (1).
    """
    with directory() as home:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": home}

        def measure() -> float:
            program = [sys.executable, "-c", _IMPORT]
            said = subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout
            return float(said.split()[line])

        measure()
        yield measure


@contextmanager
def idle_calls(scale: float) -> Iterator[Measure]:
    """System calls that all threads of an idle bus make in five seconds, seen by strace."""
    if shutil.which("strace") is None:
        raise Skipped("strace is not installed")
    with directory() as home, Child(idle, ShmConfig(home=home)) as child:
        sleep(0.5)  # until every thread has gone to sleep
        yield lambda: _traced(child.pid, max(1.0, 5.0 * scale), f"{home}/trace")


def idle(config: ShmConfig) -> Program:
    """Ten subscriptions, three remotes, a thread that waits for an item."""
    with EventBus(config) as bus:
        for number in range(10):
            bus.subscribe(_ignore, f"channel/{number}")
        for name in ("first", "second", "third"):
            bus.expose(settle, name)
        threading.Thread(target=_get_until_closed, args=(bus,), daemon=True).start()
        yield


def _get_until_closed(bus: EventBus) -> None:
    try:
        bus.queue("never").get()
    except Exception:
        return  # the bus was closed: that is how this thread ends


def _traced(pid: int | None, seconds: float, path: str) -> int:
    """The calls that began in so many seconds, half a second after the tracer came; its coming and going cause some."""
    tracer = subprocess.Popen(["strace", "-f", "-ttt", "-o", path, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    if "attached" not in (said := tracer.stderr.readline()):
        tracer.wait()
        raise Skipped(f"strace may not trace here: {said.strip()}")
    first = time() + 0.5
    sleep(seconds + 1)
    tracer.terminate()
    tracer.communicate()
    with open(path) as lines:
        began = [float(found[1]) for line in lines if (found := re.match(r"\d+ +(\d+\.\d+) ", line))]
    return sum(first <= moment <= first + seconds for moment in began)
