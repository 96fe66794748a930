"""Batches: what several threads want to send to one place at the same time goes in one call, and nobody waits for company.

While nothing is on its way to a place, a call is made at once, for one entry. What comes meanwhile waits for company: until there
are ten, or until all calls have ended and 5 ms more, or for 250 ms, whichever comes first. Where order matters one call is made after
the other, and what waits goes in the next. So an idle publisher pays nothing for this, a busy one makes a tenth of the calls, and in
both cases `add` returns when AWS has the entry.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pymq.exceptions import ConnectionLost
from pymq.provider._aws.account import AwsError, refusal
from pymq.provider._aws.envelope import LARGEST_BODY

MOST = 10
ATTEMPTS = 6
LINGER = 0.005
"""Seconds; without it a call that ends finds the first few that the one before has let go, and 60 threads make 0.18 calls per entry."""
PATIENCE = 0.25
"""Seconds for which calls that are on their way are a reason to wait: they may take long, where AWS is throttling."""


class _Entry:
    __slots__ = ("content", "error", "leads", "ready", "size")

    def __init__(self, content: dict[str, Any], size: int) -> None:
        self.content = content
        self.size = size
        self.ready = threading.Event()
        self.leads = False
        self.error: Exception | None = None


class _Lane:
    """What waits for a place, how many calls are being made or about to be, and whose call waits to be filled."""

    def __init__(self) -> None:
        self.waiting: list[_Entry] = []
        self.running = 0
        self.lingers: _Entry | None = None
        self.filled = threading.Event()

    def fill(self, batch: list[_Entry]) -> None:
        """With the first that fit into one call."""
        size = 0
        for entry in self.waiting[:MOST]:
            size += entry.size
            if batch and size > LARGEST_BODY:
                break
            batch.append(entry)
        del self.waiting[: len(batch)]
        self.go()

    def go(self) -> None:
        """Nothing more is waited for."""
        self.lingers = None
        self.filled.clear()


class Batches:
    """One kind of call: `call(place, entries)` makes it for up to ten entries. Safe in all threads."""

    def __init__(self, call: Callable[[str, list[dict[str, Any]]], dict[str, Any]], in_order: bool, patience: float = PATIENCE) -> None:
        self._call = call
        self._in_order = in_order
        self._patience = None if in_order else patience
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}

    def add(self, place: str, content: dict[str, Any], size: int = 0) -> None:
        """AWS has it when this returns. Raises what AWS says of this entry."""
        entry = _Entry(content, size)
        with self._lock:
            lane = self._lanes.setdefault(place, _Lane())
            lane.waiting.append(entry)
            full = len(lane.waiting) >= MOST
            if lane.lingers and full:
                lane.filled.set()
            elif not lane.lingers and (not lane.running or (full and not self._in_order)):
                self._appoint(lane, linger=False)
        try:
            while not entry.ready.wait(self._patience):
                self._lose_patience(lane, entry)
        except BaseException:  # Ctrl-C: nobody may be left waiting for a call that this thread was to make
            self._leave(lane, entry)
            raise
        finally:
            if entry.leads:
                self._run(place, lane, entry)
        if entry.error is not None:
            raise entry.error

    def _lose_patience(self, lane: _Lane, entry: _Entry) -> None:
        with self._lock:
            if lane.waiting and lane.waiting[0] is entry and not lane.lingers:
                self._appoint(lane, linger=False)

    def _leave(self, lane: _Lane, entry: _Entry) -> None:
        with self._lock:
            if entry in lane.waiting and not entry.leads:
                lane.waiting.remove(entry)

    def _appoint(self, lane: _Lane, linger: bool) -> None:
        """The thread of the first one that waits makes the next call. Under the lock."""
        lane.running += 1
        lane.lingers = lane.waiting[0]
        if not linger:
            lane.filled.set()
        lane.waiting[0].leads = True
        lane.waiting[0].ready.set()

    def _run(self, place: str, lane: _Lane, leader: _Entry) -> None:
        """Ctrl-C may come anywhere in this: whoever waits for the call, or for the lane, must not wait for ever."""
        batch: list[_Entry] = []
        errors: Sequence[Exception | None] = []
        try:
            lane.filled.wait(LINGER)
            with self._lock:
                lane.fill(batch)
            errors = in_one_call(lambda entries: self._call(place, entries), [entry.content for entry in batch])
        finally:
            self._end(place, lane, leader)
            interrupted = ConnectionLost("the call was interrupted; it is not known whether it took place")
            for entry, error_or_none in zip(batch, errors or [interrupted] * len(batch)):
                entry.error = error_or_none
                entry.ready.set()

    def _end(self, place: str, lane: _Lane, leader: _Entry) -> None:
        with self._lock:
            lane.running -= 1
            if lane.lingers is leader:  # interrupted before it had taken what it was to send
                lane.go()
                lane.waiting = [entry for entry in lane.waiting if entry is not leader]
            full = len(lane.waiting) >= MOST
            if lane.waiting and not lane.lingers and (full or not lane.running):
                self._appoint(lane, linger=not full)
            elif not lane.running:
                self._lanes.pop(place, None)


def in_one_call(call: Callable[[list[dict[str, Any]]], dict[str, Any]], contents: Sequence[dict[str, Any]]) -> list[Exception | None]:
    """Make the call; those of its entries that AWS was too busy for again, after 0.1, 0.2, 0.4 … s with jitter. Each one's error."""
    errors: dict[int, Exception | None] = {}
    left = list(range(len(contents)))
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(random.uniform(0.5, 1.0) * 0.1 * 2 ** (attempt - 1))
        try:
            answer = call([contents[number] | {"Id": str(number)} for number in left])
        except Exception as error:  # of these entries only: AWS has the others
            errors |= dict.fromkeys(left, error)
            break
        errors |= dict.fromkeys(left, ConnectionLost("half of AWS's answer is missing; it is not known whether the call took place"))
        errors |= {int(taken["Id"]): None for taken in answer.get("Successful", [])}
        failed = {int(failure["Id"]): failure for failure in answer.get("Failed", [])}
        errors |= {number: refusal(failure.get("Code", ""), failure.get("Message", "refused")) for number, failure in failed.items()}
        left = [number for number, failure in failed.items() if _may_succeed(failure, errors[number])]
        if not left:
            break
    return [errors[number] for number in range(len(contents))]


def _may_succeed(failure: dict[str, Any], error: Exception | None) -> bool:
    return not failure.get("SenderFault") or (isinstance(error, AwsError) and error.throttled)
