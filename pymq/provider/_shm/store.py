"""What is done to a shared queue while its lock is held: append, take, settle, recover.

*append*: write the record behind the tail, ring the sleepers, commit. The rings come first, since a process killed behind the
commit would leave the others asleep before a message. *take*: read the record at the head, make a claim of it where there is a
lease, commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic_ns

from pymq.exceptions import LeaseLost, ProviderError, QueueNotFound
from pymq.provider._shm.claims import ATTEMPT, DUE, OWNER, POSITION, Claims, LeaseReceipt
from pymq.provider._shm.files import Bells, Directory
from pymq.provider._shm.segments import LEVEL_SHIFT, SHIFT, Ahead, Log, nanoseconds, next_segment
from pymq.provider._shm.state import (
    ARMED,
    CORRUPT,
    DIRTY,
    EXPIRED,
    HEAD,
    HEAPED,
    HELD,
    IS_DELETED,
    LEASED,
    LEVELS,
    MASK,
    OWNERS,
    RECEIVERS,
    SENDERS,
    STATUS,
    TABLE_SIZE,
    TAIL,
    State,
    pack_end,
    unpack_end,
)
from pymq.provider.base import Delivery

_HEAD = LEVELS + HEAD
_TAKEN = _HEAD + 3, _HEAD + 6
"""Where each copy of level 0's head says how many bytes were ever taken."""
MOST_SKIPPED = 1000  # expired or delayed records in one hold of the lock: about 2 ms


class Store:
    """The files of one shared queue. A method that needs another lock than the receivers' says so."""

    def __init__(self, name: str, state: State, directory: Directory, bells: Bells, member: int, max_bytes: int) -> None:
        self.name = name
        self.state = state
        self.claims = Claims(state)
        self.log = Log(directory)
        self.tail_log = Log(directory)  # the senders' own: a thread of each side may use them at once
        self._words = state.words
        self._bytes = state.bytes
        self._directory = directory
        self._bells = bells
        self._member = member
        self._max_bytes = max_bytes
        self.is_owner = False

    # Putting in

    def has_room(self, size: int, maxsize: int) -> bool:
        """Whether one more fits. Both locks."""
        self.enter()
        waiting = self.waiting()
        return not waiting or (not 0 < maxsize <= waiting and self.total_bytes() + size <= self._max_bytes)

    def append(self, record: bytes, level: int, maxsize: int = 0, *, fits: bool = False) -> bool:
        """Write a record and commit it. The senders' lock; who has both has looked whether it `fits`, for others a cheap look must do:
        False where that leaves a doubt, and nothing was done.
        """
        words, at = self._words, LEVELS + 16 * level
        changes = words[at]
        tail, count, used = unpack_end(self._bytes, 8 * at + (32 if changes & 1 else 8))
        size = (len(record) + 7) & ~7
        if not fits:
            if words[STATUS] == IS_DELETED:
                raise self._deleted()
            if maxsize or level or words[MASK] or used + size - words[_TAKEN[words[_HEAD] & 1]] + words[HELD] > self._max_bytes:
                return False
        tail = self.tail_log.write(tail, size, record)
        if words[RECEIVERS]:
            self.ring(RECEIVERS)
        if level:
            words[MASK] |= 1 << level
        pack_end(self._bytes, 8 * at + (8 if changes & 1 else 32), tail + size, count + 1, used + size)
        words[at] = changes + 1
        return True

    def waiting(self) -> int:
        """How many messages bear no lease; one that has ended counts as such when it is taken again."""
        counts = sum(self.state.inside(level)[0] for level in self.state.busy_levels())
        return counts + self._words[HEAPED] - self._words[LEASED]

    def total_bytes(self) -> int:
        """How many bytes are in the queue, leased ones included."""
        return sum(self.state.inside(level)[1] for level in self.state.busy_levels()) + self._words[HELD]

    def exact_counters(self) -> dict[str, int]:
        """As `counters`; under the receivers' lock, also after a death."""
        self.enter()
        return self.counters()

    def counters(self) -> dict[str, int]:
        """What is in the queue, and what was dropped so far."""
        words, lapsed = self._words, self.claims.lapsed(monotonic_ns())
        return {
            "waiting": self.waiting() + lapsed,
            "leased": words[LEASED] - lapsed,
            "bytes": self.total_bytes(),
            "expired": words[EXPIRED],
            "corrupt": words[CORRUPT],
        }

    # Taking out

    def has_something(self) -> bool:
        """Whether there is something to take, or to skip. Without the lock only a hint."""
        try:
            return not self.state.is_empty() or (self._words[HEAPED] > 0 and self.claims.next_due() <= monotonic_ns())
        except IndexError:
            return True  # damaged, or between two stores of somebody's

    def look_ahead(self) -> Ahead | None:
        """What `take` will probably return. No lock."""
        words = self._words
        head = words[_HEAD + (4 if words[_HEAD] & 1 else 1)]
        return self.log.parsed.get(head) or self.log.parse(head)

    def take(self, limit: int, lease: float | None, ahead: Ahead | None = None) -> list[Delivery]:
        """Up to `limit` messages: those that are due again, then those of the highest level that has any."""
        words, due, receipt = self._words, 0, None
        if words[STATUS]:
            self.enter()
        if lease is not None:
            due = monotonic_ns() + nanoseconds(lease)
            if not self.is_owner:
                self._own()
        if limit > 1 or words[MASK] or (words[HEAPED] and self.claims.next_due() <= monotonic_ns()):
            return self._take_several(limit, due)
        changes = words[_HEAD]  # the usual case, without the loops of the others
        head, count, used = unpack_end(self._bytes, 8 * _HEAD + (32 if changes & 1 else 8))
        if ahead is None or ahead[0] != head:
            ahead = self.log.parse(head) or self._load(head)
            if ahead is None:
                return self._take_several(limit, due)
        _, size, message = ahead
        if due:
            receipt = self._claim(head, size, due)
            self._rearm(due)
        if words[SENDERS]:
            self.ring(SENDERS)
        pack_end(self._bytes, 8 * _HEAD + (8 if changes & 1 else 32), head + size, count + 1, used + size)
        words[_HEAD] = changes + 1
        if due:
            words[STATUS] = 0
        return [(message, receipt)]

    def _load(self, head: int) -> Ahead | None:
        tail = self.state.end(0, TAIL)[0]
        if head >= tail:
            return None
        self.log.load(head, tail)
        return self.log.parse(head)

    def _take_several(self, limit: int, due: int) -> list[Delivery]:
        now = monotonic_ns()
        found: list[Delivery] = []
        if self._words[HEAPED] and self.claims.next_due() <= now:
            self._take_due(found, limit, due, now)
        for level in self.state.busy_levels():
            self._take_head(level, found, limit, due, now)
        return found

    def _claim(self, position: int, size: int, due: int) -> LeaseReceipt:
        self._words[STATUS] = DIRTY
        slot, number = self.claims.add(position, size, 1, self._member, due)
        return LeaseReceipt(self.name, 1, slot, number)

    def _take_due(self, found: list[Delivery], limit: int, due: int, now: int) -> None:
        words, claims = self._words, self.claims
        words[STATUS] = DIRTY
        if due:
            self._rearm(due)
        while len(found) < limit and claims.next_due() <= now:
            slot = claims.top()
            message = self._read_claim(slot, now)
            if message is None:
                self._drop(slot)
            elif due:
                number = claims.renew(slot, self._member, due)
                found.append((message, LeaseReceipt(self.name, words[slot + ATTEMPT], slot, number)))
            else:
                self._drop(slot)
                found.append((message, None))
        words[STATUS] = 0

    def _read_claim(self, slot: int, now: int) -> bytes | None:
        """The message of a claim; None, and counted, where it is damaged or has expired."""
        try:
            record = self.log.read(self._words[slot + POSITION])
        except (ValueError, FileNotFoundError):
            record = None
        if record is None:
            self._words[CORRUPT] += 1
        elif 0 < record[3] <= now:
            self._words[EXPIRED] += 1
        else:
            return record[1]
        return None

    def _take_head(self, level: int, found: list[Delivery], limit: int, due: int, now: int) -> None:
        """Move the head over up to `limit` messages, and over what has expired, is damaged or is not due yet."""
        (head, count, used), (tail, put, put_bytes) = self.state.end(level, HEAD), self.state.end(level, TAIL)
        first = head
        for _ in range(limit + MOST_SKIPPED):
            if head >= tail or len(found) >= limit:
                break
            try:
                record = self.log.read(head)
            except ValueError:
                self._words[CORRUPT] += 1
                head = self.log.after_damage(head, tail)
                count = min(count + 1, put)
                continue
            if record is None:
                head = self._behind_the_end(head, tail)
                continue
            self._take_record(head, record, found, due, now)
            head += record[0]
            count += 1
            used += record[0]
        if head == tail:
            count, used = put, put_bytes  # also where damage has hidden how many there were
        if head > first:
            self._move_head(level, first, head, count, used)

    def _take_record(self, position: int, record: tuple[int, bytes, int, int], found: list[Delivery], due: int, now: int) -> None:
        size, message, visible, expiry = record
        if 0 < expiry <= now:
            self._words[EXPIRED] += 1
        elif visible > now:
            self._words[STATUS] = DIRTY
            self.claims.add(position, size, 0, 0, visible)
        else:
            found.append((message, self._claim(position, size, due) if due else None))

    def _behind_the_end(self, head: int, tail: int) -> int:
        """The start of the next segment; the tail, where this is the last and ends too early."""
        if head >> SHIFT == tail >> SHIFT:
            self._words[CORRUPT] += 1
            return tail
        return next_segment(head)

    def _move_head(self, level: int, first: int, head: int, count: int, used: int) -> None:
        words = self._words
        if words[SENDERS]:
            self.ring(SENDERS)
        if words[STATUS]:
            self._rearm(self.claims.next_due())
        if head >> SHIFT != first >> SHIFT:
            words[STATUS] = DIRTY
        self.state.set_end(level, HEAD, head, count, used)
        if words[STATUS]:
            for segment in range(first >> SHIFT, head >> SHIFT):
                self._keep(segment)
            words[STATUS] = 0

    # Settling

    def ack(self, receipt: LeaseReceipt) -> None:
        """Forget a claim. Raises LeaseLost."""
        self._check(receipt)
        self._words[STATUS] = DIRTY
        self._drop(receipt.slot)
        self._words[STATUS] = 0

    def ack_and_take(self, receipt: LeaseReceipt, lease: float, ahead: Ahead) -> list[Delivery]:
        """`ack`; and `take` of what is ahead, where it is the next in the usual case. Raises LeaseLost, and has taken nothing."""
        now, words, slot = self._check(receipt), self._words, receipt.slot
        head, size, message = ahead
        changes = words[_HEAD]
        first, count, used = unpack_end(self._bytes, 8 * _HEAD + (32 if changes & 1 else 8))
        is_next = first == head and not words[MASK] and (words[HEAPED] == 1 or self.claims.next_due() > now)
        if not is_next or words[slot + POSITION] >> SHIFT != head >> SHIFT:  # nor is its segment done with
            self.ack(receipt)
            return []
        due = now + nanoseconds(lease)
        words[STATUS] = DIRTY
        number = self.claims.replace(slot, head, size, self._member, due)
        if words[RECEIVERS]:
            self._rearm(due)
        if words[SENDERS]:
            self.ring(SENDERS)
        pack_end(self._bytes, 8 * _HEAD + (8 if changes & 1 else 32), head + size, count + 1, used + size)
        words[_HEAD] = changes + 1
        words[STATUS] = 0
        return [(message, LeaseReceipt(self.name, 1, slot, number))]

    def nack(self, receipt: LeaseReceipt, due: int) -> None:
        """The message is nobody's, and due then. Raises LeaseLost."""
        self._check(receipt)
        self._words[STATUS] = DIRTY
        self._rearm(due)
        self.claims.release(receipt.slot, due)
        self._words[STATUS] = 0

    def extend(self, receipt: LeaseReceipt, due: int) -> None:
        """The lease ends then. Raises LeaseLost."""
        self._check(receipt)
        self._words[STATUS] = DIRTY
        self._rearm(due)
        self.claims.move(receipt.slot, due)
        self._words[STATUS] = 0

    def _check(self, receipt: LeaseReceipt) -> int:
        """The time, at which the lease has not ended."""
        words, slot, now = self._words, receipt.slot, monotonic_ns()
        if words[STATUS]:
            self.enter()
        if words[slot] != receipt.number or words[slot + OWNER] != self._member or words[slot + DUE] <= now:
            raise LeaseLost(f"a delivery from queue {self.name!r} was settled before, or its lease had ended: nothing was done")
        return now

    def _drop(self, slot: int) -> None:
        """End a claim; the last one of a segment that the head has left takes the segment with it."""
        position = self._words[slot + POSITION]
        self.claims.remove(slot)
        if position >> SHIFT != self.state.head(position >> 60) >> SHIFT:
            self.log.drop_claim(position >> SHIFT)
        if self._words[SENDERS]:
            self.ring(SENDERS)

    # Recovery

    def enter(self) -> None:
        """What every operation begins with, where the status is not 0."""
        status = self._words[STATUS]
        if status == IS_DELETED:
            raise self._deleted()
        if status:
            self._recover()

    def _deleted(self) -> QueueNotFound:
        return QueueNotFound(f"queue {self.name!r} was deleted")

    def _recover(self) -> None:
        """After a death in the middle of a change: derive again what follows from the slots and the heads."""
        self._words[STATUS] = DIRTY
        self.claims.rebuild()
        for segment in self.log.segments():
            if segment < self.state.head(segment >> LEVEL_SHIFT) >> SHIFT:
                self._keep(segment)
        self._words[STATUS] = 0

    def _keep(self, segment: int) -> None:
        """The head has left the segment: keep it for the claims that lie in it, or remove it."""
        words = self._words
        self.log.keep(segment, sum(words[slot + POSITION] >> SHIFT == segment for slot in self.claims.all()))

    def delete(self) -> None:
        """Every later call raises QueueNotFound; the files are unlinked. Idempotent. Both locks."""
        if self._words[STATUS] == IS_DELETED:
            return  # the names may be those of a successor by now
        self._words[STATUS] = IS_DELETED
        self.ring(RECEIVERS)
        self.ring(SENDERS)
        for segment in self.log.segments():
            self.log.keep(segment, 0)
        self._directory.clear()

    def share_log(self) -> None:
        """Receivers may read the files that senders have open: where their names are gone there is no other way."""
        self.log.borrow(self.tail_log)

    def close(self) -> None:
        """Let go of the log's files. Both locks."""
        self.log.close()
        self.tail_log.close()

    # Owners of leases, and sleepers

    def _own(self) -> None:
        """Before the first lease: let the others know whose death to watch."""
        if not self.state.join(OWNERS, self._member):
            raise ProviderError(f"more than {TABLE_SIZE} processes take leases from queue {self.name!r}")
        self.is_owner = True
        self.ring(RECEIVERS)

    def others(self) -> list[int]:
        """The other processes that take leases."""
        return [owner for owner in self.state.table(OWNERS) if owner != self._member]

    def give_back(self, owners: Iterable[int]) -> None:
        """As `release`; what every operation begins with comes first."""
        self.enter()
        self.release(owners)

    def release(self, owners: Iterable[int]) -> None:
        """What is leased to these is due at once, in the order in which it was claimed; they are no owners any more."""
        words, gone = self._words, set(owners)
        words[STATUS] = DIRTY
        self.ring(RECEIVERS)
        theirs = [slot for slot in self.claims.all() if words[slot + OWNER] in gone]
        for due, slot in enumerate(sorted(theirs, key=words.__getitem__), 1):
            words[slot + DUE] = due
            words[slot + OWNER] = 0
        self.state.set_table(OWNERS, [number for number in self.state.table(OWNERS) if number not in gone])
        self._recover()

    def arm(self, number: int) -> int:
        """Register the bell of a receiver that goes to sleep; when it must look again. Both locks."""
        self.state.drop_idle_levels()
        words, due = self._words, self.claims.next_due()
        self.enrol(RECEIVERS, number)
        words[ARMED] = due if words[RECEIVERS] == 1 else max(due, words[ARMED])
        return due

    def enrol(self, table: int, number: int) -> None:
        """Register a bell. Where the table is full, wake all in it: the living come back, the dead do not. Both locks."""
        if not self.state.join(table, number):
            self.ring(table)
            self.state.join(table, number)

    def sleepers(self) -> list[int]:
        """The bells of those who wait for a message or for room. Without a lock only a hint."""
        return self.state.table(RECEIVERS) + self.state.table(SENDERS)

    def _rearm(self, due: int) -> None:
        """Something is due before the sleeping receivers would look: ring them."""
        if self._words[RECEIVERS] and due < self._words[ARMED]:
            self.ring(RECEIVERS)

    def ring(self, table: int) -> None:
        """Wake all who sleep; the table is emptied last, so that a death in between leaves the rest to the next one. Any lock: it is
        filled under both only.
        """
        for number in self.state.table(table):
            self._bells.ring(number)
        self._words[table] = 0
