"""The keeper: does again and again what keeps things alive, and ends with the provider."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pymq.provider._aws.sweep import quietly


class Keeper:
    """Calls each job every `seconds`, from a thread of its own: a call that hangs must not hold up what says that this process lives.

    A job that fails is called again next time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends: dict[Callable[[], object], threading.Event] = {}
        self._closed = False
        self._lock = threading.Lock()

    def add(self, job: Callable[[], object], what: str) -> None:
        """From now on, unless it is known; `what` names it where it fails."""
        with self._lock:
            if not self._closed and job not in self._ends:
                end = threading.Event()
                threading.Thread(target=self._run, args=(job, what, end), name="pymq-aws-keeper", daemon=True).start()
                self._ends[job] = end

    def remove(self, job: Callable[[], object]) -> None:
        """No more; ignored where it is unknown."""
        with self._lock:
            if (end := self._ends.pop(job, None)) is not None:
                end.set()

    def close(self) -> None:
        """No job is begun any more."""
        with self._lock:
            self._closed = True
            for end in self._ends.values():
                end.set()

    def _run(self, job: Callable[[], object], what: str, end: threading.Event) -> None:
        while not end.wait(self._seconds):
            quietly(job, what)
