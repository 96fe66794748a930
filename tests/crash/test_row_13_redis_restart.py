"""Row 13: the Redis server dies and comes back, over and over: it is found again, nothing that was confirmed is lost, gaps are counted.

What else may happen to a server or a connection is in tests/provider/test_redis_failures.py.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest
from harness import GUARD, Heard, eventually
from redis_server import RedisServer

import pymq
from pymq.provider.redis import RedisConfig


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always").start()
    yield server
    server.end()


def test_it_dies_and_comes_back_over_and_over(server: RedisServer, heard: Heard) -> None:
    seed = int(time.time())
    print("seed", seed)
    rng, config = random.Random(seed), RedisConfig.from_url(server.url)
    confirmed: list[int] = []
    unsure: list[int] = []
    with pymq.EventBus(config) as sender, pymq.EventBus(config) as receiver:
        receiver.subscribe(heard, "news")
        jobs, number = sender.queue("jobs"), 0
        for turn in range(6):
            for _ in range(rng.randrange(1, 30)):
                number += 1
                (confirmed if is_confirmed(jobs.put, number) else unsure).append(number)
            server.kill()
            number += 1
            assert not is_confirmed(jobs.put, number), "it never pretends"
            unsure.append(number)
            time.sleep(rng.uniform(0, 0.3))
            server.start()
            begun = time.monotonic()
            eventually(lambda turn=turn: is_confirmed(sender.publish, turn, "news") and turn in heard.rest(), 2 * GUARD)
            assert time.monotonic() - begun < 2 * GUARD, "2 s on an idle machine"
        assert (receiver.health().state, sender.health().state) == ("connected", "connected")
        assert receiver.health().gaps == 0, "the server has kept everything"
        found = [jobs.get(timeout=GUARD) for _ in range(jobs.qsize())]
    assert len(set(found)) == len(found), "nothing came twice"
    assert found == sorted(found)
    assert set(confirmed) <= set(found) <= {*confirmed, *unsure}


def is_confirmed(call: Callable[..., object], *args: object) -> bool:
    """Whether it came through, or said that this cannot be known."""
    try:
        call(*args)
    except pymq.ConnectionLost:
        return False
    return True
