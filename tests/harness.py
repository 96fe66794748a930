"""Participants for behaviour tests: a bus in this process, or a real process that obeys this one.

A test drives both through one interface, so that each behaviour is written once:

    alice, bob = peers(2)
    bob.subscribe(shop.orders)                   # a handler that says what it gets
    assert alice.publish(OrderPlaced(1)) == 1
    assert bob.hear() == OrderPlaced(1)

What a participant runs are functions of the modules in `programs`, called with the participant itself (`Participant`).
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import Pipe
from pathlib import Path
from typing import Any
from unittest.mock import ANY

from programs.participant import Participant, in_thread, verbs

PROGRAMS = Path(__file__).parent / "provider" / "programs"
ROOT = Path(__file__).parents[1]
GUARD = 10.0
"""Seconds after which a test that waits for something has failed; nothing takes so long."""


class Heard:
    """What was said, in order; tests wait for it instead of sleeping."""

    def __init__(self) -> None:
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __call__(self, item: Any) -> None:
        self._said.put(item)

    def next(self, timeout: float = GUARD) -> Any:
        try:
            return self._said.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"nothing was heard for {timeout} s") from None

    def take(self, count: int) -> list[Any]:
        return [self.next() for _ in range(count)]

    def waiting(self) -> int:
        """How much has been said and not been heard yet."""
        return self._said.qsize()

    def rest(self) -> list[Any]:
        """All of that."""
        return [self._said.get() for _ in range(self.waiting())]


class Peer:
    """The verbs of a participant, wherever it lives."""

    heard: Heard

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.begin(function, *args, **kwargs).result(GUARD)

    def begin(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """The same without waiting: for calls that block."""
        raise NotImplementedError

    def hear(self, timeout: float = GUARD) -> Any:
        return self.heard.next(timeout)

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        """How many were reached; where the provider cannot know, what equals any number."""
        reached = self.call(verbs.publish, *args, **kwargs)
        return ANY if reached is None else reached

    def subscribe(self, make_handler: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.call(verbs.subscribe, make_handler, *args, **kwargs)

    def unsubscribe(self, make_handler: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.call(verbs.unsubscribe, make_handler, *args, **kwargs)

    def expose(self, make_remote: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.call(verbs.expose, make_remote, *args, **kwargs)

    def queue(self, name: str, verb: str, *args: Any, **kwargs: Any) -> Any:
        return self.call(verbs.queue, name, verb, *args, **kwargs)

    def release(self) -> None:
        """Let the handlers that wait for it go on."""
        self.call(verbs.release)


class LocalPeer(Peer):
    """A participant in this process."""

    def __init__(self, config: Any) -> None:
        self.heard = Heard()
        self.participant = Participant(self.heard)
        self.participant.open(config)

    def begin(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        return in_thread(function, self.participant, *args, **kwargs)

    def close(self) -> None:
        self.participant.close()


class ProcessPeer(Peer):
    """A participant in a process of its own, which serves one test after the other unless it was hurt."""

    def __init__(self) -> None:
        self.heard = Heard()
        self.hurt = False
        self._futures: dict[int, Future[Any]] = {}
        self._numbers = iter(range(1 << 62))
        self._connection, theirs = Pipe()
        self.process = start_program("puppet.py", str(theirs.fileno()), pass_fds=[theirs.fileno()], stdout=None, stderr=None)
        theirs.close()
        self._reader = threading.Thread(target=self._read, name="harness", daemon=True)
        self._reader.start()

    def begin(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        number, future = next(self._numbers), Future[Any]()
        self._futures[number] = future
        self._connection.send((number, function, args, kwargs))
        return future

    def _read(self) -> None:
        while True:
            try:
                number, good, value = self._connection.recv()
            except (EOFError, OSError):
                return self._lose()
            if number is None:
                self.heard(value)
            elif good:
                self._futures.pop(number).set_result(value)
            else:
                self._futures.pop(number).set_exception(value)

    def _lose(self) -> None:
        for future in self._futures.values():
            future.set_exception(ChildProcessError("the participant's process has ended"))

    def kill(self) -> None:
        self.hurt = True
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGSTOP, and wait until it has stopped."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Shut its bus down; it is ready for the next test."""
        if not self.hurt:
            self.resume()
            try:
                self.call(verbs.close)
            except BaseException:
                self.kill()
                raise
        self.heard.rest()

    def end(self) -> None:
        self.kill()
        self._reader.join()
        self._connection.close()


def start_program(name: str | Path, *args: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    """Run one of `programs` (or a file) as a program of its own, with its output piped."""
    path = [str(PROGRAMS.parent), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / name), *args],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **(env or {})},
        text=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def run_program(name: str | Path, *args: str, timeout: float = 60, **options: Any) -> list[str]:
    """The lines that a program printed; it must have ended by itself, well and without a word on stderr."""
    with start_program(name, *args, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    assert (process.returncode, err) == (0, ""), f"exit {process.returncode}, stdout:\n{out}\nstderr:\n{err}"
    return out.splitlines()


def eventually(check: Callable[[], Any], timeout: float = GUARD) -> Any:
    """The first true value of `check`: for what has no event to wait for (files, threads, statistics)."""
    deadline = time.monotonic() + timeout
    while not (found := check()):
        assert time.monotonic() < deadline, f"still {found!r} after {timeout} s"
        time.sleep(0.005)
    return found
