"""The dispatcher by itself: which tasks a batch of messages reaches."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from pymq import message as frames
from pymq.dispatch import Dispatcher, Serial, Task
from pymq.exceptions import CodecError
from pymq.message import EVENT, RAW, Prefix

GUARD = 20.0


class Noted:
    """A task that notes what it is given, and may do something then."""

    def __init__(self, name: str, heard: queue.SimpleQueue[tuple[str, bytes]], act: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self.serial = Serial()
        self._heard = heard
        self._act = act

    def run(self, message: bytes) -> None:
        self._heard.put((self.name, message))
        self._act()


class Reception:
    """What a dispatcher receives from: batches that a test puts there, and the table of who gets them."""

    def __init__(self) -> None:
        self.batches: queue.SimpleQueue[list[tuple[bytes, None]]] = queue.SimpleQueue()
        self.heard: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        self.tasks: dict[bytes, tuple[Task, ...]] = {}
        self.now: tuple[Task, ...] = ()
        self.dispatcher = Dispatcher("test", self.receive, self.wake, self.tasks, self._look_up)

    def receive(self, busy: bool) -> list[tuple[bytes, None]]:
        return self.batches.get()

    def wake(self) -> None:
        self.batches.put([])

    def _look_up(self, message: bytes) -> tuple[Task, ...]:
        packed = frames.prefix_of(message)
        try:
            frames.unpack_prefix(packed)
        except CodecError:
            return ()
        self.tasks[packed] = self.now
        return self.now

    def arrive(self, *messages: bytes) -> None:
        self.batches.put([(message, None) for message in messages])

    def take(self, count: int) -> list[tuple[str, bytes]]:
        return [self.heard.get(timeout=GUARD) for _ in range(count)]


@pytest.fixture
def reception() -> Iterator[Reception]:
    made = Reception()
    made.dispatcher.start()
    yield made
    made.dispatcher.close(deadline=0)
    made.wake()


def event(number: int, channel: str = "c") -> bytes:
    return frames.pack_sequence(number) + frames.pack_prefix(Prefix(EVENT, RAW, 0, 1, channel, "bytes", ()))


def test_who_comes_in_the_middle_of_a_batch_gets_the_rest_of_it(reception):
    later = Noted("later", reception.heard)

    def admit() -> None:
        reception.now = (first, later)
        reception.tasks.clear()

    first = Noted("first", reception.heard, admit)
    reception.now = (first,)
    messages = [event(number) for number in range(3)]
    reception.arrive(*messages)
    assert reception.take(5) == [("first", messages[0])] + [(name, it) for it in messages[1:] for name in ("first", "later")]


def test_a_message_that_is_cut_does_not_hide_the_whole_one_behind_it(reception):
    reception.now = (Noted("task", reception.heard),)
    reception.arrive(event(0))
    reception.take(1)
    reception.arrive(b"", event(1)[:30], event(2), event(3)[:30], event(4), event(5)[:9], event(6), event(7, "other"), b"", event(8))
    assert [message for _, message in reception.take(5)] == [event(2), event(4), event(6), event(7, "other"), event(8)]


def test_what_is_for_nobody_is_passed_over(reception, caplog):
    """Also the second time, when that is known."""
    messages = [event(number, channel) for number, channel in enumerate("nnncnnnc")]
    reception.tasks[frames.prefix_of(messages[0])] = ()
    reception.now = (Noted("task", reception.heard),)
    reception.arrive(*messages)
    assert [message for _, message in reception.take(2)] == [messages[3], messages[7]]
    assert not caplog.records


def test_a_message_that_is_cut_takes_no_look_ups_of_those_behind_it(reception, monkeypatch):
    looked_up = []
    look_up = reception.dispatcher._look_up
    monkeypatch.setattr(reception.dispatcher, "_look_up", lambda message: looked_up.append(message) or look_up(message))
    reception.now = (Noted("task", reception.heard),)
    cut, *whole = event(0)[:30], *map(event, range(1, 5))
    reception.arrive(cut, *whole)
    reception.take(4)
    assert looked_up == [cut, whole[0]]


def test_a_standby_is_not_woken_for_every_message(reception, monkeypatch):
    """It was, until it had slept for the first time: a call on one processor took twice as long."""
    woken = threading.Semaphore(0)
    wake = reception.dispatcher._alarm.set
    monkeypatch.setattr(reception.dispatcher._alarm, "set", lambda: (woken.release(), wake()))
    reception.now = (Noted("task", reception.heard),)
    for number in range(50):
        reception.arrive(event(number))
        reception.take(1)
    assert sum(woken.acquire(blocking=False) for _ in range(50)) <= 5
