"""What all contestants measure alike: streams of messages into other processes, bursts of them, and round trips."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

from benchmarks.contest import Measure, Skipped
from benchmarks.processes import Child, Program

BURST = 200
"""Frames of an event that fit into an empty pipe of 64 KiB, so that a writer of a burst never waits for its reader."""

Processors: TypeAlias = "tuple[int | None, int | None]"
"""Where the client runs and where the server; None leaves it to the kernel."""


@contextmanager
def directory() -> Iterator[str]:
    """A fresh directory in memory, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="pymq-bench-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        yield path


def apart() -> Processors:
    """Two processors."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise Skipped("this machine has one processor")
    return allowed[0], allowed[1]


def together() -> Processors:
    """Twice the same processor."""
    first = min(os.sched_getaffinity(0))
    return first, first


def stream(receivers: list[Child], send: Callable[[int], None], count: int) -> float:
    """Deliveries per second, from before the first send until the last receiver has handled the last message.

    A receiver is asked to expect so many, then to wait for them; it answers with the moment at which it had them all.
    """
    _expect(receivers, count)
    begin = perf_counter()
    send(count)
    end = max(receiver.hear() for receiver in receivers)
    return float(count * len(receivers) / (end - begin))


def bursts(receivers: list[Child], send: Callable[[int], None], rounds: int) -> float:
    """Microseconds per send while every receiver keeps up: bursts that fit into a pipe, each timed by itself; the median."""
    times = []
    for _ in range(rounds):
        _expect(receivers, BURST)
        begin = perf_counter()
        send(BURST)
        times.append(perf_counter() - begin)
        for receiver in receivers:
            receiver.hear()
    return statistics.median(times) / BURST * 1e6


def _expect(receivers: list[Child], count: int) -> None:
    for receiver in receivers:
        receiver.ask(count)  # answered: nothing that is sent from now on is missed
        receiver.tell()


@contextmanager
def started(count: int, program: Callable[..., Program], *args: object) -> Iterator[list[Child]]:
    """So many processes of one program, all ready."""
    with ExitStack() as stack:
        yield [stack.enter_context(Child(program, *args)) for _ in range(count)]


def timed(call: Callable[[], object], count: int) -> tuple[float, float]:
    """The median of a call in microseconds, and calls per second."""
    times = []
    begin = perf_counter()
    for _ in range(count):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return statistics.median(times) * 1e6, count / (perf_counter() - begin)


def calls(call: Callable[[], object]) -> Program:
    """A client's program: `timed`, as often as it is asked."""
    call()
    count = yield
    while True:
        count = yield timed(call, count)


LATENCY, RATE = 0, 1
"""What to take of `timed`."""


@contextmanager
def conversation(
    server: Callable[..., Program],
    client: Callable[..., Program],
    args: tuple[Any, ...],
    *,
    place: Callable[[], Processors],
    figure: int,
    count: int,
) -> Iterator[Measure]:
    """A client that calls a server: its median latency, or its calls per second."""
    near, far = place()
    with Child(server, *args, processor=far) as serving:
        serving.tell()
        with Child(client, *args, processor=near) as caller:
            yield lambda: float(caller.ask(count)[figure])


def scaled(count: int, scale: float) -> int:
    """A volume, never less than one."""
    return max(1, int(count * scale))


def fifo(path: Path | str) -> str:
    """A new FIFO."""
    os.mkfifo(path)
    return str(path)
