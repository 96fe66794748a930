"""Operations as the script reads them: a name, how many arguments, the arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pymq.provider._redis.wire import bulks


class Operation(NamedTuple):
    """One operation: its name, how many arguments of the command it takes, and these, packed."""

    name: bytes
    words: int
    data: bytes


def packed(name: bytes, *arguments: bytes) -> Operation:
    """An operation with its arguments."""
    return Operation(name, len(arguments) + 2, bulks((name, b"%d" % len(arguments), *arguments)))


def to_bind(verb: bytes, queue: str, pattern: str, exact: bool) -> Operation:
    """Bind, or unbind: the verb says which."""
    return packed(verb, encoded(queue), b"1" if exact else b"0", encoded(pattern))


def publication(generation: bytes, how: bytes, topics: Sequence[bytes], names: Sequence[bytes]) -> Operation:
    """A publish that lacks its message: to who is bound to the topics, and to those named."""
    arguments = generation, how, b"%d" % len(topics), b"%d" % len(names), *topics, *names
    return Operation(b"publish", len(arguments) + 3, bulks((b"publish", b"%d" % (len(arguments) + 1), *arguments)))


def with_message(operation: Operation, message: bytes) -> Operation:
    """The operation, with the one argument that it still lacks."""
    return Operation(operation.name, operation.words, b"%b$%d\r\n%b\r\n" % (operation.data, len(message), message))


def encoded(name: str) -> bytes:
    """A name, as the server has it."""
    return name.encode("utf-8", "surrogatepass")


def decoded(name: bytes) -> str:
    """A name that the server told."""
    return name.decode("utf-8", "surrogatepass")


def list_of(items: Sequence[bytes]) -> tuple[bytes, ...]:
    """Arguments that the script reads as one list."""
    return b"%d" % len(items), *items


def list_of_names(names: Sequence[str]) -> tuple[bytes, ...]:
    """The same of names."""
    return list_of([encoded(name) for name in names])


def milliseconds(seconds: float | None) -> bytes:
    """Whole ones, never fewer; what is not limited is -1."""
    return b"-1" if seconds is None else b"%d" % math.ceil(min(seconds, 1e12) * 1000)
