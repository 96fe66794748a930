"""What a provider would hold for one shared queue, and how its tests wait."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from pymq.provider._shm.files import Bells, Directory, Lock, close_file
from pymq.provider._shm.queue import SharedQueue

GUARD = 20.0


class Peer:
    """What a provider would hold for one queue: used as `with Peer(home) as peer: peer.queue.send(...)`."""

    def __init__(self, home: str, *, create: bool = True, max_bytes: int = 32 << 20, name: str = "jobs") -> None:
        root = Directory(home)
        bells = Directory("bells", root)
        self._lock = bells.open("lock", os.O_RDWR | os.O_CREAT)
        self.bells = Bells(bells, Lock(self._lock))
        self.directory = Directory(name, root)
        self._directories = root, bells, self.directory
        self.member = self.bells.borrow()
        self.stopped = False
        self.queue = SharedQueue(name, self.directory, self.bells, self.member.number, max_bytes, create)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.queue.close()
        self.bells.close()
        close_file(self._lock)
        for directory in self._directories:
            directory.close()

    def take(self, timeout: float | None = 0, limit: int = 1, lease: float | None = None, watch: tuple[int, ...] = ()) -> Any:
        return self.queue.receive(timeout, limit=limit, lease=lease, watch_fds=watch, stopped=lambda: self.stopped)

    def one(self, timeout: float | None = 0, lease: float | None = 30.0) -> Any:
        [delivery] = self.take(timeout, 1, lease)
        return delivery

    def messages(self, timeout: float | None = 0, limit: int = 1000, lease: float | None = None) -> list[bytes]:
        return [message for message, _ in self.take(timeout, limit, lease)]


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def finish(thread: threading.Thread) -> None:
    thread.join(GUARD)
    assert not thread.is_alive()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
