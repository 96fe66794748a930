"""signalled.py how: subscribes in ways that a signal meets differently, and says what it did."""

import asyncio
import os
import signal
import sys
import threading
import time
import warnings
from types import FrameType

from pymq.pubsub import Channel, Message, fetch, publish, subscribe


def say(*words: object) -> None:
    print(*words, flush=True)


def own(number: int, frame: "FrameType | None") -> None:
    say("own handler", signal.Signals(number).name)


def idle() -> None:
    """Nothing comes but what says that it listens."""
    with Channel(topic="a") as channel:
        publish("a", b"ready")
        say(subscribe(channel, lambda message: say(message.content.decode())))


def idle_with_handlers() -> None:
    """The same, in a program that has handlers of its own."""
    before = [signal.signal(number, own) for number in (signal.SIGTERM, signal.SIGINT)]
    idle()
    say([signal.getsignal(number) is own for number in (signal.SIGTERM, signal.SIGINT)])
    assert own not in before


def in_a_loop() -> None:
    """An event loop has handlers of its own, of which it hears through a descriptor."""

    async def main() -> None:
        loop, came = asyncio.get_running_loop(), asyncio.Queue()
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, came.put_nowait, number.name)
        with Channel(topic="a") as channel:
            publish("a", b"ready")
            say(subscribe(channel, lambda message: say(message.content.decode())))
        say(sorted([await came.get(), await came.get()]))  # which was first is for the kernel to choose

    asyncio.run(main())


def handling() -> None:
    """A callback runs: it is finished, and the next message stays."""

    def callback(message: Message) -> None:
        say("ready")
        sys.stdin.readline()
        say("finished", message.content)

    with Channel(topic="a") as channel:
        publish("a", b"1")
        publish("a", b"2")
        say(subscribe(channel, callback))
        say(fetch(channel).content)


def nested() -> None:
    """A callback subscribes to something else: both end."""
    with Channel(topic="a") as outer, Channel(topic="b") as inner:
        publish("a", b"1")

        def callback(message: Message) -> None:
            publish("b", b"ready")
            say("inner", subscribe(inner, lambda message: say(message.content.decode())))

        say("outer", subscribe(outer, callback))


def in_thread() -> None:
    """Another thread subscribes: the signal is the program's."""
    came = []

    def on_signal(number: int, frame: "FrameType | None") -> None:
        own(number, frame)
        came.append(number)

    signal.signal(signal.SIGTERM, on_signal)
    with Channel(topic="a") as channel:
        thread = threading.Thread(target=lambda: say("thread", subscribe(channel, say)))
        thread.start()
        threading.Thread(target=say, args=["ready"]).start()  # a handler must not print in the middle of that
        while not came:  # signal.pause() would miss one that comes before it
            time.sleep(0.01)
        channel.close()
        thread.join()


def forked() -> None:
    """A callback forks a child: a signal ends that as any other process."""

    def callback(message: Message) -> None:
        reader, writer = os.pipe()
        warnings.filterwarnings("ignore", ".*multi-threaded.*")  # Python 3.12: subscribe has a thread that sleeps
        child = os.fork()
        if not child:
            os.write(writer, b"!")
            signal.pause()
        os.read(reader, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        say("child ended by", signal.Signals(os.WTERMSIG(status)).name)

    with Channel(topic="a") as channel:
        publish("a", b"1")
        say("ready")
        say(subscribe(channel, callback, timeout_seconds=0.2))


def returned() -> None:
    """A callback forks a child that comes out of `subscribe`: the parent's is ended by its own signal only."""

    def callback(message: Message) -> None:
        nonlocal child, status
        if message.content:
            say("ready")
            return
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            publish("a", b"ready")

    child, status = 1, -1
    warnings.filterwarnings("ignore", ".*multi-threaded.*")
    with Channel(topic="a") as channel:
        publish("a", b"")
        say(subscribe(channel, callback))
    if not child:
        os._exit(signal.set_wakeup_fd(-1) != -1)
    say("child", status)


def many() -> None:
    """Subscribes again and again: whenever the signal comes, the program's own handler is called, once."""
    came: list[int] = []
    with Channel(topic="a") as channel:
        signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
        say("ready")
        while not came:
            subscribe(channel, say, timeout_seconds=0.0005)
    say(came == [signal.SIGTERM])


globals()[sys.argv[1]]()
say(signal.set_wakeup_fd(-1))
