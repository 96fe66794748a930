"""A nursery: one warm interpreter that forks participants on request, since starting Python takes longer than they live.

Its end of a pipe gets (role, arguments) and answers with the pid; ("ended", (timeout,)) is answered with {pid: status} of
those that ended. Roles are the functions of this module whose names it is given. They write what happened into diaries: a line that was
written is a fact, whatever happens to its process next.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import pydantic  # noqa: F401 - warm, so that no participant has to import it

import pymq
from pymq import codec  # noqa: F401
from pymq.deliveries import Leased
from pymq.provider._shm import inbox as _inbox
from pymq.provider._shm.outlet import Outlet
from pymq.provider._shm.queue import SharedQueue
from pymq.provider._shm.store import Store
from pymq.provider.shm import ShmConfig

PLACES: dict[str, list[Callable[..., Any]]] = {
    "put": [Store.append],
    "claim": [Store.take],
    "ack": [SharedQueue.ack, SharedQueue.ack_and_receive],
    "overflow": [SharedQueue._wait_for_room, Outlet._append],
    "retry": [Leased._move],
    "recover": [Store.release, Store._recover],
}


class Diary:
    """What this process did, by kind of fact."""

    def __init__(self, home: str) -> None:
        self._home = home
        self._files: dict[str, int] = {}

    def note(self, kind: str, *words: object) -> None:
        if kind not in self._files:
            os.makedirs(f"{self._home}/oracle/{kind}", exist_ok=True)
            self._files[kind] = os.open(f"{self._home}/oracle/{kind}/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(self._files[kind], " ".join(map(str, words)).encode() + b"\n")


class Errors(logging.Handler):
    """Notes what pymq logs as an error, but for what the handlers of these tests raise themselves."""

    def __init__(self, diary: Diary) -> None:
        super().__init__(logging.ERROR)
        self._diary = diary

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if ", attempt" not in text and "dead letters" not in text:
            self._diary.note("error", text)


class Failpoint:
    """kill -9 by its own hand, between two bytecodes of one of the functions of a place or of what they call."""

    def __init__(self, diary: Diary, place: str, rng: random.Random) -> None:
        self._diary = diary
        self._place = place
        self._codes = {function.__code__ for function in PLACES[place]}
        self._calls = rng.randrange(6)
        self._steps = int(2 ** rng.uniform(0, 9))

    def install(self) -> None:
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def _enter(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        if frame.f_code in self._codes:
            self._calls -= 1
            if self._calls >= 0:
                return None
        elif frame.f_back is None or frame.f_back.f_trace != self._step:
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        self._steps -= 1
        if self._steps < 0:
            self._diary.note("died", self._place, frame.f_code.co_name, frame.f_lineno)
            os.kill(os.getpid(), signal.SIGKILL)
        return self._step


class Part:
    """What a participant begins with: a bus, a diary, its own randomness, and perhaps a place to die in."""

    def __init__(self, home: str, seed: int, place: str | None = None) -> None:
        self.home = home
        self.seed = seed
        self.rng = random.Random(seed)
        self.diary = Diary(home)
        self.pause = 0.001 if place is None else 0.0  # those that live long leave the processors to the others
        logging.getLogger("pymq").addHandler(Errors(self.diary))
        logging.getLogger("pymq").propagate = False
        if place is not None:
            Failpoint(self.diary, place, self.rng).install()
        self.bus = pymq.EventBus(config(home))
        self.bus.start()


def config(home: str) -> ShmConfig:
    """Small bounds, so that everything overflows."""
    return ShmConfig("kill", f"{home}/pymq", max_pending=100_000, max_queue_bytes=40_000, publish_timeout=0.02)


def produce(home: str, seed: int, place: str | None = None) -> None:
    """Puts and publishes for ever; notes what was confirmed."""
    part = Part(home, seed, place)
    jobs = part.bus.queue("jobs", maxsize=8)
    for number in range(1 << 40):
        name = f"{seed}-{number} " + "x" * part.rng.choice([0, 10, 300, 3000])
        try:
            if number % 2:
                jobs.put(name, timeout=1)
                part.diary.note("confirmed", name.split(maxsplit=1)[0])
            else:
                part.diary.note("accepted", name.split(maxsplit=1)[0], part.bus.publish(name, "tasks"))
        except queue.Full:
            pass
        except pymq.ProviderError as error:
            if "lock was held" not in str(error):  # by a process that is stopped
                raise
        time.sleep(part.pause)


def member(home: str, seed: int, place: str | None = None, lease: float = 3600.0) -> None:
    """A member of the group that fails now and then."""
    part = Part(home, seed, place)

    def handle(name: str, message: pymq.Message) -> None:
        _handle(part, name, message.attempt)

    part.bus.subscribe(handle, "tasks", group="workers", retries=1000, backoff=0.002, lease=lease)
    signal.pause()


def take(home: str, seed: int, place: str | None = None, lease: float = 3600.0) -> None:
    """Takes from the queue, and fails now and then."""
    part = Part(home, seed, place)
    jobs = part.bus.queue("jobs", maxsize=8, retries=1000, backoff=0.002)
    while True:
        try:
            with jobs.take(lease=lease) as job:
                _handle(part, job.value, job.attempt)
        except (ArithmeticError, pymq.LeaseLost):
            pass
        except pymq.ProviderError as error:
            if "lock was held" not in str(error):
                raise


def _handle(part: Part, name: str, attempt: int) -> None:
    part.diary.note("handled", name.split(maxsplit=1)[0], attempt)
    time.sleep(part.pause)
    if part.rng.random() < 0.1:
        raise ArithmeticError
    part.diary.note("finished", name.split(maxsplit=1)[0])


def listen(home: str, seed: int) -> None:
    """A plain subscriber, whose FIFO is as small as can be so that senders turn to its log."""
    _inbox._PIPE_BYTES = 4096
    part = Part(home, seed)
    part.bus.subscribe(lambda name: part.diary.note("heard", name.split(maxsplit=1)[0]), "tasks")
    part.diary.note("ready", "listener")
    signal.pause()


def say(home: str, seed: int, name: str) -> None:
    """Publishes one event to the plain subscriber; it must get through."""
    part = Part(home, seed)
    while True:
        try:
            accepted = part.bus.publish(name, "tasks")
        except queue.Full as full:
            accepted = full.accepted + 1  # type: ignore[attr-defined]
        if accepted == 2:
            os._exit(0)


def work(home: str, seed: int, seconds: float) -> None:
    """A member whose events take so long."""
    part = Part(home, seed)

    def handle(name: str) -> None:
        time.sleep(seconds)
        part.diary.note("handled", os.getpid(), name)

    part.bus.subscribe(handle, "work", group="workers")
    part.diary.note("ready", "member")
    signal.pause()


def hold(home: str, seed: int) -> None:
    """A member whose handler waits for its turn's gate, a lock that the test holds."""
    part = Part(home, seed)

    def handle(name: str, message: pymq.Message) -> None:
        part.diary.note("begun", name, message.attempt, os.getpid())
        with open(f"{home}/gate-{name.partition('-')[0]}") as gate:
            fcntl.flock(gate, fcntl.LOCK_SH)
        part.diary.note("ended", name)

    part.bus.subscribe(handle, "work", group="workers", lease=3600)
    part.diary.note("ready", "member")
    signal.pause()


def fail(home: str, seed: int, retries: int) -> None:
    """A member that fails with poison, until there is an antidote."""
    part = Part(home, seed)

    def handle(name: str, message: pymq.Message) -> None:
        part.diary.note("handled", name, message.attempt)
        if name == "poison" and not Path(home, "antidote").exists():
            raise ArithmeticError("poisoned")
        part.diary.note("digested", name)

    part.bus.subscribe(handle, "work", group="workers", retries=retries, backoff=0.01)
    part.diary.note("ready", "member")
    signal.pause()


def requeue(home: str, seed: int) -> None:
    """Gives the dead letters back."""
    part = Part(home, seed)
    part.diary.note("requeued", part.bus.group("workers").dead.requeue())
    part.bus.shutdown()
    os._exit(0)


def main(connection: Connection) -> None:
    children: set[int] = set()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    gc.freeze()
    try:
        while True:
            role, arguments = connection.recv()
            connection.send(ended(children, *arguments) if role == "ended" else begin(children, role, arguments))
    except EOFError:
        for child in children:
            os.kill(child, signal.SIGKILL)


def begin(children: set[int], role: str, arguments: tuple[Any, ...]) -> int:
    child = os.fork()
    if child:
        children.add(child)
        return child
    try:
        globals()[role](*arguments)
    except BaseException as error:
        Diary(arguments[0]).note("error", role, repr(error))
        raise
    finally:
        os._exit(1)


def ended(children: set[int], timeout: float) -> dict[int, int]:
    signal.sigtimedwait({signal.SIGCHLD}, timeout)
    statuses = {}
    for child in list(children):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            children.remove(pid)
            statuses[pid] = status
    return statuses


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
