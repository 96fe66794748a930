"""Dispatch: the thread that reads the bus's inbox runs the handlers; while one is slow, another thread takes over the reading.

A hop between threads costs 4 us on a busy processor and 60-90 us on an idle one, so there is none on the default path. The
*reader* takes messages from the provider and runs their handlers itself. The *standby* looks every 10 ms whether the reader is
still in the same handler; if so it becomes the reader, and the old one goes on alone with its handler and with whatever has
come for it meanwhile (its backlog: each unit of work is serial). 100 ms after the last message the standby sleeps without a
time limit, so that an idle bus makes no system call.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from pymq.message import size_of
from pymq.provider.base import Delivery

log: logging.Logger = logging.getLogger("pymq")

SLOW = 0.010
"""How long a handler may hold up the others, in seconds; less costs more wake-ups of the standby while the bus is busy."""
CALM_TICKS = 10
LONGEST_PAUSE = 5.0
"""Between two attempts at what fails, in seconds."""
_NO_PREFIX = b"\xff\xff\xff", b""
"""In the place of the last message's, with its length and without."""
MAX_BACKLOG = 32 << 20
"""How many bytes may wait for one slow handler in memory; what comes then for it is dropped and counted."""


class Task(Protocol):
    """A unit of serial work: a subscription or a remote."""

    name: str
    serial: Serial

    def run(self, message: bytes) -> None:
        """Handle one message; raises nothing."""


class Serial:
    """What makes a task serial while other threads read: who runs it now, and what waits for it."""

    __slots__ = ("backlog", "bytes", "dropped", "owner")

    def __init__(self) -> None:
        self.owner: object | None = None
        self.backlog: deque[tuple[Task, bytes]] = deque()
        self.bytes: int = 0
        self.dropped: int = 0


class Reader:
    """The role of reading, held by one thread at a time; and what that thread runs, also after it was replaced."""

    __slots__ = ("last", "running", "task", "thread")

    def __init__(self) -> None:
        self.last: tuple[bytes, bytes] = _NO_PREFIX
        self.thread: int = threading.get_ident()
        self.task: Task | None = None
        self.running: object | None = None


class Dispatcher:
    """Receives from one inbox and runs the tasks that each message is for: `tasks` by its prefix, or what `look_up` finds.

    `receive(busy=…)` says whether a handler runs beside the reader: whoever looks for a free server then looks elsewhere.
    """

    def __init__(
        self,
        name: str,
        receive: Callable[..., Sequence[Delivery]],
        wake: Callable[[], None],
        tasks: Mapping[bytes, Sequence[Task]],
        look_up: Callable[[bytes], Sequence[Task]],
    ) -> None:
        self._name = name
        self._receive = receive
        self._wake = wake
        self._tasks = tasks
        self._look_up = look_up
        self._lock = threading.Lock()
        self._work: deque[tuple[bytes, Any]] = deque()  # as received, or with the task that it is for
        self._reader: Reader | None = None
        self._replaced: set[Reader] = set()
        self._alarm = threading.Event()
        self._calm = True
        self._asleep = True
        self._closing = self._abandoning = False
        self.may_receive: bool = True
        """Whether a thread may be in `receive`, also after `close`."""
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to read."""
        self._spawn(self._stand_by_first)

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=persist, args=[target], name=self._name, daemon=True)
        self._threads = [known for known in self._threads if known.is_alive()] + [thread]
        thread.start()

    def _stand_by_first(self) -> None:
        with self._lock:
            self._reader = reader = Reader()
        self._spawn(self._stand_by)
        self._read(reader)

    # ------------------------------------------------------------------ the reader

    def _read(self, reader: Reader) -> None:
        persist(lambda: self._read_on(reader), lambda: self._recover(reader))

    def _read_on(self, reader: Reader) -> None:
        self._run_all(reader)  # what the reader before had received
        while self._is_read_by(reader) and not self._closing:
            try:
                batch = self._receive(busy=bool(self._replaced))
            except Exception:
                if self._closing:
                    return
                log.exception("%s: receiving failed; trying again", self._name)
                time.sleep(0.1)
                continue
            self._work.extend(batch)
            self._run_all(reader)

    def _recover(self, reader: Reader) -> None:
        """Something was raised in the reader's thread beside a handler: let go of what it ran."""
        reader.running = None
        if reader.task is not None and self._reader is not reader:
            self._finish(reader, reader.task)

    def _is_read_by(self, reader: Reader) -> bool:
        """A takeover that comes to nothing puts the old reader back under the lock; who had left by then would leave the bus deaf."""
        if self._reader is reader:
            return True
        with self._lock:
            return self._reader is reader

    def _run_all(self, reader: Reader) -> None:
        """Run what has been received, for as long as this thread is the reader.

        The order of the stores is what makes a takeover safe without a lock per message (0.15 us): a message is taken only while
        `running` is None, `running` is set before `_reader` is looked at, and the standby sets `_reader` before it looks at
        `running`. So either this thread sees that it was replaced, or the standby sees what runs.
        """
        work, tasks_by_prefix = self._work, self._tasks
        known, prefix = reader.last
        self._calm = False
        if self._asleep and work:
            self._alarm.set()
        while work and not self._abandoning:
            item = message, task = work.popleft()
            if task is None:
                try:
                    # most have the prefix of the one before, and then the same bytes are looked up, whose hash is known: 0.15 us less
                    if not message.startswith(known, 8):
                        end = 10 + message[8] + (message[9] << 8)  # frames.prefix_of, inline
                        known, prefix = reader.last = message[8:end], message[10:end]
                    tasks = tasks_by_prefix[prefix]
                except (KeyError, IndexError):
                    tasks = self._look_up(message)
                    known, prefix = reader.last = _NO_PREFIX  # where a message is cut tells nothing of the next
                if not tasks:
                    continue
                task = tasks[0]
                if len(tasks) > 1:
                    work.extendleft([(message, other) for other in reversed(tasks[1:])])
            reader.task = task
            reader.running = item
            if (self._reader is not reader or task.serial.owner is not None) and self._put_by(reader, task, message):
                reader.running = None
                continue
            task.run(message)
            reader.running = None
            if self._reader is not reader:
                self._finish(reader, task)
                if self._reader is not reader:
                    return

    def _put_by(self, reader: Reader, task: Task, message: bytes) -> bool:
        """Under the lock: whether somebody else runs this task now, and has been given the message."""
        with self._lock:
            serial = task.serial
            if serial.owner is None or serial.owner is reader:
                return False
            if serial.bytes + size_of(message) > MAX_BACKLOG and serial.backlog:
                serial.dropped += 1
                return True
            serial.bytes += size_of(message)
            serial.backlog.append((task, message))
            return True

    def _finish(self, reader: Reader, task: Task) -> None:
        """Replaced while `task` ran: run what has come for it since, and for those that are serial with it, then let go of it."""
        serial = task.serial
        while True:
            with self._lock:
                if serial.owner is not reader:
                    return
                if not serial.backlog or self._abandoning:
                    serial.owner = None
                    self._replaced.discard(reader)
                    break
                task, message = serial.backlog.popleft()
                serial.bytes -= size_of(message)
            reader.task = task
            reader.running = message
            task.run(message)
            reader.running = None
        if not self._replaced:
            self._wake()  # the reader says again whether it is busy

    # ------------------------------------------------------------------ the standby

    def _stand_by(self) -> None:
        seen, calm, self._asleep = None, 0, False
        while not self._closing:
            self._calm = True
            self._alarm.wait(SLOW)
            self._alarm.clear()
            running = self._reader.running if self._reader else None
            if running is not None and running is seen:
                reader = self._take_over(running)
                if reader is not None:
                    with suppress(RuntimeError):  # no thread to be had: then without a standby
                        self._spawn(self._stand_by)
                    return self._read(reader)
            seen = running
            calm = calm + 1 if self._calm and running is None else 0
            if calm >= CALM_TICKS:
                self._sleep()
                calm = 0
        return None

    def _sleep(self) -> None:
        self._asleep = True
        if self._calm and (self._reader is None or self._reader.running is None) and not self._closing:
            self._alarm.wait()
        self._asleep = False

    def _take_over(self, running: object) -> Reader | None:
        """Become the reader if the present one is still in that handler; a task that ends just now keeps its reader."""
        with self._lock:
            old, self._reader = self._reader, Reader()
            if old is None or old.running is not running or old.task is None or old.task.serial.owner is not None:
                self._reader = old  # it has moved on, or is only putting the message by
                return None
            old.task.serial.owner = old
            self._replaced.add(old)
            return self._reader

    def step_aside(self) -> None:
        """Called by a handler before it waits for something that this inbox must receive: let another thread read."""
        reader = self._reader
        if reader is None or reader.thread != threading.get_ident():
            return
        successor = self._take_over(reader.running)
        if successor is None:
            return
        try:
            self._spawn(lambda: self._succeed(successor))
        except BaseException:  # no thread to be had: this one reads on, when its handler has returned
            self._take_back(reader)
            raise

    def _take_back(self, reader: Reader) -> None:
        with self._lock:
            self._reader = reader
            self._replaced.discard(reader)
            if reader.task is not None:
                reader.task.serial.owner = None

    def _succeed(self, reader: Reader) -> None:
        reader.thread = threading.get_ident()
        self._read(reader)

    def add(self, task: Task, message: bytes) -> None:
        """Work for the reader, who looks at it when the next message comes."""
        self._work.append((message, task))

    # ------------------------------------------------------------------ the end

    def end_with_the_handler(self) -> None:
        """In a forked child: the thread that has forked ends when its handler returns, and touches nothing of the parent's."""
        self._closing = self._abandoning = True
        self._lock = threading.Lock()
        self._wake = lambda: None

    def close(self, deadline: float) -> list[str]:
        """Stop receiving; handle what was received, until the deadline; say what was abandoned."""
        self._closing = True
        self._alarm.set()
        join(self._threads, self._wake, deadline)
        self._abandoning = True
        readers = {*self._replaced, self._reader} - {None}
        stuck = [r.task.name for r in readers if r and r.running is not None and r.task and r.thread != threading.get_ident()]
        living = [thread for thread in self._threads if thread.is_alive() and thread is not threading.current_thread()]
        self.may_receive = len(living) > len(stuck)
        waiting = len(self._work)
        return [f"the handler {name}, which still runs" for name in stuck] + ([f"{waiting} unhandled messages"] if waiting else [])


def persist(loop: Callable[[], None], recover: Callable[[], None] = lambda: None) -> None:
    """Run a thread's loop to its end, whatever is raised in it: by the program's own log handlers, or from another thread."""
    while True:
        try:
            return loop()
        except BaseException:
            with suppress(BaseException):
                log.exception("a thread of pymq goes on after an error that is not a handler's")
            recover()
            time.sleep(0.01)  # should it be raised every time


def back_off(failures: int) -> float:
    """Seconds until a thread tries again what has failed so often in a row: 0.1, 0.2, 0.4 … 5."""
    return min(0.05 * 2.0 ** min(failures, 7), LONGEST_PAUSE)


def join(threads: Sequence[threading.Thread], wake: Callable[[], None], deadline: float) -> bool:
    """Wake the threads until they have ended, or until the deadline; whether all but the present one have.

    A wake-up ends only the receives that are blocked at that moment, and a thread may be about to begin one.
    """
    while left := [thread for thread in threads if thread.is_alive() and thread is not threading.current_thread()]:
        wake()
        if time.monotonic() >= deadline:
            return False
        left[0].join(min(0.05, max(0.0, deadline - time.monotonic())))
    return True
