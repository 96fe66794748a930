"""Counts the words of texts until it is ended; start as many as you like. `python worker.py 10` takes ten seconds for each."""

from __future__ import annotations

import sys
import time

from texts import Counted, Text

import pymq


def count(text: Text) -> Counted:
    """Fails for a text without words; see the README for what happens then."""
    words = text.text.split()
    return Counted(text.number, len(words), sum(map(len, words)) / len(words))


def main(seconds: float = 0) -> None:
    """One text after the other. A text is forgotten only when its block has ended well, which is after the result was published."""
    queue = pymq.queue("texts", type=Text, backoff=0.2)  # six attempts in about six seconds
    print("ready")
    while True:
        try:
            with queue.take() as job:
                print(f"text {job.value.number}, attempt {job.attempt}")
                time.sleep(seconds)
                if "\0" in job.value.text:
                    raise pymq.Reject("not a text: there is a NUL in it")
                pymq.publish(count(job.value))
        except Exception as error:  # the queue has it again, or its dead letters have; on to the next
            print(f"failed: {error!r}")


if __name__ == "__main__":
    with pymq.init():
        try:
            main(*map(float, sys.argv[1:]))
        except KeyboardInterrupt:
            pass
