"""The default provider: queues in shared memory, between the processes of one user on one Linux machine. Nothing to install.

The parts are in `_shm`: `inbox` and `outlet` are the temporary queues, `queue` the shared ones, `registry` the bindings. Here the
contract is put over them.
"""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import math
import os
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import methodcaller
from os import write
from queue import Full
from typing import Any, TypeAlias

from pymq.exceptions import LeaseLost, MessageTooLarge, ProviderError, PublishFull, QueueNotFound
from pymq.provider import dataclass_from_url
from pymq.provider.base import LATER, Delivery, Features, Provider, Readiness, Receipt, WouldWait
from pymq.topics import matcher

if sys.platform == "linux":  # elsewhere this file can be imported, and `open` says what to use instead
    from pymq.provider._shm.files import Directory, Owned, Removed, decode_name, encode_name, translated
    from pymq.provider._shm.frames import BEHIND, DATA, DELETED, DROPPED, INLINE_BYTES, LOGGED, checksum, frames_of, pack_header
    from pymq.provider._shm.inbox import Inbox
    from pymq.provider._shm.outlet import Outlet
    from pymq.provider._shm.queue import SharedQueue
    from pymq.provider._shm.readiness import InboxReadiness, QueueReadiness
    from pymq.provider._shm.registry import REMOVED, WORD, Registry
    from pymq.provider._shm.renewal import Renewable, there, translating
else:
    Renewable = Provider

    def translating(function: Any) -> Any:
        return function

    there = translating

logger: logging.Logger = logging.getLogger("pymq")

Route: TypeAlias = "tuple[list[Outlet], list[str]]"
"""Where a message to some topics goes: inboxes, and the names of shared queues."""

_MOST_ROUTES = 4096
_FEW_OUTLETS = 16
_CLOSE_SECONDS = 2.0


class Shortcut:
    """The one inbox that gets whatever is published to some topics, and the generation of the registry in which it does."""

    __slots__ = ("__weakref__", "way")

    def __init__(self, words: memoryview) -> None:
        self.way: tuple[memoryview, int, Outlet | None] = (words, 0, None)

    def end(self) -> None:
        """It is not known any more."""
        self.way = (self.way[0], 0, None)


@dataclass(frozen=True)
class ShmConfig:
    """Queues below `<home>/<namespace>`: processes with the same of both meet. `shm://namespace?option=number` as a URL.

    `home` is, if None, $PYMQ_HOME or /dev/shm/pymq-<uid>; only this user can enter it. An inbox holds `max_pending` bytes and a
    shared queue `max_queue_bytes` before senders wait: a publish for `publish_timeout` seconds. For `spin` seconds a receiver
    yields the processor before it sleeps; if None, for 100 us, after it has itself sent a request or a reply, and while that pays.
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


class ShmProvider(Renewable):
    """See `ShmConfig`; the promises are those of `Provider`."""

    features: Features = Features(priorities=10)

    def __init__(self, config: ShmConfig) -> None:
        super().__init__()
        self._config = config
        self._home = config.base_directory() if sys.platform == "linux" else ""
        self.path: str = self._home
        self._inboxes: dict[str, Inbox] = {}
        self._outlets: dict[str, Outlet] = {}
        self._most_outlets = _FEW_OUTLETS
        self._queues: dict[str, tuple[SharedQueue, Owned]] = {}
        self._table: tuple[int, dict[Sequence[str], Route]] = (0, {})
        self._shortcuts: weakref.WeakSet[Shortcut] = weakref.WeakSet()
        self._inside: list[None] = []
        self._has_sent = False
        self._wakes = 0
        self._turn = itertools.count()
        self._bound: dict[str, tuple[int, list[str]]] = {}
        self._next_warning = 0.0
        self._unreported = 0
        self._closed = False

    # Life

    @translating
    def open(self) -> None:
        if sys.platform != "linux":
            raise ProviderError(f"shm needs Linux, not {sys.platform}: use simple (in one process), redis or aws")
        self._registry = self._enter()
        self._inline = INLINE_BYTES
        self._words = self._registry.words
        self.path = self._registry.directory.path
        space = os.fstatvfs(self._registry.directory.fd)
        quarter = space.f_blocks * space.f_frsize // 4 or sys.maxsize  # a tmpfs without a limit has 0 blocks
        self.max_message_bytes: int = min(self._config.max_message_bytes, quarter)
        self._max_pending = min(self._config.max_pending, quarter)

    def _enter(self) -> Registry:
        return Registry(self._home, self._config.namespace)

    @translating
    def close(self) -> None:
        if self._closed:
            return
        try:
            self._look()  # what waits in queues whose files were removed must not go with this process
        except (ProviderError, OSError) as error:
            logger.warning("%s: what waits there in queues may be lost", error)
        self._closed = True
        self._end_receives()
        registry = self._registry
        try:
            with registry.lock:
                self._delete_inboxes(list(self._inboxes))
        finally:  # whatever fails: this process is gone for the others, who sweep up what it leaves
            self._forget_routes()
            self._inboxes.clear()
            self._outlets.clear()
            self._queues.clear()
            self._let_go_of_formers()
            registry.leave(self._is_disposable)

    def _end_receives(self) -> None:
        deadline = time.monotonic() + _CLOSE_SECONDS
        while self._inside and time.monotonic() < deadline:
            self.wake()
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
        with self._registry.lock:
            if temporary:
                self._declare_inbox(queue)
            else:
                self._declare_shared(queue)

    def _declare_inbox(self, name: str) -> None:
        if name in self._inboxes:
            return
        registry = self._registry
        if _exists(encode_name(name), registry.queues):
            raise ProviderError(f"{name!r} is a shared queue already")
        if _exists(f"{encode_name(name)}.fifo", registry.inboxes):
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
            self._queues[name][0].size()
            return
        if self._outlet(name) is not None:
            raise ProviderError(f"{name!r} is a temporary queue already")
        directory = Directory(encode_name(name), self._registry.queues)
        self._queues[name] = self._open_queue(name, directory, create=True)

    def _open_queue(self, name: str, directory: Directory, create: bool) -> tuple[SharedQueue, Owned]:
        registry = self._registry
        try:
            queue = SharedQueue(name, directory, registry.bells, registry.member, self._config.max_queue_bytes, create)
        except BaseException:
            directory.close()
            raise
        return queue, Owned(queue.close, directory.close)

    def _shared(self, name: str) -> tuple[SharedQueue, Owned]:
        """The shared queue, opened if need be, and what keeps it open: to be held while it is used."""
        found = self._queues.get(name)
        if found is None:
            if not _exists(encode_name(name), self._registry.queues):
                raise QueueNotFound(f"there is no queue {name!r}")
            directory = Directory(encode_name(name), self._registry.queues)
            found = self._queues[name] = self._open_queue(name, directory, create=False)
        return found

    def _outlet(self, name: str) -> Outlet | None:
        """The way into a temporary queue; None where there is none, or its process is dead."""
        outlet = self._outlets.get(name)
        if outlet is not None and outlet.head[DELETED]:  # there may be another of that name
            self._outlets.pop(name, None)
            outlet = None
        if outlet is None and _exists(f"{encode_name(name)}.fifo", self._registry.inboxes):
            with suppress(QueueNotFound):
                outlet = self._outlets[name] = self._open_outlet(name)
        return None if outlet is None or outlet.head[DELETED] else outlet

    def _open_outlet(self, name: str) -> Outlet:
        if len(self._outlets) >= self._most_outlets:
            self._forget_ended()
            self._most_outlets = 2 * len(self._outlets) + _FEW_OUTLETS
        registry = self._registry
        kind = self._outlet_class(name)
        make = functools.partial(kind, name, registry.inboxes, registry.bells, registry.member, max_pending=self._max_pending)
        try:
            return make(own=self._inboxes.get(name))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._outlets = {}
            self._forget_routes()
            return make(own=self._inboxes.get(name))

    def _forget_ended(self) -> None:
        """Let go of the ways to those that have ended: callers come and go, and each way is two descriptors and a mapping."""
        for name, outlet in list(self._outlets.items()):
            if outlet.is_gone():
                self._outlets.pop(name, None)

    def _outlet_class(self, name: str) -> type[Outlet]:
        return Outlet

    @there
    def delete(self, queue: str) -> None:
        registry = self._registry
        with registry.lock:
            if queue in self._inboxes or self._outlet(queue) is not None:
                self._delete_inboxes([queue])
            with suppress(QueueNotFound):
                self._shared(queue)[0].mark_deleted()
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

    def _bury(self, outlet: Outlet) -> None:
        """Its process has died: remove what it left."""
        self._forget_ended()
        try:
            with self._registry.lock:
                self._registry.sweep()
        except Removed:
            self._begin_anew()

    @there
    def size(self, queue: str) -> int:
        if queue in self._inboxes:
            return self._inboxes[queue].size()
        with suppress(QueueNotFound):
            return self._shared(queue)[0].size()
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
        with self._registry.lock:
            if queue not in self._inboxes and self._outlet(queue) is None:
                self._shared(queue)
            self._registry.record([("bind", queue, pattern, exact)])

    @there
    def unbind(self, queue: str, pattern: str, *, exact: bool) -> None:
        with self._registry.lock:
            self._registry.record([("unbind", queue, pattern, exact)])

    @there
    def queues(self, prefix: str) -> Sequence[str]:
        stems = self._registry.queues.names()
        bound = {name for name in self._registry.bound_queues() if encode_name(name) in stems}
        names = bound | {name for name in map(decode_name, stems) if name is not None}
        return sorted(name for name in names if name.startswith(prefix))

    @translating
    def consumers(self, topic: str) -> Sequence[str]:
        generation, names = self._bound.get(topic, (0, []))
        if self._words[WORD] != generation:
            generation, names = self._bound[topic] = self._registry.bound(topic)
        found = []
        for outlet in filter(None, map(self._outlet, names)):
            if outlet.is_dead():
                self._bury(outlet)
            else:
                found.append(outlet)
        if not found and self._look():
            return self.consumers(topic)
        if len(found) > 1:
            first = next(self._turn) % len(found)
            found = sorted(found[first:] + found[:first], key=methodcaller("backlog"))
        return [outlet.name for outlet in found]

    # Sending

    def send(
        self,
        queue: str,
        message: bytes,
        *,
        timeout: float | None = None,
        maxsize: int = 0,
        delay: float = 0,
        ttl: float | None = None,
        priority: int = 0,
    ) -> None:
        size = len(message)
        known = self._outlets.get(queue)
        if known is not None and size <= known.direct and not known.head[LOGGED] and not known.head[DELETED]:
            self._has_sent = True
            try:
                write(known.fifo, pack_header(DATA, size, checksum(message)) + message)
                return
            except OSError:
                pass  # full or dead: what follows finds out
        if size > self.max_message_bytes:
            raise self._too_large(message)
        try:
            shared = self._queues.get(queue)
            if shared is not None and not delay:
                try:
                    shared[0].send(message, timeout=timeout, maxsize=maxsize, ttl=ttl, priority=priority)
                    return
                except QueueNotFound:
                    self._queues.pop(queue, None)  # deleted; there may be a new one of that name
            outlet = None if queue in self._queues else self._outlet(queue)
            if outlet is not None:
                self._send_to_inbox(outlet, message, timeout)
            else:
                self._send_to_shared(queue, message, timeout=timeout, maxsize=maxsize, delay=delay, ttl=ttl, priority=priority)
        except Removed:
            self._begin_anew()
            self.send(queue, message, timeout=timeout, maxsize=maxsize, delay=delay, ttl=ttl, priority=priority)
        except OSError as error:
            raise translated(error, self.path) from error

    def request(self, topic: str, message: bytes, reply_to: str) -> str | None:
        generation, names = self._bound.get(topic, (0, []))
        if len(names) == 1 and self._words[WORD] == generation:
            try:
                self.send(names[0], message, timeout=0)
                return names[0]
            except (QueueNotFound, Full):
                pass  # what follows finds out
        return super().request(topic, message, reply_to)

    def _send_to_inbox(self, outlet: Outlet, message: bytes, timeout: float | None) -> None:
        accepted, full = self._offer([outlet], lambda outlet: outlet.send(message))
        if full:
            accepted, full = self._wait_for_room(full, message, math.inf if timeout is None else timeout)
        if full:
            raise Full(f"the temporary queue {outlet.name!r} is full")
        if not accepted:
            raise QueueNotFound(f"the process of the temporary queue {outlet.name!r} is dead")

    def _send_to_shared(self, name: str, message: bytes, *, delay: float, **how: Any) -> None:
        if not 0 <= delay <= self.features.max_delay:
            raise ValueError(f"delay={delay}: between 0 and {self.features.max_delay:.0f} seconds are possible")
        entry = self._shared(name)
        try:
            entry[0].send(message, delay=delay, **how)
        except QueueNotFound:  # deleted; there may be a new one of that name
            self._queues.pop(name, None)
            entry = self._shared(name)
            entry[0].send(message, delay=delay, **how)

    def _offer(self, outlets: list[Outlet], deliver: Callable[[Outlet], bool]) -> tuple[int, list[Outlet]]:
        """How many accepted it, and the full ones. What fails is raised when all have had their turn."""
        accepted, full, failure = 0, [], None
        for outlet in outlets:
            try:
                if deliver(outlet):
                    accepted += 1
                else:
                    full.append(outlet)
            except BrokenPipeError:
                self._bury(outlet)
            except (OSError, ProviderError) as error:
                failure = error
        if failure is not None:
            raise failure
        return accepted, full

    def _wait_for_room(self, full: list[Outlet], message: bytes, seconds: float) -> tuple[int, list[Outlet]]:
        """As `_offer`, until the time is over."""
        deadline = time.monotonic() + seconds
        parts = frames_of(message)
        bell = self._registry.bells.borrow()
        total = 0
        try:
            while full:
                accepted, full = self._offer(full, lambda outlet: outlet.offer(parts, bell.number))
                total += accepted
                left = deadline - time.monotonic()
                if not full or left <= 0:
                    break
                bell.sleep(None if left == math.inf else left, tuple(outlet.fifo for outlet in full))
                bell.silence()
        finally:
            for outlet in full:
                outlet.forget(bell.number)
            self._registry.bells.give_back(bell)
        return total, full

    def publish(
        self,
        topics: Sequence[str],
        message: bytes,
        *,
        timeout: float | None = None,
        delay: float = 0,
        ttl: float | None = None,
    ) -> int:
        generation, routes = self._table
        if self._words[WORD] != generation:
            generation, routes = self._renewed()
        try:
            outlets, groups = routes[topics]
        except (KeyError, TypeError):
            outlets, groups = self._route(tuple(topics), generation, routes)
        size = len(message)
        accepted = 0
        late: list[Outlet] = []
        if size > self._inline:
            accepted, late = self._publish_past_logs(message, outlets)
        elif outlets:
            framed = pack_header(DATA, size, checksum(message)) + message
            for outlet in outlets:
                if outlet.head[LOGGED]:
                    late.append(outlet)
                    continue
                try:
                    write(outlet.fifo, framed)
                    accepted += 1
                except OSError:
                    late.append(outlet)
        if late or groups:
            try:
                if not (late or delay):
                    left = [name for name in groups if not self._send_at_once(name, message, ttl)]
                    accepted += len(groups) - len(left)
                    if not left:
                        return accepted
                    groups = left
                return self._publish_late(message, accepted, late, groups, timeout, delay=delay, ttl=ttl)
            except OSError as error:
                raise translated(error, self.path) from error
        if not accepted and self._look():
            return self.publish(topics, message, timeout=timeout, delay=delay, ttl=ttl)
        return accepted

    def _publish_past_logs(self, message: bytes, outlets: list[Outlet]) -> tuple[int, list[Outlet]]:
        """How many accepted it, and those that did not, for whatever reason."""
        if len(message) > self.max_message_bytes:
            raise self._too_large(message)
        accepted, late = 0, []
        deliver = methodcaller("send" if len(outlets) == 1 else "send_past_log", message)  # a log's lock may have to be waited for
        for outlet in outlets:
            try:
                if deliver(outlet):
                    accepted += 1
                    continue
            except OSError:
                pass
            late.append(outlet)
        return accepted, late

    def _publish_late(
        self,
        message: bytes,
        accepted: int,
        late: list[Outlet],
        groups: list[str],
        timeout: float | None,
        **how: Any,
    ) -> int:
        """To the inboxes that the fast path did not serve, then to the shared queues, then once more to those that were full."""
        deadline = time.monotonic() + (self._config.publish_timeout if timeout in (None, LATER) else timeout)
        reached, full = self._offer(late, lambda outlet: outlet.send(message))
        accepted += reached
        if not (full or groups):
            return accepted
        reached, full_groups = self._publish_to_shared(groups, message, deadline=0, **how)
        accepted += reached
        waited_for = [outlet for outlet in full if not outlet.head[BEHIND]]
        for outlet in full:
            if outlet not in waited_for:
                self._drop(outlet)
        finish = functools.partial(self._publish_last, message, accepted, waited_for, full_groups, deadline, **how)
        if timeout == LATER and (waited_for or full_groups):
            raise WouldWait(finish)
        return finish()

    def _publish_last(
        self, message: bytes, accepted: int, full: list[Outlet], full_groups: list[str], deadline: float, **how: Any
    ) -> int:
        if full:
            reached, full = self._wait_for_room(full, message, deadline - time.monotonic())
            accepted += reached
        for outlet in full:
            self._drop(outlet)
        reached, full_groups = self._publish_to_shared(full_groups, message, deadline=deadline, **how)
        if full_groups:
            raise PublishFull(accepted + reached, full_groups)
        return accepted + reached

    def _send_at_once(self, name: str, message: bytes, ttl: float | None) -> bool:
        """To a shared queue that is open and has room: what is nearly always the case. Else, `_publish_late` finds out."""
        try:
            self._queues[name][0].send(message, timeout=0, ttl=ttl)
        except (KeyError, Full, QueueNotFound):
            return False
        except Removed:
            self._begin_anew()
            return False
        return True

    def _publish_to_shared(
        self, groups: list[str], message: bytes, *, deadline: float, delay: float, ttl: float | None
    ) -> tuple[int, list[str]]:
        """How many accepted it, and the full ones."""
        accepted, full = 0, []
        for name in groups:
            try:
                self._send_to_shared(name, message, timeout=max(0, deadline - time.monotonic()), delay=delay, ttl=ttl)
                accepted += 1
            except Full:
                full.append(name)
            except QueueNotFound:
                pass  # deleted in between: its bindings are going, too
        return accepted, full

    def publisher(self, topics: Sequence[str]) -> Callable[[bytes], int]:
        topics, inline, everywhere = tuple(topics), self._inline, self.publish
        shortcut = Shortcut(self._words)
        self._shortcuts.add(shortcut)

        def publish(message: bytes) -> int:
            """The hot path to one receiver: 0.4 us less than the way through the table."""
            size = len(message)
            words, generation, inbox = shortcut.way
            if words[WORD] != generation:
                accepted = everywhere(topics, message)
                self._shorten(topics, shortcut)
                return accepted
            if inbox is not None and size <= inline and not inbox.head[LOGGED]:
                try:
                    write(inbox.fifo, pack_header(DATA, size, checksum(message)) + message)
                    return 1
                except OSError:
                    pass  # full or dead: what follows finds out
            return everywhere(topics, message)

        return publish

    def _shorten(self, topics: Sequence[str], shortcut: Shortcut) -> None:
        words = self._words  # before the table, which never is of an older registry then
        generation, routes = self._table
        if topics in routes:
            outlets, groups = routes[topics]
            shortcut.way = words, generation, outlets[0] if len(outlets) == 1 and not groups else None

    def _renewed(self) -> tuple[int, dict[Sequence[str], Route]]:
        self._forget_routes(self._words[WORD])
        return self._table

    def _forget_routes(self, generation: int = 0) -> None:
        """What is not used any more can be closed then."""
        self._table, self._bound = (generation, {}), {}
        for shortcut in list(self._shortcuts):
            shortcut.end()

    @there
    def _route(self, topics: Sequence[str], generation: int, routes: dict[Sequence[str], Route]) -> Route:
        """Who gets what is published to these topics; remembered for as long as nobody binds or unbinds."""
        known_at, names = self._registry.matching(topics)
        found = [(name, self._outlet(name)) for name in names]
        groups = [name for name, outlet in found if outlet is None and _exists(encode_name(name), self._registry.queues)]
        route = [outlet for _, outlet in found if outlet is not None], groups
        if len(route[0]) + len(groups) < len(names):
            with self._registry.lock:
                self._registry.sweep()
        if known_at == generation:
            if len(routes) >= _MOST_ROUTES:
                routes.clear()
            routes[topics] = route
        return route

    def _drop(self, outlet: Outlet) -> None:
        outlet.drop()
        self._unreported += 1
        now = time.monotonic()
        if now >= self._next_warning:
            logger.warning("dropped %d messages to receivers that are full, %s the last", self._unreported, outlet.name)
            self._unreported, self._next_warning = 0, now + 1

    def _too_large(self, message: bytes) -> MessageTooLarge:
        return MessageTooLarge(f"a message of {len(message)} bytes; at most {self.max_message_bytes} are possible in {self.path}")

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
        if time.monotonic() >= self._next_look or self._words[WORD] == REMOVED:
            self._look()
        self._inside.append(None)
        try:
            alive: list[Outlet] = []
            fds: list[int] = []
            for name in watch:
                outlet = self._outlets.get(name) or self._outlet(name)
                if outlet is None or outlet.head[DELETED]:
                    timeout = 0
                else:
                    alive.append(outlet)
                    fds.append(outlet.fifo)
            inbox = self._inboxes.get(queue)
            if inbox is not None:
                spin = self._config.spin
                if spin is None and not (watch or self._has_sent):
                    spin = 0.0
                self._has_sent = False
                found = inbox.receive(timeout, spin, fds, busy)
            else:
                found = self._receive_shared(queue, timeout, limit, lease, fds)
            if not found:
                for outlet in alive:
                    if outlet.is_dead():
                        self._bury(outlet)
            return found
        except Removed:
            self._begin_anew()
            return self.receive(queue, timeout, limit=limit, lease=lease, watch=watch, busy=busy)
        except OSError as error:
            raise translated(error, self.path) from error
        finally:
            self._inside.pop()

    def _receive_shared(self, name: str, timeout: float | None, limit: int, lease: float | None, fds: list[int]) -> list[Delivery]:
        if self._closed:
            raise ProviderError("the provider was closed while it was waited on")
        entry = self._shared(name)
        wakes = self._wakes
        try:
            return entry[0].receive(
                timeout,
                limit=limit,
                lease=lease,
                watch_fds=fds,
                stopped=lambda: self._wakes != wakes or self._closed or self._words[WORD] == REMOVED,
            )
        except QueueNotFound:
            self._queues.pop(name, None)
            raise

    def wake(self) -> None:
        self._wakes += 1
        for inbox in list(self._inboxes.values()):
            inbox.wake()
        self._registry.bells.ring_own()

    def readiness(self, queue: str) -> Readiness:
        inbox = self._inboxes.get(queue)
        if inbox is None:
            return QueueReadiness(*self._shared(queue))
        readiness = InboxReadiness(inbox, self._outlet)
        self._readinesses.add(readiness)
        return readiness

    # Settling

    def ack(self, receipt: Receipt) -> None:
        self._settle(SharedQueue.ack, receipt)

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
            raise translated(error, self.path) from error


def _exists(name: str, directory: Directory) -> bool:
    return os.access(name, os.F_OK, dir_fd=directory.fd)
