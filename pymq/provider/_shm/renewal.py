"""What the shm provider does where somebody removes its directory, or a part of it, while it is in use, as systemd does at a logout.

Those who are in it reach each other as before: the files have lost their names only. Nobody else reaches them. So who notices (no
name is left for the lock's file) stores REMOVED in the page that all of them have mapped, makes the directory again, or meets those
there who have, declares there what it has, binds what it knows of, moves what waits in shared queues, and wakes those it can reach.

It is looked for where that costs little: by every verb that is no message, by a publish that reaches nobody, ten times a second at
most by who receives, and thoroughly, down to single files, by `health`. A process that only sleeps, and that nobody wakes, notices
nothing: no file can tell it without a thread or a timer.
"""

from __future__ import annotations

import os
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging import getLogger
from typing import TYPE_CHECKING

from pymq.exceptions import LeaseLost, ProviderError
from pymq.provider._shm.files import Directory, Mutex, Removed, closed, encode_name
from pymq.provider._shm.frames import WAKE_FRAME
from pymq.provider._shm.verbs import translating
from pymq.provider.base import Health, Provider, Receipt

if TYPE_CHECKING:
    from pymq.provider._shm.inbox import Inbox
    from pymq.provider._shm.outlet import Outlet
    from pymq.provider._shm.readiness import Entry, InboxReadiness, QueueReadiness
    from pymq.provider._shm.registry import Registry

_LOOK_SECONDS = 0.1
"""How often who receives looks: it costs 0.7 us."""

logger = getLogger("pymq")


class Renewable(Provider):
    """A provider in a directory that it makes again when it is removed."""

    path: str
    _registry: Registry
    _words: memoryview
    _inboxes: dict[str, Inbox]
    _outlets: dict[str, Outlet]
    _queues: dict[str, Entry]
    _wakes: int
    _closed: bool

    def __init__(self) -> None:
        self._gaps = 0
        self._next_look = 0.0
        self._beginning = Mutex()
        self._formers: list[tuple[Registry, dict[str, Entry]]] = []
        self._readinesses: weakref.WeakSet[InboxReadiness | QueueReadiness] = weakref.WeakSet()

    @abstractmethod
    def _enter(self) -> Registry: ...

    @abstractmethod
    def _new_inbox(self, name: str) -> Inbox: ...

    @abstractmethod
    def _open_queue(self, name: str, directory: Directory, create: bool) -> Entry: ...

    @abstractmethod
    def _forget_routes(self) -> None: ...

    def health(self) -> Health:
        if not self._closed and not self._look(thoroughly=True):
            self._take_over()
        return Health("connected", self._made, self._gaps)

    @translating
    def _look(self, thoroughly: bool = False) -> bool:
        """Whether the directory had been removed; then it was made again."""
        if self._registry.words is not self._words:
            with self._beginning:  # another thread is about to
                pass
        seen = self._words
        try:
            self._registry.look(thoroughly)
            if thoroughly:
                for inbox in list(self._inboxes.values()):
                    inbox.look_at_files()
                for queue, _ in list(self._queues.values()):
                    queue.look_at_files()
        except Removed:
            self._begin_anew(seen)
            return True
        self._next_look = time.monotonic() + _LOOK_SECONDS
        return False

    @contextmanager
    def _locked(self) -> Iterator[Registry]:
        """With the registry's lock held, and no thread of this process puts another in its place meanwhile."""
        with self._beginning, self._registry.lock:
            if self._closed:  # nobody would delete what is declared now
                raise closed()
            yield self._registry

    @translating
    def _begin_anew(self, seen: memoryview) -> None:
        """Make the directory again, or meet those there who have, with all that this process has and knows of.

        `seen` are the words from before the look at what was found removed: another thread may have done all this since.
        """
        with self._beginning:
            if self._closed:
                raise closed()
            if self._words is not seen:
                return  # another thread has
            removed = self._registry
            removed.removed()
            self._registry = self._enter()
            try:
                inboxes, queues = self._declare_again(removed)
            except BaseException:
                unfinished, self._registry = self._registry, removed
                with suppress(OSError, ProviderError):  # for the same reason; what it leaves is swept up by the next
                    unfinished.leave(lambda stem: False)
                raise
            logger.warning("%s was removed while it was in use, and is made again: what was on its way may be lost", self.path)
            self._gaps += 1
            self._move(removed, inboxes, queues)
        for name, left in self._take_over().items():
            logger.warning("queue %r of the removed %s: %d messages were leased, and %d not due yet", name, self.path, *left)

    def _declare_again(self, removed: Registry) -> tuple[dict[str, Inbox], dict[str, Entry]]:
        registry = self._registry
        inboxes: dict[str, Inbox] = {}
        queues: dict[str, Entry] = {}
        with registry.lock:
            for name in self._inboxes:
                registry.remove_inbox(encode_name(name))
                inboxes[name] = self._new_inbox(name)
            for name, (queue, _) in self._queues.items():
                if not queue.is_deleted():
                    queues[name] = self._open_queue(name, Directory(encode_name(name), registry.queues), create=True)
            known = {*map(encode_name, inboxes), *registry.queues.names()}
            registry.record([("bind", *fact) for fact in removed.bindings.of() if encode_name(fact[0]) in known])
        return inboxes, queues

    def _move(self, removed: Registry, inboxes: dict[str, Inbox], queues: dict[str, Entry]) -> None:
        """From the old files to the new ones, with what came to the old; the mapped words last, at which other threads look."""
        for readiness in list(self._readinesses):
            readiness.follow(inboxes, queues)
        for name, inbox in inboxes.items():
            inbox.follow(self._inboxes[name])
        outlets = list(self._outlets.values())
        self._formers.append((removed, self._queues))
        self._inboxes, self._queues, self._outlets = inboxes, queues, {}
        try:
            self._take_over()
        finally:
            self._forget_routes()
            self._words = self._registry.words
        self._wakes += 1
        removed.bells.ring_own()
        for outlet in outlets:
            with suppress(OSError):
                os.write(outlet.fifo, WAKE_FRAME)

    def _take_over(self) -> dict[str, tuple[int, int]]:
        """Move what waits in the old queues, also what others have put there meanwhile; what is left there.

        What cannot be moved now, for want of a descriptor or because a stopped process holds the lock, is the next call's.
        """
        found = {}
        for _, queues in list(self._formers):
            for name, (former, _) in list(queues.items()):
                try:
                    if name in self._queues and (left := self._queues[name][0].take_over(former)):
                        found[name] = left
                except OSError as error:
                    logger.warning("what waits in queue %r of the removed %s stays there for now: %s", name, self.path, error)
        return found

    def _settle_in_formers(self, verb: Callable[..., None], receipt: Receipt, *arguments: float) -> bool:
        """Whether it was of a queue whose files were removed meanwhile. What is given back there is moved."""
        for _, queues in self._formers:
            with suppress(KeyError, LeaseLost):
                former = queues[receipt.queue][0]
                verb(former, receipt, *arguments)
                self._queues[receipt.queue][0].take_over(former)
                return True
        return False

    def _let_go_of_formers(self) -> None:
        for former, queues in self._formers:
            queues.clear()
            former.let_go()
        self._formers.clear()
