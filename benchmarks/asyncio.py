"""`python -m benchmarks asyncio`: what it costs to await, beside the same call without."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import pymq.asyncio
from benchmarks import ours
from benchmarks.contest import Measure, Rival, Row
from benchmarks.events import ORDER, TRADE, Receipt, settle
from benchmarks.measuring import BURST, LATENCY, Processors, apart, conversation, directory, scaled, started, together
from benchmarks.processes import Program
from pymq.provider.shm import ShmConfig

T = TypeVar("T")


def rows() -> list[Row]:
    """What docs/asyncio.md says of its speed."""
    return [
        Row(
            "asyncio-publish",
            "one awaited publish",
            "us",
            publish_cost,
            (Rival("pymq without await", ours.publish_cost, at_most=1.3),),
        ),
        _calling("asyncio-call", "awaited call, two processors, p50", apart),
        _calling("asyncio-call-one", "awaited call, one processor, p50", together),
    ]


def _calling(name: str, title: str, place: Callable[[], Processors]) -> Row:
    sync = partial(ours.remote_calls, place=place, figure=LATENCY, count=1500)
    return Row(name, title, "us", partial(remote_calls, place=place), (Rival("pymq without await", sync, at_most=2),))


@contextmanager
def loop() -> Iterator[Callable[[Coroutine[Any, Any, T]], T]]:
    """A loop's `run_until_complete`."""
    made = asyncio.new_event_loop()
    yield made.run_until_complete
    made.close()


@contextmanager
def publish_cost(scale: float) -> Iterator[Measure]:
    """Microseconds of one awaited publish while the subscriber keeps up: bursts as `measuring.bursts` has them."""
    with directory() as home, loop() as run:
        config = ShmConfig(home=home)
        bus = pymq.asyncio.connect(config)
        run(bus.start())
        with started(1, ours.subscribe, config) as (receiver,):

            async def burst() -> float:
                begin = perf_counter()
                for _ in range(BURST):
                    await bus.publish(TRADE)
                return perf_counter() - begin

            def measure() -> float:
                times = []
                for _ in range(scaled(100, scale)):
                    receiver.ask(BURST)
                    receiver.tell()
                    times.append(run(burst()))
                    receiver.hear()
                return statistics.median(times) / BURST * 1e6

            yield measure
        run(bus.shutdown())


@contextmanager
def remote_calls(scale: float, place: Callable[[], Processors], count: int = 1500) -> Iterator[Measure]:
    """Microseconds of a typed round trip from a loop to a process that serves it without one, as the sync client's does."""
    with (
        directory() as home,
        conversation(ours.serve, call, (ShmConfig(home=home),), place=place, figure=LATENCY, count=scaled(count, scale)) as measure,
    ):
        yield measure


def call(config: ShmConfig) -> Program:
    """Answers with the median of so many awaited calls."""
    with loop() as run:
        bus = pymq.asyncio.connect(config)
        run(bus.start())
        stub = bus.stub(settle)

        async def timed(count: int) -> tuple[float, float]:
            times, begin = [], perf_counter()
            for _ in range(count):
                start = perf_counter()
                receipt: Receipt = await stub(ORDER)
                times.append(perf_counter() - start)
            assert receipt.order_id == ORDER.order_id
            return statistics.median(times) * 1e6, count / (perf_counter() - begin)

        count = yield run(timed(1))
        try:
            while True:
                count = yield run(timed(count))
        finally:
            run(bus.shutdown())
