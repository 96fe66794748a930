"""How a loop reaches a provider: directly where the provider has a `readiness` to wait on, by threads of our own where it has none."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import Empty, Full
from typing import Any, ParamSpec, TypeVar

from pymq.asyncio._threads import SLICE, Fetches, fail, in_thread, resolve
from pymq.dispatch import join
from pymq.exceptions import NotInitialized, ProviderError, QueueNotFound
from pymq.patience import Patience
from pymq.provider.base import Delivery, Provider, Readiness

log = logging.getLogger("pymq")
P = ParamSpec("P")
T = TypeVar("T")


_TELL_SECONDS = 0.05
"""How long a thread may take to begin to receive before it is woken once more; nearly always the first wake-up is enough."""


NOT_STARTED = "the bus is not started: use it inside `async with pymq.asyncio.connect() as bus`"


class Port:
    """One loop's way to one provider. Used in the loop's thread only, but for `in_loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, provider: Provider, direct: bool) -> None:
        self.loop = loop
        self.provider = provider
        self.direct: bool = direct
        self.is_inherited: bool = False
        """In a forked child: what the loop waits with is shared with the parent, and descriptors have other meanings."""
        self._thread = threading.get_ident()
        self._pool = ThreadPoolExecutor(32, thread_name_prefix="pymq-asyncio")
        self._fetches = Fetches(loop, self.post, self.spawn)
        self._threads: list[threading.Thread] = []
        self._waiting: set[asyncio.Future[None]] = set()
        self._polling = 0
        self._closed = self._ended = False

    def here(self) -> Port:
        """This one, which the running loop may use. Raises RuntimeError in another."""
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("this bus was started in another loop, and not shut down there: each loop makes a bus of its own")
        return self

    async def do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a call that may talk to the provider, but has nothing to wait for."""
        return call(*args, **kwargs) if self.direct else await self.in_thread(call, *args, **kwargs)

    async def do_at_once(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`do`, begun before anything else runs, such as the end of the bus; it goes on when this is cancelled."""
        if self.direct:
            return call(*args, **kwargs)
        self.raise_if_ended()
        return await asyncio.shield(self.loop.run_in_executor(self._pool, partial(call, *args, **kwargs)))

    async def in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a call that waits. It goes on when this is cancelled."""
        self.raise_if_ended()
        pool = None if self.direct else self._pool
        return await in_thread(self.loop, pool, partial(call, *args, **kwargs))

    def raise_if_ended(self) -> None:
        """Raises NotInitialized where nothing may be asked of the provider any more."""
        if self._ended:
            raise NotInitialized("the bus was shut down")

    def post(self, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Make the call for its effect; nobody waits for it."""
        if self.direct:
            call(*args, **kwargs)
        else:
            with suppress(RuntimeError):  # the bus was shut down: what was leased is given back by that
                self._pool.submit(_logging, partial(call, *args, **kwargs))

    def in_loop(self, call: Callable[..., object], *args: Any) -> None:
        """Call it in the loop's thread: now, if this is that one. From any thread."""
        if threading.get_ident() == self._thread:
            call(*args)
        else:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(call, *args)

    def spawn(self, name: str, target: Callable[..., None], *args: Any) -> None:
        """A thread that receives. The provider is not closed before it has ended."""
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        self._threads = [known for known in self._threads if known.is_alive()] + [thread]
        thread.start()

    async def poll(
        self, attempt: Callable[[float], T], queue: str, timeout: float | None, lease: float, give_back: Callable[[T], object]
    ) -> T:
        """The first result of `attempt(seconds to wait)` that is not Empty; Empty after `timeout` seconds.

        Where this is cancelled, what was received is given back, or goes to the next who waits for that queue with that lease.
        """
        deadline = math.inf if timeout is None else self.loop.time() + timeout
        if self.direct:
            return await self._poll_in_loop(attempt, queue, deadline)
        return await self._fetches.fetch((queue, lease), attempt, deadline, give_back)

    async def _poll_in_loop(self, attempt: Callable[[float], T], queue: str, deadline: float) -> T:
        """There is no `await` between an attempt and the return: a cancellation comes before it, or too late."""
        with suppress(Empty):
            return attempt(0)
        ready = self.provider.readiness(queue)
        assert ready is not None
        self._polling += 1
        try:
            while (left := deadline - self.loop.time()) > 0:
                armed = ready.arm()  # raises QueueNotFound where the queue was freed meanwhile; an attempt would make it anew
                if armed == 0:
                    with suppress(Empty):
                        return attempt(0)
                await self._readable(ready, left if armed is None else min(armed, left))
            raise Empty
        finally:
            self._polling -= 1
            if not self.is_inherited:
                ready.close()

    async def _readable(self, ready: Readiness, seconds: float) -> None:
        if seconds <= 0:
            return await asyncio.sleep(0)
        if self._closed:
            raise NotInitialized("the bus was shut down")
        future: asyncio.Future[None] = self.loop.create_future()
        self._waiting.add(future)
        self.loop.add_reader(ready.fd, resolve, future)
        timer = None if seconds == math.inf else self.loop.call_later(seconds, resolve, future)
        try:
            return await future
        finally:
            self._waiting.discard(future)
            if not self.is_inherited:
                self.loop.remove_reader(ready.fd)
            if timer is not None:
                timer.cancel()

    def stop(self) -> None:
        """Whoever waits gets NotInitialized."""
        self._closed = True
        self._fetches.close(NotInitialized("the bus was shut down"))
        for future in self._waiting:
            fail(future, NotInitialized("the bus was shut down"))

    async def let_go(self) -> None:
        """Whoever waited has let go of the provider when this returns."""
        while self._polling:
            await asyncio.sleep(0)

    def end(self) -> None:
        """The threads end. Waits for them and for what was posted: not to be called in the loop's thread."""
        self._ended = True
        join(self._threads, self.provider.wake, time.monotonic() + 2 * SLICE)
        self._pool.shutdown()


class NoPort:
    """In the place of a port: raises NotInitialized, or, in a forked child, makes one for the loop that runs at the first use."""

    def __init__(self, make: Callable[[], Port] | None = None) -> None:
        self._make = make
        self._made: Port | None = None

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            if self._make is None:
                raise NotInitialized(NOT_STARTED)
            self._made = self._make()
        return getattr(self._made, name)  # who began with this one goes on with it


def is_direct(provider: Provider) -> bool:
    """Whether a loop can wait for it without a thread."""
    return type(provider).readiness is not Provider.readiness


async def send_patiently(port: Port, queue: str, message: bytes, seconds: float) -> None:
    """Send to an inbox that is full, as soon as it is not; after so many seconds, the end of the bus or of that process, never."""
    try:
        await with_room(port, lambda: port.provider.send(queue, message, timeout=0), seconds)
    except NotInitialized:
        pass
    except (Full, ProviderError) as error:
        log.warning("a message to %s was dropped: %s", queue, error)


async def with_room(port: Port, attempt: Callable[[], None], timeout: float | None) -> None:
    """Try until there is room. Raises Full after `timeout` seconds, NotInitialized when the bus ends.

    Looks again and again, at most 20 ms apart.
    """
    deadline = None if timeout is None else port.loop.time() + timeout
    pause = 0.0005
    while True:
        try:
            return await port.do(attempt)
        except Full:
            if deadline is not None and port.loop.time() >= deadline:
                raise
        await asyncio.sleep(pause if deadline is None else max(0.0, min(pause, deadline - port.loop.time())))
        pause = min(pause * 2, 0.02)
        port.raise_if_ended()


def _logging(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:
        log.warning("%s", error)


class Inflow:
    """What comes to one temporary queue, batch by batch: `deliver(messages)` says whether it has more to do with them.

    It is called with [] while it says so, and then again when there are new messages. `mourn(queues)` is told of those watched whose
    processes have died, once all that had come before has been delivered; `awaited` says which to look at where no thread does.
    """

    def __init__(
        self,
        port: Port,
        queue: str,
        deliver: Callable[[Sequence[Delivery]], bool],
        awaited: Callable[[], Collection[str]] = tuple,
        mourn: Callable[[Collection[str]], object] = len,
    ) -> None:
        self._port = port
        self._queue = queue
        self._deliver = deliver
        self._awaited = awaited
        self._mourn = mourn
        self._watched: set[str] = set()
        self._known: list[str] = []
        self._ready: Readiness | None = None
        self._timer: asyncio.Handle | None = None
        self._is_behind = False
        self._closed = False
        self._next = threading.Event()
        self._patience = Patience()
        self._asked = math.inf
        self._looks = False

    def start(self) -> None:
        """The queue exists and is read from now on."""
        self._port.provider.declare(self._queue, temporary=True)
        if self._port.direct:
            self._ready = self._port.provider.readiness(self._queue)
            assert self._ready is not None
            self._port.loop.add_reader(self._ready.fd, self._look)
            self._look()
        else:
            self._port.spawn("pymq-asyncio-inbox", self._read)

    def _look(self) -> None:
        if self._closed:
            return
        assert self._ready is not None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        try:
            gone: Collection[str] = ()
            batch = [] if self._is_behind else self._port.provider.receive(self._queue, 0)
            if not (batch or self._is_behind):
                batch, gone = self._last_of(self._awaited())
            if batch and self._asked < math.inf:
                self._patience.learn(self._looks, False, self._port.loop.time() - self._asked)
                self._asked, self._looks = math.inf, False
            self._is_behind = self._deliver(batch)
            self._mourn(gone)
            left = 0.0 if self._is_behind else self._ready.arm()
        except ProviderError as error:
            log.error("receiving failed; trying again: %s", error)
            left = 0.1
        if left is not None and not self._closed:
            self._timer = self._port.loop.call_later(left, self._look) if left else self._port.loop.call_soon(self._look)

    def expect(self) -> None:
        """An answer will come: the loop goes on without sleeping until then, or for as long as is wise."""
        if self._ready is None or self._looks:
            return
        spin = self._port.provider.spin
        seconds = self._patience.seconds if spin is None else spin
        self._asked = self._port.loop.time()
        self._looks = seconds > 0
        if self._looks:
            self._go_on(self._asked + seconds)

    def _go_on(self, end: float) -> None:
        if not self._looks:
            return
        if self._port.loop.time() < end:
            self._port.loop.call_soon(self._go_on, end)
        else:
            self._patience.learn(True, True, 0)
            self._asked, self._looks = math.inf, False

    def _read(self) -> None:
        while not self._closed:
            try:
                self._known = list(self._watched)
                gone: Collection[str] = ()
                batch = self._port.provider.receive(self._queue, None, watch=self._known)
                if not batch:
                    batch, gone = self._last_of(self._known)
            except Exception as error:
                if not self._closed:
                    log.error("receiving failed; trying again: %s", error)
                    self._next.wait(0.1)
                continue
            self._next.clear()
            self._port.in_loop(self._hand_over, batch, gone)
            while not (self._next.wait(SLICE) or self._closed):
                pass

    def _last_of(self, queues: Collection[str]) -> tuple[list[Delivery], Collection[str]]:
        """What had come before some of those processes died, and which have; nothing comes from them after that."""
        gone = {queue for queue in queues if not lives(self._port.provider, queue)}
        batch: list[Delivery] = []
        while gone and (more := self._port.provider.receive(self._queue, 0)):
            batch += more
        return batch, gone

    def _hand_over(self, batch: Sequence[Delivery], gone: Collection[str]) -> None:
        is_behind = False
        try:
            is_behind = not self._closed and self._deliver(batch)
            self._watched.difference_update(gone)
            self._mourn(gone)
        finally:  # a thread that waits for ever would hear nothing more
            if is_behind:
                self._port.loop.call_soon(self._hand_over, [], ())
            else:
                self._next.set()

    def watch(self, queue: str) -> None:
        """`mourn` is called when that queue's process dies. Where it is dead already, soon."""
        if queue in self._watched:
            return
        if len(self._watched) > 100 and self._ready is not None:  # a thread looks itself
            self._watched = {known for known in self._watched if lives(self._port.provider, known)}
        self._watched.add(queue)
        if self._ready is None:
            self._tell_of(queue)
        elif not self._ready.watch(queue):
            self._port.loop.call_soon(self._look)

    def _tell_of(self, queue: str) -> None:
        """Until the thread watches it: a wake-up ends a receive that is blocked, not one that is about to begin without it."""
        if queue in self._watched and queue not in self._known and not self._closed:
            self._port.post(self._port.provider.wake)
            self._port.loop.call_later(_TELL_SECONDS, self._tell_of, queue)

    def abandon(self) -> None:
        """In a forked child: nothing is delivered here. What the loop waits with, and its threads' locks, are left alone."""
        self._closed = True

    def close(self) -> None:
        """Nothing is delivered any more. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._next.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._ready is not None:
            if not self._port.loop.is_closed():
                self._port.loop.remove_reader(self._ready.fd)
            self._ready.close()


def lives(provider: Provider, queue: str) -> bool:
    """Whether that temporary queue's process lives: an empty message is ignored by everybody."""
    try:
        provider.send(queue, b"", timeout=0)
    except QueueNotFound:
        return False
    except Full:
        pass
    return True
