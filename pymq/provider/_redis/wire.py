"""One connection to a Redis server, and how to find the server: directly, through Sentinel, or as a node of a cluster.

redis-py opens the connection: sockets, TLS, authentication. What then travels is read and written here, since its own commands
repeat writes that got no reply, wait without an end for a silent server, and cost more than the server's work.
"""

from __future__ import annotations

import inspect
import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any

from pymq.exceptions import ConnectionLost, ProviderError

if TYPE_CHECKING:
    from pymq.provider.redis import RedisConfig

SILENCE = 2.5
"""Seconds without a reply after which a connection counts as lost; nothing else tells of a peer that has stopped."""

AWAY = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN", "NOREPLICAS", "BUSY", "UNBLOCKED")
"""Errors of a server that is not, or not yet, the one to talk to: nothing was executed."""


class Away(ConnectionLost):
    """The server refused before it did anything: another one is responsible, or this one will be."""


class Wire:
    """A connection that is open: a command out, its reply in. For one thread at a time.

    Everything that fails raises ConnectionLost (the connection is of no further use), or ProviderError with what the server said.
    """

    def __init__(self, connection: Any, where: str) -> None:
        self._connection = connection
        self.where = where
        self._socket = connection._sock
        self._is_tls = isinstance(self._socket, ssl.SSLSocket)
        self._patience = 0.0, True
        self._data = b""
        self._start = 0
        self._poll = select.poll()
        self._poll.register(self._socket.fileno(), select.POLLIN)
        self.identity = int(self.call(command(b"CLIENT", b"ID")))

    def call(self, packed: bytes) -> Any:
        """The server's reply to one command."""
        self.write(packed)
        return self.read(SILENCE if len(packed) < 65536 else SILENCE + len(packed) / 1e7)

    def write(self, packed: bytes) -> None:
        try:
            self._wait_at_most(SILENCE if len(packed) < 65536 else SILENCE + len(packed) / 1e6)
            self._socket.sendall(packed)
        except OSError as error:
            raise self._lost(error) from error

    def read(self, seconds: float) -> Any:
        try:
            self._wait_at_most(seconds)
            reply = self._reply()
        except OSError as error:
            raise self._lost(error) from error
        if isinstance(reply, ProviderError):
            raise reply
        return reply

    def _wait_at_most(self, seconds: float) -> None:
        """For each read and each write that follows.

        By the kernel's own timeouts: Python's cost a system call more each time, and eight threads that publish a quarter of their
        rate. But these begin anew after every signal, which is the main thread's to get.
        """
        by_python = self._is_tls or threading.get_ident() == threading.main_thread().ident
        if (seconds, by_python) == self._patience:
            return
        self._patience = seconds, by_python
        self._socket.settimeout(seconds if by_python else None)
        if not self._is_tls:
            kernels = 0.0 if by_python else seconds  # 0 is none
            time = struct.pack("@ll", int(kernels), int(kernels % 1 * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, time)

    def wait(self, seconds: float, other: int) -> bool | None:
        """True when a reply comes, False when `other` (a descriptor) is readable, None after so many seconds."""
        if self._start < len(self._data) or (self._is_tls and self._socket.pending()):
            return True
        self._poll.register(other, select.POLLIN)
        ready = [descriptor for descriptor, _ in self._poll.poll(seconds * 1000)]
        self._poll.unregister(other)
        return other not in ready if ready else None

    def close(self) -> None:
        self._connection.disconnect()

    def _lost(self, error: OSError) -> ConnectionLost:
        if isinstance(error, TimeoutError | BlockingIOError):
            return ConnectionLost(f"the Redis server at {self.where} is silent")
        return ConnectionLost(f"the connection to the Redis server at {self.where} was lost: {error}")

    def _reply(self) -> Any:
        line = self._line()
        kind, rest = line[0], line[1:]
        if kind == 36:  # $
            return self._exactly(int(rest)) if rest != b"-1" else None
        if kind == 58:  # :
            return int(rest)
        if kind == 42:  # *
            return [self._reply() for _ in range(int(rest))] if rest != b"-1" else None
        if kind == 45:  # -
            return self._refusal(rest.decode(errors="replace"))
        return rest

    def _refusal(self, text: str) -> ProviderError:
        error = Away if text.startswith(AWAY) else ProviderError
        return error(f"the Redis server at {self.where} says: {text}")

    def _line(self) -> bytes:
        while (end := self._data.find(b"\r\n", self._start)) < 0:
            self._data = self._data[self._start :] + self._received(65536)
            self._start = 0
        line = self._data[self._start : end]
        self._start = end + 2
        return line

    def _exactly(self, count: int) -> bytes:
        end = self._start + count
        if end + 2 > len(self._data):
            self._gather(count + 2)
            end = count
        found = self._data[self._start : end]
        self._start = end + 2
        return found

    def _gather(self, count: int) -> None:
        """So many bytes at least, from the start of what is held."""
        parts = [self._data[self._start :]]
        missing = count - len(parts[0])
        while missing > 0:
            parts.append(self._received(max(missing, 65536)))
            missing -= len(parts[-1])
        self._data, self._start = b"".join(parts), 0

    def _received(self, count: int) -> bytes:
        received: bytes = self._socket.recv(min(count, 1 << 20))
        if not received:
            raise ConnectionResetError("it closed the connection")
        return received


def command(*arguments: bytes) -> bytes:
    """A command as the server reads it."""
    return b"*%d\r\n" % len(arguments) + bulks(arguments)


def bulks(arguments: Sequence[bytes]) -> bytes:
    """The arguments of a command, packed."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments])


class Waker:
    """A pipe that ends a wait, from any thread; to wake and to clear at the same time is for the caller to prevent."""

    def __init__(self) -> None:
        self._is_set = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        os.set_blocking(self._read, False)

    def fileno(self) -> int:
        return self._read

    def wake(self) -> None:
        self._is_set = True
        try:
            os.write(self._write, b"!")
        except OSError:
            pass  # it is full: who waits is woken already; or closed: nobody waits

    def wait(self, seconds: float) -> bool:
        """Whether it was woken within so many seconds."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def clear(self) -> None:
        if self._is_set:  # a read that finds nothing takes 5 us
            self._is_set = False
            with suppress(BlockingIOError):
                os.read(self._read, 4096)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class Finder:
    """Opens wires to the server that is responsible for a namespace, wherever that is at the moment."""

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._nodes = list(config.nodes)

    def connect(self) -> Wire:
        """A new connection. Raises ConnectionLost where there is nobody, ProviderError where we are refused."""
        find: dict[str, Callable[[], Wire]] = {"sentinel": self._by_sentinel, "cluster": self._by_cluster}
        return find.get(self._config.mode, lambda: self._open({}))()

    def _open(self, changes: dict[str, Any]) -> Wire:
        import redis
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError
        from redis.retry import Retry

        arguments = {**self._config.connection, **changes}
        where = _address(arguments)
        kind: Any = redis.UnixDomainSocketConnection if "path" in arguments else redis.Connection
        if is_tls := bool(arguments.pop("ssl", False)):
            kind = redis.SSLConnection
        arguments.setdefault("socket_connect_timeout", SILENCE)
        if kind is redis.UnixDomainSocketConnection:
            arguments = {name: value for name, value in arguments.items() if name not in ("host", "port", "socket_connect_timeout")}
        try:
            connection = kind(**arguments, **_anonymous(), socket_timeout=SILENCE, retry=Retry(NoBackoff(), 0), protocol=2)
        except (RedisError, TypeError, ValueError) as error:
            raise ProviderError(f"redis-py refuses the arguments of the connection to {where}: {error}") from error
        try:
            connection.connect()
            return Wire(connection, where)
        except BaseException as error:
            connection.disconnect()
            if isinstance(error, RedisError | OSError | ConnectionLost) and not isinstance(error, Away):
                raise _explained(error, where, is_tls) from error
            raise

    def _by_sentinel(self) -> Wire:
        service, failures = self._config.service.encode(), []
        for node in list(self._nodes):
            try:
                with self._asked(node, self._config.sentinel) as sentinel:
                    found = sentinel.call(command(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service))
                if found:
                    self._nodes.sort(key=lambda each: each != node)  # the one that answered is asked first
                    return self._checked_master(self._open({"host": found[0].decode(), "port": int(found[1])}))
                failures.append(f"{node[0]}:{node[1]} knows no master {self._config.service!r}")
            except ConnectionLost as error:
                failures.append(str(error))
        raise ConnectionLost(f"no Sentinel leads to the master {self._config.service!r}: {'; '.join(failures)}")

    @staticmethod
    def _checked_master(wire: Wire) -> Wire:
        """A master that was just replaced may answer still, as a replica."""
        if wire.call(command(b"ROLE"))[0] != b"master":
            wire.close()
            raise Away("the server that Sentinel names is not a master yet")
        return wire

    def _by_cluster(self) -> Wire:
        slot = _slot(self._config.prefix)
        failures = []
        for node in list(self._nodes):
            try:
                with self._asked(node, {}) as member:
                    found = self._owner(member.call(command(b"CLUSTER", b"SLOTS")), slot, node)
                if found is not None:
                    return self._open({"host": found[0], "port": found[1]})
                failures.append(f"{node[0]}:{node[1]} knows no node for slot {slot}")
            except ConnectionLost as error:
                failures.append(str(error))
        raise ConnectionLost(f"no node of the cluster leads to the one for slot {slot}: {'; '.join(failures)}")

    def _owner(self, ranges: Sequence[Any], slot: int, asked: tuple[str, int]) -> tuple[str, int] | None:
        """Who serves the slot; all nodes that are named are asked next time."""
        owner = None
        for first, last, *nodes in ranges:
            known = [((host or b"").decode() or asked[0], port) for host, port, *_ in nodes]
            self._nodes += [node for node in known if node not in self._nodes]
            if first <= slot <= last:
                owner = known[0]
        return owner

    @contextmanager
    def _asked(self, node: tuple[str, int], login: Mapping[str, Any]) -> Iterator[Wire]:
        changes = {"host": node[0], "port": node[1], "db": 0}
        if self._config.mode == "sentinel":  # it has users of its own
            changes |= {"username": None, "password": None, **login}
        wire = self._open(changes)
        try:
            yield wire
        finally:
            wire.close()


def _explained(error: Exception, where: str, is_tls: bool) -> ProviderError:
    """Why there is no connection: ConnectionLost where it is worth to try again."""
    from redis.exceptions import AuthenticationError, AuthorizationError, ResponseError

    if isinstance(error, AuthenticationError | AuthorizationError):
        return ProviderError(f"the Redis server at {where} refuses the user name or password: {error}")
    if isinstance(error, ResponseError):
        refusal = Away if str(error).startswith(AWAY) else ProviderError
        return refusal(f"the Redis server at {where} refuses the connection: {error}")
    if _is_distrust(error):
        return ProviderError(f"the Redis server at {where} is not trusted: {error}; ssl_ca_certs= names the file of who certifies it")
    doubt = "is it started, the address right, and TLS spoken there?" if is_tls else "is it started, and the address right?"
    return ConnectionLost(f"no Redis server answers at {where}: {str(error).rstrip('.')}; {doubt}")


def _is_distrust(error: BaseException | None) -> bool:
    """Whether a certificate was refused, which redis-py wraps in an error of its own."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


@lru_cache
def _anonymous() -> dict[str, None]:
    """Arguments that keep redis-py from telling the server its version, which takes it 4 ms to find out."""
    from redis.connection import AbstractConnection

    known = inspect.signature(AbstractConnection.__init__).parameters
    names = ("driver_info",) if "driver_info" in known else ("lib_name", "lib_version")
    return {name: None for name in names if name in known}


def _address(arguments: dict[str, Any]) -> str:
    return str(arguments["path"] if "path" in arguments else f"{arguments.get('host', 'localhost')}:{arguments.get('port', 6379)}")


def _slot(key: str) -> int:
    from redis.crc import key_slot  # type: ignore[import-untyped,unused-ignore]

    return int(key_slot(key.encode()))


def left(deadline: float) -> float:
    """Seconds until then, never less than none."""
    return max(0.0, deadline - monotonic())
