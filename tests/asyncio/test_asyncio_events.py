"""Events from loops: to and from processes that have none, in order, awaited where somebody is full, and cancelled."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
from blockbuster import BlockingError
from harness import Heard
from loops import Deaf, Threaded, aside, runner, until, until_it_is
from programs import shop
from programs.shop import OrderPlaced, Reading, RushOrder

import pymq
import pymq.asyncio
from pymq.asyncio import _core
from pymq.asyncio._port import Port


@dataclass
class Counted:
    number: int


def test_to_and_from_another_process(run, aconfig, peers):
    async def main() -> None:
        (peer,) = await aside(peers, 1)
        heard: asyncio.Queue[Any] = asyncio.Queue()

        async def on_order(event: OrderPlaced, message: pymq.Message) -> None:
            await heard.put((event, message.headers))

        async with pymq.asyncio.connect(aconfig) as bus:
            await aside(peer.subscribe, shop.readings)
            assert await bus.publish(Reading(21.5)) == 1
            assert await aside(peer.hear) == Reading(21.5)
            await bus.subscribe(on_order)
            assert await aside(peer.publish, RushOrder(1), headers={"trace": "abc"}) == 1
            assert await heard.get() == (RushOrder(1), {"trace": "abc"})
            await bus.unsubscribe(on_order)
            assert await aside(peer.publish, OrderPlaced(2)) == 0

    run(main())


def test_channels_patterns_and_plain_functions(run, aconfig):
    async def main() -> None:
        heard: list[Any] = []

        def on_reading(value: float, message: pymq.Message) -> None:
            heard.append((value, message.channel))

        bus = pymq.asyncio.connect(aconfig)
        bus.subscriber("sensors/*", pattern=True)(on_reading)
        async with bus:
            assert await bus.topic("sensors/7").publish(21.5) == 1
            assert await bus.publish(3.0, "elsewhere") == 0
            await until(lambda: heard)
            assert heard == [(21.5, "sensors/7")]
            with pytest.raises(TypeError, match=r"await bus\.subscribe\(on_reading"):
                bus.subscriber("more")(on_reading)

    run(main())


def test_a_subscription_is_serial_and_in_order_and_others_go_on_meanwhile(run, aconfig):
    async def main() -> None:
        gate, slow, quick = asyncio.Event(), [], []

        async def slowly(event: Counted) -> None:
            slow.append(("begin", event.number))
            await gate.wait()
            slow.append(("end", event.number))

        async def quickly(event: Counted) -> None:
            quick.append(event.number)

        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.subscribe(slowly)
            await bus.subscribe(quickly)
            for number in range(300):
                assert await bus.publish(Counted(number)) == 1
            await until(lambda: len(quick) == 300)
            assert quick == list(range(300))
            assert slow == [("begin", 0)]
            gate.set()
            await until(lambda: len(slow) == 600)
            assert slow == [(what, number) for number in range(300) for what in ("begin", "end")]

    run(main())


def test_a_failing_handler_ends_nothing(run, aconfig, caplog):
    async def main() -> None:
        heard: list[int] = []

        async def fails(event: Counted) -> None:
            heard.append(event.number)
            raise SystemExit(1) if event.number else ValueError("a handler's own")

        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.subscribe(fails)
            for number in range(3):
                await bus.publish(Counted(number))
            await until(lambda: len(heard) == 3)
            assert (await bus.stats())["failed"] == {f"{__name__}.Counted": 3}

    run(main())
    assert "a handler's own" in caplog.text


def test_what_only_returns_a_coroutine_has_failed(run, aconfig, caplog):
    async def main() -> None:
        async def inner(value: int) -> None:
            raise AssertionError("nothing awaits it")

        def wrapper(value: int) -> Any:
            return inner(value)

        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.subscribe(wrapper, "c")
            await bus.subscribe(wrapper, "c", group="billing", retries=0)
            await bus.publish(1, "c")
            await until_it_is(1, bus.group("billing").dead.qsize)
            await until_it_is({"c": 2}, partial(_stat, bus, "failed"))
            assert (await bus.stats())["delivered"] == {}
            assert [letter.value async for letter in bus.group("billing").dead] == [1]
            await bus.group("billing").delete()

    run(main())
    assert caplog.text.count("returned a coroutine, which nothing runs") >= 2, "told of both"


async def _stat(bus: Any, kind: str) -> Any:
    return (await bus.stats())[kind]


def test_delayed_and_expired_events(run, aconfig):
    async def main() -> None:
        heard: list[int] = []

        def on_event(event: Counted) -> None:
            heard.append(event.number)

        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.subscribe(on_event)
            await bus.publish(Counted(1), delay=0.2)
            await bus.publish(Counted(2))
            await until(lambda: len(heard) == 2)
            assert heard == [2, 1]

    run(main())


# --- iterating --------------------------------------------------------------------------------------------------------


def test_events_as_an_iterator(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            async with bus.events(Counted) as events:
                for number in range(5):
                    assert await bus.publish(Counted(number), headers={"n": number}) == 1
                seen = [await events.__anext__() for _ in range(5)]
                assert [(event.number, message.headers["n"]) for event, message in seen] == [(n, n) for n in range(5)]
            assert await bus.publish(Counted(9)) == 0

    run(main())


def test_a_step_that_is_cancelled_loses_nothing(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus, bus.events(Counted) as events:
            seen = []
            for number in range(50):
                step = asyncio.ensure_future(events.__anext__())
                await asyncio.sleep(0)
                await bus.publish(Counted(number))
                if number % 3:
                    await asyncio.sleep(0.001 * (number % 4))
                step.cancel()
                try:
                    seen.append((await step)[0].number)
                except asyncio.CancelledError:
                    pass
            while len(seen) < 50:
                seen.append((await events.__anext__())[0].number)
            assert seen == list(range(50))

    run(main())


def test_more_than_is_held_decoded_comes_in_order(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus, bus.events(Counted) as events:
            for number in range(2500):
                await bus.publish(Counted(number))
            assert [(await events.__anext__())[0].number for _ in range(2500)] == list(range(2500))

    run(main())


def test_leaving_the_loop_unsubscribes_also_when_its_task_is_cancelled(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:

            async def consume(ready: asyncio.Event, last: int) -> None:
                events = bus.events(Counted)
                async with events:
                    ready.set()
                    async for event, _ in events:
                        if event.number == last:
                            break

            async def consume_without_a_block() -> None:
                async for _ in bus.events(Counted):
                    break

            for last, cancel in ((0, False), (99, True)):
                ready = asyncio.Event()
                task = asyncio.ensure_future(consume(ready, last))
                await ready.wait()
                assert await bus.publish(Counted(0)) == 1
                if cancel:
                    task.cancel()
                await asyncio.wait([task])
                assert await bus.publish(Counted(0)) == 0
            task = asyncio.ensure_future(consume_without_a_block())
            while not task.done():
                await bus.publish(Counted(0))
                await asyncio.sleep(0.001)
            del task
            gc.collect()
            while await bus.publish(Counted(0)):
                await asyncio.sleep(0.001)

    run(main())


def test_the_end_of_the_bus_ends_the_iteration(run, aconfig):
    async def main() -> None:
        seen = []
        bus = pymq.asyncio.connect(aconfig)
        await bus.start()
        events = bus.events(Counted)
        async with events:
            await bus.publish(Counted(1))
            step = asyncio.ensure_future(events.__anext__())
            seen.append((await step)[0].number)
            ending = asyncio.ensure_future(bus.shutdown())
            async for event, _ in events:
                seen.append(event.number)
            await ending
        assert seen == [1]

    run(main())


@pytest.mark.parametrize("group", [None, "g"])
def test_a_handler_that_a_shutdown_waits_for_publishes_and_puts(run, aconfig, caplog, group):
    async def main() -> None:
        heard: asyncio.Queue[int] = asyncio.Queue()
        begun, gate = asyncio.Event(), asyncio.Event()
        bus = pymq.asyncio.connect(aconfig)

        async def slow(event: Counted) -> None:
            begun.set()
            await gate.wait()
            await bus.publish(event.number, "done")
            await jobs.put(event.number)
            await bus.queue("more", type=int).put(event.number)

        async def hear(number: int) -> None:
            heard.put_nowait(number)

        async with pymq.asyncio.connect(aconfig) as other:
            await other.subscribe(hear, "done")
            await bus.start()
            jobs = bus.queue("jobs", type=int)
            await bus.subscribe(slow, group=group)
            await other.publish(Counted(7))
            await begun.wait()
            ending = asyncio.ensure_future(bus.shutdown(60))
            await asyncio.sleep(0)
            gate.set()
            await ending
            for name in ("jobs", "more"):
                assert await other.queue(name).get(timeout=60) == 7
                await other.queue(name).free()
            assert await asyncio.wait_for(heard.get(), 60) == 7
            await other.group("g").delete()
            with pytest.raises(pymq.NotInitialized):
                await bus.publish(1, "done")
        assert not caplog.records

    run(main())


def test_wrong_use_is_refused(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            for event in (OrderPlaced(1), (1,)):
                with pytest.raises(TypeError, match=r"publish\(event, channel\): the channel is a text, not "):
                    await bus.publish("c", event)  # type: ignore[arg-type]
                with pytest.raises(TypeError, match="a channel is a text"):
                    bus.topic(event)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="events of what"):
                bus.events(17)  # type: ignore[call-overload]

    run(main())


# --- receivers that are full --------------------------------------------------------------------------------------------


PADDING = "x" * 3000


async def publish_until_one_waits(bus: Any) -> asyncio.Future[int]:
    """It is left waiting for room."""
    while True:
        publishing = asyncio.ensure_future(bus.publish(PADDING, "padded"))
        done, _ = await asyncio.wait([publishing], timeout=0.3)
        if not done:
            return publishing
        assert publishing.result(), "nobody has it"


def test_where_a_receiver_is_full_the_wait_is_awaited(run, small, way):
    async def main() -> None:
        deaf = await aside(Deaf, small, "e/padded")
        heard: list[str] = []

        def on_padded(event: str) -> None:
            heard.append(event)

        try:
            async with pymq.asyncio.connect(Threaded(small) if way == "threads" else small) as bus:
                assert await bus.publish(PADDING, "padded") == 1
                waiting = await publish_until_one_waits(bus)
                await bus.subscribe(on_padded, "other")
                assert await bus.publish(PADDING, "other") == 1, "others are not held up"
                await until(lambda: heard)
                assert not waiting.done()
                await aside(deaf.read)
                assert await waiting == 1, "there was room, and the receiver has it"
        finally:
            await aside(deaf.provider.close)

    run(main())


def test_a_receiver_that_stays_full_is_dropped_to_and_not_waited_for_again(run, small, way):
    short = replace(small, publish_timeout=0.5)

    async def main() -> None:
        deaf = await aside(Deaf, short, "e/padded")
        try:
            async with pymq.asyncio.connect(Threaded(short) if way == "threads" else short) as bus:
                waiting = await publish_until_one_waits(bus)
                assert await waiting == 0
                at_once = asyncio.ensure_future(bus.publish(PADDING, "padded"))
                done, _ = await asyncio.wait([at_once], timeout=0.4)
                assert done
                assert at_once.result() == 0
        finally:
            await aside(deaf.provider.close)

    run(main())


def test_a_publish_that_is_cancelled_while_it_waits_reaches_the_full_receiver_once_or_not_at_all(run, small, way):
    async def main() -> None:
        deaf = await aside(Deaf, small, "e/padded")
        try:
            async with pymq.asyncio.connect(Threaded(small) if way == "threads" else small) as bus:
                waiting = await publish_until_one_waits(bus)
                (accepted,) = [count for kind, count in (await bus.stats())["published"].items() if kind == "padded"]
                waiting.cancel()
                await asyncio.wait([waiting])
                assert waiting.cancelled()
                read = await aside(deaf.read)
                assert await bus.publish(PADDING, "padded") == 1
                deadline = time.monotonic() + 1
                while time.monotonic() < deadline:  # what a thread still waits with has 2 seconds at most, and room now
                    read += await aside(deaf.read)
                    await asyncio.sleep(0.01)
                assert read in (accepted, accepted + 1), "all but the cancelled one, it or not, and the last"
        finally:
            await aside(deaf.provider.close)

    run(main())


# --- groups -------------------------------------------------------------------------------------------------------------


def test_each_event_goes_to_one_member_of_a_group(run, aconfig, peers):
    async def main() -> None:
        (peer,) = await aside(peers, 1)
        heard: list[int] = []

        async def bill(event: OrderPlaced) -> None:
            heard.append(event.order_id)

        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.subscribe(bill, group="billing", workers=2)
            await aside(peer.subscribe, shop.orders, group="billing")
            for number in range(40):
                assert await bus.publish(OrderPlaced(number)) == 1

            async def all_of_them() -> bool:
                while peer.heard.waiting():
                    heard.append((await aside(peer.hear)).order_id)
                return len(heard) == 40

            while not await all_of_them():
                await asyncio.sleep(0.01)
            assert sorted(heard) == list(range(40))
            await until_it_is(0, bus.group("billing").qsize)
            await bus.group("billing").delete()

    run(main())


def test_retries_and_dead_letters(run, aconfig, caplog):
    async def main() -> None:
        attempts: list[int] = []

        async def bill(event: Counted, message: pymq.Message) -> None:
            attempts.append(message.attempt)
            raise ValueError("no account")

        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.subscribe(bill, group="billing", retries=2, backoff=0.01)
            await bus.publish(Counted(7))
            group = bus.group("billing")
            await until_it_is(1, group.dead.qsize)
            assert attempts == [1, 2, 3]
            assert [(letter.headers["dead-text"], letter.value) async for letter in group.dead] == [("no account", Counted(7))]
            assert await group.dead.purge() == 1
            await group.delete()

    run(main())
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 3
    assert said[2].endswith("bill of group 'billing' failed on 'test_asyncio_events.Counted', attempt 3 of 3: to the dead letters")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [], "this bus deleted the group"


def test_what_the_end_of_the_bus_cancels_comes_again_and_was_no_failure(run, aconfig):
    async def main() -> None:
        begun = asyncio.Event()
        attempts: list[int] = []

        async def hangs(event: Counted) -> None:
            begun.set()
            await asyncio.sleep(3600)

        async def bill(event: Counted, message: pymq.Message) -> None:
            attempts.append(message.attempt)

        first = pymq.asyncio.connect(aconfig)
        await first.start()
        await first.subscribe(hangs, group="billing", retries=0)
        await first.publish(Counted(1))
        await begun.wait()
        async with pymq.asyncio.connect(aconfig) as second:
            await first.shutdown(timeout=0.05)
            await second.subscribe(bill, group="billing", retries=0)
            await until(lambda: attempts)
            assert attempts == [2]
            assert await second.group("billing").dead.qsize() == 0
            await until_it_is(0, second.group("billing").qsize)
            await second.group("billing").delete()

    run(main())


async def cancel_what_runs(but: set[asyncio.Task[Any]]) -> None:
    """As `asyncio.run` does at its end."""
    tasks = asyncio.all_tasks() - but
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("group", [None, "billing"])
def test_the_end_of_the_loop_ends_what_a_bus_runs_there(run, aconfig, group):
    async def main() -> None:
        before = asyncio.all_tasks()
        handled: list[tuple[int, int]] = []

        async def bill(event: Counted, message: pymq.Message) -> None:
            handled.append((event.number, message.attempt))
            await asyncio.sleep(3600 if message.attempt == 1 else 0)

        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.subscribe(bill, group=group, retries=0 if group else None)
            for number in range(3):
                await bus.publish(Counted(number))
            await until(lambda: handled)
            await cancel_what_runs(but=before)
            assert handled == [(0, 1)]
            if group:
                await until_it_is(3, bus.group(group).qsize)  # it comes again, and was no failure
                assert await bus.group(group).dead.qsize() == 0
                await bus.group(group).delete()

    run(main())


@pytest.mark.parametrize("group", [None, "billing"])
def test_a_handler_that_awaits_what_was_cancelled_ends_nothing(run, aconfig, group):
    async def main() -> None:
        handled: list[int] = []

        async def bill(event: Counted) -> None:
            handled.append(event.number)
            cancelled = asyncio.get_running_loop().create_future()
            cancelled.cancel()
            await cancelled

        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.subscribe(bill, group=group, retries=0 if group else None)
            for number in range(3):
                await bus.publish(Counted(number))
            await until(lambda: handled == [0, 1, 2])
            if group:
                await until_it_is(3, bus.group(group).dead.qsize)
                await bus.group(group).delete()

    run(main())


def work() -> None:
    end = time.monotonic() + 0.002
    while time.monotonic() < end:
        pass


def test_a_plain_function_keeps_its_event_for_longer_than_a_lease(run, aconfig, caplog):
    async def main() -> None:
        attempts: list[int] = []

        def bill(event: Counted, message: pymq.Message) -> None:
            attempts.append(message.attempt)
            end = time.monotonic() + 2
            while time.monotonic() < end:
                work()

        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.subscribe(bill, group="billing", lease=1)
            await bus.publish(Counted(1))
            await until(lambda: attempts)
            await until_it_is(0, bus.group("billing").qsize)
            assert sum((await bus.stats())["delivered"].values()) == 1
            await bus.group("billing").delete()
        assert attempts == [1]

    run(main())


def bill_at_once(event: Counted) -> None:
    work()
    WORKED_IN.append(ROUNDS[0])


async def bill_without_a_pause(event: Counted) -> None:
    bill_at_once(event)


WORKED_IN: list[int] = []
ROUNDS = [0]


@pytest.mark.parametrize(
    ("handler", "group"), [(bill_at_once, "billing"), (bill_without_a_pause, "billing"), (bill_without_a_pause, None)]
)
def test_handlers_that_never_wait_let_the_loop_do_something_else(run, aconfig, handler, group):
    async def main() -> None:
        async def go_round() -> None:
            while True:
                ROUNDS[0] += 1
                await asyncio.sleep(0)

        async with pymq.asyncio.connect(aconfig) as bus:
            if group:
                await bus.group(group).bind(Counted)
            else:
                await bus.subscribe(handler)
            WORKED_IN.clear()
            going = asyncio.ensure_future(go_round())
            for number in range(20):
                await bus.publish(Counted(number))
            if group:
                await bus.subscribe(handler, group=group)
            await until(lambda: len(WORKED_IN) == 20)
            assert len(set(WORKED_IN)) > 2
            going.cancel()
            await asyncio.wait([going])
            if group:
                await until_it_is(0, bus.group(group).qsize)
                await bus.group(group).delete()

    run(main())


# --- loops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["decorators", "verbs"])
def test_classes_that_are_local_to_the_caller(run, aconfig, verb):
    """Hints are texts here, which only the caller's names explain; over a network, threads subscribe and expose."""

    async def main() -> None:
        @dataclass
        class Local:
            number: int

        heard: list[Any] = []

        async def on_local(event: Local) -> None:
            heard.append(event)

        async def twice(value: Local) -> Local:
            return Local(2 * value.number)

        bus = pymq.asyncio.connect(aconfig)
        if verb == "decorators":
            bus.subscriber(on_local)
            bus.subscriber(group="billing", retries=1)(on_local)
            bus.remote("twice")(twice)
        async with bus:
            if verb == "verbs":
                await bus.subscribe(on_local)
                await bus.subscribe(on_local, group="billing", retries=1)
                await bus.expose(twice, "twice")
            await bus.publish(Local(1))
            await until(lambda: heard == [Local(1), Local(1)])
            assert await bus.stub(twice, timeout=10)(Local(2)) == Local(4)
            await bus.group("billing").delete()

    run(main())


def test_decorators_check_what_they_are_given(aconfig):
    bus = pymq.asyncio.connect(aconfig)
    for wrong in ({"retries": -1}, {"retry": 1}, {"pattern": True}):
        with pytest.raises((TypeError, ValueError)):
            bus.subscriber(**wrong)(shop.orders)
    with pytest.raises(TypeError, match="neither a function nor a name"):
        bus.remote(42)


def test_several_loops_in_one_process(aconfig, way):
    heard = Heard()
    barrier = threading.Barrier(3)

    async def main(number: int) -> None:
        async with pymq.asyncio.connect(aconfig) as bus, bus.events(Counted) as events:
            await aside(barrier.wait, 10)
            await bus.publish(Counted(number))
            seen = sorted([(await events.__anext__())[0].number for _ in range(3)])
            await aside(barrier.wait, 10)
            heard(seen)

    threads = [threading.Thread(target=lambda n=n: runner(way)(main(n)), name="harness") for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard.take(3) == [[0, 1, 2]] * 3


def test_a_local_bus_has_no_thread(run, config, local):
    async def main() -> None:
        before = set(threading.enumerate())
        async with pymq.asyncio.connect(config) as bus, bus.events(Counted) as events:
            await until(lambda: set(threading.enumerate()) == before)
            await bus.subscribe(lambda event: None, "x", group="g")
            await bus.publish(Counted(1))
            await events.__anext__()
            await bus.expose(abs, "abs")
            assert await bus.stub("abs")(-1) == 1
            waiting = asyncio.ensure_future(bus.queue("q").get())
            await asyncio.sleep(0.01)
            await bus.queue("q").put(1)
            assert await waiting == 1
            await bus.queue("q").put(2)
            async with bus.queue("q").take() as job:
                assert job.value == 2
                assert set(threading.enumerate()) == before
            await bus.group("g").delete()

    run(main())


def test_a_blocking_call_in_the_loop_would_fail_these_tests(run):
    async def main() -> None:
        time.sleep(0.001)

    with pytest.raises(BlockingError):
        run(main())


def test_the_handlers_of_a_cancelled_task_do_not_leak(run, aconfig, caplog):
    async def main() -> None:
        begun, ended, before = asyncio.Event(), [], asyncio.all_tasks()

        async def hangs(event: Counted) -> None:
            begun.set()
            try:
                await asyncio.sleep(3600)
            finally:
                ended.append(event.number)

        async def program() -> None:
            async with pymq.asyncio.connect(aconfig) as bus:
                await bus.subscribe(hangs)
                for number in range(3):
                    await bus.publish(Counted(number))
                await asyncio.sleep(3600)

        task = asyncio.ensure_future(program())
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert ended == [0]
        assert asyncio.all_tasks() == before

    run(main())


def test_several_starts_at_once_are_one(run, aconfig, monkeypatch):
    ports = []
    monkeypatch.setattr(_core, "Port", lambda *args: ports.append(Port(*args)) or ports[-1])

    async def main() -> None:
        bus = pymq.asyncio.connect(aconfig)
        bus.subscriber("news")(lambda event: None)
        await asyncio.gather(*(bus.start() for _ in range(4)))
        assert len(ports) == 1
        reached = await bus.publish("x", "news")
        await bus.shutdown()
        assert reached in (1, None)  # AWS counts nobody

    run(main())


def test_before_the_start_and_after_the_end(run, aconfig):
    async def main() -> None:
        bus = pymq.asyncio.connect(aconfig)
        with pytest.raises(pymq.NotInitialized):
            await bus.publish(1, "x")
        await bus.shutdown()
        async with bus:
            await bus.start()
            assert await bus.publish(Counted(1)) == 0
            waiting = asyncio.ensure_future(bus.wait())
            await asyncio.sleep(0)
        assert await waiting
        with pytest.raises(pymq.NotInitialized):
            await bus.publish(Counted(1))
        with pytest.raises(pymq.NotInitialized):
            bus.queue("jobs")
        async with bus:
            assert await bus.publish(Counted(1)) == 0

    run(main())


def test_each_event_goes_to_one_of_several_tasks_that_iterate_and_all_of_them_end(run, aconfig):
    async def main() -> None:
        heard: list[int] = []

        async def iterate(events: pymq.asyncio.Events[Counted]) -> None:
            async for event, _ in events:
                heard.append(event.number)

        async with pymq.asyncio.connect(aconfig) as bus, bus.events(Counted) as events:
            tasks = [asyncio.ensure_future(iterate(events)) for _ in range(3)]
            await asyncio.sleep(0)
            for number in range(6):
                await bus.publish(Counted(number))
            await until(lambda: len(heard) == 6)
            assert sorted(heard) == list(range(6))
        await asyncio.wait_for(asyncio.gather(*tasks), 20)

    run(main())


def test_of_several_first_steps_one_subscribes(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            events = bus.events("numbers")
            steps = [asyncio.ensure_future(anext(events)) for _ in range(3)]
            await asyncio.sleep(0)
            steps.pop(0).cancel()  # the one that subscribes
            await until(lambda: len(events._buffer._waiting) == 2)
            for number in range(3):
                await bus.publish(number, "numbers")
            assert sorted([(await step)[0] for step in steps]) == [0, 1]
            assert (await anext(events))[0] == 2
            await events.aclose()
            assert not events._buffer.events

    run(main())


def test_each_block_of_the_same_events_is_subscribed(run, aconfig):
    async def main() -> None:
        bus = pymq.asyncio.connect(aconfig)
        events = bus.events(Counted)
        for number in range(4):
            if number % 2 == 0:
                await bus.start()
            async with events:
                await bus.publish(Counted(number))
                assert (await events.__anext__())[0] == Counted(number)
                if number % 2:
                    await bus.shutdown()
            with pytest.raises(StopAsyncIteration):
                await events.__anext__()

    run(main())


USER: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


@pytest.mark.parametrize("group", [None, "billing"])
def test_what_one_event_sets_in_the_context_is_not_seen_by_the_next(run, aconfig, group):
    async def main() -> None:
        seen: list[str] = []

        async def bill(event: Counted) -> None:
            seen.append(USER.get())
            USER.set(str(event.number))

        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.subscribe(bill, group=group)
            for number in range(3):
                await bus.publish(Counted(number))
            await until(lambda: seen == ["nobody"] * 3)
            if group:
                await until_it_is(0, bus.group(group).qsize)
                await bus.group(group).delete()

    run(main())


def test_what_one_call_sets_in_the_context_is_not_seen_by_the_next(run, aconfig):
    def login(user: str) -> str:
        before = USER.get()
        USER.set(user)
        return before

    async def login_later(user: str) -> str:
        return login(user)

    async def main() -> None:
        USER.set("alice")
        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.expose(login, "login")
            await bus.expose(login_later, "login_later")
            USER.set("bob")
            for name in ("login", "login_later", "login"):
                assert await bus.stub(name, timeout=20)("carol") == "alice"

    run(main())
