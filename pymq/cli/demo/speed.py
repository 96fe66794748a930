"""Measures this machine: events per second and the time of a call, both to another process."""

from __future__ import annotations

import queue
import statistics
import time

import pymq
from pymq.cli.demo.shop import Counted, Tick

TICKS = 20_000
CALLING_SECONDS = 0.5

counted: queue.Queue[Counted] = queue.Queue()


@pymq.subscriber
def on_counted(event: Counted) -> None:
    """The other process has them all."""
    counted.put(event)


def events_per_second() -> float:
    """From the first publish until the last handler has run; fails when one tick is lost."""
    begin = time.monotonic()
    for number in range(TICKS):
        pymq.publish(Tick(number, "a lamp"))
    return TICKS / (counted.get(timeout=5).moment - begin)


def call_microseconds() -> float:
    """The median."""
    echo = pymq.stub("echo", timeout=2)
    times: list[float] = []
    end = time.monotonic() + CALLING_SECONDS
    while time.monotonic() < end:
        begin = time.perf_counter()
        echo(Tick(len(times), "a lamp"))
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    pymq.init()
    print(f"events: {events_per_second():,.0f} a second, from one process to another")
    print(f"remote calls: {call_microseconds():,.0f} microseconds each, there and back")
