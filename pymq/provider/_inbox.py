"""Inboxes: a FIFO that one process reads, with a log beside it for what the FIFO has no room for, and an arena for what is large.

A *frame* is `magic, length, crc32` and that many bytes. At most PIPE_BUF bytes go through the FIFO, so the kernel keeps each whole.

**The log.** Order must hold across it, per sender. The word LOGGED in the mapped head is the committed length of the log. A sender
that sees 0 there writes to the FIFO; one that sees more, or finds the FIFO full, appends to the log under the lock, and where the
FIFO is empty then, it writes a NUDGE there: the reader comes to look at LOGGED after whatever it reads. The reader notes LOGGED,
empties the FIFO, reads the log up to what it noted, and again until, under the lock, nothing was added; then it stores 0. Whatever
a sender wrote to the FIFO before it turned to the log is read first, and while LOGGED is not 0 it writes nothing there.

**Arenas.** A large message is copied into a ring of recycled memory that one sender shares with one inbox, and a REFERENCE (arena,
position, length) goes through the FIFO or the log. Positions only grow; the reader stores how far it has FREED. With one writer and
one reader, and references in the order of the ring, there is nothing to lock, and nothing to repair where either dies. An inbox
removes the arenas of dead senders when it meets a new one.

The committing stores are ordered as they are written on x86; elsewhere by the locks and by the system calls between them.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import secrets
import select
import struct
import termios
import threading
import time
import zlib
from collections.abc import Sequence
from functools import partial

from pymq.exceptions import QueueNotFound
from pymq.provider._files import Bells, Directory, Lock, Owned, close_file, encode_name, make_fifo, map_file, open_writer, write_at
from pymq.provider.base import Delivery

PIPE_BUF = 4096
HEADER = struct.Struct("<III")
INLINE_BYTES = PIPE_BUF - HEADER.size
"""The largest message that goes through the FIFO itself."""

_PREFIX = b"\xa5pq"
DATA, LARGE, REFERENCE, NUDGE, WAKE = (int.from_bytes(bytes([*_PREFIX, kind]), "little") for kind in (0, 0x03, 0x0C, 0x30, 0xC0))
"""Two bits apart from each other, so that no flipped bit makes one into another. LARGE is as DATA, but only fits into the log."""

_CONTROL = (LARGE, REFERENCE, NUDGE, WAKE)
_PIPE_BYTES = 256 << 10
_BATCH = 256 << 10
_LARGE_BATCH = 256 << 10
"""64 KiB copied into memory that was just freed: 3.5 us; into fresh pages, as when eight are held at once: 20."""
_REFERENCE = struct.Struct("<QQQ")
_ARENA_BYTES = 4 << 20
_ARENA_HEAD = 64
_OWNER, _SENT, _FREED = range(3)

_HEAD_BYTES = 4096
LOGGED, DROPPED, BEHIND, WAITING, DELETED, _SLEEPERS = range(6)
_MOST_SLEEPERS = _HEAD_BYTES // 8 - _SLEEPERS - 1
_KEPT_LOG_BYTES = 1 << 20
_LARGE_SPIN = 0.0001
"""For how many seconds a reader that has just received a large message yields the processor before it sleeps: in a stream of them
it would sleep between any two, and waking it costs both sides more than the message does."""
_PATIENCE = 0.001
_TURNS = 20
"""For how many seconds, and how many times at least, a sender yields the processor to a reader that takes nothing out of the full
arena, before it turns to the log, which costs both of them more."""

logger = logging.getLogger("pymq")


pack_header = HEADER.pack


def frame(magic: int, body: bytes) -> bytes:
    return pack_header(magic, len(body), zlib.crc32(body)) + body


def frames_of(message: bytes) -> list[bytes]:
    """What `Outlet.offer` takes: a large one is not copied."""
    if len(message) <= INLINE_BYTES:
        return [frame(DATA, message)]
    return [pack_header(LARGE, len(message), zlib.crc32(message)), message]


_NUDGE, _WAKE = frame(NUDGE, b""), frame(WAKE, b"")


def bytes_waiting(fifo: int) -> int:
    """How much is in a FIFO."""
    return int.from_bytes(fcntl.ioctl(fifo, termios.FIONREAD, b"\0\0\0\0"), "little")


class Inbox:
    """The reading end. Its files exist, and senders reach it, from the constructor on until `delete`, or this process's death.

    The registry's lock is held by whoever constructs one. One thread at a time receives; the others may call all the rest.
    """

    def __init__(self, name: str, directory: Directory, bells: Bells) -> None:
        self.name = name
        self.stem = encode_name(name)
        self.corrupted = 0
        self._directory = directory
        self._bells = bells
        self._mutex = threading.Lock()
        self._found: list[Delivery] = []
        self._data = b""
        self._position = 0
        self._is_whole = True
        self._is_drained = False
        self._batch = 0.0
        self._done = 0
        self._woken = False
        self._was_large = False
        self._reported = 0
        self._arenas: dict[int, Arena] = {}
        self.head = map_file(directory, f"{self.stem}.head", os.O_RDWR | os.O_CREAT | os.O_EXCL, _HEAD_BYTES).cast("Q")
        self._log = directory.open(f"{self.stem}.log", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._lock = Lock(self._log)
        self._fifo = make_fifo(directory, f"{self.stem}.fifo")
        self._owned = Owned(partial(close_file, self._fifo), partial(close_file, self._log))
        self._poll = select.poll()
        self._poll.register(self._fifo, select.POLLIN)
        try:
            fcntl.fcntl(self._fifo, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            pass  # this user has too many large pipes: a small one only means an earlier use of the log

    def receive(self, timeout: float | None, spin: float, watch: Sequence[int], busy: bool = False) -> list[Delivery]:
        """All that has come; [] after the timeout, when woken, and when the reader of one of the write ends `watch` has died."""
        found = [] if self._is_drained and timeout != 0 else self.take()
        if found or timeout == 0:
            self._woken = False
            return found
        now = time.monotonic()
        end = math.inf if timeout is None else now + timeout
        if self._was_large:
            spin, self._was_large = max(spin, _LARGE_SPIN), False
        if spin:
            found = self._spin(min(end, now + spin))
        dead = False
        while not (found or self._woken or dead or time.monotonic() >= end):
            dead = self._sleep(end, watch, busy)
            found = self.take()
        self._woken = False
        return found

    def take(self) -> list[Delivery]:
        """All that has come, without waiting."""
        with self._mutex:
            if self.head[DELETED]:
                raise QueueNotFound(f"the temporary queue {self.name!r} was deleted")
            self._read(_LARGE_BATCH)
            found, self._found = self._found, []
            # then a poll is all it takes to learn of more: a read that finds nothing costs 2 us, most of it the exception
            self._is_drained = self._is_whole and not self._data and not self.head[LOGGED] and not self._woken
        return found

    def make_room(self) -> None:
        """Move what has come into memory, for a sender of this same process, which must not wait for itself."""
        with self._mutex:
            self._load()
            self._read(math.inf)
        self._signal(_NUDGE)

    def size(self) -> int:
        """How many messages have come."""
        self.make_room()
        return len(self._found)

    def wake(self) -> None:
        """A blocked receive returns."""
        self._signal(_WAKE)

    def delete(self) -> None:
        """Receiving raises QueueNotFound from now on. The files are the registry's to remove."""
        self.head[DELETED] = 1
        self.wake()

    def _signal(self, signal: bytes) -> None:
        try:
            os.write(self._fifo, signal)
        except BlockingIOError:
            pass  # full: nobody sleeps on it

    def _spin(self, end: float) -> list[Delivery]:
        """Yield the processor for a while before sleeping: a wake-up takes 30 to 80 us, a turn of this 0.5."""
        found: list[Delivery] = []
        while not (found or self._woken or time.monotonic() >= end):
            os.sched_yield()
            found = self.take()
        return found

    def _sleep(self, end: float, watch: Sequence[int], busy: bool) -> bool:
        """Until something comes, the end, or a death (True)."""
        poll, head = self._poll, self.head
        for writer in watch:
            poll.register(writer, 0)
        head[WAITING] = not busy
        try:
            ready = poll.poll(None if end == math.inf else max(0, (end - time.monotonic()) * 1000))
        finally:
            head[WAITING] = 0
            for writer in watch:
                poll.unregister(writer)
        return any(fd != self._fifo for fd, _ in ready)

    # The mutex is held

    def _read(self, batch: float) -> None:
        """What has come, but of what is large about `batch` bytes: receivers that free one before the next reuse warm memory."""
        self._batch = batch
        if self._data:
            self._parse()
        if not self._found and self._load():
            self._parse()
        while (end := self.head[LOGGED]) and (self._batch > 0 or end == self._done):
            if end > self._done:
                self._read_log(end)
            else:
                self._reset_log()

    def _read_log(self, end: int) -> None:
        while self._load():
            pass
        self._add(os.pread(self._log, end - self._done, self._done), True)
        self._done = end
        self._parse()

    def _load(self) -> bool:
        """Read from the FIFO; False where it is empty."""
        try:
            data = os.read(self._fifo, _BATCH)
        except BlockingIOError:
            return False
        self._add(data, len(data) < _BATCH)
        return True

    def _add(self, data: bytes, is_whole: bool) -> None:
        """Data to parse, behind the frame that was cut before it; what is whole ends with the end of a frame."""
        self._data, self._position, self._is_whole = self._data[self._position :] + data, 0, is_whole

    def _reset_log(self) -> None:
        """Give the log back to the senders, unless something was added to it."""
        head = self.head
        with self._lock:
            if head[LOGGED] > self._done:
                return
            if self._done > _KEPT_LOG_BYTES:
                os.ftruncate(self._log, 0)
            head[LOGGED] = head[BEHIND] = self._done = 0
            sleepers = head[_SLEEPERS + 1 : _SLEEPERS + 1 + head[_SLEEPERS]].tolist()
            head[_SLEEPERS] = 0
        for number in sleepers:
            self._bells.ring(number)
        self._report_dropped()

    def _report_dropped(self) -> None:
        dropped = self.head[DROPPED]
        if dropped > self._reported:
            logger.warning(
                "inbox %s: %d messages were dropped by their senders, since it was full", self.name, dropped - self._reported
            )
            self._reported = dropped

    def _parse(self) -> None:
        """Take the frames out of the data. What is damaged is counted and skipped; a frame cut at the end waits for its rest."""
        data, position = self._data, self._position
        add, unpack, crc32 = self._found.append, HEADER.unpack_from, zlib.crc32
        last = len(data) - HEADER.size
        while position <= last:
            magic, length, crc = unpack(data, position)
            begin = position + 12
            end = begin + length
            body = data[begin:end]
            if magic == DATA and crc32(body) == crc and len(body) == length:
                add((body, None))
                position = end
            elif magic in _CONTROL and crc32(body) == crc and len(body) == length:
                position = end
                self._batch -= self._control(magic, body)
                if self._batch <= 0:
                    self._position = position
                    return
            elif not self._is_whole and end > len(data) and length <= INLINE_BYTES and data.startswith(_PREFIX, position):
                break
            else:
                self.corrupted += 1
                position = _next_frame(data, position + 1)
        if self._is_whole:
            self.corrupted += position < len(data)
            position = len(data)
        self._data, self._position = data[position:], 0

    def _control(self, magic: int, body: bytes) -> int:
        """Do what a frame says that is no small message; the size of the large one that it brings."""
        if magic == WAKE:
            self._woken = True
        if magic in (NUDGE, WAKE):
            return 0
        try:
            message = body if magic == LARGE else self._fetch(*_REFERENCE.unpack(body))
        except (OSError, ValueError, struct.error):  # there is no such arena
            self.corrupted += 1
            return 0
        self._found.append((message, None))
        self._was_large = True
        return len(message)

    def _fetch(self, token: int, position: int, length: int) -> bytes:
        """Copy a message out of an arena, and free it there."""
        arena = self._arenas.get(token) or self._open_arena(token)
        offset = position % arena.size
        message = bytes(arena.bytes[offset : offset + length])
        arena.words[_FREED] = position + _aligned(length)
        return message

    def _open_arena(self, token: int) -> Arena:
        for other, arena in list(self._arenas.items()):
            owner, sent, freed, *_ = arena.words
            if freed >= sent and not (owner and self._bells.is_alive(owner)):
                del self._arenas[other]
                self._directory.unlink(_arena_name(self.stem, other))
        arena = self._arenas[token] = Arena(map_file(self._directory, _arena_name(self.stem, token), os.O_RDWR))
        return arena


class Arena:
    """A mapped ring, and the words before it: the bell of its owner (0: it is done), how far that has sent, how far it is freed."""

    def __init__(self, view: memoryview) -> None:
        self.words = view[:_ARENA_HEAD].cast("Q")
        self.bytes = view[_ARENA_HEAD:]
        self.size = len(self.bytes)


def _arena_name(stem: str, token: int) -> str:
    return f"{stem}.{token:016x}"


def _aligned(size: int) -> int:
    return -(-size // _ARENA_HEAD) * _ARENA_HEAD


def _next_frame(data: bytes, position: int) -> int:
    """Where a frame may begin next; at the end of the data, as far back as a header that is cut there."""
    found = data.find(_PREFIX, position)
    return found if found >= 0 else max(position, len(data) - HEADER.size + 1)


class Outlet:
    """A writing end. From any thread; `send` and `offer` raise BrokenPipeError where the inbox's process is dead."""

    def __init__(self, name: str, directory: Directory, bells: Bells, member: int, *, max_pending: int, own: Inbox | None) -> None:
        self.name = name
        self.own = own
        self._stem = encode_name(name)
        self._directory = directory
        self._bells = bells
        self._member = member
        self._max_pending = max_pending
        self._mutex = threading.Lock()
        self._arena: Arena
        self._token = self._next = 0
        self._stuck_at = -1
        self._largest = _aligned(min(_ARENA_BYTES, max_pending // 4) // 2)
        writer = open_writer(directory, f"{self._stem}.fifo")
        if writer is None:
            raise QueueNotFound(f"there is no queue {name!r}")
        self.fifo = writer
        self._fifo_owned = Owned(partial(close_file, writer))
        try:
            self.head = map_file(directory, f"{self._stem}.head", os.O_RDWR, _HEAD_BYTES).cast("Q")
            log = directory.open(f"{self._stem}.log", os.O_RDWR)
        except FileNotFoundError:
            raise QueueNotFound(f"there is no queue {name!r}") from None
        self._log_owned = Owned(partial(close_file, log))
        self._log = log
        self._lock = Lock(log)

    def send(self, message: bytes) -> bool:
        """Deliver it without waiting; False where the inbox is full."""
        return (len(message) > INLINE_BYTES and self.send_by_arena(message)) or self.offer(frames_of(message))

    def send_by_arena(self, message: bytes) -> bool:
        """Deliver it through the arena; False where it is too large or there is no room."""
        size = len(message)
        with self._mutex:
            if size > self._largest or (not self._token and not self._make_arena()):
                return False
            position = self._find_room(size)
            if position < 0:
                return False
            arena = self._arena
            offset = position % arena.size
            arena.bytes[offset : offset + size] = message
            reference = _REFERENCE.pack(self._token, position, size)
            framed = pack_header(REFERENCE, len(reference), zlib.crc32(reference)) + reference
            if (self.head[LOGGED] or not self._write(framed)) and not self.offer([framed]):
                return False
            self._next = arena.words[_SENT] = position + _aligned(size)
            return True

    def offer(self, parts: list[bytes], sleeper: int = 0) -> bool:
        """Deliver a frame; False where there is no room, and then the bell of that number is rung when there is."""
        is_small = len(parts) == 1
        if is_small and not self.head[LOGGED] and self._write(parts[0]):
            return True
        while True:
            with self._lock:
                if is_small and not self.head[LOGGED] and self._write(parts[0]):
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
        self._write(_WAKE)

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

    def backlog(self) -> tuple[int, bool]:
        """How much waits, and whether the receiver is busy: the less, the sooner it gets to a new message."""
        return bytes_waiting(self.fifo) + self.head[LOGGED], not self.head[WAITING]

    # The lock is held

    def _write(self, small: bytes) -> bool:
        try:
            os.write(self.fifo, small)
        except BlockingIOError:
            return False
        return True

    def _append(self, parts: list[bytes]) -> bool:
        """Into the log, if there is room; one message, however large, always fits into an empty one."""
        logged = self.head[LOGGED]
        if logged and logged + sum(map(len, parts)) > self._max_pending:
            return False
        self.head[LOGGED] = logged + write_at(self._log, parts, logged)
        if not bytes_waiting(self.fifo):
            self._write(_NUDGE)
        return True

    def _sleepers(self) -> list[int]:
        return self.head[_SLEEPERS + 1 : _SLEEPERS + 1 + self.head[_SLEEPERS]].tolist()

    def _set_sleepers(self, numbers: list[int]) -> None:
        for place, number in enumerate(numbers, _SLEEPERS + 1):
            self.head[place] = number
        self.head[_SLEEPERS] = len(numbers)

    def _enrol(self, sleeper: int) -> None:
        numbers = self._sleepers()
        if sleeper and sleeper not in numbers and len(numbers) < _MOST_SLEEPERS:
            self._set_sleepers([*numbers, sleeper])

    # The arena; the mutex is held

    def _find_room(self, size: int) -> int:
        """Where in the arena, or -1; a reader that is at work is given time to make room, until it is found to be stuck."""
        ring, words = self._arena.size, self._arena.words
        end, seen, turns = 0.0, -1, 0
        while True:
            freed, position = words[_FREED], self._next
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
            view = map_file(self._directory, _arena_name(self._stem, token), os.O_RDWR | os.O_CREAT, _ARENA_HEAD + 2 * self._largest)
        except OSError:
            return False  # the file system is full: the log may still have room, or says so
        self._arena, self._token = Arena(view), token
        self._arena.words[_OWNER] = self._member
        self._arena_owned = Owned(partial(self._arena.words.__setitem__, _OWNER, 0))
        return True
