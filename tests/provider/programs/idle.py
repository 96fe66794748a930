"""A bus with everything that waits: subscriptions of every kind, remotes, a group, a blocked get. Ends when it gets an item."""

import threading

import pymq


def ignore(value: int) -> None: ...


async def ignore_async(value: int) -> None: ...


with pymq.init() as bus:
    for number in range(6):
        bus.subscribe(ignore, f"channel {number}")
    bus.subscribe(ignore, "channel *", pattern=True)
    bus.subscribe(ignore_async, "channel 1")
    bus.subscribe(ignore, "channel 2", workers=2)
    bus.subscribe(ignore, "channel 3", group="idle")
    for name in ("one", "two", "three"):
        bus.expose(ignore, name)
    for number in range(6):
        bus.publish(1, f"channel {number}")
    bus.stub("one", timeout=10)(1)
    threading.Timer(0.5, lambda: print("ready", flush=True)).start()  # the standby has gone to sleep by then
    bus.queue("end").get()
    bus.queue("end").free()
    bus.group("idle").delete()
