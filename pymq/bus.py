"""EventBus: events, queues and remote calls over one provider. Read this first.

A bus *has* a provider, which moves bytes between queues, and builds everything else from it:

=====================  =====================================================================================
`publish(event)`       one `provider.publish` to the topics of the event's class and of its bases
`subscribe(f)`         binds this bus's inbox (a temporary queue) to the topic (`pymq.subscriptions`)
`subscribe(f, group)`  binds a shared queue; members compete and ack after `f` (`pymq.groups`)
`queue(name)`          a shared queue (`pymq.queues`)
`expose(f)`            binds the inbox to the remote's topic; a call goes to one of those inboxes (`pymq.rpc`)
=====================  =====================================================================================

Topics of events begin with "e/", those of remotes with "r/": a pattern of the user never sees control traffic.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from queue import Full
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from pymq import message as frames
from pymq.decorators import SubscribeOptions, apply_by_name, decorator, subscriber_decorator
from pymq.deliveries import BACKOFF, RETRIES, Leases
from pymq.dispatch import Dispatcher, Task
from pymq.exceptions import CodecError, NotInitialized, ProviderError, PymqError
from pymq.groups import Group, Member, Options
from pymq.handlers import Target, describe, hints_in_reach, targets_of
from pymq.loop import Loop
from pymq.provider import Config, configured
from pymq.provider.base import Health, Provider
from pymq.queues import Queue
from pymq.remotes import Remotes
from pymq.routes import MOST_CHANNELS, Counts, Route, check_seconds
from pymq.rpc import Caller, MultiStubMethod, StubMethod
from pymq.schedule import Schedule
from pymq.subscriptions import Subscriptions, Work
from pymq.topics import check_channel, instead_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

log: logging.Logger = logging.getLogger("pymq")
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

SHUTDOWN_SECONDS = 2.0
GRACE_SECONDS = 0.5
"""For how long, after the time that handlers have to end, a shutdown waits for what it has cancelled."""


class EventBus:
    """Events, queues and remote calls over the provider of `config`, which may be a URL (None: shared memory on this machine).

    Opens nothing before `start`; what was subscribed and exposed before that takes effect then. All methods may be called from
    any thread. After a fork the child's copy publishes, puts and calls through a connection of its own, opened by the first of
    these, and owns no subscription.
    """

    ends_later: bool = False
    """Whether `shutdown` was called by a handler that it waits for. Of the class: a subclass may have an `__init__` of its own."""

    def __init__(self, config: Config | str | None = None) -> None:
        self.config: Config = configured(config)
        self._lock = threading.RLock()
        self._early: list[Callable[[], object]] = []
        self.routes: dict[Any, Route] = {}
        self._ended = threading.Event()
        self._reset()
        _buses.add(self)

    def _reset(self) -> None:
        """Begin as a participant that nobody knows yet."""
        self.provider: Provider = _Closed()  # type: ignore[assignment]
        """What carries the messages; its methods raise NotInitialized before `start` and after `shutdown`."""
        self.token: int = secrets.randbits(63)
        self.inbox: str = f"inbox/{self.token:016x}"
        self.routes.clear()
        self._counts = Counts()
        self._members: list[Member] = []
        self._dispatcher: Dispatcher | None = None
        self.loop: Loop = Loop("pymq-async")
        """Where `async def` handlers run."""
        self._schedule = Schedule(self._hand_over)
        self.leases: Leases = Leases(lambda: self.provider)
        self.subscriptions: Subscriptions = Subscriptions(self)
        self.remotes: Remotes = Remotes(self)
        self.caller: Caller = Caller(self)

    # ------------------------------------------------------------------ lifecycle

    def start(self) -> None:
        """Open the provider and begin to receive. Idempotent. Raises ProviderError."""
        with self._lock:
            if not isinstance(self.provider, _Closed):
                return
            self._ended.clear()
            self._open()
            early, self._early = self._early, []
            try:
                for apply in early:
                    apply()
            except BaseException:
                self.shutdown(0)  # it is not started
                raise

    def _open(self) -> Provider:
        from pymq import core

        core.name_events()
        with self._lock:
            if isinstance(self.provider, _Closed):
                provider = self.config.create()
                provider.open()
                self.provider = provider
            return self.provider

    def __enter__(self) -> EventBus:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def shutdown(self, timeout: float = SHUTDOWN_SECONDS) -> None:
        """Stop receiving and close; handlers that run have `timeout` seconds to end. What is abandoned is logged. Idempotent.

        Takes no longer, whatever handlers do, but for half a second where `async def` ones are cancelled, or block their loop; and
        over a network some seconds more where the server is silent.
        In the handler of a group, and on the bus's event loop, it returns at once: the bus closes when the handler has returned and
        its event was acked.
        """
        thread = threading.current_thread()
        if self.loop.is_run_by(thread) or any(member.is_handling(thread) for member in self._members):
            self.ends_later = True
            threading.Thread(target=self.shutdown, args=[timeout], name="pymq-shutdown").start()
            return
        with self._lock:
            provider, self._early = self.provider, []
            if isinstance(provider, _Closed):
                self.ends_later = False
                self._ended.set()
                return
            dispatcher, members, loop, schedule = self._dispatcher, self._members, self.loop, self._schedule
            subscriptions, leases = self.subscriptions, self.leases  # of now: another shutdown, and a start, may come in between
        abandoned, deadline = [], time.monotonic() + timeout
        latest = deadline + GRACE_SECONDS
        for member in members:
            member.stop()
        schedule.close()
        if dispatcher is not None:
            abandoned += dispatcher.close(deadline)
            if not dispatcher.may_receive:
                self._tell_unread(provider)
        for member in members:
            member.join(deadline)
        abandoned += subscriptions.finish(deadline)
        abandoned += loop.close(deadline, latest, subscriptions.end) + subscriptions.end()
        for member in members:  # the events of the cancelled are given back while there is a provider
            abandoned += member.join(latest if member.shape.is_async else deadline)
        abandoned += self._end_late(provider, members, dispatcher, latest)
        leases.close()
        self._forget(provider)
        try:
            provider.close()
        finally:
            self._end(provider)
        if abandoned:
            log.warning("shutdown after %s s abandoned %s", timeout, ", ".join(abandoned))

    def _end_late(self, provider: Provider, members: list[Member], dispatcher: Dispatcher | None, deadline: float) -> list[str]:
        """End what was subscribed or exposed beside these while handlers were waited for, by one of them; say what was abandoned."""
        with self._lock:
            if self.provider is not provider:
                return []
            late, begun = [member for member in self._members if member not in members], self._dispatcher
            subscriptions = self.subscriptions
        for member in late:
            member.stop()
        abandoned = [line for member in late for line in member.join(deadline)]
        if begun is not None and begun is not dispatcher:
            abandoned += begun.close(deadline)
        return abandoned + subscriptions.end()

    def _tell_unread(self, provider: Provider) -> None:
        """What had come and nobody has received, where asking takes no time: over a network, who asks may wait for a dead server."""
        events = 0
        with suppress(PymqError):  # its files were removed, or it is damaged
            left = 0 if provider.features.waits_on_io else provider.size(self.inbox)
            while left > 0 and (batch := provider.receive(self.inbox, 0)):
                left -= len(batch)
                events += sum(1 for message, _ in batch if message)  # an empty one only asks whether this inbox still lives
        if events:
            log.info("shutdown left %d messages that had come and that nobody has received", events)

    def _forget(self, provider: Provider) -> None:
        """Before it is closed: who publishes by the module all the while, and is no handler, must not meet what is closed."""
        from pymq import core

        if self.provider is provider:
            core.forget(self)

    def _end(self, provider: Provider) -> None:
        """Unless another shutdown has ended it meanwhile: then the bus may have been started again."""
        with self._lock:
            if self.provider is not provider:
                return
            self.ends_later = False
            self._reset()
            self._ended.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the bus is shut down, or for `timeout` seconds; whether it is."""
        return self._ended.wait(timeout)

    def inbox_ready(self) -> str:
        """The name of this bus's inbox, which is declared and read from now on."""
        with self._lock:
            if self._dispatcher is None:
                self.provider.declare(self.inbox, temporary=True)
                provider = self.provider
                dispatcher = Dispatcher(
                    "pymq",
                    partial(provider.receive, self.inbox, None),
                    provider.wake,
                    self.subscriptions.tasks,
                    self._look_up,
                )
                dispatcher.start()
                self._dispatcher = dispatcher  # now: where no thread is to be had, the next to subscribe starts it
        return self.inbox

    def later(self, seconds: float, task: Task, message: bytes) -> None:
        """Hand a delayed event to its subscription when it is due; gone with this process."""
        self._schedule.add(seconds, task, message)

    def _hand_over(self, task: Task, message: bytes) -> None:
        """To the reader of the inbox, which is what keeps a subscription serial; an empty message makes it look."""
        assert self._dispatcher is not None
        self._dispatcher.add(task, message)
        try:
            self.provider.send(self.inbox, b"", timeout=0)
        except (Full, ProviderError):
            pass  # it has something to read, or is being closed

    def step_aside(self) -> None:
        """A handler is about to wait for this bus's own inbox: let another thread read it."""
        if self._dispatcher is not None:
            self._dispatcher.step_aside()

    def _look_up(self, message: bytes) -> Sequence[Task]:
        """Which subscriptions or remotes a message is for that came to the inbox with a prefix not seen before."""
        try:
            packed = frames.prefix_of(message)
            prefix = frames.unpack_prefix(packed)
        except CodecError as error:
            if message:  # an empty one only asks whether this inbox still lives
                log.warning("a message was skipped: %s", error)
            return ()
        if prefix.kind == frames.REQUEST:
            return self.remotes.look_up(packed, prefix)
        return self.subscriptions.look_up(packed, prefix)

    # ------------------------------------------------------------------ events

    def publish(
        self,
        event: Any,
        channel: str | None = None,
        headers: dict[str, Any] | None = None,
        delay: float = 0,
        ttl: float | None = None,
    ) -> int | None:
        """Send the event to everyone who subscribed to its class, to a base of it or to the channel; how many receivers have it.

        Each receiving bus counts once, the own one included, and each group once for every channel or pattern that it is bound to;
        None where the provider cannot know. `delay` and `ttl` are in seconds: invisible for so long, dropped after that. Raises
        CodecError for a value that cannot travel unchanged, MessageTooLarge, Full (with `.accepted` and `.groups`) when a group's
        queue stays full, ProviderError.
        """
        # no argument is keyword-only: CPython 3.11 takes 0.06 us more for the call of such a function
        try:
            route = self.routes[type(event) if channel is None else (channel, type(event))]
        except (KeyError, TypeError):  # TypeError: no text, and not to be hashed: often an event, with the channel in its place
            route = None
        if route is None:
            route = self._make_route(type(event), channel)
        if headers is None and ttl is None and not delay:
            send = route.send  # CPython 3.11 takes 0.02 us more for the call of an attribute that is a function
            return send(event)
        return route.send_with(event, headers, delay, ttl)

    def _make_route(self, cls: type, channel: str | None) -> Route:
        if channel is not None and not isinstance(channel, str):
            raise TypeError(f"publish(event, channel): the channel is a text, not {channel!r:.100}{instead_of(channel)}")
        key = cls if channel is None else (channel, cls)
        with self._lock:
            route = self.routes.get(key)  # another thread may have made it: a second one would count, and number, beside it
            if route is None:
                if len(self.routes) >= MOST_CHANNELS:
                    self.routes.clear()
                route = self.routes[key] = Route(cls, channel, self.token, self._counts, self.provider)
        return route

    def topic(self, name: str, pattern: bool = False) -> Topic:
        """The channel of that name, as an object."""
        return Topic(self, name, pattern)

    def subscribe(
        self,
        callback: Callable[..., Any],
        channel: str | None = None,
        pattern: bool = False,
        group: str | None = None,
        retries: int | None = None,
        backoff: float | None = None,
        lease: float | None = None,
        workers: int | None = None,
    ) -> None:
        """Call `callback(event)` for every event of its hint's class, or of the channel; in force on return.

        With `group`, each event goes to one member, and is acked after the callback returned; one that raises is called again up to
        `retries` times (5), after `backoff` seconds (1) doubling each time, then the event is in `bus.group(group).dead`. `lease` is in
        seconds (30), extended while the callback runs; `workers` callbacks (1) run at once, and more than one give up the order.
        Without a group, `workers` above 1 lets that many run at once as well, of a callback that is no `async def`. Raises TypeError
        for a callback that cannot take an event, ValueError where neither a hint nor `channel` says what to subscribe to, and for
        `retries`, `backoff` and `lease` without a group.
        """
        targets, options = targets_of(callback, channel, pattern), Options.of(group, retries, backoff, lease, workers)
        for target in targets:
            self._when_open(partial(self._subscribe, target, group, options))

    def _subscribe(self, target: Target, group: str | None, options: Options) -> Work:
        if group is None:
            return self.subscriptions.add(target, options.workers)
        member = Member(self, self.group(group), target, options)
        with self._lock:  # a member that cannot start is none
            member.start()
            self._members = [*self._members, member]
        return member

    def unsubscribe(
        self, callback: Callable[..., Any], channel: str | None = None, pattern: bool = False, group: str | None = None
    ) -> None:
        """End what `subscribe` with these arguments began; with the callback alone, everywhere. Also from within the callback.

        Raises ValueError where it was not subscribed.
        """
        if channel is not None:
            check_channel(channel, pattern)
        found = self.subscriptions.remove(callback, channel, pattern) if group is None else False
        with self._lock:
            members = [m for m in self._members if group in (None, m.group.name) and m.target.is_of(callback, channel, pattern)]
            self._members = [m for m in self._members if m not in members]
        for member in members:
            member.leave()
        if not found and not members:
            raise ValueError(f"{describe(callback)} is not subscribed{f' to {channel!r}' if channel else ''}")

    @overload
    def subscriber(self, callback: F, /, *given: Any, **options: Unpack[SubscribeOptions]) -> F: ...
    @overload
    def subscriber(self, channel: str | None = None, /, *given: Any, **options: Unpack[SubscribeOptions]) -> Callable[[F], F]: ...
    def subscriber(self, *given: Any, **options: Any) -> Any:
        """`subscribe` as a decorator, with or without arguments."""
        return subscriber_decorator(partial(apply_by_name, self.subscribe), given, options)

    def group(self, name: str) -> Group:
        """The consumer group of that name."""
        return Group(self, name)

    # ------------------------------------------------------------------ queues

    @overload
    def queue(self, name: str, type: type[T], maxsize: int = 0, *, retries: int = RETRIES, backoff: float = BACKOFF) -> Queue[T]: ...
    @overload
    def queue(
        self, name: str, type: Any = Any, maxsize: int = 0, *, retries: int = RETRIES, backoff: float = BACKOFF
    ) -> Queue[Any]: ...
    def queue(self, name: str, type: Any = Any, maxsize: int = 0, *, retries: int = RETRIES, backoff: float = BACKOFF) -> Queue[Any]:
        """The queue of that name, which exists from now on; its items are decoded to `type`.

        `maxsize` is for this object's `put`, `retries` and `backoff` (seconds) for its `take`. Raises ValueError and TypeError.
        """
        return Queue(self, name, type, maxsize, retries=retries, backoff=backoff)

    # ------------------------------------------------------------------ remote calls

    def expose(self, fn: Callable[..., Any], channel: str | None = None) -> None:
        """Serve calls to `fn` under the name `channel` (default: its module and qualified name); in force on return.

        Raises ValueError where this bus serves another function under that name, or where a lambda has none.
        """
        name = self.remotes.name_of(fn, channel)
        hints = hints_in_reach(fn)
        self._when_open(lambda: self.remotes.add(fn, name, hints))

    def unexpose(self, fn: Callable[..., Any] | str) -> None:
        """Serve no further calls to it. Raises ValueError where it is not exposed, NotInitialized before `start`."""
        self._raise_unless_started()
        self.remotes.remove(fn)

    @overload
    def remote(self, fn: F, /, channel: str | None = None) -> F: ...
    @overload
    def remote(self, channel: str | None = None) -> Callable[[F], F]: ...
    def remote(self, *given: Any, **options: Any) -> Any:
        """`expose` as a decorator, with or without a name."""
        return decorator(partial(apply_by_name, self.expose), given, options)

    @overload
    def stub(
        self, fn: Callable[P, Coroutine[Any, Any, R]], timeout: float | None = None, multi: Literal[False] = False
    ) -> StubMethod[P, R]: ...
    @overload
    def stub(
        self, fn: Callable[P, Coroutine[Any, Any, R]], timeout: float | None = None, *, multi: Literal[True]
    ) -> MultiStubMethod[P, R]: ...
    @overload
    def stub(self, fn: Callable[P, R], timeout: float | None = None, multi: Literal[False] = False) -> StubMethod[P, R]: ...
    @overload
    def stub(self, fn: Callable[P, R], timeout: float | None = None, *, multi: Literal[True]) -> MultiStubMethod[P, R]: ...
    @overload
    def stub(self, fn: str, timeout: float | None = None, *, multi: Literal[True]) -> MultiStubMethod[..., Any]: ...
    @overload
    def stub(self, fn: str, timeout: float | None = None, multi: bool = False) -> StubMethod[..., Any]: ...
    def stub(self, fn: Any, timeout: float | None = None, multi: bool = False) -> StubMethod[..., Any]:
        """A callable that calls the remote `fn`, given by its name or by the function itself.

        `timeout` (seconds) is one deadline for the whole call; None waits until the reply or the server's death. With `multi` every
        live server is called, and the result is a list.
        """
        check_seconds(timeout=timeout)
        self._raise_unless_started()
        return (MultiStubMethod if multi else StubMethod)(self, fn, timeout)

    # ------------------------------------------------------------------ numbers

    def stats(self) -> dict[str, dict[str, int]]:
        """What this bus has done so far, by channel and queue, and what waits where.

        `published`, `delivered` (handlers that returned), `failed` (handlers that raised), `retried`, `dead`: by channel.
        `dropped`, `expired`: by receiver or queue. `in_flight` and `backlog` (waiting): by queue. Of the channels published to, the
        first 10,000 are counted one by one, and all others together as "".
        """
        found = {"published": self._counts.published()}
        for task in (*self.subscriptions.all(), *self._members):
            for kind, count in task.counts().items():
                of_kind = found.setdefault(kind, {})
                of_kind[task.channel] = of_kind.get(task.channel, 0) + count
        names = {"dropped": "dropped", "expired": "expired", "leased": "in_flight", "waiting": "backlog"}
        for queue, counts in self.provider.counters().items():
            for theirs, ours in names.items():
                if counts.get(theirs):
                    of_kind = found.setdefault(ours, {})
                    of_kind[queue] = of_kind.get(queue, 0) + counts[theirs]
        kinds = ("published", "delivered", "failed", "retried", "dead", "dropped", "expired", "in_flight", "backlog")
        return {kind: found.get(kind, {}) for kind in kinds}

    def health(self) -> Health:
        """Whether the provider is connected or reconnecting, since when, and how often messages to this bus may have been lost."""
        return self.provider.health()

    # ------------------------------------------------------------------ within

    def _when_open(self, apply: Callable[[], object]) -> None:
        """Now, or as soon as the bus starts."""
        with self._lock:
            if isinstance(self.provider, _Closed) and not self.provider.reopens:
                self._early.append(apply)
                return
        apply()

    def _raise_unless_started(self) -> None:
        if isinstance(self.provider, _Closed):
            self.provider.open_or_raise()

    def _after_fork(self) -> None:
        """In the child: forget the parent's provider, threads and locks; open one of its own when it is first used."""
        was_open = not isinstance(self.provider, _Closed) or self.provider.reopens
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._early = []
        for part in (self._dispatcher, self.loop, *self._members):
            if part is not None:
                part.end_with_the_handler()
        self._reset()
        if was_open:
            self.provider = _Closed(self._open)  # type: ignore[assignment]


class _Closed:
    """In the place of a provider that is not open: raises NotInitialized, or, in a forked child, opens one at the first use."""

    def __init__(self, reopen: Callable[[], Provider] | None = None) -> None:
        self._reopen = reopen

    @property
    def reopens(self) -> bool:
        return self._reopen is not None

    def open_or_raise(self) -> Provider:
        if self._reopen is None:
            raise NotInitialized("the bus is not started: call pymq.init() (or start() on a bus of your own) first")
        return self._reopen()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.open_or_raise(), name)


class Topic:
    """A channel by its name: `publish` to it, `subscribe` to it. A pattern can be subscribed to only."""

    def __init__(self, bus: EventBus, name: str, pattern: bool = False) -> None:
        check_channel(name, pattern)
        self._bus = bus
        self.name = name
        self.is_pattern = pattern

    def publish(self, event: Any, **options: Any) -> int | None:
        """As `EventBus.publish`, to this channel. Raises ValueError for a pattern."""
        if self.is_pattern:
            raise ValueError(f"cannot publish to the pattern {self.name!r}; publish to a channel that it matches")
        return self._bus.publish(event, self.name, **options)

    def subscribe(self, callback: Callable[..., Any], **options: Any) -> None:
        """As `EventBus.subscribe`, to this channel or pattern."""
        self._bus.subscribe(callback, self.name, self.is_pattern, **options)

    def unsubscribe(self, callback: Callable[..., Any], **options: Any) -> None:
        """As `EventBus.unsubscribe`."""
        self._bus.unsubscribe(callback, self.name, self.is_pattern, **options)

    def __repr__(self) -> str:
        return f"Topic({self.name!r}{', pattern=True' if self.is_pattern else ''})"


_buses: weakref.WeakSet[EventBus] = weakref.WeakSet()


def _each_bus(when: str, call: Callable[[EventBus], None]) -> None:
    """One that raises, such as a subclass's own `shutdown`, must not keep the others from theirs."""
    for bus in list(_buses):
        try:
            call(bus)
        except Exception:
            log.exception("a bus failed %s", when)


def _after_fork_in_child() -> None:
    _each_bus("in a forked child", lambda bus: bus._after_fork())


@atexit.register
def _at_exit() -> None:
    _each_bus("at the end of the program", lambda bus: bus.shutdown())


os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["EventBus", "Topic"]
