"""The bus of a loop."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, TypeVar, overload

from pymq.asyncio._calls import MultiStub, Stub
from pymq.asyncio._core import Core
from pymq.asyncio._events import Events
from pymq.asyncio._port import NOT_STARTED, Port
from pymq.asyncio._queues import DeadLetters, Queue
from pymq.asyncio._threads import in_thread
from pymq.bus import SHUTDOWN_SECONDS
from pymq.decorators import SubscribeOptions, decorator, options_of, subscriber_decorator
from pymq.deliveries import BACKOFF, RETRIES
from pymq.exceptions import NotInitialized
from pymq.groups import Group as SyncGroup
from pymq.handlers import channels_of
from pymq.provider import Config
from pymq.provider.base import Health, WouldWait
from pymq.routes import Route
from pymq.rpc import StubMethod
from pymq.topics import check_channel

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger("pymq")
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


def connect(config: Config | str | None = None) -> EventBus:
    """A bus for `async with pymq.asyncio.connect(...) as bus`: started when the block begins, shut down when it ends.

    `config` is a config or a URL; None takes the URL in the environment's PYMQ_URL, and shared memory without one.
    """
    return EventBus(config)


class _Start:
    """One start, however many tasks await it: undone where every one of them is cancelled."""

    def __init__(self, opening: asyncio.Future[None]) -> None:
        self.opening = opening
        self.wanted = 0


class _Declared(NamedTuple):
    """What a decorator has said; `begin` does it, and gives what undoes it."""

    verb: str
    function: Any
    options: dict[str, Any]
    begin: Callable[[], Callable[[], None]]


class EventBus:
    """Events, queues and remote calls from one event loop: `pymq.EventBus` with its verbs to be awaited.

    Handlers run in the loop: `async def` ones as tasks, serial per subscription; a plain function holds up the loop while it runs.
    Not for other threads or loops: each loop makes its own. Several buses, and `pymq.init`'s, live side by side in one process.
    """

    def __init__(self, config: Config | str | None = None) -> None:
        self._core = Core(os.environ.get("PYMQ_URL") or None if config is None else config)
        self._declared: list[_Declared] = []
        self._routes: dict[Any, Route] = {}
        self._iterations: weakref.WeakSet[Events[Any]] = weakref.WeakSet()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._start: _Start | None = None
        self._ending: asyncio.Task[None] | None = None
        self._closing = threading.Lock()

    # ------------------------------------------------------------------ lifecycle

    async def start(self) -> None:
        """Open the provider, and apply what was subscribed and exposed before. Idempotent; waits for a shutdown that still runs.

        One that fails or is cancelled has opened nothing. Raises ProviderError, and RuntimeError while the bus runs in another loop.
        """
        self._leave_closed_loop()
        while self._ending is not None:
            await asyncio.shield(self._ending)
        start = self._start
        if start is None:
            self._loop = asyncio.get_running_loop()
            start = self._start = _Start(asyncio.ensure_future(self._begin()))
        start.wanted += 1
        try:
            await asyncio.shield(start.opening)
        except asyncio.CancelledError:
            start.wanted -= 1
            await asyncio.shield(self._close_again(start, 0))
            raise

    async def _begin(self) -> None:
        try:
            await self._open()
        except GeneratorExit:  # its loop was closed meanwhile, which the next start, or a shutdown, looks after
            raise
        except BaseException:
            self._start = None
            await self.shutdown(0)
            raise

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await in_thread(loop, None, self._core.start)
        except asyncio.CancelledError:  # by the end of the loop: a thread that opens a provider cannot be called back
            await in_thread(loop, None, self._core.shutdown)
            raise
        port = self._core.enter()
        self._is_open = True
        self._ended = asyncio.Event()
        if port.direct:
            self._routes = self._core.routes
        for declared in self._declared:
            await self._do_or_undo(declared.begin)

    async def _close_again(self, start: _Start, timeout: float) -> None:
        await asyncio.wait([start.opening])
        if start.wanted <= 0 and self._start is start:
            await self.shutdown(timeout)

    def _leave_closed_loop(self) -> None:
        """Begin to close what a loop left that was closed without a shutdown. Raises RuntimeError where another loop runs the bus."""
        port = self._core.port
        loop = port.loop if self._is_open else self._loop
        if loop is None or not loop.is_closed():
            if self._is_open:
                port.here()
            return
        for events in list(self._iterations):
            events.end()
        self._loop, self._is_open, self._start, self._routes = asyncio.get_running_loop(), False, None, {}
        self._ending = asyncio.ensure_future(in_thread(self._loop, None, partial(self._close_at_once, port)))
        self._ending.add_done_callback(partial(self._left, port))

    async def shutdown(self, timeout: float = SHUTDOWN_SECONDS) -> None:
        """Stop receiving, give handlers `timeout` seconds to end, cancel them, and close. Whoever waits gets NotInitialized.

        Goes on to its end where it is cancelled; only the end of the loop makes it close at once. In the handler of a group it
        returns at once: the bus closes when the handler has returned and its event was acked.
        """
        self._leave_closed_loop()
        start = self._start
        if start is not None and not self._is_open:  # a start cannot be called back
            start.wanted = 0
            await asyncio.shield(self._close_again(start, timeout))
            if self._start is start:  # another has been asked for meanwhile
                return
        handler = self._core.handler()
        is_acked = not self._core.is_of_a_group(handler)
        if self._is_open:
            self._is_open, self._start, self._routes = False, None, {}
            port = self._core.port
            self._ending = asyncio.ensure_future(self._shut_down(port, timeout, handler if is_acked else None))
            self._ending.add_done_callback(partial(self._end, port))
        if self._ending is not None and is_acked:
            await asyncio.shield(self._ending)

    async def _shut_down(self, port: Port, timeout: float, handler: asyncio.Task[Any] | None) -> None:
        port.post(self._core.remotes.withdraw)  # first: who asks meanwhile asks somebody else
        self._core.quiet()
        self._core.caller.close()
        port.stop()
        for events in list(self._iterations):
            events.end()
        await port.let_go()
        abandoned = await self._core.tasks.finish(timeout, but=handler)
        await in_thread(port.loop, None, partial(self._close, port))
        if abandoned:
            log.warning("shutdown after %s s abandoned %s", timeout, ", ".join(abandoned))

    def _end(self, port: Port, ending: asyncio.Task[None]) -> None:
        self._left(port, ending)
        self._ended.set()

    def _left(self, port: Port, ending: asyncio.Task[None]) -> None:
        if ending.cancelled():  # by the end of the loop
            self._close_at_once(port)
        self._loop = self._ending = None

    def _close_at_once(self, port: Port) -> None:
        self._core.end_calls()
        if isinstance(port, Port):  # no port: of a start that the end of its loop has cut short
            port.stop()
        self._close(port)

    def _close(self, port: Port) -> None:
        """Once: of a loop that was closed in the middle of a shutdown, the thread of that may come when another loop has begun anew."""
        with self._closing:
            if self._core.port is port:
                if isinstance(port, Port):
                    port.end()
                self._core.shutdown()

    async def __aenter__(self) -> EventBus:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    async def wait(self, timeout: float | None = None) -> bool:
        """Until the bus is shut down, for a program that only listens, or for `timeout` seconds; whether it is."""
        self._opened()
        try:
            await asyncio.wait_for(self._ended.wait(), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    def _opened(self) -> Port:
        if not self._is_open:
            raise NotInitialized(NOT_STARTED)
        return self._core.port

    def _not_closed(self) -> Port:
        """As `_opened`, and while a shutdown waits for handlers: they may publish, as they may put."""
        return self._core.port if self._ending is not None else self._opened()

    # ------------------------------------------------------------------ events

    async def publish(
        self,
        event: Any,
        channel: str | None = None,
        *,
        headers: dict[str, Any] | None = None,
        delay: float = 0,
        ttl: float | None = None,
    ) -> int | None:
        """`pymq.publish`, awaited. Returns without a pause unless a receiver is full, or the provider is reached over a network.

        One that is cancelled while it waits has reached those that were ready.
        """
        try:
            if channel is None and headers is None and ttl is None and not delay:
                route = self._routes.get(type(event))
                if route is not None:
                    send = route.send  # as in `EventBus.publish`
                    return send(event)
            return await self._not_closed().do(self._core.publish, event, channel, headers=headers, delay=delay, ttl=ttl)
        except WouldWait as pause:
            return await self._not_closed().in_thread(pause.finish)

    async def subscribe(
        self,
        callback: Callable[..., Any],
        channel: str | None = None,
        pattern: bool = False,
        *,
        group: str | None = None,
        retries: int | None = None,
        backoff: float | None = None,
        lease: float | None = None,
        workers: int | None = None,
    ) -> None:
        """`pymq.subscribe`, awaited: in force when it returns. `async def` handlers run in this loop.

        `workers` is for groups, too. One that is cancelled is not in force.
        """
        how = retries, backoff, lease, workers
        await self._do_or_undo(self._core.subscribing(callback, channel, pattern, group, *how))

    async def _do_or_undo(self, call: Callable[[], Callable[[], None]]) -> None:
        """A call that may be in a thread's hands when this is cancelled: then it is waited for, and undone by what it returns."""
        port = self._opened()
        if port.direct:
            call()
            return
        doing = asyncio.ensure_future(port.in_thread(call))
        try:
            await asyncio.shield(doing)
        except asyncio.CancelledError:
            await asyncio.shield(self._undo(port, doing))
            raise

    async def _undo(self, port: Port, doing: asyncio.Future[Callable[[], None]]) -> None:
        await asyncio.wait([doing])
        if not doing.cancelled() and not doing.exception():
            await port.in_thread(doing.result())

    async def unsubscribe(
        self, callback: Callable[..., Any], channel: str | None = None, pattern: bool = False, *, group: str | None = None
    ) -> None:
        """`pymq.unsubscribe`, awaited: a handler that runs goes on, and is not begun again, by no later start. Raises ValueError."""

        def is_meant(subscribed: Any, **options: Any) -> bool:
            is_there = channel is None or (options.get("channel"), options.get("pattern", False)) == (channel, pattern)
            return bool(subscribed == callback) and is_there and group in (None, options.get("group"))

        await self._opened().do(self._core.unsubscribe, callback, channel, pattern, group)
        self._undeclare("subscribe", is_meant)

    def _undeclare(self, verb: str, is_meant: Callable[..., bool]) -> None:
        self._declared = [it for it in self._declared if it.verb != verb or not is_meant(it.function, **it.options)]

    @overload
    def subscriber(self, callback: F, /, *given: Any, **options: Unpack[SubscribeOptions]) -> F: ...
    @overload
    def subscriber(self, channel: str | None = None, /, *given: Any, **options: Unpack[SubscribeOptions]) -> Callable[[F], F]: ...
    def subscriber(self, *given: Any, **options: Any) -> Any:
        """`subscribe` as a decorator, in force from each `start` on. Raises TypeError on a started bus: await `subscribe` there."""
        return subscriber_decorator(partial(self._at_start, self.subscribe, self._core.subscribing), given, options)

    def _at_start(
        self,
        verb: Callable[..., Awaitable[None]],
        prepare: Callable[..., Callable[[], Callable[[], None]]],
        function: Any,
        *given: Any,
        **options: Any,
    ) -> None:
        if self._is_open:
            raise TypeError(f"the bus is started: `await bus.{verb.__name__}({getattr(function, '__name__', function)}, ...)` instead")
        named = options_of(verb, function, given, options)
        self._declared.append(_Declared(verb.__name__, function, named, prepare(function, **named)))

    @overload
    def events(self, channel: type[T]) -> Events[T]: ...
    @overload
    def events(self, channel: str, *, pattern: bool = False) -> Events[Any]: ...
    def events(self, channel: Any, *, pattern: bool = False) -> Events[Any]:
        """`async for event, message in bus.events(OrderPlaced)`: the events of a class, a channel or a pattern."""
        named = isinstance(channel, str)
        if not named and not channels_of(channel):
            raise TypeError(f"events of what? {channel!r} is neither a class nor the name of a channel")

        async def subscribe(handler: Callable[..., Any]) -> None:
            await self.subscribe(handler, channel if named else None, pattern)

        found: Events[Any] = Events(Any if named else channel, subscribe, self._forget, self._let_go)
        self._iterations.add(found)
        return found

    async def _forget(self, handler: Callable[..., Any]) -> None:
        if self._is_open:
            await self.unsubscribe(handler)

    def _let_go(self, handler: Callable[..., Any]) -> None:
        port = self._core.port
        if self._is_open and isinstance(port, Port) and not port.loop.is_closed():
            port.in_loop(lambda: self._core.tasks.submit("events", self._forget(handler)))

    def topic(self, name: str, pattern: bool = False) -> Topic:
        """The channel of that name, as an object."""
        return Topic(self, name, pattern)

    def group(self, name: str) -> Group:
        """The consumer group of that name."""
        self._not_closed()
        return Group(self._core, name)

    # ------------------------------------------------------------------ queues and remote calls

    @overload
    def queue(self, name: str, type: type[T], maxsize: int = 0, *, retries: int = RETRIES, backoff: float = BACKOFF) -> Queue[T]: ...
    @overload
    def queue(
        self, name: str, type: Any = Any, maxsize: int = 0, *, retries: int = RETRIES, backoff: float = BACKOFF
    ) -> Queue[Any]: ...
    def queue(self, name: str, type: Any = Any, maxsize: int = 0, *, retries: int = RETRIES, backoff: float = BACKOFF) -> Queue[Any]:
        """`pymq.EventBus.queue`: its items are decoded to `type`; `retries` and `backoff` are for `take`."""
        self._not_closed()
        return Queue(self._core, name, type, maxsize, retries=retries, backoff=backoff)

    async def expose(self, fn: Callable[..., Any], channel: str | None = None) -> None:
        """`pymq.expose`, awaited. Calls of an `async def` run beside each other; a plain function holds up the loop while it runs."""
        await self._do_or_undo(self._core.exposing(fn, channel))

    async def unexpose(self, fn: Callable[..., Any] | str) -> None:
        """`pymq.unexpose`, awaited: not served by the next start, either. Raises ValueError."""
        name_of = self._core.remotes.name_of
        await self._opened().do(self._core.unexpose, fn)
        self._undeclare("expose", lambda exposed, channel=None: fn in (exposed, name_of(exposed, channel)))

    @overload
    def remote(self, fn: F, /, channel: str | None = None) -> F: ...
    @overload
    def remote(self, channel: str | None = None) -> Callable[[F], F]: ...
    def remote(self, *given: Any, **options: Any) -> Any:
        """`expose` as a decorator, in force from each `start` on. Raises TypeError on a started bus: await `expose` there."""
        return decorator(partial(self._at_start, self.expose, self._core.exposing), given, options)

    @overload
    def stub(self, fn: Callable[P, Awaitable[R]], timeout: float | None = None, multi: Literal[False] = False) -> Stub[P, R]: ...
    @overload
    def stub(self, fn: Callable[P, Awaitable[R]], timeout: float | None = None, *, multi: Literal[True]) -> MultiStub[P, R]: ...
    @overload
    def stub(self, fn: Callable[P, R], timeout: float | None = None, multi: Literal[False] = False) -> Stub[P, R]: ...
    @overload
    def stub(self, fn: Callable[P, R], timeout: float | None = None, *, multi: Literal[True]) -> MultiStub[P, R]: ...
    @overload
    def stub(self, fn: str, timeout: float | None = None, multi: Literal[False] = False) -> Stub[..., Any]: ...
    @overload
    def stub(self, fn: str, timeout: float | None = None, *, multi: Literal[True]) -> MultiStub[..., Any]: ...
    def stub(self, fn: Any, timeout: float | None = None, multi: bool = False) -> Any:
        """`await bus.stub(fn)(…)` calls one server; `async for result in bus.stub(fn, multi=True)(…)` gets all, as they come."""
        self._opened()
        sync: StubMethod[..., Any] = self._core.stub(fn, timeout, multi)
        return (MultiStub if multi else Stub)(self._core, sync)

    async def stats(self) -> dict[str, dict[str, int]]:
        """`pymq.stats`, awaited."""
        return await self._opened().do(self._core.stats)

    def health(self) -> Health:
        """`pymq.EventBus.health`: asks nobody, and so is not awaited."""
        self._opened()
        return self._core.health()


class Topic:
    """A channel by its name, for awaiting. A pattern can be subscribed to only."""

    def __init__(self, bus: EventBus, name: str, pattern: bool = False) -> None:
        check_channel(name, pattern)
        self._bus = bus
        self.name = name
        self.is_pattern = pattern

    async def publish(self, event: Any, **options: Any) -> int | None:
        """As `EventBus.publish`, to this channel. Raises ValueError for a pattern."""
        if self.is_pattern:
            raise ValueError(f"cannot publish to the pattern {self.name!r}; publish to a channel that it matches")
        return await self._bus.publish(event, self.name, **options)

    async def subscribe(self, callback: Callable[..., Any], **options: Any) -> None:
        """As `EventBus.subscribe`, to this channel or pattern."""
        await self._bus.subscribe(callback, self.name, self.is_pattern, **options)

    async def unsubscribe(self, callback: Callable[..., Any], **options: Any) -> None:
        """As `EventBus.unsubscribe`."""
        await self._bus.unsubscribe(callback, self.name, self.is_pattern, **options)

    def events(self) -> Events[Any]:
        """As `EventBus.events`, of this channel or pattern."""
        return self._bus.events(self.name, pattern=self.is_pattern)


class Group:
    """A consumer group by its name, for awaiting."""

    def __init__(self, core: Core, name: str) -> None:
        self._core = core
        self._sync = SyncGroup(core, name)
        self.name = name

    async def bind(self, channel: type | str, pattern: bool = False) -> None:
        """Keep what is published to the channel from now on, also while the group has no member."""
        await self._core.port.do(self._sync.bind, channel, pattern)

    async def delete(self) -> None:
        """The group, all it keeps and its dead letters are gone; its members stop."""
        await self._core.port.do(self._sync.delete)

    async def qsize(self) -> int:
        """How many events wait for a member: the leased do not count."""
        return await self._core.port.do(self._sync.qsize)

    @property
    def dead(self) -> DeadLetters:
        """The events that failed too often or were rejected."""
        return DeadLetters(self._core, self._sync.dead_queue)
