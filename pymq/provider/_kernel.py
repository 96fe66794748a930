"""Inboxes that the kernel keeps: a POSIX message queue in the place of the FIFO's messages; all the rest is as `_shm.frames` says.

**The kernel queue** holds ten messages of a kilobyte, so that the 819,200 bytes that a user's queues may take by default
(RLIMIT_MSGQUEUE) are enough for 73. One message is one frame. What does not fit goes as in any inbox: by reference where it is too
large, into the log where ten wait already. The FIFO is kept for what a kernel queue cannot do: its reader's death is seen at its other
end, and a write into it wakes a receive that is blocked, to look at the log or to end. The name is `/pymq-<uid>-<token>`. The token is
in a file beside the inbox's others, written before the queue is made and removed after it, so that a sweep finds the queue of the dead.
Where the directory was removed no sweep does: so the owner holds a shared lock on the queue itself, and `pymq clean` removes those on
which nobody does.

**Two lanes.** What is sent to this inbox alone (a request) has a higher priority in the kernel queue than what is published (an event),
and may overtake it; within a lane each sender's order is kept. For events the word LOGGED closes the kernel queue as it does the FIFO;
for the urgent it is the word URGENT, set by whoever had to write an urgent one into the log: so these pass a long log of events. The
lanes have an arena each, since references to one must be read in its order.
"""

from __future__ import annotations

import copy
import errno
import fcntl
import math
import os
import secrets
import select
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from typing import Any, TypeAlias

from pymq.exceptions import ProviderError
from pymq.provider._shm.files import Bells, Directory, Owned, adopt_file, close_file, encode_name, translated, write_at
from pymq.provider._shm.frames import DATA, DELETED, HEADER, LOGGED, STATE, URGENT, frame
from pymq.provider._shm.inbox import ONCE, Inbox
from pymq.provider._shm.outlet import Outlet
from pymq.provider._shm.registry import Registry
from pymq.provider.base import BUSY
from pymq.provider.ipc import kernel_queue

posix_ipc: Any = import_module("posix_ipc")
"""The driver, which comes without types."""
KernelQueue: TypeAlias = Any
"""Its `MessageQueue`."""

MESSAGES, MESSAGE_BYTES = 10, 1024
QUEUE_BYTES = MESSAGES * (MESSAGE_BYTES + 2 * 48)
"""What the kernel counts for one: a message, its head and a node of the tree of priorities, for each."""
_TOKEN_BYTES = 16
_ROOM_SECONDS = 0.2
_ORDINARY, _URGENT = 0, 1
_TURNS = 100
"""How often a sender yields the processor to a reader that has ten messages before it, before it turns to the log. With 20, which a
reader of ten events may need, a stream now and then fell into it, at two thirds of the speed."""


class KernelInbox(Inbox):
    """The reading end. Raises ProviderError, naming the limit, where the kernel gives no queue."""

    _gather, _stream = 0.0, math.inf
    """No more than ten messages can gather, and then their sender waits: that cost a stream a sixth to a third of its speed."""

    _looks = ONCE
    """Each is two system calls that fail, and an exception."""

    def __init__(self, name: str, directory: Directory, bells: Bells) -> None:
        with ExitStack() as undoing:
            token = _new_token(directory, encode_name(name))
            undoing.callback(_remove, directory, encode_name(name))
            self._queue = _create(token)
            self._queue_owned = Owned(partial(close_file, self._queue.mqd), partial(_unlink, token))
            super().__init__(name, directory, bells)
            undoing.pop_all()
        self._receive = partial(_receive, self._queue, self._receive)
        self.sources.append(self._queue.mqd)
        self._poll.register(self._queue.mqd, select.POLLIN)

    def _load_pipe(self) -> bool:
        return all(self._load() for _ in range(MESSAGES + 1))


def _receive(queue: KernelQueue, signals: Callable[[int], bytes | None], size: int) -> bytes | None:
    """One frame that is urgent, or all that wait; where none do, whole signals from the FIFO, or None.

    Of the urgent only one: to ask whether there are more takes 0.8 us, a twentieth of a call.
    """
    try:
        found, priority = queue.receive()
    except posix_ipc.BusyError:
        return signals(size - size % HEADER.size)
    if priority == _URGENT:
        return found  # type: ignore[no-any-return]
    return b"".join([found, *[queue.receive()[0] for _ in range(queue.current_messages)]])


class KernelOutlet(Outlet):
    """A writing end. Where the kernel queue cannot be reached, as from another IPC namespace, all goes by the log."""

    def __init__(self, name: str, directory: Directory, *args: Any, **options: Any) -> None:
        super().__init__(name, directory, *args, **options)
        self.direct = -1
        self._priority = _ORDINARY
        self._queue: KernelQueue = _open(directory, self._stem)
        self._queue_owned = self._queue and Owned(partial(close_file, self._queue.mqd))
        self._largest_framed = MESSAGE_BYTES if self._queue else 0
        self._urgent: KernelOutlet | None = None

    def urgent(self) -> KernelOutlet:
        """The lane for what overtakes events."""
        if self._urgent is None:
            lane = copy.copy(self)
            lane._priority, lane._gate = _URGENT, URGENT
            lane._token, lane._next, lane._stuck_at = 0, 0, -1
            self._urgent = lane
        return self._urgent

    def lane_of(self, former: Outlet) -> Outlet:
        return self.urgent() if former._gate == URGENT else self

    def send_urgently(self, message: bytes) -> bool:
        """Deliver it by that lane, if that is possible at once and without the log."""
        if self.head[DELETED]:
            return False
        try:
            if len(message) + HEADER.size <= self._largest_framed and not self.head[URGENT] and not self._death.poll(0):
                try:
                    self._queue.send(frame(DATA, message), None, _URGENT)  # what nearly always is enough; what follows takes 2 us more
                    return True
                except posix_ipc.BusyError:
                    pass
            return self.urgent().send_past_log(message)
        except (OSError, RuntimeError):  # dead; or another thread asks at this moment whether it is
            return False

    def send_past_log(self, payload: bytes, head: bytes = b"") -> bool:
        size = len(head) + len(payload)
        if size + HEADER.size > self._largest_framed:
            return not self._is_full(size) and self.send_by_arena(payload, head)  # a lane's own arena gives no more room
        framed = frame(DATA, head + payload)
        for _ in range(_TURNS):
            if self.head[self._gate]:
                return False
            if self._write(framed):
                return True
            if self.head[STATE] == BUSY:
                return False
            os.sched_yield()
        return False

    def backlog(self) -> tuple[int, int]:
        waiting, busy = super().backlog()
        return waiting + (self._queue.current_messages if self._queue else 0), busy

    # The lock is held

    def _write(self, small: bytes) -> bool:
        if len(small) > self._largest_framed:
            return False
        if self.is_dead():  # the kernel queue of a dead process takes messages, too
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        try:
            self._queue.send(small, None, self._priority)
        except posix_ipc.BusyError:
            return False
        return True

    def _append(self, parts: list[bytes]) -> bool:
        appended = super()._append(parts)
        if appended and self._gate != LOGGED:
            self.head[self._gate] = 1
        return appended


class KernelRegistry(Registry):
    """A namespace beside those of shm, in which a sweep removes kernel queues as well."""

    def _open(self, base: str, name: str) -> None:
        super()._open(base, f"ipc.{name}")  # encoded names have no dot: it is none of shm's

    def remove_inbox(self, stem: str) -> None:
        _remove(self.inboxes, stem)
        super().remove_inbox(stem)


def has_queue(directory: Directory, name: str) -> bool:
    """Whether that inbox is one that the kernel keeps."""
    return bool(_token(directory, encode_name(name)))


def _new_token(directory: Directory, stem: str) -> str:
    """Chosen and written down: what is made of it will be found. Raises FileExistsError where there is such an inbox."""
    token = secrets.token_hex(_TOKEN_BYTES // 2)
    fd = directory.open(f"{stem}.mq", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        write_at(fd, [token.encode()], 0)
    finally:
        close_file(fd)
    return token


def _token(directory: Directory, stem: str) -> str:
    """What was written down; "" where nothing was."""
    try:
        fd = directory.open(f"{stem}.mq", os.O_RDONLY)
    except FileNotFoundError:
        return ""
    try:
        return os.read(fd, _TOKEN_BYTES).decode()
    finally:
        close_file(fd)


def _create(token: str) -> KernelQueue:
    try:
        queue = _ready(_make(kernel_queue(token)))
        fcntl.flock(queue.mqd, fcntl.LOCK_SH)
        return queue
    except (OSError, ValueError, posix_ipc.Error) as error:
        raise _refused(error) from error


def _make(name: str) -> KernelQueue:
    """Tries again for a moment where there is no room: a thread may be about to let go of the queue of a bus that has ended."""
    deadline = time.monotonic() + _ROOM_SECONDS
    while True:
        try:
            return posix_ipc.MessageQueue(name, posix_ipc.O_CREX, mode=0o600, max_messages=MESSAGES, max_message_size=MESSAGE_BYTES)
        except OSError as error:
            if error.errno == errno.ENOSYS or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _open(directory: Directory, stem: str) -> KernelQueue:
    try:
        return _ready(posix_ipc.MessageQueue(kernel_queue(_token(directory, stem))))
    except posix_ipc.Error:
        return None


def _ready(queue: KernelQueue) -> KernelQueue:
    adopt_file(queue.mqd)
    queue.block = False
    return queue


def _remove(directory: Directory, stem: str) -> None:
    _unlink(_token(directory, stem))
    directory.unlink(f"{stem}.mq")


def _unlink(token: str) -> None:
    try:
        posix_ipc.unlink_message_queue(kernel_queue(token))
    except posix_ipc.Error:
        pass  # a FIFO, one whose process died before it was made, or one that was removed already


def _refused(error: Exception) -> ProviderError:
    """What users are told when the kernel gives no queue. posix_ipc keeps no error numbers: what it may have been is looked up."""
    import resource

    if isinstance(error, OSError) and error.errno == errno.ENOSYS:
        return ProviderError("this kernel has no POSIX message queues: use shm, which needs none")
    if isinstance(error, ValueError):
        return ProviderError(
            f"this machine does not admit message queues of {MESSAGES} messages of {MESSAGE_BYTES} bytes: "
            "raise fs.mqueue.msg_max and fs.mqueue.msgsize_max (sysctl), or use shm, which needs none"
        )
    try:
        os.close(os.open("/", os.O_PATH))
    except OSError as too_many:
        return translated(too_many, "/")
    limit = resource.getrlimit(resource.RLIMIT_MSGQUEUE)[0]
    return ProviderError(
        f"no more POSIX message queues for user {os.geteuid()}: together they may take {limit} bytes (RLIMIT_MSGQUEUE), this one takes "
        f"{QUEUE_BYTES}; and the machine has at most fs.mqueue.queues_max. Raise the limit (ulimit -q, or LimitMSGQUEUE= of a systemd "
        "unit), remove the queues of dead processes (pymq clean --yes), or use shm, which needs none"
    )
