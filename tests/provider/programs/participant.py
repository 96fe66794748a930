"""What a participant of a behaviour test is, in this process or in its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pymq


class Participant:
    """A bus, a way to tell the test something, a gate for handlers that must wait, and what was made so far."""

    bus: pymq.EventBus

    def __init__(self, say: Callable[[Any], None]) -> None:
        self.say = say
        self.gate = threading.Event()
        self.made: dict[Any, Any] = {}

    def open(self, config: Any) -> None:
        self.gate.clear()
        self.made.clear()
        self.bus = pymq.EventBus(config)
        self.bus.start()

    def close(self) -> None:
        self.gate.set()
        self.bus.shutdown()


class verbs:
    """What every participant can be asked to do."""

    @staticmethod
    def open(me: Participant, config: Any) -> None:
        me.open(config)

    @staticmethod
    def close(me: Participant) -> None:
        me.close()

    @staticmethod
    def publish(me: Participant, *args: Any, **kwargs: Any) -> int | None:
        return me.bus.publish(*args, **kwargs)

    @staticmethod
    def subscribe(me: Participant, make_handler: Callable[[Participant], Any], *args: Any, **kwargs: Any) -> None:
        handler = me.made[make_handler] = make_handler(me)
        me.bus.subscribe(handler, *args, **kwargs)

    @staticmethod
    def unsubscribe(me: Participant, make_handler: Callable[[Participant], Any], *args: Any, **kwargs: Any) -> None:
        me.bus.unsubscribe(me.made[make_handler], *args, **kwargs)

    @staticmethod
    def expose(me: Participant, make_remote: Callable[[Participant], Any], *args: Any, **kwargs: Any) -> None:
        remote = me.made[make_remote] = make_remote(me)
        me.bus.expose(remote, *args, **kwargs)

    @staticmethod
    def queue(me: Participant, name: str, verb: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(me.bus.queue(name), verb)(*args, **kwargs)

    @staticmethod
    def release(me: Participant) -> None:
        me.gate.set()


def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """The function's result or error, from a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="harness", daemon=True).start()
    return future
