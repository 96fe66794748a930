"""ipc under limits, as a user without privileges where it can become one: each scenario is a function, run by its name."""

import os
import queue
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack

import pymq
from pymq.provider.ipc import IpcConfig

NOBODY = 1_000_000 + os.getpid()
"""A user of whom nothing else counts; without root, what this user has counts as well."""
ONE_QUEUE = 11_200
BUSES = 20


def crowd(home: str) -> None:
    """So many processes at once, each with a bus that hears and serves."""
    limit(819_200)  # what a user has by default
    gate, opened = os.pipe()
    ready = [begun(lambda end: take_part(home, end, gate)) for _ in range(BUSES)]
    children = [child for child, _ in ready]
    assert {os.read(end, 1) for _, end in ready} == {b"!"}
    with pymq.EventBus(IpcConfig(home=home)) as bus:
        print(bus.publish("hello", "crowd"))
        heard = bus.queue("heard")
        print({heard.get(timeout=30) for _ in children} == set(children))
        print(set(bus.stub("who", multi=True, timeout=30)()) == set(children))
        os.write(opened, b"!" * BUSES)
        print({os.waitpid(child, 0)[1] for child in children})


def take_part(home: str, end: int, gate: int) -> None:
    with pymq.EventBus(IpcConfig(home=home)) as bus:
        bus.subscribe(lambda event: bus.queue("heard").put(os.getpid()), "crowd")
        bus.expose(os.getpid, "who")
        os.write(end, b"!")
        os.read(gate, 1)


def one_too_many(home: str) -> None:
    """The third bus finds no room; the first two are none the worse, and when one ends there is room again."""
    limit(2 * ONE_QUEUE)
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(pymq.EventBus(IpcConfig(home=home))) for _ in range(3))
        heard = hearing(first), hearing(second)
        try:
            hearing(third)
        except pymq.ProviderError as error:
            print(error)
        print(third.publish("still", "news"), [each.get(timeout=10) for each in heard])
        second.shutdown()
        print([bus.publish("gone", "news") for bus in (first, third)])  # each who has sent to it lets go of it
        hearing(third)
        print(first.publish("again", "news"))


def come_and_go(home: str) -> None:
    """Many subscribers, one after the other, of which half are killed: nobody keeps what the kernel held for them."""
    limit(2 * ONE_QUEUE)
    with pymq.EventBus(IpcConfig(home=home)) as publisher:
        for _ in range(6):
            with pymq.EventBus(IpcConfig(home=home)) as subscriber:
                heard = hearing(subscriber)
                assert publisher.publish("hello", "news") == 1
                assert heard.get(timeout=10) == "hello"
            child, end = begun(lambda end: hear_until_killed(home, end))
            assert os.read(end, 1) == b"!"
            os.close(end)
            assert publisher.publish("hello", "news") == 1
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert publisher.publish("hello?", "news") == 0
    print("done")


def hear_until_killed(home: str, end: int) -> None:
    with pymq.EventBus(IpcConfig(home=home)) as bus:
        hearing(bus)
        os.write(end, b"!")
        signal.pause()


def forked_child_holds_nothing(home: str) -> None:
    limit(ONE_QUEUE)
    gate, opened = os.pipe()
    with pymq.EventBus(IpcConfig(home=home)) as bus:
        hearing(bus)
        child = fork(lambda: os.read(gate, 1) and None)
    with pymq.EventBus(IpcConfig(home=home)) as bus:
        hearing(bus)
        print(bus.publish("hello", "news"))
    os.write(opened, b"!")
    print(os.waitpid(child, 0)[1])


def hearing(bus: pymq.EventBus) -> "queue.Queue[str]":
    heard: queue.Queue[str] = queue.Queue()
    bus.subscribe(heard.put, "news")
    return heard


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (size, size))


def begun(work: Callable[[int], None]) -> tuple[int, int]:
    """A forked child, and where it writes that it is ready."""
    ready, end = os.pipe()
    child = fork(lambda: work(end))
    os.close(end)
    return child, ready


def fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def load_everything() -> None:
    """While the files of the interpreter can still be read."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as home, pymq.EventBus(IpcConfig(home=f"{home}/pymq")) as bus:
        bus.expose(os.getpid, "who")
        assert bus.stub("who", multi=True, timeout=10)() == [os.getpid()]
        bus.queue("heard").put("loaded")
        bus.queue("heard").free()


def main() -> None:
    load_everything()
    home = tempfile.mkdtemp(prefix="pymq-test-", dir="/dev/shm")
    if os.geteuid() == 0:
        os.chown(home, NOBODY, NOBODY)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    try:
        globals()[sys.argv[1]](f"{home}/pymq")
        print(os.listdir(home))
    finally:
        shutil.rmtree(home)


main()
