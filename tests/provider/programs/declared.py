"""Declarations at module level, which every `init` applies, and in a function, which belong to one bus."""

import queue
from dataclasses import dataclass

import pymq


@dataclass
class Ping:
    number: int


heard: "queue.Queue[tuple[str, int]]" = queue.Queue()


@pymq.subscriber
def on_ping(event: Ping) -> None:
    heard.put(("module", event.number))


@pymq.subscriber
def on_ping_again(event: Ping) -> None:
    heard.put(("replaced", event.number))


@pymq.subscriber
def on_ping_again(event: Ping) -> None:  # noqa: F811
    heard.put(("anew", event.number))


@pymq.subscriber("pings/*", pattern=True)
def on_channel(number: int, message: pymq.Message) -> None:
    heard.put((message.channel, number))


@pymq.remote("negative")
def negate(number: int) -> int:
    return -number


def declare_locally() -> None:
    @pymq.subscriber
    def on_ping_locally(event: Ping) -> None:
        heard.put(("function", event.number))

    @pymq.remote("doubled")
    def double(number: int) -> int:
        return number * 2


def round_trip(number: int, expected: int) -> None:
    pymq.publish(Ping(number))
    pymq.publish(number, "pings/7")
    print(sorted(heard.get(timeout=10) for _ in range(expected)))
    print(pymq.stub("negative", timeout=10)(number))
    try:
        print(pymq.stub("doubled", timeout=10)(number))
    except pymq.NoSuchRemoteError:
        print("nobody doubles")


if __name__ == "__main__":
    declare_locally()
    for number in (1, 2):
        pymq.init()
        round_trip(number, 4 if number == 1 else 3)
        pymq.shutdown()
    pymq.unsubscribe(on_ping)
    with pymq.init():
        round_trip(3, 2)
    print(heard.qsize())
