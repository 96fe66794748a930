"""What the tests of loops share."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Coroutine
from queue import Full
from typing import Any

import uvloop
from harness import GUARD

from pymq.provider.base import Provider


class Threaded:
    """A config whose provider has no readiness, as those over a network."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def create(self) -> Provider:
        provider: Provider = self._config.create()
        provider.__class__ = type("Threaded", (type(provider),), {"readiness": Provider.readiness})
        return provider


class Deaf:
    """A receiver that does not read until it is asked to."""

    def __init__(self, config: Any, topic: str) -> None:
        self.provider = config.create()
        self.provider.open()
        self.provider.declare("inbox/deaf", temporary=True)
        self.provider.bind("inbox/deaf", topic, exact=True)

    def read(self) -> int:
        """How many messages there are; an empty one only asks whether it lives."""
        return sum(bool(message) for message, _ in self.provider.receive("inbox/deaf", 0))


def fill(config: Any, message: bytes) -> int:
    """How many such messages the deaf one has room for; another's: to its own it would not be full."""
    provider = config.create()
    provider.open()
    with contextlib.closing(provider):
        for number in itertools.count():
            try:
                provider.send("inbox/deaf", message, timeout=0)
            except Full:
                return number
    raise AssertionError


def runner(way: str) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine in a fresh loop, in which nothing may be left."""

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        loop = uvloop.new_event_loop() if way == "uvloop" else asyncio.new_event_loop()
        failures: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: failures.append(context))
        try:
            result = loop.run_until_complete(asyncio.wait_for(main, 3 * GUARD))
            left = asyncio.all_tasks(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
        assert not left, "tasks that nobody ended"
        assert not failures, failures
        return result

    return run


async def until(check: Callable[[], Any]) -> Any:
    """The first true value of `check`; `run` gives up one day."""
    while not (found := check()):
        await asyncio.sleep(0.002)
    return found


async def until_it_is(wanted: Any, call: Callable[[], Awaitable[Any]]) -> None:
    """Until the call's result is that."""
    while await call() != wanted:
        await asyncio.sleep(0.005)


async def aside(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A participant's verb, which blocks, without holding up the loop."""
    return await asyncio.to_thread(call, *args, **kwargs)
