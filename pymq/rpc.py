"""Remote calls: a request goes to the inbox of one server (or of each), the reply to an inbox of the calling thread.

A server binds its inbox to the topic "r/<name>", so `provider.consumers` tells who serves a name, the least busy first. A request
in an inbox dies with its server: nobody executes it later, and its caller sees the death of exactly that process. Each calling
thread waits on a reply queue of its own and receives from it itself, so that no reply ever waits behind a handler.

Payloads: a request is a deadline (f64, by the provider's clock; infinite for none) and the call's arguments; a reply is the request's
sequence (u64) and the result; a failure is the request's sequence and (type name, text, arguments, traceback).
"""

from __future__ import annotations

import inspect
import itertools
import logging
import struct
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Full
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from pymq import message as frames
from pymq.calls import CallReader, pack_call
from pymq.dispatch import Serial, Task
from pymq.exceptions import CodecError, NoSuchRemoteError, PymqError, QueueNotFound, RemoteInvocationError, RpcTimeout, ServerDied
from pymq.handlers import describe, hints_of
from pymq.message import Prefix
from pymq.topics import qualified_name

if TYPE_CHECKING:
    from pymq.bus import EventBus
    from pymq.provider.base import Provider

log = logging.getLogger("pymq")
P = ParamSpec("P")
R = TypeVar("R")

_DEADLINE = struct.Struct("<d")
_SEQUENCE = struct.Struct("<Q")
NEVER = float("inf")
REMOTE_NAME = "__pymq_remote__"
"""The attribute in which a function that is exposed under another name than its own remembers that, for `stub(function)`."""


@dataclass
class RpcRequest:
    """A call, as data."""

    fn: str
    response_channel: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class RpcResponse:
    """What became of a call: its result, or, where `error`, the exception in the result's place."""

    fn: str
    result: Any = None
    result_type: str = ""
    error: bool = False


# ---------------------------------------------------------------------- the server


def remember_name(fn: Callable[..., Any], name: str) -> None:
    """So that `stub(fn)` calls what was exposed as `name`."""
    try:
        vars(getattr(fn, "__func__", fn)).setdefault(REMOTE_NAME, name)
    except TypeError:
        pass  # a builtin, or an object with slots: it is called by its name


class Remote:
    """One exposed function: decodes a call, makes it, replies. Serial, as a subscription is."""

    def __init__(self, bus: EventBus, fn: Callable[..., Any], name: str) -> None:
        from pymq import codec

        self.bus = bus
        self.fn = fn
        self.name = name
        self.serial = Serial()
        self.is_async = inspect.iscoroutinefunction(fn)
        hints = hints_of(fn)
        for hint in hints.values():
            codec.name_type(hint)
        self.returns = hints.get("return", Any)
        parameters = inspect.signature(fn).parameters.values()
        every = {p.kind: hints.get(p.name, Any) for p in parameters}
        in_order = [hints.get(p.name, Any) for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        by_name = {p.name: hints.get(p.name, Any) for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}

        def wanted(place: int | str) -> Any:
            if isinstance(place, str):
                return by_name.get(place, every.get(inspect.Parameter.VAR_KEYWORD, Any))
            return in_order[place] if place < len(in_order) else every.get(inspect.Parameter.VAR_POSITIONAL, Any)

        self._unpack = CallReader(wanted).unpack
        self._convert = codec.convert

    def execute(self, message: bytes, start: int, reply_to: str) -> None:
        """Execute one request, whose prefix ends at `start`. An expired one is dropped: its caller has given up."""
        (sequence,) = _SEQUENCE.unpack_from(message)
        (deadline,) = _DEADLINE.unpack_from(message, start)
        if deadline != NEVER and self.bus.provider.clock() > deadline:
            return
        start += _DEADLINE.size
        if self.is_async:
            self.bus.loop.submit(self.name, self._run_async(message, start, reply_to, sequence))
            return
        try:
            args, kwargs = self._unpack(message, start)
            result = self.fn(*args, **kwargs)
        except BaseException as error:
            self.bus.remotes.fail(reply_to, sequence, error)
        else:
            self._reply(reply_to, sequence, result)

    async def _run_async(self, message: bytes, start: int, reply_to: str, sequence: int) -> None:
        try:
            args, kwargs = self._unpack(message, start)
            result = await self.fn(*args, **kwargs)
        except BaseException as error:
            self.bus.remotes.fail(reply_to, sequence, error)
        else:
            self._reply(reply_to, sequence, result)

    def _reply(self, reply_to: str, sequence: int, result: Any) -> None:
        try:
            self.bus.remotes.reply(reply_to, sequence, self._convert(result, self.returns))
        except Exception as error:  # the result cannot travel, or is not what the function promises
            self.bus.remotes.fail(reply_to, sequence, error)


class _Requests:
    """The requests of one caller to one remote, or to none that this bus serves any more: one prefix, so one reply queue."""

    __slots__ = ("name", "run", "serial")

    def __init__(self, remotes: Remotes, packed: bytes, prefix: Prefix) -> None:
        remote, start, reply_to = remotes.get(prefix.channel), frames.START.size + len(packed), prefix.type_name
        self.name = prefix.channel

        def execute(message: bytes) -> None:
            assert remote is not None
            try:
                remote.execute(message, start, reply_to)
            except Exception as error:  # cut short, or the bus was shut down by the call itself
                log.warning("a call of %r was skipped: %s", prefix.channel, error)

        def refuse(message: bytes) -> None:
            (sequence,) = _SEQUENCE.unpack_from(message)
            remotes.fail(reply_to, sequence, NoSuchRemoteError(f"nobody serves {prefix.channel!r}"))

        self.serial, self.run = (Serial(), refuse) if remote is None else (remote.serial, execute)


class Remotes:
    """The functions that one bus serves."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._lock = threading.Lock()
        self._remotes: dict[str, Remote] = {}
        self._prefixes: dict[Any, tuple[bytes, Callable[[Any], bytes]]] = {}
        self._sequence = itertools.count(1)

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

    def add(self, fn: Callable[..., Any], name: str, replace: bool = False) -> None:
        """Serve `fn`; callers find it on return."""
        remote = Remote(self._bus, fn, name)
        remember_name(fn, name)
        with self._lock:
            served = self._remotes.get(name)
            if served is not None and served.fn != fn and not replace:
                raise ValueError(f"this bus already serves another function as {name!r}; unexpose it first, or choose another name")
            self._remotes[name] = remote
            self._bus.subscriptions.tasks.clear()
        self._bus.provider.bind(self._bus.inbox_ready(), "r/" + name, exact=True)

    def remove(self, fn: Callable[..., Any] | str) -> None:
        """Serve it no more."""
        with self._lock:
            names = [name for name, remote in self._remotes.items() if fn in (name, remote.fn)]
            for name in names:
                del self._remotes[name]
            self._bus.subscriptions.tasks.clear()
        if not names:
            raise ValueError(f"{fn if isinstance(fn, str) else describe(fn)!r} is not exposed")
        for name in names:
            self._bus.provider.unbind(self._bus.inbox, "r/" + name, exact=True)
        if not isinstance(fn, str):
            vars(getattr(fn, "__func__", fn)).pop(REMOTE_NAME, None)

    def get(self, name: str) -> Remote | None:
        """What this bus serves under that name."""
        return self._remotes.get(name)

    def look_up(self, packed: bytes, prefix: Prefix) -> tuple[Task, ...]:
        """Who executes requests with this prefix; kept until what is served changes."""
        with self._lock:
            found = self._bus.subscriptions.tasks[packed] = (_Requests(self, packed, prefix),)
        return found

    def reply(self, queue: str, request: int, result: Any) -> None:
        """Send a result. Raises CodecError or MessageTooLarge where it cannot travel."""
        cls = type(result)
        if cls not in self._prefixes:
            from pymq import codec

            encoder = codec.encoder_for(cls)
            prefix = Prefix(frames.REPLY, encoder.form, 0, self._bus.token, "", encoder.type_name, ())
            self._prefixes[cls] = frames.pack_prefix(prefix), encoder.encode
        prefix_bytes, encode = self._prefixes[cls]
        self._send(queue, prefix_bytes + _SEQUENCE.pack(request) + encode(result))

    def fail(self, queue: str, request: int, error: BaseException) -> None:
        """Send what the function raised: its type's name, text, arguments and traceback."""
        from pymq import codec

        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        try:
            details = codec.encode_arguments((type(error).__name__, str(error), list(error.args), trace), {})
        except Exception:
            details = codec.encode_arguments((type(error).__name__, _text(error), [repr(a) for a in error.args], ascii(trace)), {})
        prefix = Prefix(frames.FAILURE, codec.TAGGED, 0, self._bus.token, "", "", ())
        try:
            self._send(queue, frames.pack_prefix(prefix) + _SEQUENCE.pack(request) + details)
        except (PymqError, Full) as failure:
            log.warning("a failure could not be reported to its caller: %s", failure)

    def _send(self, queue: str, rest: bytes) -> None:
        try:
            self._bus.provider.send(queue, frames.pack_sequence(next(self._sequence)) + rest, timeout=1.0)
        except QueueNotFound:
            pass  # the caller is gone


def _text(error: BaseException) -> str:
    try:
        return ascii(str(error))
    except Exception:
        return f"<{type(error).__name__}>"


# ---------------------------------------------------------------------- the caller


class ReplyQueue:
    """A temporary queue on which one thread at a time waits for replies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sequence = itertools.count(1)
        self.prefixes: dict[str, bytes] = {}


class Caller:
    """Makes the calls of one bus: lends each calling thread a reply queue and waits on it."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._idle: list[ReplyQueue] = []
        self._numbers = itertools.count(1)

    def call(self, stub: StubMethod[..., Any], data: bytes) -> list[Any]:
        """Send the request to one server, or to each; their results in order, a RemoteInvocationError in the place of each failure.

        Raises NoSuchRemoteError where nobody serves the name and not all were asked for.
        """
        provider = self._bus.provider
        deadline = NEVER if stub.timeout is None else provider.clock() + stub.timeout
        queue = self._borrow()
        try:
            pending = self._request(provider, queue, stub, _DEADLINE.pack(deadline) + data, deadline)
            if not pending and not stub.multi:
                raise NoSuchRemoteError(f"nobody serves {stub.name!r}")
            if self._bus.inbox in pending.values():
                self._bus.step_aside()
            return list(self._gather(queue, stub, pending, deadline).values())
        finally:
            self._idle.append(queue)

    def _borrow(self) -> ReplyQueue:
        try:
            return self._idle.pop()
        except IndexError:
            pass
        queue = ReplyQueue(f"reply/{self._bus.token:016x}/{next(self._numbers)}")
        self._bus.provider.declare(queue.name, temporary=True)
        return queue

    def _request(
        self, provider: Provider, queue: ReplyQueue, stub: StubMethod[..., Any], data: bytes, deadline: float
    ) -> dict[int, str]:
        """Send; who was asked, by the request's sequence. A server that died in between is passed over, a full one asked last."""
        rest = (queue.prefixes.get(stub.name) or self._prefix(queue, stub.name)) + data
        asked: dict[int, str] = {}
        full: list[str] = []
        for server in provider.consumers(stub.topic):
            sequence = next(queue.sequence)
            try:
                provider.send(server, frames.pack_sequence(sequence) + rest, timeout=0)
            except QueueNotFound:
                continue
            except Full:
                full.append(server)
                continue
            asked[sequence] = server
            if not stub.multi:
                return asked
        for server in full if stub.multi else full[:1]:
            sequence = next(queue.sequence)
            try:
                provider.send(server, frames.pack_sequence(sequence) + rest, timeout=_left(provider, deadline))
            except QueueNotFound:
                continue
            except Full:
                pass  # the deadline has passed: it counts as one that did not answer
            asked[sequence] = server
        return asked

    def _prefix(self, queue: ReplyQueue, name: str) -> bytes:
        prefix = Prefix(frames.REQUEST, 0, 0, self._bus.token, name, queue.name, ())
        packed = queue.prefixes[name] = frames.pack_prefix(prefix)
        return packed

    def _gather(self, queue: ReplyQueue, stub: StubMethod[..., Any], pending: dict[int, str], deadline: float) -> dict[int, Any]:
        """The results as they come, until the deadline or until those that are missing have died."""
        provider = self._bus.provider
        left = _left(provider, deadline)
        results: dict[int, Any] = dict.fromkeys(pending)
        while pending:
            batch = provider.receive(queue.name, left, watch=list(pending.values()))
            for message, _ in batch:
                start = frames.START.size + message[8] + (message[9] << 8)
                (request,) = _SEQUENCE.unpack_from(message, start)
                if pending.pop(request, None) is not None:
                    results[request] = stub.finish(message, start)
            if not pending:
                break
            left = _left(provider, deadline)
            if left == 0 and not batch:
                return results | dict.fromkeys(pending, RpcTimeout(f"no reply from {stub.name!r} within {stub.timeout} s"))
            if not batch:
                self._bury(stub.name, pending, results)
        return results

    def _bury(self, name: str, pending: dict[int, str], results: dict[int, Any]) -> None:
        """Nothing came: find out which servers are dead."""
        for request, server in list(pending.items()):
            try:
                self._bus.provider.send(server, b"", timeout=0)
            except QueueNotFound:
                results[request] = ServerDied(f"the server of {name!r} died before it replied")
                del pending[request]
            except Full:
                pass  # it lives


def _left(provider: Provider, deadline: float) -> float | None:
    return None if deadline == NEVER else max(0.0, deadline - provider.clock())


class StubMethod(Generic[P, R]):
    """A remote function, to be called like a local one. Safe in all threads."""

    def __init__(self, bus: EventBus, fn: Callable[P, R] | str, timeout: float | None = None, multi: bool = False) -> None:
        self._bus = bus
        self.name = Remotes.name_of(fn)
        self.topic = "r/" + self.name
        self.timeout = timeout
        self.multi = multi
        self._returns = Any if isinstance(fn, str) else hints_of(fn).get("return", Any)
        self._decoders: dict[bytes, Callable[[bytes], Any]] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The remote's result (multi: a list of them, with the error in the place of each failure).

        Raises NoSuchRemoteError, RpcTimeout, ServerDied, RemoteInvocationError with what the remote raised, CodecError for an
        argument that cannot travel.
        """
        results = self._call(args, kwargs)
        if self.multi:
            return results  # type: ignore[return-value]
        if isinstance(results[0], RemoteInvocationError | NoSuchRemoteError):
            raise results[0]
        return results[0]  # type: ignore[no-any-return]

    def rpc(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """The raw `RpcResponse` (multi: a list of them): a failure is in its result instead of being raised."""
        responses = [self._response(result) for result in self._call(args, kwargs)]
        return responses if self.multi else responses[0]

    def _response(self, result: Any) -> RpcResponse:
        failed = isinstance(result, RemoteInvocationError | NoSuchRemoteError)
        return RpcResponse(self.name, result, qualified_name(type(result)), failed)

    def _call(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        return self._bus.caller.call(self, pack_call(args, kwargs))

    def finish(self, message: bytes, start: int) -> Any:
        """The result that a reply carries, or the exception that stands for it; its prefix ends at `start`."""
        packed = message[10:start]
        try:
            decode = self._decoders.get(packed) or self._decoder(packed)
            return decode(message[start + 8 :])
        except CodecError as error:
            return RemoteInvocationError(f"the result of {self.name!r} cannot be read: {error}", "CodecError", error.args)

    def _decoder(self, packed: bytes) -> Callable[[bytes], Any]:
        from pymq import codec

        prefix = frames.unpack_prefix(packed)
        if prefix.kind == frames.FAILURE:
            return _failure
        decode = self._decoders[packed] = codec.decoder_for(prefix.form, prefix.type_name, self._returns)
        return decode

    def __repr__(self) -> str:
        return f"<stub of {self.name!r}{', multi' if self.multi else ''}>"


def _failure(data: bytes) -> Exception:
    from pymq import codec

    (remote_type, text, args, trace), _ = codec.decode_arguments(data)
    if remote_type == "NoSuchRemoteError":
        return NoSuchRemoteError(text)
    return RemoteInvocationError(f"{remote_type}: {text}", remote_type, args, trace)
