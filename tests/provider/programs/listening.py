"""A program that only listens."""

import pymq


@pymq.subscriber("c")
def on_value(value: object) -> None:
    print("got", value, flush=True)


pymq.init()
print("ready", flush=True)
try:
    pymq.wait()
except KeyboardInterrupt:
    print("interrupted", flush=True)
