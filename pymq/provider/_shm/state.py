"""The mapped state of a shared queue: its layout, the commit points of its levels, its tables of bells.

A file of native words, allocated before it is touched (a full file system is an error, never a SIGBUS):

    0 format   STATUS: dirty, deleted   counters   MASK: levels above 0 that may hold something
    LEVELS     per level, for senders, `changes, copy, copy`; a copy is `tail, count, bytes` of all that was ever put;
               eight words further the same for receivers: `head, count, bytes` of all that was ever taken
    SENDING, RECEIVING   the words of either lock (see `guard`): `TAKEN, BIAS, LAST`; from FLAGS on, the flag of each process that has
               made it its own, in a line of the cache by itself
    RECEIVERS, SENDERS, OWNERS   tables: how many, then that many numbers of bells
    SLOTS      the claims, eight words each (see `claims`)

`changes & 1` says which copy is valid. Whoever changes an end of a level writes the other copy, then counts: one store is the
commit, and a process that is killed before it has changed nothing. So each end needs the lock of its own side only; whoever looks at
the other side's takes what did not change while it was read. What follows from the slots (their heap, free list and sums) is derived
again where the status says that its last writer died in between.
"""

from __future__ import annotations

import os
import struct
import sys
import time

from pymq.provider._shm.files import Directory, map_file, write_at

LEVELS_COUNT = 10
FORMAT = int.from_bytes(b"pymq-q\0\4", "little")
STATUS, NEXT, HEAPED, LEASED, HELD, FREE, USED, ALLOCATED, ARMED, EXPIRED, CORRUPT, MASK = range(1, 13)
DIRTY, IS_DELETED = 1, 2
LEVELS = 32
SENDING, RECEIVING = 192, 352
GUARD_WORDS = RECEIVING - SENDING
TAKEN, BIAS, LAST = range(3)
FLAGS, FLAG_WORDS = 8, 8
RECEIVERS, SENDERS, OWNERS, SLOTS = 512, 1024, 1536, 2048
TABLE_SIZE = 511
SLOT_WORDS = 8
MOST_SLOTS = 1 << 20  # the file is that large but for its holes: it is mapped once, and allocated as it is used
TAIL, HEAD = 0, 8
START = 8  # the offset of a segment's first record

IS_ORDERED = os.uname().machine in ("x86_64", "i686")
"""Stores are seen in their order, and a thread's lock is a full fence; elsewhere neither, with no system call between."""

_FIRST_SLOTS = 64
_END = struct.Struct("=3Q")
unpack_end, pack_end = _END.unpack_from, _END.pack_into


class State:
    """The words, by themselves and as bytes. `fd` is that of the lock, which guards them."""

    def __init__(self, directory: Directory, fd: int) -> None:
        self.fd = fd
        self.bytes = map_file(directory, "state", os.O_RDWR)
        self.words = self.bytes.cast("Q")

    def end(self, level: int, end: int) -> tuple[int, int, int]:
        """The TAIL or HEAD of a level: its position, how many messages and how many bytes it ever passed. Needs no lock."""
        words, at = self.words, LEVELS + 16 * level + end
        while True:
            changes = words[at]
            copy: tuple[int, int, int] = unpack_end(self.bytes, 8 * at + (32 if changes & 1 else 8))
            if words[at] == changes:
                return copy

    def set_end(self, level: int, end: int, position: int, count: int, size: int) -> None:
        """Commit: the second store is the moment. With the lock of that side held."""
        at = LEVELS + 16 * level + end
        changes = self.words[at]
        pack_end(self.bytes, 8 * at + (8 if changes & 1 else 32), position, count, size)
        self.words[at] = changes + 1

    def head(self, level: int) -> int:
        """The position of a level's oldest message. Without the receivers' lock only a hint."""
        words, at = self.words, LEVELS + 16 * level + HEAD
        return words[at + (4 if words[at] & 1 else 1)]

    def inside(self, level: int) -> tuple[int, int]:
        """How many messages and bytes are in the log of a level."""
        (_, taken, taken_bytes), (_, put, put_bytes) = self.end(level, HEAD), self.end(level, TAIL)
        return max(0, put - taken), max(0, put_bytes - taken_bytes)

    def is_empty(self) -> bool:
        """Whether nothing is in the log of any level."""
        return not self._has_any(0) and not (self.words[MASK] and any(map(self._has_any, self.busy_levels())))

    def _has_any(self, level: int) -> bool:
        return self.end(level, HEAD)[0] < self.end(level, TAIL)[0]

    def drop_idle_levels(self) -> None:
        """Forget which levels held something, but for those that do. With both locks held."""
        self.words[MASK] = sum(1 << level for level in self.busy_levels() if level and self._has_any(level))

    def busy_levels(self) -> list[int]:
        """The levels that may hold something, the highest first."""
        mask = self.words[MASK]
        return [level for level in range(LEVELS_COUNT - 1, 0, -1) if mask >> level & 1] + [0] if mask else [0]

    def table(self, table: int) -> list[int]:
        """The numbers in a table."""
        return self.words[table + 1 : table + 1 + min(self.words[table], TABLE_SIZE)].tolist()

    def set_table(self, table: int, numbers: list[int]) -> None:
        """Replace the numbers in a table."""
        for place, number in enumerate(numbers, table + 1):
            self.words[place] = number
        self.words[table] = len(numbers)

    def join(self, table: int, number: int) -> bool:
        """Add a number; False where there is no room."""
        numbers = self.table(table)
        if number not in numbers:
            if len(numbers) == TABLE_SIZE:
                return False
            self.words[table + 1 + len(numbers)] = number
            self.words[table] = len(numbers) + 1
        return True

    def leave(self, table: int, number: int) -> None:
        """Remove a number, if it is there."""
        numbers = self.table(table)
        if number in numbers:
            self.set_table(table, [other for other in numbers if other != number])


def format_state(fd: int) -> None:
    """Make an empty queue of a file; the first word is written last.

    Receipt numbers go on from the clock, so that none of a deleted queue settles a claim of its successor.
    """
    os.ftruncate(fd, 0)
    os.ftruncate(fd, (SLOTS + MOST_SLOTS * SLOT_WORDS) * 8)
    os.posix_fallocate(fd, 0, (SLOTS + _FIRST_SLOTS * SLOT_WORDS) * 8)
    _write_word(fd, ALLOCATED, _FIRST_SLOTS)
    _write_word(fd, NEXT, time.monotonic_ns())
    for level in range(LEVELS_COUNT):
        for end in (TAIL, HEAD):
            write_at(fd, [_END.pack(level << 60 | START, 0, 0)], 8 * (LEVELS + 16 * level + end + 1))
    _write_word(fd, 0, FORMAT)


def read_format(fd: int) -> int:
    """The first word; 0 where there is none."""
    return int.from_bytes(os.pread(fd, 8, 0), sys.byteorder)


def _write_word(fd: int, place: int, value: int) -> None:
    write_at(fd, [value.to_bytes(8, sys.byteorder)], 8 * place)
