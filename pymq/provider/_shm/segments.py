"""The log of a shared queue: records in segment files that only grow, found by position.

A record is `checksum, mark, length, due, expiry, message`, padded to whole words; the first is over all of it. There are ten levels of
priority, each with segments of its own. A *position* is one word: `level << 60 | segment << SHIFT | offset`; the upper bits name
the file. The offset begins behind one word, the number of claims that keep a segment which the head has left.

A sender of small messages maps a segment of level 0, whole and allocated, once there is more than a page in it: a record takes 0.1 us
then instead of 0.8. So a segment that is full ends with a header that says so, and not where its file does.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from contextlib import suppress
from os import pread, pwrite
from time import monotonic_ns
from typing import TypeAlias

from pymq.exceptions import MessageTooLarge
from pymq.provider._shm.files import Directory, adopt_file, close_file, cut_short, map_open_file
from pymq.provider._shm.frames import checksum
from pymq.provider._shm.state import IS_ORDERED, START

SEGMENT_BYTES = 256 << 10  # what is consumed is given back by whole segments; a new one costs 20 us
SHIFT = 28
OFFSET = (1 << SHIFT) - 1
LEVEL_SHIFT = 60 - SHIFT  # of the level, in the number of a segment
NS = 1_000_000_000
_LONGEST = 1e9
"""Seconds, of which a word holds 292 years: what is to last longer than these 31 ends then."""

_RECORD = struct.Struct("=IIQQQ")
HEADER = _RECORD.size
_unpack, _pack = _RECORD.unpack_from, _RECORD.pack


def nanoseconds(seconds: float) -> int:
    """Whole ones."""
    return int(min(seconds, _LONGEST) * NS)


_MARK = 0x71796D70
_MARKED = _MARK.to_bytes(4, sys.byteorder)
_END_MARK = ~_MARK & 0xFFFFFFFF
_END = _pack(0, _END_MARK, 0, 0, 0)
_CHUNK = 1 << 16
_PARSED = 16  # records
_LENGTHS = 0xFFFFFFFF  # what `checksum` takes as a start, whatever a damaged record says
_MOST_FILES = 4  # that are held open
_PAGE = 4096
_SEGMENT_NAME = re.compile(r"log\.([0-9a-f]{8,})")  # more behind a level of priority
Ahead: TypeAlias = "tuple[int, int, bytes]"
"""A record that was read before the lock was taken: where, its size, its message."""


def pack_record(message: bytes, delay: float, ttl: float | None) -> bytes:
    """A message as it is kept, not padded yet; times begin now."""
    length = len(message)
    if not delay and ttl is None:
        return _pack(checksum(message, length), _MARK, length, 0, 0) + message
    now = monotonic_ns()
    due = now + nanoseconds(delay) if delay > 0 else 0
    expiry = 0 if ttl is None else now + nanoseconds(ttl)
    return _pack(_checksum_of(message, due, expiry), _MARK, length, due, expiry) + message


def _checksum_of(message: bytes, due: int, expiry: int) -> int:
    """Over the whole record: what is 0 in most of them costs them nothing."""
    start = len(message) & _LENGTHS
    return checksum(message, checksum(b"%d %d" % (due, expiry), start) if due or expiry else start)


class Log:
    """The segment files. `files` are those that are open, by the upper half of their positions."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.files: dict[int, int] = {}
        self._chunk = 0, b""
        self.parsed: dict[int, Ahead] = {}
        self._parsed_end = 0
        self._guess = 256
        self._mapped = self._tried = -1
        self._map = memoryview(b"")

    def write(self, tail: int, size: int, record: bytes) -> int:
        """Write a record, of that size when padded, behind the tail; its position: in a new segment where this one is full."""
        offset = tail & OFFSET
        if tail >> SHIFT == self._mapped and offset + size <= SEGMENT_BYTES:
            self._map[offset : offset + len(record)] = record
            return tail
        file = self.files.get(tail >> SHIFT)
        if file is None or offset + size > SEGMENT_BYTES:
            tail, file = self._place(tail, size)
            offset = tail & OFFSET
        if (written := pwrite(file, record, offset)) != len(record):
            error = cut_short(file, offset + written)
            os.ftruncate(file, offset)  # what was written of it stays behind the tail: give its pages back
            raise error
        if size <= _PAGE <= offset and IS_ORDERED and tail >> SHIFT != self._tried and not tail >> 60:
            self._try_to_map(tail >> SHIFT)
        return tail

    def _place(self, tail: int, size: int) -> tuple[int, int]:
        if size > OFFSET - START:
            raise MessageTooLarge(f"a message of {size} bytes: a shared queue takes less than {1 << SHIFT - 20} MiB")
        offset = tail & OFFSET
        if offset + size > SEGMENT_BYTES and offset > START:
            # not cut off here: who has it mapped, and writes before the tail is moved, would get a SIGBUS
            pwrite(self._file(tail >> SHIFT), _END, offset)
            tail = next_segment(tail)
        return tail, self._file(tail >> SHIFT, os.O_CREAT)

    def _try_to_map(self, segment: int) -> None:
        """Once: where there is no room for all of it, or no more descriptor, what still fits is written as before."""
        self._tried = segment
        with suppress(OSError):
            self._map = map_open_file(self.files[segment], SEGMENT_BYTES)  # by its name it might be a successor's, made anew there
            self._mapped = segment

    def load(self, head: int, tail: int) -> None:
        """Read a chunk from the head on: all of it is committed, and never changes."""
        self._chunk = head, pread(self._file(head >> SHIFT), min(tail - head, _CHUNK), head & OFFSET)

    def parse(self, head: int) -> Ahead | None:
        """The plain record at the head, if it is in the chunk; None for whatever is not usual. Needs no lock: a third of a get is done
        before it is taken, and whoever uses it compares the head under the lock. Where nobody else has taken any since the last
        time, those behind it are `parsed`, too: several at once take each half the time.
        """
        start, data = self._chunk
        at, last = head - start, len(data) - HEADER
        if not 0 <= at <= last:
            return None
        most = _PARSED if head == self._parsed_end else 1
        parsed: dict[int, Ahead] = {}
        while at <= last and len(parsed) < most:
            summed, mark, length, due, expiry = _unpack(data, at)
            end = at + HEADER + length
            message = data[at + HEADER : end]
            if due or expiry or mark != _MARK or end > len(data) or summed != checksum(message, length):
                break
            size = (HEADER + length + 7) & ~7
            parsed[start + at] = start + at, size, message
            at += size
        self.parsed, self._parsed_end = parsed, start + at
        return parsed.get(head)

    def read(self, position: int) -> tuple[int, bytes, int, int] | None:
        """The size, message, due and expiry of the record there; None at the end of a segment, ValueError for a bad one."""
        file = self._file(position >> SHIFT)
        data = pread(file, self._guess, position & OFFSET)
        if len(data) < HEADER:
            if not data:
                return None
            raise ValueError(f"the record at {position:x} is cut short")
        summed, mark, length, due, expiry = _unpack(data)
        if mark == _END_MARK:
            return None
        end = HEADER + length
        if end > len(data):
            data += pread(file, min(end - len(data), os.fstat(file).st_size), (position & OFFSET) + len(data))
            self._guess = min(1 << end.bit_length(), _CHUNK)
        message = data[HEADER:end]
        if mark != _MARK or len(message) != length or summed != _checksum_of(message, due, expiry):
            raise ValueError(f"the record at {position:x} is damaged")
        return (end + 7) & ~7, message, due, expiry

    def after_damage(self, position: int, end: int) -> int:
        """Where the next good record is: the end where there is none (the next segment, while this is not the last)."""
        file, same = self._file(position >> SHIFT), position >> SHIFT == end >> SHIFT
        last = end & OFFSET if same else os.fstat(file).st_size
        for at in range((position & OFFSET) + 8, last, 8):
            if pread(file, 4, at + 4) == _MARKED and self._is_good(position & ~OFFSET | at):
                return position & ~OFFSET | at
        return end if same else next_segment(position)

    def _is_good(self, position: int) -> bool:
        try:
            return self.read(position) is not None
        except ValueError:
            return False

    def keep(self, segment: int, claims: int) -> None:
        """The segment is needed by that many claims: with none it is removed."""
        if claims:
            pwrite(self._file(segment), claims.to_bytes(8, sys.byteorder), 0)
            return
        with suppress(OSError):  # who still has it open, mapped perhaps, touches it no more, but would keep its memory
            os.ftruncate(self._file(segment), 0)
        self._forget(segment)
        self._directory.unlink(_segment_name(segment))

    def drop_claim(self, segment: int) -> None:
        """One claim fewer needs the segment."""
        self.keep(segment, int.from_bytes(pread(self._file(segment), 8, 0), sys.byteorder) - 1)

    def segments(self) -> list[int]:
        """Those that exist."""
        return [int(found[1], 16) for found in map(_SEGMENT_NAME.fullmatch, self._directory.names()) if found]

    def borrow(self, other: Log) -> None:
        """Have what that one has open."""
        for segment, file in list(other.files.items()):
            if segment not in self.files:
                self.files[segment] = os.dup(file)
                adopt_file(self.files[segment])

    def close(self) -> None:
        """Let go of the files."""
        self._mapped, self._map = -1, memoryview(b"")
        for segment in list(self.files):
            self._forget(segment)

    def _file(self, segment: int, flags: int = 0) -> int:
        file = self.files.get(segment)
        if file is None:
            if len(self.files) == _MOST_FILES:
                self._forget(next(iter(self.files)))
            file = self.files[segment] = self._directory.open(_segment_name(segment), os.O_RDWR | flags)
        return file

    def _forget(self, segment: int) -> None:
        file = self.files.pop(segment, None)
        if file is not None:
            close_file(file)


def next_segment(position: int) -> int:
    """Where the segment after that of the position begins."""
    return ((position >> SHIFT) + 1 << SHIFT) | START


def _segment_name(segment: int) -> str:
    return f"log.{segment:08x}"
