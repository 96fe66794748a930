"""A nursery of actors: one warm interpreter that forks them on request. Each does one operation, or looks at what another has left.

A request is (role, arguments); the answer is the pid. Roles are the functions of this module. What an actor has to say goes to its
*board*, a page of memory that it shares with the nursery: noting something there is no system call, and what is noted is a fact,
whatever happens to its process next. ("board", pid) is answered with the lines, ("end", pid) with the status after the actor's end,
("kill", (pid, signal)) and ("forget", pid) with 0.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import mmap
import os
import queue
import random
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pydantic  # noqa: F401 - warm, so that no actor has to import it

import pymq
from pymq import codec  # noqa: F401
from pymq import message as frames
from pymq.provider._shm.outlet import Outlet
from pymq.provider._shm.registry import Registry
from pymq.provider._shm.store import Store
from pymq.provider.shm import ShmConfig

NOBODY = 65534
LARGE = 100_000
ITEMS = ("a", "b", "c")


class Board:
    """What an actor has done, line by line."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 1 << 20)
        self._end = 0

    def note(self, *words: object) -> None:
        line = " ".join(map(str, words)).encode() + b"\n"
        self._page[self._end : self._end + len(line)] = line
        self._end += len(line)

    def lines(self) -> list[str]:
        return self._page[: self._page.find(b"\0")].decode().split("\n")[:-1]


def config(home: str) -> ShmConfig:
    """As small as everything can be, so that what needs much is seen after little."""
    return ShmConfig("faults", home, max_pending=1 << 20, publish_timeout=0.05)


class Act:
    """One operation: `prepare`, then, once it is released, `act` with the name of what is new."""

    def __init__(self, board: Board, bus: pymq.EventBus) -> None:
        self.note = board.note
        self.bus = bus

    def prepare(self) -> None:
        self.bus.start()

    def act(self, name: str) -> None:
        raise NotImplementedError


class Start(Act):
    def prepare(self) -> None:
        pass

    def act(self, name: str) -> None:
        self.bus.start()


class Declare(Act):
    def act(self, name: str) -> None:
        self.bus.queue("jobs").put(name)
        self.note("put", name)


class Put(Act):
    size = 0

    def prepare(self) -> None:
        super().prepare()
        self.jobs = self.bus.queue("jobs", backoff=0)
        for item in ITEMS:
            self.jobs.put(item)
            self.note("put", item)

    def act(self, name: str) -> None:
        self.jobs.put(name + "x" * self.size)
        self.note("put", name)


class PutLarge(Put):
    size = LARGE


class PutDelayed(Put):
    def act(self, name: str) -> None:
        self.jobs.put(name, delay=0.001, priority=3)
        self.note("put", name)


class Get(Put):
    def act(self, name: str) -> None:
        self.note("gets")
        self.note("got", self.jobs.get(timeout=0))


class Take(Put):
    def act(self, name: str) -> None:
        self.note("takes")
        with self.jobs.take(timeout=0) as job:
            self.note("handled", job.value, job.attempt)
        self.note("acked", job.value)


class Fail(Put):
    """The handler fails: a copy with the count of failures, then the ack."""

    def act(self, name: str) -> None:
        self.note("takes")
        try:
            with self.jobs.take(timeout=0) as job:
                self.note("handled", job.value, job.attempt)
                raise ArithmeticError
        except ArithmeticError:
            pass


class GiveBack(Put):
    def act(self, name: str) -> None:
        self.note("takes")
        job = self.jobs.receive(timeout=0)
        self.note("handled", job.value, job.attempt)
        job.extend(60)
        job.nack()


class Publish(Act):
    size = 0

    def act(self, name: str) -> None:
        if self.bus.publish(name + "x" * self.size, "events") == 1:
            self.note("accepted", name)


class PublishLarge(Publish):
    size = LARGE


class PublishLargeAgain(PublishLarge):
    def prepare(self) -> None:
        super().prepare()
        super().act("first")


class PublishOverflow(Publish):
    """The witness does not read: the pipe is full, and the log takes it."""

    size = 3000

    def prepare(self) -> None:
        super().prepare()
        for number in range(100):
            super().act(f"filler-{number}-")


class PublishToGroup(Act):
    def prepare(self) -> None:
        super().prepare()
        self.bus.group("workers").bind("tasks")

    def act(self, name: str) -> None:
        if self.bus.publish(name, "tasks") == 1:
            self.note("stored", name)


class Subscribe(Act):
    def act(self, name: str) -> None:
        self.bus.subscribe(self.hear, "other")
        self.note("subscribed")

    def hear(self, name: str) -> None:
        self.note("heard", name)


class Join(Act):
    """Become a member of a group, and handle what it has."""

    def prepare(self) -> None:
        super().prepare()
        self.bus.group("workers").bind("tasks")
        self.bus.publish("task", "tasks")
        self.note("stored", "task")

    def act(self, name: str) -> None:
        self.handled = queue.SimpleQueue[str]()
        self.bus.subscribe(self.handle, "tasks", group="workers")
        self.handled.get(timeout=20)

    def handle(self, name: str, message: pymq.Message) -> None:
        self.note("handled", name, message.attempt)
        self.handled.put(name)


class Call(Act):
    def act(self, name: str) -> None:
        assert self.bus.stub("echo", timeout=20)(name) == name


class Serve(Act):
    """Serves a call of its own process: both sides of one, in threads of one process."""

    def prepare(self) -> None:
        super().prepare()
        self.bus.expose(self.serve, "served")

    def serve(self, name: str) -> str:
        self.note("served", len(name))
        return name

    def act(self, name: str) -> None:
        assert self.bus.stub("served", timeout=20)(name) == name
        assert self.bus.stub("served", timeout=20)(name + "x" * LARGE) == name + "x" * LARGE


class Close(Put):
    def prepare(self) -> None:
        super().prepare()
        self.bus.subscribe(lambda name: None, "other")
        self.bus.group("workers").bind("tasks")
        self.note("takes")
        job = self.jobs.receive(timeout=0)
        self.note("handled", job.value, job.attempt)

    def act(self, name: str) -> None:
        self.bus.shutdown()


class Free(Put):
    def act(self, name: str) -> None:
        self.note("frees")
        self.jobs.free()
        self.note("freed")


EXPECTED = (pymq.PymqError, queue.Full, queue.Empty)


def perform(board: Board, home: str, operation: str, gate: int, leave: bool) -> None:
    """Once; where that fails as the documents say it may, again, which must succeed; then leave, or vanish."""
    bus = pymq.EventBus(config(home))
    act = globals()[operation](board, bus)
    act.prepare()
    board.note("ready")
    os.read(gate, 1)
    for name in ("one-", "two-", "three-", "four-"):  # strace counts each thread's calls: up to three may have failed
        try:
            act.act(name)
            break
        except (pymq.RpcTimeout, pymq.ServerDied):
            raise  # an error would have told the caller
        except EXPECTED as error:
            board.note("failed", repr(error))
    else:
        raise AssertionError("it never succeeds")
    board.note("done")
    if leave:
        try:
            bus.shutdown()
        except EXPECTED as error:
            board.note("failed", repr(error))
            bus.shutdown()


def hold(board: Board, config: ShmConfig, name: str, count: int) -> None:
    """Take so many items under a lease that it will not outlive."""
    provider = config.create()
    provider.open()
    for message, receipt in provider.receive(name, 0, limit=count, lease=1000):
        assert receipt is not None
        board.note("holds", frames.unpack(message).options.get("attempts", 0) + receipt.attempt, message.hex())
    board.note("ready")
    signal.pause()


def intrude(board: Board, home: str, files: list[str], target: str) -> None:
    """As the user nobody: whatever can be tried on somebody else's home; notes what worked."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    inside = f"{home}/planted"
    attempts: dict[str, Callable[[], object]] = {
        "list": lambda: os.listdir(home),
        "enter": lambda: os.chdir(home),
        "rename": lambda: os.rename(home, home + "-away"),
        "remove": lambda: os.rmdir(home),
        "chmod": lambda: os.chmod(home, 0o777),
        "chown": lambda: os.chown(home, NOBODY, NOBODY),
        "plant a file": lambda: os.close(os.open(inside, os.O_CREAT | os.O_WRONLY)),
        "plant a directory": lambda: os.mkdir(inside),
        "plant a FIFO": lambda: os.mkfifo(inside),
        "plant a link": lambda: os.symlink(target, inside),
        "join": lambda: pymq.EventBus(config(home)).start(),
    }
    for path in files:
        attempts |= {
            f"look at {path}": lambda path=path: os.stat(path),  # type: ignore[misc]
            f"read {path}": lambda path=path: os.open(path, os.O_RDONLY | os.O_NONBLOCK),  # type: ignore[misc]
            f"write {path}": lambda path=path: os.open(path, os.O_WRONLY | os.O_NONBLOCK),  # type: ignore[misc]
            f"link {path}": lambda path=path: os.link(path, f"{home}-stolen"),  # type: ignore[misc]
            f"unlink {path}": lambda path=path: os.unlink(path),  # type: ignore[misc]
        }
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, pymq.ProviderError):
            board.note("failed", name)
        else:
            board.note("worked", name)


def squat(board: Board, home: str, what: str, target: str) -> None:
    """As the user nobody: be there first."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    ways: dict[str, Callable[[], object]] = {
        "directory": lambda: os.mkdir(home),
        "open directory": lambda: (os.mkdir(home), os.chmod(home, 0o777)),
        "file": lambda: os.close(os.open(home, os.O_CREAT | os.O_WRONLY)),
        "fifo": lambda: os.mkfifo(home),
        "link to a directory of the victim's": lambda: os.symlink(target, home),
        "dangling link": lambda: os.symlink(f"{target}/new", home),
    }
    ways[what]()


def cramp(board: Board, home: str, mount: str, by: str) -> None:
    """Everything that a program does, on a file system that is full; then there is room, and everything works."""
    bus = pymq.EventBus(config(home))
    bus.start()
    jobs = bus.queue("jobs")
    bus.group("workers").bind("tasks")
    confirmed, failures = 0, set()
    room = {"bytes": "is full", "inodes": "is full", "descriptors": "too many open files"}[by]
    verbs: dict[str, Callable[[], object]] = {
        "put": lambda: jobs.put("x" * 3000),
        "put large": lambda: jobs.put("x" * LARGE),
        "publish": lambda: bus.publish("x" * LARGE, "events"),
        "publish to a group": lambda: bus.publish("x" * 3000, "tasks"),
        "declare": lambda: bus.queue("another").put(1),
        "subscribe": lambda: bus.subscribe(lambda name: None, "other"),
        "call": lambda: bus.stub("echo", timeout=20)("x"),
        "start": lambda: open_and_shut(home),
    }
    ballast = fill(mount, by)
    for _ in range(3):
        for name, verb in verbs.items():
            try:
                for _ in range(200 if "put" in name or "publish" in name else 1):
                    verb()
                    confirmed += name.startswith("put")
            except pymq.ProviderError as error:
                failures.add(name if room in str(error) else str(error))
            except queue.Full:
                failures.add(name)
    board.note("failed", *sorted(name.replace(" ", "_") for name in failures))
    for _ in range(min(confirmed, 5)):
        jobs.get(timeout=0)
        confirmed -= 1
    for give_back in ballast:
        give_back()
    jobs.put("room again")
    for _ in range(confirmed):
        jobs.get(timeout=0)
    assert jobs.get(timeout=0) == "room again"
    assert jobs.empty()
    jobs.free()
    bus.queue("another").free()
    bus.group("workers").delete()
    assert bus.stub("echo", timeout=20)("x") == "x"
    assert bus.publish("after", "events") == 1
    bus.shutdown()


def open_and_shut(home: str) -> None:
    with pymq.EventBus(config(home)):
        pass


def fill(mount: str, by: str) -> list[Callable[[], None]]:
    """What makes room again."""
    ballast: list[Callable[[], None]] = []
    try:
        if by == "descriptors":
            resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
            while True:
                ballast.append(partial(os.close, os.open("/dev/null", os.O_RDONLY)))
        if by == "bytes":
            with open(f"{mount}/ballast", "wb", buffering=0) as file:
                ballast.append(partial(os.unlink, f"{mount}/ballast"))
                while True:
                    file.write(bytes(4096))
        for number in range(1 << 20):
            os.close(os.open(f"{mount}/ballast{number}", os.O_CREAT | os.O_WRONLY))
            ballast.append(partial(os.unlink, f"{mount}/ballast{number}"))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EMFILE):
            raise
    return ballast


def publish_to_many(board: Board, home: str, count: int, limit: int) -> None:
    """To so many receivers, with fewer descriptors than that takes; then with enough."""
    receivers = ShmConfig("faults", home).create()
    receivers.open()
    for number in range(count):
        receivers.declare(f"receiver {number}", temporary=True)
        receivers.bind(f"receiver {number}", "many", exact=True)
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        received = sum(len(receivers.receive(f"receiver {number}", 0)) for number in range(count))
        assert received >= count, received
        receivers.close()
        return
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    sender = ShmConfig("faults", home).create()
    sender.open()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    for _ in range(3):
        try:
            sender.publish(("many",), b"message")
        except pymq.ProviderError as error:
            board.note("refused" if "too many open files" in str(error) else error)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    board.note("reached", sender.publish(("many",), b"message"))
    sender.close()
    os._exit(0)


STOPPABLE = {"append": Store, "take": Store, "ack": Store, "delete": Store, "_append": Outlet, "record": Registry, "sweep": Registry}


def stop_inside(board: Board, home: str, operation: str, method: str) -> None:
    """Stopped by SIGSTOP in the middle of a critical section; when it goes on, it finishes what it did."""
    bus = pymq.EventBus(config(home))
    act = globals()[operation](board, bus)
    act.prepare()
    owner = STOPPABLE[method]
    original = getattr(owner, method)

    def stopping(*args: Any, **kwargs: Any) -> Any:
        setattr(owner, method, original)
        board.note("stopping")
        os.kill(os.getpid(), signal.SIGSTOP)
        return original(*args, **kwargs)

    setattr(owner, method, stopping)
    act.act("one-")
    board.note("done")
    bus.shutdown()


def serve_and_hold(board: Board, home: str) -> None:
    """Subscribes, serves, and holds an item, until it is killed."""
    bus = pymq.EventBus(config(home))
    bus.start()
    bus.subscribe(lambda name: board.note("heard", name), "other")

    def served(name: str) -> int:
        board.note("serving")
        if name == "slow":
            time.sleep(60)
        return os.getpid()

    bus.expose(served, "served")
    job = bus.queue("jobs").receive(timeout=5, lease=1000)
    board.note("holds", job.value, job.attempt)
    signal.pause()


def serve_calls(board: Board, home: str, seed: int) -> None:
    """Serves until it is killed; an execution is noted before it is answered."""
    bus, rng = pymq.EventBus(config(home)), random.Random(seed)
    bus.start()

    def work(number: str) -> str:
        board.note("executed", number.rstrip("x"))
        time.sleep(rng.choice([0, 0, 0.001]))
        return number + "x" * rng.choice([0, 0, 6000])

    bus.expose(work, "work")
    board.note("ready")
    signal.pause()


def make_calls(board: Board, home: str, seed: int) -> None:
    """Calls until it is killed; every call must end, one way or the other."""
    bus, rng = pymq.EventBus(config(home)), random.Random(seed)
    bus.start()
    stub = bus.stub("work", timeout=20)
    board.note("ready")
    for number in range(1 << 40):
        name = f"{seed}-{number}-" + "x" * rng.choice([0, 0, 6000])
        begun = time.monotonic()
        try:
            assert stub(name).rstrip("x") == f"{seed}-{number}-"
            board.note("result", name.rstrip("x"))
        except (pymq.ServerDied, pymq.NoSuchRemoteError) as error:
            board.note("error", type(error).__name__)
        assert time.monotonic() - begun < 15, "a death is seen long before the deadline"


def subscribe_only(board: Board, home: str) -> None:
    """Until it is killed."""
    bus = pymq.EventBus(config(home))
    bus.start()
    bus.subscribe(lambda name: None, "events")
    board.note("subscribed")
    signal.pause()


def do_everything(board: Board, home: str, seed: float) -> None:
    """Over and over, until it is killed."""
    bus, rng = pymq.EventBus(config(home)), random.Random(seed)
    bus.start()
    bus.subscribe(lambda name: None, "other")
    bus.subscribe(lambda name: None, "tasks", group="workers")
    bus.expose(lambda name: name, "served")
    jobs = bus.queue("jobs")
    while True:
        size = rng.choice([10, 10, 3000, LARGE])
        jobs.put("x" * size, delay=rng.choice([0, 0, 0.001]))
        bus.publish("x" * size, "events")
        bus.publish("x", "tasks")
        bus.stub("echo", timeout=20)("x" * size)
        with suppress(queue.Empty), jobs.take(timeout=0.001):
            pass


def publish_from_everywhere(board: Board, home: str, count: int) -> None:
    """A quarter each from two threads, from a forked child and from a bus that was started again."""
    bus = pymq.EventBus(config(home))
    bus.start()

    def publish() -> None:
        for _ in range(count // 4):
            while bus.publish("x", "numbers") != 1:
                pass

    threads = [threading.Thread(target=publish) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    publish()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    bus.shutdown()


def give_out_next(board: Board, pid: int) -> None:
    """That pid will be the next process's, in this PID namespace."""
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))


def look_around(board: Board, home: str, channel: str = "other") -> None:
    """Publish, and leave."""
    with pymq.EventBus(config(home)) as bus:
        board.note("reached", bus.publish("from-afar", channel))


def kill_later(board: Board, victim: int) -> None:
    time.sleep(0.3)
    os.kill(victim, signal.SIGKILL)


def look(board: Board, home: str) -> None:
    """A fresh participant: what is in the queue, whether everything works, then nothing of its own stays."""
    with pymq.EventBus(config(home)) as bus:
        jobs = bus.queue("jobs")
        while jobs.qsize() or bus.stats()["in_flight"].get("queue/jobs"):
            with jobs.take(timeout=20) as job:
                board.note("found", job.value.rstrip("x"), job.attempt)
        for counts in bus.provider.counters().values():
            if counts.get("corrupt", 0) or counts.get("bytes", 0):
                board.note("damaged", counts)
        jobs.free()
        group = bus.group("workers")
        done = queue.SimpleQueue[str]()
        group.bind("tasks")
        bus.subscribe(lambda name, message: (board.note("finished", name, message.attempt), done.put(name)), "tasks", group="workers")
        bus.publish("last", "tasks")
        while done.get(timeout=20) != "last":
            pass
        group.delete()
        board.note("reached", bus.publish("look", "events"), bus.publish("look", "other"))
        board.note("echo", bus.stub("echo", timeout=20)("look"))
        try:
            bus.stub("served", timeout=20)("look")
        except pymq.NoSuchRemoteError:
            board.note("nobody")


def main(connection: Connection) -> None:
    boards: dict[int, Board] = {}
    children: set[int] = set()
    gc.freeze()
    try:
        while True:
            role, arguments = connection.recv()
            if role == "board":
                connection.send(boards[arguments].lines())
            elif role == "end":
                connection.send(end(arguments))
                children.discard(arguments)
            elif role == "forget":
                del boards[arguments]
                connection.send(0)
            elif role == "kill":  # by the pid that it has here, in this namespace
                os.kill(*arguments)
                connection.send(0)
            else:
                board = Board()
                boards[pid := begin(board, role, arguments)] = board
                children.add(pid)
                connection.send(pid)
    except EOFError:
        for child in children:  # of tests that failed
            os.kill(child, signal.SIGKILL)


def begin(board: Board, role: str, arguments: tuple[Any, ...]) -> int:
    child = os.fork()
    if child:
        return child
    faulthandler.register(signal.SIGUSR1)
    status = 1
    try:
        run: Callable[..., None] = globals()[role]
        run(board, *arguments)
        status = 0
    except BaseException:
        board.note("broken", traceback.format_exc())
    finally:
        os._exit(status)


def end(pid: int) -> int:
    """Its status; one that takes longer than 20 s is killed, after it has said on stderr where it is."""
    deadline = time.monotonic() + 20
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
