"""kill -9 of producers, group members and takers, through the bus: what was confirmed is handled, and twice only with attempt > 1.

The kill loop runs until at least PYMQ_GROUPS_KILLS (300) processes have died inside each of put, claim, ack and overflow, and for
at least PYMQ_GROUPS_KILL_SECONDS (0): 24 to 38 s in all on two processors that others use as well. For an hour by hand:

    PYMQ_GROUPS_KILL_SECONDS=3600 python -m pytest -s --timeout 4000 tests/crash/test_rows_05_06_killed_in_groups.py -k kill_loop

Processes die between two bytecodes (Python 3.12: two lines), chosen by a seeded random that is printed, or from outside at any time.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, eventually

import pymq
from pymq.provider.shm import ShmConfig

KILLS = int(os.environ.get("PYMQ_GROUPS_KILLS", "300"))
SECONDS = float(os.environ.get("PYMQ_GROUPS_KILL_SECONDS", "0"))
GUARD = 20.0
LEASE = 0.3


class Nursery:
    """Participants in processes of their own, at 5 ms each; see programs/workers.py."""

    def __init__(self) -> None:
        self.living: set[int] = set()
        self._connection, theirs = Pipe()
        command = [sys.executable, str(Path(__file__).parent / "programs" / "workers.py"), str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": str(ROOT)})
        theirs.close()

    def begin(self, role: str, *arguments: object) -> int:
        pid: int = self._ask(role, arguments)
        self.living.add(pid)
        return pid

    def ended(self, timeout: float) -> dict[int, int]:
        """Who has ended since, and how; waits for the first."""
        ended: dict[int, int] = self._ask("ended", (timeout,))
        self.living -= set(ended)
        return ended

    def kill(self, *pids: int) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        while self.living & set(pids):
            self.ended(GUARD)

    def close(self) -> None:
        self.kill(*self.living)
        self._connection.close()
        self._process.wait(GUARD)

    def _ask(self, role: str, arguments: tuple[object, ...]) -> Any:
        self._connection.send((role, arguments))
        return self._connection.recv()


class Oracle:
    """What all participants have written down, read as it grows."""

    def __init__(self, home: Path) -> None:
        self._home = home / "oracle"
        self._home.mkdir()
        self._read: dict[Path, int] = {}
        self._lines: dict[str, list[list[str]]] = {}

    def facts(self, kind: str) -> list[list[str]]:
        lines = self._lines.setdefault(kind, [])
        for path in self._home.glob(f"{kind}/*"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole = file.read().rpartition(b"\n")[0]
            if whole:
                self._read[path] = self._read.get(path, 0) + len(whole) + 1
                lines += [line.split() for line in whole.decode().splitlines()]
        return lines

    def seen(self, kind: str) -> int:
        """How many facts have been read so far."""
        return len(self._lines.get(kind, ()))

    def clear(self) -> None:
        """Nobody writes any more: keep the facts, remove the files."""
        for kind in self._home.iterdir():
            self.facts(kind.name)
            shutil.rmtree(kind)
        self._read.clear()

    def first(self, kind: str) -> set[str]:
        """The first words of the facts."""
        return {fact[0] for fact in self.facts(kind)}

    def of_process(self, kind: str, pid: int) -> list[str]:
        """The last thing of a kind that a process wrote."""
        path = self._home / kind / str(pid)
        lines = path.read_text().splitlines() if path.exists() else []
        return lines[-1].split() if lines else []


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="pymq-test-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def oracle(home: Path) -> Oracle:
    return Oracle(home)


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def bus(home: Path) -> Iterator[pymq.EventBus]:
    """A bus of this process's, which is the last one; nothing is left after it."""
    with pymq.EventBus(ShmConfig("kill", str(home / "pymq"))) as bus:
        yield bus
        bus.group("workers").delete()
    assert_nothing_left(home)


def assert_nothing_left(home: Path) -> None:
    assert [str(path) for path in (home / "pymq").rglob("*")] == []


# --- the kill loop ----------------------------------------------------------------------------------------------------

COUNTED_OF = {"produce": ["put", "overflow"], "member": ["claim", "ack"], "take": ["claim", "ack"]}
COUNTED = ("put", "overflow", "claim", "ack")
POPULATION = ["produce", "produce", "produce", "member", "member", "take"]


class KillLoop:
    """A population of participants, each with a place to die in; who died is replaced."""

    def __init__(self, home: Path, nursery: Nursery, oracle: Oracle, seed: int) -> None:
        self.home, self.nursery, self.oracle = home, nursery, oracle
        self.rng = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.epochs = 0
        self._roles: dict[int, str] = {}
        self._number = 0

    def run_epoch(self, seconds: float) -> None:
        """Kill and replace for so long, around a plain subscriber that is stopped now and then; then kill everybody."""
        listener = self._begin("listen")
        eventually(lambda: self.oracle.of_process("ready", listener), GUARD)
        accepted = len(self.oracle.facts("accepted"))
        for role in POPULATION:
            self._begin_mortal(role)
        for _ in range(self.rng.choice([0, 1, 2])):
            self._roles[self._begin("produce")] = "produce"  # one that lives long, so that the others have work
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            os.kill(listener, self.rng.choice([signal.SIGSTOP, signal.SIGSTOP, signal.SIGCONT]))
            self._replace_the_dead(until=time.monotonic() + 0.1)
        os.kill(listener, signal.SIGCONT)
        self.epochs += 1
        if self.rng.random() < 0.5:
            self._kill_all(but=listener)
            self._hear_all(listener, accepted)
        self._kill_all()

    def _begin(self, role: str, *more: object) -> int:
        self._number += 1
        return self.nursery.begin(role, str(self.home), self._number, *more)

    def _begin_mortal(self, role: str) -> None:
        """Mostly to die in the place that comes short; who is ahead of the other roles lives on, for now."""
        place: str | None = min(COUNTED_OF[role], key=self.kills.__getitem__)
        if role != "produce" and self.rng.random() < 0.15:
            place = self.rng.choice(["retry", "retry", "recover"])
        elif self.kills[str(place)] > min(self.kills[other] for other in COUNTED) + 20:
            place = None
        self._roles[self._begin(role, place)] = role

    def _replace_the_dead(self, until: float) -> None:
        while time.monotonic() < until:
            if self._roles and self.rng.random() < 0.05:
                os.kill(self.rng.choice(list(self._roles)), signal.SIGKILL)
            for pid, status in self.nursery.ended(0.01).items():
                assert os.WIFSIGNALED(status), self.oracle.facts("error")
                self.kills.update(self.oracle.of_process("died", pid)[:1] or ["outside"])
                self._begin_mortal(self._roles.pop(pid))

    def _kill_all(self, but: int = 0) -> None:
        """One after the other at random, the last participant among them."""
        pids = list(self.nursery.living - {but})
        self.rng.shuffle(pids)
        for pid in pids:
            time.sleep(self.rng.uniform(0, 0.005))
            os.kill(pid, signal.SIGKILL)
        self.nursery.kill(*pids)
        self.kills["outside"] += len(pids)
        self._roles.clear()
        if not self.nursery.living:
            self.oracle.clear()

    def _hear_all(self, listener: int, before: int) -> None:
        """What two receivers accepted, the group and the plain subscriber, the subscriber must have heard, once."""
        last = f"end-{self.epochs}"
        self._begin("say", last)
        eventually(lambda: last in self.oracle.first("heard"), GUARD)
        heard = Counter(fact[0] for fact in self.oracle.facts("heard"))
        expected = {name for name, count in self.oracle.facts("accepted")[before:] if count == "2"}
        assert expected <= set(heard)
        assert set(heard.values()) == {1}


def test_kill_loop(home: Path, nursery: Nursery, oracle: Oracle) -> None:
    seed = int(time.time())
    print("seed", seed)
    loop = KillLoop(home, nursery, oracle, seed)
    begun = time.monotonic()
    with pymq.EventBus(ShmConfig("kill", str(home / "pymq"))) as bus:
        bus.group("workers").bind("tasks")
    while time.monotonic() < begun + SECONDS or min(loop.kills[place] for place in COUNTED) < KILLS:
        loop.run_epoch(2.0)
    print(dict(loop.kills), "epochs", loop.epochs, f"{time.monotonic() - begun:.1f} s")
    handle_the_rest(home, oracle)
    check(oracle)


def handle_the_rest(home: Path, oracle: Oracle) -> None:
    """One last participant handles what is still there; nothing is left after it."""
    handled, finished = oracle.facts("handled"), oracle.facts("finished")

    def handle(name: str, attempt: int) -> None:
        handled.append([name.split(maxsplit=1)[0], str(attempt)])
        finished.append(handled[-1])

    with pymq.EventBus(ShmConfig("kill", str(home / "pymq"))) as bus:
        jobs, group = bus.queue("jobs"), bus.group("workers")
        finished += [[letter.value.split(maxsplit=1)[0]] for letter in [*jobs.dead, *group.dead]]
        jobs.dead.purge()
        group.dead.purge()
        bus.subscribe(lambda name, message: handle(name, message.attempt), "tasks", group="workers")
        deadline = time.monotonic() + GUARD
        while bus.stats()["backlog"] or bus.stats()["in_flight"]:
            assert time.monotonic() < deadline, f"never given back: {bus.stats()}"
            with suppress(pymq.Empty), jobs.take(timeout=0.1) as job:
                handle(job.value, job.attempt)
        for counts in bus.provider.counters().values():
            assert (counts.get("corrupt", 0), counts.get("bytes", 0)) == (0, 0)
        group.delete()
        jobs.free()
    assert_nothing_left(home)


def confirmed(oracle: Oracle) -> set[str]:
    return oracle.first("confirmed") | oracle.first("accepted")


def check(oracle: Oracle) -> None:
    attempts = Counter(name for name, attempt in oracle.facts("handled") if attempt == "1")
    assert max(attempts.values()) == 1, "handled twice, and the second one was not told"
    assert confirmed(oracle) <= oracle.first("finished"), "lost"
    assert oracle.facts("error") == []


def test_stop_and_continue_around_the_lease(home: Path, nursery: Nursery, oracle: Oracle) -> None:
    rng = random.Random(3)
    with pymq.EventBus(ShmConfig("kill", str(home / "pymq"))) as bus:
        bus.group("workers").bind("tasks")
    workers = [nursery.begin(role, str(home), number, None, LEASE) for number, role in enumerate(["member", "take"] * 2)]
    producer = nursery.begin("produce", str(home), 9)
    eventually(lambda: all(oracle.of_process("handled", worker) for worker in workers), GUARD)
    for _ in range(6):
        stopped = rng.sample(workers, 2)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(rng.uniform(0.5, 2.5) * LEASE)  # shorter and longer than the lease
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        wait_for_more(oracle, "handled", 1)
    nursery.kill(producer, *workers)
    handle_the_rest(home, oracle)
    check(oracle)


def wait_for_more(oracle: Oracle, kind: str, count: int) -> None:
    """Until there are so many more facts of a kind than were seen before."""
    expected = oracle.seen(kind) + count
    eventually(lambda: len(oracle.facts(kind)) >= expected, GUARD)


# --- one at a time ----------------------------------------------------------------------------------------------------


@pytest.fixture
def group(bus: pymq.EventBus) -> pymq.bus.Group:
    group = bus.group("workers")
    group.bind("work")
    return group


def begin_members(nursery: Nursery, oracle: Oracle, home: Path, count: int, role: str, *more: object) -> list[int]:
    """They take part when this returns."""
    members = [nursery.begin(role, str(home), number, *more) for number in range(count)]
    eventually(lambda: all(oracle.of_process("ready", member) for member in members), GUARD)
    return members


def test_members_share_fairly(home: Path, nursery: Nursery, oracle: Oracle, bus: pymq.EventBus, group: Any) -> None:
    events = 10_000
    members = begin_members(nursery, oracle, home, 4, "work", 0.001)
    for number in range(events):
        bus.publish(str(number), "work")
    eventually(lambda: len(oracle.facts("handled")) == events, 60)
    shares = Counter(int(pid) for pid, _ in oracle.facts("handled"))
    print("shares", sorted(shares.values()))
    assert {name for _, name in oracle.facts("handled")} == set(map(str, range(events)))
    assert all(abs(shares[member] - events / 4) <= 0.2 * events / 4 for member in members), shares
    nursery.kill(*members)


def test_poison_ends_in_the_dead_letters_and_comes_back(
    home: Path, nursery: Nursery, oracle: Oracle, bus: pymq.EventBus, group: Any
) -> None:
    victim, other = begin_members(nursery, oracle, home, 2, "fail", 2)
    for name in ("poison", "food"):
        bus.publish(name, "work")
    eventually(lambda: len(group.dead) == 1, GUARD)
    assert sorted(attempt for name, attempt in oracle.facts("handled") if name == "poison") == ["1", "2", "3"]
    (letter,) = group.dead
    assert (letter.value, letter.headers["dead-error"], letter.headers["dead-attempts"]) == ("poison", "ArithmeticError", 3)
    nursery.kill(victim)
    (home / "antidote").touch()
    nursery.begin("requeue", str(home), 0)
    eventually(lambda: oracle.first("digested") == {"food", "poison"}, GUARD)
    assert oracle.facts("handled")[-1] == ["poison", "1"]
    assert oracle.facts("requeued") == [["1"]]
    assert len(group.dead) == 0
    nursery.kill(other)


def test_no_member_sleeps_while_others_are_busy(home: Path, nursery: Nursery, oracle: Oracle, bus: pymq.EventBus, group: Any) -> None:
    """As many events as members: each must be begun before any has ended, however the publishes and the wake-ups fall."""
    members = begin_members(nursery, oracle, home, 3, "hold")
    for turn in range(40):
        with (home / f"gate-{turn}").open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            for member in members:
                bus.publish(f"{turn}-{member}", "work")
            wait_for_more(oracle, "begun", len(members))
            assert {int(pid) for _, _, pid in oracle.facts("begun")[-len(members) :]} == set(members)
        if turn % 2:  # else the next events come while some are still at work
            wait_for_more(oracle, "ended", 2 * len(members))
    eventually(lambda: bus.stats()["in_flight"] == {}, GUARD)
    nursery.kill(*members)


def test_a_killed_member_gives_its_event_back_at_once(
    home: Path, nursery: Nursery, oracle: Oracle, bus: pymq.EventBus, group: Any
) -> None:
    """The lease is an hour. Who takes over is killed as well, so that sleepers and newcomers both have to notice a death."""
    for turn in range(20):
        with (home / f"gate-{turn}").open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            victims = begin_members(nursery, oracle, home, 1 + turn % 2, "hold")
            bus.publish(str(turn), "work")
            for attempt in range(1, len(victims) + 1):
                kill_in_its_handler(nursery, oracle, attempt)
            survivor, *_ = begin_members(nursery, oracle, home, 1, "hold")
            wait_for_more(oracle, "begun", 1)
            assert oracle.facts("begun")[-1] == [str(turn), str(len(victims) + 1), str(survivor)]
        eventually(lambda: bus.stats()["in_flight"] == {}, GUARD)
        nursery.kill(survivor)


def kill_in_its_handler(nursery: Nursery, oracle: Oracle, attempt: int) -> None:
    wait_for_more(oracle, "begun", 1)
    _, found, pid = oracle.facts("begun")[-1]
    assert int(found) == attempt
    nursery.kill(int(pid))
