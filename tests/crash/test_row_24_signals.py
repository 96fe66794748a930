"""Row 24: signal handlers that use the bus while their own thread is in the middle of it: an error that says so, never a deadlock."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from harness import GUARD, eventually, run_program

import pymq
from pymq.message import beside
from pymq.provider._shm.outlet import Outlet
from pymq.provider._shm.registry import Registry
from pymq.provider._shm.store import Store
from pymq.provider.shm import ShmConfig
from pymq.provider.simple import SimpleConfig, SimpleProvider

LARGE = "x" * 100_000


@pytest.fixture
def bus() -> Iterator[pymq.EventBus]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="pymq-test-") as home:
        with pymq.EventBus(ShmConfig("signals", f"{home}/pymq", max_pending=1 << 20)) as bus:
            yield bus
            bus.queue("jobs").free()
        assert list(Path(home, "pymq").rglob("*")) == []


@contextmanager
def signalled_inside(owner: type, method: str, handler: Callable[[], None]) -> Iterator[None]:
    """The handler runs once, in the middle of the next call of that method: its locks are held."""
    original = getattr(owner, method)
    left = [None]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if left:
            left.pop()
            signal.raise_signal(signal.SIGUSR1)
        return original(*args, **kwargs)

    def handle(number: int, frame: FrameType | None) -> None:
        handler()

    before = signal.signal(signal.SIGUSR1, handle)
    setattr(owner, method, interrupted)
    try:
        yield
        assert not left, f"{method} was not called"
    finally:
        setattr(owner, method, original)
        signal.signal(signal.SIGUSR1, before)


class Outcome:
    """What became of a call in a signal handler."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.result: object = None

    def __call__(self) -> None:
        try:
            self.result = self._call()
        except pymq.ProviderError as error:
            self.result = error


def in_thread(call: Callable[[], object]) -> None:
    """It must come to its end in another thread: nothing is locked any more."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(GUARD)
    assert not thread.is_alive(), "deadlock"


QUEUE_PLACES = [(Store, "append", "put"), (Store, "take", "get"), (Store, "take", "take"), (Store, "ack", "take")]


def use(bus: pymq.EventBus, verb: str) -> object:
    jobs = bus.queue("jobs")
    if verb == "take":
        with jobs.take(timeout=0) as job:
            return job.value
    return jobs.put("new") if verb == "put" else jobs.get(timeout=0)


@pytest.mark.parametrize(("owner", "method", "verb"), QUEUE_PLACES)
def test_in_the_middle_of_a_queues_operation(owner: type, method: str, verb: str, bus: pymq.EventBus) -> None:
    jobs = bus.queue("jobs")
    for number in range(5):
        jobs.put(f"item {number}")
    outcome = Outcome(lambda: use(bus, verb))
    with signalled_inside(owner, method, outcome):
        use(bus, verb)
    assert isinstance(outcome.result, pymq.ProviderError)
    assert "signal handler" in str(outcome.result)
    in_thread(lambda: use(bus, verb))
    assert jobs.qsize() == (7 if verb == "put" else 3)


@pytest.mark.parametrize(("owner", "method", "verb"), QUEUE_PLACES)
def test_what_the_handler_raises_leaves_nothing_locked(owner: type, method: str, verb: str, bus: pymq.EventBus) -> None:
    def give_up() -> None:
        raise KeyboardInterrupt

    jobs = bus.queue("jobs")
    for number in range(5):
        jobs.put(f"item {number}")
    with pytest.raises(KeyboardInterrupt), signalled_inside(owner, method, give_up):
        use(bus, verb)
    in_thread(lambda: use(bus, verb))
    assert jobs.qsize() >= 3  # at most one is lent to the call that was interrupted, and one was taken in the thread


@pytest.mark.parametrize("verb", ["size", "look_up"])
def test_what_a_handler_raises_at_any_moment_leaves_nothing_locked(verb: str, bus: pymq.EventBus) -> None:
    """It may come when a lock is let go of, before the first line of what does that."""
    bus.queue("jobs").put("item")
    armed, registry, queue = [False], bus.provider._registry, bus.provider._shared("queue/jobs")[0]  # type: ignore[attr-defined]
    verbs: dict[str, Callable[[], object]] = {"size": queue.size, "look_up": lambda: registry.matching(("topic",))}

    def give_up(number: int, frame: FrameType | None) -> None:
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    def use_until_interrupted() -> None:
        while armed[0]:  # in CPython 3.13 the jump back to here is in no `try` around it
            verbs[verb]()

    before = signal.signal(signal.SIGALRM, give_up)
    try:
        for turn in range(2000):
            try:
                armed[0] = True
                signal.setitimer(signal.ITIMER_REAL, (turn % 100 + 1) * 1e-5)
                use_until_interrupted()
            except KeyboardInterrupt:
                pass
    finally:
        armed[0] = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    in_thread(verbs[verb])


class Late(Exception):
    """What a handler of a program's own may raise."""


@pytest.mark.parametrize("error", [TimeoutError, Late])
@pytest.mark.parametrize(("owner", "method", "verb"), QUEUE_PLACES)
def test_what_the_handler_raises_is_what_comes(owner: type, method: str, verb: str, error: type, bus: pymq.EventBus) -> None:
    """It became a ProviderError, of damaged files; and the kernel's errors are of the same class as a TimeoutError."""

    def give_up() -> None:
        raise error("too late")

    bus.queue("jobs").put("item")
    with pytest.raises(error, match="too late"), signalled_inside(owner, method, give_up):
        use(bus, verb)


@pytest.mark.parametrize("verb", ["publish", "publish_large", "publisher", "send"])
def test_a_timeout_by_a_signal_ends_a_publish_and_sends_nothing_twice(
    verb: str, bus: pymq.EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for a full pipe: the event came twice, and the program went on as if there had been no timeout."""
    provider = bus.provider
    provider.declare("inbox", temporary=True)
    provider.bind("inbox", "news", exact=True)
    publish = provider.publisher(("news",), itertools.repeat(b""), bytes)
    publish(b"first")
    provider.send("inbox", b"first")
    provider.publish(("news",), bytes(10_000))

    def write_and_raise(fifo: int, message: bytes) -> int:
        os.write(fifo, message)
        raise TimeoutError("too late")

    verbs: dict[str, Callable[[], object]] = {
        "publish": lambda: provider.publish(("news",), b"second"),
        "publish_large": lambda: provider.publish(("news",), bytes(10_000)),
        "publisher": lambda: publish(b"second"),
        "send": lambda: provider.send("inbox", b"second"),
    }
    with monkeypatch.context() as patched:
        patched.setattr("pymq.provider._shm.sending.write", write_and_raise)
        patched.setattr(Outlet, "_write", lambda outlet, small: write_and_raise(outlet.fifo, small))
        with pytest.raises(TimeoutError, match="too late"):
            verbs[verb]()
    assert len(provider.receive("inbox", GUARD)) == 4


@contextmanager
def deaf(bus: pymq.EventBus) -> Iterator[Any]:
    """A receiver that does not read: its pipe is full, and what is published goes to the log."""
    provider = bus.config.create()
    provider.open()
    provider.declare("deaf", temporary=True)
    provider.bind("deaf", "e/news", exact=True)
    try:
        yield provider
    finally:
        provider.close()


def fill(bus: pymq.EventBus) -> int:
    for _ in range(100):
        assert bus.publish("x" * 3000, "news") == 1
    return 100


def received(provider: Any) -> int:
    count = 0
    while batch := provider.receive("deaf", 0):
        count += len(batch)
    return count


@pytest.mark.parametrize(
    ("owner", "method", "event", "full"), [(Outlet, "_append", "small", True), (Outlet, "_find_room", LARGE, False)]
)
def test_in_the_middle_of_a_publish(owner: type, method: str, event: str, full: bool, bus: pymq.EventBus) -> None:
    with deaf(bus) as receiver:
        sent = fill(bus) if full else bus.publish(event, "news")
        outcome = Outcome(lambda: bus.publish(event, "news"))
        with signalled_inside(owner, method, outcome):
            assert bus.publish(event, "news") == 1
        accepted = 0 if isinstance(outcome.result, pymq.ProviderError) else outcome.result
        in_thread(lambda: bus.publish(event, "news"))
        assert received(receiver) == sent + accepted + 2


def test_a_large_message_that_was_interrupted_is_not_overwritten(bus: pymq.EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is out, and the call ends with the handler's exception: the next message must not take the same place."""
    write = Outlet._write

    def write_and_raise(outlet: Outlet, small: bytes) -> bool:
        write(outlet, small)
        raise KeyboardInterrupt

    with deaf(bus) as receiver:
        bus.publish("a" * 100_000, "news")
        with monkeypatch.context() as patched:
            patched.setattr(Outlet, "_write", write_and_raise)
            with pytest.raises(KeyboardInterrupt):
                bus.publish("b" * 100_000, "news")
        bus.publish("c" * 100_000, "news")
        found = [(beside(message) or message)[-50:-20] for _ in range(3) for message, _ in receiver.receive("deaf", 0)]
        assert found == [b"a" * 30, b"b" * 30, b"c" * 30]


def test_in_the_middle_of_learning_who_is_bound(bus: pymq.EventBus) -> None:
    with deaf(bus) as receiver:
        outcome = Outcome(lambda: bus.publish("nested", "news"))
        with signalled_inside(Registry, "_replay", outcome):
            assert bus.publish("event", "news") == 1
        assert isinstance(outcome.result, pymq.ProviderError)
        in_thread(lambda: bus.publish("event", "news"))
        assert received(receiver) == 2


@pytest.mark.parametrize(("method", "verb"), [("send", "put"), ("receive", "get"), ("receive", "take")])
def test_simple(method: str, verb: str) -> None:
    """Its one lock may be taken twice by a thread: the call in the handler comes first."""
    with pymq.EventBus(SimpleConfig("signals")) as bus:
        jobs = bus.queue("jobs")
        for number in range(5):
            jobs.put(f"item {number}")
        outcome = Outcome(lambda: use(bus, verb))
        with signalled_inside(SimpleProvider, method, outcome):
            use(bus, verb)
        assert not isinstance(outcome.result, Exception)
        assert jobs.qsize() == (7 if verb == "put" else 3)
        jobs.free()


def test_many_signals(bus: pymq.EventBus) -> None:
    """A burst of them at any moment: what was accepted arrives, and every refusal is an error."""
    jobs, sent, accepted, refused = bus.queue("jobs"), 0, [0], [0]

    def put(number: int, frame: FrameType | None) -> None:
        try:
            jobs.put("from the handler")
            accepted[0] += 1
        except pymq.ProviderError:
            refused[0] += 1

    before = signal.signal(signal.SIGUSR1, put)
    stop = threading.Event()
    sender = threading.Thread(target=send_signals, args=(threading.get_ident(), stop))
    sender.start()
    try:
        while sent < 10_000 or accepted[0] <= 10:
            jobs.put("from the thread")
            sent += 1
    finally:
        stop.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    print(accepted, refused)
    assert jobs.qsize() == sent + accepted[0]


def send_signals(thread: int, stop: threading.Event) -> None:
    while not stop.wait(0.0005):
        signal.pthread_kill(thread, signal.SIGUSR1)


@pytest.mark.parametrize("blocked", ["get", "wait", "call"])
def test_shutdown_in_a_handler(blocked: str) -> None:
    """What a program does on SIGTERM: the call that waits ends with an error, or well, and soon."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="pymq-test-") as home:
        bus = pymq.EventBus(ShmConfig("signals", f"{home}/pymq"))
        bus.start()
        bus.expose(lambda: threading.Event().wait(3), "slow")
        waits: dict[str, Callable[[], object]] = {
            "get": bus.queue("jobs").get,
            "wait": lambda: bus.wait(GUARD),
            "call": bus.stub("slow"),
        }
        before = signal.signal(signal.SIGUSR1, lambda number, frame: bus.shutdown(0.1))
        main = threading.get_ident()
        alarm = threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGUSR1))
        alarm.start()
        try:
            waits[blocked]()
        except (pymq.PymqError, pymq.Empty):
            pass
        finally:
            alarm.join()
            signal.signal(signal.SIGUSR1, before)
        bus.shutdown()
        eventually(lambda: not list(Path(home, "pymq").rglob("*")))


def test_no_signal_handler_is_installed(config):
    def handlers() -> list[Any]:
        return [signal.getsignal(number) for number in signal.valid_signals()]

    before = handlers()
    pymq.init(config)
    got = threading.Event()
    pymq.subscribe(lambda text: got.set(), "works")
    pymq.publish("it works", "works")
    assert got.wait(GUARD)
    assert handlers() == before
    assert signal.set_wakeup_fd(-1) == -1
    pymq.shutdown()
    assert handlers() == before


def test_publishing_from_a_signal_handler(place):
    assert run_program("signalled.py") == ["True", "True {1}"]
    assert place.leftovers() == []
