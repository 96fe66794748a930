"""The `config` fixture: every behaviour test runs on every provider, in a place of its own that must be empty afterwards.

A provider is added in one line of PLACES.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

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

    def see_death(self) -> None:
        """Wait until everybody knows of a process that was just killed."""

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


class IpcPlace(ShmPlace):
    def __init__(self, home: Path) -> None:
        from pymq.provider.ipc import IpcConfig

        pytest.importorskip("posix_ipc", reason="needs posix_ipc, which has no wheel for this Python")
        super().__init__(home)
        self.config, self.url = IpcConfig(namespace="tests", home=str(self.home)), "ipc://tests"


class AwsPlace(Place):
    scale = 0.01

    def __init__(self, home: Path) -> None:
        from aws_behaviours import a_process_dies
        from aws_server import emulator

        from pymq.provider.aws import LocalstackConfig

        here = {"AWS_ENDPOINT_URL": emulator(), "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        os.environ.update(here)  # programs that a test starts find it with a URL alone
        self.dies = a_process_dies()
        config = LocalstackConfig(endpoint_url=emulator(), namespace=home.name, lease=3 if self.dies else 30, refresh=0, poll=1)
        super().__init__(config, f"aws://us-east-1/{home.name}")

    def see_death(self) -> None:
        time.sleep(self.config.lease)

    def leftovers(self) -> list[str]:
        """Mailboxes, groups, and queues that hold something; where there is none, the empty queues and topics are removed.

        What the killed have left goes when their leases have ended, and somebody comes who has seen that.
        """
        provider = self.config.create()
        provider.open()
        if self.dies and provider.sweeper.mailboxes():
            self.see_death()
            provider.sweeper.sweep()
        found = list(provider.sweeper.inventory())
        kept = [each for each in found if each.kind == "queue" and provider.size(each.stands_for)]
        left = [each for each in found if each.kind in ("mailbox", "subscription")] + kept
        for each in [] if left else found:
            each.remove()
        return [f"{each.kind} {each.name}: {each.stands_for}" for each in left]


class RedisPlace(Place):
    scale = 0.1

    def __init__(self, home: Path) -> None:
        from redis_server import shared_url

        from pymq.provider.redis import RedisConfig

        url = f"{shared_url()}/{home.name}"
        super().__init__(RedisConfig.from_url(url), url)

    def see_death(self) -> None:
        from redis_server import is_fading

        eventually(lambda: not is_fading(self.config))

    def leftovers(self) -> list[str]:
        """What the killed have left goes when their registrations have ended, and somebody leaves who has seen that."""
        from redis_server import keys_of

        if keys_of(self.config):
            self.see_death()
            with pymq.EventBus(self.config):
                pass
        return keys_of(self.config)


PLACES: dict[str, Any] = {
    "simple": SimplePlace,
    "shm": ShmPlace,
    "ipc": IpcPlace,
    "redis": RedisPlace,
    "aws": AwsPlace,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What cannot be shown there is left out; over AWS's emulator also what its module does not name: all would take eight minutes."""
    left_out = [item for item in items if hasattr(item, "callspec") and not _shows_something(item)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def _shows_something(item: Any) -> bool:
    from aws_behaviours import runs_on_aws

    place = item.callspec.params.get("place")
    if place == "aws" and not runs_on_aws(item.path.stem, item.originalname):
        return False
    return "separate" not in item.fixturenames or place is None or PLACES[place].cross_process


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


class Uncounting(pymq.EventBus):
    """Of a provider that cannot know how many have an event: the number equals any."""

    def publish(self, *args: Any, **options: Any) -> Any:
        assert super().publish(*args, **options) is None
        return ANY


@pytest.fixture
def bus(config: Any) -> Iterator[pymq.EventBus]:
    """A running bus in this process."""
    counts = config.create().features.counts_receivers
    with (pymq.EventBus if counts else Uncounting)(config) as bus:
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
    """For behaviour that only real processes can show: not collected where there are none."""
