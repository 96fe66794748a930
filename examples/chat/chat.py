"""A chat between terminals: `python chat.py NAME [ROOM]`, once in each."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pymq


@dataclass
class Line:
    """What somebody has said."""

    author: str
    text: str


def main(name: str, room: str = "lobby") -> None:
    """Join the room; say each line of the standard input; leave at its end."""

    @pymq.subscriber(f"chat/{room}")
    def show(line: Line) -> None:
        if line.author != name:
            print(f"{line.author}: {line.text}")

    @pymq.remote(f"chat/{room}/who")
    def who() -> str:
        return name

    with pymq.init():
        print(f"{name} is in {room}; /who lists everybody, Ctrl-D leaves")
        pymq.publish(Line(name, "(has come)"), f"chat/{room}")
        for text in map(str.strip, sys.stdin):
            if text == "/who":
                print("here are", ", ".join(sorted(pymq.stub(f"chat/{room}/who", timeout=1, multi=True)())))
            elif pymq.publish(Line(name, text), f"chat/{room}") == 1:
                print("(nobody else is here)")
        pymq.publish(Line(name, "(has gone)"), f"chat/{room}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        pass
