"""Listens to all channels whose name matches a pattern."""

from __future__ import annotations

import pymq


@pymq.subscriber("sensors/*", pattern=True)
def on_reading(value: float, message: pymq.Message) -> None:
    """The second parameter tells where a value came from."""
    print(f"reads {value} from {message.channel}")


if __name__ == "__main__":
    pymq.init()
    print("listens to sensors/*")
    pymq.wait()
