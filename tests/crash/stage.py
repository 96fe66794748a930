"""Where actors perform: a nursery that forks them, a tracer that lets one fail, and the witness who stays."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT

import pymq
from pymq.message import beside
from pymq.provider.shm import ShmConfig

PROGRAMS = Path(__file__).parent / "programs"
GUARD = 20.0


class Nursery:
    """Processes at 5 ms each; see programs/actors.py."""

    def __init__(self, *prefix: str) -> None:
        self._connection, theirs = Pipe()
        self.gate, self._gate_in = os.pipe()
        command = [*prefix, sys.executable, str(PROGRAMS / "actors.py"), str(theirs.fileno())]
        fds = [theirs.fileno(), self.gate]
        self._process = subprocess.Popen(command, pass_fds=fds, env={**os.environ, "PYTHONPATH": str(ROOT)})
        theirs.close()

    def begin(self, role: str, *arguments: object) -> int:
        return int(self._ask(role, arguments))

    def board(self, pid: int) -> list[list[str]]:
        """What it has noted so far, in words."""
        return [line.split() for line in self._ask("board", pid)]

    def end(self, pid: int) -> int:
        """Its status, when it has ended."""
        return int(self._ask("end", pid))

    def kill(self, pid: int, number: int) -> None:
        self._ask("kill", (pid, number))

    def forget(self, pid: int) -> None:
        """Its board."""
        self._ask("forget", pid)

    def run(self, role: str, *arguments: object) -> list[list[str]]:
        """What it noted; it must have ended well."""
        pid = self.begin(role, *arguments)
        status = self.end(pid)
        assert status == 0, "\n".join(self._ask("board", pid))
        return self.board(pid)

    def wait_for(self, pid: int, *words: str) -> None:
        deadline = time.monotonic() + GUARD
        while list(words) not in self.board(pid):
            assert time.monotonic() < deadline, self.board(pid)
            time.sleep(0.001)

    def shut(self) -> None:
        """Whoever comes to the gate from now on waits there; one who was killed may have left it open."""
        poll = select.poll()
        poll.register(self.gate, select.POLLIN)
        if poll.poll(0):
            os.read(self.gate, 1)

    def release(self) -> None:
        """Whoever waits at the gate goes on."""
        os.write(self._gate_in, b"!")

    def close(self) -> None:
        self._connection.close()
        self._process.wait(GUARD)
        os.close(self.gate)
        os.close(self._gate_in)

    def _ask(self, role: str, arguments: object) -> Any:
        self._connection.send((role, arguments))
        assert self._connection.poll(2 * GUARD), "the nursery does not answer"
        return self._connection.recv()


@contextmanager
def traced(pid: int, log: Path | None, *options: str) -> Iterator[None]:
    """A process and all its threads under strace from here on; what is in the block releases it."""
    command = ["strace", "-f", "-qq", "-o", str(log or os.devnull), *options, "-p", str(pid)]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + GUARD
        while not is_traced(pid):
            if tracer.poll() is not None:
                if tracer.returncode:
                    pytest.skip("needs the right to ptrace")
                break  # killed at the gate
            assert time.monotonic() < deadline
            time.sleep(0.001)
        yield
    finally:
        tracer.wait(2 * GUARD)
        assert tracer.stderr is not None
        tracer.stderr.close()


def is_traced(pid: int) -> bool:
    return all(re.search(r"^TracerPid:\t[1-9]", path.read_text(), re.M) for path in Path(f"/proc/{pid}/task").glob("*/status"))


def calls_in(log: Path) -> Counter[str]:
    """How often each system call was made by the thread that made it most often."""
    calls = Counter(re.findall(r"^(\d+) +(\w+)\(", log.read_text(), re.M))
    most = Counter[str]()
    for (_, name), count in calls.items():
        most[name] = max(most[name], count)
    return most


class Witness:
    """A subscriber, at the provider, that reads when it is asked, and a server of remote calls: they outlive every actor."""

    def __init__(self, config: ShmConfig) -> None:
        self.config = config
        self.bus = pymq.EventBus(config)
        self.bus.expose(lambda name: name, "echo")
        self.bus.start()
        self.bus.stub("echo", timeout=GUARD)("its reply queue, which stays")
        self.provider = config.create()
        self.provider.open()
        self.provider.declare("witness", temporary=True)
        self.provider.bind("witness", "e/events", exact=True)
        self.home = Path(self.provider.path)
        self._before = self.files()

    def heard(self) -> list[str]:
        """The names of the events that have come."""
        found: list[bytes] = []
        while batch := self.provider.receive("witness", 0):
            found += [message for message, _ in batch]
        return [self._name(message) for message in found]

    def _name(self, message: bytes) -> str:
        match = re.search(rb'"?([\w-]+?)x*"?$', message + beside(message))
        assert match is not None, message
        return match[1].decode()

    def files(self) -> set[str]:
        """What is there, but for what its inboxes keep of a dead sender until the next large message, and the journal's number."""
        names = {str(path.relative_to(self.home)) for path in self.home.rglob("*")}
        return {re.sub(r"journal\.\d+", "journal", name) for name in names if not re.search(r"\.[0-9a-f]{16}$", name)}

    def left_behind(self) -> set[str]:
        return self.files() ^ self._before

    def close(self) -> None:
        self.provider.close()
        self.bus.shutdown()


@contextmanager
def temporary_home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pymq-test-", dir="/dev/shm") as path:
        yield Path(path)
