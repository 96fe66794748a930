"""Queues: `queue.Queue` between processes, with leases for work that must not be lost, and its dead letters."""

from __future__ import annotations

import itertools
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pymq import message as frames
from pymq.deliveries import BACKOFF, DEAD_HEADERS, LEASE, RETRIES, Leased, Policy, check_retries, dead_letter, unpack_anything
from pymq.exceptions import CodecError, LeaseLost, PymqError, QueueNotFound, Reject, Retry
from pymq.message import SEQUENCE_BYTES, Frame, Prefix
from pymq.provider.base import Provider, Receipt
from pymq.routes import check_lease, check_seconds, check_times

if TYPE_CHECKING:
    from pymq.bus import EventBus

log: logging.Logger = logging.getLogger("pymq")
T = TypeVar("T")
Empty = queue.Empty
Full = queue.Full

AT_ONCE = 10
"""How many dead letters are leased at once: over a network each takes some round trips."""
MOST_PREFIXES = 10_000
"""How many senders and types a queue's decoders are held for: 3 us an item instead of 100."""


class Queue(Generic[T]):
    """A queue of all processes of the namespace: first in, first out, kept while no process at all is attached.

    `name` is its name, `maxsize` how many items `put` lets wait (0: no bound; the leased do not count). An item that a `take` of this
    object failed with comes again up to `retries` times, after `backoff` seconds doubling each time, then it is in `dead`. Safe in
    all threads.
    """

    def __init__(
        self,
        bus: EventBus,
        name: str,
        type: Any = Any,
        maxsize: int = 0,
        *,
        retries: int = RETRIES,
        backoff: float = BACKOFF,
    ) -> None:
        from pymq import codec

        if not isinstance(name, str) or not name:
            raise ValueError(f"a queue's name is a text, not {name!r}")
        if not isinstance(maxsize, int):
            raise TypeError(f"maxsize is a number of items, not {maxsize!r}")
        check_retries(retries, backoff)
        self._bus = bus
        self.name = name
        self.maxsize: int = max(0, maxsize)  # `queue.Queue` knows no bound below 1
        self._type = type
        self._policy = Policy(retries, backoff, f"queue-dead/{name}")
        self._queue = f"queue/{name}"
        self._closed = False
        self._encodings: dict[Any, tuple[Iterator[bytes] | None, Callable[[Any], bytes]]] = {}
        self._plain: dict[bytes, tuple[Callable[[bytes], Any], int]] = {}
        self._latest: tuple[bytes, Callable[[bytes], Any], int] = b"", self._decode_other, 0
        codec.name_type(type)
        bus.provider.declare(self._queue)

    def put(
        self,
        item: T,
        block: bool = True,
        timeout: float | None = None,
        *,
        delay: float = 0,
        ttl: float | None = None,
        priority: int = 0,
    ) -> None:
        """Append an item; it is kept, whatever happens to this process, when this returns.

        Where `maxsize` items wait already, waits up to `timeout` seconds (None: without end; not at all unless `block`), then raises
        Full. `delay`: nobody gets it before so many seconds; `ttl`: it is dropped so many after that; `priority`: higher ones first,
        where the provider has levels. Raises CodecError for an item that cannot travel, or that does not fit the queue's type
        (looked at until one of its class has), MessageTooLarge, ProviderError, ValueError.
        """
        provider = self._bus.provider if not self._closed else self._provider()  # 0.05 us less than the call
        left = None if block and timeout is None else seconds_to_wait(block, timeout)
        heads, encode = self._encodings.get(type(item)) or self._encoding(item)
        message = encode(item)
        if heads is not None:  # only now: what cannot travel takes no number
            message = next(heads) + message
        lives = None
        if delay or ttl is not None or priority:
            _check_options(provider, delay, ttl, priority)
            message = _with_options(message, provider, delay, ttl, priority)
            lives = None if ttl is None else delay + ttl
        while True:
            try:
                provider.send(self._queue, message, timeout=left, maxsize=self.maxsize, delay=delay, ttl=lives, priority=priority)
                return
            except QueueNotFound:  # freed meanwhile, perhaps again and again: the put makes it anew
                provider.declare(self._queue)
            except Full:
                raise Full(f"no room in the queue {self.name!r}") from None  # the provider knows it by another name

    def _encoding(self, item: Any) -> tuple[Iterator[bytes] | None, Callable[[Any], bytes]]:
        from pymq import codec

        cls = type(item)
        encoder = codec.encoder_for(cls)
        if self._type is not Any and cls is not self._type:  # looked at once for each class: what fits then may be put from then on
            try:
                codec.decoder_for(encoder.form, encoder.type_name, self._type)(encoder.encode(item))
            except CodecError as error:
                raise CodecError(f"the queue {self.name!r} is of {self._type!r}, and nobody could get this: {error}") from error
        prefix = Prefix(frames.ITEM, encoder.form, 0, self._bus.token, self.name, encoder.type_name, ())
        found = self._encodings[cls] = encoder.numbered(_numbers, frames.pack_prefix(prefix))[:2]
        return found

    def put_nowait(self, item: T, **options: Any) -> None:
        """`put`, or Full at once."""
        self.put(item, False, **options)

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Remove and return the oldest item: at most once, it is gone when this returns.

        Waits up to `timeout` seconds (None: without end; not at all unless `block`), then raises Empty. Raises QueueNotFound when
        the queue is freed meanwhile; CodecError for an item that is not of the queue's type, which then is in `dead`.
        """
        message, _ = self._receive(None if block and timeout is None else seconds_to_wait(block, timeout), None)
        try:
            item: T = self._decode(message)
            return item
        except CodecError as error:
            provider = self._provider()
            provider.declare(f"queue-dead/{self.name}")
            letter = dead_letter(unpack_anything(message), error, 1, self._queue, provider.max_message_bytes)
            provider.send(f"queue-dead/{self.name}", letter.pack())
            raise

    def get_nowait(self) -> T:
        """`get`, or Empty at once."""
        return self.get(False)

    def receive(self, timeout: float | None = None, lease: float = LEASE) -> Delivery[T]:
        """The oldest item, at least once: it comes again unless it is acked within `lease` seconds by this process.

        Raises Empty after `timeout` seconds (None: waits without end), CodecError as `get` does.
        """
        check_lease(lease)
        deadline = None if timeout is None else time.monotonic() + seconds_to_wait(True, timeout)
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            message, receipt = self._receive(left, lease)
            leased = self._leased(message, receipt)
            try:
                return self._delivery(leased, message, lease)
            except Reject as error:
                leased.bury(error)
            except CodecError as error:
                leased.bury(error)
                raise

    def _leased(self, message: bytes, receipt: Receipt) -> Leased:
        return Leased(self._provider(), message, receipt, self._policy)

    def _delivery(self, leased: Leased, message: bytes, lease: float) -> Delivery[T]:
        """Raises Reject for what has come too often without an ack, CodecError: both are to be buried."""
        leased.raise_if_exhausted()
        return Delivery(self._bus, leased, self._decode(message), lease)

    def take(self, timeout: float | None = None, lease: float = LEASE) -> Delivery[T]:
        """`receive`, for a `with` block: `with q.take() as job: work(job.value)` acks when the block ends well.

        A block that raises gives the item back: it comes again after the queue's `backoff`, and after `retries` of these it is in
        `dead`. The lease is extended while the block runs.
        """
        return self.receive(timeout, lease)

    def _receive(self, timeout: float | None, lease: float | None) -> Any:
        provider = self._bus.provider if not self._closed else self._provider()
        try:
            found = provider.receive(self._queue, 0, lease=lease)
            if found:
                return found[0]
        except QueueNotFound:  # freed before we came
            provider.declare(self._queue)
        return self._receive_later(timeout, lease)

    def _receive_later(self, timeout: float | None, lease: float | None) -> Any:
        found: Any = ()
        deadline = None if timeout is None else time.monotonic() + timeout
        while not found:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise Empty
            found = self._wait(left, lease)
        return found[0]

    def _wait(self, timeout: float | None, lease: float | None) -> Any:
        try:
            return self._provider().receive(self._queue, timeout, lease=lease)
        except PymqError:
            if not threading.main_thread().is_alive():  # the program has ended, and takes its daemon threads with it: without a word
                threading.Event().wait()
            raise

    def _decode(self, message: bytes) -> Any:
        prefix, decode, start = self._latest  # most have the prefix of the one before: that is 0.1 us less than to look it up
        return decode(message[start:]) if message.startswith(prefix, SEQUENCE_BYTES) else self._decode_other(message)

    def _decode_other(self, message: bytes) -> Any:
        packed = frames.prefix_of(message)
        found = self._plain.get(packed)
        if found is not None:
            decode, start = found
            self._latest = message[SEQUENCE_BYTES:start], decode, start
            return decode(message[start:])
        from pymq import codec

        frame = frames.unpack(message)
        decode = codec.decoder_for(frame.prefix.form, frame.prefix.type_name, self._type)
        if not frame.prefix.flags:  # the payload of the usual ones begins behind the prefix
            if len(self._plain) >= MOST_PREFIXES:
                self._plain.clear()
            self._plain[packed] = decode, frames.START.size + len(packed)
        return decode(frame.payload)

    def qsize(self) -> int:
        """How many items wait: the delayed count, the leased do not."""
        return self._provider().size(self._queue)

    def empty(self) -> bool:
        """Whether none waits."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether `maxsize` items wait."""
        return 0 < self.maxsize <= self.qsize()

    @property
    def dead(self) -> DeadLetters:
        """The items that failed too often."""
        return DeadLetters(self._bus, self._policy.dead_queue)

    def close(self) -> None:
        """This object is used no more; the queue and its items stay."""
        self._closed = True

    def free(self) -> None:
        """The queue and its items are gone; whoever waits in `get` gets QueueNotFound; a later `put` makes it anew.

        Its dead letters stay: `dead.purge()` removes them.
        """
        self._provider().delete(self._queue)

    def _provider(self) -> Provider:
        if self._closed:
            raise closed(self.name)
        return self._bus.provider

    def __repr__(self) -> str:
        return f"Queue({self.name!r})"


class Delivery(Generic[T]):
    """One leased item: `value`, `attempt` (from 1), `headers`; settle it once, or leave that to a `with` block."""

    def __init__(self, bus: EventBus, leased: Leased, value: T, lease: float) -> None:
        self._bus = bus
        self._leased = leased
        self._lease = lease
        self.value = value
        self.attempt: int = leased.attempt
        self.headers: dict[str, Any] = leased.frame.options.get("headers", {})
        self._settled = False

    def ack(self) -> None:
        """It is done: nobody gets it again. Raises LeaseLost where the lease had ended; then somebody else's delivery is untouched."""
        self._settled = True
        self._bus.provider.ack(self._leased.receipt)

    def nack(self, delay: float = 0) -> None:
        """Somebody gets it again, after `delay` seconds. Raises LeaseLost."""
        check_seconds(delay=delay)
        self._settled = True
        self._bus.provider.nack(self._leased.receipt, delay)

    def extend(self, seconds: float) -> None:
        """The lease ends `seconds` from now. Raises LeaseLost."""
        check_lease(seconds)
        self._bus.provider.extend(self._leased.receipt, seconds)

    def __enter__(self) -> Delivery[T]:
        self._bus.leases.hold(self._leased.receipt, self._lease)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._bus.leases.release(self._leased.receipt)
        if self._settled:
            return
        if error is None:
            self.ack()
            return
        try:
            self._fail(error)
        except LeaseLost as lost:
            log.warning("%s: the item was given to somebody else before the block failed", lost)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, Retry):
            self._leased.retry(error)
        elif isinstance(error, Reject):
            self._leased.bury(error)
        elif not isinstance(error, Exception):  # the program, or the task, is told to end: Ctrl-C, SystemExit, CancelledError
            self._leased.retry(Retry())
        else:
            self._leased.fail(error)

    def __repr__(self) -> str:
        return f"Delivery({self.value!r}, attempt={self.attempt})"


class DeadLetter:
    """A message that failed too often: `value`, `channel`, and `headers` that say why (`dead-error`, `dead-text`, …).

    What cannot become an instance of its class, since that is another version here, is a dict of its fields.
    """

    def __init__(self, frame: Frame) -> None:
        self.headers: dict[str, Any] = frame.options.get("headers", {})
        self.channel: str = frame.prefix.channel
        self.value: Any = _readable(frame)

    def __repr__(self) -> str:
        return f"DeadLetter({self.value!r}, {self.headers.get('dead-error')}: {self.headers.get('dead-text')})"


class DeadLetters:
    """The dead-letter queue of a group or a queue. Iterating looks at all, oldest first, and leaves them where they are."""

    def __init__(self, bus: EventBus, name: str) -> None:
        self._bus = bus
        self._queue = name

    def qsize(self) -> int:
        """How many there are."""
        return self._bus.provider.size(self._queue)

    __len__ = qsize

    def __iter__(self) -> Iterator[DeadLetter]:
        held = list(self._each(LEASE, self.qsize()))
        try:
            return iter([DeadLetter(frames.unpack(message)) for message, _ in held])
        finally:
            self._put_back([receipt for _, receipt in held])

    def requeue(self) -> int:
        """Give all back to the queues they came from, to be tried again from the start; how many: fewer where one of those is full."""
        provider, done = self._bus.provider, 0
        full: list[Any] = []
        declared: set[str] = set()
        try:
            for message, receipt in self._each(LEASE, self.qsize()):
                origin, again = _tried_never(frames.unpack(message))
                if origin not in declared:
                    provider.declare(origin)
                    declared.add(origin)
                try:
                    provider.send(origin, again, timeout=0)
                except Full:
                    full.append(receipt)
                    continue
                done += 1
                with suppress(LeaseLost):
                    provider.ack(receipt)
        finally:
            self._put_back(full)
        return done

    def purge(self) -> int:
        """Forget all; how many."""
        return sum(1 for _ in self._each(None, sys.maxsize))

    def _each(self, lease: float | None, most: int) -> Iterator[Any]:
        """A few at a time, so that each few have the whole lease; at most so many, since those given back may die again at once."""
        with suppress(QueueNotFound):
            while most > 0 and (batch := self._bus.provider.receive(self._queue, 0, limit=min(most, AT_ONCE), lease=lease)):
                yield from batch
                most -= len(batch)

    def _put_back(self, receipts: list[Any]) -> None:
        for receipt in receipts:
            with suppress(LeaseLost):  # then it is back already
                self._bus.provider.nack(receipt)


def closed(name: str) -> ValueError:
    """For whoever uses a queue's object after its `close`."""
    return ValueError(f"the queue {name!r} was closed; get it again from the bus")


_numbers = itertools.count(1)
"""Of all items, whatever their queues: a program may make an object for each item, and a range for each would come to an end."""


def _check_options(provider: Provider, delay: float, ttl: float | None, priority: int) -> None:
    check_times(provider, delay, ttl)
    levels = provider.features.priorities
    if type(priority) is not int or not 0 <= priority < levels:
        raise ValueError(f"priority={priority!r}: this provider has the levels 0 to {levels - 1}")


def _with_options(message: bytes, provider: Provider, delay: float, ttl: float | None, priority: int) -> bytes:
    """A copy that is dead-lettered and tried again keeps its priority and its expiry."""
    if ttl is None and not priority:
        return message
    options = {"priority": priority} | ({} if ttl is None else {"expires": provider.clock() + delay + ttl})
    return frames.unpack(message)._replace(options=options).pack()


def _tried_never(letter: Frame) -> tuple[str, bytes]:
    """The queue that a dead letter came from, and what was in it."""
    headers = {name: value for name, value in letter.options.get("headers", {}).items() if name not in DEAD_HEADERS}
    return letter.options["origin"], letter._replace(options={"headers": headers} if headers else {}).pack()


def _readable(frame: Frame) -> Any:
    from pymq import codec

    for decoder_for in (codec.decoder_for, codec.plain_decoder_for):  # the second: the class that this program has is another version
        try:
            return decoder_for(frame.prefix.form, frame.prefix.type_name)(frame.payload)
        except CodecError:
            pass
    return frame.payload


def seconds_to_wait(block: bool, timeout: float | None) -> Any:
    """`queue.Queue`'s two parameters as one: None waits without end, 0 is now. Raises ValueError for a negative one."""
    if not block:
        return 0.0
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout={timeout!r}: must be 0 or more seconds")
    return timeout
