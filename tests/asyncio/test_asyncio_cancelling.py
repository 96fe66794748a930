"""Awaits that are cancelled at any moment: nothing is left open or in force, nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from harness import GUARD
from loops import aside, runner, until, until_it_is

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
        with pytest.raises(ValueError, match="name"):
            await bus.start()

    run(main())


def test_what_was_declared_is_in_force_after_each_start(run, aconfig):
    async def main() -> None:
        bus = pymq.asyncio.connect(aconfig)
        bus.subscriber("news")(on_news)
        bus.subscriber("news", group="readers")(on_news)
        bus.remote("double")(double)
        for moment in MOMENTS[:4]:
            if await cancelled_after(moment, bus.start()):
                await bus.start()
            assert (await bus.publish("x", "news"), await bus.stub(double, timeout=20)(2)) == (2, 4)
            await bus.shutdown()
        async with bus:
            await bus.unsubscribe(on_news, group="readers")
            await bus.unexpose("double")
        async with bus:
            assert works(bus) == ["on_news"]
            await bus.group("readers").delete()

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


@pytest.mark.parametrize("by_a_task", [False, True])
def test_a_handler_of_a_group_may_end_the_bus_and_its_event_is_acked(run, aconfig, by_a_task):
    async def main() -> None:
        attempts: list[int] = []
        bus = pymq.asyncio.connect(aconfig)

        @bus.subscriber("news", group="readers")
        async def last(event: str, message: pymq.Message) -> None:
            attempts.append(message.attempt)
            await (asyncio.wait_for(bus.shutdown(), 60) if by_a_task else bus.shutdown())

        async with bus:
            await bus.publish("the end", "news")
            assert await bus.wait(timeout=20)
        async with pymq.asyncio.connect(aconfig) as bus:
            assert await bus.group("readers").qsize() == 0
            await bus.group("readers").delete()
        assert attempts == [1]

    run(main())


async def ending(config: Any) -> tuple[pymq.asyncio.EventBus, asyncio.Event]:
    """A bus that waits for its handler when it ends, and what lets that handler return."""
    begun, release = asyncio.Event(), asyncio.Event()
    bus = pymq.asyncio.connect(config)

    async def waits(event: str) -> None:
        begun.set()
        await release.wait()

    await bus.start()
    await bus.subscribe(waits, "news")
    await bus.publish("x", "news")
    await begun.wait()
    return bus, release


def test_a_start_and_a_shutdown_wait_for_the_shutdown_that_still_runs(run, aconfig):
    async def main() -> None:
        bus, release = await ending(aconfig)
        assert await cancelled_after(0.01, bus.shutdown(timeout=60))
        again = [asyncio.ensure_future(bus.shutdown()), asyncio.ensure_future(bus.start())]
        _, waiting = await asyncio.wait(again, timeout=0.05)
        assert len(waiting) == 2
        release.set()
        await asyncio.wait_for(asyncio.gather(*again), 20)
        await bus.subscribe(on_news, "news")
        assert await bus.publish("x", "news") == 1
        await bus.shutdown()

    run(main())


def test_a_shutdown_that_is_cut_short_by_the_end_of_the_loop_has_closed_the_bus(run, aconfig, watched):
    async def main() -> None:
        before = asyncio.all_tasks()
        for rounds in range(4):
            bus, _ = await ending(aconfig)
            provider = bus._core.provider
            shutdown = asyncio.ensure_future(bus.shutdown(timeout=60))
            for _ in range(rounds):
                await asyncio.sleep(0)
            watched.deactivate()  # nobody else needs the loop any more
            await cancel_what_runs(but=before)
            watched.activate()
            assert shutdown.cancelled()
            if rounds == 0:  # it had not begun
                await bus.shutdown(timeout=0)
            assert bus._core.provider is not provider
            async with pymq.asyncio.connect(aconfig) as other:
                assert await other.publish("anybody?", "news") == 0

    run(main())


async def cancel_what_runs(but: set[asyncio.Task[Any]]) -> None:
    """As `asyncio.run` does at its end."""
    tasks = asyncio.all_tasks() - but
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)


def test_a_bus_whose_loop_was_closed_without_a_shutdown_can_be_started_in_the_next(run, aconfig):
    bus = pymq.asyncio.connect(aconfig)
    heard: list[str] = []
    bus.subscriber("news")(heard.append)

    async def first() -> None:
        await bus.start()
        await bus.subscribe(on_news, "old news")
        assert await bus.publish("first", "news") == 1

    async def second() -> None:
        async with bus:
            assert await bus.publish("x", "old news") == 0
            assert await bus.publish("second", "news") == 1
            await until(lambda: "second" in heard)
            with pytest.raises(RuntimeError, match="another loop"):
                await asyncio.to_thread(asyncio.run, bus.start())
            with pytest.raises(RuntimeError, match="another loop"):
                await asyncio.to_thread(asyncio.run, bus.shutdown())

    run(first())
    run(second())


@pytest.mark.parametrize("moment", ["in a start", "in a shutdown", "in between"])
def test_a_loop_may_be_closed_at_any_moment_and_the_next_can_start_its_bus(aconfig, way, moment):
    bus = pymq.asyncio.connect(aconfig)
    events = bus.events("news")
    ending: list[asyncio.Task[None]] = []
    awaiting: list[asyncio.Future[Any]] = []

    async def first() -> None:
        starting = asyncio.ensure_future(bus.start())
        await asyncio.sleep(0)
        if moment != "in a start":
            await starting
            await events.__aenter__()
            awaiting.append(asyncio.ensure_future(anext(events)))
            await asyncio.sleep(0)
        if moment == "in a shutdown":
            await bus.subscribe(lambda event: None, "news")
            ending.append(asyncio.ensure_future(bus.shutdown()))
            await asyncio.sleep(0)

    async def second() -> None:
        async with bus:
            assert await bus.publish("nobody", "news") == 0
            async with events:
                await bus.publish("second", "news")
                assert (await anext(events))[0] == "second"
                last = asyncio.ensure_future(anext(events, "the end"))
                await until(lambda: events._buffer._waiting)
                await bus.shutdown()
                assert await last == "the end"

    loop = uvloop.new_event_loop() if way == "uvloop" else asyncio.new_event_loop()
    loop.run_until_complete(first())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # that is what is tested
    loop.close()
    runner(way)(second())


def test_the_thread_of_a_shutdown_whose_loop_was_closed_does_not_close_what_the_next_has_opened(aconfig, way):
    bus = pymq.asyncio.connect(aconfig)
    comes_late, has_come, late = threading.Event(), threading.Event(), []

    async def first() -> None:
        await bus.start()
        close = bus._close

        def close_late(port: Any) -> None:
            late.append(port)
            if len(late) > 1:
                return close(port)
            comes_late.wait(GUARD)
            try:
                return close(port)
            finally:
                has_come.set()

        bus._close = close_late  # type: ignore[method-assign]
        ending = asyncio.ensure_future(bus.shutdown())
        await until(lambda: late)
        ending._log_destroy_pending = False  # type: ignore[attr-defined]

    async def second() -> None:
        async with bus:
            comes_late.set()
            await asyncio.to_thread(has_come.wait, GUARD)
            assert await bus.publish("nobody", "news") == 0

    loop = uvloop.new_event_loop() if way == "uvloop" else asyncio.new_event_loop()
    loop.run_until_complete(first())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    runner(way)(second())


def test_a_shutdown_during_a_start_closes_what_that_opens(run, aconfig):
    async def main() -> None:
        bus = pymq.asyncio.connect(aconfig)
        starting = asyncio.ensure_future(bus.start())
        await asyncio.sleep(0)
        await bus.shutdown()
        await starting
        with pytest.raises(pymq.NotInitialized):
            await bus.publish("x", "news")
        async with bus:
            assert await bus.publish("x", "news") == 0

    run(main())


def test_a_start_behind_a_shutdown_during_another_start_is_in_force(run, aconfig):
    async def main() -> None:
        bus = pymq.asyncio.connect(aconfig)
        steps = []
        for step in (bus.start, bus.shutdown, bus.start):
            steps.append(asyncio.ensure_future(step()))
            await asyncio.sleep(0)
        await asyncio.gather(*steps)
        assert await bus.publish("x", "news") == 0
        await bus.shutdown()
        with pytest.raises(pymq.NotInitialized):
            await bus.publish("x", "news")

    run(main())


def test_several_tasks_may_start_a_bus_that_a_closed_loop_has_left(run, aconfig, monkeypatch):
    bus = pymq.asyncio.connect(aconfig)

    async def first() -> None:
        await bus.start()
        provider = bus._core.provider
        close = provider.close
        monkeypatch.setattr(provider, "close", lambda: time.sleep(0.1) or close())

    async def second() -> None:
        await asyncio.gather(bus.start(), bus.start())
        assert await bus.publish("x", "news") == 0
        await bus.shutdown()

    run(first())
    run(second())


def test_a_server_that_shuts_down_is_asked_no_more(run, aconfig):
    async def main() -> None:
        begun, release = asyncio.Event(), asyncio.Event()

        async def slow() -> int:
            begun.set()
            await release.wait()
            return 1

        server, last = await ending(aconfig)
        async with pymq.asyncio.connect(aconfig) as bus:
            await server.expose(slow, "slow")
            first = asyncio.ensure_future(bus.stub("slow", timeout=20)())
            await begun.wait()
            shutdown = asyncio.ensure_future(server.shutdown(timeout=60))
            await until_it_is([], lambda: aside(lambda: list(bus._core.provider.consumers("r/slow"))))
            release.set()
            assert await first == 1
            last.set()
            await shutdown

    run(main())
