"""A lock of a shared queue: `flock`, announced in a word of the mapped state, so that waiters look instead of being refused."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from fcntl import LOCK_UN, flock
from typing import TypeVar

from pymq.exceptions import ProviderError, PymqError
from pymq.provider._shm.files import EXCLUSIVE_NOW, Lock, close_file, interrupted, is_of_a_handler, translated

Result = TypeVar("Result")

_FAILURES = (OSError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)
"""What is met in damaged or closed files. All else passes as it is: our own errors, and what signal handlers raise."""
_NO_DAMAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE)
_TRIES, _LOOKS = 4, 100  # each look takes 0.1 us, a holder 3 us


class Guard(Lock):
    """A lock of the queue; what fails while it is held, because of a full disk or damaged files, becomes a ProviderError.

    `busy` is the word of the state that says that it is taken.
    """

    def __init__(self, fd: int, path: str, busy: int) -> None:
        super().__init__(fd)
        self.path = path
        self.busy = busy

    def refusal(self) -> ProviderError:
        return closed() if self.fd < 0 else interrupted()

    def __exit__(self, *error: object) -> None:
        Lock.__exit__(self)
        if isinstance(error[1], _FAILURES) and not is_of_a_handler(error[1]):
            raise self.explained(error[1])

    def run(self, words: memoryview, action: Callable[..., Result], *args: object) -> Result:
        """`with self: return action(*args)` in less than half the time, which would be a quarter of a put; announced in a word that
        others watch, since a refused flock costs an exception (2 us).
        """
        busy = self.busy
        try:
            self.mutex.acquire()
            if self.is_held:
                raise self.refusal()
            try:
                self.is_held = True
                if words[busy]:
                    self._await_turn(words)
                words[busy] = 1
                try:
                    flock(self.fd, EXCLUSIVE_NOW)
                except BlockingIOError:
                    self._contend(words)
                return action(*args)
            except _FAILURES as error:
                if is_of_a_handler(error):
                    raise
                raise self.explained(error)
            finally:
                self.is_held = False
                flock(self.fd, LOCK_UN)
                words[busy] = 0
        finally:
            try:
                self.mutex.release()
            except RuntimeError:
                pass  # a signal handler has raised while it was waited for

    def _await_turn(self, words: memoryview) -> None:
        for _ in range(_LOOKS):
            if not words[self.busy]:
                break

    def _contend(self, words: memoryview) -> None:
        for _ in range(_TRIES):
            self._await_turn(words)
            words[self.busy] = 1
            try:
                return flock(self.fd, EXCLUSIVE_NOW)
            except BlockingIOError:
                pass
        return self.wait()

    def close(self) -> None:
        """Every later use raises ProviderError, as if it were held for ever. With the mutex held."""
        close_file(self.fd)
        self.fd = -1
        self.is_held = True

    def explained(self, error: Exception) -> Exception:
        """What users are told about what failed while the lock was held."""
        if isinstance(error, PymqError):
            return error
        if isinstance(error, OSError) and error.errno in _NO_DAMAGE:
            result = translated(error, self.path)
        elif isinstance(error, FileNotFoundError) and not os.path.exists(self.path):
            result = ProviderError(f"{self.path} was removed: shut down, and start again")
        else:
            result = ProviderError(f"the queue's files are damaged, or it was closed ({error!r}); delete the queue")
        result.__cause__ = error
        return result


def closed() -> ProviderError:
    """What a use after `close` gets."""
    return ProviderError("the queue was closed")
