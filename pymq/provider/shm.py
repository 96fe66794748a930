"""The default provider: queues in shared memory, between the processes of one user on one Linux machine. Nothing to install.

The parts are in `_shm`: `inbox` and `outlet` are the temporary queues, `queue` the shared ones, `registry` the bindings. Here the
contract is put over them.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from time import monotonic
from typing import Any, cast

from pymq.exceptions import LeaseLost, ProviderError, QueueNotFound
from pymq.provider import dataclass_from_url
from pymq.provider.base import Delivery, Features, Provider, Readiness, Receipt
from pymq.topics import Turns, matcher

if sys.platform == "linux":  # elsewhere this file can be imported, and `open` says what to use instead
    from pymq.provider._shm.files import Directory, Owned, Removed, decode_name, encode_name, exists, raise_translated
    from pymq.provider._shm.frames import DELETED, DROPPED, INLINE_BYTES
    from pymq.provider._shm.inbox import Inbox
    from pymq.provider._shm.outlet import Outlet
    from pymq.provider._shm.queue import SharedQueue
    from pymq.provider._shm.readiness import Entry, InboxReadiness, QueueReadiness
    from pymq.provider._shm.registry import REMOVED, WORD, Left, Registry
    from pymq.provider._shm.sending import Sending
    from pymq.provider._shm.verbs import again, there, translating
else:

    class Sending(Provider):
        send: Any = None
        publish: Any = None

        def __init__(self, config: ShmConfig) -> None:
            self._config = config

    def translating(function: Any) -> Any:
        return function

    again = there = translating


def closed_in_wait() -> ProviderError:
    """What a receive gets that goes on when the provider is closed."""
    return ProviderError("the provider was closed while it was waited on")


logger: logging.Logger = logging.getLogger("pymq")

_FEW_OUTLETS = 16
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class ShmConfig:
    """Queues below `<home>/<namespace>`: processes with the same of both meet. `shm://namespace?option=number` as a URL.

    `home` is, if None, $PYMQ_HOME or /dev/shm/pymq-<uid>; only this user can enter it. An inbox holds `max_pending` bytes and a
    shared queue `max_queue_bytes` before senders wait: a publish for `publish_timeout` seconds. For `spin` seconds, 0.05 at most, a
    receiver yields the processor before it sleeps; if None, for 100 us, after it has itself sent a request or a reply, and while that
    pays.
    `max_pending` and `max_message_bytes` are at most a quarter of the file system.
    """

    namespace: str = "default"
    home: str | None = None
    max_pending: int = 32 << 20
    publish_timeout: float = 1.0
    spin: float | None = None
    max_message_bytes: int = 64 << 20
    max_queue_bytes: int = 256 << 20

    def create(self) -> ShmProvider:
        """A provider, not open yet."""
        return ShmProvider(self)

    @classmethod
    def from_url(cls, url: str) -> ShmConfig:
        """`shm://namespace?spin=0.0001&publish_timeout=2`. Raises ValueError for an option there is not."""
        return dataclass_from_url(cls, url)

    def base_directory(self) -> str:
        """The directory of all namespaces."""
        shm = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
        return self.home or os.environ.get("PYMQ_HOME") or f"{shm}/pymq-{os.geteuid()}"


class ShmProvider(Sending):
    """See `ShmConfig`; the promises are those of `Provider`."""

    features: Features = Features(priorities=10)

    def __init__(self, config: ShmConfig) -> None:
        super().__init__(config)
        self.spin: float | None = config.spin
        self._home = config.base_directory() if sys.platform == "linux" else ""
        self.path: str = self._home
        self._inboxes: dict[str, Inbox] = {}
        self._outlets: dict[str, Outlet] = {}
        self._most_outlets = self._most_queues = _FEW_OUTLETS
        self._queues: dict[str, Entry] = {}
        self._inside: list[None] = []
        self._wakes = 0
        self._turns = Turns()
        self._closed = False

    # Life

    @translating
    def open(self) -> None:
        if sys.platform != "linux":
            raise ProviderError(f"shm needs Linux, not {sys.platform}: use simple (in one process), redis or aws")
        self._registry = self._enter()
        self._words = self._registry.words
        self.path = self._registry.directory.path
        space = os.fstatvfs(self._registry.directory.fd)
        quarter = space.f_blocks * space.f_frsize // 4 or sys.maxsize  # a tmpfs without a limit has 0 blocks
        self.max_message_bytes: int = min(self._config.max_message_bytes, quarter)
        self._inline = min(INLINE_BYTES, self.max_message_bytes)
        self._max_pending = min(self._config.max_pending, quarter)

    def _enter(self) -> Registry:
        return Registry(self._home, self._config.namespace)

    @translating
    def close(self) -> None:
        if self._closed:
            return
        self._registry.bells.is_closing = True  # before the directory may be made again, with bells of its own
        try:
            if not self._look():  # what waits in queues whose files were removed must not go with this process
                self._take_over()
        except ProviderError as error:
            logger.warning("%s: what waits there in queues may be lost", error)
        self._closed = True
        self._next_look = 0.0  # who receives again learns of it
        self._end_waits()
        registry = self._registry
        try:
            with self._beginning, self._registry.lock:
                registry = self._registry
                self._delete_inboxes(list(self._inboxes))
        finally:  # whatever fails: this process is gone for the others, who sweep up what it leaves
            self._forget_routes()
            self._inboxes.clear()
            self._outlets.clear()
            self._queues.clear()
            self._let_go_of_formers()
            try:
                registry.leave(self._is_disposable)
            finally:
                self._registry = cast(Registry, Left())

    def _end_waits(self) -> None:
        deadline, rung = time.monotonic() + _CLOSE_SECONDS, [each.bells for each in (self._registry, *(it for it, _ in self._formers))]
        for bells in rung:
            bells.is_closing = True
        while (self._inside or any(bells.senders for bells in rung)) and time.monotonic() < deadline:
            self.wake()
            for bells in rung:
                bells.ring_own()
            time.sleep(0.0005)

    def _is_disposable(self, stem: str) -> bool:
        """Whether nobody misses that shared queue. One of another version, or damaged, stays."""
        try:
            queue, _owned = self._open_queue(decode_name(stem) or stem, Directory(stem, self._registry.queues), create=False)
            return queue.is_idle_and_empty()
        except QueueNotFound:
            return True
        except ProviderError:
            return False

    # Queues

    @there
    def declare(self, queue: str, *, temporary: bool = False) -> None:
        with self._locked():
            if temporary:
                self._declare_inbox(queue)
            else:
                self._declare_shared(queue)

    def _declare_inbox(self, name: str) -> None:
        if name in self._inboxes:
            return
        registry = self._registry
        if exists(encode_name(name), registry.queues):
            raise ProviderError(f"{name!r} is a shared queue already")
        if exists(f"{encode_name(name)}.fifo", registry.inboxes):
            registry.sweep()
        try:
            self._inboxes[name] = self._new_inbox(name)
        except FileExistsError:
            raise ProviderError(f"the temporary queue {name!r} is another process's") from None
        except OSError:
            registry.remove_inbox(encode_name(name))
            raise

    def _new_inbox(self, name: str) -> Inbox:
        return Inbox(name, self._registry.inboxes, self._registry.bells)

    def _declare_shared(self, name: str) -> None:
        with suppress(KeyError, QueueNotFound):
            entry = self._queues[name]
            entry[0].size()
            return
        if self._outlet(name) is not None:
            raise ProviderError(f"{name!r} is a temporary queue already")
        directory = Directory(encode_name(name), self._registry.queues)
        self._queues[name] = self._open_queue(name, directory, create=True)

    def _open_queue(self, name: str, directory: Directory, create: bool) -> Entry:
        registry = self._registry
        if len(self._queues) >= self._most_queues:
            self._forget_ended()
            self._most_queues = 2 * len(self._queues) + _FEW_OUTLETS
        try:
            queue = SharedQueue(name, directory, registry.bells, registry.member, self._config.max_queue_bytes, create)
        except BaseException:
            directory.close()
            raise
        return queue, Owned(queue.close)

    def _shared(self, name: str) -> Entry:
        """The shared queue, opened if need be, and what keeps it open: to be held while it is used."""
        found = self._queues.get(name)
        if found is None:
            try:
                directory = Directory(encode_name(name), self._registry.queues, create=False)
            except FileNotFoundError:  # asked beforehand, it might be deleted in between
                raise QueueNotFound(f"there is no queue {name!r}") from None
            found = self._queues[name] = self._open_queue(name, directory, create=False)
        return found

    def _outlet(self, name: str) -> Outlet | None:
        """The way into a temporary queue; None where there is none, or its process is dead."""
        outlet = self._outlets.get(name)
        if outlet is not None:
            if not outlet.head[DELETED]:
                return outlet
            self._outlets.pop(name, None)  # there may be another of that name
        if not exists(f"{encode_name(name)}.fifo", self._registry.inboxes):
            return None
        with suppress(QueueNotFound):
            outlet = self._outlets[name] = self._open_outlet(name)
        return None if outlet is None or outlet.head[DELETED] else outlet

    def _open_outlet(self, name: str) -> Outlet:
        if len(self._outlets) >= self._most_outlets:
            self._forget_ended()
            self._most_outlets = 2 * len(self._outlets) + _FEW_OUTLETS
        registry = self._registry
        where = name, registry.inboxes, registry.bells, registry.member
        own, direct = self._inboxes.get(name), min(INLINE_BYTES, self.max_message_bytes)
        make = partial(self._outlet_class(name), *where, max_pending=self._max_pending, own=own, direct=direct)
        try:
            return make()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._outlets = {}
            self._forget_routes()
            return make()

    def _forget_ended(self) -> None:
        """Let go of the ways to those that have ended: callers come and go, and each way is two descriptors and a mapping or more."""
        for name, outlet in list(self._outlets.items()):
            if outlet.is_gone():
                self._outlets.pop(name, None)
        for name, (queue, _) in list(self._queues.items()):
            if queue.is_deleted():
                self._queues.pop(name, None)

    def _outlet_class(self, name: str) -> type[Outlet]:
        return Outlet

    @there
    def delete(self, queue: str) -> None:
        with self._locked() as registry:
            if queue in self._inboxes or self._outlet(queue) is not None:
                self._delete_inboxes([queue])
            with suppress(QueueNotFound):
                entry = self._shared(queue)
                entry[0].mark_deleted()
            self._queues.pop(queue, None)
            registry.remove_queue(encode_name(queue))
            registry.sweep()

    def _delete_inboxes(self, names: list[str]) -> None:
        for name in names:
            target = self._inboxes.pop(name, None) or self._outlet(name)
            if target is not None:
                target.delete()
            self._outlets.pop(name, None)
            self._registry.remove_inbox(encode_name(name))

    @again
    def _bury(self) -> None:
        """A process has died: remove what it left."""
        self._forget_ended()
        with self._locked() as registry:
            registry.sweep()

    @there
    def size(self, queue: str) -> int:
        if queue in self._inboxes:
            return self._inboxes[queue].size()
        with suppress(QueueNotFound):
            entry = self._shared(queue)
            return entry[0].size()
        return 0

    def counters(self) -> dict[str, dict[str, int]]:
        found = {name: {"dropped": inbox.head[DROPPED], "corrupt": inbox.corrupted} for name, inbox in list(self._inboxes.items())}
        for name, (shared, _) in list(self._queues.items()):
            with suppress(QueueNotFound):
                found[name] = shared.counters()
        if self._registry.corrupted:
            found["bindings"] = {"corrupt": self._registry.corrupted}
        return found

    # Bindings

    @there
    def bind(self, queue: str, pattern: str, *, exact: bool) -> None:
        if not exact:
            matcher(pattern)  # raises ValueError here, not in every publisher
        with self._locked() as registry:
            if queue not in self._inboxes and self._outlet(queue) is None:
                self._shared(queue)
            registry.record([("bind", queue, pattern, exact)])

    @there
    def unbind(self, queue: str, pattern: str, *, exact: bool) -> None:
        with self._locked() as registry:
            registry.record([("unbind", queue, pattern, exact)])

    @there
    def queues(self, prefix: str) -> Sequence[str]:
        stems = self._registry.queues.names()
        bound = {name for name in self._registry.bound_queues() if encode_name(name) in stems}
        names = bound | {name for name in map(decode_name, stems) if name is not None}
        return sorted(name for name in names if name.startswith(prefix))

    @there
    def consumers(self, topic: str) -> Sequence[str]:
        generation, names = self._bound.get(topic, (0, []))
        if self._words[WORD] != generation:
            generation, names = self._bound[topic] = self._registry.bound(topic)
        found = []
        for outlet in filter(None, map(self._outlet, names)):
            if outlet.is_dead():
                self._bury()
            else:
                found.append(outlet)
        if len(found) > 1:
            first = next(self._turns[topic]) % len(found)
            found = sorted(found[first:] + found[:first], key=methodcaller("backlog"))
        return [outlet.name for outlet in found]

    # Receiving

    def receive(
        self,
        queue: str,
        timeout: float | None = 0,
        *,
        limit: int = 1,
        lease: float | None = 30.0,
        watch: Sequence[str] = (),
        busy: bool = False,
    ) -> list[Delivery]:
        if monotonic() >= self._next_look:
            if self._closed:
                raise closed_in_wait()
            self._look()
        seen = self._words
        try:
            inbox, spin = self._inboxes.get(queue), None
            if inbox is not None:
                spin = self.spin if watch or self._has_sent else self.spin or 0.0
                self._has_sent = False
                self._inside.append(None)
                try:
                    found = inbox.look(timeout, spin, busy)
                finally:
                    self._inside.pop()
                if found:  # nothing else was looked at yet: 1 us less
                    return found
            elif timeout == 0 and not watch:
                shared = self._queues.get(queue)
                if shared is not None and not self._closed and self._words[WORD] != REMOVED:
                    return shared[0].receive(0, limit, lease)  # it does not wait, so nobody waits for its end
            return self._wait(queue, inbox, timeout, limit, lease, watch, spin, busy)
        except QueueNotFound:
            self._queues.pop(queue, None)
            if self._closed:  # so it was deleted for that
                raise closed_in_wait() from None
            raise
        except Removed:
            self._begin_anew(seen)
            return self.receive(queue, timeout, limit=limit, lease=lease, watch=watch, busy=busy)
        except OSError as error:
            raise_translated(error, self.path)

    def _wait(
        self,
        queue: str,
        inbox: Inbox | None,
        timeout: float | None,
        limit: int,
        lease: float | None,
        watch: Sequence[str],
        spin: float | None,
        busy: bool,
    ) -> list[Delivery]:
        if self._words[WORD] == REMOVED:
            raise Removed
        watched = [*map(self._outlet, dict.fromkeys(watch))]
        if None in watched:
            timeout = 0
        alive = [outlet for outlet in watched if outlet is not None]
        fds = [outlet.fifo for outlet in alive]
        found: list[Delivery] = []
        self._inside.append(None)
        try:
            if inbox is None:
                found = self._receive_shared(queue, timeout, limit, lease, fds)
            elif timeout != 0:
                found = inbox.wait(timeout, spin, fds, busy, not (self._outlets or self._queues))
        finally:
            self._inside.pop()
        if not found and any(outlet.is_dead() for outlet in alive):
            self._bury()
        return found

    def _receive_shared(self, name: str, timeout: float | None, limit: int, lease: float | None, fds: list[int]) -> list[Delivery]:
        if self._closed:
            raise closed_in_wait()
        entry = self._shared(name)
        return entry[0].receive(timeout, limit, lease, fds, partial(self._is_stopped, self._wakes))

    def _is_stopped(self, wakes: int) -> bool:
        """Whether a receive that began after so many wakes has to end."""
        return self._wakes != wakes or self._closed or self._words[WORD] == REMOVED

    def wake(self) -> None:
        self._wakes += 1
        for inbox in list(self._inboxes.values()):
            inbox.wake()
        with suppress(ProviderError):  # closed: nobody waits any more
            self._registry.bells.ring_own()

    @there
    def readiness(self, queue: str) -> Readiness:
        with self._beginning:  # else it would be missed by another thread that makes the directory again
            inbox = self._inboxes.get(queue)
            readiness = InboxReadiness(inbox, self._outlet) if inbox else QueueReadiness(self._shared(queue))
            self._readinesses.add(readiness)
        return readiness

    # Settling

    def ack(self, receipt: Receipt) -> None:
        self._settle(SharedQueue.ack, receipt)

    def ack_and_receive(self, receipt: Receipt, *, lease: float = 30.0) -> list[Delivery]:
        entry = self._queues.get(receipt.queue)
        if entry is not None and not self._closed and self._words[WORD] != REMOVED and monotonic() < self._next_look:
            try:
                return entry[0].ack_and_receive(receipt, lease)  # type: ignore[arg-type]
            except (LeaseLost, QueueNotFound):
                pass  # nothing was changed: `ack` knows what that means
            except OSError as error:
                raise_translated(error, self.path)
        self.ack(receipt)
        return []

    def nack(self, receipt: Receipt, delay: float = 0) -> None:
        self._settle(SharedQueue.nack, receipt, delay)

    def extend(self, receipt: Receipt, seconds: float) -> None:
        self._settle(SharedQueue.extend, receipt, seconds)

    def _settle(self, verb: Callable[..., None], receipt: Receipt, *arguments: float) -> None:
        entry = self._queues.get(receipt.queue)
        try:
            if entry is None:
                raise QueueNotFound(f"there is no queue {receipt.queue!r}")
            verb(entry[0], receipt, *arguments)
        except LeaseLost:
            if not self._settle_in_formers(verb, receipt, *arguments):
                raise
        except QueueNotFound as error:
            raise LeaseLost(f"queue {receipt.queue!r} was deleted, and the lease with it") from error
        except OSError as error:
            raise_translated(error, self.path)
