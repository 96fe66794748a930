"""Queues, awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from pymq import queues
from pymq.asyncio._port import with_room
from pymq.deliveries import LEASE
from pymq.exceptions import CodecError, Reject, Retry
from pymq.provider.base import Receipt
from pymq.queues import DeadLetter
from pymq.routes import check_lease

if TYPE_CHECKING:
    from pymq.asyncio._core import Core

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")


class Queue(Generic[T]):
    """`pymq.Queue` with its methods to be awaited: a cancelled one has not taken anything, and has not put anything on local providers.

    On a network provider a put or get that is cancelled while its call is on the way may have been made: what it got goes back.
    """

    def __init__(self, core: Core, name: str, type: Any = Any, maxsize: int = 0, **retrying: Any) -> None:
        self._core = core
        self._make: Callable[[], queues.Queue[T]] = lambda: queues.Queue(core, name, type, maxsize, **retrying)
        self._sync: queues.Queue[T] | None = self._make() if core.port.direct else None
        self._closed = False
        self.name = name
        self.maxsize = maxsize

    async def _opened(self) -> queues.Queue[T]:
        if self._closed:  # not `_sync`: a thread may receive with that for other objects of the same queue
            raise queues.closed(self.name)
        if self._sync is None:
            self._sync = await self._core.port.in_thread(self._make)
        return self._sync

    async def put(
        self,
        item: T,
        block: bool = True,
        timeout: float | None = None,
        *,
        delay: float = 0,
        ttl: float | None = None,
        priority: int = 0,
    ) -> None:
        """`pymq.Queue.put`: the item is kept when this returns; waits for room as long as that does, then raises Full."""
        sync = await self._opened()
        seconds = queues.seconds_to_wait(block, timeout)
        put = partial(sync.put, item, False, delay=delay, ttl=ttl, priority=priority)
        await with_room(self._core.port, put, seconds)

    async def put_nowait(self, item: T, **options: Any) -> None:
        """`put`, or Full at once."""
        await self.put(item, False, **options)

    async def get(self, block: bool = True, timeout: float | None = None) -> T:
        """`pymq.Queue.get`: removed when this returns. Raises Empty after `timeout` seconds."""
        sync, port = await self._opened(), self._core.port
        seconds = queues.seconds_to_wait(block, timeout)
        if port.direct:
            return await port.poll(lambda left: sync.get(True, left), sync._queue, seconds, 0, _nothing)
        delivery = await self._receive(sync, seconds, LEASE)
        return await self._keep(delivery)

    async def _keep(self, delivery: queues.Delivery[T]) -> T:
        """Removed, unless this is cancelled: then it goes back, to the end where its removal was on the way already."""
        port, removal = self._core.port, _Removal(delivery)
        try:
            await asyncio.shield(port.in_thread(removal.remove))
        except asyncio.CancelledError:
            if removal.cancel():
                port.post(delivery._leased.put_again)
            raise
        return delivery.value

    async def get_nowait(self) -> T:
        """`get`, or Empty at once."""
        return await self.get(False)

    async def receive(self, timeout: float | None = None, lease: float = LEASE) -> Delivery[T]:
        """`pymq.Queue.receive`: at least once; it comes again unless it is acked within `lease` seconds. Raises Empty."""
        sync = await self._opened()
        return Delivery(self._core, await self._receive(sync, queues.seconds_to_wait(True, timeout), lease))

    async def _receive(self, sync: queues.Queue[T], seconds: float | None, lease: float) -> queues.Delivery[T]:
        check_lease(lease)
        port, deadline = self._core.port, None if seconds is None else monotonic() + seconds

        def attempt(left: float) -> tuple[bytes, Receipt]:
            return sync._receive(left, lease)  # type: ignore[no-any-return]

        def give_back(received: tuple[bytes, Receipt]) -> None:
            sync._leased(*received).retry(Retry())  # a nack would count: nothing is dead because those who waited were impatient

        while True:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            message, receipt = await port.poll(attempt, sync._queue, left, lease, give_back)
            leased = sync._leased(message, receipt)
            try:
                return sync._delivery(leased, message, lease)  # here: a thread may have received for an object of another type
            except Reject as error:
                await port.do(leased.bury, error)
            except CodecError as error:
                await port.do(leased.bury, error)
                raise

    def take(self, timeout: float | None = None, lease: float = LEASE) -> Take[T]:
        """`async with queue.take() as job:` acks when the block ends well; one that raises gives the item back, as `pymq.Queue.take`.

        A block that is cancelled gives it back, too, and that is no failure.
        """
        return Take(self, timeout, lease)

    async def qsize(self) -> int:
        """How many items wait: the delayed count, the leased do not."""
        return await self._core.port.do((await self._opened()).qsize)

    async def empty(self) -> bool:
        """Whether none waits."""
        return await self.qsize() == 0

    async def full(self) -> bool:
        """Whether `maxsize` items wait."""
        return 0 < self.maxsize <= await self.qsize()

    @property
    def dead(self) -> DeadLetters:
        """The items that failed too often."""
        return DeadLetters(self._core, f"queue-dead/{self.name}")

    async def close(self) -> None:
        """This object is used no more; the queue and its items stay."""
        await self._opened()
        self._closed = True

    async def free(self) -> None:
        """The queue and its items are gone; whoever waits in `get` gets QueueNotFound; a later `put` makes it anew."""
        await self._core.port.do((await self._opened()).free)

    def __repr__(self) -> str:
        return f"pymq.asyncio.Queue({self.name!r})"


class Delivery(Generic[T]):
    """One leased item: `value`, `attempt` (from 1), `headers`; settle it once, or leave that to an `async with` block."""

    def __init__(self, core: Core, sync: queues.Delivery[T]) -> None:
        self._core = core
        self._sync = sync
        self.value = sync.value
        self.attempt: int = sync.attempt
        self.headers: dict[str, Any] = sync.headers

    async def ack(self) -> None:
        """It is done: nobody gets it again. Raises LeaseLost."""
        await self._core.port.do(self._sync.ack)

    async def nack(self, delay: float = 0) -> None:
        """Somebody gets it again, after `delay` seconds. Raises LeaseLost."""
        await self._core.port.do(self._sync.nack, delay)

    async def extend(self, seconds: float) -> None:
        """The lease ends `seconds` from now. Raises LeaseLost."""
        await self._core.port.do(self._sync.extend, seconds)

    async def __aenter__(self) -> Delivery[T]:
        self._sync.__enter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        await self._core.port.do_at_once(self._sync.__exit__, kind, error, trace)

    def __repr__(self) -> str:
        return repr(self._sync)


class Take(Generic[T]):
    """What `async with` makes a delivery of."""

    def __init__(self, queue: Queue[T], timeout: float | None, lease: float) -> None:
        self._queue = queue
        self._timeout = timeout
        self._lease = lease
        self._delivery: Delivery[T] | None = None

    async def __aenter__(self) -> Delivery[T]:
        self._delivery = await self._queue.receive(self._timeout, self._lease)
        return await self._delivery.__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        assert self._delivery is not None
        await self._delivery.__aexit__(kind, error, trace)


class DeadLetters:
    """The dead-letter queue of a group or a queue. `async for` looks at all, oldest first, and leaves them where they are."""

    def __init__(self, core: Core, name: str) -> None:
        self._core = core
        self._sync = queues.DeadLetters(core, name)

    async def qsize(self) -> int:
        """How many there are."""
        return await self._core.port.do(self._sync.qsize)

    async def __aiter__(self) -> AsyncIterator[DeadLetter]:
        for letter in await self._core.port.do(list, self._sync):
            yield letter

    async def requeue(self) -> int:
        """Give all back to the queues they came from, to be tried again from the start; how many: fewer where one of those is full."""
        return await self._core.port.do(self._sync.requeue)

    async def purge(self) -> int:
        """Forget all; how many."""
        return await self._core.port.do(self._sync.purge)


class _Removal(Generic[T]):
    """An ack that may be cancelled while a thread makes it: whoever comes second, the ack or the cancellation, puts the item again."""

    def __init__(self, delivery: queues.Delivery[T]) -> None:
        self._delivery = delivery
        self._mutex = threading.Lock()
        self._is_done = self._is_cancelled = False

    def remove(self) -> None:
        self._delivery.ack()
        with self._mutex:
            self._is_done = True
            again = self._is_cancelled
        if again:
            self._delivery._leased.put_again()

    def cancel(self) -> bool:
        """Whether it had been removed already."""
        with self._mutex:
            self._is_cancelled = True
            return self._is_done


def _nothing(_: object) -> None:
    """What a get has removed has been returned."""
