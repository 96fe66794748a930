"""Fail, or die, at the n-th system call, for every n: after it a fresh process finds all that was confirmed, and no leak.

strace lets one call of one process fail, or kills the process in its place. The actors are in programs/actors.py; beside them a
witness subscribes and serves, and another actor looks at what is left.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from stage import Nursery, Witness, calls_in, temporary_home, traced

from pymq.provider.shm import ShmConfig

pytestmark = [pytest.mark.needs_strace, pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")]

OPERATIONS = """Start Declare Put PutLarge PutDelayed Get Take Fail GiveBack Publish PublishLarge PublishLargeAgain PublishOverflow
PublishToGroup Subscribe Join Call Serve Close Free""".split()  # noqa: SIM905

HARMLESS = set(
    """brk clock_nanosleep clone3 exit exit_group futex getegid geteuid getpid getrandom gettid getuid madvise mmap mprotect munmap
    nanosleep restart_syscall rseq rt_sigaction rt_sigprocmask sched_yield set_robust_list""".split()  # noqa: SIM905
)
"""They touch nothing that others see: to die there is to die at the next call."""

FAULTS = {
    "signal=KILL": None,
    "error=ENOSPC": {"mkdirat", "mkdir", "mknodat", "openat", "pwrite64", "pwritev", "fallocate", "ftruncate"},
    "error=ENOMEM": {"write"},
    "error=EMFILE": {"openat", "dup", "fcntl"},
    "error=EINTR": {"openat", "read", "write", "poll", "pwrite64", "pwritev", "fallocate"},
    "retval=1": {"pwrite64", "pwritev"},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_system_call(operation: str, fault: str, actors: Nursery, tmp_path: Path) -> None:
    with temporary_home() as home:
        witness = Witness(ShmConfig("faults", str(home / "pymq"), max_pending=1 << 20, publish_timeout=0.05))
        try:
            counted = count_calls(operation, actors, witness, tmp_path / "strace")
            wanted = FAULTS[fault] or set(counted) - HARMLESS
            runs = [(name, number) for name in sorted(wanted & set(counted)) for number in range(1, counted[name] + 1)]
            for name, number in runs:
                play = Play(operation, actors, witness)
                play.perform(None, fault != "signal=KILL", "-e", f"trace={name}", "-e", f"inject={name}:{fault}:when={number}")
                play.check(f"{operation}: {fault} at {name} number {number}", fault)
        finally:
            witness.close()
        assert list((home / "pymq").rglob("*")) == []


def count_calls(operation: str, nursery: Nursery, witness: Witness, log: Path) -> Counter[str]:
    """What the operation calls where nothing fails."""
    play = Play(operation, nursery, witness)
    play.perform(log, False)
    play.check(operation, "")
    return calls_in(log)


class Play:
    """One actor's performance, and what must be true afterwards."""

    def __init__(self, operation: str, nursery: Nursery, witness: Witness) -> None:
        self.operation = operation
        self.nursery = nursery
        self.witness = witness

    def perform(self, log: Path | None, leave: bool, *options: str) -> None:
        self.nursery.shut()
        actor = self.nursery.begin("perform", str(self.witness.config.home), self.operation, self.nursery.gate, leave)
        self.nursery.wait_for(actor, "ready")
        with traced(actor, log, *options):
            self.nursery.release()
            self.status = self.nursery.end(actor)
        self.said = self.nursery.board(actor)

    def check(self, where: str, fault: str) -> None:
        killed = os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL
        assert self.status == 0 or (killed and fault == "signal=KILL"), "\n".join([where, *map(" ".join, self.said)])
        self.heard = Counter(self.witness.heard())
        self.found = self.nursery.run("look", str(self.witness.config.home))
        heard_later = self.witness.heard()
        told = (where, self.said, self.heard, self.found)
        assert ["reached", "1", "0"] in self.found, told
        assert heard_later == ["look"], told
        assert ["echo", "look"] in self.found, told
        assert ["nobody"] in self.found, told
        assert not [line for line in self.found if line[0] == "damaged"], told
        assert self.witness.left_behind() == set(), told
        assert self.events_are_right(), told
        assert self.items_are_right(), told
        assert set(self.of("stored")) <= {*self.of("handled"), *self.of("finished", self.found)}, told

    def of(self, kind: str, lines: list[list[str]] | None = None) -> list[str]:
        return [line[1] if len(line) > 1 else "" for line in (self.said if lines is None else lines) if line[0] == kind]

    def events_are_right(self) -> bool:
        """What was accepted has been heard, and nothing twice."""
        return set(self.of("accepted")) <= set(self.heard) and max(self.heard.values(), default=1) == 1

    def items_are_right(self) -> bool:
        """What was put is there, but for what was got or acked, or may have been at the moment of the fault; nothing twice."""
        found = self.of("found", self.found)
        first = {line[1] for line in self.found if line[0] == "found" and line[2] == "1"}
        put = set(self.of("put"))
        gone = set(self.of("got")) | set(self.of("acked"))
        lent = set(self.of("handled"))
        missing = put - set(found) - gone
        if self.of("frees"):
            return True
        return (
            {item for item in found if found.count(item) > 1} <= lent - gone
            and not gone & set(found)
            and (missing <= lent or len(missing) <= len(self.of("gets")) - len(self.of("got")))
            and len(missing) <= max(0, len(self.of("gets")) - len(self.of("got"))) + len(lent - gone)
            and not lent & first
        )
