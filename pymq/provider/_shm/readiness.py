"""What an event loop waits on at the shm provider: an epoll of what a thread would sleep on, which itself can be waited on."""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from pymq.exceptions import ProviderError
from pymq.provider._shm.files import Removed
from pymq.provider._shm.frames import STATE
from pymq.provider.base import IDLE

if TYPE_CHECKING:
    from pymq.provider._shm.files import Owned
    from pymq.provider._shm.inbox import Inbox
    from pymq.provider._shm.outlet import Outlet
    from pymq.provider._shm.queue import SharedQueue

Entry: TypeAlias = "tuple[SharedQueue, Owned]"
"""A shared queue, and what keeps it open."""


class _Poller:
    """One descriptor that stands for several: those to read from, and FIFOs whose readers' deaths are told once each."""

    def __init__(self, *sources: int) -> None:
        self._epoll = select.epoll()
        self._sources: tuple[int, ...] = ()
        self.add(*sources)
        self.fd = self._epoll.fileno()

    def add(self, *sources: int) -> None:
        """More to read from; what is closed goes by itself."""
        for source in sources:
            self._epoll.register(source, select.EPOLLIN)
        self._sources += sources

    def drop(self, source: int) -> None:
        """No more to read from; it stays open."""
        self._epoll.unregister(source)
        self._sources = tuple(fd for fd in self._sources if fd != source)

    def watch(self, writer: int) -> None:
        """Its death makes `fd` readable. Told by the kernel as an error, which needs no asking for."""
        try:
            self._epoll.register(writer, select.EPOLLONESHOT)
        except FileExistsError:
            pass

    def deaths(self) -> list[int]:
        """Those that died since the last look."""
        return [fd for fd, _ in self._epoll.poll(0) if fd not in self._sources]

    def close(self) -> None:
        self._epoll.close()


class InboxReadiness:
    """Of a temporary queue: its FIFO, and those of the processes whose death matters."""

    def __init__(self, inbox: Inbox, outlet: Callable[[str], Outlet | None]) -> None:
        self._inbox = inbox
        self._outlet = outlet
        self._poller = _Poller(*inbox.sources)
        self._watched: dict[int, Outlet] = {}
        self.fd = self._poller.fd

    def follow(self, inboxes: Mapping[str, Inbox], queues: Mapping[str, Entry]) -> None:
        """It is of the inbox that has come in the place of its own from now on."""
        inbox = inboxes.get(self._inbox.name)
        if inbox is not None:
            self._inbox = inbox
            self._poller.add(*inbox.sources)

    def arm(self) -> float | None:
        if self._watched:
            for writer in self._poller.deaths():
                self._watched.pop(writer, None)
        self._inbox.head[STATE] = IDLE
        return None if self._inbox._is_drained else 0.0

    def watch(self, queue: str) -> bool:
        outlet = self._outlet(queue)
        if outlet is None or outlet.is_dead():
            return False
        if self._watched.get(outlet.fifo) is not outlet:
            self._watched[outlet.fifo] = outlet  # held, so that the descriptor stays what it is
            self._poller.watch(outlet.fifo)
        return True

    def close(self) -> None:
        self._poller.close()
        self._watched.clear()


class QueueReadiness:
    """Of a shared queue: a bell that senders ring, and the owners of leases, whose death makes messages come again."""

    def __init__(self, entry: Entry) -> None:
        self._entry = self._next = entry  # with what is owned, so that the queue stays open
        self._queue = entry[0]
        self._bell = self._queue.bells.borrow()
        self._poller = _Poller(self._bell.fd)
        self.fd = self._poller.fd

    def follow(self, inboxes: Mapping[str, Inbox], queues: Mapping[str, Entry]) -> None:
        """It is of the queue that has come in the place of its own from the next `arm` on."""
        self._next = queues.get(self._queue.name, self._next)

    def _go_there(self) -> None:
        bell = self._next[0].bells.borrow()
        self._poller.drop(self._bell.fd)
        with suppress(ProviderError):  # who rings a bell that nobody hears does no harm
            self._queue.disarm(self._bell)
        self._poller.add(bell.fd)
        self._entry, self._queue, self._bell = self._next, self._next[0], bell

    def arm(self) -> float | None:
        try:
            return self._arm()
        except Removed:
            return 0.0  # the attempt to receive finds that out, too, and makes the directory again

    def _arm(self) -> float | None:
        if self._next is not self._entry:
            self._go_there()
        died = self._poller.deaths()
        self._bell.silence()
        armed = self._queue.arm(self._bell)
        if armed is None:
            return 0.0
        due, owners = armed
        writers = [self._queue.bells.writer(owner) for owner in owners]
        if died or None in writers:
            self._queue.bury(owners)
            return 0.0
        for writer in writers:
            self._poller.watch(writer)  # type: ignore[arg-type]
        return None if due == math.inf else max(0.0, due - time.monotonic())

    def watch(self, queue: str) -> bool:
        raise NotImplementedError("nobody waits for a death and for a shared queue at once")

    def close(self) -> None:
        self._poller.close()
        self._queue.disarm(self._bell)
