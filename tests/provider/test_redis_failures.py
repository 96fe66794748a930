"""What happens when the server, or the way to it, fails: real servers that are killed, stopped, filled and replaced."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import GUARD, Heard, eventually, in_thread
from redis_server import RedisServer

import pymq
from pymq.provider._redis.pipe import LEASE
from pymq.provider.redis import RedisConfig

DOCS = Path(__file__).parents[2] / "docs" / "providers" / "redis.md"
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def start() -> Iterator[object]:
    """`start(*options)` is a server of the test's own."""
    servers: list[RedisServer] = []

    def one(*options: str) -> RedisServer:
        servers.append(RedisServer(*options))
        return servers[-1].start()

    yield one
    for server in servers:
        server.end()


@pytest.fixture
def heard() -> Heard:
    return Heard()


def confirmed(call, *args):
    """Whether a call came through, or said that it cannot be confirmed."""
    try:
        call(*args)
    except pymq.ConnectionLost:
        return False
    return True


def arrives(bus: pymq.EventBus, heard: Heard, event: int, seconds: float) -> float:
    """Seconds until an event comes through again."""
    began = time.monotonic()
    eventually(lambda: confirmed(bus.publish, event, "c") and heard.waiting(), seconds)
    heard.rest()
    return time.monotonic() - began


@pytest.mark.parametrize("seconds", [1, 5, 15])
def test_a_restarted_server_is_found_again(start, heard, seconds, caplog):
    server = start()
    config = RedisConfig.from_url(server.url)
    with pymq.EventBus(config) as receiver, pymq.EventBus(config) as publisher:
        receiver.subscribe(heard, "c")
        receiver.subscribe(heard, "for a group", group="g")
        receiver.expose(lambda: "pong", "ping")
        assert publisher.publish(0, "c") == 1
        assert heard.next() == 0
        server.kill()
        with pytest.raises(pymq.ConnectionLost, match=str(server.port)):
            publisher.publish(1, "c")
        eventually(lambda: publisher.health().state == "reconnecting")
        assert time.time() - publisher.health().since < GUARD
        time.sleep(seconds)
        server.start()
        arrives(publisher, heard, 2, 10)
        assert publisher.stub("ping", timeout=5)() == "pong"
        assert publisher.publish(3, "for a group") == 1, "the group was made anew"
        eventually(lambda: heard.next() == 3)  # behind those that `arrives` has published before it heard one
        assert publisher.health().state == "connected"
        assert receiver.health().gaps >= 1, "it had no memory of what it was sent"
    assert [record for record in caplog.records if record.levelno > logging.WARNING] == []


def test_groups_and_queues_lose_nothing_over_a_restart(start, heard):
    server = start(*DURABLE)
    config = RedisConfig.from_url(server.url)
    with pymq.EventBus(config) as bus:
        jobs, group = bus.queue("jobs"), bus.group("billing")
        group.bind("c")
        for number in range(20):
            jobs.put(number)
            bus.publish(number, "c")
        taken = [jobs.receive() for _ in range(3)]
        server.kill()
        server.start()
        eventually(lambda: confirmed(jobs.qsize))
        taken[0].ack()
        assert jobs.qsize() == 17
        assert [jobs.get(timeout=5) for _ in range(17)] == list(range(3, 20))
        bus.subscribe(heard, "c", group="billing")
        assert heard.take(20) == list(range(20))
    with pymq.EventBus(config) as bus:
        again = [bus.queue("jobs").receive(timeout=10) for _ in range(2)]
        assert [(item.value, item.attempt) for item in again] == [(1, 2), (2, 2)]
        for item in again:
            item.ack()


def test_puts_and_gets_while_the_server_is_killed_lose_nothing_that_was_confirmed(start):
    server = start(*DURABLE)
    config = RedisConfig.from_url(server.url)
    put: list[int] = []
    unsure: list[int] = []
    done = threading.Event()

    def produce() -> None:
        with pymq.EventBus(config) as bus:
            jobs, number = bus.queue("jobs"), 0
            while not done.is_set():
                number += 1
                (put if confirmed(jobs.put, number) else unsure).append(number)

    producing = in_thread(produce)
    for _ in range(3):
        count = len(put)
        eventually(lambda count=count: len(put) > count + 50)
        server.kill()
        server.start()
    done.set()
    producing.result(GUARD)
    with pymq.EventBus(config) as bus:
        jobs = bus.queue("jobs")
        found = [jobs.get(timeout=5) for _ in range(jobs.qsize())]
    assert sorted(set(found)) == sorted(found), "nothing came twice"
    assert found == sorted(found)
    assert set(put) <= set(found) <= {*put, *unsure}


def test_a_killed_connection_loses_and_repeats_nothing(start, heard):
    server = start()
    config = RedisConfig.from_url(server.url)
    with pymq.EventBus(config) as receiver, pymq.EventBus(config) as publisher, server.client() as client:
        receiver.subscribe(heard, "c")
        jobs = publisher.queue("jobs")
        for number in range(300):
            if number % 30 == 0:
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert publisher.publish(number, "c") == 1
            jobs.put(number)
        assert heard.take(300) == list(range(300))
        assert [jobs.get(timeout=5) for _ in range(300)] == list(range(300))
        assert jobs.empty()
        assert (receiver.health().gaps, publisher.health().gaps) == (0, 0)


def test_a_silent_server_is_noticed_and_used_again(start, heard):
    server = start()
    config = RedisConfig.from_url(server.url)
    with pymq.EventBus(config) as receiver, pymq.EventBus(config) as publisher:
        receiver.subscribe(heard, "c")
        publisher.publish(0, "c")
        assert heard.next() == 0
        server.pause()
        stopped = time.monotonic()
        eventually(lambda: publisher.health().state == receiver.health().state == "reconnecting", 20)
        noticed = time.monotonic() - stopped
        with pytest.raises(pymq.ConnectionLost):
            publisher.publish(1, "c")
        server.resume()
        arrives(publisher, heard, 2, 10)
    assert noticed < 20, "5 s on an idle machine"


def test_shutting_down_without_a_server_takes_no_longer(start, heard):
    server = start()
    bus = pymq.EventBus(RedisConfig.from_url(server.url))
    bus.start()
    bus.subscribe(heard, "c")
    bus.subscribe(heard, "c", group="g")
    server.kill()
    began = time.monotonic()
    bus.shutdown()
    assert time.monotonic() - began < 20, "2 s on an idle machine"


def test_a_stopped_process_is_forgotten_and_comes_back(start, heard):
    """Its registration is gone, as after a SIGSTOP: it registers again, and says that it may have missed something."""
    server = start()
    config = RedisConfig.from_url(server.url)
    with pymq.EventBus(config) as receiver, pymq.EventBus(config) as publisher, server.client() as client:
        receiver.subscribe(heard, "c")
        receiver.subscribe(heard, "d*", pattern=True)
        client.zadd(f"{config.prefix}members", {receiver.provider._pipe.token: 1})
        eventually(lambda: publisher.publish(1, "c") == 1 and receiver.health().gaps == 1)
        assert publisher.publish(2, "dd") == 1
        eventually(lambda: 2 in heard.rest())


def _fill(jobs: pymq.Queue) -> None:
    while True:
        jobs.put(b"x" * 1_000_000)


def test_a_full_server_refuses_and_says_so(start, heard):
    server = start("--maxmemory", "30mb", "--maxmemory-policy", "noeviction")
    with pymq.EventBus(RedisConfig.from_url(server.url)) as bus:
        jobs = bus.queue("jobs")
        with pytest.raises(pymq.ProviderError, match="OOM") as caught:
            _fill(jobs)
        assert not isinstance(caught.value, pymq.ConnectionLost)
        count = jobs.qsize()
        assert count > 5
        bus.subscribe(heard, "c")
        with jobs.take() as job:
            assert len(job.value) == 1_000_000
        for _ in range(count - 1):
            jobs.get(timeout=5)
        jobs.put("room again")
        assert jobs.get(timeout=5) == "room again"


def test_a_full_server_lets_go_on_what_needs_no_room(start, heard):
    """Also where it stays full, since others connect: a script's first write may not need memory then."""
    server = start("--maxmemory-policy", "noeviction")
    config = RedisConfig.from_url(server.url)
    with pymq.EventBus(config) as bus, pymq.EventBus(config) as other, server.client() as client:
        jobs = bus.queue("jobs")
        for number in range(20):
            jobs.put(number)
        other.subscribe(heard, "c")
        leased = jobs.receive(timeout=5)
        client.config_set("maxmemory", 1)
        with pytest.raises(pymq.ProviderError, match="OOM"):
            jobs.put(20)
        time.sleep(6)  # longer than a registration lasts
        assert jobs.qsize() == 19
        assert [jobs.get(timeout=5) for _ in range(19)] == list(range(1, 20))
        leased.extend(30)
        leased.ack()
        client.config_set("maxmemory", 0)
        assert bus.publish("still there", "c") == 1
        assert heard.next() == "still there"
        assert other.health().gaps == 0


def test_a_full_server_lets_calls_end(start):
    server = start("--maxmemory-policy", "noeviction")
    config = RedisConfig.from_url(server.url)
    with pymq.EventBus(config) as bus, pymq.EventBus(config) as serving, server.client() as client:
        begun, go = threading.Barrier(3), threading.Event()

        def small() -> str:
            begun.wait(GUARD)
            go.wait(GUARD)
            return "small"

        serving.expose(small, "small")
        serving.expose(lambda: small() * 10_000, "large")
        calls = [in_thread(bus.stub(name, timeout=GUARD).rpc) for name in ("small", "large")]
        begun.wait(GUARD)
        client.config_set("maxmemory", 1)
        go.set()
        one, other = [call.result(2 * GUARD) for call in calls]
        assert one.result == "small"
        assert other.result_type == "ProviderError"
        assert "OOM" in str(other.result)
        with pytest.raises(pymq.ProviderError, match="OOM"):
            bus.stub("large", timeout=GUARD)()


def test_a_server_that_is_a_replica_for_a_while_is_waited_for(start, heard, caplog):
    """It is not told to close its connections: those who wait are sent away, and who writes is refused."""
    server = start()
    config = RedisConfig.from_url(server.url)
    with pymq.EventBus(config) as bus, pymq.EventBus(config) as other, server.client() as client:
        other.subscribe(heard, "c")
        jobs = bus.queue("jobs")
        getting, taking = in_thread(jobs.get, timeout=3 * GUARD), in_thread(bus.queue("more").receive, timeout=3 * GUARD)
        eventually(lambda: client.info("clients")["blocked_clients"] == 3)
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(pymq.ConnectionLost, match=r"not executed.*READONLY"):
            other.queue("jobs").put("refused")
        with pytest.raises(pymq.ConnectionLost, match=r"not executed.*READONLY"):
            other.publish("refused", "c")
        assert other.health().state == "reconnecting"
        client.execute_command("REPLICAOF", "NO", "ONE")
        eventually(lambda: confirmed(jobs.put, "job"))
        eventually(lambda: confirmed(other.queue("more").put, "more"))
        assert getting.result(GUARD) == "job"
        assert taking.result(GUARD).value == "more"
        arrives(bus, heard, 1, GUARD)
    assert [record for record in caplog.records if record.levelno > logging.WARNING] == []


def test_a_wrong_password_is_an_error_that_names_the_host_and_not_the_password(start):
    server = start("--requirepass", "s3cret")
    for password in ("wr0ng", None):
        with pytest.raises(pymq.ProviderError, match=f"127.0.0.1:{server.port}") as caught:
            pymq.EventBus(RedisConfig(host="127.0.0.1", port=server.port, password=password)).start()
        assert "wr0ng" not in str(caught.value)
    config = RedisConfig(server.client(password="s3cret"))
    assert "s3cret" not in repr(config)
    with pymq.EventBus(config) as bus:
        assert bus.publish(1, "nobody") == 0


def test_no_server_is_an_error_at_once(start):
    server = start()
    server.kill()
    with pytest.raises(pymq.ConnectionLost, match=f"127.0.0.1:{server.port}.*[^.]; is it started"):
        pymq.EventBus(RedisConfig.from_url(server.url)).start()


def test_the_rights_that_the_docs_name_are_enough(start):
    server = start()
    (rights,) = re.findall(r"^ACL SETUSER.*?\n```", DOCS.read_text(), re.M | re.S)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "mq", "on", ">pw", "resetkeys", "~pymq:*", *re.findall(r"\+\S+", rights))
    with pymq.EventBus(RedisConfig(host="127.0.0.1", port=server.port, username="mq", password="pw")) as bus:
        heard = Heard()
        bus.subscribe(heard, "c*", pattern=True)
        bus.subscribe(heard, "c", group="g")
        assert bus.publish(1, "c") == 2
        assert heard.take(2) == [1, 1]
        jobs = bus.queue("jobs", maxsize=1)
        jobs.put(1, ttl=60)
        with pytest.raises(queue.Full):
            jobs.put(2, timeout=0.1)
        with jobs.take() as job:
            assert job.value == 1
        bus.expose(lambda: 1, "one")
        assert bus.stub("one", timeout=5)() == 1
        jobs.free()
        bus.group("g").delete()
        bus.stats()


class Narrow:
    """A way to a server on which a megabyte takes half a second."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._sockets = [self._listening]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                self._sockets += [near, far]
                threading.Thread(target=self._pass, args=(near, far, 0.03), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, 0.0), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, pause: float) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                time.sleep(pause if len(data) > 10_000 else 0)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def test_a_message_that_is_long_on_its_way_costs_no_registration(start, heard):
    server = start()
    way = Narrow(server.port)
    config = RedisConfig(host="127.0.0.1", port=way.port)
    with pymq.EventBus(config) as sender, pymq.EventBus(RedisConfig.from_url(server.url)) as other:
        sender.subscribe(heard, "c")
        jobs = sender.queue("jobs")
        began = time.monotonic()
        putting = in_thread(jobs.put, b"x" * 14_000_000)
        while not putting.done():
            assert other.publish(1, "c") == 1, "it is not known any more"
            time.sleep(0.1)
        putting.result(GUARD)
        assert time.monotonic() - began > LEASE + 1, "it was not long enough for this test to mean anything"
        assert sender.health().gaps == 0
    way.close()


def test_the_config_of_a_full_inbox_is_the_receivers(start, heard):
    """What a receiver buffers is its own affair: whoever publishes keeps to it."""
    server = start()
    config = RedisConfig.from_url(server.url)
    small = dataclasses.replace(config, max_pending=10_000)
    gate = threading.Event()

    def slow(value: bytes) -> None:
        heard(value)
        gate.wait(GUARD)

    with pymq.EventBus(small) as receiver, pymq.EventBus(dataclasses.replace(config, publish_timeout=0.1)) as publisher:
        receiver.inbox_ready()
        receiver.provider.declare("inbox/small", temporary=True)
        receiver.provider.bind("inbox/small", "e/c", exact=True)
        counts = [publisher.publish(b"x" * 4000, "c") for _ in range(5)]
        gate.set()
    assert counts == [1, 1, 0, 0, 0]
