"""The reading end of an inbox; `frames` says what is in it."""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import select
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from io import FileIO
from os import sched_yield

from pymq.exceptions import ProviderError, QueueNotFound
from pymq.message import Head, size_of
from pymq.patience import Patience
from pymq.provider._shm.files import (
    Bells,
    Directory,
    Lock,
    Mutex,
    Owned,
    Removed,
    close_file,
    encode_name,
    interrupted,
    is_of_a_handler,
    is_removed,
    make_fifo,
    map_file,
    milliseconds,
)
from pymq.provider._shm.frames import (
    BEHIND,
    DATA,
    DELETED,
    DROPPED,
    FREED,
    HEAD_BYTES,
    HEADER,
    INLINE_BYTES,
    LARGE,
    LOCATION,
    LOGGED,
    NUDGE,
    NUDGE_FRAME,
    PREFIX,
    REFERENCE,
    SLEEPERS,
    STATE,
    URGENT,
    WAKE,
    WAKE_FRAME,
    Arena,
    aligned,
    arena_name,
    bytes_waiting,
    checksum,
    unpack_header,
)
from pymq.provider.base import BUSY, IDLE, RUNNING, Delivery

_CONTROL = (LARGE, REFERENCE, NUDGE, WAKE)
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
_PIPE_BYTES = 256 << 10
_BATCH = 64 << 10
"""Of 128 KiB and more, malloc gets each buffer from the kernel and gives it back: 22 us a read instead of 1.4."""
_LARGE_BATCH = 256 << 10
"""64 KiB copied into memory that was just freed: 3.5 us; into fresh pages, as when eight are held at once: 20."""
_KEPT_LOG_BYTES = 1 << 20
_HEADER_BYTES = HEADER.size
_LONGEST_SPIN = 0.05
"""Seconds: only who sleeps learns of the death of whom it watches, and a caller is to know within 0.1."""
ONCE = range(1)
"""How often a receiver looks who does not spin."""
_UNSURE = [-1]
"""In the place of the descriptors that are watched, while they are being changed."""
_LARGE_SPIN = 0.0001
"""For how many seconds a reader that has just received a large message yields the processor before it sleeps: in a stream of them
it would sleep between any two, and waking it costs both sides more than the message does."""
_PAUSE = 0.0001
_ENOUGH = 16 << 10
"""How many bytes are worth to be read at once in a stream: where fewer wait, the reader sleeps for so many seconds, and no write wakes
it. With four receivers on two processors a fifth more events come through. With half as many bytes it is some more, but they interrupt
the publisher of a burst to eight receivers: 9.2 us a publish instead of 8.6."""

logger = logging.getLogger("pymq")


class Inbox:
    """The reading end. Its files exist, and senders reach it, from the constructor on until `delete`, or this process's death.

    The registry's lock is held by whoever constructs one. One thread at a time receives; the others may call all the rest.
    """

    _gather = 0.00002
    """With four receivers on two processors that is half as many events a second again; with one it makes no difference."""
    _stream: float = 16
    """So many messages at once are a stream: it goes on where 160,000 a second come. Nobody waits for the next one where this process
    only listens; where it sends, each may be the answer to one of its own (32 events that go to and fro: half as many a second)."""

    _looks = range(4)
    """How often who spins reads before it yields the processor: a yield takes nearly as long as a read. To poll in the place of a read
    takes half of that, but then, when something is there, the read and the mutex come on top: 1 us more for a call."""

    def __init__(self, name: str, directory: Directory, bells: Bells) -> None:
        self.name = name
        self.stem = encode_name(name)
        self.corrupted = 0
        self._directory = directory
        self._bells = bells
        self._mutex = Mutex()
        self._found: list[Delivery] = []
        self._data = b""
        self._position = 0
        self._is_whole = True
        self._is_drained = False
        self._batch = 0.0
        self._done = 0
        self._woken = False
        self._was_large = False
        self._came = 0
        self._in_vain = 0.0
        self._patience = Patience()
        self._reported = 0
        self._arenas: dict[int, Arena] = {}
        self._registered: list[int] = []
        self._watched = self._registered
        self.head = map_file(directory, f"{self.stem}.head", os.O_RDWR | os.O_CREAT | os.O_EXCL, HEAD_BYTES).cast("Q")
        self._log = directory.open(f"{self.stem}.log", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._lock = Lock(self._log)
        self._fifo = make_fifo(directory, f"{self.stem}.fifo")
        self._receive: Callable[[int], bytes | None] = FileIO(self._fifo, closefd=False).read
        """None where there is nothing: 0.2 us less than to catch the exception of `os.read`."""
        self._owned = Owned(partial(close_file, self._fifo), partial(close_file, self._log))
        self.sources = [self._fifo]
        self._poll = select.poll()
        self._poll.register(self._fifo, select.POLLIN)
        try:
            fcntl.fcntl(self._fifo, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            pass  # this user has too many large pipes: a small one only means an earlier use of the log

    def look(self, timeout: float | None, spin: float | None, busy: bool) -> list[Delivery]:
        """What has come, or comes within so many seconds, for which it spins; where that is None, for as long as an answer takes,
        while that pays. Where several messages came last, it does not: `wait` lets more gather.

        On a single processor the other side runs in the first turn, and its answer is here when this goes on.
        """
        self.head[STATE] = BUSY if busy else RUNNING
        self._in_vain = 0.0
        if not self._is_drained or timeout == 0:
            found = self.take()
            if found or timeout == 0:
                self._woken = False
                return found
        seconds = self._patience.seconds if spin is None else spin
        if self._was_large:
            seconds, self._was_large = max(seconds, _LARGE_SPIN), False
        elif self._came > 1:
            return []
        if not seconds:
            return []
        sched_yield()
        found = self.take()
        if not found:
            seconds = min(seconds, _LONGEST_SPIN, math.inf if timeout is None else timeout)
            found = self._spin(seconds)
            self._in_vain = 0.0 if found or self._woken else seconds
        if found:
            self._patience.failures, self._woken = 0, False
        return found

    def wait(self, timeout: float | None, spin: float | None, watch: Sequence[int], busy: bool, only_listens: bool) -> list[Delivery]:
        """What comes next, where `look` found nothing; [] after the timeout, when woken, and when the reader of one of the write ends
        `watch` has died. Whose process only listens, and does not spin, may sleep in a stream.
        """
        found: list[Delivery] = []
        if watch != self._watched:
            self._watch(watch)
        begin = time.monotonic()
        end = math.inf if timeout is None else begin + timeout - self._in_vain
        if self._came >= self._stream and only_listens and spin == 0:
            found = self._pause()
        elif self._came > 1:
            found = self._let_gather(begin + self._gather)
        dead = False
        while not (found or self._woken or dead or (timeout is not None and time.monotonic() >= end)):
            dead = self._sleep(end, busy)
            found = self.take()
        if spin is None:
            self._patience.learn(False, self._in_vain > 0, time.monotonic() - begin)
        self._woken = False
        return found

    def take(self, looks: Iterable[int] = ONCE) -> list[Delivery]:
        """All that has come, without waiting, but for looking so many times where there is nothing."""
        mutex = self._mutex
        with mutex.mutex:  # `with mutex` written out: 0.5 us less
            if mutex.is_held:
                raise interrupted()
            try:
                mutex.is_held = True
                head = self.head
                if head[DELETED]:
                    raise QueueNotFound(f"the temporary queue {self.name!r} was deleted")
                if self._data or self._found:
                    self._read(_LARGE_BATCH)
                    return self._taken()
                for _ in looks:
                    data = self._receive(_BATCH)
                    if data is not None:
                        self._data = data  # kept until it is returned: a signal handler may raise
                        break
                else:
                    data = b""
                size = len(data) - _HEADER_BYTES
                if size >= 0 and not head[LOGGED]:
                    magic, length, expected = unpack_header(data)
                    if length == size and magic == DATA and checksum(body := data[_HEADER_BYTES:]) == expected:
                        # one small message, as in a conversation: 1 us less than by what follows
                        self._came, self._is_drained, self._data = 1, not self._woken, b""
                        return [(body, None)]
                self._take(data)
                return self._taken()
            finally:
                mutex.is_held = False

    def make_room(self) -> None:
        """Move what has come into memory, for a sender of this same process, which must not wait for itself."""
        with self._mutex:
            self._load_pipe()
            self._read(math.inf)
        self._signal(NUDGE_FRAME)

    def size(self) -> int:
        """How many messages have come."""
        self.make_room()
        return len(self._found)

    def look_at_files(self) -> None:
        """Raises Removed where somebody has removed them."""
        if is_removed(self._fifo) and not self.head[DELETED]:
            raise Removed(f"the files of the temporary queue {self.name!r} were removed while it was in use")

    def follow(self, former: Inbox) -> None:
        """Take over what has come to that one, whose files were removed, and go on counting where it has stopped."""
        with self._mutex:
            with suppress(OSError, ProviderError):  # what cannot be read now is part of the gap
                self._found = former.take() + self._found
            self.corrupted += former.corrupted
            self.head[DROPPED] = self._reported = former.head[DROPPED]
        former.wake()

    def wake(self) -> None:
        """A blocked receive returns."""
        self._signal(WAKE_FRAME)

    def delete(self) -> None:
        """Receiving raises QueueNotFound from now on. The files are the registry's to remove."""
        self.head[DELETED] = 1
        self.wake()

    def _signal(self, signal: bytes) -> None:
        with suppress(OSError):  # full: nobody sleeps on it; or there is no memory for it, and who wants to wake it tries again
            os.write(self._fifo, signal)

    def _spin(self, seconds: float) -> list[Delivery]:
        """What comes within so many seconds, without sleeping: to be woken takes 30 to 80 us, a look 1."""
        end = time.monotonic() + seconds
        while not (found := self.take(self._looks)) and not self._woken and time.monotonic() < end:
            sched_yield()
        return found

    def _let_gather(self, end: float) -> list[Delivery]:
        """What comes until then, without a look before: who sleeps in a stream is woken by, and for, a single message."""
        while time.monotonic() < end:
            sched_yield()
        return self.take()

    def _pause(self) -> list[Delivery]:
        """What comes while the others run, and, where that is little, while this sleeps."""
        self._came = 0  # a signal handler may raise: then the next receive is not to sleep again
        sched_yield()
        if bytes_waiting(self._fifo) < _ENOUGH:
            time.sleep(_PAUSE)
        return self.take()

    def _watch(self, writers: Sequence[int]) -> None:
        """Whose death ends a sleep from now on: most callers watch the same server as before.

        A signal handler may raise anywhere: then it is done again.
        """
        self._watched = _UNSURE
        for writer in self._registered:
            with suppress(KeyError):
                self._poll.unregister(writer)
        self._registered = list(writers)
        for writer in writers:
            self._poll.register(writer, 0)
        self._watched = self._registered

    def _sleep(self, end: float, busy: bool) -> bool:
        """Until something comes, the end, or a death (True)."""
        head = self.head
        head[STATE] = BUSY if busy else IDLE
        try:
            ready = self._poll.poll(None if end == math.inf else milliseconds(end - time.monotonic()))
        finally:
            head[STATE] = BUSY if busy else RUNNING
        if len(ready) < 2 and (not ready or ready[0][0] in self.sources):
            return False
        if all(fd in self.sources for fd, _ in ready):
            return False
        self._watch([])  # a descriptor that was closed and given away again must not stay
        return True

    # The mutex is held

    def _take(self, data: bytes) -> None:
        """What was read, where nothing else was left."""
        self._batch, self._position = _LARGE_BATCH, 0
        self._is_whole = len(data) < _BATCH or not self._load_pipe()
        self._parse()
        if self.head[LOGGED] and self._batch > 0:
            self._read(self._batch)

    def _taken(self) -> list[Delivery]:
        found, self._found = self._found, []
        self._came = len(found)
        # then a poll is all it takes to learn of more: half of a read that finds nothing
        self._is_drained = self._is_whole and not self._data and not self.head[LOGGED] and not self._woken
        return found

    def _read(self, batch: float) -> None:
        """What has come, but of what is large about `batch` bytes: receivers that free one before the next reuse warm memory.

        What is added to the log meanwhile waits for the next time: a sender is as fast as this, which found no end (218,000 events
        in one batch, at a third of the speed).
        """
        self._batch = batch
        if self._data:
            self._parse()
        if not self._found and self._load():
            self._parse()
        until = self.head[LOGGED]
        while (end := self.head[LOGGED]) and (self._batch > 0 or end == self._done):
            if end == self._done:
                self._reset_log()
            elif self._done < until or not self._found:
                self._read_log(end)
            else:
                break

    def _read_log(self, end: int) -> None:
        while self._load():
            pass
        self._add(os.pread(self._log, end - self._done, self._done), True)
        self._done = end
        self._parse()

    def _load(self) -> bool:
        """Read what is on its way; False where there is nothing."""
        data = self._receive(_BATCH)
        if data is None:
            return False
        self._add(data, len(data) < _BATCH)
        return True

    def _load_pipe(self) -> bool:
        """Read as much as a pipe holds; whether there may be more."""
        return all(self._load() and not self._is_whole for _ in range(_PIPE_BYTES // _BATCH))

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
            head[LOGGED] = head[BEHIND] = head[URGENT] = self._done = 0
            sleepers = head[SLEEPERS + 1 : SLEEPERS + 1 + head[SLEEPERS]].tolist()
            head[SLEEPERS] = 0
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
        found: list[Delivery] = []  # noted together with the position, in one step: a signal handler may raise at any call
        add, unpack = found.append, unpack_header
        last = len(data) - _HEADER_BYTES
        while position <= last:
            magic, length, expected = unpack(data, position)
            begin = position + 12
            end = begin + length
            body = data[begin:end]
            if magic == DATA and checksum(body) == expected and len(body) == length:
                add((body, None))
                position = end
            elif magic in _CONTROL and checksum(body) == expected and len(body) == length:
                # should this raise, it is what the next `take` begins with
                self._found, self._position, self._is_drained = self._found + found, position, False
                found.clear()
                self._batch -= self._control(magic, body)
                position = self._position = end
                if self._batch <= 0:
                    return
            elif not self._is_whole and end > len(data) and length <= INLINE_BYTES and data.startswith(PREFIX, position):
                break
            else:
                self.corrupted += 1
                position = _next_frame(data, position + 1)
        if self._is_whole:
            self.corrupted += position < len(data)
            position = len(data)
        self._found, self._data, self._position = self._found + found, data[position:], 0

    def _control(self, magic: int, body: bytes) -> int:
        """Do what a frame says that is no small message; the size of the large one that it brings."""
        if magic == WAKE:
            self._woken = True
        if magic in (NUDGE, WAKE):
            return 0
        try:
            message = body if magic == LARGE else self._fetch(body)
        except (OSError, ValueError, struct.error) as error:
            if is_of_a_handler(error) or getattr(error, "errno", 0) in _PASSING:
                raise  # the message is there, and will be when there is room for its descriptor or its pages
            self.corrupted += 1  # there is no such arena
            return 0
        self._found.append((message, None))
        self._was_large = True
        return size_of(message)

    def _fetch(self, reference: bytes) -> bytes:
        """Copy a message, or all behind its head, out of an arena, and free it there."""
        token, position, length = LOCATION.unpack_from(reference)
        arena = self._arenas.get(token) or self._open_arena(token)
        offset = position % arena.size
        payload = bytes(arena.bytes[offset : offset + length])
        arena.words[FREED] = position + aligned(length)
        if len(reference) == LOCATION.size:
            return payload
        head = Head(reference[LOCATION.size :])
        head.payload = payload
        return head

    def _open_arena(self, token: int) -> Arena:
        for other, arena in list(self._arenas.items()):
            owner, sent, freed, *_ = arena.words
            if freed >= sent and not (owner and self._bells.is_alive(owner)):
                del self._arenas[other]
                self._directory.unlink(arena_name(self.stem, other))
        arena = self._arenas[token] = Arena.open(self._directory, arena_name(self.stem, token))
        return arena


def _next_frame(data: bytes, position: int) -> int:
    """Where a frame may begin next; at the end of the data, as far back as a header that is cut there."""
    found = data.find(PREFIX, position)
    return found if found >= 0 else max(position, len(data) - HEADER.size + 1)
