"""The process-wide bus: `pymq.init()` and the verbs that use it, and the declarations that decorated functions are."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast, overload

from pymq.bus import SHUTDOWN_SECONDS, EventBus, Topic
from pymq.decorators import GroupOptions, SubscribeOptions, check_subscription, decorator, options_of, subscriber_decorator
from pymq.deliveries import BACKOFF, RETRIES
from pymq.exceptions import NotInitialized
from pymq.provider import Config, is_config
from pymq.remotes import Remotes, remember_name
from pymq.routes import Route
from pymq.rpc import MultiStubMethod, StubMethod
from pymq.topics import EVENT_NAME

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pymq.groups import Group
    from pymq.queues import Queue

log: logging.Logger = logging.getLogger("pymq")
P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
C = TypeVar("C", bound=type)

bus: EventBus | None = None
"""The running bus, or None."""
_ending: EventBus | None = None
"""The bus that `shutdown` ends, until it is closed: its handlers, which are waited for, may still publish, put and call."""

_lock = threading.RLock()
_declared: dict[tuple[Any, ...], tuple[str, Callable[..., Any], dict[str, Any]]] = {}
_early: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
_inherited = False
_routes: dict[Any, Route] = {}
"""The bus's own routes, a call nearer to `publish`: empty for a subclass that has a `publish` of its own."""


def init(factory: Config | str | Callable[[], EventBus] | EventBus | None = None, start_bus: bool = True) -> EventBus:
    """Make the process-wide bus, start it, and apply all declarations to it.

    `factory` is a config, a URL, a bus, or a function or class that makes one; None takes the URL in the environment's PYMQ_URL, and
    shared memory without one. Raises ValueError where there is a bus already, ProviderError where it cannot start.
    """
    global bus, _inherited, _routes
    with _lock:
        if bus is not None and not _inherited:
            raise ValueError("pymq is initialised already: call pymq.shutdown() before another init()")
        made = _make(factory)
        bus, _inherited = made, False
        _routes = made.routes if type(made).publish is EventBus.publish else {}
        try:
            if start_bus:
                made.start()
            _apply(made)
        except BaseException:
            bus = None
            made.shutdown()
            raise
    return made


def _make(factory: Any) -> EventBus:
    if factory is None:
        factory = os.environ.get("PYMQ_URL") or None
    if factory is None or isinstance(factory, str) or is_config(factory):
        return EventBus(factory)
    made = factory if isinstance(factory, EventBus) or not callable(factory) else factory()
    if not isinstance(made, EventBus):
        raise TypeError(
            "init wants a config, a URL or a factory of an EventBus: init(), init('redis://host/0'), or, with what you have, "
            f"init(RedisConfig(client)), init(AwsConfig(session)); not {factory!r:.100}"
        )
    return made


def _apply(made: EventBus) -> None:
    for verb, target, options in list(_declared.values()):
        getattr(made, verb)(target, *_given(options), **_extra(options))
    early, _early[:] = list(_early), []
    for verb, args, options in early:
        getattr(made, verb)(*args, **options)


def start() -> None:
    """Start the bus that `init(start_bus=False)` made. Raises NotInitialized before that."""
    if bus is None:
        raise NotInitialized("call pymq.init() first")
    bus.start()


def shutdown(timeout: float = SHUTDOWN_SECONDS) -> None:
    """Close the process-wide bus: handlers that run have `timeout` seconds to end. Does nothing before `init`.

    They publish, put and call as before. See `EventBus.shutdown`.
    """
    global bus, _ending, _inherited
    with _lock:
        ending = bus
        _ending = ending or _ending
        bus, _inherited = None, False
    if ending is not None:
        try:
            ending.shutdown(timeout)
        finally:
            if not ending.ends_later:
                forget(ending)


def forget(ended: EventBus) -> None:
    """That bus was shut down: if it was the process-wide one, there is none now."""
    global bus, _ending
    if bus is ended:
        bus = None
    if _ending is ended:
        _ending = None


def wait(timeout: float | None = None) -> bool:
    """Block a program that only listens, until `shutdown` (True), Ctrl-C, or for `timeout` seconds (False)."""
    return _bus().wait(timeout)


def publish(
    event: Any, channel: str | None = None, headers: dict[str, Any] | None = None, delay: float = 0, ttl: float | None = None
) -> int | None:
    """`EventBus.publish` on the process-wide bus. Before `init`, logs an error and returns None."""
    running = bus or _ending
    if running is None:
        log.error("publish before pymq.init(): the event of type %s was not sent", type(event).__name__)
        return None
    if headers is None and ttl is None and not delay:
        route = _routes.get(type(event)) if channel is None else None
        if route is None:
            return running.publish(event, channel)
        send = route.send  # as in `EventBus.publish`
        return send(event)
    return running.publish(event, channel, headers=headers, delay=delay, ttl=ttl)


def subscribe(
    callback: Callable[..., Any],
    channel: str | None = None,
    pattern: bool = False,
    *,
    group: str | None = None,
    **more: Unpack[GroupOptions],
) -> None:
    """`EventBus.subscribe` on the process-wide bus; before `init`, on the next one."""
    options: dict[str, Any] = {**more} if group is None else {"group": group, **more}
    if bus is None:
        named = options_of(partial(EventBus.subscribe, cast(EventBus, None)), callback, (channel, pattern), options)
        check_subscription(callback, named)
    _now_or_early("subscribe", (callback, channel, pattern), options)


def unsubscribe(callback: Callable[..., Any], channel: str | None = None, pattern: bool = False, *, group: str | None = None) -> None:
    """`EventBus.unsubscribe` on the process-wide bus; a declaration is removed for all that follow. Before `init`, likewise."""

    def is_meant(its_group: str | None, subscribed: Any, its_channel: str | None, its_pattern: bool = False) -> bool:
        is_there = channel is None or (its_channel, its_pattern) == (channel, pattern)
        return bool(subscribed == callback) and is_there and group in (None, its_group)

    with _lock:
        keys = [
            key
            for key, (verb, declared, options) in _declared.items()
            if verb == "subscribe" and is_meant(options.get("group"), declared, *_given(options))
        ]
        for key in keys:
            del _declared[key]
        early = [entry for entry in _early if entry[0] == "subscribe" and is_meant(entry[2].get("group"), *entry[1])]
        for entry in early:
            _early.remove(entry)
    running = bus or _ending
    if running is not None:
        running.unsubscribe(callback, channel, pattern, **({} if group is None else {"group": group}))
    elif not keys and not early:
        raise NotInitialized("nothing is subscribed before pymq.init()")


@overload
def subscriber(callback: F, /, *given: Any, **options: Unpack[SubscribeOptions]) -> F: ...
@overload
def subscriber(channel: str | None = None, /, *given: Any, **options: Unpack[SubscribeOptions]) -> Callable[[F], F]: ...
def subscriber(*given: Any, **options: Any) -> Any:
    """Declare a handler: `@subscriber`, `@subscriber("channel")`, `@subscriber(channel=, pattern=, group=, retries=, …)`.

    On a module-level function it is a declaration that every `init` applies; inside a function it belongs to the running bus.
    """
    return subscriber_decorator(partial(_declare, "subscribe"), given, options)


def expose(fn: Callable[..., Any], channel: str | None = None) -> None:
    """`EventBus.expose` on the process-wide bus; before `init`, on the next one."""
    Remotes.name_of(fn, channel)
    _now_or_early("expose", (fn, channel), {})


def unexpose(fn: Callable[..., Any] | str) -> None:
    """`EventBus.unexpose`; a declaration is removed for all that follow. Raises NotInitialized before `init`."""
    running = _bus()
    with _lock:
        for key, (verb, declared, options) in list(_declared.items()):
            if verb == "expose" and fn in (declared, Remotes.name_of(declared, options.get("channel"))):
                del _declared[key]
    running.unexpose(fn)


@overload
def remote(fn: F, /, channel: str | None = None) -> F: ...
@overload
def remote(channel: str | None = None) -> Callable[[F], F]: ...
def remote(*given: Any, **options: Any) -> Any:
    """Declare a function that others may call: `@remote`, `@remote("name")`, `@remote(channel="name")`."""
    return decorator(partial(_declare, "expose"), given, options)


@overload
def stub(fn: Callable[P, Coroutine[Any, Any, R]], timeout: float | None = None, multi: Literal[False] = False) -> StubMethod[P, R]: ...
@overload
def stub(fn: Callable[P, Coroutine[Any, Any, R]], timeout: float | None = None, *, multi: Literal[True]) -> MultiStubMethod[P, R]: ...
@overload
def stub(fn: Callable[P, R], timeout: float | None = None, multi: Literal[False] = False) -> StubMethod[P, R]: ...
@overload
def stub(fn: Callable[P, R], timeout: float | None = None, *, multi: Literal[True]) -> MultiStubMethod[P, R]: ...
@overload
def stub(fn: str, timeout: float | None = None, *, multi: Literal[True]) -> MultiStubMethod[..., Any]: ...
@overload
def stub(fn: str, timeout: float | None = None, multi: bool = False) -> StubMethod[..., Any]: ...
def stub(fn: Any, timeout: float | None = None, multi: bool = False) -> StubMethod[..., Any]:
    """`EventBus.stub` on the process-wide bus. Raises NotInitialized before `init`."""
    made: StubMethod[..., Any] = _bus().stub(fn, timeout, multi)
    return made


def topic(name: str, pattern: bool = False) -> Topic:
    """`EventBus.topic` on the process-wide bus; before `init`, on the one that runs when it is used."""
    return Topic(cast(EventBus, sys.modules[__name__]), name, pattern) if bus is None else bus.topic(name, pattern)


@overload
def queue(name: str, type: type[T], maxsize: int = 0, *, retries: int = RETRIES, backoff: float = BACKOFF) -> Queue[T]: ...
@overload
def queue(name: str, type: Any = Any, maxsize: int = 0, *, retries: int = RETRIES, backoff: float = BACKOFF) -> Queue[Any]: ...
def queue(name: str, type: Any = Any, maxsize: int = 0, *, retries: int = RETRIES, backoff: float = BACKOFF) -> Any:
    """`EventBus.queue` on the process-wide bus. Raises NotInitialized before `init`."""
    if (retries, backoff) != (RETRIES, BACKOFF):
        return _bus().queue(name, type, maxsize, retries=retries, backoff=backoff)
    return _bus().queue(name) if type is Any and maxsize == 0 else _bus().queue(name, type, maxsize)


def group(name: str) -> Group:
    """`EventBus.group` on the process-wide bus. Raises NotInitialized before `init`."""
    return _bus().group(name)


def stats() -> dict[str, dict[str, int]]:
    """`EventBus.stats` of the process-wide bus. Raises NotInitialized before `init`."""
    return _bus().stats()


@overload
def event(cls: C, /) -> C: ...
@overload
def event(name: str, /) -> Callable[[C], C]: ...
def event(target: Any, /) -> Any:
    """Name a class for this process, so that messages may become instances of it; `@event("name")` also sets its channel."""
    if isinstance(target, str):
        return lambda cls: _name_event(cls, target)
    return _name_event(target, None)


_named: list[type] = []


def _name_event(cls: C, name: str | None) -> C:
    if not isinstance(cls, type):
        raise TypeError(f"@pymq.event decorates a class, not {cls!r}")
    if name is not None:
        setattr(cls, EVENT_NAME, name)
    _named.append(cls)
    if "pymq.codec" in sys.modules:
        name_events()
    return cls


def name_events() -> None:
    """Tell the codec of the classes that `@event` named before it was loaded: importing pymq loads no pydantic."""
    from pymq import codec

    while True:
        try:
            cls = _named.pop()
        except IndexError:  # all are; the last perhaps by another thread
            return
        codec.name_type(cls)


def _bus() -> EventBus:
    running = bus or _ending
    if running is None:
        raise NotInitialized("call pymq.init() first")
    return running


def _declare(verb: str, fn: Callable[..., Any], *given: Any, **options: Any) -> None:
    """Keep a module-level function for every `init`, in the place of the one that had its name, and apply it to the running bus."""
    options = options_of(partial(getattr(EventBus, verb), None), fn, given, options)
    says = options.get("channel")
    if verb == "subscribe":
        targets = check_subscription(fn, options)
        says = says or tuple(target.channel for target in targets)  # one name for several classes: each has its own handler
    else:
        remember_name(fn, Remotes.name_of(fn, says))
    qualified = getattr(fn, "__qualname__", "<locals>")
    if "<locals>" in qualified:
        return _now_or_early(verb, (fn, *_given(options)), _extra(options))
    key = (verb, fn.__module__, qualified, id(getattr(fn, "__self__", None)), says, options.get("pattern"), options.get("group"))
    with _lock:
        replaced = _declared.get(key)
        _declared[key] = (verb, fn, options)
        if bus is not None:
            if replaced is not None:
                _undo(bus, verb, replaced[1], options)
            getattr(bus, verb)(fn, *_given(options), **_extra(options))
    return None


def _undo(running: EventBus, verb: str, fn: Callable[..., Any], options: dict[str, Any]) -> None:
    try:
        if verb == "expose":
            running.unexpose(fn)
        else:
            running.unsubscribe(fn, options.get("channel"), options.get("pattern", False))
    except ValueError:
        pass  # it had been ended already


def _given(options: dict[str, Any]) -> tuple[Any, ...]:
    """The options that PyMQ's verbs take, by position: a subclass that overrides a verb may know no others."""
    return (options.get("channel"), options["pattern"]) if "pattern" in options else (options.get("channel"),)


def _extra(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in ("channel", "pattern")}


def _now_or_early(verb: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    if bus is not None and not _inherited:
        getattr(bus, verb)(*args, **options)
    else:
        _early.append((verb, args, options))


def _after_fork_in_child() -> None:
    global _ending, _inherited, _lock
    _lock = threading.RLock()
    _ending = None
    _early.clear()
    _inherited = bus is not None


os.register_at_fork(after_in_child=_after_fork_in_child)
