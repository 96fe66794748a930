"""Where a config or a URL leads: one server, Sentinel, a cluster, a socket; and what of a client is used."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from harness import GUARD, Heard, eventually, in_thread
from redis_server import RedisServer, shared_url

import pymq
from pymq.provider import config_from
from pymq.provider._redis.wire import Finder, _address, _slot
from pymq.provider.redis import RedisConfig, RedisEventBus


@pytest.fixture
def start() -> Iterator[Any]:
    servers: list[RedisServer] = []

    def one(*options: str, config: str = "") -> RedisServer:
        servers.append(RedisServer(*options, config=config))
        return servers[-1].start()

    yield one
    for server in reversed(servers):
        server.end()


def comes_through(bus: pymq.EventBus, heard: Heard, event: int) -> bool:
    try:
        return bus.publish(event, "c") == 1 and event in heard.take(max(1, heard.waiting()))
    except (pymq.ConnectionLost, AssertionError):
        return False


def _replicate(server: RedisServer, config: RedisConfig) -> None:
    """On return the replica has all that was written before: WAIT is for the writes of its own connection."""
    with server.client(single_connection_client=True) as client:
        client.set(f"{config.prefix}probe", 1, px=1)
        assert client.execute_command("WAIT", 1, 10_000) == 1


# --- Sentinel ---------------------------------------------------------------------------------------------------------


def test_a_fail_over_by_sentinel(start):
    master = start("--save", "")
    replica = start("--save", "", "--replicaof", "127.0.0.1", str(master.port))
    watching = (
        f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 5000"
    )
    sentinel = start("--sentinel", config=watching)
    with master.client() as client:
        eventually(lambda: client.info("replication").get("slave0", {}).get("state") == "online", 30)
    with sentinel.client() as client:
        eventually(lambda: client.sentinel_master("mymaster")["num-slaves"] == 1, 30)
    heard = Heard()
    config = RedisConfig.from_url(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster/0/ns")
    with pymq.EventBus(config) as receiver, pymq.EventBus(config) as publisher, sentinel.client() as client:
        receiver.subscribe(heard, "c")
        publisher.queue("jobs").put("kept")
        assert comes_through(publisher, heard, 0)
        _replicate(master, config)
        master.kill()
        eventually(lambda: client.sentinel_get_master_addr_by_name("mymaster")[1] == replica.port, 30)
        promoted = time.monotonic()
        eventually(lambda: comes_through(publisher, heard, 1), 30)
        assert time.monotonic() - promoted < 20, "5 s on an idle machine"
        assert publisher.queue("jobs").get(timeout=5) == "kept"


@pytest.fixture
def old_and_new(start, monkeypatch):
    """Two servers that are both masters, as in the middle of a fail-over: buses on the first, and `move(bus)` to the second.

    That bus finds the second one from then on, and has lost its connection to the first, but not those of who waits there.
    """
    old, new = start("--save", ""), start("--save", "")
    config = RedisConfig.from_url(old.url)
    finder = Finder(RedisConfig.from_url(new.url))
    with pymq.EventBus(config) as serving, pymq.EventBus(config) as calling, new.client() as client:
        serving.expose(lambda value: value, "echo")
        serving.expose(lambda value: value, "first")
        for _ in range(2):
            assert calling.stub("first", timeout=GUARD)("here") == "here"
        calling.provider.declare("in", temporary=True)
        assert serving.queue("jobs").empty()
        client.replicaof("127.0.0.1", old.port)
        eventually(lambda: client.info("replication")["master_link_status"] == "up", 30)
        _replicate(old, config)
        client.replicaof("NO", "ONE")

        def find_new(bus: pymq.EventBus) -> None:
            monkeypatch.setattr(bus.provider._pipe._finder, "connect", finder.connect)

        def move(bus: pymq.EventBus) -> None:
            pipe = bus.provider._pipe
            wire = pipe._wire
            find_new(bus)
            with old.client() as killer:
                killer.client_kill_filter(_id=wire.identity)
            eventually(lambda: pipe._wire not in (None, wire))

        yield serving, calling, find_new, move


def test_nobody_stays_with_a_server_that_was_replaced_and_lives(old_and_new):
    serving, calling, _, move = old_and_new
    move(serving)
    move(calling)
    for number in range(3):
        assert calling.stub("echo", timeout=GUARD)(number) == number


def test_a_bus_follows_who_waits_to_the_server_that_replaces_its_own(old_and_new):
    serving, calling, find_new, move = old_and_new
    move(calling)
    find_new(serving)
    serving.provider._receivers._idle.clear()
    with pytest.raises(pymq.Empty):
        serving.queue("jobs").get(timeout=0.1)
    for number in range(3):
        assert calling.stub("echo", timeout=GUARD)(number) == number


def test_a_wait_is_ended_at_the_server_that_replaces_the_one_at_which_another_was(old_and_new):
    """By the number of its connection, which is somebody else's at the old one."""
    serving, _, _, move = old_and_new
    receivers, pipe = serving.provider._receivers, serving.provider._pipe
    ended_at = []
    for step in (lambda: None, lambda: move(serving)):
        step()
        getting = in_thread(serving.queue("jobs").get)
        eventually(lambda: any(receiver._wire is not None for receiver in receivers._lent))
        known = (None, receivers._helper)
        eventually(lambda known=known: serving.provider.wake() or receivers._helper not in known)
        ended_at.append(receivers._helper.where == pipe._wire.where)
        serving.queue("jobs").put("x")
        assert getting.result(GUARD) == "x"
    assert ended_at == [True, True]


def test_a_reply_goes_by_the_server_by_which_the_request_came(old_and_new):
    _, calling, find_new, _ = old_and_new
    replying = pymq.EventBus(calling.config)
    with replying:
        find_new(replying)
        replying.provider.reply("in", b"answer")
        assert calling.provider.receive("in", GUARD) == [(b"answer", None)]


def test_a_client_of_sentinel_shows_the_way():
    sentinel = redis.Sentinel([("127.0.0.1", 26379)], sentinel_kwargs={"password": "one"})
    config = RedisConfig(sentinel.master_for("mymaster", password="two", db=3))
    assert (config.mode, config.nodes, config.service) == ("sentinel", (("127.0.0.1", 26379),), "mymaster")
    assert (config.sentinel["password"], config.connection["password"], config.connection["db"]) == ("one", "two", 3)


# --- Cluster ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(start) -> list[RedisServer]:
    """Three masters and a replica of the first, which has the slot of the namespace "ns"."""
    options = ("--save", "", "--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--cluster-replica-validity-factor", "0")
    servers = [start(*options) for _ in range(4)]
    owner = _slot(RedisConfig(namespace="ns").prefix) * 3 // 16384
    masters = servers[:3]
    masters[0], masters[owner] = masters[owner], masters[0]
    for number, server in enumerate(masters):
        with server.client() as client:
            slots = range((number * 16384 + 2) // 3, ((number + 1) * 16384 + 2) // 3)
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            for other in servers:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
    first, replica = masters[owner], servers[3]
    with first.client() as client, replica.client() as follower:
        identity = client.execute_command("CLUSTER", "MYID")
        eventually(lambda: _replicates(follower, identity), 30)
        eventually(lambda: client.info("replication").get("slave0", {}).get("state") == "online", 30)
    for server in servers:
        with server.client() as client:
            eventually(lambda client=client: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok", 30)
    return [first, *[server for server in servers if server is not first]]


def _replicates(follower: redis.Redis, identity: bytes) -> bool:
    try:
        return bool(follower.execute_command("CLUSTER", "REPLICATE", identity))
    except redis.ResponseError:
        return False  # it has not heard of that node yet


def test_a_cluster_whose_node_dies(cluster):
    first, others = cluster[0], cluster[1:]
    heard = Heard()
    config = RedisConfig.from_url(f"redis+cluster://127.0.0.1:{others[0].port},127.0.0.1:{others[1].port}/0/ns")
    with pymq.EventBus(config) as receiver, pymq.EventBus(config) as publisher:
        receiver.subscribe(heard, "c*", pattern=True)
        receiver.expose(lambda: "pong", "ping")
        assert comes_through(publisher, heard, 0)
        assert publisher.stub("ping", timeout=5)() == "pong"
        publisher.queue("jobs").put("kept")
        _replicate(first, config)
        first.kill()
        eventually(lambda: comes_through(publisher, heard, 1), 40)
        assert publisher.queue("jobs").get(timeout=5) == "kept"
        eventually(lambda: publisher.stub("ping", timeout=5)() == "pong")


def test_a_client_of_a_cluster_shows_the_way(cluster):
    heard = Heard()
    client = redis.RedisCluster(host="127.0.0.1", port=cluster[1].port)
    with pymq.EventBus(RedisConfig(client, namespace="ns")) as bus:
        bus.subscribe(heard, "c")
        assert bus.publish(1, "c") == 1
        assert heard.next() == 1
    client.close()


# --- configs ----------------------------------------------------------------------------------------------------------


def test_a_clients_arguments_are_copied_and_the_client_is_not_used():
    client = redis.Redis(host="bus.example", port=1, db=2, password="pw", decode_responses=True, socket_timeout=0.1, ssl=True)
    config = RedisConfig(client, namespace="ns")
    assert config.connection["host"] == "bus.example"
    assert (config.connection["port"], config.connection["db"], config.connection["ssl"]) == (1, 2, True)
    assert not {"decode_responses", "socket_timeout", "retry"} & config.connection.keys()
    assert config.namespace == "ns"


def test_without_arguments_it_is_localhost():
    config = RedisConfig()
    assert (_address(dict(config.connection)), config.mode, config.namespace) == ("localhost:6379", "", "default")


def test_a_client_that_decodes_is_as_good_as_any():
    client = redis.Redis.from_url(shared_url(), decode_responses=True)
    with RedisEventBus(client) as bus:
        jobs = bus.queue("jobs")
        jobs.put(b"\xff")
        assert jobs.get(timeout=5) == b"\xff"
        jobs.free()
    assert client.connection_pool._in_use_connections == set()


def test_a_socket(start):
    server = start("--save", "", "--unixsocket", "redis.sock")
    url = f"unix://{server.home}/redis.sock?db=0&namespace=ns"
    for config in (RedisConfig.from_url(url), RedisConfig(unix_socket_path=f"{server.home}/redis.sock")):
        with pymq.EventBus(config) as bus:
            assert bus.publish(1, "nobody") == 0
    server.kill()
    with pytest.raises(pymq.ConnectionLost, match=r"redis\.sock"):
        pymq.EventBus(config).start()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {"host": "localhost", "port": 6379}),
        ("redis://bus.example", {"host": "bus.example", "port": 6379}),
        ("redis://u%40x:p%3Aw@bus.example:1/2", {"host": "bus.example", "port": 1, "db": 2, "username": "u@x", "password": "p:w"}),
        ("rediss://:pw@[::1]:1?ssl_ca_certs=/a", {"host": "::1", "port": 1, "password": "pw", "ssl": True, "ssl_ca_certs": "/a"}),
        ("rediss://h?ssl_check_hostname=False", {"host": "h", "port": 6379, "ssl": True, "ssl_check_hostname": False}),
        ("unix:///run/redis.sock?db=3", {"path": "/run/redis.sock", "db": 3}),
    ],
)
def test_a_url(url, expected):
    config = config_from(url)
    assert config.connection == expected
    assert (config.mode, config.namespace) == ("", "default")


def test_the_namespace_and_what_is_tuned_in_a_url():
    config = RedisConfig.from_url("redis://h/0/a%2Fb?max_pending=5&publish_timeout=0.5")
    assert (config.namespace, config.max_pending, config.publish_timeout) == ("a/b", 5, 0.5)
    assert config == RedisConfig(host="h", port=6379, db=0, namespace="a/b", max_pending=5, publish_timeout=0.5)
    sentinel = RedisConfig.from_url("redis+sentinel://a,b:2/name/1/ns")
    assert (sentinel.nodes, sentinel.service, sentinel.namespace) == ((("a", 26379), ("b", 2)), "name", "ns")
    assert RedisConfig.from_url("redis+cluster://a,b:2").nodes == (("a", 6379), ("b", 2))


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://h/0/ns?max_pendin=1", "'max_pendin'.*known:.*max_pending"),
        ("redis://h?max_pending=many", "max_pending='many'"),
        ("redis://h/zero", "db='zero'"),
        ("rediss://h?ssl_check_hostname=no", "ssl_check_hostname='no'.*neither true nor false"),
        ("redis://h:port", "'redis://h:port'"),
        ("redis://h/0/a/b", "%2F"),
        ("redis://u:s3cret@h/0/a#b", "%23"),
        ("redis+sentinel://h", "/service"),
    ],
)
def test_a_url_that_cannot_be_is_a_clear_error(url, named):
    with pytest.raises(ValueError, match=named) as caught:
        config_from(url)
    assert "s3cret" not in str(caught.value)


def test_an_argument_that_redis_does_not_have_is_refused():
    with pytest.raises(TypeError, match="'hots'"):
        RedisConfig(hots="h")
    with pytest.raises(TypeError, match="42"):
        RedisConfig(42)
    with pytest.raises(ValueError, match="namespace"):
        RedisConfig(namespace="")


def test_a_provider_without_a_network_is_always_connected():
    with pymq.EventBus(config_from("simple://health")) as bus:
        assert (bus.health().state, bus.health().gaps) == ("connected", 0)


def test_namespaces_cannot_be_mistaken_for_each_other():
    prefixes = {RedisConfig(namespace=name).prefix for name in ("a", "a}:x", "a}", "{a", "a%7D", "ä", "a:b")}
    assert len(prefixes) == 7
    assert all(prefix.count("{") == prefix.count("}") == 1 for prefix in prefixes)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:6379?password=s3cret&nonsense=1",
        "redis://h?username=u&password=s3cret@1&db=x",
        "redisx://u:s3cret@h",
        "redis://u:sec?s3cret@127.0.0.1",
        "redis://u:s3cret@h:port",
    ],
)
def test_no_error_about_a_url_shows_its_password(url):
    with pytest.raises(ValueError) as caught:
        config_from(url)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in str(caught.value.__cause__)


def test_arguments_that_redis_py_refuses_are_a_provider_error():
    with pytest.raises(pymq.ProviderError, match=r"127\.0\.0\.1:1"):
        config_from("redis://127.0.0.1:1?ssl_ca_certs=/x").create().open()
