"""What the suite is written with: calls that may hang, other processes, and what these are asked to do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from queue import Full
from typing import Any, TypeVar

from pymq.provider import Config
from pymq.provider.base import Provider

T = TypeVar("T")

SIZES = (0, 1, 4095, 4096, 4097, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 1 << 20)
"""Where providers change their ways: nothing, a page and a pipe's atomic write, a pipe, more than that."""

FILL = b"." * 4000
END = b"no more"


@contextmanager
def raises(*expected: type[Exception], naming: str = "") -> Iterator[list[Any]]:
    """The block has to raise one of these, whose text has to name something; the error is in the list afterwards."""
    caught: list[Any] = []
    try:
        yield caught
    except expected as error:
        caught.append(error)
    assert caught, f"no {' or '.join(error.__name__ for error in expected)} was raised"
    assert naming in str(caught[0]), f"{caught[0]!r} does not name {naming}"


class Task:
    """A call in a thread of its own, that may hang without hanging the test."""

    def __init__(self, patience: float, function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]) -> None:
        self._patience = patience
        self._outcome: Callable[[], Any] = self._hangs
        self._thread = threading.Thread(target=self._run, args=(function, args, options), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]) -> None:
        try:
            value = function(*args, **options)
            self._outcome = lambda: value
        except BaseException as error:
            caught = error
            self._outcome = lambda: reraise(caught)

    def _hangs(self) -> None:
        raise AssertionError("a call did not return")

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def result(self, seconds: float | None = None) -> Any:
        """What the call returned or raised."""
        self._thread.join(self._patience if seconds is None else seconds)
        return self._outcome()


def reraise(error: BaseException) -> None:
    raise error


STARTING = 60.0
"""How many seconds an interpreter may take to start, on a busy machine: no promise of a provider's."""


class Process:
    """Another process with a provider of the same config, which calls functions with it as the first argument."""

    def __init__(self, config: Config, patience: float) -> None:
        ours, theirs = socket.socketpair()
        program = f"from pymq.testing._helpers import serve; serve({theirs.fileno()})"
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", program], pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": paths}
            )
        self._connection = Connection(ours.detach())
        self._patience = patience
        self._connection.send(config)
        try:
            self.result(self._patience + STARTING)
        except BaseException:
            self.kill()
            raise

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """What the function returned there."""
        self.begin(function, *args)
        result: T = self.result()
        return result

    def begin(self, function: Callable[..., Any], *args: Any) -> None:
        """Let it run there; `result` waits for it."""
        self._connection.send((function, args))

    def result(self, seconds: float | None = None) -> Any:
        """What it returned, an AssertionError with the traceback where it raised, or takes too long."""
        assert self._connection.poll(seconds or self._patience), "the other process did not answer"
        failure, value = self._connection.recv()
        assert not failure, f"in the other process: {failure}"
        return value

    def close(self) -> None:
        """Let it close its provider and end."""
        self._connection.close()
        try:
            self._popen.wait(self._patience)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
            raise

    def kill(self) -> None:
        """As `kill -9` does."""
        self._popen.kill()
        self.close()


def serve(fd: int) -> None:
    """The other process: until the connection ends, with which also a test that was killed ends it."""
    connection = Connection(fd)
    provider: Provider = connection.recv().create()
    provider.open()
    connection.send(("", "open"))
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            provider.close()
            return
        try:
            connection.send(("", function(provider, *args)))
        except Exception:
            connection.send((traceback.format_exc(), None))


def numbered(count: int, prefix: bytes = b"") -> list[bytes]:
    return [b"%s%06d" % (prefix, number) for number in range(count)]


def clock(provider: Provider) -> float:
    return provider.clock()


def declare(provider: Provider, queue: str) -> None:
    provider.declare(queue)


def bind_inbox(provider: Provider, inbox: str, topic: str) -> None:
    provider.declare(inbox, temporary=True)
    provider.bind(inbox, topic, exact=True)


def publish(provider: Provider, topics: list[str], message: bytes) -> int | None:
    return provider.publish(topics, message)


def publish_all(provider: Provider, topic: str, messages: Sequence[bytes]) -> None:
    for message in messages:
        provider.publish([topic], message)


def send_all(provider: Provider, queue: str, messages: Sequence[bytes]) -> None:
    for message in messages:
        provider.send(queue, message)


def receive(provider: Provider, queue: str, timeout: float, lease: float = 30.0) -> list[tuple[bytes, int]]:
    """Messages with their attempts: a receipt does not travel."""
    return [(message, receipt.attempt if receipt else 0) for message, receipt in provider.receive(queue, timeout, lease=lease)]


def consume(provider: Provider, queue: str, lease: float | None) -> list[bytes]:
    """What came before an END, acknowledged."""
    consumed = []
    while received := provider.receive(queue, 60, lease=lease):
        ((message, receipt),) = received
        if receipt is not None:
            provider.ack(receipt)
        if message == END:
            break
        consumed.append(message)
    return consumed


def put_until_full(provider: Provider, queue: str, maxsize: int) -> int:
    """How many there was room for."""
    count = 0
    try:
        while True:
            provider.send(queue, b"raced", maxsize=maxsize, timeout=0)
            count += 1
    except Full:
        return count
