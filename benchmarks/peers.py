"""pyzmq as a good programmer would use it by hand: the same events through pydantic and its sockets, where it is importable."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, TypeAlias

from benchmarks.contest import Measure
from benchmarks.events import ORDER, TRADE, Order, Receipt, Trade, settle
from benchmarks.measuring import Processors, calls, conversation, directory, scaled, started, stream
from benchmarks.processes import Child, Program

Encode: TypeAlias = Callable[[Any], bytes]
Decode: TypeAlias = Callable[[bytes], Any]


def available() -> bool:
    """Whether pyzmq can be imported (`pip install -e '.[bench]'`)."""
    return importlib.util.find_spec("zmq") is not None


def codec(cls: type, held: bool) -> tuple[Encode, Decode]:
    """By the public methods of a TypeAdapter, or by the serializer and validator that it holds: what a fast program calls."""
    from pydantic import TypeAdapter

    adapter: TypeAdapter[Any] = TypeAdapter(cls)
    if held:
        return adapter.serializer.to_json, adapter.validator.validate_json
    return adapter.dump_json, adapter.validate_json


@contextmanager
def _socket(kind: str) -> Iterator[Any]:
    """A socket with no limit to what it queues in front of a slow receiver where it would otherwise drop it."""
    import zmq

    with zmq.Context() as context, context.socket(getattr(zmq, kind)) as socket:
        socket.linger = 0
        if kind in ("XPUB", "SUB"):
            socket.set_hwm(0)
        if kind == "XPUB":
            socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # one message per subscriber, not per topic
        yield socket


@contextmanager
def push_events(scale: float, held: bool) -> Iterator[Measure]:
    """Events per second, PUSH to PULL."""
    encode, _ = codec(Trade, held)
    with directory() as home, _socket("PUSH") as socket:
        socket.bind(f"ipc://{home}/events")
        with Child(pull_events, socket.last_endpoint.decode(), held) as receiver:
            yield lambda: stream([receiver], _sender(socket, lambda: encode(TRADE)), scaled(60_000, scale))


@contextmanager
def push_bytes(scale: float, size: int, count: int) -> Iterator[Measure]:
    """Payloads per second, PUSH to PULL, no codec."""
    payload = bytes(size)
    with directory() as home, _socket("PUSH") as socket:
        socket.bind(f"ipc://{home}/bytes")
        with Child(pull_bytes, socket.last_endpoint.decode()) as receiver:
            yield lambda: stream([receiver], _sender(socket, lambda: payload), scaled(count, scale))


@contextmanager
def publish_events(scale: float, held: bool, subscribers: int) -> Iterator[Measure]:
    """Deliveries per second, PUB to SUBs; an XPUB socket, which tells when all have subscribed."""
    encode, _ = codec(Trade, held)
    with directory() as home, _socket("XPUB") as socket:
        socket.bind(f"ipc://{home}/events")
        with started(subscribers, subscribe_events, socket.last_endpoint.decode(), held) as receivers:
            for _ in receivers:
                socket.recv()
            yield lambda: stream(receivers, _sender(socket, lambda: encode(TRADE)), scaled(20_000, scale))


def _sender(socket: Any, encoded: Callable[[], bytes]) -> Callable[[int], None]:
    def send(count: int) -> None:
        transmit = socket.send
        for _ in range(count):
            transmit(encoded())

    return send


def pull_events(endpoint: str, held: bool) -> Program:
    """Decodes events and calls a handler."""
    yield from _receive("PULL", endpoint, codec(Trade, held)[1])


def subscribe_events(endpoint: str, held: bool) -> Program:
    """The same from a PUB socket."""
    yield from _receive("SUB", endpoint, codec(Trade, held)[1])


def pull_bytes(endpoint: str) -> Program:
    """Receives payloads and calls a handler."""
    yield from _receive("PULL", endpoint, lambda payload: payload)


def _receive(kind: str, endpoint: str, decode: Decode) -> Program:
    with _socket(kind) as socket:
        if kind == "SUB":
            socket.subscribe(b"")
        socket.connect(endpoint)
        receive, answer = socket.recv, None
        while True:
            count = yield answer
            yield
            for _ in range(count):
                handle(decode(receive()))
            answer = perf_counter()


def handle(value: object) -> None:
    """A handler that does nothing: its call is part of the work."""


@contextmanager
def request_reply(scale: float, held: bool, place: Callable[[], Processors], figure: int, count: int) -> Iterator[Measure]:
    """Typed round trips, REQ to REP."""
    with directory() as home:
        args = f"ipc://{home}/calls", held
        with conversation(reply, request, args, place=place, figure=figure, count=scaled(count, scale)) as measure:
            yield measure


def reply(endpoint: str, held: bool) -> Program:
    """Serves `settle` until an empty request comes."""
    _, decode = codec(Order, held)
    encode, _ = codec(Receipt, held)
    with _socket("REP") as socket:
        socket.bind(endpoint)
        yield
        while request := socket.recv():
            socket.send(encode(settle(decode(request))))


def request(endpoint: str, held: bool) -> Program:
    """Calls it as often as it is asked to."""
    encode, _ = codec(Order, held)
    _, decode = codec(Receipt, held)
    with _socket("REQ") as socket:
        socket.linger = 1000
        socket.connect(endpoint)

        def call() -> object:
            socket.send(encode(ORDER))
            return decode(socket.recv())

        try:
            yield from calls(call)
        finally:
            socket.send(b"")
