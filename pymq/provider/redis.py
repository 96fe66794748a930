"""Redis (6.2 or newer) or Valkey: the processes of many machines.

A participant is a *member*: a token with a registration that it extends each second, and that ends four seconds after the last time.
Its inboxes are bounded lists; one script (`_redis/lua`) finds the receivers of a message, counts the bytes and appends, so what
`publish` returns is what was accepted. Shared queues are sorted sets of ids beside a hash of messages. Whoever waits blocks on a list
of wake-up tokens (`_redis/receiver.py`); everything else shares one connection (`_redis/pipe.py`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Full
from time import monotonic
from typing import Any
from urllib.parse import quote

from pymq.bus import EventBus
from pymq.exceptions import ConnectionLost, ProviderError, PublishFull, QueueNotFound
from pymq.provider._redis import url as _redis_url
from pymq.provider._redis.inbox import Inbox, Patterns
from pymq.provider._redis.operations import (
    Operation,
    decoded,
    encoded,
    list_of,
    list_of_names,
    milliseconds,
    packed,
    publication,
    to_bind,
    with_message,
)
from pymq.provider._redis.pipe import Pipe, Unsure
from pymq.provider._redis.receiver import BLOCK, Receivers, Woken, pass_on, pull, seconds_to_block
from pymq.provider._redis.stream import SHORTEST_LEASE, RedisReceipt, Streams
from pymq.provider._redis.wire import Finder, left
from pymq.provider._refusals import check, closed_in_vain, gone, lost
from pymq.provider.base import Delivery, Features, Health, Provider, Receipt
from pymq.topics import Turns, matcher

log: logging.Logger = logging.getLogger("pymq")

MOST_PLANS = 10_000
LARGEST_REPLY = 4096
"""Bytes of a reply that goes past the script, and so past the limits: at most forty of them are kept for each who waits."""


@dataclass(frozen=True, init=False)
class RedisConfig:
    """Processes that name the same server and `namespace` meet.

    `RedisConfig()` is localhost:6379; `RedisConfig(client)` takes the address and the credentials of a client of redis-py, which itself
    is not touched; `RedisConfig(host=…, port=…, db=…, username=…, password=…, ssl=…, unix_socket_path=…)` and more of redis-py's names
    say them. A receiver buffers `max_pending` bytes, a shared queue holds `max_queue_bytes`; a publish waits at most `publish_timeout`
    seconds for the full ones. Raises TypeError for an argument that redis-py does not have, or that is pymq's to decide (timeouts,
    retries, pools), ValueError for an empty namespace.
    """

    namespace: str
    max_pending: int
    publish_timeout: float
    max_message_bytes: int
    max_queue_bytes: int
    connection: Mapping[str, Any] = field(repr=False, hash=False)
    mode: str
    nodes: tuple[tuple[str, int], ...]
    service: str
    sentinel: Mapping[str, Any] = field(repr=False, hash=False)

    def __init__(
        self,
        client: Any = None,
        *,
        namespace: str = "default",
        max_pending: int = 32 << 20,
        publish_timeout: float = 1.0,
        max_message_bytes: int = 64 << 20,
        max_queue_bytes: int = 256 << 20,
        connection: Mapping[str, Any] | None = None,
        mode: str = "",
        nodes: Sequence[tuple[str, int]] = (),
        service: str = "",
        sentinel: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        if not namespace:
            raise ValueError("the namespace is a text that is not empty: on a cluster it decides where the keys are")
        found = _redis_url.of_client(client) if client is not None else {}
        where = {"mode": mode, "nodes": tuple(nodes), "service": service, "sentinel": dict(sentinel or {})}
        values = {
            "namespace": namespace,
            "max_pending": max_pending,
            "publish_timeout": publish_timeout,
            "max_message_bytes": max_message_bytes,
            "max_queue_bytes": max_queue_bytes,
            **where,
            **found,
            "connection": {**found.get("connection", {}), **(connection or {}), **_redis_url.connection_arguments(arguments)},
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def prefix(self) -> str:
        """What all keys of the namespace begin with; in the braces, what decides on the slot in a cluster."""
        return f"pymq:{{{quote(self.namespace, safe='', errors='surrogatepass')}}}:"

    def create(self) -> RedisProvider:
        """A new provider, not open yet. Raises ProviderError where redis-py is not installed."""
        try:
            import redis  # noqa: F401 - so that its absence is told here
        except ImportError as error:
            raise ProviderError("the provider redis needs redis-py: pip install '.[redis]' in a checkout of pymq") from error
        return RedisProvider(self)

    @classmethod
    def from_url(cls, url: str) -> RedisConfig:
        """`redis://user:password@host:6379/0/namespace?max_pending=…`, `rediss://` (TLS), `unix:///path?db=0&namespace=…`,
        `redis+sentinel://host:26379,host:26379/service/0/namespace`, `redis+cluster://host:7000,host:7001/0/namespace`.

        Raises ValueError.
        """
        return cls(**_redis_url.parse(url))


class RedisProvider(Provider):
    """The contract over a Redis server. Made by `RedisConfig.create`."""

    features: Features = Features(
        cross_machine=True, durable="what the server survives", waits_on_io=True, death_seconds=5.0, priorities=10
    )

    def __init__(self, config: RedisConfig) -> None:
        self.max_message_bytes: int = config.max_message_bytes
        self._config = config
        finder = Finder(config)
        self._pipe = Pipe(finder, config.prefix, self._declarations)
        self._receivers = Receivers(finder, self._pipe)
        self._streams = Streams(self._pipe.call)
        self._prefix = encoded(config.prefix)
        self._limit = b"%d" % config.max_queue_bytes
        self._plainly = b"%b %b %b" % (self._limit, milliseconds(0), milliseconds(None))
        self.clock: Callable[[], float] = self._pipe.clock
        self._inboxes: dict[str, Inbox] = {}
        self._shared: set[str] = set()
        self._bindings: dict[tuple[str, str, bool], None] = {}
        self._patterns = Patterns(b"-", ())
        self._plans: dict[Sequence[str], Operation] = {}
        self._turns = Turns()
        self._next_warning = 0.0

    # ------------------------------------------------------------------ open, close, declare, delete

    def open(self) -> None:
        self._pipe.open()

    def close(self) -> None:
        self._receivers.close()
        self._streams.close()
        self._pipe.close()

    def health(self) -> Health:
        return self._pipe.health()

    def _declarations(self, shared_too: bool) -> list[Operation]:
        """What makes the server know what it has forgotten of this member."""
        names = [*self._inboxes, *(self._shared if shared_too else ())]
        declared = [self._declaration(name, name in self._inboxes) for name in names]
        return declared + [to_bind(b"bind", *binding) for binding in list(self._bindings) if binding[0] in names]

    def _declaration(self, queue: str, temporary: bool) -> Operation:
        return packed(b"declare", encoded(queue), b"%d" % self._config.max_pending if temporary else b"")

    def declare(self, queue: str, *, temporary: bool = False) -> None:
        (outcome,) = self._pipe.call(self._declaration(queue, temporary))
        if outcome != b"ok":
            raise ProviderError(f"the queue {queue!r} exists already, of the other kind or for another receiver; rename it")
        if temporary:
            self._inboxes.setdefault(queue, Inbox(self._prefix, encoded(queue)))
        else:
            self._shared.add(queue)

    def delete(self, queue: str) -> None:
        self._inboxes.pop(queue, None)
        self._shared.discard(queue)
        for binding in [each for each in self._bindings if each[0] == queue]:
            self._bindings.pop(binding, None)
        for verb in (b"delete", b"hush"):  # who waits is woken between the two
            self._pipe.call(packed(verb, encoded(queue)))

    # ------------------------------------------------------------------ send

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
        check(self, message, delay, priority)
        deadline = math.inf if timeout is None else monotonic() + timeout
        wait, how = b"1" if timeout != 0 else b"0", self._how(delay, ttl)
        operation = packed(b"send", encoded(queue), wait, how, b"%d" % maxsize, b"%d" % priority, message)
        has_waited = False
        while (outcome := self._pipe.call(operation)) == b"full":
            has_waited = True
            if not self._wait_for_room([encoded(queue)], deadline):
                if self._receivers.closed:
                    raise closed_in_vain(queue)
                raise Full(f"no room in the queue {queue!r} within {timeout} s")
        if outcome != b"ok":
            if has_waited:
                pass_on(self._pipe.call, queue)
            raise gone(queue)

    def _how(self, delay: float, ttl: float | None) -> bytes:
        """What is for shared queues alone."""
        return b"%b %b %b" % (self._limit, milliseconds(delay), milliseconds(ttl)) if delay or ttl is not None else self._plainly

    def _wait_for_room(self, queues: Sequence[bytes], deadline: float) -> bool:
        """Until there may be room in one of them; False after the deadline, or when the provider is closed."""
        if not left(deadline):
            return False
        try:
            with self._receivers.lend() as receiver:
                receiver.block([self._prefix + b"f:" + queue for queue in queues], min(left(deadline), BLOCK))
        except (Woken, ConnectionLost):
            return not self._receivers.closed
        return True

    # ------------------------------------------------------------------ receive

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
        deadline = math.inf if timeout is None else monotonic() + timeout

        def attempt() -> list[Delivery]:
            inbox = self._inboxes.get(queue)
            if inbox is not None:
                try:
                    return self._receive_from_inbox(queue, inbox, deadline, watch, busy)
                finally:
                    inbox.looks += 1
            return self._receive_shared(queue, deadline, limit, lease, watch)

        try:
            try:
                return attempt()
            except QueueNotFound:
                # a server that has lost all knows this process before its queues; behind that on the other connection, it knows both
                self._pipe.beat(False)
                return attempt()
        except Woken:
            return []

    def _receive_from_inbox(self, queue: str, inbox: Inbox, deadline: float, watch: Sequence[str], busy: bool) -> list[Delivery]:
        watched = list_of_names(watch)

        def fetching(then_blocks: bytes) -> Operation:
            flags = then_blocks, b"1" if busy else b"0", b"1" if inbox.is_unsure else b"0"
            return packed(b"fetch", inbox.name, b"%d" % inbox.done, *flags, *watched)

        def fetch(blocks: bool) -> Any:
            answer = receiver.run(fetching(b"%d" % blocks))
            inbox.rely_on(receiver)
            return answer

        with self._receivers.lend() as receiver:
            if not inbox.is_unsure:
                inbox.rely_on(receiver)
            if (inbox.is_ready or inbox.is_calm) and left(deadline):
                operation = None if inbox.is_ready else fetching(b"2")
                answer = receiver.run_and_block(operation, inbox.lists, min(left(deadline), BLOCK))
                if answer is not None and (found := inbox.hand_out(answer)):
                    return found
            inbox.is_calm = False
            while (answer := pull(receiver, fetch, inbox.lists, deadline, queue)) is not None:
                if found := inbox.hand_out(answer):
                    return found
            return []

    def _receive_shared(self, queue: str, deadline: float, limit: int, lease: float | None, watch: Sequence[str]) -> list[Delivery]:
        if limit == 1 and deadline == math.inf and lease is not None and lease >= SHORTEST_LEASE and not watch:
            return self._receive_ahead(queue, lease)
        found, _ = self._take(queue, deadline, limit, lease, watch)
        return [(message, None if lease is None else RedisReceipt(queue, n, identity)) for identity, n, message in found]

    def _receive_ahead(self, queue: str, lease: float) -> list[Delivery]:
        """For a consumer that goes on: more than one in a round trip, where it is fast enough."""
        stream = self._streams.of(queue)
        delivery = stream.next()
        if delivery is None:
            found, has_waited = self._take(queue, math.inf, stream.wanted(), lease, ())
            stream.load([(message, RedisReceipt(queue, n, identity, stream)) for identity, n, message in found], has_waited)
            delivery = stream.next()
            if len(found) > 1:
                self._streams.watch(stream)
        return [] if delivery is None else [delivery]

    def _take(
        self, queue: str, deadline: float, limit: int, lease: float | None, watch: Sequence[str]
    ) -> tuple[list[tuple[bytes, int, bytes]], bool]:
        """(id, attempt, message) of the first ones, and whether they had to be waited for."""
        period = milliseconds(lease)  # -1: without a lease
        operation = packed(b"take", encoded(queue), b"%d" % min(limit, 1000), period, *list_of_names(watch))

        def take(_: bool = True) -> Any:
            return self._pipe.call(operation)

        try:
            answer = take()
        except ConnectionLost as error:
            if not left(deadline) or (isinstance(error, Unsure) and lease is None):
                raise
            answer = [b"empty", 0]
        if answer[0] == b"ok":
            return list(zip(*answer[1:])), False
        if not seconds_to_block(answer, deadline, queue):
            return [], True
        with self._receivers.lend() as receiver:
            answer = pull(receiver, take, [self._prefix + b"w:" + encoded(queue)], deadline, queue, twice=lease is not None)
        return ([] if answer is None else list(zip(*answer[1:]))), True

    def wake(self) -> None:
        self._receivers.wake()

    # ------------------------------------------------------------------ ack, nack, extend

    def ack(self, receipt: Receipt) -> None:
        assert isinstance(receipt, RedisReceipt)
        if receipt.stream is None:
            self._expect_settled(receipt, self._streams.settle(receipt.queue, [receipt])[0])
        elif not receipt.stream.put_off(receipt):
            self._expect_settled(receipt, self._streams.flush(receipt.stream, receipt))

    def nack(self, receipt: Receipt, delay: float = 0) -> None:
        self._settle(b"nack", receipt, milliseconds(delay), b"0")

    def extend(self, receipt: Receipt, seconds: float) -> None:
        self._settle(b"extend", receipt, milliseconds(seconds))

    def _settle(self, verb: bytes, receipt: Receipt, *how: bytes) -> None:
        assert isinstance(receipt, RedisReceipt)
        outcomes = self._pipe.call(packed(verb, encoded(receipt.queue), receipt.identity, b"%d" % receipt.attempt, *how))
        self._expect_settled(receipt, outcomes[0])

    @staticmethod
    def _expect_settled(receipt: Receipt, outcome: int) -> None:
        if not outcome:
            raise lost(receipt)

    # ------------------------------------------------------------------ numbers and names

    def size(self, queue: str) -> int:
        return int(self._pipe.call(packed(b"size", encoded(queue))))

    def counters(self) -> dict[str, dict[str, int]]:
        kinds = ("waiting", "leased", "dropped", "expired")
        return {decoded(name): dict(zip(kinds, counts)) for name, *counts in self._pipe.call(packed(b"counters"))}

    def queues(self, prefix: str) -> Sequence[str]:
        return [decoded(name) for name in self._pipe.call(packed(b"queues", encoded(prefix)))]

    def consumers(self, topic: str) -> Sequence[str]:
        found = self._pipe.call(packed(b"consumers", encoded(topic)))
        found.sort()  # the server's order of a set is any
        turn = next(self._turns[topic]) % max(1, len(found))
        return [decoded(name) for name, *_ in sorted(found[turn:] + found[:turn], key=lambda each: each[1:])]

    def request(self, topic: str, message: bytes, reply_to: str) -> str | None:
        check(self, message, 0)
        inbox = self._inboxes[reply_to]
        looks = inbox.looks
        how = b"%d" % next(self._turns[topic]), b"" if inbox.is_ready else inbox.name, b"%d" % inbox.done
        outcome, *server = self._pipe.call(packed(b"request", encoded(topic), *how, message))
        if outcome == b"full":
            raise Full(f"all who serve {topic!r} are full")
        if not server:
            return None
        if server[1]:
            inbox.ready_after = looks
        return decoded(server[0])

    def reply(self, queue: str, message: bytes) -> None:
        try:
            if 0 < len(message) <= LARGEST_REPLY and self._pipe.push_reply(encoded(queue), message):
                return
        except ProviderError:
            pass  # whatever there is to say, says the other way
        super().reply(queue, message)

    # ------------------------------------------------------------------ bind and publish

    def bind(self, queue: str, pattern: str, *, exact: bool) -> None:
        if not exact:
            matcher(pattern)  # a bad glob is refused here, not met by every publisher
        (outcome,) = self._pipe.call(to_bind(b"bind", queue, pattern, exact))
        if outcome != b"ok":
            raise QueueNotFound(f"there is no queue {queue!r} to bind: it was not declared, was deleted, or its owner has ended")
        self._bindings[queue, pattern, exact] = None

    def unbind(self, queue: str, pattern: str, *, exact: bool) -> None:
        self._bindings.pop((queue, pattern, exact), None)
        self._pipe.call(to_bind(b"unbind", queue, pattern, exact))

    def publish(
        self, topics: Sequence[str], message: bytes, *, timeout: float | None = None, delay: float = 0, ttl: float | None = None
    ) -> int:
        check(self, message, delay)
        how = self._how(delay, ttl)
        while (result := self._pipe.call(with_message(self._plan(tuple(topics), how), message))) == b"stale":
            self._refresh()
        if type(result) is int:
            return result
        timeout = self._config.publish_timeout if timeout is None else timeout
        accepted, full, behind = result
        return self._publish_to_full(accepted, full, behind, message, monotonic() + timeout, how)

    def _plan(self, topics: tuple[str, ...], how: bytes) -> Operation:
        """A publish without its message, packed: it is the same for one topic until the bindings to patterns change."""
        found = self._plans.get(topics) if how is self._plainly else None
        if found is None:
            patterns = self._patterns  # once: another thread may refresh them meanwhile
            found = publication(patterns.generation, how, list(map(encoded, topics)), patterns.matching(topics))
            if how is self._plainly:
                if len(self._plans) >= MOST_PLANS:
                    self._plans.clear()
                self._plans[topics] = found
        return found

    def _refresh(self) -> None:
        generation, inboxes, shared = self._pipe.call(packed(b"patterns"))
        self._patterns = Patterns(generation, [*inboxes, *shared])
        self._plans = {}

    def _publish_to_full(
        self,
        accepted: int,
        full: list[bytes],
        behind: list[bytes],
        message: bytes,
        deadline: float,
        how: bytes,
    ) -> int:
        """Wait for room until the deadline; what has none then is lost, and counted, or, in a shared queue, refused."""
        while full and self._wait_for_room(full, deadline):
            result = self._pipe.call(with_message(publication(b"", how, (), full), message))
            more, full, fallen = (result, [], []) if type(result) is int else result
            accepted += more
            behind += fallen
        dropped = self._pipe.call(packed(b"drop", *list_of(full))) if full else []
        self._warn(behind + dropped)
        groups = [decoded(name) for name in full if name not in dropped]
        if groups:
            raise PublishFull(accepted, groups)
        return accepted

    def _warn(self, lost: Sequence[bytes]) -> None:
        """At most once a second."""
        if lost and monotonic() >= self._next_warning:
            self._next_warning = monotonic() + 1
            log.warning("a message was dropped: %d receivers do not keep up, that of %r among them", len(lost), decoded(lost[0]))


class RedisEventBus(EventBus):
    """PyMQ's name for a bus on Redis; instead of a config, its arguments will do."""

    def __init__(self, config: Any = None, **arguments: Any) -> None:
        super().__init__(config if isinstance(config, RedisConfig) else RedisConfig(config, **arguments))
