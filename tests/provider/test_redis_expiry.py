"""Messages of shared queues that expire where nobody looks for a long time."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from harness import GUARD
from redis_server import shared_url

from pymq.provider.redis import RedisConfig

MANY = 8200
"""More than what Lua's `unpack` can give to one call."""


@pytest.fixture
def provider():
    provider = RedisConfig.from_url(f"{shared_url()}/expiry-{secrets.token_hex(4)}").create()
    provider.open()
    provider.declare("jobs")
    yield provider
    provider.delete("jobs")
    provider.close()


def test_numbers_begin_anew_behind_those_that_wait(provider):
    """Nobody comes for ten minutes: what gives the numbers has expired then, what waits has not."""
    sent = [b"%d" % number for number in range(4000)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda message: provider.send("jobs", message), sent))
    with redis.Redis.from_url(shared_url()) as client:
        assert client.delete(f"{provider._config.prefix}n") == 1
    provider.send("jobs", b"afterwards")
    assert provider.size("jobs") == len(sent) + 1
    found = [message for _ in range(5) for message, _ in provider.receive("jobs", limit=1000, lease=None)]
    assert sorted(found[:-1]) == sorted(sent)
    assert found[-1] == b"afterwards"


def test_those_behind_very_many_that_have_expired_are_there(provider):
    with ThreadPoolExecutor(32) as threads:
        list(threads.map(lambda _: provider.send("jobs", b"old", ttl=0.5), range(MANY)))
    provider.send("jobs", b"kept")
    provider.send("jobs", b"kept, too")
    time.sleep(0.6)
    ((message, receipt),) = provider.receive("jobs", GUARD)
    assert (message, provider.size("jobs")) == (b"kept", 1)
    provider.ack(receipt)
    assert [message for message, _ in provider.receive("jobs", lease=None)] == [b"kept, too"]
    assert provider.counters()["jobs"] == {"waiting": 0, "leased": 0, "dropped": 0, "expired": MANY}
