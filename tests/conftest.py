"""The `config` fixture: every behaviour test runs on every provider, in a place of its own that must be empty afterwards.

A provider is added in one line of PLACES.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "provider"))

from harness import LocalPeer, ProcessPeer, eventually
from programs.participant import verbs

import pymq

# A shell ignores it for what runs in its background, and every program that the tests start would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Place:
    """Where the participants of one test meet."""

    scale = 1.0
    """The factor of the tests' volumes."""
    cross_process = True

    def __init__(self, config: Any, url: str) -> None:
        self.config = config
        self.url = url

    def leftovers(self) -> list[str]:
        """What is still there after the last participant has left."""
        return []


class SimplePlace(Place):
    cross_process = False

    def __init__(self, home: Path) -> None:
        from pymq.provider.simple import SimpleConfig

        super().__init__(SimpleConfig(namespace=home.name), f"simple://{home.name}")


class ShmPlace(Place):
    def __init__(self, home: Path) -> None:
        from pymq.provider.shm import ShmConfig

        self.home = home / "pymq"
        super().__init__(ShmConfig(namespace="tests", home=str(self.home)), "shm://tests")

    def leftovers(self) -> list[str]:
        return [str(path.relative_to(self.home)) for path in self.home.rglob("*")]


PLACES: dict[str, Callable[[Path], Place]] = {"simple": SimplePlace, "shm": ShmPlace}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A fresh place, in which nothing may be left: no file, no thread."""
    before = set(threading.enumerate())
    with tempfile.TemporaryDirectory(dir=_fast_directory(), prefix="pymq-test-") as home:
        monkeypatch.setenv("PYMQ_HOME", f"{home}/pymq")
        place = PLACES[request.param](Path(home))
        monkeypatch.setenv("PYMQ_URL", place.url)
        yield place
        pymq.shutdown()
        assert place.leftovers() == []
        eventually(lambda: not _new_threads(before), timeout=5)


def _fast_directory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _new_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before and thread.name != "harness"]


@pytest.fixture
def config(place: Place) -> Any:
    return place.config


@pytest.fixture
def bus(config: Any) -> Iterator[pymq.EventBus]:
    """A running bus in this process."""
    with pymq.EventBus(config) as bus:
        yield bus


@pytest.fixture(scope="session")
def processes() -> Iterator[list[ProcessPeer]]:
    """Participants' processes that wait for their next test: starting one takes longer than most tests."""
    idle: list[ProcessPeer] = []
    yield idle
    for peer in idle:
        peer.end()


@pytest.fixture
def peers(place: Place, processes: list[ProcessPeer]) -> Iterator[Callable[..., list[Any]]]:
    """`peers(2)` are two participants: processes where the provider allows it, `fresh=True` with nothing imported or named yet."""
    working: list[Any] = []

    def start_one(config: Any, fresh: bool) -> Any:
        if not place.cross_process:
            working.append(LocalPeer(config))
        else:
            working.append(processes.pop() if processes and not fresh else ProcessPeer())
            working[-1].call(verbs.open, config)
        return working[-1]

    yield lambda count, config=place.config, fresh=False: [start_one(config, fresh) for _ in range(count)]
    try:
        for peer in working:
            peer.close()
    finally:
        for peer in working:
            if isinstance(peer, ProcessPeer):
                peer.end() if peer.hurt else processes.append(peer)


@pytest.fixture
def separate(place: Place) -> None:
    """For behaviour that only real processes can show."""
    if not place.cross_process:
        pytest.skip("one process only")
