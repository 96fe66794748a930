"""The serving side of remote calls: decode a request, execute it, reply. `pymq.rpc` says what travels and how a server is found."""

from __future__ import annotations

import inspect
import logging
import struct
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Full
from typing import TYPE_CHECKING, Any

from pymq import message as frames
from pymq.calls import CallReader
from pymq.dispatch import Serial, Task
from pymq.exceptions import ConnectionLost, PymqError, QueueNotFound
from pymq.handlers import describe, hints_of, is_async, signature_of, unrun
from pymq.message import SEQUENCE_BYTES, Prefix
from pymq.topics import qualified_name

if TYPE_CHECKING:
    from pymq.bus import EventBus

log: logging.Logger = logging.getLogger("pymq")

DEADLINE = struct.Struct("<d")
SEQUENCE = struct.Struct("<Q")
NEVER = float("inf")
FOREVER = DEADLINE.pack(NEVER)
DEADLINE_BYTES = DEADLINE.size
_LATER = 0.2
"""Seconds after which a reply is sent again that found no connection, or no caller yet."""
_MOST_ARGS, _LONGEST_TEXT = 100, 1000
"""Of an error that cannot travel as it is: so many arguments, and characters of each text."""
REMOTE_NAME, EXPOSED_NAME = "__pymq_remote__", "__pymq_exposed__"
"""The attributes in which a function remembers under which name it was declared, and under which exposed, for `stub(function)`."""


def remember_name(fn: Callable[..., Any], name: str, attribute: str = REMOTE_NAME) -> None:
    """So that `stub(fn)` calls what was declared, or exposed, as `name`."""
    with suppress(TypeError):  # a builtin, or an object with slots: it is called by its name
        vars(getattr(fn, "__func__", fn)).setdefault(attribute, name)


def forget_name(fn: Callable[..., Any], *attributes: str) -> None:
    """The opposite."""
    with suppress(TypeError):
        for attribute in attributes:
            vars(getattr(fn, "__func__", fn)).pop(attribute, None)


class Remote:
    """One exposed function: decodes a call, makes it, replies. Serial, as a subscription is, unless it is `async def`."""

    def __init__(self, bus: EventBus, remotes: Remotes, fn: Callable[..., Any], name: str, hints: dict[str, Any] | None = None) -> None:
        from pymq import codec

        self.bus = bus
        self._loop = bus.loop
        self._remotes = remotes
        self.fn = fn
        self.name = name
        self.serial: Serial = Serial()
        self.is_async: bool = is_async(fn)
        hints = hints_of(fn) if hints is None else hints
        for hint in hints.values():
            codec.name_type(hint)
        self.returns: Any = hints.get("return", Any)
        parameters = signature_of(fn).parameters.values()
        every = {p.kind: hints.get(p.name, Any) for p in parameters}
        in_order = [hints.get(p.name, Any) for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        by_name = {p.name: hints.get(p.name, Any) for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}

        def wanted(place: int | str) -> Any:
            if isinstance(place, str):
                return by_name.get(place, every.get(inspect.Parameter.VAR_KEYWORD, Any))
            return in_order[place] if place < len(in_order) else every.get(inspect.Parameter.VAR_POSITIONAL, Any)

        self._calls = CallReader(wanted)
        self._convert: Callable[[Any, Any], Any] = codec.convert

    def execute(self, start: int, reply_to: str, message: bytes) -> None:
        """Execute one request, whose prefix ends at `start`. An expired one is dropped: its caller has given up."""
        try:
            if not message.startswith(FOREVER, start) and self.bus.provider.clock() > DEADLINE.unpack_from(message, start)[0]:
                return
            start += DEADLINE_BYTES
            request = message[:SEQUENCE_BYTES]
            try:
                if self.is_async:
                    self._loop.submit(self.name, self._run_async(message, start, reply_to, request))
                    return
                result = self._calls.call(self.fn, message, start)
            except BaseException as error:
                self._remotes.fail(reply_to, request, error)
            else:
                self._reply(reply_to, request, result)
        except Exception as error:  # cut short, or the bus was shut down by the call itself
            log.warning("a call of %r was skipped: %s", self.name, error)

    async def _run_async(self, message: bytes, start: int, reply_to: str, request: bytes) -> None:
        try:
            result = await self._calls.call(self.fn, message, start)
        except BaseException as error:
            self._remotes.fail(reply_to, request, error)
        else:
            self._reply(reply_to, request, result)

    def _reply(self, reply_to: str, request: bytes, result: Any) -> None:
        remotes = self._remotes
        try:
            if type(result) is not self.returns:
                result = self._convert(result, self.returns)
            prefix, encode = remotes.encodings.get(type(result)) or remotes.encoding(type(result))
            remotes.send(reply_to, request + prefix + encode(result))
        except Exception as error:  # the result cannot travel, or is not what the function promises
            remotes.fail(reply_to, request, unrun(self.fn, result) or error)


class _Requests:
    """The requests of one caller to one remote, or to none that this bus serves any more: one prefix, so one reply queue."""

    __slots__ = ("name", "run", "serial")

    def __init__(self, remotes: Remotes, packed: bytes, prefix: Prefix) -> None:
        remote, start, reply_to = remotes.get(prefix.channel), frames.START.size + len(packed), prefix.type_name
        self.name = prefix.channel

        def refuse(message: bytes) -> None:
            remotes.refuse(reply_to, message[:SEQUENCE_BYTES], prefix.channel)

        self.serial: Serial = Serial() if remote is None else remote.serial
        self.run: Callable[[bytes], None] = refuse if remote is None else partial(remote.execute, start, reply_to)


class Remotes:
    """The functions that one bus serves."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._lock = threading.RLock()  # reentrant: a signal handler, or `__del__`, may come in the middle
        self._remotes: dict[str, Remote] = {}
        self._late: deque[tuple[str, bytes]] = deque()
        self._is_late = False
        self.encodings: dict[Any, tuple[bytes, Callable[[Any], bytes]]] = {}

    @staticmethod
    def name_of(fn: Callable[..., Any] | str, channel: str | None = None) -> str:
        """The name under which a function is served. Raises ValueError for a lambda without one, TypeError for no function."""
        if channel is not None or isinstance(fn, str):
            name = channel if channel is not None else fn
            if not isinstance(name, str) or not name:
                raise ValueError(f"a remote's name is a text, not {name!r}")
            return name
        if not callable(fn):
            raise TypeError(f"{fn!r} is neither a function nor a name")
        if (exposed := getattr(fn, REMOTE_NAME, None)) is not None:
            return str(exposed)
        if describe(fn).endswith("<lambda>"):
            raise ValueError("a lambda has no name: give one, as in expose(lambda a: a + 1, channel='increment')")
        return qualified_name(fn)

    def name_to_call(self, fn: Callable[..., Any] | str) -> str:
        """The name under which this bus serves it, where it does, else the one that it remembers. Raises as `name_of`."""
        served = [name for name, remote in list(self._remotes.items()) if remote.fn == fn]  # no lock: the reader may need it for a call
        exposed = served[0] if served else getattr(fn, REMOTE_NAME, None) or getattr(fn, EXPOSED_NAME, None)
        return self.name_of(fn, exposed)

    def add(self, fn: Callable[..., Any], name: str, hints: dict[str, Any] | None = None) -> Remote | None:
        """Serve `fn`; callers find it on return. What began, unless it was served under that name before."""
        remote = Remote(self._bus, self, fn, name, hints)
        remember_name(fn, name, EXPOSED_NAME)
        with self._lock:
            served = self._remotes.get(name)
            if served is not None and served.fn != fn:
                raise ValueError(f"this bus already serves another function as {name!r}; unexpose it first, or choose another name")
            self._remotes[name] = remote
            self._bus.subscriptions.tasks.clear()
        self._bus.provider.bind(self._bus.inbox_ready(), "r/" + name, exact=True)
        return remote if served is None else None

    def remove(self, fn: Callable[..., Any] | str) -> None:
        """Serve it no more."""
        if not self._drop(lambda remote: fn in (remote.name, remote.fn)):
            raise ValueError(f"{fn if isinstance(fn, str) else describe(fn)!r} is not exposed")
        if not isinstance(fn, str):
            forget_name(fn, REMOTE_NAME, EXPOSED_NAME)

    def drop(self, gone: Remote) -> None:
        """End this one, unless it was exposed again since."""
        if self._drop(lambda remote: remote is gone) and getattr(gone.fn, EXPOSED_NAME, None) == gone.name:
            forget_name(gone.fn, EXPOSED_NAME)

    def _drop(self, is_meant: Callable[[Remote], bool]) -> list[str]:
        with self._lock:
            names = [name for name, remote in list(self._remotes.items()) if is_meant(remote)]
            for name in names:
                self._remotes.pop(name, None)
            self._bus.subscriptions.tasks.clear()
            for name in names:  # here: an `add` that comes in between would be unbound
                self._bus.provider.unbind(self._bus.inbox, "r/" + name, exact=True)
        return names

    def get(self, name: str) -> Remote | None:
        """What this bus serves under that name."""
        return self._remotes.get(name)

    def look_up(self, packed: bytes, prefix: Prefix) -> tuple[Task, ...]:
        """Who executes requests with this prefix; kept until what is served changes."""
        with self._lock:
            return self._bus.subscriptions.keep(packed, (_Requests(self, packed, prefix),))

    def encoding(self, cls: type) -> tuple[bytes, Callable[[Any], bytes]]:
        """The prefix of a reply with a result of that class, and what encodes it; kept. Raises CodecError where it cannot travel."""
        from pymq import codec

        encoder = codec.encoder_for(cls)
        prefix = Prefix(frames.REPLY, encoder.form, 0, self._bus.token, "", encoder.type_name, ())
        found = self.encodings[cls] = frames.pack_prefix(prefix), encoder.encode
        return found

    def fail(self, queue: str, request: bytes, error: BaseException) -> None:
        """Send what the function raised: its type's name, text, arguments and traceback; what cannot travel as texts, or not at all."""
        for details in (_whole, _as_texts, _name_alone):
            try:
                message = _failure(request, self._bus.token, details(error))
                if len(message) <= self._bus.provider.max_message_bytes:
                    return self._report(queue, message)
            except Exception:
                pass  # the error's own methods may raise, too
        return None

    def refuse(self, queue: str, request: bytes, name: str) -> None:
        """Say that the request was not executed: an error without a type, which no remote can raise."""
        self._report(queue, _failure(request, self._bus.token, ("", f"nobody serves {name!r}", [], "")))

    def _report(self, queue: str, message: bytes) -> None:
        try:
            self.send(queue, message)
        except (PymqError, Full) as failure:
            log.warning("a failure could not be reported to its caller: %s", failure)

    def send(self, queue: str, message: bytes) -> None:
        """To a caller, if it is still there; when the provider is cut off from its server, as soon as that is back."""
        if self._bus.remotes is not self:
            return  # a fork, or the end of the bus, came in the call: after the one, the answer is the parent's to give
        try:
            self._bus.provider.reply(queue, message)
        except QueueNotFound:
            pass  # the caller is gone
        except ConnectionLost:
            self._send_later(queue, message)

    def _send_later(self, queue: str, message: bytes) -> None:
        with self._lock:
            self._late.append((queue, message))
            if not self._is_late:
                self._is_late = True
                threading.Thread(target=self._send_late, name="pymq-late", daemon=True).start()

    def _send_late(self) -> None:
        """Until all are out. A caller that was cut off as well may come back after us; later than a death is known it is gone."""
        provider, gone_at = self._bus.provider, NEVER
        while (reply := self._next_late()) is not None:
            try:
                provider.reply(*reply)
            except (ConnectionLost, QueueNotFound) as error:
                now = time.monotonic()
                gone_at = NEVER if isinstance(error, ConnectionLost) else min(gone_at, now + provider.features.death_seconds)
                if now < gone_at:
                    self._late.append(reply)
                    time.sleep(_LATER)
            except Exception as error:
                log.warning("a reply could not be sent to its caller: %s", error)

    def _next_late(self) -> tuple[str, bytes] | None:
        with self._lock:
            self._is_late = bool(self._late) and self._bus.remotes is self
            return self._late.popleft() if self._is_late else None


def _failure(request: bytes, token: int, details: tuple[str, str, list[Any], str]) -> bytes:
    from pymq import codec

    prefix = Prefix(frames.FAILURE, codec.TAGGED, 0, token, "", "", ())
    return request + frames.pack_prefix(prefix) + codec.encode_arguments(details, {})


def _whole(error: BaseException) -> tuple[str, str, list[Any], str]:
    return type(error).__name__, str(error), list(error.args), _trace(error)


def _as_texts(error: BaseException) -> tuple[str, str, list[Any], str]:
    args = [_text(arg, repr) for arg in error.args[:_MOST_ARGS]]
    return type(error).__name__, _text(error, str), args, _trace(error)[-_LONGEST_TEXT:]


def _name_alone(error: BaseException) -> tuple[str, str, list[Any], str]:
    return type(error).__name__, "", [], ""


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _text(value: Any, make: Callable[[Any], str]) -> str:
    try:
        return make(value)[:_LONGEST_TEXT]
    except Exception:
        return f"<{type(value).__name__}>"
