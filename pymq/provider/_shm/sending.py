"""What the shm provider does to get a message out: to one queue, or to whoever is bound to some topics.

Inboxes that are ready are served first, by one write each; then those that need their log, then the shared queues; only then it is
waited for whoever is full. Who gets what is published to some topics is looked up once, and again when somebody has bound or unbound.
"""

from __future__ import annotations

import functools
import logging
import math
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from operator import methodcaller
from os import write
from queue import Full
from typing import TYPE_CHECKING, Any, TypeAlias

from pymq.exceptions import MessageTooLarge, ProviderError, PublishFull, QueueNotFound
from pymq.provider._shm.files import Removed, encode_name, exists, pass_on, raise_translated
from pymq.provider._shm.frames import BEHIND, DATA, DELETED, INLINE_BYTES, LOGGED, checksum, frames_of, pack_header
from pymq.provider._shm.outlet import Outlet
from pymq.provider._shm.registry import WORD
from pymq.provider._shm.renewal import Renewable
from pymq.provider._shm.verbs import again, there
from pymq.provider.base import LATER, WouldWait
from pymq.topics import Remembered

if TYPE_CHECKING:
    from pymq.provider._shm.files import Bell, Bells
    from pymq.provider._shm.readiness import Entry
    from pymq.provider.shm import ShmConfig

Route: TypeAlias = "tuple[list[Outlet], list[str]]"
"""Where a message to some topics goes: inboxes, and the names of shared queues."""

_MOST_ROUTES = 4096
_UNKNOWN: tuple[int, list[str]] = (0, [])

logger = logging.getLogger("pymq")


Way: TypeAlias = "tuple[memoryview, int, Callable[[], Outlet | None]]"
"""The one inbox that gets whatever is published to some topics, and the generation of the registry in which it does."""


def _nobody() -> None:
    """In the place of a reference to the one inbox where there are none or several."""


class Sending(Renewable):
    """The sending half of the provider: `send`, `request`, `publish`."""

    def __init__(self, config: ShmConfig) -> None:
        super().__init__()
        self._config = config
        self._table: tuple[int, dict[Sequence[str], Route]] = (0, {})
        self._bound: Remembered[tuple[int, list[str]]] = Remembered()
        self._has_sent = False
        self._inline = 0
        self._next_warning = 0.0
        self._unreported = 0

    @abstractmethod
    def _outlet(self, name: str) -> Outlet | None: ...

    @abstractmethod
    def _bury(self) -> None: ...

    @abstractmethod
    def _shared(self, name: str) -> Entry: ...

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
        if self._send_directly(queue, message):
            self._has_sent = True
            return
        if len(message) > self.max_message_bytes:
            raise self._too_large(message)
        seen = self._words
        try:
            shared = self._queues.get(queue)
            if shared is not None and not delay:
                try:
                    shared[0].send(message, timeout, maxsize, 0, ttl, priority)
                    return
                except QueueNotFound:
                    self._queues.pop(queue, None)  # deleted; there may be a new one of that name
            outlet = None if queue in self._queues else self._outlet(queue)
            if outlet is not None:
                self._send_to_inbox(outlet, message, timeout)
            else:
                self._send_to_shared(queue, message, timeout=timeout, maxsize=maxsize, delay=delay, ttl=ttl, priority=priority)
        except Removed:
            self._begin_anew(seen)
            self.send(queue, message, timeout=timeout, maxsize=maxsize, delay=delay, ttl=ttl, priority=priority)
        except OSError as error:
            raise_translated(error, self.path)

    def reply(self, queue: str, message: bytes) -> None:
        if self._send_directly(queue, message):  # what `send` would do: a call in the way of each remote call less
            self._has_sent = True
        else:
            super().reply(queue, message)

    def _send_directly(self, queue: str, message: bytes) -> bool:
        """What nearly always is enough: one write, where the way is known and there is room."""
        outlet = self._outlets.get(queue)
        if outlet is None or (size := len(message)) > outlet.direct or outlet.head[LOGGED] or outlet.head[DELETED]:
            return False
        try:
            write(outlet.fifo, pack_header(DATA, size, checksum(message)) + message)
        except OSError as error:  # full or dead
            pass_on(error)
            return False
        return True

    def request(self, topic: str, message: bytes, reply_to: str) -> str | None:
        generation, names = self._bound.get(topic, _UNKNOWN)
        if len(names) == 1 and self._words[WORD] == generation:
            try:
                if not self._send_directly(names[0], message):
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

    @again
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
                self._bury()
            except (OSError, ProviderError) as error:
                failure = error
        if failure is not None:
            raise failure
        return accepted, full

    def _wait_for_room(self, full: list[Outlet], message: bytes, seconds: float) -> tuple[int, list[Outlet]]:
        """As `_offer`, until the time is over."""
        deadline = time.monotonic() + seconds
        parts = frames_of(message)
        bells, bell = self._borrow_bell()
        bells.senders.append(bell)
        total = 0
        try:
            # others, where the directory was made again
            full = [now.lane_of(outlet) for outlet in full if (now := self._outlet(outlet.name))]
            while full:
                accepted, full = self._offer(full, lambda outlet: outlet.offer(parts, bell.number))
                total += accepted
                left = deadline - time.monotonic()
                if not full or left <= 0 or bells.is_closing:
                    break
                bell.sleep(None if left == math.inf else left, tuple(outlet.fifo for outlet in full))
                bell.silence()
        finally:
            for outlet in full:
                outlet.forget(bell.number)
            bells.give_back(bell)
            bells.senders.remove(bell)
        return total, full

    @again
    def _borrow_bell(self) -> tuple[Bells, Bell]:
        bells = self._registry.bells
        return bells, bells.borrow()

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
                except OSError as error:
                    pass_on(error)
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
                raise_translated(error, self.path)
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
            except OSError as error:
                pass_on(error)
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
            entry = self._queues[name]  # held, here and wherever one is used: nobody closes it meanwhile
            entry[0].send(message, timeout=0, ttl=ttl)
        except (KeyError, Full, QueueNotFound, Removed):
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

    def publisher(
        self, topics: Sequence[str], heads: Iterator[bytes] | None, encode: Callable[[Any], bytes], joined: int = 0
    ) -> Callable[[Any], int]:
        topics, inline, most, everywhere = tuple(topics), self._inline, self.max_message_bytes, self.publish
        way: Way = (self._words, 0, _nobody)

        def publish(value: Any) -> int:
            """The hot path to one receiver: 0.4 us less than the way through the table; and what is large is not copied to join it."""
            nonlocal way
            message, head = encode(value), b""
            if heads is not None:
                head = next(heads)
                if len(message) <= inline:
                    message, head = head + message, b""
            words, generation, only = way
            if words[WORD] != generation:
                accepted = everywhere(topics, head + message)
                way = self._way(topics) or way
                return accepted
            inbox = only()
            if inbox is not None and not inbox.head[LOGGED]:
                size = len(message)
                try:
                    if size <= inline:
                        write(inbox.fifo, pack_header(DATA, size, checksum(message)) + message)
                        return 1
                    is_large = joined and size > INLINE_BYTES  # apart then: else the receiver would copy once more what is in it
                    parts = (memoryview(message)[joined:], message[:joined]) if is_large else (message, head)
                    if size + len(head) <= most and inbox.send_past_log(*parts):
                        return 1
                except OSError as error:  # full or dead: what follows finds out
                    pass_on(error)
            return everywhere(topics, head + message)

        return publish

    def _way(self, topics: Sequence[str]) -> Way | None:
        words = self._words  # before the table, which never is of an older registry then
        generation, routes = self._table
        if topics not in routes:
            return None
        outlets, groups = routes[topics]
        # weak, so that what is not used any more can be closed: 0.02 us
        return words, generation, weakref.ref(outlets[0]) if len(outlets) == 1 and not groups else _nobody

    def _renewed(self) -> tuple[int, dict[Sequence[str], Route]]:
        self._forget_routes(self._words[WORD])
        return self._table

    def _forget_routes(self, generation: int = 0) -> None:
        """What is not used any more can be closed then."""
        self._table, self._bound = (generation, {}), Remembered()

    @there
    def _route(self, topics: Sequence[str], generation: int, routes: dict[Sequence[str], Route]) -> Route:
        """Who gets what is published to these topics; remembered for as long as nobody binds or unbinds."""
        known_at, names = self._registry.matching(topics)
        found = [(name, self._outlet(name)) for name in names]
        groups = [name for name, outlet in found if outlet is None and exists(encode_name(name), self._registry.queues)]
        route = [outlet for _, outlet in found if outlet is not None], groups
        if len(route[0]) + len(groups) < len(names):
            with self._locked() as registry:
                registry.sweep()
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
