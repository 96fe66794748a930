"""The claims of a shared queue: messages that were delivered under a lease, or are delayed, and have left the log's head.

A slot of the state's is `receipt, due, owner, attempt, position, size`. It counts when its receipt is not 0 and its position lies
before the head, so the flip that moves the head also makes the claims true. `due` is when the message is to be delivered (again):
the slots form a binary heap by it, kept in each slot's last two words, hence nothing here takes time in proportion to what is
leased or delayed.

Heap, free list and sums follow from the slots: whoever calls what changes them has marked the state dirty, and whoever finds it
dirty calls `rebuild`. That is all there is to recovery.
"""

from __future__ import annotations

import os
import struct

from pymq.exceptions import ProviderError
from pymq.provider._shm.state import (
    ALLOCATED,
    FREE,
    HEAPED,
    HELD,
    LEASED,
    LEVELS_COUNT,
    MOST_SLOTS,
    NEXT,
    SLOT_WORDS,
    SLOTS,
    USED,
    State,
)
from pymq.provider.base import Receipt

RECEIPT, DUE, OWNER, ATTEMPT, POSITION, SIZE, INDEX, HEAP = range(SLOT_WORDS)
NEVER = 1 << 63

_GROWTH = 512
_SLOT = struct.Struct("=5Q")


class LeaseReceipt(Receipt):
    """A receipt that knows its claim: the slot, and the number that the slot bears while the claim is this one's."""

    __slots__ = ("number", "slot")

    def __init__(self, queue: str, attempt: int, slot: int, number: int) -> None:
        self.queue = queue
        self.attempt = attempt
        self.slot = slot
        self.number = number


class Claims:
    """The slots and their heap."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._words = state.words

    def top(self) -> int:
        """The slot that is due first; only where there is one."""
        return self._words[SLOTS + HEAP]

    def next_due(self) -> int:
        """When the first is due."""
        return self._words[self.top() + DUE] if self._words[HEAPED] else NEVER

    def all(self) -> list[int]:
        """Every slot in use, in no order."""
        words = self._words
        return [words[at] for at in range(SLOTS + HEAP, SLOTS + words[HEAPED] * SLOT_WORDS, SLOT_WORDS)]

    def add(self, position: int, size: int, attempt: int, owner: int, due: int) -> tuple[int, int]:
        """A new claim: its slot and receipt number. The receipt is stored last: until then the slot is free."""
        words = self._words
        slot = words[FREE]
        if slot:
            words[FREE] = words[slot + INDEX]
        else:
            slot = self._fresh()
        number = words[NEXT] + 1
        words[NEXT] = number
        _SLOT.pack_into(self._state.bytes, 8 * (slot + 1), due, owner, attempt, position, size)
        words[slot] = number
        if owner:
            words[LEASED] += 1
        words[HELD] += size
        place = words[HEAPED]
        words[HEAPED] = place + 1
        if place:
            self._sift_up(place, slot, due)
        else:
            words[SLOTS + HEAP] = slot
            words[slot + INDEX] = 0
        return slot, number

    def renew(self, slot: int, owner: int, due: int) -> int:
        """Another delivery of the same message: its new receipt number. The owner first: should it die now, its death counts."""
        words = self._words
        if not words[slot + OWNER]:
            words[LEASED] += 1
        words[slot + OWNER] = owner
        number = words[NEXT] + 1
        words[NEXT] = words[slot] = number
        words[slot + ATTEMPT] += 1
        self.move(slot, due)
        return number

    def replace(self, slot: int, position: int, size: int, owner: int, due: int) -> int:
        """`remove` and `add` of one leased message each, in the same slot: the new receipt number. The first store is the commit of the
        one, the last that of the other; a sum and a place in the heap that both would change stay as they are.
        """
        words = self._words
        words[slot] = 0
        words[HELD] += size - words[slot + SIZE]
        number = words[NEXT] + 1
        words[NEXT] = number
        _SLOT.pack_into(self._state.bytes, 8 * (slot + 1), due, owner, 1, position, size)
        words[slot] = number
        if words[HEAPED] > 1:
            self._sift(words[slot + INDEX], slot, due)
        return number

    def release(self, slot: int, due: int) -> None:
        """Nobody's any more; the owner goes last: should it die before, its death counts."""
        self.move(slot, due)
        self._words[slot + OWNER] = 0
        self._words[LEASED] -= 1

    def move(self, slot: int, due: int) -> None:
        """Set when it is due."""
        self._words[slot + DUE] = due
        self._sift(self._words[slot + INDEX], slot, due)

    def remove(self, slot: int) -> None:
        """Forget the claim: the first store is the commit."""
        words = self._words
        words[slot] = 0
        if words[slot + OWNER]:
            words[LEASED] -= 1
        words[HELD] -= words[slot + SIZE]
        last = words[HEAPED] - 1
        words[HEAPED] = last
        moved = words[SLOTS + last * SLOT_WORDS + HEAP]
        if moved != slot:
            self._sift(words[slot + INDEX], moved, words[moved + DUE])
        words[slot + INDEX] = words[FREE]
        words[FREE] = slot

    def rebuild(self) -> None:
        """Heap, free list and sums from nothing but the slots and the heads."""
        words = self._words
        heads = [self._state.head(level) for level in range(LEVELS_COUNT)]
        words[FREE] = 0
        valid = []
        for slot in range(SLOTS, SLOTS + words[USED] * SLOT_WORDS, SLOT_WORDS):
            position = words[slot + POSITION]
            if words[slot] and position < heads[position >> 60]:
                valid.append(slot)
            else:
                words[slot] = 0
                words[slot + INDEX] = words[FREE]
                words[FREE] = slot
        valid.sort(key=lambda slot: words[slot + DUE])
        for place, slot in enumerate(valid):
            self._set(place, slot)
        words[HEAPED] = len(valid)
        words[LEASED] = sum(words[slot + OWNER] != 0 for slot in valid)
        words[HELD] = sum(words[slot + SIZE] for slot in valid)

    def lapsed(self, now: int) -> int:
        """How many leases have ended and were not taken again; looks only at what is due."""
        words, todo, found = self._words, [0], 0
        while todo:
            place = todo.pop()
            slot = words[SLOTS + place * SLOT_WORDS + HEAP] if place < words[HEAPED] else 0
            if slot and words[slot + DUE] <= now:
                found += words[slot + OWNER] != 0
                todo += (2 * place + 1, 2 * place + 2)
        return found

    def _fresh(self) -> int:
        words = self._words
        used = words[USED]
        if used == words[ALLOCATED]:
            if used >= MOST_SLOTS:
                raise ProviderError(f"more than {MOST_SLOTS} messages are leased or delayed")
            os.posix_fallocate(self._state.fd, (SLOTS + used * SLOT_WORDS) * 8, _GROWTH * SLOT_WORDS * 8)
            words[ALLOCATED] = used + _GROWTH
        words[USED] = used + 1
        return SLOTS + used * SLOT_WORDS

    def _set(self, place: int, slot: int) -> None:
        self._words[SLOTS + place * SLOT_WORDS + HEAP] = slot
        self._words[slot + INDEX] = place

    def _sift(self, place: int, slot: int, due: int) -> None:
        self._sift_down(self._sift_up(place, slot, due), slot, due)

    def _sift_up(self, place: int, slot: int, due: int) -> int:
        words = self._words
        while place:
            parent = (place - 1) >> 1
            other = words[SLOTS + parent * SLOT_WORDS + HEAP]
            if words[other + DUE] <= due:
                break
            self._set(place, other)
            place = parent
        self._set(place, slot)
        return place

    def _sift_down(self, place: int, slot: int, due: int) -> None:
        words = self._words
        size = words[HEAPED]
        while (child := 2 * place + 1) < size:
            children = [words[SLOTS + place * SLOT_WORDS + HEAP] for place in (child, child + 1) if place < size]
            other = min(children, key=lambda slot: words[slot + DUE])
            if due <= words[other + DUE]:
                break
            self._set(place, other)
            place = child + children.index(other)
        self._set(place, slot)
