"""The ipc provider, held to the contract."""

from __future__ import annotations

import secrets
import tempfile

import pytest

from pymq.provider.ipc import IpcConfig
from pymq.testing import ProviderSuite

pytest.importorskip("posix_ipc", reason="needs posix_ipc, which has no wheel for this Python")


class TestIpc(ProviderSuite):
    def config(self):
        home = tempfile.TemporaryDirectory(prefix="pymq-suite-", dir="/dev/shm")
        self._cleanup.callback(home.cleanup)
        return IpcConfig(home=f"{home.name}/home", namespace=secrets.token_hex(4))
