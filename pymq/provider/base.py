"""The provider contract: what carries the messages.

A provider moves opaque bytes between queues. It knows no events, no JSON, no handlers, no RPC and no threads; the core
(`pymq.bus`) builds all of these from one concept, *a queue, and a binding that copies a topic into it*. There are two
kinds of queue:

* a **temporary** queue (an inbox): one receiver, the process that declared it; no acks; gone with that process. What has
  reached it is returned many at a time.
* a **shared** queue: durable, many senders, many receivers; each message goes to one of them, under a lease until it is
  settled, or without one (`lease=None`), in which case it is removed when it is returned.

Names of queues and topics are any text: users choose most of it, and the core puts a NUL into those of groups. Lone surrogates may be
refused with a ValueError.

`pymq.testing.ProviderSuite` holds every provider to the promises written here.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Full
from typing import Any, Protocol, TypeAlias

from pymq.exceptions import QueueNotFound


@dataclass(frozen=True)
class Features:
    """What a provider can do; the conformance suite and the comparison table in the docs are driven by it."""

    cross_process: bool = True
    """Processes of one machine meet on it."""
    cross_machine: bool = False
    """Processes of several machines meet on it."""
    durable: str = "any process's death"
    """What a message in a shared queue survives."""
    ordered: bool = True
    """A shared queue is first in, first out, but for redeliveries; a temporary one keeps each sender's order."""
    counts_receivers: bool = True
    """`publish` returns how many queues accepted the message, not None."""
    exactly_bound: bool = True
    """`maxsize` is never exceeded, also by senders that race."""
    weighs_consumers: bool = True
    """`consumers` puts the least busy first; else they only take turns."""
    waits_on_io: bool = False
    """A send may wait for a network."""
    death_seconds: float = 0.1
    """How long after a process's death its leases return and `receive(watch=)` ends, at most."""
    max_delay: float = 10 * 365 * 86400.0
    """The longest `delay`, in seconds."""
    priorities: int = 1
    """How many levels `priority` has: 0 (the default of a message, and the lowest) to priorities - 1."""
    max_message_bytes: int = 64 << 20
    """The largest message; the actual one may be lower where the file system is small (`Provider.max_message_bytes`)."""


@dataclass(frozen=True)
class Health:
    """How a provider is connected: `state` is "connected" or "reconnecting", `since` (seconds, as `time.time`) the last change of it.

    `gaps` counts how often what was on its way to this process may have been lost.
    """

    state: str
    since: float
    gaps: int


class Receipt:
    """What settles one delivery of a message of a shared queue.

    `queue` is its name, `attempt` counts deliveries from 1; providers add what they need to find the delivery again.
    """

    __slots__ = ("attempt", "queue")

    def __init__(self, queue: str, attempt: int) -> None:
        self.queue: str = queue
        self.attempt: int = attempt


Delivery: TypeAlias = "tuple[bytes, Receipt | None]"
"""A message, and what settles it: None where there is nothing to settle. A plain tuple: 25 ns, a NamedTuple takes 219."""


IDLE, RUNNING, BUSY = range(3)
"""What a receiver does, the best for a new message first: it waits; it will receive again at once; a handler holds it up."""

LATER = -1.0
"""A timeout for `Provider.publish`: nothing is waited for; where something must be, `WouldWait` is raised instead."""


class WouldWait(Exception):
    """All receivers that were ready have the message. `finish()` waits for the others and returns, or raises, what `publish` would."""

    def __init__(self, finish: Callable[[], int]) -> None:
        super().__init__("a receiver is full")
        self.finish = finish


class Readiness(Protocol):
    """What an event loop waits on instead of letting a thread wait in `Provider.receive`. For one thread."""

    fd: int
    """A descriptor that is readable when there may be something to receive, or a watched process may have died; also in vain."""

    def arm(self) -> float | None:
        """To be called after each receive, before `fd` is waited for. After how many seconds to receive again even if `fd` does
        not become readable: 0 where there may be more already, None for never. Raises QueueNotFound.
        """

    def watch(self, queue: str) -> bool:
        """From now on the death of that temporary queue's process makes `fd` readable, once. False where it is dead already."""

    def close(self) -> None:
        """It is waited on no more. `fd` is invalid, so the loop must have let go of it before."""


class Provider(ABC):
    """What carries the messages. All methods may be called from any thread, unless the contract says otherwise.

    The core promises: `open` comes first and nothing after `close`; a queue is declared before it is bound or received from;
    one thread at a time receives from a temporary queue; each delivery is settled once; a message has at most
    `max_message_bytes` bytes; after a fork it makes a new provider in the child and never touches the parent's again.

    Errors: `ProviderError` and its subclasses, `queue.Full`, `LeaseLost`; a driver's own error is the `__cause__`.
    All times are in seconds.
    """

    features: Features = Features()
    max_message_bytes: int = Features.max_message_bytes
    spin: float | None = 0.0
    """For how many seconds who waits for an answer looks again before it sleeps; None: for a moment, while that pays."""
    clock: Callable[[], float] = staticmethod(time.monotonic)
    """The clock that all participants share: deadlines inside messages are its readings."""

    @abstractmethod
    def open(self) -> None:
        """Ready for every other call. Raises ProviderError, naming the cause and the remedy."""

    @abstractmethod
    def close(self) -> None:
        """Ends every blocked receive, which returns [], and every blocked send, and removes this provider's temporary queues. From any
        thread, also twice.
        """

    @abstractmethod
    def declare(self, queue: str, *, temporary: bool = False) -> None:
        """The queue exists when this returns. Idempotent; an existing queue keeps its messages."""

    @abstractmethod
    def delete(self, queue: str) -> None:
        """The queue, its messages and its bindings are gone; its blocked receivers get QueueNotFound. Unknown: ignored."""

    @abstractmethod
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
        """The message is at the end of the queue when this returns.

        Waits up to `timeout` (None: without end) for room where `maxsize` messages wait already (0: no such bound; the leased
        do not count), then raises `queue.Full`. `delay` keeps it invisible that long; after `ttl` it is dropped instead of
        received. Raises QueueNotFound for a queue that does not exist, also for a temporary one whose process died, and
        MessageTooLarge before anything is written. `delay`, `ttl`, `maxsize` and `priority` are for shared queues; a delay or a
        priority that the features exclude is a ValueError or a ProviderError that names it.
        """

    @abstractmethod
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
        """The oldest messages: all that have come to a temporary queue, or some of them first, and up to `limit` of a shared one.

        Those of a shared queue are invisible to others until they are settled, until `lease` seconds have passed or until this
        process dies; then they come again with `attempt` + 1. With `lease=None` they are removed and have no receipt, as what comes to
        a temporary queue never has.
        Returns [] after `timeout` (None: without end; blocking costs no system call until something happens), after `wake`,
        or when a process that owns one of the temporary queues in `watch` has died. `busy` says that the receiver of a temporary
        queue is still at work on something else: `consumers` prefers others. Raises QueueNotFound where the queue
        does not exist or is deleted meanwhile.
        """

    @abstractmethod
    def wake(self) -> None:
        """Every receive that is blocked in this provider returns. From any thread."""

    @abstractmethod
    def ack(self, receipt: Receipt) -> None:
        """The message is forgotten. Raises LeaseLost, and touches nobody else's delivery, when the lease had ended."""

    @abstractmethod
    def nack(self, receipt: Receipt, delay: float = 0) -> None:
        """The message is visible again after `delay`, with `attempt` + 1. Raises LeaseLost as `ack` does."""

    @abstractmethod
    def extend(self, receipt: Receipt, seconds: float) -> None:
        """The lease ends `seconds` from now. Raises LeaseLost as `ack` does."""

    @abstractmethod
    def size(self, queue: str) -> int:
        """How many messages wait in the queue: the leased do not count, the delayed do; of a temporary one of this provider all that
        have come. 0 for an unknown one.
        """

    @abstractmethod
    def queues(self, prefix: str) -> Sequence[str]:
        """The names of the shared queues that begin with `prefix`; of those that are not bound, short names at least."""

    @abstractmethod
    def consumers(self, topic: str) -> Sequence[str]:
        """The live temporary queues that are bound to exactly this topic, in the order in which to prefer them.

        Those with the least waiting come first, and of these the ones that are blocked in `receive` and not busy, where the provider
        weighs them; equals change places from call to call for the same topic, so that taking the first spreads the work.
        """

    @abstractmethod
    def bind(self, queue: str, pattern: str, *, exact: bool) -> None:
        """Every message that anybody publishes from now on to that topic (or, not exact, to one that the glob matches) is
        copied into the queue. In force on return. May over-deliver, never under-deliver. Idempotent.
        """

    @abstractmethod
    def unbind(self, queue: str, pattern: str, *, exact: bool) -> None:
        """Ends what `bind` with the same arguments began. Unknown: ignored."""

    @abstractmethod
    def publish(
        self,
        topics: Sequence[str],
        message: bytes,
        *,
        timeout: float | None = None,
        delay: float = 0,
        ttl: float | None = None,
    ) -> int | None:
        """One copy to each queue bound to any of the topics; how many accepted it, or None where that is unknowable.

        One receiver's state never delays another's: the ready ones are served first, then at most `timeout` (the provider's
        own default where None) is waited for all full ones together, then a full temporary queue's copy is dropped and
        counted, and a full shared queue raises `PublishFull`. `delay` and `ttl` are for the shared ones. Who was dropped to is not
        waited for again until it has received what it has; and nobody waits for itself: a temporary queue of this provider takes
        what this provider publishes, however full it is.
        """

    def publisher(
        self, topics: Sequence[str], heads: Iterator[bytes] | None, encode: Callable[[Any], bytes], joined: int = 0
    ) -> Callable[[Any], int | None]:
        """What publishes a value to these topics: as the next of the heads, and the value encoded.

        Where there are none, `encode` gives both in one, of which that many bytes are the head.
        Not abstract: for a provider that can look up in advance who gets it, and that need not join the two where that is large.
        """

        def publish(value: Any) -> int | None:
            payload = encode(value)  # first: what cannot travel takes no number
            return self.publish(topics, payload if heads is None else next(heads) + payload)

        return publish

    def request(self, topic: str, message: bytes, reply_to: str) -> str | None:
        """The message is in the first of the topic's `consumers` that has room for it; which one, or None where there is none.

        Nothing is waited for: raises Full where all are full. `reply_to` is the temporary queue of this provider from which the caller
        receives next. Not abstract: over a network one round trip is better than two, and that receive can be prepared.
        """
        full = None
        for queue in self.consumers(topic):
            try:
                self.send(queue, message, timeout=0)
                return queue
            except QueueNotFound:
                pass  # it has died in between
            except Full as error:
                full = error
        if full is not None:
            raise full
        return None

    def reply(self, queue: str, message: bytes) -> None:
        """`send` the answer to a `request` to the queue that was its `reply_to`, waiting for room for a second.

        It may come twice, and before what was sent earlier; where that queue is gone, nothing need be raised. Not abstract: over a
        network, that there is one who waits for just this can save half of the work.
        """
        self.send(queue, message, timeout=1.0)

    def ack_and_receive(self, receipt: Receipt, *, lease: float = 30.0) -> list[Delivery]:
        """`ack`, and then one message of the same queue, as `receive` would return it, where it is at hand: nothing is waited for.

        [] says nothing of the queue: `receive` next. Whatever is raised, LeaseLost too, is raised for the ack, and nothing was
        received. Not abstract: for a provider to which the two together are cheaper.
        """
        self.ack(receipt)
        return []

    def counters(self) -> dict[str, dict[str, int]]:
        """What each queue holds and has lost, as far as this provider knows: {queue: {"waiting": …, "leased": …, "dropped": …,
        "expired": …}}. Not abstract: {} where a service keeps no such counts.
        """
        return {}

    def health(self) -> Health:
        """Whether what carries the messages can be reached. Not abstract: always, where no network is between."""
        return Health("connected", self._made, 0)

    _made = time.time()

    def readiness(self, queue: str) -> Readiness | None:
        """What an event loop can wait on before it receives from that queue with a timeout of 0.

        Not abstract: None where only a thread can wait. `pymq.asyncio` makes all calls in threads of its own then; else it makes them
        in the loop, with a timeout of 0 or `LATER`: so a provider that overrides this one must know `LATER`, and never wait for I/O.
        """
        return None
