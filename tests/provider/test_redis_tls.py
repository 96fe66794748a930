"""TLS, to a real server that has a certificate of an authority of our own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from certificates import Authority
from harness import GUARD, Heard, eventually, in_thread
from redis_server import RedisServer, binary_with_tls, free_port

import pymq
from pymq.provider.redis import RedisConfig


class TlsServer(RedisServer):
    """A server with a port for TLS beside the other one."""

    def __init__(self, home: Path, authority: Authority, *options: str) -> None:
        program = binary_with_tls()
        if program is None:
            pytest.skip("no server that was built with TLS: Debian's redis-server is")
        certificate, key = authority.certify("server")
        self.tls_port = free_port()
        files = f"tls-cert-file {certificate}\ntls-key-file {key}\ntls-ca-cert-file {authority.path}\n"
        super().__init__(*options, config=f"tls-port {self.tls_port}\n{files}", program=program)
        self.tls_url = f"rediss://127.0.0.1:{self.tls_port}/0"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Iterator[TlsServer]:
    server = TlsServer(tmp_path, authority, "--tls-auth-clients", "no")
    yield server.start()
    server.end()


def test_a_bus_over_tls(server, authority):
    heard = Heard()
    url = f"{server.tls_url}/ns?ssl_ca_certs={authority.path}"
    with pymq.EventBus(RedisConfig.from_url(url)) as receiver, pymq.EventBus(RedisConfig.from_url(url)) as sender:
        receiver.subscribe(heard, "c")
        receiver.subscribe(heard, "c", group="g")
        receiver.expose(lambda size: b"r" * size, "fill")
        assert sender.publish("hello", "c") == 2
        assert heard.take(2) == ["hello", "hello"]
        big = bytes(range(256)) * 8000
        assert sender.publish(big, "c") == 2
        assert heard.take(2) == [big, big]
        stub = sender.stub("fill", timeout=GUARD)
        assert [len(stub(size)) for size in (0, 1, 16_383, 16_384, 100_000)] == [0, 1, 16_383, 16_384, 100_000]
        jobs = sender.queue("jobs")
        getting = in_thread(jobs.get)
        time.sleep(0.1)  # it blocks, in all likelihood
        receiver.queue("jobs").put(1)
        assert getting.result(GUARD) == 1
        with server.client() as client:
            assert {each["laddr"].rpartition(":")[2] for each in client.client_list() if int(each["id"]) != client.client_id()} == {
                str(server.tls_port)
            }, "all that pymq opened is encrypted"


def test_a_connection_over_tls_that_is_lost_or_silent(server, authority):
    heard = Heard()
    config = RedisConfig(host="127.0.0.1", port=server.tls_port, ssl=True, ssl_ca_certs=authority.path)
    with pymq.EventBus(config) as bus, server.client() as client:
        bus.subscribe(heard, "c")
        for number in range(20):
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert bus.publish(number, "c") == 1
        assert heard.take(20) == list(range(20))
        server.pause()
        with pytest.raises(pymq.ConnectionLost, match=r"silent|answers"):
            bus.publish("lost", "c")
        server.resume()
        eventually(lambda: _confirmed(bus, "found"))
        eventually(lambda: heard.next() == "found")


def _confirmed(bus: pymq.EventBus, event: Any) -> bool:
    try:
        return bus.publish(event, "c") == 1
    except pymq.ConnectionLost:
        return False


def test_a_client_of_redis_py_that_speaks_tls_shows_the_way(server, authority):
    client = redis.Redis.from_url(server.tls_url, ssl_ca_certs=authority.path)
    with pymq.EventBus(RedisConfig(client)) as bus:
        assert bus.publish(1, "nobody") == 0


def test_an_authority_that_is_not_ours_is_an_error_at_init(server, tmp_path):
    stranger = Authority(tmp_path, "stranger")
    for options in (f"?ssl_ca_certs={stranger.path}", ""):
        with pytest.raises(pymq.ProviderError, match=f"127.0.0.1:{server.tls_port} is not trusted.*ssl_ca_certs") as caught:
            pymq.EventBus(RedisConfig.from_url(server.tls_url + options)).start()
        assert not isinstance(caught.value, pymq.ConnectionLost), "to try again would not help"


def test_a_name_that_the_certificate_does_not_bear_is_an_error_at_init(server, authority):
    arguments = {"host": "localhost", "port": server.tls_port, "ssl": True, "ssl_ca_certs": authority.path}
    with pytest.raises(pymq.ProviderError, match=f"localhost:{server.tls_port} is not trusted.*localhost"):
        pymq.EventBus(RedisConfig(**arguments, ssl_check_hostname=True)).start()
    with pymq.EventBus(RedisConfig(**arguments, ssl_check_hostname=False)) as bus:
        assert bus.publish(1, "nobody") == 0


def test_tls_where_there_is_none_is_an_error_at_init_and_none_where_there_is(server, authority):
    with pytest.raises(pymq.ConnectionLost, match=f"no Redis server answers at 127.0.0.1:{server.port}.*TLS"):
        pymq.EventBus(RedisConfig.from_url(f"rediss://127.0.0.1:{server.port}?ssl_ca_certs={authority.path}")).start()
    with pytest.raises(pymq.ConnectionLost, match=f"no Redis server answers at 127.0.0.1:{server.tls_port}"):
        pymq.EventBus(RedisConfig.from_url(f"redis://127.0.0.1:{server.tls_port}")).start()


def test_a_server_that_wants_a_certificate_of_its_clients(tmp_path, authority):
    server = TlsServer(tmp_path, authority, "--tls-auth-clients", "yes")
    try:
        server.start()
        certificate, key = authority.certify("client")
        trusting = {"host": "127.0.0.1", "port": server.tls_port, "ssl": True, "ssl_ca_certs": authority.path}
        with pytest.raises(pymq.ProviderError, match=str(server.tls_port)):
            pymq.EventBus(RedisConfig(**trusting)).start()
        with pymq.EventBus(RedisConfig(**trusting, ssl_certfile=certificate, ssl_keyfile=key)) as bus:
            assert bus.publish(1, "nobody") == 0
    finally:
        server.end()
