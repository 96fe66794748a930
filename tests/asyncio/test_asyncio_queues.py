"""Queues from loops: what a cancelled await took goes back, whenever the cancellation comes."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from dataclasses import replace
from queue import Empty
from typing import Any

import pytest
from loops import Threaded, aside, runner, until_it_is
from programs import shop
from programs.shop import OrderPlaced

import pymq
import pymq.asyncio
from pymq.provider.simple import SimpleConfig


def test_put_get_and_their_ends(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs", type=OrderPlaced, maxsize=2)
            await jobs.put(OrderPlaced(1))
            await jobs.put_nowait(OrderPlaced(2))
            with pytest.raises(pymq.Full, match=r"^no room in the queue .jobs.$"):
                await jobs.put_nowait(OrderPlaced(3))
            with pytest.raises(pymq.Full):
                await jobs.put(OrderPlaced(3), timeout=0.05)
            assert (await jobs.qsize(), await jobs.empty(), await jobs.full()) == (2, False, True)
            assert [await jobs.get(), await jobs.get_nowait()] == [OrderPlaced(1), OrderPlaced(2)]
            with pytest.raises(pymq.Empty):
                await jobs.get_nowait()
            with pytest.raises(pymq.Empty):
                await jobs.get(timeout=0.05)
            with pytest.raises(ValueError, match="timeout=-1"):
                await jobs.get(timeout=-1)
            with pytest.raises(pymq.CodecError):
                await jobs.put(object())  # type: ignore[arg-type]
            await jobs.free()
            await jobs.close()
            with pytest.raises(ValueError, match="closed"):
                await jobs.get()

    run(main())


def test_between_a_loop_and_a_process(run, aconfig, peers):
    async def main() -> None:
        (peer,) = await aside(peers, 1)
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs", type=OrderPlaced)
            waiting = [asyncio.ensure_future(jobs.get()) for _ in range(3)]
            await asyncio.sleep(0.02)
            for number in range(3):
                await aside(peer.queue, "jobs", "put", OrderPlaced(number))
            assert sorted([(await item).order_id for item in waiting]) == [0, 1, 2]
            getting = asyncio.ensure_future(aside(peer.queue, "jobs", "get"))
            await jobs.put(OrderPlaced(9))
            assert await getting == OrderPlaced(9)
            await jobs.free()

    run(main())


def test_a_put_waits_for_room(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs", maxsize=1)
            await jobs.put(1)
            putting = asyncio.ensure_future(jobs.put(2))
            await asyncio.sleep(0.05)
            assert not putting.done()
            assert await jobs.get() == 1
            await putting
            cancelled = asyncio.ensure_future(jobs.put(3))
            await asyncio.sleep(0.01)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            assert await jobs.get() == 2
            assert await jobs.qsize() == 0, "what was cancelled was not put"
            await jobs.free()

    run(main())


async def fail_in(block: Any, error: Exception) -> None:
    async with block:
        raise error


def test_how_often_and_after_how_long_a_taken_item_comes_again(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs", retries=1, backoff=0.01)
            await jobs.put("poison")
            for _ in range(2):
                with pytest.raises(LookupError):
                    async with jobs.take(timeout=10):
                        raise LookupError
            assert [letter.headers["dead-attempts"] async for letter in jobs.dead] == [2]
            await jobs.dead.purge()
            await jobs.free()

    run(main())


def test_taken_items(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs")
            await jobs.put("a")
            with pytest.raises(LookupError):
                await fail_in(jobs.take(timeout=5), LookupError("not done"))
            async with jobs.take(timeout=5, lease=10) as job:
                assert (job.value, job.attempt, await jobs.qsize()) == ("a", 2, 0)
            await jobs.put("b")
            job = await jobs.receive(timeout=5)
            await job.extend(20)
            await job.nack()
            job = await jobs.receive(timeout=5)
            assert (job.value, job.attempt) == ("b", 2)
            await job.ack()
            with pytest.raises(pymq.LeaseLost):
                await job.ack()
            await jobs.put("c")
            async with jobs.take(timeout=5) as job:
                await job.ack()
            with pytest.raises(pymq.Empty):
                await jobs.take(timeout=0.01).__aenter__()
            await jobs.put("d")
            with pytest.raises(pymq.Reject):
                await fail_in(jobs.take(timeout=5), pymq.Reject("bad"))
            assert [letter.value async for letter in jobs.dead] == ["d"]
            assert (await jobs.dead.qsize(), await jobs.dead.requeue(), await jobs.get(timeout=5)) == (1, 1, "d")
            await jobs.free()

    run(main())


def test_a_lease_lasts_as_long_as_its_block(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs")
            await jobs.put("a")
            async with jobs.take(timeout=5, lease=1.0):  # extended every third of it: a busy machine may be late by the rest
                with pytest.raises(pymq.Empty):
                    await jobs.get(timeout=2.0)
            assert await jobs.qsize() == 0
            await jobs.free()

    run(main())


def test_a_block_that_is_cancelled_gives_its_item_back_and_has_not_failed(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs")
            await jobs.put("a")

            async def work(begun: asyncio.Event) -> None:
                async with jobs.take():
                    begun.set()
                    await asyncio.sleep(3600)

            for _ in range(8):  # more often than a failing one is tried
                begun = asyncio.Event()
                working = asyncio.ensure_future(work(begun))
                await begun.wait()
                working.cancel()
                await asyncio.wait([working])
            assert await jobs.get(timeout=5) == "a"
            assert await jobs.dead.qsize() == 0
            await jobs.free()

    run(main())


@pytest.mark.parametrize("how", ["get", "take"])
def test_cancelled_at_any_moment_nothing_is_lost_or_comes_twice(run, aconfig, peers, place, how):
    count = max(20, int(300 * place.scale))

    async def main() -> None:
        (peer,) = await aside(peers, 1)
        chance = random.Random(count)
        seen: Counter[Any] = Counter()
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs")

            async def get() -> None:
                if how == "get":
                    item = await jobs.get()
                else:
                    job = await jobs.receive()
                    item = job.value
                seen[tuple(item)] += 1  # no await since it was received
                if how == "take":
                    await asyncio.shield(job.ack())

            producing = asyncio.ensure_future(aside(peer.call, shop.produce, "jobs", 1, count))
            getting: set[asyncio.Future[None]] = set()
            while not (producing.done() and not await jobs.qsize() and sum(seen.values()) == count):
                getting |= {asyncio.ensure_future(get()) for _ in range(4 - len(getting))}
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
                for task in getting:
                    if chance.random() < 0.4:
                        task.cancel()
                _, getting = await asyncio.wait(getting, timeout=0.02 if producing.done() else 0)
            for task in getting:
                task.cancel()
            if getting:
                await asyncio.wait(getting)
            assert len(seen) == count
            assert set(seen.values()) == {1}
            assert await jobs.qsize() == 0
            await jobs.free()

    run(main())


def test_a_block_that_is_cancelled_when_the_bus_ends_gives_its_item_back(run, aconfig, caplog):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as other:
            bus = pymq.asyncio.connect(aconfig)
            await bus.start()
            await bus.queue("jobs").put("job")
            begun = asyncio.Event()

            async def work() -> None:
                async with bus.queue("jobs").take():
                    begun.set()
                    await asyncio.sleep(600)

            working = asyncio.ensure_future(work())
            await begun.wait()
            working.cancel()
            await bus.shutdown()
            with pytest.raises(asyncio.CancelledError):
                await working
            assert await other.queue("jobs").get(timeout=20) == "job"

    run(main())
    assert not caplog.records


def test_a_receiver_that_is_cancelled_keeps_nobody_from_the_item(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs")
            first, second = asyncio.ensure_future(jobs.get()), asyncio.ensure_future(jobs.get())
            await asyncio.sleep(0.02)
            await jobs.put(1)
            first.cancel()
            done, _ = await asyncio.wait([first, second], return_when=asyncio.ALL_COMPLETED, timeout=10)
            assert second in done or first in done
            results = [task.result() for task in (first, second) if task.done() and not task.cancelled()]
            assert results == [1]
            second.cancel()
            await asyncio.wait([second])
            await jobs.free()

    run(main())


def test_who_waits_learns_of_the_end(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as other:
            bus = pymq.asyncio.connect(aconfig)
            await bus.start()
            getting = asyncio.ensure_future(bus.queue("jobs").get())
            freed = asyncio.ensure_future(other.queue("freed").get())
            await asyncio.sleep(0.02)
            await bus.shutdown()
            with pytest.raises(pymq.NotInitialized):
                await getting
            await other.queue("freed").free()
            with pytest.raises(pymq.QueueNotFound):
                await freed
            await until_it_is(0, other.queue("jobs").qsize)
            await other.queue("jobs").free()

    run(main())


def test_an_item_of_a_dead_process_comes_again(run, aconfig, peers, separate):
    async def main() -> None:
        (peer,) = await aside(peers, 1)
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs")
            await jobs.put("a")
            await aside(peer.call, shop.receive_and_keep, "jobs", 3600.0)
            getting = asyncio.ensure_future(jobs.get())
            await asyncio.sleep(0.02)
            assert not getting.done()
            await aside(peer.kill)
            assert await getting == "a"
            await jobs.free()

    run(main())


def test_a_delayed_item_comes_when_it_is_due(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs")
            getting = asyncio.ensure_future(jobs.get())
            await jobs.put("later", delay=0.2)
            assert await getting == "later"
            await jobs.free()

    run(main())


def test_a_full_queue_of_bytes(run, config, way):
    if not hasattr(config, "max_queue_bytes"):
        pytest.skip("its queues are never full")
    small = replace(config, max_queue_bytes=10_000)

    async def main() -> None:
        async with pymq.asyncio.connect(Threaded(small) if way == "threads" else small) as bus:
            jobs = bus.queue("jobs")
            putting = [jobs.put(b"x" * 1000, timeout=0.01) for _ in range(20)]
            results = await asyncio.gather(*putting, return_exceptions=True)
            assert {type(result) for result in results} == {type(None), pymq.Full}
            assert await jobs.get() == b"x" * 1000
            await jobs.free()

    run(main())


def test_who_waited_in_vain_takes_nothing_away(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            jobs = bus.queue("jobs")
            with pytest.raises(Empty):
                await jobs.get(timeout=0.05)
            for number in range(3):
                await jobs.put(number)
            await asyncio.sleep(0.1)
            taken = []
            for _ in range(3):
                async with jobs.take(timeout=20) as job:
                    taken.append((job.value, job.attempt))
            assert taken == [(0, 1), (1, 1), (2, 1)]
            await jobs.free()

    run(main())


def test_objects_of_one_queue_get_their_own_types(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            numbers, texts = bus.queue("jobs", type=int), bus.queue("jobs", type=str)
            for _ in range(2):
                waiting = asyncio.ensure_future(numbers.get())
                await asyncio.sleep(0.02)
                waiting.cancel()
                await asyncio.wait([waiting])
                getting = asyncio.ensure_future(texts.get(timeout=20))
                await texts.put("text")
                assert await getting == "text"
            await numbers.close()
            with pytest.raises(ValueError, match="closed"):
                await numbers.get()
            await texts.put("text")
            with pytest.raises(pymq.CodecError):
                await bus.queue("jobs", type=int).get(timeout=20)
            assert await texts.dead.purge() == 1
            await texts.free()

    run(main())


def test_a_get_that_is_cancelled_while_its_item_is_removed_puts_it_again_as_it_was():
    async def main() -> None:
        async with pymq.asyncio.connect(Threaded(SimpleConfig("cancelled-get"))) as bus:
            jobs, provider = bus.queue("jobs", maxsize=1), bus._core.provider
            removed, release, ack = threading.Event(), threading.Event(), provider.ack

            def slow(receipt: Any) -> None:
                ack(receipt)
                removed.set()
                release.wait(20)

            provider.ack = slow
            await jobs.put("first", ttl=1000, priority=3)
            getting = asyncio.ensure_future(jobs.get())
            await asyncio.to_thread(removed.wait, 20)
            await jobs.put("second")
            getting.cancel()
            await asyncio.wait([getting])
            provider.ack = ack
            release.set()
            await until_it_is(2, jobs.qsize)
            again = await jobs.receive(timeout=20)
            assert again.value == "first"
            assert again._sync._leased.frame.options["priority"] == 3
            assert again._sync._leased.frame.options["expires"] > provider.clock() + 900
            await again.ack()
            await jobs.free()

    runner("asyncio")(main())


def test_whoever_comes_after_the_end_is_told_so_and_changes_nothing(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as server:
            executed: list[str] = []
            await server.expose(executed.append, "run")
            bus = pymq.asyncio.connect(aconfig)
            async with bus:
                jobs, run_it, all_run_it, group = (
                    bus.queue("jobs", maxsize=1),
                    bus.stub("run"),
                    bus.stub("run", multi=True),
                    bus.group("g"),
                )
                dead = jobs.dead
                await jobs.put("first")
                putting = asyncio.ensure_future(jobs.put("second"))
                await asyncio.sleep(0.02)
            late = [putting, jobs.put(1), jobs.get(), jobs.receive(), jobs.qsize(), jobs.free(), dead.qsize(), group.qsize()]
            for each in (*late, run_it("late"), all_run_it.rpc("late"), bus.publish("x", "news"), bus.stats()):
                with pytest.raises(pymq.NotInitialized):
                    await each
            assert executed == []
            assert await server.queue("jobs").get(timeout=20) == "first"
            await server.queue("jobs").free()

    run(main())
