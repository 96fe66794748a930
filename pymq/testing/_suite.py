"""What every part of the suite has: the hooks that a provider's test may set, and the tools of the tests."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from queue import Full
from typing import Any
from unittest import SkipTest

from pymq.provider import Config
from pymq.provider.base import Delivery, Provider, Receipt
from pymq.testing._helpers import FILL, Process, Task


class Suite:
    """The base of all parts."""

    scale: float = 1.0
    """How many messages a test moves, relative to a local provider's."""
    patience: float = 20.0
    """Seconds to wait for what has to come: a guard, never what a test that passes waits."""
    tick: float = 0.1
    """The delays, leases and lifetimes in the tests, in seconds."""
    over_delivers: bool = False
    """Whether messages also come to queues that are not bound to them, which the contract allows."""

    def config(self) -> Config:
        """A config with a namespace that nobody else uses; called once for each test, and sent to other processes by pickle."""
        raise NotImplementedError("a subclass of ProviderSuite says which config to test")

    def elsewhere(self) -> Config:
        """The same config with another namespace."""
        return self._with(namespace=f"{getattr(self._config, 'namespace', '')}-elsewhere")

    def setup_method(self) -> None:
        """Before each test."""
        self._cleanup = ExitStack()
        self._config = self.config()

    def teardown_method(self) -> None:
        """After each test: what it has made is deleted and closed."""
        self._cleanup.close()

    # what the tests are written with

    def _with(self, **changes: Any) -> Config:
        """The config with these fields, or no test where it has no such fields."""
        names: set[str] = set()
        if dataclasses.is_dataclass(self._config):
            names = {field.name for field in dataclasses.fields(self._config)}
        if not changes.keys() <= names:
            raise SkipTest(f"{type(self._config).__name__} has no {', '.join(changes.keys() - names)}")
        return dataclasses.replace(self._config, **changes)  # type: ignore[type-var]

    def _open(self, config: Config | None = None) -> Provider:
        provider = (config or self._config).create()
        provider.open()
        self._cleanup.callback(provider.close)
        return provider

    _limit = 256 << 10

    def _bounded(self, field: str) -> Provider:
        """A provider that soon has no room."""
        return self._open(self._with(**{field: self._limit}))

    def _bounding(self) -> Provider:
        """A provider that respects maxsize."""
        provider = self._open()
        if not provider.features.exactly_bound:
            raise SkipTest("maxsize is not exact")
        return provider

    def _weighing(self) -> Provider:
        """A provider that knows which consumers are busy."""
        provider = self._open()
        if not provider.features.weighs_consumers:
            raise SkipTest("consumers only take turns")
        return provider

    def _process(self) -> Process:
        provider = self._config.create()
        if not provider.features.cross_process:
            raise SkipTest("not for several processes")
        process = Process(self._config, self.patience)
        self._cleanup.callback(process.kill)
        return process

    def _task(self, function: Callable[..., Any], *args: Any, **options: Any) -> Task:
        return Task(self.patience, function, args, options)

    def _name(self) -> str:
        return f"suite-{secrets.token_hex(8)}"

    def _shared(self, provider: Provider) -> str:
        name = self._name()
        provider.declare(name)
        self._cleanup.callback(self._delete, name)
        return name

    def _delete(self, queue: str) -> None:
        provider = self._config.create()
        provider.open()
        provider.delete(queue)
        provider.close()

    def _inbox(self, provider: Provider) -> str:
        name = self._name()
        provider.declare(name, temporary=True)
        return name

    def _many(self, count: int) -> int:
        return max(3, int(count * self.scale))

    def _after_death(self) -> float:
        return max(20 * self._config.create().features.death_seconds, self.tick)

    def _take(self, provider: Provider, queue: str, lease: float = 1000.0) -> tuple[bytes, Receipt]:
        """One message under a lease."""
        return self._leased(provider.receive(queue, self.patience, lease=lease))

    def _leased(self, received: list[Delivery]) -> tuple[bytes, Receipt]:
        assert len(received) == 1, f"{len(received)} messages came in the place of one"
        message, receipt = received[0]
        assert receipt is not None, "a leased message has no receipt"
        return message, receipt

    def _collect(self, provider: Provider, queue: str, count: int, limit: int = 1) -> list[Delivery]:
        """As many as expected, removed; fewer where they do not come."""
        collected: list[Delivery] = []
        while len(collected) < count and (more := provider.receive(queue, self.patience, limit=limit, lease=None)):
            collected += more
        return collected

    def _messages(self, provider: Provider, queue: str, count: int) -> list[bytes]:
        return [message for message, _ in self._collect(provider, queue, count)]

    def _poll(self, provider: Provider, queue: str) -> list[bytes]:
        """What has come to an inbox once something has, without a blocked receive."""
        while not (received := provider.receive(queue)):
            time.sleep(self.tick / 100)
        return [message for message, _ in received]

    def _rest(self, provider: Provider, queue: str) -> list[bytes]:
        """What is left; nothing where the queue is in order."""
        left: list[Delivery] = []
        while more := provider.receive(queue, self.tick, lease=None):
            left += more
        return [message for message, _ in left]

    def _same(self, received: Sequence[bytes], sent: Sequence[bytes]) -> bool:
        """Whether they are equal, in order where the provider keeps it."""
        ordered = self._config.create().features.ordered
        return list(received) == list(sent) if ordered else sorted(received) == sorted(sent)

    def _reached(self, count: int | None, expected: int) -> None:
        """What a publish has returned."""
        knows = self._config.create().features.counts_receivers
        assert count == (expected if knows else None), f"publish returned {count} in the place of {expected}"

    def _not_copied(self, publisher: Provider, topics: Sequence[str], provider: Provider, queue: str) -> None:
        """None of the topics reaches the queue."""
        for topic in topics:
            publisher.publish([topic], b"not bound")
        received = provider.receive(queue)
        assert received == [] or self.over_delivers, f"{topics} reached a queue that is not bound to them"

    def _fill(self, sender: Provider, queue: str) -> int:
        """Send until there is no room; how many there was room for."""
        for count in range(100 * self._limit // len(FILL)):
            try:
                sender.send(queue, FILL, timeout=0)
            except Full:
                return count
        raise AssertionError(f"{queue} took {100 * self._limit} bytes, with a limit of {self._limit}")

    def _let_it_block(self) -> None:
        """Time for a thread to begin to wait. No event tells when it has; a test that comes too early proves less, and passes."""
        time.sleep(0.05)

    def _until(self, happened: Callable[[], object], seconds: float | None = None) -> None:
        """Wait for what no event tells."""
        guard = time.monotonic() + (self.patience if seconds is None else seconds)
        while not happened():
            assert time.monotonic() < guard, "it did not happen"
            time.sleep(0.01)
