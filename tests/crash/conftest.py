"""The stage of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Heard
from stage import Nursery, Witness, temporary_home

from pymq.provider.shm import ShmConfig


@pytest.fixture(scope="session")
def actors() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def stage() -> Iterator[Path]:
    """A directory in /dev/shm for everything."""
    with temporary_home() as home:
        yield home


@pytest.fixture
def witness(stage: Path) -> Iterator[Witness]:
    """Subscribes and serves; it is the last to leave, and then nothing is left."""
    witness = Witness(ShmConfig("faults", str(stage / "pymq"), max_pending=1 << 20, publish_timeout=0.05))
    yield witness
    witness.close()
    assert list((stage / "pymq").rglob("*")) == []
