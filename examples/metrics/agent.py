"""Tells about the process and the machine that it runs in, to whoever asks: `python agent.py NAME`, as often as you like."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass

import pymq

REMOTE = "metrics"


@pymq.event  # a process that imports this class takes it as itself, also where no hint names it
@dataclass
class Metrics:
    """What an agent answers."""

    name: str
    pid: int
    load: float
    megabytes: float
    uptime: float


def main(name: str) -> None:
    """Serve until Ctrl-C."""
    began = time.monotonic()

    @pymq.remote(REMOTE)
    def metrics() -> Metrics:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return Metrics(name, os.getpid(), os.getloadavg()[0], used, time.monotonic() - began)

    with pymq.init():
        print(f"{name} answers")
        try:
            pymq.wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
