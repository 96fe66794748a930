"""The writing end of an inbox; `frames` says what is in it."""

from __future__ import annotations

import errno
import os
import secrets
import select
import time
from functools import partial

from pymq.exceptions import QueueNotFound
from pymq.provider._shm.files import (
    Bells,
    Directory,
    Lock,
    Mutex,
    Owned,
    close_file,
    encode_name,
    interrupted,
    is_dead,
    map_file,
    open_writer,
    pass_on,
    write_at,
)
from pymq.provider._shm.frames import (
    BEHIND,
    DELETED,
    DROPPED,
    FREED,
    HEAD_BYTES,
    INLINE_BYTES,
    LOCATION,
    LOGGED,
    MOST_SLEEPERS,
    NUDGE_FRAME,
    OWNER,
    REFERENCE,
    SENT,
    SLEEPERS,
    STATE,
    WAKE_FRAME,
    Arena,
    aligned,
    arena_name,
    bytes_waiting,
    frame,
    frames_of,
)
from pymq.provider._shm.inbox import Inbox

_ARENA_BYTES = 4 << 20
_LARGEST_HEAD = INLINE_BYTES - LOCATION.size
_PATIENCE = 0.001
_TURNS = 20
"""For how many seconds, and how many times at least, a sender yields the processor to a reader that takes nothing out of the full
arena, before it turns to the log, which costs both of them more."""


class Outlet:
    """A writing end. From any thread; `send` and `offer` raise BrokenPipeError where the inbox's process is dead.

    Messages of up to `direct` bytes may be written into the FIFO without asking it.
    """

    def __init__(
        self,
        name: str,
        directory: Directory,
        bells: Bells,
        member: int,
        *,
        max_pending: int,
        own: Inbox | None,
        direct: int = INLINE_BYTES,
    ) -> None:
        self.name = name
        self.own = own
        self.direct = direct
        self._gate = LOGGED
        self._stem = encode_name(name)
        self._directory = directory
        self._bells = bells
        self._member = member
        self._max_pending = max_pending
        self._mutex = Mutex()
        self._arena: Arena
        self._token = self._next = 0
        self._stuck_at = -1
        self._largest = aligned(min(_ARENA_BYTES, max_pending // 4) // 2)
        writer = open_writer(directory, f"{self._stem}.fifo")
        if writer is None:
            raise QueueNotFound(f"there is no queue {name!r}")
        self.fifo = writer
        self._fifo_owned = Owned(partial(close_file, writer))
        self._death = select.poll()
        self._death.register(writer, 0)
        try:
            self.head = map_file(directory, f"{self._stem}.head", os.O_RDWR, HEAD_BYTES).cast("Q")
            log = directory.open(f"{self._stem}.log", os.O_RDWR)
        except FileNotFoundError:
            raise QueueNotFound(f"there is no queue {name!r}") from None
        self._log_owned = Owned(partial(close_file, log))
        self._log = log
        self._lock = Lock(log)

    def lane_of(self, former: Outlet) -> Outlet:
        """The way into this inbox that takes the place of that one: messages in different lanes may overtake each other."""
        return self

    def send(self, message: bytes) -> bool:
        """Deliver it without waiting; False where the inbox is full."""
        return self.send_past_log(message) or self.offer(frames_of(message))

    def send_past_log(self, payload: bytes, head: bytes = b"") -> bool:
        """Deliver it, behind its head, in a cheaper way than by writing it into the log, if there is one that needs no waiting."""
        return len(head) + len(payload) > INLINE_BYTES and self.send_by_arena(payload, head)

    def send_by_arena(self, payload: bytes, head: bytes) -> bool:
        """Deliver it through the arena, behind a head that goes with the reference; False where it is too large or there is no room."""
        if len(payload) > self._largest or len(head) > _LARGEST_HEAD:
            return False
        mutex = self._mutex
        with mutex.mutex:  # `with mutex` written out: 0.5 us less
            if mutex.is_held:
                raise interrupted()
            try:
                mutex.is_held = True
                return self._put_in_arena(payload, head)
            finally:
                mutex.is_held = False

    def offer(self, parts: list[bytes], sleeper: int = 0) -> bool:
        """Deliver a frame; False where there is no room, and then the bell of that number is rung when there is."""
        is_small = len(parts) == 1
        if is_small and not self.head[self._gate] and self._write(parts[0]):
            return True
        while True:
            with self._lock:
                if is_small and not self.head[self._gate] and self._write(parts[0]):
                    return True
                if self._append(parts):
                    return True
                if self.own is None:
                    self._enrol(sleeper)
                    return False
            self.own.make_room()

    def delete(self) -> None:
        """What `Inbox.delete` does, from outside."""
        self.head[DELETED] = 1
        self._signal(WAKE_FRAME)

    def is_dead(self) -> bool:
        """Whether the inbox's process has died. 0.4 us; with a poll object made for it 1.1."""
        try:
            return bool(self._death.poll(0))
        except RuntimeError:  # another thread asks at this moment
            return is_dead(self.fifo)

    def is_gone(self) -> bool:
        """Whether nobody will receive from the inbox any more."""
        return bool(self.head[DELETED]) or self.is_dead()

    def forget(self, sleeper: int) -> None:
        """That bell need not be rung any more."""
        with self._lock:
            numbers = self._sleepers()
            if sleeper in numbers:
                numbers.remove(sleeper)
                self._set_sleepers(numbers)

    def drop(self) -> None:
        """Count a message as lost; until the receiver has caught up, the next ones are not waited for."""
        with self._lock:
            self.head[DROPPED] += 1
            self.head[BEHIND] = 1 if self.head[LOGGED] else 0

    def backlog(self) -> tuple[int, int]:
        """How much waits, and what the receiver does: the less, the sooner it gets to a new message."""
        return bytes_waiting(self.fifo) + self.head[LOGGED], self.head[STATE]

    # The lock is held

    def _signal(self, small: bytes) -> bool:
        """Write it into the FIFO; False where that is full."""
        try:
            os.write(self.fifo, small)
        except BlockingIOError:
            return False
        return True

    def _write(self, small: bytes) -> bool:
        """Deliver a frame by itself; False where there is no room."""
        return self._signal(small)

    def _append(self, parts: list[bytes]) -> bool:
        """Into the log, if there is room; one message, however large, always fits into an empty one."""
        logged = self.head[LOGGED]
        if self._is_full(sum(map(len, parts))):
            return False
        self.head[LOGGED] = logged + write_at(self._log, parts, logged)
        if not bytes_waiting(self.fifo):
            self._signal(NUDGE_FRAME)
        elif self.is_dead():  # what a FIFO still holds hides that its reader has died
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return True

    def _is_full(self, size: int) -> bool:
        logged = self.head[LOGGED]
        return bool(logged) and logged + size > self._max_pending

    def _sleepers(self) -> list[int]:
        return self.head[SLEEPERS + 1 : SLEEPERS + 1 + self.head[SLEEPERS]].tolist()

    def _set_sleepers(self, numbers: list[int]) -> None:
        for place, number in enumerate(numbers, SLEEPERS + 1):
            self.head[place] = number
        self.head[SLEEPERS] = len(numbers)

    def _enrol(self, sleeper: int) -> None:
        numbers = self._sleepers()
        if sleeper and sleeper not in numbers and len(numbers) < MOST_SLEEPERS:
            self._set_sleepers([*numbers, sleeper])

    # The arena; the mutex is held

    def _put_in_arena(self, payload: bytes, head: bytes) -> bool:
        size = len(payload)
        position = self._find_room(size) if self._token or self._make_arena() else -1
        if position < 0:
            return False
        arena, before = self._arena, self._next
        offset = position % arena.size
        arena.bytes[offset : offset + size] = payload
        framed = frame(REFERENCE, LOCATION.pack(self._token, position, size) + head)
        # reserved first: should a signal handler raise behind the write, the place of what is out must not be used again
        self._next = arena.words[SENT] = position + aligned(size)
        if (self.head[self._gate] or not self._write(framed)) and not self.offer([framed]):
            self._next = arena.words[SENT] = before
            return False
        return True

    def _find_room(self, size: int) -> int:
        """Where in the arena, or -1; a reader that is at work is given time to make room, until it is found to be stuck."""
        ring, words = self._arena.size, self._arena.words
        end, seen, turns = 0.0, -1, 0
        while True:
            freed, position = words[FREED], self._next
            if position % ring + size > ring:
                position = -(-position // ring) * ring
            if position + size - freed <= ring:
                return position
            now = time.monotonic()
            if freed != seen:
                seen, end, turns = freed, now + _PATIENCE, 0
            elif now >= end and turns > _TURNS:
                self._stuck_at = freed
            if freed == self._stuck_at:
                return -1
            turns += 1
            if self.own is None:
                os.sched_yield()
            else:
                self.own.make_room()

    def _make_arena(self) -> bool:
        token = secrets.randbits(63) | 1
        try:
            arena = Arena.create(self._directory, arena_name(self._stem, token), 2 * self._largest)
        except OSError as error:
            pass_on(error)
            return False  # the file system is full: the log may still have room, or says so
        self._arena, self._token = arena, token
        self._arena.words[OWNER] = self._member
        self._arena_owned = Owned(partial(self._arena.words.__setitem__, OWNER, 0))
        return True
