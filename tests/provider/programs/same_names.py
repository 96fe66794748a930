"""Handlers that share a name: each class, each object and each channel has its own; the same one again takes the former's place."""

import time

import pymq

heard = []


class First:
    pass


class Second:
    pass


@pymq.subscriber
def handle(event: First):
    heard.append("first")


@pymq.subscriber
def handle(event: Second):  # noqa: F811
    heard.append("second")


@pymq.subscriber("again")
def again(value):
    heard.append("never")


@pymq.subscriber("again")
def again(value):  # noqa: F811
    heard.append("again")


class Listener:
    def __init__(self, name):
        self.name = name
        pymq.subscriber("objects")(self.on)

    def on(self, value):
        heard.append((self.name, value))


one, two = Listener("one"), Listener("two")


def settled(count):
    deadline = time.monotonic() + 20
    while len(heard) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    found, heard[:] = sorted(heard, key=str), []
    return found


with pymq.init():
    print(pymq.publish(First()), pymq.publish(Second()))
    pymq.publish(3, "objects")
    pymq.publish(0, "again")
    print(settled(5))
with pymq.init():
    pymq.publish(0, "again")
    print(settled(1))
