"""A queue shared by processes: files in one directory, two locks, and a commit point for every change.

The senders' lock guards the tails of the log, the receivers' (on the state itself) the heads and the claims, so that a put and a get
never wait for each other (one lock for both cost a third of the throughput, and all of it where its holder lost the processor).
Whoever goes to sleep, for a message or for room, takes both, the senders' first: then nothing can slip in between the last look and
the registration. What is left is a process that dies (kill -9) between two of its stores.

`state` has the mapped words, `segments` the log, `claims` what has left it under a lease or is delayed, `store` what is done with
them under the locks; this file has the locks, the waiting and the deaths of others.
"""

from __future__ import annotations

import math
import os
import queue
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic_ns

from pymq.exceptions import ProviderError, QueueNotFound
from pymq.provider._refusals import closed_in_vain
from pymq.provider._shm.claims import NEVER, LeaseReceipt
from pymq.provider._shm.files import Bell, Bells, Directory, Removed, Result, close_file, is_dead, is_removed
from pymq.provider._shm.guard import Guard, closed
from pymq.provider._shm.segments import NS, nanoseconds, pack_record
from pymq.provider._shm.state import (
    FORMAT,
    IS_DELETED,
    LEVELS_COUNT,
    OWNERS,
    RECEIVERS,
    RECEIVING,
    SENDERS,
    SENDING,
    STATUS,
    State,
    format_state,
    read_format,
)
from pymq.provider._shm.store import Store
from pymq.provider.base import Delivery

_LOOK_NS = 10_000_000  # how often a receiver that never sleeps looks for deaths
_FILES_NS = 100_000_000  # how often a sender looks whether the files are still there: that costs 0.7 us
_SPIN_NS = 100_000  # how long a receiver looks again before it sleeps: about as long as a wake-up takes
_SHORT_NS = 200_000  # a sleep of less would have been spared by looking again


class SharedQueue:
    """First in, first out, but for what comes again. Every method may be called from any thread.

    `directory` is the queue's own; `member` is the number of a bell of this process that lives as long as the process does.
    Times are in seconds. Every method raises ProviderError where the files are damaged, of another version, or /dev/shm is full,
    and QueueNotFound where the queue is deleted; so does the constructor where it does not exist and `create` is false.
    """

    def __init__(self, name: str, directory: Directory, bells: Bells, member: int, max_bytes: int, create: bool) -> None:
        self.name = name
        self.bells = bells
        self._member = member
        self._next_look = self._next_look_at_files = 0
        self._spins = False
        self._closed = False
        try:
            while (state := self._open(directory, create)) is None:
                pass  # deleted while this opened it, so it is gone from the directory: the next is another
        except FileNotFoundError:
            raise QueueNotFound(f"there is no queue {name!r}") from None
        self._words = state.words
        for lock in (self._sending, self._lock):
            lock.share(state.words, member)
        self._store = Store(name, state, directory, bells, member, max_bytes)

    def _open(self, directory: Directory, create: bool) -> State | None:
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        self._lock = Guard(directory.open("state", flags), directory.path, RECEIVING)
        try:
            with self._lock:
                state = self._map(directory, create)
                if state is not None:
                    self._sending = Guard(directory.open("lock", flags), directory.path, SENDING)
                    return state
        except BaseException:
            self._lock.close()
            raise
        self._lock.close()
        return None

    def _map(self, directory: Directory, create: bool) -> State | None:
        """The state; None where it is deleted. It is mapped by its name: a look at the name afterwards tells whether it was this."""
        fd = self._lock.fd
        if create and not read_format(fd):
            close_file(directory.open("lock", os.O_RDWR | os.O_CREAT))
            format_state(fd)
        found = read_format(fd)
        if not found:
            raise QueueNotFound(f"there is no queue {self.name!r}")
        if found != FORMAT:
            raise ProviderError(f"queue {self.name!r} is of another version of pymq ({found:x}); delete it first")
        try:
            state = State(directory, fd)
            if not os.path.samestat(os.stat("state", dir_fd=directory.fd), os.fstat(fd)):
                return None
        except FileNotFoundError:
            return None
        if state.words[STATUS] == IS_DELETED:  # and whoever did that died before all was gone
            directory.clear()
            return None
        return state

    def send(
        self,
        message: bytes,
        timeout: float | None = None,
        maxsize: int = 0,
        delay: float = 0,
        ttl: float | None = None,
        priority: int = 0,
    ) -> None:
        """The message is at the end of its level when this returns. Raises `queue.Full` after `timeout` without room."""
        if monotonic_ns() >= self._next_look_at_files:
            self.look_at_files()
        if priority and not 0 < priority < LEVELS_COUNT:
            raise ValueError(f"priority must be 0 to {LEVELS_COUNT - 1}, not {priority}")
        record = pack_record(message, delay, ttl)
        if not self._sending.run(self._words, self._store.append, record, priority, maxsize):
            self._wait_for_room(record, priority, maxsize, timeout)

    def receive(
        self,
        timeout: float | None,
        limit: int = 1,
        lease: float | None = None,
        watch_fds: Sequence[int] = (),
        stopped: Callable[[], bool] = bool,
    ) -> list[Delivery]:
        """Up to `limit` of the oldest messages of the highest level; removed when this returns, unless there is a lease.

        [] after `timeout`, when woken and `stopped()` says so, or when the reader of one of the write ends `watch_fds` is dead.
        """
        store, words = self._store, self._words
        if words[OWNERS] > store.is_owner:
            self._look_for_deaths()
        ahead = store.look_ahead()
        looks = ahead is not None or words[STATUS] or store.has_something()  # without the lock, where there is nothing
        while looks:
            found = self._lock.run(words, store.take, limit, lease, ahead)
            if found:
                return found
            looks = store.has_something()  # there is more behind what was skipped
        if self._closed:
            raise closed()
        return [] if timeout == 0 else self._wait_for_messages(timeout, limit, lease, watch_fds, stopped)

    def ack(self, receipt: LeaseReceipt) -> None:
        """The message is forgotten. Raises LeaseLost, and changes nothing, when the lease had ended."""
        self._lock.run(self._words, self._store.ack, receipt)

    def ack_and_receive(self, receipt: LeaseReceipt, lease: float) -> list[Delivery]:
        """`ack`, and the next message where it is known already: [] says nothing. Under one lock, two take twice the time."""
        store, words = self._store, self._words
        ahead = store.look_ahead()
        if ahead is None or (words[OWNERS] > store.is_owner and monotonic_ns() >= self._next_look):
            self.ack(receipt)  # the rest is for `receive`: to read on, to look for deaths, to sleep
            return []
        return self._lock.run(words, store.ack_and_take, receipt, lease, ahead)

    def nack(self, receipt: LeaseReceipt, delay: float = 0) -> None:
        """The message is to be delivered again after `delay`. Raises LeaseLost as `ack` does."""
        self._lock.run(self._words, self._store.nack, receipt, monotonic_ns() + nanoseconds(delay))

    def extend(self, receipt: LeaseReceipt, seconds: float) -> None:
        """The lease ends `seconds` from now. Raises LeaseLost as `ack` does."""
        self._lock.run(self._words, self._store.extend, receipt, monotonic_ns() + nanoseconds(seconds))

    def size(self) -> int:
        """How many messages wait: those with a live lease do not count, the delayed do."""
        return self.counters()["waiting"]

    def counters(self) -> dict[str, int]:
        """What is in the queue, and what was dropped so far because it had expired or was damaged."""
        if self._words[OWNERS] > self._store.is_owner:
            self._look_for_deaths()
        return self._lock.run(self._words, self._store.exact_counters)

    def is_idle_and_empty(self) -> bool:
        """Whether it holds nothing and no living process waits on it: then its files may go."""
        with self._lock:
            self._store.enter()
            found = self._store.counters()
            waiters = self._store.sleepers()
        return not found["waiting"] and not found["leased"] and not any(map(self.bells.is_alive, waiters))

    def mark_deleted(self) -> None:
        """Every call from now on, also one that waits, raises QueueNotFound; the files are unlinked."""
        with self._sending, self._lock:
            self._store.delete()

    def is_deleted(self) -> bool:
        """Whether it was deleted, by whomever."""
        return bool(self._words[STATUS] == IS_DELETED)

    def look_at_files(self) -> None:
        """Raises Removed where somebody has removed them."""
        if not self._closed and is_removed(self._lock.fd) and not self.is_deleted():  # in this order: who deletes it says so first
            raise Removed(f"the files of queue {self.name!r} were removed while it was in use")
        self._next_look_at_files = monotonic_ns() + _FILES_NS

    def take_over(self, former: SharedQueue) -> tuple[int, int] | None:
        """Whatever waits in that one, whose files were removed, waits in this one now; how many are left there: leased, not due yet.

        All who still have that one open are woken. Several processes may do this at once: each message is moved by one of them.
        """
        if os.path.samestat(os.fstat(former._lock.fd), os.fstat(self._lock.fd)):
            return None  # only other files of the namespace were removed
        former._store.share_log()
        with suppress(ProviderError):  # a lock that is held by a stopped process, a part of the log that nobody here has open
            for owner in former._store.others():
                with suppress(Removed):  # nobody here has watched it: it may live, and settle its own
                    former.bury([owner])
            former._next_look = NEVER  # it has been looked for
            while moved := former.receive(0, 100, 60.0):
                for message, receipt in moved:
                    self.send(message)
                    former.ack(receipt)  # type: ignore[arg-type]
        for number in former._store.sleepers():
            former.bells.ring(number)
        found = former._store.counters()  # without the lock: for the log
        return (found["leased"], found["waiting"]) if found["leased"] or found["waiting"] else None

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
        with self._sending.mutex, self._lock.mutex:  # the mapping stays for a thread that is about to look at it
            self._store.close()
            self._sending.close()
            self._lock.close()

    # Waiting

    def _wait_for_messages(
        self, timeout: float | None, limit: int, lease: float | None, watch_fds: Sequence[int], stopped: Callable[[], bool]
    ) -> list[Delivery]:
        if self._spins and self._spin() and (found := self.receive(0, limit, lease)):
            return found
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        found = []
        bell = self.bells.borrow()
        try:
            while not (found or stopped()):
                armed = self.arm(bell)
                if armed is not None:
                    begun = monotonic_ns()
                    rung = self._sleep(bell, deadline, armed, watch_fds)
                    if not rung and (time.monotonic() >= deadline or any(map(is_dead, watch_fds))):
                        return self.receive(0, limit, lease)
                    slept = monotonic_ns() - begun
                found = self.receive(0, limit, lease)
                if found and armed is not None:
                    self._spins = slept < _SHORT_NS or self._store.has_something()
            return found
        finally:
            self.disarm(bell)

    def arm(self, bell: Bell) -> tuple[float, list[int]] | None:
        """Register for being rung; when to look again and whose death to watch. None where there is something already."""
        return self._with_both(self._arm, bell)

    def _arm(self, bell: Bell) -> tuple[float, list[int]] | None:
        store = self._store
        store.enter()
        if store.has_something():
            return None
        due = store.arm(bell.number)
        return (due / NS if due < NEVER else math.inf), store.others()

    def disarm(self, bell: Bell) -> None:
        try:
            if bell.number in self._store.state.table(RECEIVERS):  # without a look at the lock: only this thread adds it
                self._with_both(self._store.state.leave, RECEIVERS, bell.number)
        finally:
            self.bells.give_back(bell)

    def _spin(self) -> bool:
        """Look again for a while, but not next time where this was in vain: a wake-up costs both sides more than a put does."""
        end = monotonic_ns() + _SPIN_NS
        while True:
            os.sched_yield()
            if self._store.has_something():
                return True
            if monotonic_ns() > end:
                self._spins = False
                return False

    def _sleep(self, bell: Bell, deadline: float, armed: tuple[float, list[int]], watch_fds: Sequence[int]) -> bool:
        """Until rung (True), until the deadline, or until something is due or an owner or a watched reader dies (False)."""
        due, owners = armed
        until = min(deadline, due)
        writers = [self.bells.writer(owner) for owner in owners]
        rung = None not in writers and bell.sleep(
            None if until == math.inf else until - time.monotonic(), (*watch_fds, *(fd for fd in writers if fd is not None))
        )
        bell.silence()
        if not rung and not self._closed:
            self.bury(owners)
        return rung

    def _wait_for_room(self, record: bytes, level: int, maxsize: int, timeout: float | None) -> None:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        if self._with_both(self._append, record, level, maxsize, None):
            return
        bell = self.bells.borrow()
        self.bells.senders.append(bell)
        try:
            while not self._with_both(self._append, record, level, maxsize, bell.number):
                if time.monotonic() >= deadline:
                    self._forget_sender(bell.number)
                    raise queue.Full(f"queue {self.name!r} is full")
                if not self.bells.is_closing:
                    bell.sleep(None if timeout is None else deadline - time.monotonic())
                    bell.silence()
                if self.bells.is_closing:  # first: where the files were removed, it would begin again with what takes their place
                    self._forget_sender(bell.number)
                    raise closed_in_vain(self.name)
                self.look_at_files()
        finally:
            self.bells.give_back(bell)
            self.bells.senders.remove(bell)

    def _append(self, record: bytes, level: int, maxsize: int, bell: int | None) -> bool:
        """With an exact look at the room; where there is none, that bell is rung when there may be. Both locks."""
        done = self._store.has_room(len(record), maxsize)
        if done:
            self._store.append(record, level, fits=True)
        elif bell is not None:
            self._store.enrol(SENDERS, bell)
        return done

    def _forget_sender(self, bell: int) -> None:
        self._with_both(self._store.state.leave, SENDERS, bell)

    def _with_both(self, action: Callable[..., Result], *args: object) -> Result:
        """`with self._sending, self._lock: return action(*args)` that leaves nothing locked whenever a signal handler raises."""
        result: Result = self._sending.run(self._words, self._lock.run, self._words, action, *args)
        return result

    # Deaths

    def _look_for_deaths(self) -> None:
        """At most every 10 ms, for receivers that never sleep; those who do watch the owners."""
        now = monotonic_ns()
        if now >= self._next_look:
            self._next_look = now + _LOOK_NS
            self.bury(self._lock.run(self._words, self._store.others))

    def bury(self, owners: list[int]) -> None:
        """Give back what is leased to those that are dead."""
        dead = [owner for owner in owners if not self.bells.is_alive(owner)]
        if dead:
            self._lock.run(self._words, self._store.give_back, dead)
