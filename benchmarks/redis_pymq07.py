"""What `python -m benchmarks redis` lets another interpreter run, that of `PYMQ_PEER_PYTHON`, whose `pymq` is PyMQ 0.7.

`python -I redis_pymq07.py <url> <count>` prints publishes per second to a channel that nobody listens to.
"""

from __future__ import annotations

import sys
from time import perf_counter

import redis

import pymq
from pymq.provider.redis import RedisConfig

if __name__ == "__main__":
    pymq.init(RedisConfig(redis.Redis.from_url(sys.argv[1])))
    pymq.publish("x" * 100, channel="nobody")
    begin, count = perf_counter(), int(sys.argv[2])
    for _ in range(count):
        pymq.publish("x" * 100, channel="nobody")
    print(count / (perf_counter() - begin))
    pymq.shutdown()
