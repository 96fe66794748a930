"""What the Redis provider leaves on a server, and what it asks of one: the keys and the commands that docs/providers/redis.md lists."""

from __future__ import annotations

import re
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import GUARD, eventually
from redis_server import keys_of, shared_url

import pymq
from pymq.provider import _redis
from pymq.provider._redis.script import REPLY, SOURCE
from pymq.provider._redis.wire import Finder, command
from pymq.provider.redis import RedisConfig

DOCS = (Path(__file__).parents[2] / "docs" / "providers" / "redis.md").read_text()
ELSEWHERE = {"role", "cluster|slots", "sentinel|get-master-addr-by-name"}
"""What is asked of Sentinel's servers and of a cluster's alone."""
OF_SHARED_QUEUES = {"queues", "q", "qb", "r", "h", "p", "e", "l", "a", "o", "g", "ps"}
"""The keys that stay: what was put must not be lost with the last process."""

PROGRAM = """
import sys, pymq
from pymq.provider import config_from

bus = pymq.EventBus(config_from(sys.argv[1]))
bus.start()
bus.subscribe(print, "c")
bus.subscribe(print, "d*", pattern=True)
bus.subscribe(print, "e", group="g")
bus.expose(lambda: 1, "one")
assert bus.stub("one", timeout=10)() == 1
jobs = bus.queue("jobs", maxsize=1)
for number in range(3):
    bus.publish(number, "c")
    bus.publish(number, "e")
jobs.put(1, ttl=60)
try:
    jobs.put(2, timeout=0.1)
except pymq.Full:
    pass
jobs.receive()
bus.queue("later").put(3, delay=60)
print("ready", flush=True)
pymq.wait()
"""


@pytest.fixture
def config() -> RedisConfig:
    return RedisConfig.from_url(f"{shared_url()}/keys-{secrets.token_hex(4)}")


@pytest.fixture
def killed(config: RedisConfig) -> RedisConfig:
    """The config of a process that has used everything and was killed."""
    url = f"{shared_url()}/{config.namespace}"
    with subprocess.Popen([sys.executable, "-c", PROGRAM, url], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        while program.stdout.readline() not in ("ready\n", ""):
            pass
        program.send_signal(signal.SIGKILL)
    return config


def kind_of(config: RedisConfig, key: str) -> str:
    assert key.startswith(config.prefix)
    return key.removeprefix(config.prefix).partition(":")[0]


def test_all_keys_are_the_namespaces_and_in_the_docs(killed):
    (table,) = re.findall(r"^\| key \|.*?\n\n", DOCS, re.M | re.S)
    listed = {
        name.partition(":")[0] for row in table.strip().splitlines()[2:] for name in re.findall(r"`([a-z]+)[:`]", row.split("|")[1])
    }
    found = {kind_of(killed, key) for key in keys_of(killed)}
    assert {"members", "im", "t", "pi", "q", "p", "h", "g"} <= found
    assert found <= listed
    written = set(re.findall(r"P \.\. '([a-z]+):?'", SOURCE)) | set(re.findall(r"'([a-z]+):'", SOURCE))
    assert written == listed


def test_what_the_killed_have_left_expires_but_for_what_was_put(killed):
    import redis

    with redis.Redis(**killed.connection) as client:
        left = {key: client.pttl(key) for key in keys_of(killed)}
    assert len(left) > 15
    for key, milliseconds in left.items():
        if kind_of(killed, key) in OF_SHARED_QUEUES:
            assert milliseconds == -1, f"{key} would be lost"
        else:
            assert 0 <= milliseconds <= 600_000 or milliseconds == -2, f"{key} would stay for ever"


def test_who_comes_next_finds_what_was_put_and_removes_the_rest(killed):
    with pymq.EventBus(killed) as bus:
        job = bus.queue("jobs").receive(timeout=GUARD)
        assert (job.value, job.attempt) == (1, 2)
        job.ack()
        eventually(lambda: bus.publish(1, "c") == 0)
        bus.group("g").delete()
        bus.queue("later").free()
    assert keys_of(killed) == []


def commands_used() -> set[str]:
    """In the scripts and beside them, as an ACL names them."""
    files = Path(_redis.__file__).parent.glob("*.py")
    direct = {found for file in files for found in re.findall(r"command\(b\"([A-Z]+)\"(?:, b\"([A-Z-]+)\")?", file.read_text())}
    written = set(re.findall(r"\w*call\('([A-Z]+)'", SOURCE + REPLY.text.decode()))
    by_redis_py = {"select"}  # when it connects
    evaluated = {"evalsha"}
    return {"|".join(filter(None, pair)).lower() for pair in direct} | {name.lower() for name in written} | by_redis_py | evaluated


def test_the_docs_list_the_commands_that_are_needed():
    (rights,) = re.findall(r"^ACL SETUSER.*?\n```", DOCS, re.M | re.S)
    assert set(re.findall(r"\+([a-z|]+)", rights)) == commands_used() - ELSEWHERE


def test_no_command_is_newer_than_redis_6_2():
    """A server that has `COMMAND DOCS` (7.0) says since when there is each; an older one knows them all."""
    wire = Finder(RedisConfig.from_url(shared_url())).connect()
    names = sorted({name.partition("|")[0].encode() for name in commands_used()} - {b"sentinel"})
    assert len(names) > 40
    try:
        documented = wire.call(command(b"COMMAND", b"DOCS", *names))
    except pymq.ProviderError:
        assert all(wire.call(command(b"COMMAND", b"INFO", *names)))
    else:
        since = {name: dict(zip(fields[::2], fields[1::2]))[b"since"] for name, fields in zip(documented[::2], documented[1::2])}
        assert sorted(since) == names
        assert {name: version for name, version in since.items() if tuple(map(int, version.split(b"."))) > (6, 2, 0)} == {}
    finally:
        wire.close()


def test_a_publisher_gets_used_to_new_channels_for_ever(config, monkeypatch):
    monkeypatch.setattr("pymq.provider.redis.MOST_PLANS", 3)
    with pymq.EventBus(config) as bus:
        for user in range(8):
            bus.publish(user, f"user/{user}")
        assert len(bus.provider._plans) <= 3
        assert ("e/user/7",) in bus.provider._plans
