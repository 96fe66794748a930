"""Runs one program of the demo as if it had been started by hand, and ends it, as Ctrl-C would, when the director is gone."""

from __future__ import annotations

import io
import os
import runpy
import signal
import sys
import threading
from contextlib import suppress
from typing import cast


def run(role: str) -> None:
    """Line by line to the director; standard input is the rope that holds us: it ends with him, however he ends."""
    with suppress(KeyboardInterrupt):
        cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would inherit "ignore"
        threading.Thread(target=_interrupt_at_end_of_input, daemon=True).start()
        runpy.run_module(f"pymq.cli.demo.{role}", run_name="__main__", alter_sys=True)


def _interrupt_at_end_of_input() -> None:
    os.read(0, 1)  # not sys.stdin: its lock, held here, would abort the interpreter at exit
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


if __name__ == "__main__":
    run(sys.argv[1])
