"""Pigeon post, a provider for pymq: one process, the loft, holds all queues; the others reach it through a Unix socket.

It shows what a provider for a service of yours consists of: a config, a class with the methods of the contract, and a translation of
values, receipts and errors. The service is `pigeon_loft.py`.

A request is a line of JSON, `[client, method, arguments, options]`, and so is the answer, `[error, value]`. There is no pickle in it:
nothing that comes through the socket can make anybody run anything.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import secrets
import socket
import threading
import weakref
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from pymq import ConnectionLost, LeaseLost, MessageTooLarge, ProviderError, QueueNotFound
from pymq.exceptions import PublishFull
from pymq.provider.base import Features, Provider, Receipt

ERRORS = {cls.__name__: cls for cls in (LeaseLost, MessageTooLarge, ProviderError, PublishFull, QueueNotFound, queue.Full, ValueError)}


@dataclass(frozen=True)
class PigeonConfig:
    """Who has the same `namespace` and the same loft meets; the loft's socket is `address`. The other options are those of `simple`."""

    namespace: str = "default"
    max_pending: int = 32 << 20
    publish_timeout: float = 1.0
    max_message_bytes: int = 1 << 20
    max_queue_bytes: int = 256 << 20
    address: str = os.environ.get("PIGEON_LOFT", os.path.expanduser("~/.pigeon-loft"))

    def create(self) -> PigeonProvider:
        return PigeonProvider(self)

    @classmethod
    def from_url(cls, url: str) -> PigeonConfig:
        """`pigeon://namespace/path/of/the/socket`, or without the path."""
        parts = urlsplit(url)
        return cls(unquote(parts.netloc) or cls.namespace, address=unquote(parts.path) or cls.address)


def asks(method: str) -> Any:
    """A method that is a request to the loft."""
    return lambda self, *args, **options: self._ask(method, *args, **options)


class PigeonProvider(Provider):
    """The contract: what each method promises, the loft keeps."""

    features = Features(durable="the end of every process but the loft's", priorities=10)

    def __init__(self, config: PigeonConfig) -> None:
        self.max_message_bytes = config.max_message_bytes
        self._config = config
        self._client = secrets.token_hex(8)
        self._is_open = False
        self._local = threading.local()

    def open(self) -> None:
        """The connection that it makes lives as long as this process: from its end the loft knows of our death."""
        options = asdict(self._config)
        self._life = Line(options.pop("address"))
        self._life.ask([self._client, "open", [], options])
        self._is_open = True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._life.ask([self._client, "close", [], {}])
            self._life.close()

    declare, delete, queues, size = asks("declare"), asks("delete"), asks("queues"), asks("size")
    bind, unbind, publish, consumers = asks("bind"), asks("unbind"), asks("publish"), asks("consumers")
    send, wake, counters = asks("send"), asks("wake"), asks("counters")
    ack, nack, extend = asks("ack"), asks("nack"), asks("extend")

    def receive(self, *args: Any, **options: Any) -> list[Any]:
        found = self._ask("receive", *args, **options)
        return [(message, receipt and PigeonReceipt(*receipt)) for message, receipt in found]

    def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        """On a connection of the calling thread's own: a call may block as long as it likes."""
        if not hasattr(self._local, "line"):
            self._local.line = Line(self._config.address)
        return self._local.line.ask([self._client, method, args, options])


class PigeonReceipt(Receipt):
    """The loft knows the delivery by its number."""

    __slots__ = ("number",)

    def __init__(self, queue: str, attempt: int, number: int) -> None:
        super().__init__(queue, attempt)
        self.number = number


class Line:
    """A connection to the loft."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._file = self._socket.makefile("rb")
        _lines.add(self)
        try:
            self._socket.connect(address)
        except OSError as error:
            raise ProviderError(
                f"nobody answers at {address} ({error}); start a loft there: python -m pigeon_loft {address}"
            ) from error

    def ask(self, request: list[Any]) -> Any:
        try:
            self._socket.sendall(encoded(request))
            error, value = decoded(self._file.readline())
        except (OSError, ValueError) as lost:
            raise ConnectionLost("the loft did not answer: whether it did what was asked is not known") from lost
        if error is not None:
            raise ERRORS.get(error, ProviderError)(*value)
        return value

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    __del__ = close  # with the thread that it belongs to

    def let_go(self) -> None:
        """In a forked child, whose copy would keep a dead parent alive in the eyes of the loft."""
        if not self._file.closed:
            os.close(self._socket.detach())


_lines: weakref.WeakSet[Line] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for line in list(_lines):
        line.let_go()


os.register_at_fork(after_in_child=_after_fork_in_child)


def encoded(value: Any) -> bytes:
    """A line of JSON, in which bytes are {"b": base64} and receipts are their numbers."""
    return json.dumps(value, default=_plain).encode() + b"\n"


def _plain(value: Any) -> Any:
    return value.number if isinstance(value, PigeonReceipt) else {"b": base64.b64encode(value).decode()}


def decoded(line: bytes) -> Any:
    """What `encoded` made it of. Raises ValueError."""
    return json.loads(line, object_hook=lambda found: base64.b64decode(found["b"]) if found.keys() == {"b"} else found)
