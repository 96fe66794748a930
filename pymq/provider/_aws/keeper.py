"""The keeper: one thread of a provider that does again and again what keeps things alive, and ends with the provider."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pymq.provider._aws.sweep import quietly


class Keeper:
    """Calls each job every `seconds`, from a thread that the first job starts. A job that fails is called again next time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._jobs: dict[Callable[[], object], str] = {}
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, job: Callable[[], object], what: str) -> None:
        """From now on; `what` names it where it fails."""
        with self._lock:
            self._jobs = {**self._jobs, job: what}
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="pymq-aws-keeper", daemon=True)
                thread.start()
                self._thread = thread

    def remove(self, job: Callable[[], object]) -> None:
        """No more; ignored where it is unknown."""
        with self._lock:
            self._jobs = {known: what for known, what in self._jobs.items() if known != job}

    def close(self) -> None:
        """No job is begun any more."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(self._seconds):
            for job, what in self._jobs.items():
                if not self._closed.is_set():
                    quietly(job, what)
