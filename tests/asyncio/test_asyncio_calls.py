"""Remote calls from loops, to processes that have none, to each other, and to themselves."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from harness import GUARD, eventually
from loops import Deaf, Threaded, aside, fill, until
from programs import shop
from programs.shop import OrderPlaced

import pymq
import pymq.asyncio
from pymq.asyncio._port import Inflow
from pymq.provider.shm import ShmConfig


def test_a_call_of_another_process(run, aconfig, peers):
    async def main() -> None:
        (server,) = await aside(peers, 1)
        await aside(server.expose, shop.add, "add")
        await aside(server.expose, shop.double, "double")
        await aside(server.expose, shop.refuse, "refuse")
        async with pymq.asyncio.connect(aconfig) as bus:
            add = bus.stub("add", timeout=10)
            assert [await add(1), await add(1, b=4)] == [3, 5]
            assert await bus.stub("double")(OrderPlaced(2)) == OrderPlaced(4, OrderPlaced(2).total * 2)
            with pytest.raises(pymq.RemoteInvocationError, match="LookupError") as raised:
                await bus.stub("refuse")("no")
            assert raised.value.remote_type == "LookupError"
            assert (await bus.stub("refuse").rpc("no")).error
            response = await add.rpc(1)
            assert (response.result, response.error) == (3, False)
            with pytest.raises(pymq.NoSuchRemoteError):
                await bus.stub("nobody")()
            with pytest.raises(pymq.CodecError):
                await add(object())

    run(main())


def test_served_by_a_loop(run, aconfig, peers):
    async def main() -> None:
        (client,) = await aside(peers, 1)
        running, most = 0, 0

        async def slow_double(number: int) -> int:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await until(lambda: most >= 5)
            running -= 1
            return number * 2

        bus = pymq.asyncio.connect(aconfig)
        bus.remote("slow_double")(slow_double)
        async with bus:
            await bus.expose(abs, "abs")
            assert await aside(client.call, shop.call, "abs", -3) == 3
            calls = [bus.stub("slow_double", timeout=20)(number) for number in range(5)]
            assert await asyncio.gather(*calls) == [0, 2, 4, 6, 8], "calls of a coroutine run beside each other"
            await bus.unexpose("abs")
            with pytest.raises(pymq.NoSuchRemoteError):
                await bus.stub("abs")(-1)

    run(main())


def test_a_remote_that_calls_a_remote_of_its_own_bus(run, aconfig):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:

            async def add(a: int, b: int) -> int:
                return a + b

            async def product(a: int, b: int) -> int:
                total = 0
                for _ in range(b):
                    total = await bus.stub("add", timeout=10)(total, a)
                return total

            await bus.expose(add, "add")
            await bus.expose(product, "product")
            assert await bus.stub("product", timeout=10)(6, 7) == 42

    run(main())


def test_many_calls_at_once_and_some_are_cancelled(run, aconfig, peers, place):
    count = max(10, int(200 * place.scale))

    async def main() -> None:
        (server,) = await aside(peers, 1)
        await aside(server.expose, shop.add, "add")
        async with pymq.asyncio.connect(aconfig) as bus:
            add = bus.stub("add", timeout=20)
            calls = [asyncio.ensure_future(add(number, b=1)) for number in range(count)]
            await asyncio.sleep(0)
            for call in calls[::3]:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            for number, result in enumerate(results):
                assert result == number + 1 or (number % 3 == 0 and isinstance(result, asyncio.CancelledError))
            assert await add(1) == 3

    run(main())


def test_a_deadline(run, aconfig, peers):
    async def main() -> None:
        (server,) = await aside(peers, 1)
        await aside(server.expose, shop.hang, "hang")
        async with pymq.asyncio.connect(aconfig) as bus:
            with pytest.raises(pymq.RpcTimeout, match=r"within 0\.2 s"):
                await bus.stub("hang", timeout=0.2)(1)
            assert await aside(server.hear) == ("begun", 1)
            results = await bus.stub("hang", timeout=0.2, multi=True)(2)
            assert [type(result) for result in results] == [pymq.RpcTimeout]
            await aside(server.release)

    run(main())


def test_the_death_of_a_server(run, aconfig, peers, separate):
    async def main() -> None:
        servers = await aside(peers, 2)
        for server in servers:
            await aside(server.expose, shop.hang, "hang")
        async with pymq.asyncio.connect(aconfig) as bus:
            calling = asyncio.ensure_future(_list(bus.stub("hang", multi=True)(1)))
            for server in servers:
                assert await aside(server.hear) == ("begun", 1)
            await aside(servers[0].kill)
            await aside(servers[1].release)
            assert sorted(type(result).__name__ for result in await calling) == ["ServerDied", "int"]
            calling = asyncio.ensure_future(_list(bus.stub("hang", multi=True)(2)))
            assert await aside(servers[1].hear) == ("begun", 2)
            assert await calling == [2]
            await aside(servers[1].kill)
            with pytest.raises((pymq.NoSuchRemoteError, pymq.ServerDied)):  # over a network a death is known later
                await bus.stub("hang")(3)

    run(main())


def test_the_death_of_the_only_server(run, aconfig, peers, separate):
    async def main() -> None:
        (server,) = await aside(peers, 1)
        await aside(server.expose, shop.hang, "hang")
        async with pymq.asyncio.connect(aconfig) as bus:
            calling = asyncio.ensure_future(bus.stub("hang")(1))
            assert await aside(server.hear) == ("begun", 1)
            await aside(server.kill)
            with pytest.raises(pymq.ServerDied):
                await calling

    run(main())


async def _list(results: Any) -> list[Any]:
    return list(await results)


def test_results_as_they_come(run, aconfig, peers):
    async def main() -> None:
        servers = await aside(peers, 2)
        for server in servers:
            await aside(server.expose, shop.hang, "answer")
        async with pymq.asyncio.connect(aconfig) as bus:
            results = bus.stub("answer", multi=True)("x")
            first = asyncio.ensure_future(results.__anext__())
            for server in servers:
                await aside(server.hear)
            assert not first.done()
            await aside(servers[0].release)
            assert await first == "x", "the other has not answered"
            second = asyncio.ensure_future(results.__anext__())
            await asyncio.sleep(0.02)
            assert not second.done()
            await aside(servers[1].release)
            assert await second == "x"
            with pytest.raises(StopAsyncIteration):
                await results.__anext__()
            assert await bus.stub("answer", multi=True)("y") == ["y", "y"]
            assert [result async for result in bus.stub("answer", multi=True)("z")] == ["z", "z"]
            assert await bus.stub("nobody", multi=True)() == []
            assert [response.result for response in await bus.stub("answer", multi=True).rpc("r")] == ["r", "r"]

    run(main())


def test_the_end_of_the_bus_ends_its_calls(run, aconfig, peers):
    async def main() -> None:
        (server,) = await aside(peers, 1)
        await aside(server.expose, shop.hang, "hang")
        bus = pymq.asyncio.connect(aconfig)
        await bus.start()
        calling = asyncio.ensure_future(bus.stub("hang")(1))
        assert await aside(server.hear) == ("begun", 1)
        await bus.shutdown()
        with pytest.raises(pymq.NotInitialized):
            await calling
        await aside(server.release)

    run(main())


def test_where_a_server_is_full_the_wait_is_awaited(run, small, way):
    """Blocking would be noticed; the request is there as soon as there is room, once."""

    async def main() -> None:
        deaf = await aside(Deaf, small, "r/slow")
        try:
            filled = await aside(fill, small, b"x" * 3000)
            async with pymq.asyncio.connect(Threaded(small) if way == "threads" else small) as bus:
                with pytest.raises(pymq.RpcTimeout):
                    await bus.stub("slow", timeout=0.3)("y" * 3000)  # more than the rest of the room
                calling = asyncio.ensure_future(bus.stub("slow", timeout=20)("y" * 3000))
                await asyncio.sleep(0.1)
                read = await aside(deaf.read)
                while read < filled + 1:
                    read += await aside(deaf.read)
                    await asyncio.sleep(0.002)
                calling.cancel()
                await asyncio.wait([calling])
                assert read + await aside(deaf.read) == filled + 1
        finally:
            await aside(deaf.provider.close)

    run(main())


def test_a_call_that_waits_for_a_full_server_does_not_hold_up_the_end_and_ends_with_it(run, small, way, caplog):
    async def main() -> None:
        deaf = await aside(Deaf, small, "r/slow")
        try:
            await aside(fill, small, b"x" * 3000)
            async with pymq.asyncio.connect(Threaded(small) if way == "threads" else small) as bus:
                calling = asyncio.ensure_future(bus.stub("slow")("y" * 3000))
                await asyncio.sleep(0.1)
            with pytest.raises(pymq.NotInitialized):
                await calling
            await until(lambda: not any("send_patiently" in repr(task) for task in asyncio.all_tasks()))
            assert not caplog.records, "it does not send to a provider that is closed"
        finally:
            await aside(deaf.provider.close)

    run(main())


@pytest.mark.parametrize("spin", [0.0, 20.0])
def test_a_loop_goes_round_while_it_awaits_an_answer_as_long_as_a_thread_would_spin(spin, tmp_path):
    config = ShmConfig(home=str(tmp_path / "home"), spin=spin)
    answer = threading.Event()

    async def main() -> int:
        selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
        select, rounds = selector.select, 0

        def counting(timeout: float | None = None) -> Any:
            nonlocal rounds
            rounds += 1
            if rounds > 200:
                answer.set()
            return select(timeout)

        async with pymq.asyncio.connect(config) as bus:
            selector.select = counting
            threading.Timer(0.3, answer.set).start()
            assert await bus.stub("wait", timeout=20)() is True
            return rounds

    with pymq.EventBus(config) as server:
        server.expose(answer.wait, "wait")
        assert (asyncio.run(main()) > 200) == (spin > 0)


def test_a_receive_that_was_about_to_begin_hears_of_a_new_server_all_the_same():
    wakes: list[None] = []

    class Provider:
        def wake(self) -> None:
            wakes.append(None)

    class Port:
        provider = Provider()
        direct = False

        def __init__(self) -> None:
            self.loop = asyncio.get_running_loop()

        def post(self, call: Any) -> None:
            call()

    async def main() -> None:
        inflow = Inflow(Port(), "reply", lambda batch: False)  # type: ignore[arg-type]
        inflow.watch("server")
        await until(lambda: len(wakes) >= 3)
        inflow._known = ["server"]  # what the thread does before it receives
        told = len(wakes)
        await asyncio.sleep(0.2)
        assert len(wakes) <= told + 1

    asyncio.run(main())


def test_a_step_that_is_cancelled_can_be_repeated(run, aconfig):
    async def main() -> None:
        release = asyncio.Event()

        async def slow(number: int) -> int:
            await release.wait()
            return number

        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.expose(slow, "slow")
            results = bus.stub("slow", timeout=20, multi=True)(3)
            first = asyncio.ensure_future(anext(results))
            await until(lambda: results._call._waiting)
            second = asyncio.ensure_future(anext(results))
            first.cancel()
            await asyncio.wait([first])
            release.set()
            assert await second == 3
            with pytest.raises(StopAsyncIteration):
                await anext(results)
            assert await results == [3]

    run(main())


def test_a_first_step_may_be_cancelled_or_made_by_several_tasks(run, aconfig, config):
    async def main() -> None:
        calls: list[str] = []

        async def spell(text: str) -> str:
            calls.append(text)
            return text.upper()

        async with pymq.asyncio.connect(aconfig) as bus, pymq.asyncio.connect(aconfig) as other:
            for server in (bus, other):
                await server.expose(spell, "spell")
            stub = bus.stub("spell", timeout=GUARD, multi=True)
            for text in ("a", "b"):
                results = stub(text)
                cancelled = asyncio.ensure_future(anext(results))
                await asyncio.sleep(0)
                cancelled.cancel()
                await asyncio.wait([cancelled])
                assert await results == [text.upper()] * 2
            results = stub("c")
            assert await asyncio.gather(anext(results), anext(results)) == ["C", "C"]
            assert await results == ["C", "C"]
            refused = stub(object())
            for _ in range(2):
                with pytest.raises(pymq.CodecError):
                    await anext(refused)
        assert sorted(calls) == ["a", "a", "b", "b", "c", "c"]

    run(main())


def upper_case(text: str) -> str:
    return text.upper()


def test_what_is_no_reply_is_ignored(run, aconfig, config):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.expose(upper_case, "upper")
            upper = bus.stub("upper", timeout=20)
            assert await upper("a") == "A"
            for message in (b"", b"1234567", b"123456789"):
                await aside(bus._core.provider.send, bus._core.caller._queue.name, message, timeout=0)
            assert await upper("b") == "B"

    run(main())


def test_a_first_call_that_could_not_be_made_does_not_keep_the_next_ones_from_it(run, aconfig, monkeypatch):
    async def main() -> None:
        async with pymq.asyncio.connect(aconfig) as bus:
            await bus.expose(upper_case, "upper")
            upper, declare = bus.stub("upper", timeout=20), bus._core.provider.declare

            def fail(*args: Any, **options: Any) -> None:
                raise pymq.ProviderError("the server is away")

            monkeypatch.setattr(bus._core.provider, "declare", fail)
            with pytest.raises(pymq.ProviderError):
                await upper("a")
            monkeypatch.setattr(bus._core.provider, "declare", declare)
            assert await upper("a") == "A"

    run(main())


def test_a_reply_that_came_just_before_its_server_went_is_the_result(run, aconfig, config, monkeypatch):
    async def main() -> None:
        server = pymq.EventBus(config)
        await aside(server.start)
        await aside(server.expose, upper_case, "upper")
        async with pymq.asyncio.connect(aconfig) as bus:
            provider, asking, ended = bus._core.provider, threading.Event(), threading.Event()
            receive = provider.receive

            def interrupt(queue: str, timeout: float | None = 0, **how: Any) -> Any:
                if not asking.is_set() or ended.is_set() or queue != bus._core.caller._queue.name:
                    return receive(queue, timeout, **how)
                threading.Thread(target=end, args=[queue]).start()
                while not ended.is_set():
                    pass  # in the loop's thread, perhaps, where a call that blocks is an error
                return []

            def end(queue: str) -> None:
                eventually(lambda: provider.size(queue) > 0)
                server.shutdown()
                ended.set()

            monkeypatch.setattr(provider, "receive", interrupt)
            upper = bus.stub("upper", timeout=GUARD)
            assert await upper("a") == "A"
            asking.set()
            if not bus._core.port.direct:
                await aside(provider.wake)  # the thread's receive began before it could be interrupted
            assert await upper("b") == "B"

    run(main())


def test_a_call_that_begins_while_deaths_are_looked_for_disturbs_nobody(run, config, caplog, monkeypatch, local):
    async def main() -> None:
        async with pymq.asyncio.connect(Threaded(config)) as bus:
            servers = {name: pymq.EventBus(config) for name in ("a", "b")}
            for name, server in servers.items():
                server.start()
                server.expose(upper_case, name)
            assert await bus.stub("a", timeout=GUARD)("x") == "X"
            send, loop, begun = bus._core.provider.send, asyncio.get_running_loop(), []

            def interrupted(queue: str, message: bytes, **how: Any) -> None:
                if not message and not begun:
                    begun.append(asyncio.run_coroutine_threadsafe(bus.stub("b", timeout=GUARD)("y"), loop))
                    eventually(lambda: servers["b"].inbox in bus._core.caller._inflow._watched)
                send(queue, message, **how)

            monkeypatch.setattr(bus._core.provider, "send", interrupted)
            await aside(servers["a"].shutdown)
            assert await asyncio.wrap_future(await until(lambda: begun and begun[0])) == "Y"
            await aside(servers["b"].shutdown)

    run(main())
    assert "changed size" not in caplog.text
