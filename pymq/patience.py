"""Patience: whether to look again and again for an answer before sleeping: to wake takes 30 to 80 us, several times what that does."""

from __future__ import annotations

MOMENT = 0.0001
"""For how many seconds: until the other has woken, and then its answer."""
_MOST_FAILURES = 10


class Patience:
    """How long to look again in a conversation: for a moment, while that pays.

    Where it was in vain, as on a single processor, it takes twice as many short waits as the last time until it is tried again. How
    many processors this process may use tells nothing: two that are pinned, each to its own, gain the most.
    """

    def __init__(self) -> None:
        self.failures: int = 0
        """How often in a row it was in vain."""
        self._unwise = 1
        self.seconds: float = 0.0
        """How long to look again this time."""

    def learn(self, looked: bool, in_vain: bool, waited: float) -> None:
        """How it went: whether it was looked again, whether in vain, and how many seconds the answer took in all."""
        if in_vain:
            self.failures = min(self.failures + 1, _MOST_FAILURES)
            self._unwise = 1 << self.failures
        elif looked:
            self.failures = 0
        elif waited < 2 * MOMENT:
            self._unwise = max(0, self._unwise - 1)
        self.seconds = 0.0 if self._unwise else MOMENT
