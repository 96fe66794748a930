"""The same names as without a loop, the same ways to say where to meet, and threads of nobody else's."""

from __future__ import annotations

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from loops import Threaded, runner

import pymq
import pymq.asyncio
from pymq.groups import Group
from pymq.provider.shm import ShmConfig
from pymq.provider.simple import SimpleConfig
from pymq.queues import DeadLetters, Delivery

PAIRS = [
    (pymq.EventBus, pymq.asyncio.EventBus),
    (pymq.Topic, pymq.asyncio.Topic),
    (Group, pymq.asyncio.Group),
    (pymq.Queue, pymq.asyncio.Queue),
    (Delivery, pymq.asyncio.Delivery),
    (DeadLetters, pymq.asyncio.DeadLetters),
]
WITHIN = {"ends_later", "inbox_ready", "later", "loop", "step_aside", "dead_queue", "queue_of"}
"""What the parts of the bus use of each other."""


@pytest.mark.parametrize(("threads", "loop"), PAIRS)
def test_all_names_are_there_with_all_their_parameters(threads: type, loop: type) -> None:
    names = {name for name in vars(threads) if not name.startswith("_")} - WITHIN
    assert len(names) > 2
    assert names - set(dir(loop)) == set()
    for name in names:
        if callable(getattr(threads, name)):
            wanted = inspect.signature(getattr(threads, name)).parameters
            there = inspect.signature(getattr(loop, name)).parameters
            assert [each for each in wanted if each not in there] == [], name


@pytest.mark.parametrize("target", [SimpleConfig("meet"), "simple://meet", "environment"], ids=["config", "url", "environment"])
def test_where_to_meet(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYMQ_URL", "simple://meet" if target == "environment" else "simple://elsewhere")

    async def main() -> None:
        async with pymq.asyncio.connect(None if target == "environment" else target) as bus:
            with pymq.EventBus(SimpleConfig("meet")) as other:
                other.queue("jobs").put("sweep")
            assert await bus.queue("jobs").get(timeout=10) == "sweep"
            assert bus.health().state == "connected"
            await bus.queue("jobs").free()

    runner("asyncio")(main())


def test_without_a_word_it_is_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("PYMQ_URL", raising=False)
    monkeypatch.setenv("PYMQ_HOME", str(tmp_path / "home"))

    async def main() -> None:
        async with pymq.asyncio.connect() as bus:
            with pymq.EventBus(ShmConfig()) as other:
                assert await bus.publish("x", "news") == 0
                other.subscribe(print, "news")
                assert await bus.publish("x", "news") == 1

    runner("asyncio")(main())


def test_the_loops_own_threads_are_left_to_the_program() -> None:
    """A program may keep all of its executor's threads busy: a network provider does not wait for them."""

    async def main() -> None:
        free, loop = threading.Event(), asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="programs"))
        busy = loop.run_in_executor(None, free.wait, 60)
        async with pymq.asyncio.connect(Threaded(SimpleConfig("busy"))) as bus, bus.events("news") as news:
            await bus.publish("x", "news")
            assert (await news.__anext__())[0] == "x"
            waiting = asyncio.ensure_future(bus.queue("jobs").get())
            await bus.queue("jobs").put(1)
            assert await waiting == 1
            await bus.expose(abs, "abs")
            assert await bus.stub("abs", timeout=20)(-1) == 1
            await bus.queue("jobs").free()
        free.set()
        assert await busy

    runner("asyncio")(main())
