"""The connection over which a provider's threads do everything that does not wait: operations of many threads, one round trip.

Whoever comes first sends its own operation at once, and with the next round trip those of all who came meanwhile (`_Task`).
So nobody waits for company, and under load a round trip carries many operations. A batch has a number, under which the script
remembers its result: where the reply is lost with the connection, the batch is sent again and is executed once.
"""

from __future__ import annotations

import itertools
import logging
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from pymq.exceptions import ConnectionLost, ProviderError
from pymq.provider._redis.operations import Operation, packed
from pymq.provider._redis.script import REPLY, Script, script, script_for
from pymq.provider._redis.wire import Away, Finder, Wire, bulks, command, left
from pymq.provider.base import Health

log = logging.getLogger("pymq")

CONFIRM = 1.0
"""Seconds for which an operation waits for a connection that was lost, before it raises ConnectionLost."""
LEASE = 4.0
"""Seconds for which a registration lasts; with `BLOCK` it makes the five after which everybody knows of a death."""
BEAT = 1.0
"""Seconds between its extensions."""
THOROUGH = 60
"""Every so many beats the keys of inboxes are kept from expiring, too; they last ten minutes."""
MOST_OPERATIONS = 100
MOST_SPARES = 16
"""Connections that are kept for the next replies; as many as are sent at once may be open."""
MOST_NESTED = 3
"""Signal handlers that publish while another one does."""
MOST_BYTES = 4 << 20
"""What is sent in one batch, but for a single larger operation."""

UNREGISTERED = b"unregistered"


class Unsure(ConnectionLost):
    """The operation was sent, and no reply came: it may have been executed."""


class _Task:
    """An operation that a thread wants done, and how it learns the outcome."""

    __slots__ = ("_lock", "done", "error", "operation", "result")

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self) -> None:
        """Until it is done, or there is nobody to do it."""
        self._lock.acquire()

    def wake(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it was woken already


class Pipe:
    """Executes operations. Every method may be called from any thread, and `call` in a signal handler, too.

    `declarations` gives what the server must know of this member, as operations: sent when it has forgotten it.
    """

    def __init__(self, finder: Finder, prefix: str, declarations: Callable[[bool], list[Operation]]) -> None:
        self.token = secrets.token_hex(8).encode()
        self._finder = finder
        self._declarations = declarations
        self._prefix = prefix.encode()
        self._head = bulks((b"1", self._prefix, self.token))
        self._waiting: deque[_Task] = deque()
        self._batch: deque[_Task] = deque()
        self._lead = threading.RLock()
        self._leading = False
        self._numbers = itertools.count(1)
        self._wire: Wire | None = None
        self._spares: list[Wire] = []
        self._is_replaced = False
        self.era = 0
        """How often the connection was opened again: others that are older may lead to a server that has been replaced."""
        self._apart_depth = 0
        self._epoch = b""
        self._offset: float | None = None
        self._health = Health("connected", time.time(), 0)
        self._closed = threading.Event()
        self._beats = threading.Thread(target=self._keep_alive, name="pymq-redis", daemon=True)

    # ------------------------------------------------------------------ life

    def open(self) -> None:
        """Connect and register. Raises ProviderError."""
        for name in (b"publish", b"send", b"request", b"take", b"fetch", b"ack"):
            script(name)  # made before it is needed: not within the first call, or in a signal handler
        wire = self._wire = self._finder.connect()
        self._register(wire)
        self.beat(True)
        self._beats.start()

    def close(self) -> None:
        """Deregister, where the server can be reached, and disconnect."""
        self._closed.set()
        if self._beats.is_alive() and self._beats is not threading.current_thread():
            self._beats.join(2 * CONFIRM)
        with self._lead:
            wire, self._wire = self._wire, None
            if wire is not None and not self._leading:
                try:
                    self._evaluate(wire, [packed(b"leave")])
                except ProviderError:
                    pass  # the registration ends by itself
                wire.close()
        self._promote()  # who came meanwhile is told that it is closed
        self._drop_spares()

    def kind_and_name(self, key: bytes) -> tuple[bytes, bytes]:
        """The two parts of a key that tokens are in: "w:" or "f:", and a queue's name."""
        key = key[len(self._prefix) :]
        return key[:2], key[2:]

    def clock(self) -> float:
        """The server's time in seconds."""
        return monotonic() + (self._offset or 0.0)

    def health(self) -> Health:
        return self._health

    def _keep_alive(self) -> None:
        for number in itertools.count(1):
            if self._closed.wait(BEAT if self._wire else random.uniform(0.05, 0.2)):
                return
            try:
                # a message of many megabytes may be on its way for longer than a registration lasts
                self.beat(number % THOROUGH == 0, is_urgent=self._leading)
            except ProviderError as error:
                log.debug("no sign of life reached the Redis server: %s", error)

    def beat(self, thoroughly: bool, is_urgent: bool = False) -> None:
        """Stay registered, and read the server's clock: to within half the round trip that brought the reading.

        On return all that was sent before is executed, a new registration too, unless it is urgent: then it overtakes that.
        """
        operation = packed(b"beat", b"%d" % (LEASE * 1000), b"1" if thoroughly else b"0")
        before = monotonic()
        seconds, micros = (is_urgent and self._past(operation)) or self.call(operation)
        after = monotonic()
        read = int(seconds) + int(micros) / 1e6
        lowest, highest = read - after, read - before
        self._offset = (lowest + highest) / 2 if self._offset is None else min(max(self._offset, lowest), highest)

    # ------------------------------------------------------------------ operations

    def call(self, operation: Operation) -> Any:
        """The result of an operation. Raises Unsure where it may have been executed, ConnectionLost where it surely was not."""
        task = _Task(operation)
        self._waiting.append(task)
        while not task.done:
            leads = True
            try:
                leads = self._lead.acquire(blocking=False)  # a handler may raise right behind it: then it is held, and `leads` is True
                if leads and self._leading:  # a signal handler has interrupted this very thread in the middle of a batch
                    return self._apart(task)
                if leads:
                    self._serve(task)
            finally:
                if leads:
                    try:
                        self._lead.release()
                    except RuntimeError:
                        pass  # it was somebody else's
                    self._promote()
            if not leads:
                task.wait()
        if task.error is not None:
            raise task.error
        return task.result

    def _promote(self) -> None:
        """Somebody who came while this thread led may wait for a leader."""
        try:
            self._waiting[0].wake()
        except IndexError:
            pass

    def _serve(self, own: _Task) -> None:
        self._leading = True
        try:
            while not own.done:
                self._execute()
        finally:
            self._leading = False

    def _execute(self) -> None:
        """The next batch. A signal handler may raise anywhere: a task is at every moment among those that wait or in the batch."""
        results: Iterable[Any] = itertools.repeat(Unsure("the operation was interrupted"))
        self._settle(results)  # what an interrupted leader has left
        try:
            self._fill_batch()
            results = self._confirmed([task.operation for task in self._batch])
        except BaseException as error:
            if isinstance(error, ConnectionLost) or not isinstance(error, ProviderError):
                self._drop()  # a reply may still be on its way
            results = itertools.repeat(error if isinstance(error, ProviderError) else _interrupted(error))
            if not isinstance(error, Exception):
                raise
        finally:
            self._settle(results)

    def _fill_batch(self) -> None:
        size = 0  # nobody is waited for: with eight threads half of them prepare while the other half's batch is on its way
        while self._waiting and len(self._batch) < MOST_OPERATIONS and size < MOST_BYTES:
            task = self._waiting[0]
            if not task.done:  # it was in the batch of a leader who was interrupted just here
                self._batch.append(task)
                size += len(task.operation.data)
            self._waiting.popleft()

    def _settle(self, results: Iterable[Any]) -> None:
        for task, result in zip(list(self._batch), results):
            if not task.done:
                task.error, task.result = _refused(result), result
                task.done = True
            task.wake()
            self._batch.popleft()

    def _apart(self, task: _Task) -> Any:
        """Over another connection. Handlers that interrupt handlers, faster than they end, would go on for ever: they are refused."""
        self._waiting.remove(task)
        if self._apart_depth >= MOST_NESTED:
            raise ProviderError("not executed: a signal handler has interrupted others like it, which are not finished")
        self._apart_depth += 1
        try:
            (result,) = self._over_another(lambda wire: self.run(wire, [task.operation]))
        finally:
            self._apart_depth -= 1
        return checked(result)

    def _past(self, operation: Operation) -> Any:
        """The result without waiting for the batch that is on its way; None where this member is not registered."""
        reply = self._over_another(lambda wire: self._evaluate(wire, [operation]))
        return None if reply == UNREGISTERED else checked(reply[0])

    def push_reply(self, inbox: bytes, message: bytes) -> bool:
        """Append to the replies of one who waits for them, or will; False where there is no connection, or no such inbox."""
        if self._wire is None or self._closed.is_set():
            return False
        data = command(b"EVALSHA", REPLY.sha, b"1", self._prefix, inbox, message)
        return bool(self._over_another(lambda wire: _run(wire, REPLY, data)))

    def _over_another(self, use: Callable[[Wire], Any]) -> Any:
        era = self.era
        try:
            wire = self._spares.pop()
        except IndexError:
            wire = self._connect_beside()
        try:
            result = use(wire)
        except BaseException:
            wire.close()
            raise
        self._spares.append(wire)
        if self._closed.is_set() or self.era != era:  # while this was on its way
            self._drop_spares()
        elif len(self._spares) > MOST_SPARES:
            with suppress(IndexError):
                self._spares.pop().close()
        return result

    def connect(self) -> Wire:
        """A connection for one who waits; where it leads to another server than this one's own, that follows with the next batch."""
        own, wire = self._wire, self._finder.connect()
        self._is_replaced = self._is_replaced or (own is not None and own is self._wire and wire.where != own.where)
        return wire

    def _connect_beside(self) -> Wire:
        """Where this one's own connection leads: in the middle of a fail-over another server is named already, with others' copies."""
        own, wire = self._wire, self._finder.connect()
        if own is not None and wire.where != own.where:
            wire.close()
            raise ConnectionLost(f"not executed: the Redis server at {wire.where} replaces the one at {own.where}")
        return wire

    def _drop_spares(self) -> None:
        spares, self._spares = self._spares, []
        for spare in spares:
            spare.close()

    # ------------------------------------------------------------------ batches

    def _confirmed(self, operations: list[Operation]) -> list[Any]:
        """The batch's results, over as many connections as it takes within `CONFIRM` seconds."""
        number = b"%d" % next(self._numbers)
        deadline = monotonic() + CONFIRM
        sent = False
        while True:
            if self._is_replaced:
                self._drop()
            try:
                wire = self._wire or self._reconnect(deadline)
            except ConnectionLost as error:
                raise self._given_up(error, sent) from error
            try:
                reply = self._evaluate(wire, operations, b"?" + number if sent else number)
                if reply != UNREGISTERED:
                    return list(reply)
                if sent:
                    raise Unsure("the server has forgotten this member, and with it whether the operation was executed")
                self._register(wire)
            except Unsure:
                raise
            except ConnectionLost as error:
                self._lost(error)
                sent = sent or not isinstance(error, Away)
                if monotonic() >= deadline or self._closed.is_set():
                    raise self._given_up(error, sent) from error

    @staticmethod
    def _given_up(error: ConnectionLost, sent: bool) -> ConnectionLost:
        return Unsure(f"not confirmed, it may have been executed or not: {error}") if sent else ConnectionLost(f"not executed: {error}")

    def run(self, wire: Wire, operations: list[Operation]) -> list[Any]:
        """The results of a batch that is not remembered, over another connection. Raises ConnectionLost where that leads elsewhere."""
        reply = self._evaluate(wire, operations)
        if reply == UNREGISTERED:
            self.beat(True)
            reply = self._evaluate(wire, operations)
        if reply == UNREGISTERED:
            raise ConnectionLost("another Redis server than the one to which this process belongs was asked")
        return list(reply)

    def _evaluate(self, wire: Wire, operations: Sequence[Operation], number: bytes = b"") -> Any:
        return _run(wire, script_for(operations), self.evaluation(operations, number))

    def evaluation(self, operations: Sequence[Operation], number: bytes = b"") -> bytes:
        """The command that executes them."""
        words, sha = 6, script_for(operations).sha
        for operation in operations:
            words += operation.words
        head = b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n%b$%d\r\n%b\r\n" % (words, sha, self._head, len(number), number)
        return b"".join([head, *[operation.data for operation in operations]])

    def _register(self, wire: Wire) -> None:
        """Make the server know this member, its inboxes and their bindings; all that is shared as well where it has lost all."""
        epoch = secrets.token_hex(8).encode()
        found = self._evaluate(wire, [packed(b"register", epoch, b"%d" % (LEASE * 1000))])[0]
        found = found[0] if isinstance(found, list) else found
        declarations = self._declarations(bool(self._epoch) and found != self._epoch)
        if self._epoch:
            self._health = Health(self._health.state, self._health.since, self._health.gaps + 1)
            log.warning("the Redis server had forgotten this process, which is registered again; events may have been missed")
        self._epoch = found
        if declarations:
            self._evaluate(wire, declarations)

    # ------------------------------------------------------------------ the connection

    def _reconnect(self, deadline: float) -> Wire:
        pause = 0.02
        while True:
            if self._closed.is_set():
                raise ConnectionLost("the provider was closed")
            try:
                self._is_replaced = False
                self._wire = self._finder.connect()
                break
            except ConnectionLost as error:
                self._lost(error)
                if left(deadline) < pause or self._closed.wait(random.uniform(0.5, 1.0) * pause):
                    raise
                pause = min(2 * pause, 0.5)
        self.era += 1
        self._drop_spares()
        self._health = Health("connected", time.time(), self._health.gaps)
        log.warning("connected to the Redis server again")
        return self._wire

    def _lost(self, error: Exception) -> None:
        self._drop()
        if self._health.state == "connected" and not self._closed.is_set():
            self._health = Health("reconnecting", time.time(), self._health.gaps)
            log.warning("%s; reconnecting", error)

    def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()


def _run(wire: Wire, script: Script, data: bytes) -> Any:
    """What a script returns, which the server may not have yet."""
    try:
        return wire.call(data)
    except ProviderError as error:
        if "NOSCRIPT" not in str(error):
            raise
    wire.call(command(b"SCRIPT", b"LOAD", script.text))
    return wire.call(data)


def checked(result: Any) -> Any:
    """The result of an operation. Raises the error that stands in its place."""
    error = _refused(result)
    if error is not None:
        raise error
    return result


def _interrupted(error: BaseException) -> ConnectionLost:
    lost = Unsure("the operation was interrupted")
    lost.__cause__ = error
    return lost


def _refused(result: Any) -> Exception | None:
    """The error that stands in the place of a result."""
    if isinstance(result, ProviderError):
        return result
    if isinstance(result, list) and result and result[0] == b"forgotten":
        return Unsure("it was executed, and what came of it was lost with the connection")
    if isinstance(result, list) and result and result[0] == b"error":
        return ProviderError(f"the Redis server refused: {result[1].decode(errors='replace')}")
    return None
