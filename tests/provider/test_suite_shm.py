"""The shm provider, held to the contract: as it is by default, and with a spin before it sleeps, always and never."""

from __future__ import annotations

import secrets
import tempfile

from pymq.provider.shm import ShmConfig
from pymq.testing import ProviderSuite


class TestShm(ProviderSuite):
    spin: float | None = None

    def config(self):
        home = tempfile.TemporaryDirectory(prefix="pymq-suite-", dir="/dev/shm")
        self._cleanup.callback(home.cleanup)
        self.home = f"{home.name}/home"
        return ShmConfig(home=self.home, namespace=secrets.token_hex(4), spin=self.spin)


class TestShmThatSpins(TestShm):
    spin = 0.0005


class TestShmThatSleeps(TestShm):
    spin = 0.0
