"""Ends while a handler hangs (argv: how), and prints when it began to."""

import contextlib
import sys
import threading
import time

import pymq

begun = threading.Event()


def hang(value: int) -> None:
    begun.set()
    threading.Event().wait()


async def hang_in_the_loop(value: int) -> None:
    hang(value)


def call() -> None:
    with contextlib.suppress(pymq.PymqError):
        pymq.stub("hang")(1)


def main(how: str) -> None:
    pymq.init()
    pymq.subscribe(hang_in_the_loop if how == "async" else hang, "c")
    if how == "remote":
        pymq.expose(hang, "hang")
        threading.Thread(target=call, daemon=True).start()
    pymq.publish(1, "c")
    assert begun.wait(10)
    print(time.monotonic(), flush=True)
    if how == "error":
        raise SystemExit("ended by an error")


if __name__ == "__main__":
    main(sys.argv[1])
