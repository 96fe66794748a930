"""A home of their own for the channels of each test, in this process and in those that it starts; nothing may be left there."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import eventually

from pymq import pubsub


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="pymq-test-") as directory:
        path = Path(directory) / "pymq"
        monkeypatch.setenv("PYMQ_HOME", str(path))
        monkeypatch.delenv("PYMQ_URL", raising=False)
        monkeypatch.delenv("PUBSUB_HOME", raising=False)
        monkeypatch.setattr(pubsub, "_here", pubsub._Place())
        yield path
        pubsub._close()
        assert list(path.rglob("*")) == []
        eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "pymq-signals"])
