"""Inboxes: a FIFO that one process reads, with a log beside it for what the FIFO has no room for, and an arena for what is large.

A *frame* is `magic, length, checksum` and that many bytes. At most PIPE_BUF bytes go through the FIFO, so the kernel keeps each whole.

**The log.** Order must hold across it, per sender. The word LOGGED in the mapped head is the committed length of the log. A sender
that sees 0 there writes to the FIFO; one that sees more, or finds the FIFO full, appends to the log under the lock, and where the
FIFO is empty then, it writes a NUDGE there: the reader comes to look at LOGGED after whatever it reads. The reader notes LOGGED,
empties the FIFO, and reads the log up to what it noted; if, under the lock, nothing was added, it stores 0, else it comes again, once
it has handed out what it found. Whatever a sender wrote to the FIFO before it turned to the log is read first, and while LOGGED is not
0 it writes nothing there.

**Arenas.** A large message is copied into a ring of recycled memory that one sender shares with one inbox, and a REFERENCE (arena,
position, length) goes through the FIFO or the log. Positions only grow; the reader stores how far it has FREED. With one writer and
one reader, and references in the order of the ring, there is nothing to lock, and nothing to repair where either dies. An inbox
removes the arenas of dead senders when it meets a new one.

The committing stores are ordered as they are written on x86; elsewhere by the locks and by the system calls between them.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
import zlib

from pymq.provider._shm.files import Directory, map_file

PIPE_BUF = 4096
HEADER = struct.Struct("<III")
pack_header, unpack_header = HEADER.pack, HEADER.unpack_from
checksum = zlib.adler32
"""It tells every change of one or two bytes, as CRC-32 does, and 150 bytes take it 0.1 us instead of 0.25."""

INLINE_BYTES = PIPE_BUF - HEADER.size
"""The largest message that goes through the FIFO itself."""

PREFIX = b"\xa5pq"
DATA, LARGE, REFERENCE, NUDGE, WAKE = (int.from_bytes(bytes([*PREFIX, kind]), "little") for kind in (0, 0x03, 0x0C, 0x30, 0xC0))
"""Two bits apart from each other, so that no flipped bit makes one into another. LARGE is as DATA, but only fits into the log."""

HEAD_BYTES = 4096
LOGGED, DROPPED, BEHIND, STATE, DELETED, URGENT, SLEEPERS = range(7)
"""The words of the mapped head. STATE is what the receiver does (IDLE and the others of `pymq.provider.base`); the last one counts the
bells behind it that want to be rung when there is room."""
MOST_SLEEPERS = HEAD_BYTES // 8 - SLEEPERS - 1

LOCATION = struct.Struct("<QQQ")
"""The body of a REFERENCE: the arena's token, position, length; behind it the head of the message, where that is not in the arena."""
_ARENA_HEAD = 64
OWNER, SENT, FREED = range(3)


def frame(magic: int, body: bytes) -> bytes:
    """A whole frame."""
    return pack_header(magic, len(body), checksum(body)) + body


def frames_of(message: bytes) -> list[bytes]:
    """What `Outlet.offer` takes: a large one is not copied."""
    if len(message) <= INLINE_BYTES:
        return [frame(DATA, message)]
    return [pack_header(LARGE, len(message), checksum(message)), message]


NUDGE_FRAME, WAKE_FRAME = frame(NUDGE, b""), frame(WAKE, b"")


def bytes_waiting(fifo: int) -> int:
    """How much is in a FIFO."""
    return int.from_bytes(fcntl.ioctl(fifo, termios.FIONREAD, b"\0\0\0\0"), "little")


class Arena:
    """A mapped ring, and the words before it: the bell of its owner (0: it is done), how far that has sent, how far it is freed."""

    def __init__(self, view: memoryview) -> None:
        if len(view) <= _ARENA_HEAD:
            raise ValueError(f"an arena of {len(view)} bytes")
        self.words = view[:_ARENA_HEAD].cast("Q")
        self.bytes = view[_ARENA_HEAD:]
        self.size = len(self.bytes)

    @classmethod
    def open(cls, directory: Directory, name: str) -> Arena:
        """The one of that name."""
        return cls(map_file(directory, name, os.O_RDWR))

    @classmethod
    def create(cls, directory: Directory, name: str, size: int) -> Arena:
        """A new one. Raises OSError where the file system is full."""
        return cls(map_file(directory, name, os.O_RDWR | os.O_CREAT, _ARENA_HEAD + size))


def arena_name(stem: str, token: int) -> str:
    """Its file, beside those of its inbox."""
    return f"{stem}.{token:016x}"


def aligned(size: int) -> int:
    """What a message takes in an arena."""
    return -(-size // _ARENA_HEAD) * _ARENA_HEAD
