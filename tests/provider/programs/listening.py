"""A program that only listens."""

import pymq


@pymq.subscriber("c")
def on_value(value: object) -> None:
    print("got", value, flush=True)


pymq.init()
try:
    print("ready", flush=True)
    pymq.wait()
except KeyboardInterrupt:
    print("interrupted", flush=True)
