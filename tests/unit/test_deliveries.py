"""What happens to a leased message: the back-off after failures, the move to the dead letters, the lease while it is handled."""

from __future__ import annotations

import queue
import threading
import time
from functools import partial
from queue import Full
from typing import Any

import pytest
from harness import GUARD, eventually

from pymq import message as frames
from pymq.deliveries import MAX_BACKOFF, Leased, Leases, Policy
from pymq.exceptions import MessageTooLarge, ProviderError
from pymq.message import Prefix
from pymq.provider.base import Features, Receipt
from pymq.schedule import Schedule


def test_the_back_off_doubles_up_to_an_hour_and_spreads():
    policy = Policy(retries=5, backoff=2.0, dead_queue="")
    for failures, longest in [(1, 2.0), (2, 4.0), (3, 8.0), (11, 2048.0), (12, MAX_BACKOFF), (100_000, MAX_BACKOFF)]:
        delays = [policy.delay(failures) for _ in range(1000)]
        assert longest * 0.75 <= min(delays) < longest * 0.8, "a jitter of a quarter"
        assert longest * 0.95 < max(delays) <= longest
    assert Policy(5, 0.0, "").delay(3) == 0


class Recording:
    """A provider of which a `Leases`, or a `Leased`, wants nothing but to settle."""

    max_message_bytes = 1000
    features = Features()

    def __init__(self, refusal: Exception | None = None) -> None:
        self.done: list[str] = []
        self.extended: list[object] = []
        self.sent: list[bytes] = []
        self._refusal = refusal

    def extend(self, receipt: object, seconds: float) -> None:
        self.extended.append(receipt)

    def declare(self, queue: str) -> None:
        pass

    def clock(self) -> float:
        return 0.0

    def send(self, queue: str, message: bytes, **how: object) -> None:
        if self._refusal:
            raise self._refusal
        self.sent.append(message)

    def ack(self, receipt: object) -> None:
        self.done.append("ack")

    def nack(self, receipt: object, delay: float) -> None:
        self.done.append("nack")


def test_a_lease_is_extended_however_many_shorter_ones_come_and_go():
    provider: Any = Recording()
    leases = Leases(lambda: provider)
    slow, quick = Receipt("slow", 1), Receipt("quick", 1)
    leases.hold(slow, 0.6)
    try:
        for _ in range(20):
            leases.hold(quick, 0.3)
            leases.release(quick)
            time.sleep(0.05)
    finally:
        leases.close()
    assert provider.extended.count(slow) >= 3


def test_what_comes_and_goes_does_not_wake_the_thread_each_time():
    """It looked between two events, slept without a time limit then, and so was woken for the next: a fifth of a group's time."""
    leases, wakes = Leases(Recording), []  # type: ignore[arg-type]
    wake = leases._wake
    leases._wake = lambda: wakes.append(wake())  # type: ignore[method-assign]
    try:
        for number in range(100):
            leases.hold(receipt := Receipt("quick", number), 30)
            leases.release(receipt)
            time.sleep(0.001)
    finally:
        leases.close()
    assert len(wakes) < 5


def test_a_lease_of_thousands_of_years_is_slept_through(caplog):
    provider: Any = Recording()
    leases = Leases(lambda: provider)
    leases.hold(Receipt("for ever", 1), 1e14)
    time.sleep(0.1)
    leases.close()
    assert not caplog.records


def test_a_lease_that_is_released_while_another_is_extended_is_not_extended_any_more():
    provider: Any = Recording()
    leases = Leases(lambda: provider)
    first, second = Receipt("first", 1), Receipt("second", 1)

    def extend(receipt: object, seconds: float) -> None:
        provider.extended.append(receipt)
        leases.release(second)

    provider.extend = extend
    leases.hold(first, 0.3)
    leases.hold(second, 0.3)
    time.sleep(0.5)
    leases.close()
    assert provider.extended.count(first) >= 3
    assert second not in provider.extended


def test_an_extension_that_hangs_does_not_cost_the_other_leases():
    """Over a network."""
    provider: Any = Recording()
    provider.features = Features(waits_on_io=True)
    leases = Leases(lambda: provider)
    first, second = Receipt("first", 1), Receipt("second", 1)
    may_end = threading.Event()

    def extend(receipt: object, seconds: float) -> None:
        if receipt is first:
            assert may_end.wait(GUARD)
        provider.extended.append(receipt)

    provider.extend = extend
    leases.hold(first, 0.3)
    leases.hold(second, 0.3)
    eventually(lambda: provider.extended.count(second) >= 3)
    assert first not in provider.extended
    leases.close()
    may_end.set()


def test_a_shutdown_while_the_first_lease_is_taken(monkeypatch):
    """By another thread, or by a signal handler: it tried to wait for a thread that had not begun, and left the bus half closed."""
    leases = Leases(Recording)  # type: ignore[arg-type]
    start = threading.Thread.start

    def close_before(thread: threading.Thread) -> None:
        leases.close()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", close_before)
    leases.hold(Receipt("jobs", 1), 30.0)
    leases.close()


@pytest.mark.parametrize("what", [Leases, Schedule])
def test_a_thread_that_the_system_refuses_is_asked_for_again(what, monkeypatch):
    """Leases were extended no more, and delayed events never came, without a word; and `shutdown` failed."""
    provider: Any = Recording()
    come: queue.SimpleQueue[Any] = queue.SimpleQueue()
    provider.extend = lambda receipt, seconds: come.put(receipt)
    one: Any = Leases(lambda: provider) if what is Leases else Schedule(lambda task, message: come.put(message))
    begin = partial(one.hold, Receipt("jobs", 1), 0.1) if what is Leases else partial(one.add, 0.0, None, b"")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            begin()
    begin()
    come.get(timeout=GUARD)
    one.close()


def leased(provider: Any, payload: bytes) -> Leased:
    message = frames.pack_sequence(1) + frames.pack_prefix(Prefix(frames.ITEM, 0, 0, 1, "c", "", ())) + payload
    return Leased(provider, message, Receipt("queue/jobs", 1), Policy(0, 1.0, "dead"))


def test_a_dead_letter_that_is_too_large_goes_without_its_reasons():
    provider = Recording()
    leased(provider, bytes(900)).bury(ValueError("x" * 1000))
    (letter,) = map(frames.unpack, provider.sent)
    assert (letter.payload, letter.options) == (bytes(900), {"origin": "queue/jobs"})
    assert provider.done == ["ack"]


@pytest.mark.parametrize("refusal", [Full(), ProviderError("the file system is full"), MessageTooLarge("by a few bytes")])
def test_what_cannot_be_moved_waits_as_it_is(refusal):
    provider = Recording(refusal)
    leased(provider, b"m").bury(ValueError())
    assert provider.done == ["nack"]
