"""A lock of a shared queue: a `flock`; or, for who has it to himself, a flag in the mapped state. That is called a *biased* lock.

The two calls of a `flock` were a quarter of a put. So a process that takes the lock again and again, with nobody in between, makes it
its own: the word BIAS names its *flag* then, which only it raises. It raises the flag, looks whether BIAS still names it, and
lowers the flag when it is done. Whoever else wants the lock takes the `flock`, marks BIAS as revoked, and waits until that flag is
down, or its owner gone. Both store first and look then, with a full fence in between, so that one of them at least sees the other
(Dekker's way). While several use it, it is a `flock`, announced in the word TAKEN, so that waiters look instead of being refused.

Whose flag it is says a lock of the kernel's on one byte of the file, that of the flag's number. It ends when the owner's descriptor is
closed, as the `flock` would: with his process, and not before the last thread that may be inside. A name in a directory, such as that
of a bell, may be gone before, or with the owner's death unseen. Who is killed with the flag up leaves what he would leave under the
`flock`: whatever stands between two stores.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import weakref
from collections.abc import Callable
from fcntl import F_OFD_GETLK, F_OFD_SETLK, F_UNLCK, F_WRLCK, LOCK_UN, fcntl, flock
from typing import TypeVar

from pymq.exceptions import ProviderError, PymqError
from pymq.provider._shm.files import (
    EXCLUSIVE_NOW,
    Lock,
    close_file,
    interrupted,
    is_of_a_handler,
    pass_on,
    patiently,
    translated,
)
from pymq.provider._shm.state import BIAS, FLAG_WORDS, FLAGS, GUARD_WORDS, IS_ORDERED, LAST, TAKEN

Result = TypeVar("Result")

_FAILURES = (OSError, ValueError, TypeError, LookupError, ArithmeticError, struct.error)
"""What is met in damaged or closed files. All else passes as it is: our own errors, and what signal handlers raise."""
_NO_DAMAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE)
_TRIES, _LOOKS = 4, 100  # each look takes 0.1 us, a holder 3 us
_TURNS = 16
"""After how many in a row it is biased: revoking costs about as much as it spares each time."""
_NEVER = -1 << 62
_REVOKED = 1 << 32
_BYTE = struct.Struct("hhqqi0q")
"""`struct flock`: of what kind, counted from the start, which byte, how many, whose."""

_guards: weakref.WeakSet[Guard] = weakref.WeakSet()


class Guard(Lock):
    """A lock of the queue; what fails while it is held, because of a full disk or damaged files, becomes a ProviderError.

    `place` is where its words in the state begin; before `share`, it is the bare lock of the file.
    """

    def __init__(self, fd: int, path: str, place: int) -> None:
        super().__init__(fd)
        self.path = path
        self._place = place
        self._taken, self._bias = place + TAKEN, place + BIAS
        self._flags = range(place + FLAGS, place + GUARD_WORDS, FLAG_WORDS)
        self._words: memoryview | None = None
        self._flag: int | None = None  # while it is biased towards this
        self._own_flag = 0
        self._turns = 0 if IS_ORDERED else _NEVER
        self._fence = threading.Lock()
        _guards.add(self)

    def share(self, words: memoryview, member: int) -> None:
        """There is a state, and others who make the lock theirs."""
        self._words, self._member = words, member

    def refusal(self) -> ProviderError:
        return closed() if self.fd < 0 else interrupted()

    def take(self) -> None:
        Lock.take(self)
        if self._words is not None:
            self._settle(self._words)

    def __exit__(self, *error: object) -> None:
        Lock.__exit__(self)
        if isinstance(error[1], _FAILURES) and not is_of_a_handler(error[1]):
            raise self.explained(error[1])

    def run(self, words: memoryview, action: Callable[..., Result], *args: object) -> Result:
        """`with self: return action(*args)`, in less than half the time: that was 1 us of a put; and in a tenth where it is ours."""
        # whatever a signal handler raises, the first line of each `finally` is done: on 3.10 it may come at an `if`, and at every call
        try:
            self.mutex.acquire()
            if self.is_held:
                raise self.refusal()
            try:
                self.is_held = True
                flag = self._flag
                if flag is not None:
                    try:
                        words[flag] = 1
                        self._fence.acquire(False)  # in vain where a signal handler has raised behind it: then `release` is the fence
                        self._fence.release()
                        if words[self._bias] == flag:
                            return action(*args)
                    finally:
                        words[flag] = 0
                try:
                    self._take_file(words)
                    return action(*args)
                finally:
                    flock(self.fd, LOCK_UN)
                    words[self._taken] = 0
            except _FAILURES as error:
                if is_of_a_handler(error):
                    raise
                raise self.explained(error)
            finally:
                self.is_held = False
        finally:
            try:
                self.mutex.release()
            except RuntimeError:
                pass  # a signal handler has raised while it was waited for

    def _take_file(self, words: memoryview) -> None:
        """It is not ours alone, or not any more. A refused `flock` costs an exception, 2 us: so it is looked before."""
        self._flag = None
        self._look(words, self._taken)
        words[self._taken] = 1
        try:
            flock(self.fd, EXCLUSIVE_NOW)
        except BlockingIOError:
            self._contend(words)
        self._settle(words)

    def _look(self, words: memoryview, place: int) -> None:
        """Until that word is 0, for about as long as somebody else needs."""
        for _ in range(_LOOKS):
            if not words[place]:
                break

    def _contend(self, words: memoryview) -> None:
        for _ in range(_TRIES):
            self._look(words, self._taken)
            words[self._taken] = 1
            try:
                return flock(self.fd, EXCLUSIVE_NOW)
            except BlockingIOError:
                pass
        return self.wait()

    # The file's lock is held

    def _settle(self, words: memoryview) -> None:
        """Nobody has it by a flag from here on; where nobody else has had it for some time, it is ours."""
        bias = words[self._bias]
        if bias and bias != self._flag:
            self._revoke(words, bias & ~_REVOKED)
        if words[self._place + LAST] != self._member:
            words[self._place + LAST], self._turns = self._member, min(self._turns, 0)
        self._turns += 1
        if self._turns >= _TURNS and self._flag is None:
            self._make_ours(words)

    def _revoke(self, words: memoryview, flag: int) -> None:
        """Marked until the flag was seen down: should this process die here, or wait in vain, the next one goes on with it."""
        words[self._bias] = flag | _REVOKED
        self._fence.acquire(False)
        self._fence.release()
        if flag in self._flags:  # else it is damaged, and nobody's
            self._look(words, flag)
            patiently(lambda: not words[flag] or self._is_nobodys(flag))
        words[self._bias] = 0

    def _is_nobodys(self, flag: int) -> bool:
        """Also true of our own, which is down."""
        return bool(_BYTE.unpack(self._byte(F_OFD_GETLK, flag))[0] == F_UNLCK)

    def _byte(self, verb: int, flag: int) -> bytes:
        return fcntl(self.fd, verb, _BYTE.pack(F_WRLCK, os.SEEK_SET, flag, 1, 0))

    def _make_ours(self, words: memoryview) -> None:
        """Where there is a flag for us."""
        self._own_flag = self._own_flag or self._find_flag(words)
        if self._own_flag:
            words[self._bias] = self._flag = self._own_flag
        else:
            self._turns = _NEVER

    def _find_flag(self, words: memoryview) -> int:
        """A flag that is nobody's is ours now, until the file is closed; 0 where there is none, or no lock of a byte."""
        for flag in self._flags:
            try:
                self._byte(F_OFD_SETLK, flag)
            except OSError as error:
                pass_on(error)
                continue
            words[flag] = 0
            return flag
        return 0

    def close(self) -> None:
        """Every later use raises ProviderError, as if it were held for ever. With the mutex held."""
        close_file(self.fd)
        self._end()

    def _end(self) -> None:
        self.fd, self._flag, self.is_held = -1, None, True

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


def _end_all_in_child() -> None:
    """Their files are closed, and their flags are the parent's: a child that raised one would be in there together with him."""
    for guard in _guards:
        guard._end()


os.register_at_fork(after_in_child=_end_all_in_child)
