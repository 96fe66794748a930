"""The floors: the same bytes through what the kernel and the standard library offer, with nothing around them."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from benchmarks.contest import Measure
from benchmarks.measuring import Processors, bursts, calls, conversation, directory, fifo, scaled, stream
from benchmarks.processes import Child, Program

PIPE_BYTES = 256 << 10
"""What pymq asks for as well: a floor with a smaller pipe would flatter it."""


@contextmanager
def fifo_frames(scale: float, size: int) -> Iterator[Measure]:
    """Frames per second through a bare FIFO, one write each, counted in bytes by their reader."""
    with _written_fifo(size) as (reader, send):
        yield lambda: stream([reader], send, scaled(150_000, scale))


@contextmanager
def fifo_write(scale: float, size: int) -> Iterator[Measure]:
    """Microseconds of one write of such a frame into a FIFO with room."""
    with _written_fifo(size) as (reader, send):
        yield lambda: bursts([reader], send, scaled(100, scale))


@contextmanager
def _written_fifo(size: int) -> Iterator[tuple[Child, Callable[[int], None]]]:
    """The process that reads, and what writes so many frames to it."""
    with directory() as home, Child(read_frames, fifo(f"{home}/frames"), size) as reader:
        fd = os.open(f"{home}/frames", os.O_WRONLY)
        frame = bytes(size)

        def send(count: int) -> None:
            write = os.write
            for _ in range(count):
                write(fd, frame)

        try:
            yield reader, send
        finally:
            os.close(fd)


def read_frames(path: str, size: int) -> Program:
    """Reads the FIFO; answers when it has counted the bytes of as many frames as it was asked for."""
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    answer: float | None = None
    while True:
        missing = (yield answer) * size
        yield
        while missing:
            missing -= len(os.read(fd, PIPE_BYTES))
        answer = perf_counter()


@contextmanager
def ping_pong(scale: float, size: int, place: Callable[[], Processors], figure: int, count: int) -> Iterator[Measure]:
    """Round trips of such a frame through two bare FIFOs."""
    with directory() as home:
        paths = fifo(f"{home}/there"), fifo(f"{home}/back"), size
        with conversation(echo_frames, send_frames, paths, place=place, figure=figure, count=scaled(count, scale)) as measure:
            yield measure


def echo_frames(there: str, back: str, size: int) -> Program:
    """Sends back what it reads, until the other end is closed."""
    yield
    came, goes = os.open(there, os.O_RDONLY), os.open(back, os.O_WRONLY)
    read, write = os.read, os.write
    while frame := read(came, size):
        write(goes, frame)


def send_frames(there: str, back: str, size: int) -> Program:
    """Measures as many round trips as it is asked for."""
    goes, comes = os.open(there, os.O_WRONLY), os.open(back, os.O_RDONLY)
    frame = bytes(size)

    def call() -> bytes:
        os.write(goes, frame)
        return os.read(comes, size)

    yield from calls(call)


@contextmanager
def multiprocessing_queue(scale: float, item: object, count: int) -> Iterator[Measure]:
    """Items per second through multiprocessing.Queue, from one process to another."""
    items: Any = multiprocessing.get_context("spawn").Queue()

    def send(number: int) -> None:
        put = items.put
        for _ in range(number):
            put(item)

    with Child(get_items, items) as consumer:
        yield lambda: stream([consumer], send, scaled(count, scale))
    items.close()
    items.join_thread()


def get_items(items: Any) -> Program:
    """Gets as many items as it is asked for."""
    answer: float | None = None
    while True:
        count = yield answer
        yield
        for _ in range(count):
            items.get()
        answer = perf_counter()
