"""The far end of `speed`: counts ticks, and echoes what it is called with."""

from __future__ import annotations

import time

import pymq
from pymq.cli.demo.shop import Counted, Tick
from pymq.cli.demo.speed import TICKS

seen: int = 0


@pymq.subscriber
def on_tick(tick: Tick) -> None:
    """Counts them itself: a number inside the last one would not show a loss."""
    global seen
    seen += 1
    if seen == TICKS:
        pymq.publish(Counted(seen, time.monotonic()))


@pymq.remote("echo")
def echo(tick: Tick) -> Tick:
    """The shortest remote function there is."""
    return tick


if __name__ == "__main__":
    pymq.init()
    print("is ready")
    pymq.wait()
