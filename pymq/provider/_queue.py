"""A queue shared by processes: files in one directory, one lock, and a commit point for every change.

Everything is read and written under one `flock`, so there are no questions of memory order; what is left is a process that dies
(kill -9) between two of its stores. `_state` has the mapped words, `_segments` the log, `_claims` what has left it under a lease or
is delayed, `_store` what is done with them under the lock; this file has the lock, the waiting and the deaths of others.
"""

from __future__ import annotations

import errno
import math
import os
import queue
import time
from collections.abc import Callable, Sequence
from fcntl import LOCK_UN, flock
from time import monotonic_ns

from pymq.exceptions import ProviderError, PymqError, QueueNotFound
from pymq.provider._claims import NEVER, LeaseReceipt
from pymq.provider._files import EXCLUSIVE_NOW, Bell, Bells, Directory, Lock, close_file, is_dead, translated
from pymq.provider._segments import NS, pack_record
from pymq.provider._state import (
    BUSY,
    FORMAT,
    IS_DELETED,
    LEVELS_COUNT,
    OWNERS,
    RECEIVERS,
    SENDERS,
    STATUS,
    State,
    format_state,
    read_format,
)
from pymq.provider._store import Store
from pymq.provider.base import Delivery

__all__ = ["LeaseReceipt", "SharedQueue"]

_LOOK_NS = 10_000_000  # how often a receiver that never sleeps looks for deaths
_TRIES, _LOOKS = 4, 100
_SPIN_NS = 100_000  # how long a receiver looks again before it sleeps: about as long as a wake-up takes
_SHORT_NS = 200_000  # a sleep of less would have been spared by looking again


class _Guard(Lock):
    """The queue's lock; what fails while it is held, because of a full disk or damaged files, becomes a ProviderError."""

    def __init__(self, fd: int, path: str) -> None:
        super().__init__(fd)
        self.path = path

    def __enter__(self) -> None:
        if self.fd < 0:
            raise _closed()
        Lock.__enter__(self)

    def __exit__(self, *error: object) -> None:
        Lock.__exit__(self)
        if isinstance(error[1], Exception):
            raise self.explained(error[1])

    def explained(self, error: Exception) -> Exception:
        """What users are told about what failed while the lock was held."""
        if isinstance(error, PymqError):
            return error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
            result = translated(error, self.path)
        else:
            result = ProviderError(f"the queue's files are damaged, or it was closed ({error!r}); delete the queue")
        result.__cause__ = error
        return result


def _closed() -> ProviderError:
    return ProviderError("the queue was closed")


class SharedQueue:
    """First in, first out, but for what comes again. Every method may be called from any thread.

    `directory` is the queue's own; `member` is the number of a bell of this process that lives as long as the process does.
    Times are in seconds. Every method raises ProviderError where the files are damaged, of another version, or /dev/shm is full,
    and QueueNotFound where the queue is deleted; so does the constructor where it does not exist and `create` is false.
    """

    def __init__(self, name: str, directory: Directory, bells: Bells, member: int, max_bytes: int, create: bool) -> None:
        self.name = name
        self._bells = bells
        self._member = member
        self._next_look = 0
        self._spins = False
        self._closed = False
        try:
            while (state := self._open(directory, create)) is None:
                pass  # deleted while this opened it, so it is gone from the directory: the next is another
        except FileNotFoundError:
            raise QueueNotFound(f"there is no queue {name!r}") from None
        self._words = state.words
        self._store = Store(name, state, directory, bells, member, max_bytes)

    def _open(self, directory: Directory, create: bool) -> State | None:
        fd = directory.open("state", os.O_RDWR | (os.O_CREAT if create else 0))
        self._lock = _Guard(fd, directory.path)
        try:
            with self._lock:
                state = self._map(directory, fd, create)
        except BaseException:
            close_file(fd)
            raise
        if state is None:
            close_file(fd)
        return state

    def _map(self, directory: Directory, fd: int, create: bool) -> State | None:
        """The state; None where it is deleted. It is mapped by its name: a look at the name afterwards tells whether it was this."""
        if create and not read_format(fd):
            format_state(fd)
        found = read_format(fd)
        if not found:
            raise QueueNotFound(f"there is no queue {self.name!r}")
        if found != FORMAT:
            raise ProviderError(f"queue {self.name!r} is of another version of pymq ({found:x}); delete it first")
        try:
            state = State(directory, fd)
            same = os.path.samestat(os.stat("state", dir_fd=directory.fd), os.fstat(fd))
        except FileNotFoundError:
            return None
        return state if same and state.words[STATUS] != IS_DELETED else None

    def send(
        self,
        message: bytes,
        *,
        timeout: float | None = None,
        maxsize: int = 0,
        delay: float = 0,
        ttl: float | None = None,
        priority: int = 0,
    ) -> None:
        """The message is at the end of its level when this returns. Raises `queue.Full` after `timeout` without room."""
        if not 0 <= priority < LEVELS_COUNT:
            raise ValueError(f"priority must be 0 to {LEVELS_COUNT - 1}, not {priority}")
        record = pack_record(message, delay, ttl)
        lock = self._lock
        with lock.mutex:  # `with lock` written out, here, in _take and in ack: it would be a quarter of a put
            if lock.fd < 0:
                raise _closed()
            try:
                self._acquire()
                done = self._store.append(record, priority, maxsize)
            except Exception as error:
                raise lock.explained(error)
            finally:
                flock(lock.fd, LOCK_UN)
                self._words[BUSY] = 0
        if not done:
            self._wait_for_room(record, priority, maxsize, timeout)

    def receive(
        self,
        timeout: float | None,
        *,
        limit: int,
        lease: float | None,
        watch_fds: Sequence[int] = (),
        stopped: Callable[[], bool],
    ) -> list[Delivery]:
        """Up to `limit` of the oldest messages of the highest level; removed when this returns, unless there is a lease.

        [] after `timeout`, when woken and `stopped()` says so, or when the reader of one of the write ends `watch_fds` is dead.
        """
        if self._words[OWNERS] > self._store.is_owner:
            self._look_for_deaths()
        found = self._take_any(limit, lease)
        if found or timeout == 0:
            return found
        if self._spins and self._spin():
            found = self._take_any(limit, lease)
        return found or self._wait_for_messages(timeout, limit, lease, watch_fds, stopped)

    def _take_any(self, limit: int, lease: float | None) -> list[Delivery]:
        """What there is; where a look finds nothing, it ends without the lock."""
        found: list[Delivery] = []
        looks = self._words[STATUS] or self._store.has_something()
        while looks:
            found = self._take(limit, lease)
            looks = not found and self._store.has_something()  # there is more behind what was skipped
        if self._closed:
            raise _closed()
        return found

    def _take(self, limit: int, lease: float | None) -> list[Delivery]:
        lock, store = self._lock, self._store
        with lock.mutex:
            if lock.fd < 0:
                raise _closed()
            ahead = store.look_ahead()
            try:
                self._acquire()
                return store.take(limit, lease, ahead)
            except Exception as error:
                raise lock.explained(error)
            finally:
                flock(lock.fd, LOCK_UN)
                self._words[BUSY] = 0

    def ack(self, receipt: LeaseReceipt) -> None:
        """The message is forgotten. Raises LeaseLost, and changes nothing, when the lease had ended."""
        lock = self._lock
        with lock.mutex:
            if lock.fd < 0:
                raise _closed()
            try:
                self._acquire()
                self._store.ack(receipt)
            except Exception as error:
                raise lock.explained(error)
            finally:
                flock(lock.fd, LOCK_UN)
                self._words[BUSY] = 0

    def _acquire(self) -> None:
        """Take the lock of the file. Looks at a word until its holder is done: a refused flock costs an exception (2 us)."""
        words, lock = self._words, self._lock
        for _ in range(_TRIES):
            if words[BUSY]:
                for _ in range(_LOOKS):
                    if not words[BUSY]:
                        break
            try:
                flock(lock.fd, EXCLUSIVE_NOW)
                words[BUSY] = 1
                return
            except BlockingIOError:
                pass
        lock.wait()
        words[BUSY] = 1

    def nack(self, receipt: LeaseReceipt, delay: float = 0) -> None:
        """The message is to be delivered again after `delay`. Raises LeaseLost as `ack` does."""
        with self._lock:
            self._store.nack(receipt, monotonic_ns() + int(delay * NS))

    def extend(self, receipt: LeaseReceipt, seconds: float) -> None:
        """The lease ends `seconds` from now. Raises LeaseLost as `ack` does."""
        with self._lock:
            self._store.extend(receipt, monotonic_ns() + int(seconds * NS))

    def size(self) -> int:
        """How many messages wait: those with a live lease do not count, the delayed do."""
        return self.counters()["waiting"]

    def counters(self) -> dict[str, int]:
        """What is in the queue, and what was dropped so far because it had expired or was damaged."""
        with self._lock:
            self._store.enter()
            return self._store.counters()

    def is_idle_and_empty(self) -> bool:
        """Whether it holds nothing and no living process waits on it: then its files may go."""
        with self._lock:
            self._store.enter()
            found = self._store.counters()
            waiters = self._store.state.table(RECEIVERS) + self._store.state.table(SENDERS)
        return not found["waiting"] and not found["leased"] and not any(map(self._bells.is_alive, waiters))

    def mark_deleted(self) -> None:
        """Every call from now on, also one that waits, raises QueueNotFound; the files are unlinked."""
        with self._lock:
            self._store.delete()

    def close(self) -> None:
        """Let go of the files; what is leased to this process is for others at once. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            with self._lock:
                if self._words[STATUS] != IS_DELETED and self._member in self._store.state.table(OWNERS):
                    self._store.release([self._member])
        except ProviderError:
            pass  # damaged, or held by a stopped process: what is leased comes back by this process's end
        with self._lock.mutex:  # the mapping stays for a thread that is about to look at it
            self._store.log.close()
            close_file(self._lock.fd)
            self._lock.fd = -1

    # Waiting

    def _wait_for_messages(
        self, timeout: float | None, limit: int, lease: float | None, watch_fds: Sequence[int], stopped: Callable[[], bool]
    ) -> list[Delivery]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        store, slept = self._store, math.inf
        bell = self._bells.borrow()
        ended = False
        try:
            while not self._closed:
                with self._lock:
                    found = [] if stopped() else store.take(limit, lease)
                    if found or ended or stopped():
                        store.state.leave(RECEIVERS, bell.number)
                        self._spins = self._spins or (bool(found) and slept < _SHORT_NS)
                        return found
                    if store.has_something():
                        continue
                    due = store.arm(bell.number)
                    owners = store.others()
                asleep = monotonic_ns()
                rung = self._sleep(bell, min(deadline, due / NS if due < NEVER else math.inf), owners, watch_fds)
                slept = monotonic_ns() - asleep
                ended = time.monotonic() >= deadline or (not rung and any(map(is_dead, watch_fds)))
            return []
        finally:
            self._bells.give_back(bell)

    def _spin(self) -> bool:
        """Look again for a while, but not next time where this was in vain: a wake-up costs both sides more than a put does."""
        end = monotonic_ns() + _SPIN_NS
        while monotonic_ns() < end:
            if self._store.has_something():
                return True
            os.sched_yield()
        self._spins = False
        return False

    def _sleep(self, bell: Bell, until: float, owners: list[int], watch_fds: Sequence[int]) -> bool:
        """Until rung (True), until that time, or until an owner of leases or a watched reader dies (False)."""
        writers = [self._bells.writer(owner) for owner in owners]
        rung = None not in writers and bell.sleep(
            None if until == math.inf else until - time.monotonic(), (*watch_fds, *(fd for fd in writers if fd is not None))
        )
        bell.silence()
        if not rung and not self._closed:
            self._bury(owners)
        return rung

    def _wait_for_room(self, record: bytes, level: int, maxsize: int, timeout: float | None) -> None:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        store, bell = self._store, self._bells.borrow()
        done = late = False
        try:
            while not self._closed:
                late = time.monotonic() >= deadline
                with self._lock:
                    done = store.append(record, level, maxsize)
                    if done or late:
                        store.state.leave(SENDERS, bell.number)
                        break
                    store.enrol(SENDERS, bell.number)
                bell.sleep(None if timeout is None else deadline - time.monotonic())
                bell.silence()
        finally:
            self._bells.give_back(bell)
        if late and not done:
            raise queue.Full(f"queue {self.name!r} is full")
        if not done:
            raise ProviderError(f"queue {self.name!r} was closed")

    # Deaths

    def _look_for_deaths(self) -> None:
        """At most every 10 ms, for receivers that never sleep; those who do watch the owners."""
        now = monotonic_ns()
        if now >= self._next_look:
            self._next_look = now + _LOOK_NS
            with self._lock:
                owners = self._store.others()
            self._bury(owners)

    def _bury(self, owners: list[int]) -> None:
        """Give back what is leased to those that are dead."""
        dead = [owner for owner in owners if not self._bells.is_alive(owner)]
        if dead:
            with self._lock:
                self._store.enter()
                self._store.release(dead)
