"""Waiting on a Redis server: each thread that does has a connection of its own, on which it blocks until a token wakes it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pymq.exceptions import ConnectionLost, ProviderError
from pymq.provider._redis.operations import Operation, encoded, packed
from pymq.provider._redis.pipe import Pipe, Unsure, checked
from pymq.provider._redis.wire import SILENCE, Finder, Waker, Wire, command, left
from pymq.provider._refusals import gone

BLOCK = 1.0
"""Seconds after which one who waits looks by himself: a wake-up can be lost with the process that took it."""
UNBLOCK = 0.5
"""Seconds that a server has to end a wait; then the connection is given up."""
MOST_IDLE = 16
"""Connections that are kept for the next who waits."""

EMPTY = [[b"empty"]]


class Woken(Exception):
    """`wake` was called, or the provider was closed."""


class Receiver:
    """One connection on which one thread waits. It connects when it is used, and again when the connection was lost."""

    def __init__(self, pipe: Pipe, command: Callable[[bytes], object]) -> None:
        self._pipe = pipe
        self._command = command
        self._wire: Wire | None = None
        self._era = 0
        self.waker = Waker()
        self.losses = 0
        """How often what the server has handed out may not have come."""

    def run(self, operation: Operation) -> Any:
        """The result of an operation that may be executed twice. Raises ConnectionLost."""
        was_connected = self._wire is not None
        try:
            (result,) = self._guarded(lambda wire: self._pipe.run(wire, [operation]))
        except ConnectionLost:
            if not was_connected:
                raise
            return self.run(operation)  # the connection had been lost while nobody used it
        return checked(result)

    def _guarded(self, use: Callable[[Wire], Any]) -> Any:
        try:
            if self._era != self._pipe.era:
                self.disconnect()  # nothing is on its way
            if self._wire is None:
                self._era = self._pipe.era
                self._wire = self._pipe.connect()
            return use(self._wire)
        except BaseException as error:
            self.losses += not isinstance(error, Woken)
            self.disconnect()
            raise

    def run_and_block(self, operation: Operation | None, keys: Sequence[bytes], seconds: float) -> Any:
        """As `run`, where there is something to run, and then `block`, in one write: the answer, or, where that is that it is empty,
        the token with a message.

        None where nothing came of it, for whatever reason: to be looked for again, by one after the other. The operation leaves a
        token where it is not empty. Raises Woken.
        """
        try:
            self.require_connection()
            return self._guarded(lambda wire: self._run_and_blocked(wire, operation, keys, seconds))
        except ProviderError:
            return None

    def _run_and_blocked(self, wire: Wire, operation: Operation | None, keys: Sequence[bytes], seconds: float) -> Any:
        wire.write((self._pipe.evaluation([operation]) if operation else b"") + _blocking(keys, seconds))
        reply = wire.read(SILENCE) if operation else EMPTY
        answer = checked(reply[0]) if isinstance(reply, list) else [reply]
        if answer[0] == b"empty":
            taken = self._awaited(wire, seconds)
            return taken if taken and taken[1] else None
        if answer[0] not in (b"ok", b"lost"):
            raise ConnectionLost("it waits for what will not come")
        wire.read(SILENCE)
        return answer if answer[0] == b"ok" else None

    def block(self, keys: Sequence[bytes], seconds: float) -> tuple[bytes, bytes] | None:
        """The first token of one of the lists, with the list it was in; None where none came. Raises Woken and ConnectionLost."""
        found: tuple[bytes, bytes] | None = self._guarded(lambda wire: self._blocked(wire, keys, seconds))
        return found

    def _blocked(self, wire: Wire, keys: Sequence[bytes], seconds: float) -> Any:
        wire.write(_blocking(keys, seconds))
        return self._awaited(wire, seconds)

    def _awaited(self, wire: Wire, seconds: float) -> Any:
        replied = wire.wait(seconds + SILENCE, self.waker.fileno())
        if replied is None:
            raise ConnectionLost("the Redis server is silent")
        if not replied:
            self._unblock(wire)
            raise Woken
        return wire.read(SILENCE)

    def _unblock(self, wire: Wire) -> None:
        """End the wait at the server, so that no token goes to one who waits no more. Where that fails the connection is given up."""
        try:
            self.require_connection()
            self._command(command(b"CLIENT", b"UNBLOCK", b"%d" % wire.identity))
            taken = wire.read(UNBLOCK)
            if taken is not None:
                self._pipe.run(wire, [packed(b"again", *self._pipe.kind_and_name(taken[0]), taken[1])])
        except ProviderError:
            self.losses += 1
            self.disconnect()

    def require_connection(self) -> None:
        """Raises ConnectionLost where it is known to be lost: connecting to a silent server takes seconds, which nothing can end."""
        if self._pipe.health().state != "connected":
            raise ConnectionLost("the Redis server cannot be reached")

    def pause(self, seconds: float) -> None:
        """Raises Woken."""
        if self.waker.wait(seconds):
            raise Woken

    def disconnect(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def close(self) -> None:
        self.disconnect()
        self.waker.close()


class Receivers:
    """The receivers of one provider: lent to whoever waits, woken all at once."""

    def __init__(self, finder: Finder, pipe: Pipe) -> None:
        self._finder = finder
        self._pipe = pipe
        self._lock = threading.RLock()
        self._helping = threading.Lock()
        self._helper: Wire | None = None
        self._era = 0
        self._idle: list[Receiver] = []
        self._lent: set[Receiver] = set()
        self.closed = False

    @contextlib.contextmanager
    def lend(self) -> Iterator[Receiver]:
        with self._lock:
            if self.closed:
                raise Woken
            receiver = self._idle.pop() if self._idle else Receiver(self._pipe, self._command)
            receiver.waker.clear()
            self._lent.add(receiver)
        try:
            yield receiver
        finally:
            self._take_back(receiver)

    def _take_back(self, receiver: Receiver) -> None:
        with self._lock:
            self._lent.discard(receiver)
            if not self.closed and len(self._idle) < MOST_IDLE:
                return self._idle.append(receiver)
        receiver.close()
        return None

    def _command(self, packed: bytes) -> object:
        """A command over a connection that is there for this alone."""
        with self._helping:
            if self._era != self._pipe.era:  # at a replaced server the number is somebody else's
                self._disconnect_helper()
            try:
                self._era = self._pipe.era
                self._helper = self._helper or self._finder.connect()
                return self._helper.call(packed)
            except ProviderError:
                self._disconnect_helper()
                raise

    def _disconnect_helper(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.close()

    def wake(self) -> None:
        """Whoever waits raises Woken."""
        with self._lock:
            for receiver in self._lent:
                receiver.waker.wake()

    def close(self) -> None:
        with self._lock:
            self.closed = True
            self.wake()
            idle, self._idle = self._idle, []
        for receiver in idle:
            receiver.close()
        with self._helping:
            self._disconnect_helper()


def _blocking(keys: Sequence[bytes], seconds: float) -> bytes:
    return command(b"BLPOP", *keys, b"%.3f" % max(seconds, 0.001))


def pass_on(run: Callable[[Operation], Any], queue: str) -> None:
    """Wake the others who wait for a queue that is no more."""
    name = encoded(queue)
    for verb in (b"tell", b"hush"):
        run(packed(verb, name))


def pull(
    receiver: Receiver, ask: Callable[[bool], Any], tokens: Sequence[bytes], deadline: float, queue: str, *, twice: bool = True
) -> Any:
    """What `ask` answers once it is not empty, or the token that came with a message; None after the deadline, or where a process
    that is watched is lost.

    `ask` is told whether it will be waited for more. Raises Woken, QueueNotFound. While the server cannot be reached this waits,
    unless `ask` may have been executed and must not be `twice`: then that is a ConnectionLost.
    """
    taken = None
    while True:
        try:
            receiver.require_connection()
            answer = ask(left(deadline) > 0)
            if answer[0] == b"ok":
                return answer
            if answer[0] == b"gone" and taken is not None:
                pass_on(receiver.run, queue)
            if not (seconds := seconds_to_block(answer, deadline, queue)):
                return None
            taken = receiver.block(tokens, seconds)
            if taken is not None and taken[1]:
                return taken
        except ConnectionLost as error:
            if not left(deadline) or (isinstance(error, Unsure) and not twice):
                raise
            receiver.pause(min(0.05, left(deadline)))


def seconds_to_block(answer: Any, deadline: float, queue: str) -> float:
    """How long to wait after an answer without a message; 0 where nothing is waited for. Raises QueueNotFound."""
    if answer[0] == b"gone":
        raise gone(queue)
    return min(left(deadline), int(answer[1]) / 1000 + 0.001, BLOCK) if answer[0] == b"empty" else 0.0
