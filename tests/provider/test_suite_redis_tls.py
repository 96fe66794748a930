"""The Redis provider over TLS, held to the contract: what travels is cut and buffered otherwise there."""

from __future__ import annotations

import atexit
import secrets
import tempfile
from functools import lru_cache
from pathlib import Path

from certificates import Authority
from test_redis_tls import TlsServer

from pymq.provider.redis import RedisConfig
from pymq.testing import ProviderSuite


@lru_cache
def encrypted() -> tuple[str, str]:
    """The URL of a server, and the file of the authority to trust."""
    home = tempfile.TemporaryDirectory(prefix="pymq-tls-")
    authority = Authority(Path(home.name))
    server = TlsServer(Path(home.name), authority, "--tls-auth-clients", "no").start()
    atexit.register(home.cleanup)
    atexit.register(server.end)
    return server.tls_url, authority.path


class TestRedisTls(ProviderSuite):
    scale = 0.1

    def config(self):
        url, path = encrypted()
        return RedisConfig.from_url(f"{url}/suite-{secrets.token_hex(4)}?ssl_ca_certs={path}")
