"""The Redis provider, held to the contract on a real server."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from redis_server import shared_url

from pymq.provider.redis import RedisConfig
from pymq.testing import ProviderSuite


class TestRedis(ProviderSuite):
    scale = 0.1

    def config(self):
        return RedisConfig.from_url(f"{shared_url()}/suite-{secrets.token_hex(4)}")
