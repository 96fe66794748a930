"""What is raised in a bus's own threads, by the program's log handlers or from outside, ends none of them; and races of its verbs."""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from harness import GUARD, eventually, in_thread

import pymq

pytestmark = pytest.mark.parametrize("place", ["simple", "shm"], indirect=True)


class Raising(logging.Handler):
    """A log handler that raises, as one does whose file is on a full disk and whose author forgot `handleError`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.calls = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.calls += 1
        raise OSError("the disk is full")


@pytest.fixture
def raising() -> Iterator[Raising]:
    handler, log = Raising(), logging.getLogger("pymq")
    log.addHandler(handler)
    log.propagate, before = False, log.propagate
    yield handler
    log.removeHandler(handler)
    log.propagate = before


def handled_by(bus: pymq.EventBus, **options: Any) -> SimpleQueue[int]:
    """Subscribe a handler that fails with 0; what else it got."""
    got: SimpleQueue[int] = SimpleQueue()

    def handler(number: int) -> None:
        if not number:
            raise ArithmeticError
        got.put(number)

    async def handler_async(number: int) -> None:
        handler(number)

    is_async = options.pop("is_async", False)
    bus.subscribe(handler_async if is_async else handler, "numbers", **options)
    return got


KINDS: list[dict[str, Any]] = [{}, {"workers": 2}, {"is_async": True}, {"group": "members", "retries": 0}]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_log_handler_that_raises(options: dict[str, Any], bus: pymq.EventBus, raising: Raising) -> None:
    got = handled_by(bus, **options)
    for number in (1, 0, 2, 0, 0, 3):
        bus.publish(number, "numbers")
    assert {got.get(timeout=GUARD) for _ in range(3)} == {1, 2, 3}
    eventually(lambda: raising.calls >= 3)  # with two workers, the last of them may still be at it
    bus.group("members").delete()


def test_a_log_handler_that_raises_in_a_call(bus: pymq.EventBus, raising: Raising) -> None:
    """A slow handler was replaced as the reader, and fails: its subscription goes on, in order."""
    got: SimpleQueue[int] = SimpleQueue()
    begun, go_on = threading.Event(), threading.Event()

    def slow(number: int) -> None:
        if not number:
            begun.set()
            go_on.wait(GUARD)
            raise ArithmeticError
        got.put(number)

    bus.subscribe(slow, "numbers")
    bus.expose(lambda: "here", "where")
    bus.publish(0, "numbers")
    assert begun.wait(GUARD)
    assert bus.stub("where", timeout=GUARD)() == "here"  # read by the standby
    for number in (1, 2, 3):
        bus.publish(number, "numbers")
    go_on.set()
    assert [got.get(timeout=GUARD) for _ in range(3)] == [1, 2, 3]


class Stop(Exception):
    pass


@pytest.mark.parametrize("options", KINDS[:2] + KINDS[3:], ids=str)
def test_an_exception_from_another_thread(options: dict[str, Any], bus: pymq.EventBus, caplog: pytest.LogCaptureFixture) -> None:
    """As debuggers and watchdogs raise it: the thread that it hits goes on."""
    before = set(threading.enumerate())  # of a test before this one, and about to end
    got = handled_by(bus, **options)
    bus.publish(1, "numbers")
    assert got.get(timeout=GUARD) == 1
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("pymq") and thread not in before]
    assert ours
    for thread in ours:
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stop)) == 1
    for number in range(2, 8):
        assert bus.publish(number, "numbers") == 1
    if "group" in options:  # else what was in the hands of the thread that was hit may be lost
        missing = set(range(2, 8))
        while missing:
            missing.discard(got.get(timeout=GUARD))
    else:
        eventually(lambda: bus.publish(99, "numbers") and not got.empty() and got.get() == 99)
    assert [thread for thread in ours if not thread.is_alive()] == []
    bus.group("members").delete()


class Shortage:
    """While it lasts, `left` more threads of pymq can be started, as where a container's limit is reached."""

    def __init__(self) -> None:
        self.left = 1 << 30
        self.refused = 0

    def __call__(self, thread: threading.Thread) -> None:
        if thread.name.startswith("pymq"):
            if not self.left:
                self.refused += 1
                raise RuntimeError("can't start new thread")
            self.left -= 1
        STARTS(thread)


STARTS = threading.Thread.start


@pytest.fixture
def shortage(monkeypatch: pytest.MonkeyPatch) -> Shortage:
    made = Shortage()
    monkeypatch.setattr(threading.Thread, "start", lambda thread: made(thread))  # noqa: PLW0108 - what binds is a function
    monkeypatch.setattr("pymq.dispatch.SLOW", GUARD)  # no reader is replaced, however slow the machine is
    return made


def is_read(bus: pymq.EventBus) -> bool:
    """Whether the bus has the two threads that it always has."""
    return bus._dispatcher is not None and len(bus._dispatcher._threads) == 2


@pytest.mark.parametrize("how", ["async def", "delay", "take", "async remote", "subscribe"])
def test_no_thread_is_to_be_had_for_a_while(how: str, bus: pymq.EventBus, shortage: Shortage) -> None:
    """What needed one fails or waits then; afterwards all goes on, and the bus can be shut down."""
    got: SimpleQueue[int] = SimpleQueue()
    jobs = bus.queue("jobs", int)

    async def remote() -> int:
        return 1

    async def handler(number: int) -> None:
        got.put(number)

    def use(later: float) -> None:
        if how == "async remote":
            got.put(bus.stub("remote", timeout=GUARD)())
        elif how == "take":
            jobs.put(1)
            with jobs.take(timeout=GUARD) as job:
                got.put(job.value)
        else:
            bus.publish(1, "numbers", delay=later if how == "delay" else 0)

    if how == "async remote":
        bus.expose(remote, "remote")
    elif how not in ("subscribe", "take"):
        bus.subscribe(handler if how == "async def" else got.put, "numbers")
    eventually(lambda: how in ("subscribe", "take") or is_read(bus))
    shortage.left = 0
    with suppress(RuntimeError, pymq.RemoteInvocationError):
        if how == "subscribe":
            bus.subscribe(got.put, "numbers")
        use(later=2 * GUARD)
    eventually(lambda: shortage.refused)
    shortage.left = 1 << 30
    if how == "subscribe":
        bus.subscribe(got.put, "numbers")
    use(later=0.01)
    assert got.get(timeout=GUARD) == 1
    jobs.free()
    bus.shutdown()
    assert bus.wait(0)


def test_no_thread_is_to_be_had_for_a_nested_call(bus: pymq.EventBus, shortage: Shortage) -> None:
    """The call fails; who made it is still the one that reads."""
    got: SimpleQueue[object] = SimpleQueue()

    def handler(number: int) -> None:
        try:
            got.put(bus.stub("double", timeout=GUARD)(number))
        except RuntimeError as error:
            got.put(str(error))

    bus.expose(lambda number: 2 * number, "double")
    bus.subscribe(handler, "numbers")
    assert bus.stub("double", timeout=GUARD)(1) == 2
    eventually(lambda: is_read(bus))
    shortage.left = 0
    bus.publish(1, "numbers")
    assert got.get(timeout=GUARD) == "can't start new thread"
    shortage.left = 1 << 30
    bus.publish(2, "numbers")
    assert got.get(timeout=GUARD) == 4
    assert bus.stub("double", timeout=GUARD)(3) == 6


@pytest.mark.parametrize("group", [None, "members"])
def test_too_few_threads_for_all_workers(group: str | None, bus: pymq.EventBus, shortage: Shortage) -> None:
    """It is not subscribed: nothing of it takes events."""
    bus.subscribe(lambda number: None, "others")
    eventually(lambda: is_read(bus))
    before = set(threading.enumerate())
    shortage.left = 2
    with pytest.raises(RuntimeError):
        bus.subscribe(print, "numbers", group=group, workers=4)
    assert shortage.refused == 1
    eventually(lambda: not set(threading.enumerate()) - before)
    with pytest.raises(ValueError, match="is not subscribed"):
        bus.unsubscribe(print)
    bus.group("members").delete()


def race(*verbs: Callable[[], object], rounds: int) -> None:
    """Each in a thread of its own, over and over."""

    def repeat(verb: Callable[[], object]) -> None:
        for _ in range(rounds):
            with suppress(pymq.PymqError, ValueError, TimeoutError):
                verb()

    threads = [threading.Thread(target=repeat, args=[verb]) for verb in verbs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "deadlock"


def test_shutdowns_and_starts_at_once(config: Any) -> None:
    bus = pymq.EventBus(config)
    race(bus.shutdown, bus.shutdown, bus.start, lambda: bus.publish(1, "numbers"), rounds=40)
    bus.start()
    got = handled_by(bus)
    assert bus.publish(7, "numbers") == 1
    assert got.get(timeout=GUARD) == 7
    assert not bus.wait(0)
    bus.shutdown()
    assert bus.wait(0)


@pytest.mark.parametrize("part", ["provider", "_schedule"])
def test_a_start_in_the_middle_of_a_shutdown(part: str, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One shutdown is late: by then another has ended the bus, and it was started again."""
    bus = pymq.EventBus(config)
    bus.start()
    closed = getattr(bus, part)
    close, got = closed.close, []

    def late() -> None:
        monkeypatch.undo()
        bus.shutdown()
        bus.start()
        got.append(handled_by(bus))
        close()

    monkeypatch.setattr(closed, "close", late)
    bus.shutdown()
    assert bus.publish(7, "numbers") == 1
    assert got[0].get(timeout=GUARD) == 7
    assert not bus.wait(0)
    bus.shutdown()


VERBS: dict[str, Callable[[pymq.EventBus, Callable[[int], object]], object]] = {
    "subscribe": lambda bus, other: bus.subscribe(other, "others"),
    "workers": lambda bus, other: bus.subscribe(other, "others", workers=2),
    "group": lambda bus, other: bus.subscribe(other, "others", group="members"),
    "expose": lambda bus, other: bus.expose(other, "others"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_handler_begins_while_a_shutdown_waits_for_it_ends_with_the_bus(
    verb: str, config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Its threads would receive from a closed provider, and fail again and again."""
    bus, begun, before = pymq.EventBus(config), threading.Event(), set(threading.enumerate())
    bus.start()

    def handler(number: int) -> None:
        begun.set()
        eventually(lambda: bus._members[0]._stopping)  # the shutdown knows of what there was
        VERBS[verb](bus, lambda number: None)

    bus.subscribe(handler, "numbers", group="members")
    bus.publish(1, "numbers")
    assert begun.wait(GUARD)
    bus.shutdown(GUARD)
    eventually(lambda: not set(threading.enumerate()) - before)
    assert [record.getMessage() for record in caplog.records] == []
    with pymq.EventBus(config) as other:
        assert not other.group("members").qsize()
        other.group("members").delete()


def test_a_subscribe_in_the_middle_of_a_look_up(bus: pymq.EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader keeps for whom such events are: who subscribes meanwhile gets them, too."""
    got: SimpleQueue[int] = SimpleQueue()
    keep, first = bus.subscriptions.keep, handled_by(bus)
    other = threading.Thread(target=bus.subscribe, args=(got.put, "numbers"))

    def slow(packed: bytes, found: Any) -> Any:
        if other.ident is None:
            other.start()
            other.join(0.2)  # it waits for us, or would be left out
        return keep(packed, found)

    monkeypatch.setattr(bus.subscriptions, "keep", slow)
    bus.publish(1, "numbers")
    assert first.get(timeout=GUARD) == 1
    other.join(GUARD)
    bus.publish(2, "numbers")
    assert got.get(timeout=GUARD) == 2


def test_first_publishes_to_a_channel_at_once(bus: pymq.EventBus) -> None:
    """No message bears the id of another, and all are counted."""
    ids: SimpleQueue[str] = SimpleQueue()
    bus.subscribe(lambda number, message: ids.put(message.id), "numbers")
    bus.subscribe(lambda number, message: ids.put(message.id), "others")
    threads = [threading.Thread(target=bus.publish, args=(1, "numbers")) for _ in range(4)]
    with bus._lock:
        for thread in threads:
            thread.start()
            thread.join(0.05)  # it knows of no route, and waits to make one
    for thread in threads:
        thread.join(GUARD)
    for number in range(4):
        bus.publish(number, "numbers")
        bus.publish(number, "others")
    assert len({ids.get(timeout=GUARD) for _ in range(12)}) == 12
    assert bus.stats()["published"] == {"numbers": 8, "others": 4}


def test_an_expose_in_the_middle_of_an_unexpose(bus: pymq.EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread serves the name again while it is being unbound: it is bound afterwards."""
    bus.expose(lambda: "old", "where")
    unbind = bus.provider.unbind
    other = threading.Thread(target=bus.expose, args=(lambda: "new", "where"))

    def slow(queue: str, pattern: str, *, exact: bool) -> None:
        other.start()
        other.join(0.2)  # it waits for us, or would be unbound
        unbind(queue, pattern, exact=exact)

    with monkeypatch.context() as patched:
        patched.setattr(bus.provider, "unbind", slow)
        bus.unexpose("where")
        other.join(GUARD)
    assert bus.stub("where", timeout=GUARD)() == "new"


def test_expose_and_unexpose_at_once(bus: pymq.EventBus) -> None:
    """Whatever came last is in force: a remote that is served is also found."""

    def remote() -> str:
        return "here"

    race(
        lambda: bus.expose(remote, "where"),
        lambda: bus.unexpose("where"),
        lambda: bus.expose(remote, "where"),
        bus.stub("where", timeout=5),
        rounds=200,
    )
    bus.expose(remote, "where")
    assert bus.stub("where", timeout=GUARD)() == "here"
    bus.unexpose("where")
    with pytest.raises(pymq.NoSuchRemoteError):
        bus.stub("where", timeout=GUARD)()


class Service:
    """A remote that is an object; its comparison stands for where a signal, or a collection of garbage, comes at a bad moment."""

    then: Callable[[], object] | None = None

    def __call__(self) -> str:
        return "here"

    def __eq__(self, other: object) -> bool:
        then, self.then = self.then, None
        if then is not None:
            then()
        return self is other

    __hash__ = object.__hash__


def test_remotes_in_the_middle_of_looking_at_them(bus: pymq.EventBus) -> None:
    """By the same thread, as signal handlers and `__del__` do."""

    def within() -> None:
        bus.expose(Service(), "second")
        assert bus.stub("second", timeout=GUARD)() == "here"
        bus.unexpose("second")

    service = Service()
    bus.expose(service, "first")
    service.then = within
    assert in_thread(bus.stub, service, timeout=GUARD).result(GUARD)() == "here"
    bus.unexpose("first")


def test_subscribe_and_unsubscribe_at_once(bus: pymq.EventBus) -> None:
    got: SimpleQueue[int] = SimpleQueue()
    race(
        lambda: bus.subscribe(got.put, "numbers"),
        lambda: bus.unsubscribe(got.put, "numbers"),
        lambda: bus.publish(1, "numbers"),
        rounds=200,
    )
    bus.subscribe(got.put, "numbers")
    assert bus.publish(2, "numbers") == 1
    while got.get(timeout=GUARD) != 2:
        pass


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty", "place")
@pytest.mark.parametrize("outcome", ["retried", "dead"])
def test_workers_that_count_at_once(outcome: str, bus: pymq.EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    bus.subscribe(lambda number: None, "numbers", group="members")
    (member,) = bus._members
    monkeypatch.setattr(logging.getLogger("pymq"), "disabled", True)
    failed = SimpleNamespace(
        frame=SimpleNamespace(prefix=SimpleNamespace(channel="numbers")), failures=1, pause=1.0, fail=lambda error: outcome
    )
    race(*4 * [lambda: member._fail(failed, ArithmeticError())], rounds=10_000)
    assert member.counts() == {outcome: 40_000, "failed": 40_000}
    bus.group("members").delete()


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_shutdown_in_a_groups_handler(kind: str, config: Any) -> None:
    """The bus closes when the handler has returned, and its event is acked; what it had not begun waits for others."""
    bus, got = pymq.EventBus(config), SimpleQueue[tuple[int, int]]()
    bus.start()

    def handler(number: int, message: pymq.Message) -> None:
        got.put((number, message.attempt))
        if number == 1:
            bus.shutdown(GUARD)
            assert not bus.wait(0.05), "it closes later"

    async def handler_async(number: int, message: pymq.Message) -> None:
        handler(number, message)

    bus.subscribe(handler if kind == "def" else handler_async, "numbers", group="members")
    for number in (1, 2):
        bus.publish(number, "numbers")
    assert bus.wait(GUARD)
    with pymq.EventBus(config) as other:
        assert not other.stats()["in_flight"]
        other.subscribe(handler, "numbers", group="members")
        assert [got.get(timeout=GUARD) for _ in range(2)] == [(1, 1), (2, 1)]
        eventually(lambda: not other.stats()["in_flight"])
        assert got.empty()
        other.group("members").delete()


def test_shutdown_in_a_groups_handler_that_hangs_then(config: Any) -> None:
    """Its event was not acked in time: it comes again, and says so."""
    bus, attempts, go_on = pymq.EventBus(config), SimpleQueue[int](), threading.Event()
    bus.start()

    def handler(number: int, message: pymq.Message) -> None:
        attempts.put(message.attempt)
        if message.attempt == 1:
            bus.shutdown(0.1)
            go_on.wait(GUARD)

    bus.subscribe(handler, "numbers", group="members")
    bus.publish(1, "numbers")
    assert bus.wait(GUARD)
    with pymq.EventBus(config) as other:
        other.subscribe(handler, "numbers", group="members")
        assert [attempts.get(timeout=GUARD) for _ in range(2)] == [1, 2]
        eventually(lambda: not other.stats()["in_flight"])
        other.group("members").delete()
    go_on.set()
