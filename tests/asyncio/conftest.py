"""Every test here runs on every provider under asyncio; on some also under uvloop, and with threads in the place of a readiness."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest
from blockbuster import BlockBuster
from loops import Threaded, runner

WATCHED = ("time.sleep", "threading.Lock.acquire", "os.read", "os.write")
"""Not the other calls for the file system: the files of shm's provider are memory."""


WAYS = {"uvloop": ("simple", "shm"), "threads": ("simple",)}
"""Where else than under asyncio: a provider over a network is reached by threads anyhow."""


NETWORKS = ("redis", "aws")
"""No readiness there: threads do the waiting."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What would show nothing new is left out."""
    left_out = [item for item in items if not _shows_something(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def _shows_something(item: Any) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    place = params.get("place")
    if "local" in item.fixturenames and place in NETWORKS:
        return False
    return place in WAYS.get(params.get("way"), (place,))


@pytest.fixture(params=["asyncio", "uvloop", "threads"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def aconfig(config: Any, way: str) -> Any:
    """What the loop's buses are made with; `config` is what everybody else's are."""
    return Threaded(config) if way == "threads" else config


@pytest.fixture
def small(config: Any) -> Any:
    """A config whose receivers are soon full."""
    if not hasattr(config, "max_pending"):
        pytest.skip("its receivers are never full")
    return replace(config, max_pending=100_000, publish_timeout=2.0)


@pytest.fixture
def local(place: Any) -> None:
    """For what only providers have that a loop reaches without a thread."""


@pytest.fixture
def watched() -> Iterator[BlockBuster]:
    """A blocking call in a loop raises BlockingError."""
    blockbuster = BlockBuster()
    blockbuster.functions = {
        name: call for name, call in blockbuster.functions.items() if name in WATCHED or name.startswith("socket.")
    }
    blockbuster.functions["os.read"].can_block_predicate = _returns_at_once
    # for a lock that another process holds at this moment: half a millisecond at a time, as docs/asyncio.md says
    blockbuster.functions["time.sleep"].can_block_in("pymq/provider/_shm/files.py", "wait")
    blockbuster.activate()
    try:
        yield blockbuster
    finally:
        blockbuster.deactivate()


def _returns_at_once(fd: int, *_: object) -> bool:
    return not os.get_blocking(fd) or stat.S_ISREG(os.fstat(fd).st_mode)


@pytest.fixture
def run(way: str, watched: BlockBuster) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    return runner(way)
