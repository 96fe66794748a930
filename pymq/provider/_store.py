"""What is done to a shared queue while its lock is held: append, take, settle, recover.

*append*: write the record behind the tail, ring the sleepers, commit. The rings come first, since a process killed behind the
commit would leave the others asleep before a message. *take*: read the record at the head, make a claim of it where there is a
lease, commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic_ns

from pymq.exceptions import LeaseLost, ProviderError, QueueNotFound
from pymq.provider._claims import ATTEMPT, DUE, OWNER, POSITION, Claims, LeaseReceipt
from pymq.provider._files import Bells, Directory
from pymq.provider._segments import NS, OFFSET, Ahead, Log, next_segment
from pymq.provider._state import (
    ARMED,
    CORRUPT,
    COUNT,
    DIRTY,
    EPOCH,
    EXPIRED,
    HEAPED,
    HELD,
    IS_DELETED,
    LEASED,
    MASK,
    OWNERS,
    RECEIVERS,
    SENDERS,
    START,
    STATUS,
    TABLE_SIZE,
    WORD,
    State,
)
from pymq.provider.base import Delivery

MOST_SKIPPED = 1000  # expired or delayed records in one hold of the lock: about 2 ms


class Store:
    """The files of one shared queue. Every method is called with the lock held, but for `has_something`."""

    def __init__(self, name: str, state: State, directory: Directory, bells: Bells, member: int, max_bytes: int) -> None:
        self.name = name
        self.state = state
        self.claims = Claims(state)
        self.log = Log(directory)
        self._words = state.words
        self._directory = directory
        self._bells = bells
        self._member = member
        self._max_bytes = max_bytes
        self.is_owner = False

    # Putting in

    def append(self, record: bytes, level: int, maxsize: int) -> bool:
        """Write a record and commit it; False where there is no room."""
        words, state = self._words, self.state
        if words[STATUS]:
            self.enter()
        head, tail, count, used = state.level(level)
        size = (len(record) + 7) & ~7
        if (maxsize or words[MASK] or used + words[HELD] + size > self._max_bytes) and not self._has_room(size, maxsize):
            return False
        if head == tail and not words[HEAPED]:  # back to the start of the file: its pages are warm
            head = tail = (tail & ~OFFSET) | START
            count = (count & ~COUNT) + EPOCH & WORD
        tail = self.log.write(tail, size, record)
        if words[RECEIVERS]:
            self.ring(RECEIVERS)
        if level:
            words[MASK] |= 1 << level
        state.set_level(level, head, tail + size, count + 1, used + size)
        return True

    def _has_room(self, size: int, maxsize: int) -> bool:
        waiting = self.waiting()
        if not waiting:
            return True
        return not (0 < maxsize <= waiting) and self.total_bytes() + size <= self._max_bytes

    def waiting(self) -> int:
        """How many messages bear no lease; one that has ended counts as such when it is taken again."""
        counts = sum(self.state.level(level)[2] & COUNT for level in self.state.busy_levels())
        return counts + self._words[HEAPED] - self._words[LEASED]

    def total_bytes(self) -> int:
        """How many bytes are in the queue, leased ones included."""
        return sum(self.state.level(level)[3] for level in self.state.busy_levels()) + self._words[HELD]

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
        """What `take` will probably return; needs no lock."""
        head, _, count, _ = self.state.level(0)
        return self.log.ahead(head, count & ~COUNT)

    def take(self, limit: int, lease: float | None, ahead: Ahead | None = None) -> list[Delivery]:
        """Up to `limit` messages: those that are due again, then those of the highest level that has any."""
        words = self._words
        if words[STATUS]:
            self.enter()
        now = monotonic_ns()
        due = 0
        if lease is not None:
            due = now + int(lease * NS)
            if not self.is_owner:
                self._own()
        lapsed = words[HEAPED] and self.claims.next_due() <= now
        if limit == 1 and not lapsed and not words[MASK]:
            delivery = self._take_ahead(ahead, due)
            if delivery is not None:
                return [delivery]
        found: list[Delivery] = []
        if lapsed:
            self._take_due(found, limit, due, now)
        for level in self.state.busy_levels():
            self._take_head(level, found, limit, due, now)
        return found

    def _take_ahead(self, ahead: Ahead | None, due: int) -> Delivery | None:
        """Take the record that was read ahead, if it is still the head: the usual case, without the loop of the others."""
        words = self._words
        head, tail, count, used = self.state.level(0)
        if head >= tail:
            return None
        epoch = count & ~COUNT
        if ahead is None or ahead[0] != head or ahead[1] != epoch:
            ahead = self.log.ahead(head, epoch)
            if ahead is None:
                self.log.load(head, tail, epoch)
                ahead = self.log.ahead(head, epoch)
                if ahead is None:
                    return None
        _, _, size, message = ahead
        receipt = None
        if due:
            receipt = self._claim(head, size, due)
            self._rearm(due)
        if words[SENDERS]:
            self.ring(SENDERS)
        self.state.set_level(0, head + size, tail, count - 1, used - size)
        words[STATUS] = 0
        return message, receipt

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
        head, tail, count, used = self.state.level(level)
        first = head
        for _ in range(limit + MOST_SKIPPED):
            if head >= tail or len(found) >= limit:
                break
            try:
                record = self.log.read(head)
            except ValueError:
                self._words[CORRUPT] += 1
                head = self.log.after_damage(head, tail)
                count -= count & COUNT > 0
                continue
            if record is None:
                head = self._behind_the_end(head, tail)
                continue
            self._take_record(head, record, found, due, now)
            head += record[0]
            count -= 1
            used -= record[0]
        if head == first:
            return
        if head == tail:
            count &= ~COUNT
            used = 0  # also where damage has hidden how many there were
        self._move_head(level, first, (head, tail, count, used))

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
        if head >> 32 == tail >> 32:
            self._words[CORRUPT] += 1
            return tail
        return next_segment(head)

    def _move_head(self, level: int, first: int, to: tuple[int, int, int, int]) -> None:
        words, (head, tail, *_) = self._words, to
        if words[SENDERS]:
            self.ring(SENDERS)
        if words[STATUS]:
            self._rearm(self.claims.next_due())
        if head >> 32 != first >> 32:
            words[STATUS] = DIRTY
        self.state.set_level(level, *to)
        if words[STATUS]:
            for segment in range(first >> 32, head >> 32):
                self._keep(segment)
            words[STATUS] = 0
        if level and head == tail:
            words[MASK] &= ~(1 << level)

    # Settling

    def ack(self, receipt: LeaseReceipt) -> None:
        """Forget a claim. Raises LeaseLost."""
        self._check(receipt)
        self._words[STATUS] = DIRTY
        self._drop(receipt.slot)
        self._words[STATUS] = 0

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

    def _check(self, receipt: LeaseReceipt) -> None:
        words, slot = self._words, receipt.slot
        if words[STATUS]:
            self.enter()
        if words[slot] != receipt.number or words[slot + OWNER] != self._member or words[slot + DUE] <= monotonic_ns():
            raise LeaseLost(f"the lease on a message of queue {self.name!r} had ended: it is delivered again")

    def _drop(self, slot: int) -> None:
        """End a claim; the last one of a segment that the head has left takes the segment with it."""
        position = self._words[slot + POSITION]
        self.claims.remove(slot)
        if position >> 32 != self.state.head(position >> 60) >> 32:
            self.log.drop_claim(position >> 32)
        if self._words[SENDERS]:
            self.ring(SENDERS)

    # Recovery

    def enter(self) -> None:
        """What every operation begins with, where the status is not 0."""
        status = self._words[STATUS]
        if status == IS_DELETED:
            raise QueueNotFound(f"queue {self.name!r} was deleted")
        if status:
            self._recover()

    def _recover(self) -> None:
        """After a death in the middle of a change: derive again what follows from the slots and the heads."""
        self._words[STATUS] = DIRTY
        self.claims.rebuild()
        for segment in self.log.segments():
            head, tail, *_ = self.state.level(segment >> 28)
            if segment < head >> 32:
                self._keep(segment)
            elif segment > tail >> 32:
                self.log.keep(segment, 0)
        self._words[STATUS] = 0

    def _keep(self, segment: int) -> None:
        """The head has left the segment: keep it for the claims that lie in it, or remove it."""
        words = self._words
        self.log.keep(segment, sum(words[slot + POSITION] >> 32 == segment for slot in self.claims.all()))

    def delete(self) -> None:
        """Every later call raises QueueNotFound; the files are unlinked. Idempotent."""
        if self._words[STATUS] == IS_DELETED:
            return  # the names may be those of a successor by now
        self._words[STATUS] = IS_DELETED
        self.ring(RECEIVERS)
        self.ring(SENDERS)
        for name in self._directory.names():
            self._directory.unlink(name)

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
        """Register the bell of a receiver that goes to sleep; when it must look again."""
        words, due = self._words, self.claims.next_due()
        self.enrol(RECEIVERS, number)
        words[ARMED] = due if words[RECEIVERS] == 1 else max(due, words[ARMED])
        return due

    def enrol(self, table: int, number: int) -> None:
        """Where the table is full, wake all in it: the living come back, the dead do not."""
        if not self.state.join(table, number):
            self.ring(table)
            self.state.join(table, number)

    def _rearm(self, due: int) -> None:
        """Something is due before the sleeping receivers would look: ring them."""
        if self._words[RECEIVERS] and due < self._words[ARMED]:
            self.ring(RECEIVERS)

    def ring(self, table: int) -> None:
        """Wake all who sleep; the table is emptied last, so that a death in between leaves the rest to the next one."""
        for number in self.state.table(table):
            self._bells.ring(number)
        self._words[table] = 0
