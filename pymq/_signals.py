"""SIGTERM and SIGINT end a loop that sleeps in the main thread, in good order.

Python runs a handler between two steps of its own, so one that comes just before the thread begins to sleep would wait until
something else wakes it. But C writes the number of the signal to a pipe at once, and another thread, which sleeps there, ends the
first one's sleep.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_END = b"\0"  # no signal has that number

Caught: TypeAlias = "list[tuple[int, Any]]"
"""The number of each signal that came, and the frame it met."""

_replaced: list[dict[int, Any]] = []
"""The handlers that were there before, the program's own first: `caught_signals` may be nested."""


@contextmanager
def caught_signals(wake: Callable[[], None]) -> Iterator[Caught]:
    """A signal is added to the list instead of being handled, and then `wake` is called from another thread.

    At the end the former handlers are put back, and called for what was caught; Python's own for Ctrl-C is not, since it would raise.
    Who hears of signals through a descriptor, as an event loop does, hears of all that come meanwhile.
    Does nothing where signals cannot be caught: in any thread but the main one.
    """
    caught: Caught = []
    try:
        former_fd = signal.set_wakeup_fd(-1)
    except ValueError:
        yield caught
        return
    former: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        with _waker(wake, former_fd):
            _replaced.append(former)
            for number in _SIGNALS:
                signal.signal(number, lambda *args: caught.append(args))
            try:
                yield caught
            finally:
                if _replaced:  # else this is a forked child
                    _put_back(_replaced.pop())
    finally:
        for came, frame in caught:
            handler = former[came]
            if callable(handler) and handler is not signal.default_int_handler:
                handler(came, frame)


@contextmanager
def _waker(wake: Callable[[], None], former_fd: int) -> Iterator[None]:
    owner = os.getpid()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_wake_at_signals, args=(reader, wake, former_fd), name="pymq-signals", daemon=True)
    thread.start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        if owner == os.getpid():
            signal.set_wakeup_fd(former_fd)
            os.write(writer, _END)
            thread.join()
        os.close(reader)
        os.close(writer)


def _wake_at_signals(reader: int, wake: Callable[[], None], former_fd: int) -> None:
    while (number := os.read(reader, 1)) != _END:
        wake()
        if former_fd >= 0:
            with suppress(OSError):  # it is full, or closed
                os.write(former_fd, number)


def _put_back(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _put_back_in_child() -> None:
    """A child that a callback forks ends at a signal as any other, and does not write into its parent's pipe."""
    if _replaced:
        signal.set_wakeup_fd(-1)
        _put_back(_replaced[0])
        _replaced.clear()


os.register_at_fork(after_in_child=_put_back_in_child)
