"""kill -9 of producers, group members and takers, through the bus: what was confirmed is handled, and twice only with attempt > 1.

The kill loop runs until at least PYMQ_GROUPS_KILLS (300) processes have died inside each of put, claim, ack and overflow, and for
at least PYMQ_GROUPS_KILL_SECONDS (0): about 20 s in all. For an hour by hand:

    PYMQ_GROUPS_KILL_SECONDS=3600 python -m pytest -s --timeout 4000 tests/crash/test_groups_kill.py -k kill_loop

Processes die between two bytecodes, chosen by a seeded random that is printed, or from outside at any time.
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

    def ended(self) -> dict[int, int]:
        """Who has ended since, and how."""
        ended: dict[int, int] = self._ask("ended", ())
        self.living -= set(ended)
        return ended

    def kill(self, *pids: int) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        while self.living & set(pids):
            self.ended()

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

    def first(self, kind: str) -> set[str]:
        """The first words of the facts."""
        return {fact[0] for fact in self.facts(kind)}

    def of_process(self, kind: str, pid: int) -> list[str]:
        """The last thing of a kind that a process wrote."""
        path = self._home / kind / str(pid)
        return path.read_text().splitlines()[-1].split() if path.exists() else []


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="pymq-test-", dir="/dev/shm"))
    (path / "gate").touch()
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

ROLES = {"produce": ["put", "overflow"], "member": ["claim", "ack", "retry", "recover"], "take": ["claim", "ack", "retry", "recover"]}
COUNTED = ("put", "claim", "ack", "overflow")
POPULATION = ["produce", "produce", "member", "member", "take", "take"]


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
        """The counted places are chosen so that they reach their number together."""
        places = ROLES[role]
        place = min(places, key=self.kills.__getitem__) if self.rng.random() < 0.5 else self.rng.choice(places)
        self._roles[self._begin(role, place)] = role

    def _replace_the_dead(self, until: float) -> None:
        while time.monotonic() < until:
            if self._roles and self.rng.random() < 0.005:
                os.kill(self.rng.choice(list(self._roles)), signal.SIGKILL)
            for pid, status in self.nursery.ended().items():
                assert os.WIFSIGNALED(status), self.oracle.facts("error")
                self.kills.update(self.oracle.of_process("died", pid)[:1] or ["outside"])
                self._begin_mortal(self._roles.pop(pid))
            time.sleep(0.001)

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
    handled = oracle.facts("handled")
    with pymq.EventBus(ShmConfig("kill", str(home / "pymq"))) as bus:
        jobs, group = bus.queue("jobs"), bus.group("workers")
        for dead in (jobs.dead, group.dead):
            handled += [[letter.value.split()[0], "dead"] for letter in dead]
            dead.purge()
        bus.subscribe(lambda name, message: handled.append([name.split()[0], str(message.attempt)]), "tasks", group="workers")
        while missing := confirmed(oracle) - oracle.first("handled"):
            try:
                with jobs.take(timeout=0.1) as job:
                    handled.append([job.value.split()[0], str(job.attempt)])
            except pymq.Empty:
                assert bus.stats()["backlog"] or not missing, f"lost: {missing}"
        eventually(lambda: not jobs.qsize() and not group.qsize() and not bus.stats()["in_flight"], GUARD)
        assert {counts.get("corrupt", 0) for counts in bus.provider.counters().values()} <= {0}
        group.delete()
        jobs.free()
    assert_nothing_left(home)


def confirmed(oracle: Oracle) -> set[str]:
    return oracle.first("confirmed") | oracle.first("accepted")


def check(oracle: Oracle) -> None:
    attempts = Counter(name for name, attempt in oracle.facts("handled") if attempt == "1")
    assert max(attempts.values()) == 1, "handled twice, and the second one was not told"
    assert confirmed(oracle) <= oracle.first("handled")
    assert oracle.facts("error") == []
