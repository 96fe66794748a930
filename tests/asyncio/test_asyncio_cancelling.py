"""Awaits that are cancelled at any moment: nothing is left open or in force, nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from loops import until, until_it_is

import pymq
import pymq.asyncio

MOMENTS = [0.0004 * number for number in range(12)]


async def cancelled_after(seconds: float, awaitable: Awaitable[Any]) -> bool:
    """Whether it was cancelled, and had not ended before."""
    task = asyncio.ensure_future(awaitable)
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


def test_a_start_that_is_cancelled_leaves_nothing_open(run, aconfig):
    def on_news(event: str) -> None: ...

    async def main() -> None:
        buses = []
        for moment in MOMENTS:
            bus = pymq.asyncio.connect(aconfig)
            bus.subscriber("news")(on_news)
            bus.remote("upper")(str.upper)
            if not await cancelled_after(moment, bus.start()):
                await bus.shutdown()
            with pytest.raises(pymq.NotInitialized):
                await bus.publish("x", "news")
            buses.append(bus)  # what is left open would be closed by being forgotten
        async with pymq.asyncio.connect(aconfig) as bus:
            assert await bus.publish("anybody?", "news") == 0

    run(main())


def test_several_starts_are_one_that_is_undone_when_all_are_cancelled(run, aconfig):
    async def main() -> None:
        for cancelled in ((0,), (1,), (0, 1), (0, 1, 2)):
            bus = pymq.asyncio.connect(aconfig)
            bus.subscriber("news")(on_news)
            starts = [asyncio.ensure_future(bus.start()) for _ in range(3)]
            await asyncio.sleep(0)
            for number in cancelled:
                starts[number].cancel()
            await asyncio.wait(starts)
            assert [start.cancelled() for start in starts] == [number in cancelled for number in range(3)]
            if len(cancelled) < 3:
                assert await bus.publish("x", "news") == 1
                await bus.shutdown()
            with pytest.raises(pymq.NotInitialized):
                await bus.publish("x", "news")

    run(main())


def test_a_start_that_fails_leaves_nothing_open(run, aconfig):
    async def main() -> None:
        bus = pymq.asyncio.connect(aconfig)
        bus.remote("name")(str.upper)
        bus.remote("name")(str.lower)
        with pytest.raises(ValueError, match="name"):
            await bus.start()
        with pytest.raises(pymq.NotInitialized):
            await bus.publish("x", "news")
        async with bus:
            assert await bus.publish("x", "news") == 0

    run(main())


def on_news(event: str) -> None: ...


def double(number: int) -> int:
    return 2 * number


def subscribing(bus: pymq.asyncio.EventBus) -> Awaitable[object]:
    return bus.subscribe(on_news, "news")


def joining(bus: pymq.asyncio.EventBus) -> Awaitable[object]:
    return bus.subscribe(on_news, "news", group="readers")


def exposing(bus: pymq.asyncio.EventBus) -> Awaitable[object]:
    return bus.expose(double, "double")


def exposing_again(bus: pymq.asyncio.EventBus) -> Awaitable[object]:
    return bus.expose(double, "twice")


def iterating(bus: pymq.asyncio.EventBus) -> Awaitable[object]:
    return bus.events("news").__anext__()


@pytest.mark.parametrize("begin", [subscribing, joining, exposing, iterating])
def test_what_was_begun_by_a_cancelled_await_is_not_in_force(run, aconfig, begin: Callable[..., Awaitable[object]]):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            for moment in MOMENTS:
                if not await cancelled_after(moment, begin(bus)):
                    await (bus.unexpose(double) if begin is exposing else bus.unsubscribe(on_news))
                if begin is not iterating:  # there it may take as long as a garbage collection
                    assert not await in_force(bus)
            await until_it_is(False, lambda: in_force(bus))
            if begin is joining:
                await bus.group("readers").delete()

    run(main())


@pytest.mark.parametrize("begin", [subscribing, joining, exposing, exposing_again])
def test_what_was_in_force_before_a_cancelled_await_still_is(run, aconfig, begin: Callable[..., Awaitable[object]]):
    first = exposing if begin is exposing_again else begin

    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            await first(bus)
            before = works(bus)
            for moment in MOMENTS:
                if not await cancelled_after(moment, begin(bus)):
                    await (bus.unexpose(double) if first is exposing else bus.unsubscribe(on_news))
                    await first(bus)
                assert works(bus) == before
                assert await bus.stub("double", multi=True, timeout=20)(1) == ([2] if before == ["double"] else [])
                assert await bus.publish("x", "news") == (0 if before == ["double"] else 1)
            if begin is joining:
                await bus.group("readers").delete()

    run(main())


def works(bus: pymq.asyncio.EventBus) -> list[str]:
    """What this bus listens to and serves."""
    core = bus._core
    return [work.name for work in (*core.subscriptions.all(), *core._members)] + list(core.remotes._remotes)


async def in_force(bus: pymq.asyncio.EventBus) -> bool:
    """Whether this bus serves, or listens to, anything."""
    core = bus._core
    return bool(list(core.subscriptions.all()) or core._members or await bus.stub("double", multi=True, timeout=20)(1))


def test_a_put_that_is_cancelled_has_put_nothing_or_once(run, aconfig, place, way):
    count = max(40, int(200 * place.scale))
    is_local = not (way == "threads" or place.config.create().features.waits_on_io)

    async def main() -> None:
        chance, done, got = random.Random(count), set[int](), Counter[int]()
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs", type=int, maxsize=3)

            async def put(number: int) -> None:
                await jobs.put(number)
                done.add(number)

            async def get() -> None:
                while True:
                    got[await jobs.get()] += 1
                    await asyncio.sleep(chance.choice([0, 0.003]))  # so that it is full at times

            getting = asyncio.ensure_future(get())
            putting = set[asyncio.Future[None]]()
            for number in range(count):
                putting.add(asyncio.ensure_future(put(number)))
                await asyncio.sleep(chance.choice([0, 0, 0, 0.001]))
                for task in list(putting):
                    if task.done():
                        putting.remove(task)
                    elif chance.random() < 0.3:
                        task.cancel()
            if putting:
                await asyncio.wait(putting)
            await until_it_is(0, jobs.qsize)
            await until(lambda: done <= got.keys())
            getting.cancel()
            await asyncio.wait([getting])
            assert set(got.values()) == {1}
            assert len(done) < count, "some were cancelled"
            if is_local:
                assert got.keys() == done
            await jobs.free()

    run(main())


def test_a_call_that_is_cancelled_is_executed_once_or_not_at_all(run, aconfig, place):
    count = max(20, int(200 * place.scale))

    async def main() -> None:
        executed, returned = Counter[int](), list[int]()

        async def serve(number: int) -> int:
            executed[number] += 1
            await asyncio.sleep(0)
            return number

        async with pymq.asyncio.connect(aconfig) as server, pymq.asyncio.connect(aconfig) as bus:
            await server.expose(serve, "serve")
            ask = bus.stub(serve, timeout=20)
            chance = random.Random(count)
            calls = {number: asyncio.ensure_future(ask(number)) for number in range(count)}
            for number, call in calls.items():
                await asyncio.sleep(chance.choice([0, 0, 0.001]))
                if number % 2:
                    call.cancel()
            for number, call in calls.items():
                await asyncio.wait([call])
                if not call.cancelled():
                    assert call.result() == number
                    returned.append(number)
            assert set(range(0, count, 2)) <= set(returned) <= executed.keys()
            assert set(executed.values()) == {1}

    run(main())


def test_members_that_come_and_go_handle_each_event_once(run, aconfig, place):
    count = max(20, int(300 * place.scale))

    async def main() -> None:
        handled, chance = Counter[int](), random.Random(count)

        async def handle(number: int) -> None:
            await asyncio.sleep(0)
            handled[number] += 1

        async with pymq.asyncio.connect(aconfig) as bus:
            group = bus.group("readers")
            await group.bind("numbers")

            async def come_and_go() -> None:
                while len(handled) < count:
                    await bus.subscribe(handle, "numbers", group="readers", workers=2)
                    await asyncio.sleep(chance.choice([0, 0.001, 0.005]))
                    await bus.unsubscribe(handle)

            coming = asyncio.ensure_future(come_and_go())
            for number in range(count):
                await bus.publish(number, "numbers")
                await asyncio.sleep(0)
            await coming
            await until_it_is(0, group.qsize)
            assert set(handled.values()) == {1}
            assert await group.dead.qsize() == 0
            await group.delete()

    run(main())


def test_a_shutdown_that_is_cancelled_goes_on(run, aconfig):
    async def main() -> None:
        async def hangs(event: str) -> None:
            begun.set()
            await asyncio.sleep(3600)

        for _ in range(3):
            begun = asyncio.Event()
            bus = pymq.asyncio.connect(aconfig)
            bus.subscriber("news")(hangs)
            await bus.start()
            await bus.publish("x", "news")
            await begun.wait()
            waiting = asyncio.ensure_future(bus.wait())
            assert await cancelled_after(0.001, bus.shutdown(timeout=0.05))
            assert await waiting

    run(main())


def test_a_handler_may_end_the_bus(run, aconfig):
    async def main() -> None:
        ended = asyncio.Event()
        bus = pymq.asyncio.connect(aconfig)

        @bus.subscriber("news")
        async def last(event: str) -> None:
            await bus.shutdown(timeout=10)
            ended.set()

        await bus.start()
        waiting = asyncio.ensure_future(bus.wait())
        assert not await bus.wait(timeout=0.01)
        await bus.publish("the end", "news")
        assert await waiting
        await ended.wait()

    run(main())
