"""A table of all agents, once a second: `python watch.py [TIMES]`. Needs rich, which the extra `cli` brings."""

from __future__ import annotations

import itertools
import sys
import time

from agent import REMOTE, Metrics
from rich.live import Live
from rich.table import Table

import pymq


def table(answers: list[Metrics | pymq.RemoteInvocationError]) -> Table:
    """A row for each agent; one that did not answer in time, or died while it was asked, is an error in the list."""
    found = Table("agent", "pid", "load", "memory", "up")
    for each in sorted((each for each in answers if isinstance(each, Metrics)), key=lambda each: each.name):
        found.add_row(each.name, str(each.pid), f"{each.load:.2f}", f"{each.megabytes:.0f} MiB", f"{each.uptime:.0f} s")
    found.caption = f"{sum(isinstance(each, Exception) for each in answers)} did not answer"
    return found


def main(times: str = "") -> None:
    """Ask everybody who is there at that moment; who comes or goes needs to tell nobody."""
    ask = pymq.stub(REMOTE, timeout=0.5, multi=True)
    with Live(table(ask())) as live:
        for turn in itertools.count(1):
            live.update(table(ask()), refresh=True)
            if times and turn == int(times):
                return
            time.sleep(1)


if __name__ == "__main__":
    with pymq.init():
        try:
            main(*sys.argv[1:])
        except KeyboardInterrupt:
            pass
