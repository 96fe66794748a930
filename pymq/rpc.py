"""Remote calls: a request goes to the inbox of one server (or of each), the reply to an inbox of the calling thread.

A server binds its inbox to the topic "r/<name>", so `provider.consumers` tells who serves a name, the least busy first. A request
in an inbox dies with its server: nobody executes it later, and its caller sees the death of exactly that process. Each calling
thread waits on a reply queue of its own and receives from it itself, so that no reply ever waits behind a handler.

Payloads: a request is a deadline (f64, by the provider's clock; infinite for none) and the call's arguments; a reply is the result; a
failure is (type name, text, arguments, traceback). Replies and failures bear the sequence of their request.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from queue import Full
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

from pymq import message as frames
from pymq.calls import pack_call
from pymq.exceptions import CodecError, NoSuchRemoteError, QueueNotFound, RemoteInvocationError, RpcException, RpcTimeout, ServerDied
from pymq.handlers import hints_of
from pymq.message import SEQUENCE_BYTES, Prefix, pack_sequence
from pymq.remotes import DEADLINE, FOREVER, NEVER, SEQUENCE
from pymq.topics import Remembered, qualified_name

if TYPE_CHECKING:
    from pymq.bus import EventBus
    from pymq.provider.base import Delivery, Provider

log: logging.Logger = logging.getLogger("pymq")
_START = frames.START.size
_MOST_SERVERS = 1000
"""Whose replies a stub knows how to decode: each has a prefix of its own."""
P = ParamSpec("P")
R = TypeVar("R")


class RpcRequest(NamedTuple):
    """A call, as data; nothing here makes one: for programs that come from PyMQ."""

    fn: str
    response_channel: str
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] | None = None


class RpcResponse(NamedTuple):
    """What became of a call: its result, or, where `error`, the exception in the result's place.

    `result_type` is the name of the result's class, or of the one that the remote raised.
    """

    fn: str
    result: Any = None
    result_type: str = ""
    error: bool = False


class ReplyQueue:
    """A temporary queue on which one thread at a time waits for replies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sequence: itertools.count[int] = itertools.count(1)
        self.prefixes: Remembered[bytes] = Remembered()


class Caller:
    """Makes the calls of one bus: lends each calling thread a reply queue and waits on it."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._idle: list[ReplyQueue] = []
        self._numbers = itertools.count(1)

    def call(self, stub: StubMethod[..., Any], data: bytes) -> Any:
        """The result of one server, or a list of each one's, in order; an exception in the place of each failure.

        Raises NoSuchRemoteError where nobody serves the name and not all were asked for.
        """
        bus = self._bus
        provider = bus.provider
        remote = bus.remotes.get(stub.name)
        if remote is not None and remote.is_async and bus.loop.is_run_by(threading.current_thread()):
            raise RpcException(f"{stub.name!r} runs on the loop that this call would hold up: `await asyncio.to_thread(stub, ...)`")
        if stub.timeout is None:
            deadline, data = NEVER, FOREVER + data
        else:
            deadline = provider.clock() + stub.timeout
            data = DEADLINE.pack(deadline) + data
        try:
            queue = self._idle.pop()
        except IndexError:
            queue = self._new_queue()
        try:
            if stub.multi:
                return self._call_each(provider, queue, stub, data, deadline)
            request, server = self._request_one(provider, queue, stub, data, deadline)
            if server is None:
                raise NoSuchRemoteError(f"nobody serves {stub.name!r}")
            if server == bus.inbox:
                bus.step_aside()
            left = None if stub.timeout is None else _left(provider, deadline)
            batch = provider.receive(queue.name, left, watch=(server,))
            if len(batch) == 1 and (reply := batch[0][0]).startswith(request) and len(reply) >= _START:
                return stub.finish(reply)  # what nearly always comes; a dict of results would be 1 us more
            (sequence,) = SEQUENCE.unpack(request)
            return self._gather(provider, queue, stub, {sequence: server}, deadline, batch)[sequence]
        finally:
            self._idle.append(queue)

    def _call_each(self, provider: Provider, queue: ReplyQueue, stub: StubMethod[..., Any], data: bytes, deadline: float) -> list[Any]:
        pending = self._request_each(provider, queue, stub, data, deadline)
        if not pending:
            return []
        if self._bus.inbox in pending.values():
            self._bus.step_aside()
        batch = provider.receive(queue.name, _left(provider, deadline), watch=[*pending.values()])
        return list(self._gather(provider, queue, stub, pending, deadline, batch).values())

    def _new_queue(self) -> ReplyQueue:
        queue = ReplyQueue(f"reply/{self._bus.token:016x}/{next(self._numbers)}")
        self._bus.provider.declare(queue.name, temporary=True)
        return queue

    def _request(
        self, provider: Provider, queue: ReplyQueue, stub: StubMethod[..., Any], data: bytes, deadline: float
    ) -> dict[int, str]:
        """Send; who was asked, by the request's sequence. For who does not wait in this thread: `pymq.asyncio`."""
        if stub.multi:
            return self._request_each(provider, queue, stub, data, deadline)
        request, server = self._request_one(provider, queue, stub, data, deadline)
        return {} if server is None else {SEQUENCE.unpack(request)[0]: server}

    def _request_one(
        self, provider: Provider, queue: ReplyQueue, stub: StubMethod[..., Any], data: bytes, deadline: float
    ) -> tuple[bytes, str | None]:
        """Send to one server; the request's sequence, packed, and who was asked."""
        request = pack_sequence(next(queue.sequence))
        head = queue.prefixes.get(stub.name) or self._prefix(queue, stub.name)
        try:
            return request, provider.request(stub.topic, request + head + data, queue.name)
        except Full:  # all are: the first that has room
            for sequence, server in self._request_each(provider, queue, stub, data, deadline).items():
                return pack_sequence(sequence), server
            return request, None

    def _request_each(
        self, provider: Provider, queue: ReplyQueue, stub: StubMethod[..., Any], data: bytes, deadline: float
    ) -> dict[int, str]:
        """Send to each server, or to one; a server that died in between is passed over, a full one asked last."""
        rest = (queue.prefixes.get(stub.name) or self._prefix(queue, stub.name)) + data
        asked: dict[int, str] = {}
        full: list[str] = []
        for server in provider.consumers(stub.topic):
            sequence = next(queue.sequence)
            try:
                provider.send(server, pack_sequence(sequence) + rest, timeout=0)
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
                provider.send(server, pack_sequence(sequence) + rest, timeout=_left(provider, deadline))
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

    def _gather(
        self,
        provider: Provider,
        queue: ReplyQueue,
        stub: StubMethod[..., Any],
        pending: dict[int, str],
        deadline: float,
        batch: Sequence[Delivery],
    ) -> dict[int, Any]:
        """The results as they come, until the deadline or until those that are missing have died. `batch` has come already."""
        results: dict[int, Any] = dict.fromkeys(pending)
        while True:
            for message, _ in batch:
                if len(message) < _START:
                    continue  # not ours
                (request,) = SEQUENCE.unpack_from(message)
                if pending.pop(request, None) is not None:
                    results[request] = stub.finish(message)
            left = _left(provider, deadline)
            if pending and not batch:
                if left == 0:
                    return results | dict.fromkeys(pending, RpcTimeout(f"no reply from {stub.name!r} within {stub.timeout} s"))
                gone = self._gone(pending)
                batch = provider.receive(queue.name, 0) if gone else ()  # what came just before the end
                if batch:
                    continue
                for request in gone:
                    del pending[request]
                    results[request] = died(stub.name)
            if not pending:
                return results
            batch = provider.receive(queue.name, left, watch=[*pending.values()])

    def _gone(self, pending: dict[int, str]) -> list[int]:
        """The requests whose servers are dead."""
        gone = []
        for request, server in pending.items():
            try:
                self._bus.provider.send(server, b"", timeout=0)
            except QueueNotFound:
                gone.append(request)
            except Full:
                pass  # it lives
        return gone


def died(name: str) -> ServerDied:
    """What stands for the result of a server that is dead and has not replied."""
    return ServerDied(f"the server of {name!r} died before it replied")


def _left(provider: Provider, deadline: float) -> float | None:
    return None if deadline == NEVER else max(0.0, deadline - provider.clock())


class StubMethod(Generic[P, R]):
    """A remote function, to be called like a local one. Safe in all threads."""

    multi = False
    """Whether every live server is called."""

    def __init__(self, bus: EventBus, fn: Callable[..., Any] | str, timeout: float | None = None) -> None:
        self._bus = bus
        self.name: str = bus.remotes.name_to_call(fn)
        self.topic: str = "r/" + self.name
        self.timeout = timeout
        self._returns = Any if isinstance(fn, str) else hints_of(fn).get("return", Any)
        self._decoders: dict[bytes, Callable[[bytes], Any]] = {}
        self._last: tuple[bytes, Callable[[bytes], Any]] = b"\0\0", _refuse

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The remote's result (multi: a list of them, with the error in the place of each failure).

        Raises NoSuchRemoteError, RpcTimeout, ServerDied, RemoteInvocationError with what the remote raised, CodecError for an
        argument that cannot travel.
        """
        result = self._bus.caller.call(self, pack_call(args, kwargs))
        if isinstance(result, RpcException):
            raise result
        return result  # type: ignore[no-any-return]

    def rpc(self, *args: P.args, **kwargs: P.kwargs) -> RpcResponse:
        """The raw `RpcResponse` (multi: a list of them): a failure is in its result instead of being raised.

        Raises NoSuchRemoteError, and CodecError for an argument that cannot travel.
        """
        return self._response(self._bus.caller.call(self, pack_call(args, kwargs)))

    def _response(self, result: Any) -> RpcResponse:
        raised = result.remote_type if isinstance(result, RemoteInvocationError) else ""
        kind = raised or qualified_name(type(result)).removeprefix("builtins.")
        return RpcResponse(self.name, result, kind, isinstance(result, RpcException))

    def finish(self, message: bytes) -> Any:
        """The result that a reply carries, or the exception that stands for it."""
        packed, decode = self._last
        try:
            if not message.startswith(packed, SEQUENCE_BYTES):  # not from the same server, or not of the same type, as the last
                prefix = frames.prefix_of(message)
                decode = self._decoders.get(prefix) or self._decoder(prefix)
                packed = message[SEQUENCE_BYTES : _START + len(prefix)]
                self._last = packed, decode
            return decode(message[SEQUENCE_BYTES + len(packed) :])
        except (CodecError, ValueError, TypeError) as error:
            return RemoteInvocationError(f"the result of {self.name!r} cannot be read: {error}", "CodecError", error.args)

    def _decoder(self, packed: bytes) -> Callable[[bytes], Any]:
        from pymq import codec

        prefix = frames.unpack_prefix(packed)
        if prefix.kind == frames.FAILURE:
            return _failure
        if len(self._decoders) >= _MOST_SERVERS:
            self._decoders.clear()
        decode = self._decoders[packed] = codec.decoder_for(prefix.form, prefix.type_name, self._returns)
        return decode

    def __repr__(self) -> str:
        return f"<stub of {self.name!r}{', multi' if self.multi else ''}>"


class MultiStubMethod(StubMethod[P, list[R]]):
    """A remote function of which every live server is called; the results are a list."""

    multi = True

    def rpc(self, *args: P.args, **kwargs: P.kwargs) -> list[RpcResponse]:  # type: ignore[override]
        """The raw `RpcResponse` of each server. Raises CodecError for an argument that cannot travel."""
        return [self._response(each) for each in self._bus.caller.call(self, pack_call(args, kwargs))]


def _refuse(data: bytes) -> Any:
    raise CodecError("a message without a prefix")


def _failure(data: bytes) -> Exception:
    from pymq import codec

    (remote_type, text, args, trace), _ = codec.decode_arguments(data)
    if not remote_type:  # nothing was called
        return NoSuchRemoteError(text)
    return RemoteInvocationError(f"{remote_type}: {text}", remote_type, args, trace)
