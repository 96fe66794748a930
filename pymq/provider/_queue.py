"""A queue shared by processes: files in one directory, one lock, and a commit point for every change.

**The lock.** Everything below is read and written under one `flock`, so there are no questions of memory order; what is left is
a process that dies (kill -9) between two of its stores.

**The log.** A message is a record `crc, mark, length, due, expiry, message` in a segment file that only grows. There are ten
levels of priority, each with segments of its own. A *position* is one word: `level << 60 | segment << 32 | offset`; its upper
half names the file. The offset begins behind one word, the number of claims that keep a segment which the head has left.

**The state** is a mapped file of native words, allocated before it is touched (a full file system is an error, never a SIGBUS):

    0 magic and version   STATUS: dirty, deleted   counters   MASK: levels above 0 that may hold something
    LEVELS      per level: which of two copies is valid, copy, copy; a copy is `head, tail, count, bytes`
    RECEIVERS, SENDERS, OWNERS   tables: how many, then that many numbers of bells
    SLOTS       the claims, eight words each

*put*: write the record behind the tail, ring the sleepers, write the copy that is not valid, flip: one store is the commit. The
rings come first, since a process killed behind the flip would leave the others asleep before a message.

*get*: read the record at the head, move the head by such a flip.

**Claims.** A message that was delivered under a lease, or that is delayed, has left the log's head and is held by a slot:
`receipt, due, owner, attempt, position, size`. A slot counts when its receipt is not 0 and its position lies before the head, so
the flip that moves the head also makes the claims true. `due` is when the message is to be delivered (again): the slots form a
binary heap by it, kept in each slot's last two words, hence nothing here takes time in proportion to what is leased or delayed.

Heap, free list and sums follow from the slots: whoever changes them marks the state dirty first, and whoever finds it dirty
rebuilds them. That is all there is to recovery.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import queue
import struct
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from fcntl import LOCK_UN, flock
from os import pread, pwrite
from time import monotonic_ns
from typing import TypeAlias
from zlib import crc32

from pymq.exceptions import LeaseLost, ProviderError, PymqError, QueueNotFound
from pymq.provider._files import EXCLUSIVE_NOW, Bell, Bells, Directory, Lock, close_file, is_dead
from pymq.provider.base import Delivery, Receipt

LEVELS_COUNT = 10
SEGMENT_BYTES = 4 << 20

_FORMAT = int.from_bytes(b"pymq-q\0\1", "little")
_STATUS, _NEXT, _HEAPED, _LEASED, _HELD, _FREE, _USED, _ALLOCATED, _ARMED, _EXPIRED, _CORRUPT, _MASK, _BUSY = range(1, 14)
_DIRTY, _DELETED = 1, 2
_LEVELS = 32
_RECEIVERS, _SENDERS, _OWNERS, _SLOTS = 512, 1024, 1536, 2048
_TABLE_SIZE = 511
_SLOT_WORDS = 8
_RECEIPT, _DUE, _OWNER, _ATTEMPT, _POSITION, _SIZE, _INDEX, _HEAP = range(_SLOT_WORDS)
_MOST_SLOTS = 1 << 20  # the file is that large but for its holes: it is mapped once, and allocated as it is used
_GROWTH = 512
_FIRST_SLOTS = 64

_LEVEL = struct.Struct("=4Q")
_SLOT = struct.Struct("=5Q")
_RECORD = struct.Struct("=IIQQQ")
_HEADER = _RECORD.size
_unpack_level, _pack_level = _LEVEL.unpack_from, _LEVEL.pack_into
_unpack_record, _pack_record = _RECORD.unpack_from, _RECORD.pack
_MARK = 0x71796D70
_START = 8
_OFFSET = 0xFFFFFFFF
_NEVER = 1 << 63
_NS = 1_000_000_000
_LOOK_NS = 10_000_000  # how often a receiver that never sleeps looks for deaths
_MOST_SKIPPED = 1000  # expired or delayed records in one hold of the lock: about 2 ms
_SPIN = 20  # turns of 0.4 us before a receiver goes to sleep
_FIRST_COPY = 8 * _LEVELS + 32


_COUNT = 0xFFFFFFFF
_EPOCH = 1 << 32  # in the upper half of a level's count: how often it has gone back to the start of its segment
_WORD = (1 << 64) - 1
_CHUNK = 1 << 16
_NO_CHUNK = (0, 0, b"")
_Ahead: TypeAlias = "tuple[int, int, int, bytes]"


class LeaseReceipt(Receipt):
    """A receipt that knows its claim: the slot, and the number that the slot bears while the claim is this one's."""

    __slots__ = ("number", "slot")

    def __init__(self, queue: str, attempt: int, slot: int, number: int) -> None:
        self.queue = queue
        self.attempt = attempt
        self.slot = slot
        self.number = number


class _Guard(Lock):
    """The queue's lock; what fails while it is held, because of a full disk or damaged files, becomes a ProviderError."""

    def __enter__(self) -> None:
        if self.fd < 0:
            raise ProviderError("the queue was closed")
        Lock.__enter__(self)

    def __exit__(self, *error: object) -> None:
        Lock.__exit__(self)
        if isinstance(error[1], Exception):
            raise _translated(error[1])


def _translated(error: Exception) -> Exception:
    if isinstance(error, PymqError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        result = ProviderError("/dev/shm is full: free some space, or set PYMQ_HOME to a directory with more")
    else:
        result = ProviderError(f"the queue's files are damaged, or it was closed ({error!r}); delete the queue")
    result.__cause__ = error
    return result


class _State:
    """The mapped words, the levels' commit points and the tables of bells."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.map = mmap.mmap(fd, (_SLOTS + _MOST_SLOTS * _SLOT_WORDS) * 8)
        self.words = memoryview(self.map).cast("Q")

    def level(self, level: int) -> tuple[int, int, int, int]:
        """Head, tail, count and bytes of a level."""
        at = _LEVELS + 16 * level
        copy: tuple[int, int, int, int] = _unpack_level(self.map, 8 * at + (64 if self.words[at] & 1 else 32))
        return copy

    def head(self, level: int) -> int:
        at = _LEVELS + 16 * level
        return self.words[at + 4 + 4 * (self.words[at] & 1)]

    def busy_levels(self) -> list[int]:
        """The levels that may hold something, the highest first."""
        mask = self.words[_MASK]
        return [level for level in range(LEVELS_COUNT - 1, 0, -1) if mask >> level & 1] + [0] if mask else [0]

    def table(self, table: int) -> list[int]:
        """The numbers in a table."""
        return self.words[table + 1 : table + 1 + min(self.words[table], _TABLE_SIZE)].tolist()

    def set_table(self, table: int, numbers: list[int]) -> None:
        for place, number in enumerate(numbers, table + 1):
            self.words[place] = number
        self.words[table] = len(numbers)

    def join(self, table: int, number: int) -> bool:
        """Add a number; False where there is no room."""
        numbers = self.table(table)
        if number not in numbers:
            if len(numbers) == _TABLE_SIZE:
                return False
            self.words[table + 1 + len(numbers)] = number
            self.words[table] = len(numbers) + 1
        return True

    def leave(self, table: int, number: int) -> None:
        """Remove a number, if it is there."""
        numbers = self.table(table)
        if number in numbers:
            self.set_table(table, [other for other in numbers if other != number])


class _Claims:
    """The slots and their heap by `due`. Whoever calls what changes them has marked the state dirty."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._words = state.words

    def top(self) -> int:
        """The slot that is due first; only where there is one."""
        return self._words[_SLOTS + _HEAP]

    def next_due(self) -> int:
        """When the first is due."""
        return self._words[self.top() + _DUE] if self._words[_HEAPED] else _NEVER

    def all(self) -> list[int]:
        """Every slot in use, in no order."""
        words = self._words
        return [words[at] for at in range(_SLOTS + _HEAP, _SLOTS + words[_HEAPED] * _SLOT_WORDS, _SLOT_WORDS)]

    def add(self, position: int, size: int, attempt: int, owner: int, due: int) -> tuple[int, int]:
        """A new claim: its slot and receipt number. The receipt is stored last: until then the slot is free."""
        words = self._words
        slot = words[_FREE]
        if slot:
            words[_FREE] = words[slot + _INDEX]
        else:
            slot = self._fresh()
        number = words[_NEXT] + 1
        words[_NEXT] = number
        _SLOT.pack_into(self._state.map, 8 * (slot + 1), due, owner, attempt, position, size)
        words[slot] = number
        if owner:
            words[_LEASED] += 1
        words[_HELD] += size
        place = words[_HEAPED]
        words[_HEAPED] = place + 1
        if place:
            self._sift_up(place, slot, due)
        else:
            words[_SLOTS + _HEAP] = slot
            words[slot + _INDEX] = 0
        return slot, number

    def renew(self, slot: int, owner: int, due: int) -> int:
        """Another delivery of the same message: its new receipt number. The owner first: should it die now, its death counts."""
        words = self._words
        if not words[slot + _OWNER]:
            words[_LEASED] += 1
        words[slot + _OWNER] = owner
        number = words[_NEXT] + 1
        words[_NEXT] = words[slot] = number
        words[slot + _ATTEMPT] += 1
        self.move(slot, due)
        return number

    def release(self, slot: int, due: int) -> None:
        """Nobody's any more; the owner goes last: should it die before, its death counts."""
        self.move(slot, due)
        self._words[slot + _OWNER] = 0
        self._words[_LEASED] -= 1

    def move(self, slot: int, due: int) -> None:
        """Set when it is due."""
        self._words[slot + _DUE] = due
        self._sift(self._words[slot + _INDEX], slot, due)

    def remove(self, slot: int) -> None:
        """Forget the claim: the first store is the commit."""
        words = self._words
        words[slot] = 0
        if words[slot + _OWNER]:
            words[_LEASED] -= 1
        words[_HELD] -= words[slot + _SIZE]
        last = words[_HEAPED] - 1
        words[_HEAPED] = last
        moved = words[_SLOTS + last * _SLOT_WORDS + _HEAP]
        if moved != slot:
            self._sift(words[slot + _INDEX], moved, words[moved + _DUE])
        words[slot + _INDEX] = words[_FREE]
        words[_FREE] = slot

    def rebuild(self) -> None:
        """Heap, free list and sums from nothing but the slots and the heads."""
        words = self._words
        heads = [self._state.head(level) for level in range(LEVELS_COUNT)]
        words[_FREE] = 0
        valid = []
        for slot in range(_SLOTS, _SLOTS + words[_USED] * _SLOT_WORDS, _SLOT_WORDS):
            position = words[slot + _POSITION]
            if words[slot] and position < heads[position >> 60]:
                valid.append(slot)
            else:
                words[slot] = 0
                words[slot + _INDEX] = words[_FREE]
                words[_FREE] = slot
        valid.sort(key=lambda slot: words[slot + _DUE])
        for place, slot in enumerate(valid):
            self._set(place, slot)
        words[_HEAPED] = len(valid)
        words[_LEASED] = sum(words[slot + _OWNER] != 0 for slot in valid)
        words[_HELD] = sum(words[slot + _SIZE] for slot in valid)

    def lapsed(self, now: int) -> int:
        """How many leases have ended and were not taken again; looks only at what is due."""
        words, todo, found = self._words, [0], 0
        while todo:
            place = todo.pop()
            slot = words[_SLOTS + place * _SLOT_WORDS + _HEAP] if place < words[_HEAPED] else 0
            if slot and words[slot + _DUE] <= now:
                found += words[slot + _OWNER] != 0
                todo += (2 * place + 1, 2 * place + 2)
        return found

    def _fresh(self) -> int:
        words = self._words
        used = words[_USED]
        if used == words[_ALLOCATED]:
            if used >= _MOST_SLOTS:
                raise ProviderError(f"more than {_MOST_SLOTS} messages are leased or delayed")
            os.posix_fallocate(self._state.fd, (_SLOTS + used * _SLOT_WORDS) * 8, _GROWTH * _SLOT_WORDS * 8)
            words[_ALLOCATED] = used + _GROWTH
        words[_USED] = used + 1
        return _SLOTS + used * _SLOT_WORDS

    def _set(self, place: int, slot: int) -> None:
        self._words[_SLOTS + place * _SLOT_WORDS + _HEAP] = slot
        self._words[slot + _INDEX] = place

    def _sift(self, place: int, slot: int, due: int) -> None:
        self._sift_down(self._sift_up(place, slot, due), slot, due)

    def _sift_up(self, place: int, slot: int, due: int) -> int:
        words = self._words
        while place:
            parent = (place - 1) >> 1
            other = words[_SLOTS + parent * _SLOT_WORDS + _HEAP]
            if words[other + _DUE] <= due:
                break
            self._set(place, other)
            place = parent
        self._set(place, slot)
        return place

    def _sift_down(self, place: int, slot: int, due: int) -> None:
        words = self._words
        size = words[_HEAPED]
        while (child := 2 * place + 1) < size:
            children = [words[_SLOTS + place * _SLOT_WORDS + _HEAP] for place in (child, child + 1) if place < size]
            other = min(children, key=lambda slot: words[slot + _DUE])
            if due <= words[other + _DUE]:
                break
            self._set(place, other)
            place = child + children.index(other)
        self._set(place, slot)


class _Log:
    """The segment files, by position."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.files: dict[int, int] = {}
        self._chunk = _NO_CHUNK
        self._guess = 256

    def place(self, tail: int, size: int) -> tuple[int, int]:
        """The position for a record of that size behind the tail, in a new segment where this one is full; and its file."""
        offset = tail & _OFFSET
        if offset + size > SEGMENT_BYTES and offset > _START:
            os.ftruncate(self._file(tail >> 32), offset)
            tail = ((tail >> 32) + 1 << 32) | _START
        return tail, self._file(tail >> 32, os.O_CREAT)

    def load(self, head: int, tail: int, epoch: int) -> None:
        """Read a chunk from the head on: under the lock, so all of it is committed, and nothing of it changes in this epoch."""
        file = self.files.get(head >> 32)
        if file is None:
            file = self._file(head >> 32)
        self._chunk = epoch, head, pread(file, min(tail - head, _CHUNK), head & _OFFSET)

    def ahead(self, head: int, epoch: int) -> _Ahead | None:
        """The plain record at the head, if it is in the chunk. Needs no lock: a third of a get is done before it is taken.

        Whoever uses it compares head and epoch under the lock. None for whatever is not usual.
        """
        loaded, start, data = self._chunk
        at = head - start
        if loaded != epoch or not 0 <= at <= len(data) - _HEADER:
            return None
        crc, mark, length, due, expiry = _unpack_record(data, at)
        end = at + _HEADER + length
        message = data[at + _HEADER : end]
        if due or expiry or mark != _MARK or end > len(data) or crc != crc32(message, length):
            return None
        return head, epoch, (_HEADER + length + 7) & ~7, message

    def read(self, position: int) -> tuple[int, bytes, int, int] | None:
        """The size, message, due and expiry of the record there; None at the end of a segment, ValueError for a bad one."""
        file = self.files.get(position >> 32)
        if file is None:
            file = self._file(position >> 32)
        data = pread(file, self._guess, position & _OFFSET)
        if len(data) < _HEADER:
            if not data:
                return None
            raise ValueError(f"the record at {position:x} is cut short")
        crc, mark, length, due, expiry = _unpack_record(data)
        end = _HEADER + length
        if end > len(data):
            data += pread(file, min(end - len(data), os.fstat(file).st_size), (position & _OFFSET) + len(data))
            self._guess = min(1 << end.bit_length(), 1 << 16)
        message = data[_HEADER:end]
        right = _checksum(message, due, expiry) if due or expiry else crc32(message, length & _COUNT)
        if mark != _MARK or len(message) != length or crc != right:
            raise ValueError(f"the record at {position:x} is damaged")
        return (end + 7) & ~7, message, due, expiry

    def after_damage(self, position: int, end: int) -> int:
        """Where the next good record is: the end where there is none (the next segment, while this is not the last)."""
        same = position >> 32 == end >> 32
        file = self._file(position >> 32)
        last = end & _OFFSET if same else os.fstat(file).st_size
        for at in range((position & _OFFSET) + 8, last, 8):
            if pread(file, 4, at + 4) == _MARK.to_bytes(4, sys.byteorder):
                try:
                    self.read(position >> 32 << 32 | at)
                except ValueError:
                    continue
                return position >> 32 << 32 | at
        return end if same else (position >> 32 << 32) | _padded(last)

    def keep(self, segment: int, claims: int) -> None:
        """The segment is needed by that many claims: with none it is removed."""
        if claims:
            pwrite(self._file(segment), claims.to_bytes(8, sys.byteorder), 0)
            return
        self._forget(segment)
        self._directory.unlink(_segment_name(segment))

    def drop_claim(self, segment: int) -> None:
        """One claim fewer needs the segment."""
        self.keep(segment, int.from_bytes(pread(self._file(segment), 8, 0), sys.byteorder) - 1)

    def segments(self) -> list[int]:
        """Those that exist."""
        return [int(name[4:], 16) for name in self._directory.names() if name.startswith("log.")]

    def close(self) -> None:
        for segment in list(self.files):
            self._forget(segment)

    def _file(self, segment: int, flags: int = 0) -> int:
        file = self.files.get(segment)
        if file is None:
            if len(self.files) == 4:
                self._forget(next(iter(self.files)))
            file = self.files[segment] = self._directory.open(_segment_name(segment), os.O_RDWR | flags)
        return file

    def _forget(self, segment: int) -> None:
        file = self.files.pop(segment, None)
        if file is not None:
            close_file(file)


def _segment_name(segment: int) -> str:
    return f"log.{segment:08x}"


def _padded(size: int) -> int:
    return (size + 7) & ~7


def _checksum(message: bytes, due: int, expiry: int) -> int:
    """Over the whole record: what is 0 in most of them costs them nothing."""
    return crc32(message, crc32(b"%d %d" % (due, expiry), len(message)) if due or expiry else len(message))


def _record(message: bytes, delay: float, ttl: float | None) -> bytes:
    now = monotonic_ns()
    due = now + int(delay * _NS) if delay > 0 else 0
    expiry = 0 if ttl is None else now + int(ttl * _NS)
    return _pack_record(_checksum(message, due, expiry), _MARK, len(message), due, expiry) + message


class SharedQueue:
    """First in, first out, but for what comes again; see the top of this file. Every method may be called from any thread.

    `directory` is the queue's own; `member` is the number of a bell of this process that lives as long as the process does.
    Times are in seconds. Every method raises ProviderError where the files are damaged, of another version, or /dev/shm is full,
    and QueueNotFound where the queue is deleted; so does the constructor where it does not exist and `create` is false.
    """

    def __init__(self, name: str, directory: Directory, bells: Bells, member: int, max_bytes: int, create: bool) -> None:
        self.name = name
        self._bells = bells
        self._member = member
        self._max_bytes = max_bytes
        self._next_look = 0
        self._is_owner = False
        self._closed = False
        self._directory = directory
        try:
            while not self._open(directory.open("state", os.O_RDWR | (os.O_CREAT if create else 0)), create):
                pass  # deleted while this opened it, so it is gone from the directory: the next is another
        except FileNotFoundError:
            raise QueueNotFound(f"there is no queue {name!r}") from None

    def _open(self, fd: int, create: bool) -> bool:
        self._lock = _Guard(fd)
        self._log = _Log(self._directory)
        try:
            with self._lock:
                if create and pread(fd, 8, 0) in (b"", bytes(8)):
                    _format(fd)
                found = int.from_bytes(pread(fd, 8, 0), sys.byteorder)
                if not found:
                    raise QueueNotFound(f"there is no queue {self.name!r}")
                if found != _FORMAT:
                    raise ProviderError(f"queue {self.name!r} is of another version of pymq ({found:x}); delete it first")
                self._state = _State(fd)
        except BaseException:
            close_file(fd)
            raise
        self._words = self._state.words
        self._claims = _Claims(self._state)
        if self._words[_STATUS] == _DELETED:
            close_file(fd)
            return False
        return True

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
        if delay or ttl is not None:
            record = _record(message, delay, ttl)
        else:
            length = len(message)
            record = _pack_record(crc32(message, length), _MARK, length, 0, 0) + message
        if not 0 <= priority < LEVELS_COUNT:
            raise ValueError(f"priority must be 0 to {LEVELS_COUNT - 1}, not {priority}")
        lock = self._lock
        words = self._words
        with lock.mutex:  # `with lock` written out, here, in receive and in ack: it would be a quarter of a put
            if words[_BUSY]:
                self._spin_busy()
            try:
                flock(lock.fd, EXCLUSIVE_NOW)
            except BlockingIOError:
                lock.wait()
            except ValueError:
                raise ProviderError(f"queue {self.name!r} was closed") from None
            try:
                words[_BUSY] = 1
                done = self._append(record, priority, maxsize)
            except Exception as error:
                raise _translated(error)
            finally:
                words[_BUSY] = 0
                flock(lock.fd, LOCK_UN)
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
        words = self._words
        if words[_OWNERS] > self._is_owner:
            self._look_for_deaths()
        lock = self._lock
        with lock.mutex:
            head, _, count, _ = _unpack_level(self._state.map, _FIRST_COPY + 32 * (words[_LEVELS] & 1))
            ahead = self._log.ahead(head, count & ~_COUNT)
            if words[_BUSY]:
                self._spin_busy()
            try:
                flock(lock.fd, EXCLUSIVE_NOW)
            except BlockingIOError:
                lock.wait()
            except ValueError:
                raise ProviderError(f"queue {self.name!r} was closed") from None
            try:
                words[_BUSY] = 1
                found = self._take(limit, lease, ahead)
            except Exception as error:
                raise _translated(error)
            finally:
                words[_BUSY] = 0
                flock(lock.fd, LOCK_UN)
        while not found and self._peek():  # there is more behind what was skipped
            with self._lock:
                found = self._take(limit, lease)
        if found or timeout == 0:
            return found
        return self._wait_for_messages(timeout, limit, lease, watch_fds, stopped)

    def ack(self, receipt: LeaseReceipt) -> None:
        """The message is forgotten. Raises LeaseLost, and changes nothing, when the lease had ended."""
        words, lock = self._words, self._lock
        with lock.mutex:
            if words[_BUSY]:
                self._spin_busy()
            try:
                flock(lock.fd, EXCLUSIVE_NOW)
            except BlockingIOError:
                lock.wait()
            except ValueError:
                raise ProviderError(f"queue {self.name!r} was closed") from None
            try:
                words[_BUSY] = 1
                self._check(receipt)
                words[_STATUS] = _DIRTY
                self._drop(receipt.slot)
                words[_STATUS] = 0
            except Exception as error:
                raise _translated(error)
            finally:
                words[_BUSY] = 0
                flock(lock.fd, LOCK_UN)

    def nack(self, receipt: LeaseReceipt, delay: float = 0) -> None:
        """The message is to be delivered again after `delay`. Raises LeaseLost as `ack` does."""
        due = monotonic_ns() + int(delay * _NS)
        with self._lock:
            self._check(receipt)
            self._words[_STATUS] = _DIRTY
            self._rearm(due)
            self._claims.release(receipt.slot, due)
            self._words[_STATUS] = 0

    def extend(self, receipt: LeaseReceipt, seconds: float) -> None:
        """The lease ends `seconds` from now. Raises LeaseLost as `ack` does."""
        due = monotonic_ns() + int(seconds * _NS)
        with self._lock:
            self._check(receipt)
            self._words[_STATUS] = _DIRTY
            self._rearm(due)
            self._claims.move(receipt.slot, due)
            self._words[_STATUS] = 0

    def size(self) -> int:
        """How many messages wait: those with a live lease do not count, the delayed do."""
        with self._lock:
            self._enter()
            return self._waiting() + self._claims.lapsed(monotonic_ns())

    def counters(self) -> dict[str, int]:
        """What is in the queue, and what was dropped so far because it had expired or was damaged."""
        with self._lock:
            self._enter()
            lapsed = self._claims.lapsed(monotonic_ns())
            return {
                "waiting": self._waiting() + lapsed,
                "leased": self._words[_LEASED] - lapsed,
                "bytes": self._bytes(),
                "expired": self._words[_EXPIRED],
                "corrupt": self._words[_CORRUPT],
            }

    def is_idle_and_empty(self) -> bool:
        """Whether it holds nothing and no living process waits on it: then its files may go."""
        with self._lock:
            self._enter()
            waiters = self._state.table(_RECEIVERS) + self._state.table(_SENDERS)
            empty = not self._waiting() and not self._words[_LEASED]
        return empty and not any(self._bells.is_alive(number) for number in waiters)

    def mark_deleted(self) -> None:
        """Every call from now on, also one that waits, raises QueueNotFound; the files are unlinked."""
        with self._lock:
            if self._words[_STATUS] == _DELETED:
                return  # the names may be those of a successor by now
            self._words[_STATUS] = _DELETED
            self._ring(_RECEIVERS)
            self._ring(_SENDERS)
            for name in self._directory.names():
                self._directory.unlink(name)

    def close(self) -> None:
        """Let go of the files; what is leased to this process is for others at once. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            with self._lock:
                if self._words[_STATUS] != _DELETED and self._member in self._state.table(_OWNERS):
                    self._release([self._member])
        except ProviderError:
            pass  # damaged, or held by a stopped process: what is leased comes back by this process's end
        with self._lock.mutex:  # the mapping stays for a thread that is about to look at it
            self._log.close()
            close_file(self._lock.fd)
            self._lock.fd = -1

    # Waiting

    def _wait_for_messages(
        self, timeout: float | None, limit: int, lease: float | None, watch_fds: Sequence[int], stopped: Callable[[], bool]
    ) -> list[Delivery]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._spin()
        bell = self._bells.borrow()
        ended = False
        try:
            while not self._closed:
                with self._lock:
                    found = [] if stopped() else self._take(limit, lease)
                    if found or ended or stopped():
                        self._state.leave(_RECEIVERS, bell.number)
                        return found
                    if self._peek():
                        continue
                    wake = self._arm(bell)
                    owners = self._others()
                rung = self._sleep(bell, min(deadline, wake), owners, watch_fds)
                ended = time.monotonic() >= deadline or (not rung and any(is_dead(fd) for fd in watch_fds))
            return []
        finally:
            self._bells.give_back(bell)

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

    def _spin(self) -> None:
        """Yield for as long as a put takes: a receiver that is a little faster than its sender need not be woken each time."""
        for _ in range(_SPIN):
            if self._peek():
                return
            os.sched_yield()

    def _spin_busy(self) -> None:
        """Look at a word until the holder is done: a refused flock costs an exception (147,000 instead of 107,000 items/s)."""
        words = self._words
        for _ in range(100):
            if not words[_BUSY]:
                return

    def _peek(self) -> bool:
        """Whether there is something to take, or to skip. Without the lock only a hint."""
        state, words = self._state, self._words
        for level in state.busy_levels():
            head, tail, *_ = state.level(level)
            if head < tail:
                return True
        return words[_HEAPED] > 0 and self._claims.next_due() <= monotonic_ns()

    def _wait_for_room(self, record: bytes, level: int, maxsize: int, timeout: float | None) -> None:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        bell = self._bells.borrow()
        try:
            while not self._closed:
                late = time.monotonic() >= deadline
                with self._lock:
                    done = self._append(record, level, maxsize)
                    if done or late:
                        self._state.leave(_SENDERS, bell.number)
                        break
                    self._enrol(_SENDERS, bell)
                bell.sleep(None if timeout is None else deadline - time.monotonic())
                bell.silence()
        finally:
            self._bells.give_back(bell)
        if self._closed:
            raise ProviderError(f"queue {self.name!r} was closed")
        if not done:
            raise queue.Full(f"queue {self.name!r} is full")

    # Deaths

    def _look_for_deaths(self) -> None:
        """At most every 10 ms, for receivers that never sleep; those who do watch the owners."""
        now = monotonic_ns()
        if now >= self._next_look:
            self._next_look = now + _LOOK_NS
            with self._lock:
                owners = self._others()
            self._bury(owners)

    def _bury(self, owners: list[int]) -> None:
        dead = [owner for owner in owners if not self._bells.is_alive(owner)]
        if dead:
            with self._lock:
                self._enter()
                self._release(dead)

    # Under the lock

    def _others(self) -> list[int]:
        """The other processes that take leases."""
        return [owner for owner in self._state.table(_OWNERS) if owner != self._member]

    def _own(self) -> None:
        """Before the first lease: let the others know whose death to watch."""
        if not self._is_owner:
            if not self._state.join(_OWNERS, self._member):
                raise ProviderError(f"more than {_TABLE_SIZE} processes take leases from queue {self.name!r}")
            self._is_owner = True
            self._ring(_RECEIVERS)

    def _arm(self, bell: Bell) -> float:
        """Register a receiver that goes to sleep; when it must look again."""
        words, due = self._words, self._claims.next_due()
        self._enrol(_RECEIVERS, bell)
        words[_ARMED] = due if words[_RECEIVERS] == 1 else max(due, words[_ARMED])
        return due / _NS if due < _NEVER else math.inf

    def _enrol(self, table: int, bell: Bell) -> None:
        """Where the table is full, wake all in it: the living come back, the dead do not."""
        if not self._state.join(table, bell.number):
            self._ring(table)
            self._state.join(table, bell.number)

    def _enter(self) -> None:
        """What every operation begins with, where the status is not 0."""
        status = self._words[_STATUS]
        if status == _DELETED:
            raise QueueNotFound(f"queue {self.name!r} was deleted")
        if status:
            self._recover()

    def _recover(self) -> None:
        """After a death in the middle of a change: derive again what follows from the slots and the heads."""
        self._words[_STATUS] = _DIRTY
        self._claims.rebuild()
        for segment in self._log.segments():
            head, tail, *_ = self._state.level(segment >> 28)
            if segment < head >> 32:
                self._keep(segment)
            elif segment > tail >> 32:
                self._log.keep(segment, 0)
        self._words[_STATUS] = 0

    def _keep(self, segment: int) -> None:
        """The head has left the segment: keep it for the claims that lie in it, or remove it."""
        words = self._words
        self._log.keep(segment, sum(words[slot + _POSITION] >> 32 == segment for slot in self._claims.all()))

    def _append(self, record: bytes, level: int, maxsize: int) -> bool:
        """Write a record and commit it; False where there is no room."""
        words, state = self._words, self._state
        if words[_STATUS]:
            self._enter()
        at = _LEVELS + 16 * level
        side = words[at] & 1
        head, tail, count, used = _unpack_level(state.map, 8 * at + 32 + 32 * side)
        length = len(record)
        size = (length + 7) & ~7
        if (maxsize or words[_MASK] or used + words[_HELD] + size > self._max_bytes) and not self._has_room(size, maxsize):
            return False
        if head == tail and not words[_HEAPED]:  # back to the start of the file: its pages are warm
            head = tail = (tail & ~_OFFSET) | _START
            count = (count & ~_COUNT) + _EPOCH & _WORD
        offset = tail & _OFFSET
        file = self._log.files.get(tail >> 32)
        if file is None or offset + size > SEGMENT_BYTES:
            tail, file = self._log.place(tail, size)
            offset = tail & _OFFSET
        if pwrite(file, record, offset) != length:
            os.ftruncate(file, offset)  # what was written of it stays behind the tail: give its pages back
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if words[_RECEIVERS]:
            self._ring(_RECEIVERS)
        if level:
            words[_MASK] |= 1 << level
        _pack_level(state.map, 8 * at + 64 - 32 * side, head, tail + size, count + 1, used + size)
        words[at] = 1 - side
        return True

    def _has_room(self, size: int, maxsize: int) -> bool:
        waiting = self._waiting()
        if not waiting:
            return True
        return not (0 < maxsize <= waiting) and self._bytes() + size <= self._max_bytes

    def _waiting(self) -> int:
        counts = sum(self._state.level(level)[2] & _COUNT for level in self._state.busy_levels())
        return counts + self._words[_HEAPED] - self._words[_LEASED]

    def _bytes(self) -> int:
        return sum(self._state.level(level)[3] for level in self._state.busy_levels()) + self._words[_HELD]

    def _take(self, limit: int, lease: float | None, ahead: _Ahead | None = None) -> list[Delivery]:
        """Up to `limit` messages: those that are due again, then those of the highest level that has any."""
        words = self._words
        if words[_STATUS]:
            self._enter()
        now = monotonic_ns()
        due = 0
        if lease is not None:
            due = now + int(lease * _NS)
            if not self._is_owner:
                self._own()
        lapsed = words[_HEAPED] and self._claims.next_due() <= now
        if limit == 1 and not lapsed and not words[_MASK]:
            delivery = self._take_ahead(ahead, due)
            if delivery is not None:
                return [delivery]
        found: list[Delivery] = []
        if lapsed:
            self._take_due(found, limit, due, now)
        for level in self._state.busy_levels():
            self._take_head(level, found, limit, due, now)
        return found

    def _take_ahead(self, ahead: _Ahead | None, due: int) -> Delivery | None:
        """Take the record that was read ahead, if it is still the head: the usual case, without the loop of the others."""
        words, state = self._words, self._state
        side = words[_LEVELS] & 1
        head, tail, count, used = _unpack_level(state.map, _FIRST_COPY + 32 * side)
        if head >= tail:
            return None
        epoch = count & ~_COUNT
        if ahead is None or ahead[0] != head or ahead[1] != epoch:
            ahead = self._log.ahead(head, epoch)
            if ahead is None:
                self._log.load(head, tail, epoch)
                ahead = self._log.ahead(head, epoch)
                if ahead is None:
                    return None
        _, _, size, message = ahead
        receipt = None
        if due:
            words[_STATUS] = _DIRTY
            slot, number = self._claims.add(head, size, 1, self._member, due)
            receipt = LeaseReceipt(self.name, 1, slot, number)
            if words[_RECEIVERS]:
                self._rearm(due)
        if words[_SENDERS]:
            self._ring(_SENDERS)
        _pack_level(state.map, _FIRST_COPY + 32 - 32 * side, head + size, tail, count - 1, used - size)
        words[_LEVELS] = 1 - side
        words[_STATUS] = 0
        return message, receipt

    def _take_due(self, found: list[Delivery], limit: int, due: int, now: int) -> None:
        words, claims = self._words, self._claims
        words[_STATUS] = _DIRTY
        if due:
            self._rearm(due)
        while len(found) < limit and claims.next_due() <= now:
            slot = claims.top()
            message = self._read_claim(slot, now)
            if message is None:
                self._drop(slot)
            elif due:
                number = claims.renew(slot, self._member, due)
                found.append((message, LeaseReceipt(self.name, words[slot + _ATTEMPT], slot, number)))
            else:
                self._drop(slot)
                found.append((message, None))
        words[_STATUS] = 0

    def _read_claim(self, slot: int, now: int) -> bytes | None:
        """The message of a claim; None, and counted, where it is damaged or has expired."""
        try:
            record = self._log.read(self._words[slot + _POSITION])
        except (ValueError, FileNotFoundError):
            record = None
        if record is None:
            self._words[_CORRUPT] += 1
        elif 0 < record[3] <= now:
            self._words[_EXPIRED] += 1
        else:
            return record[1]
        return None

    def _take_head(self, level: int, found: list[Delivery], limit: int, due: int, now: int) -> None:  # noqa: PLR0912
        """Move the head over up to `limit` messages, and over what has expired, is damaged or is not due yet."""
        words, state = self._words, self._state
        at = _LEVELS + 16 * level
        side = words[at] & 1
        head, tail, count, used = _unpack_level(state.map, 8 * at + 32 + 32 * side)
        if head >= tail or len(found) >= limit:
            return
        first = head
        for _ in range(limit + _MOST_SKIPPED):
            if head >= tail or len(found) == limit:
                break
            try:
                record = self._log.read(head)
            except ValueError:
                words[_CORRUPT] += 1
                head = self._log.after_damage(head, tail)
                count -= count & _COUNT > 0
                continue
            if record is None:
                head = self._next_segment(head, tail)
                continue
            size, message, visible, expiry = record
            if expiry and expiry <= now:
                words[_EXPIRED] += 1
            elif visible and visible > now:
                words[_STATUS] = _DIRTY
                self._claims.add(head, size, 0, 0, visible)
            elif due:
                words[_STATUS] = _DIRTY
                slot, number = self._claims.add(head, size, 1, self._member, due)
                found.append((message, LeaseReceipt(self.name, 1, slot, number)))
            else:
                found.append((message, None))
            head += size
            count -= 1
            used -= size
        if head == tail:
            count &= ~_COUNT
            used = 0  # also where damage has hidden how many there were
        if words[_SENDERS]:
            self._ring(_SENDERS)
        if words[_STATUS]:
            self._rearm(self._claims.next_due())
        if head >> 32 != first >> 32:
            words[_STATUS] = _DIRTY
        _pack_level(state.map, 8 * at + 64 - 32 * side, head, tail, count, used)
        words[at] = 1 - side
        if words[_STATUS]:
            for segment in range(first >> 32, head >> 32):
                self._keep(segment)
            words[_STATUS] = 0
        if level and head == tail:
            words[_MASK] &= ~(1 << level)

    def _next_segment(self, head: int, tail: int) -> int:
        """The start of the next segment; the tail, where this is the last and ends too early."""
        if head >> 32 == tail >> 32:
            self._words[_CORRUPT] += 1
            return tail
        return ((head >> 32) + 1 << 32) | _START

    def _drop(self, slot: int) -> None:
        """End a claim; the last one of a segment that the head has left takes the segment with it."""
        position = self._words[slot + _POSITION]
        self._claims.remove(slot)
        if position >> 32 != self._state.head(position >> 60) >> 32:
            self._log.drop_claim(position >> 32)
        if self._words[_SENDERS]:
            self._ring(_SENDERS)

    def _check(self, receipt: LeaseReceipt) -> None:
        words, slot = self._words, receipt.slot
        if words[_STATUS]:
            self._enter()
        if words[slot] != receipt.number or words[slot + _OWNER] != self._member or words[slot + _DUE] <= monotonic_ns():
            raise LeaseLost(f"the lease on a message of queue {self.name!r} had ended: it is delivered again")

    def _rearm(self, due: int) -> None:
        """Something is due before the sleeping receivers would look: ring them."""
        if self._words[_RECEIVERS] and due < self._words[_ARMED]:
            self._ring(_RECEIVERS)

    def _ring(self, table: int) -> None:
        """Wake all who sleep; the table is emptied last, so that a death in between leaves the rest to the next one."""
        for number in self._state.table(table):
            self._bells.ring(number)
        self._words[table] = 0

    def _release(self, owners: Iterable[int]) -> None:
        """What is leased to these is due at once, in the order in which it was claimed; they are no owners any more."""
        words, gone = self._words, set(owners)
        words[_STATUS] = _DIRTY
        self._ring(_RECEIVERS)
        for slot in self._claims.all():
            if words[slot + _OWNER] in gone:
                words[slot + _DUE] = words[slot]
                words[slot + _OWNER] = 0
        self._state.set_table(_OWNERS, [number for number in self._state.table(_OWNERS) if number not in gone])
        self._recover()


def _format(fd: int) -> None:
    """Make an empty queue of a file; the first word is written last."""
    os.ftruncate(fd, 0)
    os.ftruncate(fd, (_SLOTS + _MOST_SLOTS * _SLOT_WORDS) * 8)
    os.posix_fallocate(fd, 0, (_SLOTS + _FIRST_SLOTS * _SLOT_WORDS) * 8)
    pwrite(fd, _FIRST_SLOTS.to_bytes(8, sys.byteorder), 8 * _ALLOCATED)
    for level in range(LEVELS_COUNT):
        start = level << 60 | _START
        pwrite(fd, _LEVEL.pack(start, start, 0, 0), 8 * (_LEVELS + 16 * level) + 32)
    pwrite(fd, _FORMAT.to_bytes(8, sys.byteorder), 0)
