"""The schedule of a bus: delayed events that wait in memory for their time."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable

from pymq.dispatch import Task, persist


class Schedule:
    """Messages that are not due yet: one thread hands each over at its time, and sleeps without end while there is none."""

    def __init__(self, hand_over: Callable[[Task, bytes], None]) -> None:
        self._hand_over = hand_over
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, int, Task, bytes]] = []
        self._number = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, seconds: float, task: Task, message: bytes) -> None:
        """Hand it over in so many seconds."""
        with self._changed:
            heapq.heappush(self._waiting, (time.monotonic() + seconds, next(self._number), task, message))
            if self._thread is None:
                thread = threading.Thread(target=persist, args=[self._run], name="pymq-schedule", daemon=True)
                thread.start()
                self._thread = thread  # now: where no thread is to be had, the next event starts it
            self._changed.notify()

    def _run(self) -> None:
        while (due := self._next()) is not None:
            self._hand_over(*due[2:])
            with self._changed:  # only now: what is neither here nor there would be in flight and not be seen
                self._waiting.remove(due)
                heapq.heapify(self._waiting)

    def _next(self) -> tuple[float, int, Task, bytes] | None:
        with self._changed:
            while not self._closed:
                left = self._waiting[0][0] - time.monotonic() if self._waiting else threading.TIMEOUT_MAX
                if left <= 0:
                    return self._waiting[0]
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
        return None

    def close(self) -> None:
        """Forget what is not due yet."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1)
