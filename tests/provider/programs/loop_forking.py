"""What a child that is forked in a loop can do with the bus it inherits, and how it can end: the parent does not notice."""

import asyncio
import atexit
import gc
import os
import traceback
from collections.abc import Awaitable, Callable

import pymq.asyncio

bus = pymq.asyncio.connect()
heard: "list[tuple[int, str]]" = []
full: "list[pymq.asyncio.Queue[str]]" = []


@bus.subscriber("plain")
def on_plain(value: str) -> None:
    heard.append((os.getpid(), value))


@bus.subscriber("grouped", group="g")
async def on_grouped(value: str) -> None:
    heard.append((os.getpid(), value))


@bus.remote("pid")
def pid() -> int:
    return os.getpid()


async def child_does_nothing() -> None: ...


async def child_publishes() -> None:
    assert await bus.publish("published", "plain") in (1, None)
    await bus.queue("jobs").put("put")
    assert await bus.queue("jobs").get(timeout=10) == "put"
    assert await bus.stub(pid, timeout=10)() == os.getppid()
    await asyncio.sleep(0.05)
    assert not heard, "an inherited bus owns no subscription"


async def child_waits_for_room_first() -> None:
    putting = asyncio.ensure_future(full[0].put("more"))
    for _ in range(3):
        await asyncio.sleep(0.05)  # it looks for room meanwhile
        assert await bus.stub(pid, timeout=10)() == os.getppid()
    assert await full[0].get() == "all there is room for"
    await putting
    assert await full[0].get() == "more"


async def child_forks() -> None:
    assert await fork(child_of_the_child) == 0


async def child_of_the_child() -> None:
    await bus.queue("jobs").put("put")
    assert await bus.queue("jobs").get(timeout=10) == "put"


async def child_shuts_down() -> None:
    await bus.shutdown()


async def child_begins_anew() -> None:
    async with pymq.asyncio.connect() as own:
        assert await own.publish("published", "plain") in (1, None)
        assert await own.stub(pid, timeout=10)() == os.getppid()


async def fork(work: Callable[[], Awaitable[None]]) -> int:
    """The exit code of a child that did that, and then what is done at an exit."""
    child = os.fork()
    if not child:
        heard.clear()
        code = 1
        try:
            asyncio.run(work())  # type: ignore[arg-type]
            gc.collect()
            atexit._run_exitfuncs()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # to return would go on with the parent's loop
    return os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, child, 0))[1])


async def until(*values: str) -> None:
    while not {(os.getpid(), value) for value in values} <= set(heard):
        await asyncio.sleep(0.002)


async def main() -> None:
    async with bus, bus.events("plain") as events:
        getting = asyncio.ensure_future(bus.queue("later").get())
        assert await bus.stub(pid, timeout=10)() == os.getpid()
        full.append(bus.queue("full", maxsize=1))
        await full[0].put("all there is room for")
        for work in (child_does_nothing, child_publishes, child_waits_for_room_first, child_forks, child_shuts_down, child_begins_anew):
            print(work.__name__, await fork(work), flush=True)
            heard.clear()
            for channel in ("plain", "grouped"):
                assert await bus.publish(f"{channel} after {work.__name__}", channel) in (1, None)
            await asyncio.wait_for(until(f"plain after {work.__name__}", f"grouped after {work.__name__}"), 10)
            assert await bus.stub(pid, timeout=10)() == os.getpid()
        assert (await events.__anext__())[0] == "plain after child_does_nothing"
        await bus.queue("later").put("later")
        print(await asyncio.wait_for(getting, 10))
        await bus.group("g").delete()


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    asyncio.run(main())
