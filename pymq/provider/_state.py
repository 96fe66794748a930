"""The mapped state of a shared queue: its layout, the commit points of its levels, its tables of bells.

A file of native words, allocated before it is touched (a full file system is an error, never a SIGBUS):

    0 format   STATUS: dirty, deleted   counters   MASK: levels above 0 that may hold something   BUSY: the lock is taken (a hint)
    LEVELS     per level: which of two copies is valid, copy, copy; a copy is `head, tail, count, bytes`
    RECEIVERS, SENDERS, OWNERS   tables: how many, then that many numbers of bells
    SLOTS      the claims, eight words each (see `_claims`)

Whoever changes a level writes the copy that is not valid, then flips: one store is the commit, and a process that is killed before
it has changed nothing. What follows from the slots (their heap, free list and sums) is derived again where the status says that
its last writer died in between.
"""

from __future__ import annotations

import os
import struct
import sys
import time

from pymq.provider._files import Directory, map_file

LEVELS_COUNT = 10
FORMAT = int.from_bytes(b"pymq-q\0\1", "little")
STATUS, NEXT, HEAPED, LEASED, HELD, FREE, USED, ALLOCATED, ARMED, EXPIRED, CORRUPT, MASK, BUSY = range(1, 14)
DIRTY, IS_DELETED = 1, 2
LEVELS = 32
FIRST_COPY = 8 * LEVELS + 32
RECEIVERS, SENDERS, OWNERS, SLOTS = 512, 1024, 1536, 2048
TABLE_SIZE = 511
SLOT_WORDS = 8
MOST_SLOTS = 1 << 20  # the file is that large but for its holes: it is mapped once, and allocated as it is used
COUNT = 0xFFFFFFFF
EPOCH = 1 << 32  # in the upper half of a level's count: how often it has gone back to the start of its segment
WORD = (1 << 64) - 1
START = 8  # the offset of a segment's first record

_FIRST_SLOTS = 64
_LEVEL = struct.Struct("=4Q")
unpack_level, pack_level = _LEVEL.unpack_from, _LEVEL.pack_into


class State:
    """The words, by themselves and as bytes. `fd` is that of the lock, which guards them."""

    def __init__(self, directory: Directory, fd: int) -> None:
        self.fd = fd
        self.bytes = map_file(directory, "state", os.O_RDWR)
        self.words = self.bytes.cast("Q")

    def level(self, level: int) -> tuple[int, int, int, int]:
        """Head, tail, count and bytes of a level."""
        at = LEVELS + 16 * level
        copy: tuple[int, int, int, int] = unpack_level(self.bytes, 8 * at + (64 if self.words[at] & 1 else 32))
        return copy

    def set_level(self, level: int, head: int, tail: int, count: int, used: int) -> None:
        """Commit: the second store is the moment."""
        at = LEVELS + 16 * level
        side = self.words[at] & 1
        pack_level(self.bytes, 8 * at + 64 - 32 * side, head, tail, count, used)
        self.words[at] = 1 - side

    def head(self, level: int) -> int:
        """The position of a level's oldest message."""
        at = LEVELS + 16 * level
        return self.words[at + 4 + 4 * (self.words[at] & 1)]

    def is_empty(self) -> bool:
        """Whether nothing is in the log of any level. Without the lock only a hint."""
        words = self.words
        at = LEVELS + 4 + 4 * (words[LEVELS] & 1)
        return words[at] >= words[at + 1] and not (words[MASK] and any(map(self._has_any, self.busy_levels())))

    def _has_any(self, level: int) -> bool:
        head, tail, *_ = self.level(level)
        return head < tail

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
        start = level << 60 | START
        os.pwrite(fd, _LEVEL.pack(start, start, 0, 0), 8 * (LEVELS + 16 * level) + 32)
    _write_word(fd, 0, FORMAT)


def read_format(fd: int) -> int:
    """The first word; 0 where there is none."""
    return int.from_bytes(os.pread(fd, 8, 0), sys.byteorder)


def _write_word(fd: int, place: int, value: int) -> None:
    os.pwrite(fd, value.to_bytes(8, sys.byteorder), 8 * place)
