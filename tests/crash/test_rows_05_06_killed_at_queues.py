"""kill -9 at every kind of moment: what was confirmed is received or still there, and twice only with attempt > 1."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pymq.exceptions import LeaseLost
from pymq.provider._shm import claims as _claims
from pymq.provider._shm import guard as _guard
from pymq.provider._shm import segments as _segments
from pymq.provider._shm import state as _state
from pymq.provider._shm import store as _store
from pymq.provider._shm.files import Bells, Directory, Lock
from pymq.provider._shm.queue import SharedQueue

SECONDS = float(os.environ.get("PYMQ_KILL_SECONDS", "5"))


CHILDREN: set[int] = set()


class Peer:
    """A participant, as the provider makes one."""

    def __init__(self, home: str) -> None:
        root = Directory(home)
        bells = Directory("bells", root)
        self.bells = Bells(bells, Lock(bells.open("lock", os.O_RDWR | os.O_CREAT)))
        self.directory = Directory("jobs", root)
        self.queue = SharedQueue("jobs", self.directory, self.bells, self.bells.borrow().number, 32 << 20, True)

    def take(self, timeout: float, lease: float | None = 0.5, limit: int = 1) -> list[tuple[bytes, _claims.LeaseReceipt]]:
        return self.queue.receive(timeout, limit=limit, lease=lease, stopped=lambda: False)  # type: ignore[return-value]

    def close(self) -> None:
        self.queue.close()
        self.bells.close()


@pytest.fixture
def home() -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="pymq-test-", dir="/dev/shm")
    os.mkdir(f"{path}/oracle")
    yield path
    for child in CHILDREN:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    CHILDREN.clear()
    shutil.rmtree(path)


class Diary:
    """Lines that a process has written are facts, whatever happens to it next."""

    def __init__(self, home: str, kind: str) -> None:
        self.fd = os.open(f"{home}/oracle/{kind}.{os.getpid()}.{time.monotonic_ns()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, text: str) -> None:
        os.write(self.fd, text.encode() + b"\n")


def read_diaries(home: str, kind: str) -> list[str]:
    lines = []
    for path in Path(home, "oracle").glob(f"{kind}.*"):
        lines += [line for line in path.read_text().split("\n")[:-1] if line]
    return lines


def _make_segments_small(small_segments: int) -> None:
    if small_segments:
        _segments.SEGMENT_BYTES, _segments._PAGE = 3000, 160  # and mapped soon
        _guard._TURNS = 2


def put_for_ever(home: str, seed: int, small_segments: int) -> None:
    """Confirms each put in its diary."""
    _make_segments_small(small_segments)
    rng, peer, diary = random.Random(seed), Peer(home), Diary(home, "confirmed")
    for number in range(1 << 40):
        name = f"{seed}-{number}"
        options = rng.choice([{}, {}, {}, {"priority": 3}, {"delay": 0.01}])
        peer.queue.send(name.encode() + b" " + b"x" * rng.choice([0, 10, 100, 5000]), maxsize=50, **options)  # type: ignore[arg-type]
        diary.note(name)


def take_for_ever(home: str, seed: int, small_segments: int) -> None:
    """Notes each delivery before it settles it."""
    _make_segments_small(small_segments)
    rng, peer, received = random.Random(seed), Peer(home), Diary(home, "received")
    while True:
        for message, receipt in peer.take(1.0, limit=rng.choice([1, 1, 3])):
            name, rest = message.split(b" ", 1)
            assert set(rest) <= set(b"x")
            received.note(f"{name.decode()} {receipt.attempt}")
            try:
                rng.choice([peer.queue.ack, peer.queue.ack, peer.queue.nack])(receipt)
            except LeaseLost:
                pass


def begin(role: Callable[..., None], *arguments: object) -> int:
    """Forked, since a fresh interpreter takes longer to start than these processes live."""
    child = os.fork()
    if child:
        CHILDREN.add(child)
        return child
    try:
        role(*arguments)
    finally:
        os._exit(1)


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(join(child)), "it ended by itself"


def join(child: int) -> int:
    CHILDREN.discard(child)
    return os.waitpid(child, 0)[1]


def has_worked(home: str, child: int) -> bool:
    return any(path.stat().st_size for path in Path(home, "oracle").glob(f"*.{child}.*"))


def drain(home: str) -> tuple[list[str], SharedQueue, Peer]:
    """What is still there; every owner is dead, so it comes without waiting, but for the delayed."""
    peer = Peer(home)
    remaining = []
    while peer.queue.size() or peer.queue.counters()["leased"]:
        for message, receipt in peer.take(1.0, lease=100, limit=10):
            remaining.append(f"{message.split(b' ')[0].decode()} {receipt.attempt}")
            peer.queue.ack(receipt)
    return remaining, peer.queue, peer


def check(home: str) -> None:
    remaining, found, peer = drain(home)
    confirmed, received = read_diaries(home, "confirmed"), read_diaries(home, "received")
    delivered = [line.split() for line in received + remaining]
    assert set(confirmed) <= {name for name, _ in delivered}
    first = Counter(name for name, attempt in delivered if attempt == "1")
    assert max(first.values(), default=1) == 1
    assert len({tuple(one) for one in delivered}) == len(delivered)
    counters = found.counters()
    assert (counters["corrupt"], counters["bytes"]) == (0, 0)
    check_segments(found)
    peer.close()


def check_segments(found: SharedQueue) -> None:
    """Only those in use are there, and those made by a sender that died before it wrote: the next one uses it."""
    assert found.is_idle_and_empty()
    for segment in found._store.log.segments():
        assert segment - (found._store.state.head(segment >> _segments.LEVEL_SHIFT) >> _segments.SHIFT) in {0, 1}


@pytest.mark.parametrize("small_segments", [0, 1])
def test_kill_at_random(home: str, small_segments: int) -> None:
    """Two producers and two consumers, one of them killed at a time and replaced; now and then all of them."""
    seed = int(time.time())
    print("seed", seed)
    rng = random.Random(seed)
    roles = [put_for_ever, put_for_ever, take_for_ever, take_for_ever]
    children = [begin(role, home, number, small_segments) for number, role in enumerate(roles)]
    kills = 0
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for place in rng.choice([[0], [1], [2], [3], [0, 1, 2, 3]]):
            while not has_worked(home, children[place]):
                assert time.monotonic() < deadline + 20, "stuck"
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.01))
            kill(children[place])
            kills += 1
            children[place] = begin(roles[place], home, 4 + kills, small_segments)
    for child in children:
        kill(child)
    print("kills", kills, "received", len(read_diaries(home, "received")))
    assert kills > SECONDS
    check(home)


# Every store, write, flip and unlink of one operation, each in turn the last thing that a process does.


class Failing:
    """The state's words, a file's writes and the packed copies, counted: the n-th is the process's last."""

    def __init__(self, limit: int, words: object) -> None:
        self.limit = limit
        self.words = words

    def step(self) -> None:
        self.limit -= 1
        if self.limit == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def __getitem__(self, place: object) -> object:
        return self.words[place]  # type: ignore[index]

    def __setitem__(self, place: object, value: object) -> None:
        self.step()
        self.words[place] = value  # type: ignore[index]
        self.step()

    def around(self, call: object) -> object:
        def wrapped(*args: object) -> object:
            self.step()
            result = call(*args)  # type: ignore[operator]
            self.step()
            return result

        return wrapped


class Mapped:
    """A mapped segment, each store in which counts as a step."""

    def __init__(self, failing: Failing, view: memoryview) -> None:
        self._store = failing.around(view.__setitem__)

    def __setitem__(self, place: slice, value: bytes) -> None:
        self._store(place, value)  # type: ignore[operator]


def own_locks(peer: Peer) -> None:
    for lock in (peer.queue._sending, peer.queue._lock):
        for _ in range(_guard._TURNS):
            lock.run(peer.queue._words, int)


def die_in_step(home: str, operation: int, step: int, alone: bool = False) -> None:
    """Do one operation with the n-th step as the last; exit 0 when it needs fewer. `alone`: the locks are its own."""
    _segments.SEGMENT_BYTES, _segments._PAGE = (1 << 18, 48) if operation == 8 else (300, 4096)
    peer, confirmed, received = Peer(home), Diary(home, "confirmed"), Diary(home, "received")
    receipts = [receipt for _, receipt in peer.take(0, 100, limit=2)] if 4 <= operation < 8 else []
    if operation == 7:
        peer.take(0, 100)  # what is behind it is known now
    if alone:
        own_locks(peer)
    failing = Failing(step, peer.queue._words)
    store = peer.queue._store
    for holder in (peer.queue, store, store.state, store.claims):
        holder._words = holder.words = failing  # type: ignore[union-attr,attr-defined]
    _segments.map_open_file = failing.around(_segments.map_open_file)  # type: ignore[assignment]
    _segments.pwrite = failing.around(_segments.pwrite)  # type: ignore[assignment]
    _state.pack_end = _store.pack_end = failing.around(_state.pack_end)  # type: ignore[assignment,attr-defined]
    Directory.unlink = failing.around(Directory.unlink)  # type: ignore[method-assign,assignment]
    if operation == 0:
        peer.queue.send(b"new x")
        confirmed.note("new")
    elif operation == 1:
        peer.queue.send(b"new " + b"x" * 200, priority=2)
        confirmed.note("new")
    elif operation in (2, 3):
        for message, receipt in peer.take(0, 100, limit=1 + operation * 2):
            received.note(f"{message.split(b' ')[0].decode()} {receipt.attempt}")
    elif operation == 4:
        peer.queue.nack(receipts[0])
    elif operation == 5:
        peer.queue.ack(receipts[0])
    elif operation == 6:
        store.release([peer.queue._member])
    elif operation == 7:
        assert [message[:2] for message, _ in peer.queue.ack_and_receive(receipts[0], 100)] == [b"m3"]
    elif operation == 8:  # the first one maps the segment for the second
        peer.queue.send(b"new x")
        confirmed.note("new")
        store.tail_log._map = Mapped(failing, store.tail_log._map)  # type: ignore[assignment]
        peer.queue.send(b"newer x")
        confirmed.note("newer")
    os._exit(0)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("operation", range(9))
def test_kill_at_every_step(home: str, operation: int, alone: bool) -> None:
    for step in range(1, 400):
        shutil.rmtree(f"{home}/oracle")
        os.mkdir(f"{home}/oracle")
        peer = Peer(home)
        names = [f"m{number}" for number in range(6)]
        for name in names:
            peer.queue.send(name.encode() + b" " + b"x" * 60)
        for _, receipt in peer.take(0, 100, limit=2):
            peer.queue.nack(receipt)
        peer.close()
        status = join(begin(die_in_step, home, operation, step, alone))
        remaining, found, peer = drain(home)
        delivered = [line.split()[0] for line in remaining]
        expected = set(names) | set(read_diaries(home, "confirmed"))
        acked = operation in (5, 7) and len(expected - set(delivered)) == 1
        assert acked or operation != 7 or "m3 1" in remaining, (step, remaining)
        assert acked or expected <= set(delivered), (step, remaining)
        assert len(set(delivered)) == len(delivered), (step, remaining)
        assert found.counters()["bytes"] == 0, step
        assert found.counters()["corrupt"] == 0, step
        check_segments(found)
        peer.close()
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert step > 3
            return
    pytest.fail("an operation has more steps than expected")


def take_one(home: str) -> None:
    Peer(home).take(1000.0, lease=None)
    os._exit(0)


@pytest.mark.parametrize("alone", [False, True])
def test_a_sender_that_dies_leaves_nobody_asleep_before_its_message(home: str, alone: bool) -> None:
    peer = Peer(home)
    for step in range(1, 100):
        receiver = begin(take_one, home)
        wait_for(lambda: peer.queue._words[_state.RECEIVERS] == 1)
        status = join(begin(die_in_step, home, 0, step, alone))
        wait_for(lambda: peer.queue.size() == 0)
        os.kill(receiver, signal.SIGKILL)
        join(receiver)
        while peer.queue._words[_state.RECEIVERS]:
            peer.queue._store.ring(_state.RECEIVERS)
        if os.WIFEXITED(status):
            assert step > 3
            return
    pytest.fail("a put has more steps than expected")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_stop_and_continue_around_the_lease(home: str) -> None:
    rng = random.Random(3)
    consumers = [begin(take_for_ever, home, number, 0) for number in range(3)]
    producer = begin(put_for_ever, home, 9, 0)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        stopped = rng.choice(consumers)
        os.kill(stopped, signal.SIGSTOP)
        time.sleep(rng.uniform(0.3, 0.8))
        os.kill(stopped, signal.SIGCONT)
    for child in (producer, *consumers):
        kill(child)
    check(home)
