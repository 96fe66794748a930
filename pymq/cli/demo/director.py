"""Starts the programs of the demo, each in a process of its own, and shows what they say."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.text import Text

SECONDS = 9.0
"""The demo is over by then, whatever happens."""

PREFIX = "pymq-demo-"
"""Of the directory in which the programs meet."""

LISTENERS = {"by_class": "cyan", "by_pattern": "blue", "worker": "yellow", "server": "magenta"}
ACTORS = {"publisher": "green", "client": "red"}
METER = {"meter": ""}
SPEED = {"speed": "bold"}
COLOURS = LISTENERS | ACTORS | METER | SPEED


class DemoFailed(Exception):
    """A program ended badly, or the time is up; says which."""


def direct() -> int:
    """The whole demo; its exit status: 0, 1 after a failure, 130 where it was told to end."""
    console = Console(highlight=False)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    for path in stale():
        shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=_memory()) as home:
        try:
            perform(console, home)
        except DemoFailed as failure:
            console.print(f"the demo failed: {failure}", style="bold red", markup=False)
            return 1
        except KeyboardInterrupt:
            return 130
    console.print("every process has ended, and nothing is left behind.")
    console.print(f"the programs, a dozen lines each, are in {Path(__file__).parent}", soft_wrap=True)
    return 0


def stale(memory: str | None = None) -> list[Path]:
    """What demos that were killed have left there: those that are not over yet are younger."""
    found = []
    for path in Path(memory or _memory() or tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            status = path.stat()
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > 10 * SECONDS:
                found.append(path)
    return found


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def perform(console: Console, home: str) -> None:
    """First the shop; then, when it has nothing more to do, the measurements."""
    console.print("six processes, no server between them (Ctrl-C ends the demo)")
    with Cast(console, home, time.monotonic() + SECONDS) as cast:
        cast.enter(LISTENERS | METER)
        cast.until_spoken(LISTENERS)
        cast.enter(ACTORS)
        cast.until_ended(ACTORS)
        console.print("and how fast is this machine?")
        cast.until_spoken(METER)
        cast.enter(SPEED)
        cast.until_ended(SPEED)


class Cast:
    """The programs on stage; whoever is still there at the end of the `with` block is asked to leave, then made to."""

    def __init__(self, console: Console, home: str, deadline: float) -> None:
        self._console = console
        self._environment = os.environ | {"PYMQ_URL": "shm://demo", "PYMQ_HOME": f"{home}/pymq"}
        self._deadline = deadline
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._scenes: list[list[str]] = []
        self._listeners: list[threading.Thread] = []
        self._lines: queue.Queue[tuple[str, str | None]] = queue.Queue()
        self._spoken: set[str] = set()
        self._ended: set[str] = set()

    def __enter__(self) -> Cast:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for roles in reversed(self._scenes):  # a client leaves before its server
            self._dismiss(roles)
        for listener in self._listeners:
            listener.join()
        while not self._lines.empty():
            self._show(*self._lines.get())
        if error is None and (failed := [role for role, process in self._processes.items() if process.returncode]):
            raise DemoFailed(f"{', '.join(failed)} did not end by itself")

    def enter(self, roles: Iterable[str]) -> None:
        """Start these programs; each in a session of its own, so that Ctrl-C reaches the director alone."""
        self._scenes.append([])
        for role in roles:
            command = [sys.executable, "-m", "pymq.cli.demo.stage", role]
            process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            self._processes[role] = process
            self._scenes[-1].append(role)
            self._listeners.append(threading.Thread(target=self._listen, args=(role, process)))
            self._listeners[-1].start()

    def until_spoken(self, roles: Iterable[str]) -> None:
        """A program's first line says that it is ready."""
        while not self._spoken.issuperset(roles):
            self._next()

    def until_ended(self, roles: Iterable[str]) -> None:
        """All that they had to say has been shown."""
        while not self._ended.issuperset(roles):
            self._next()

    def _listen(self, role: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.put((role, line.rstrip()))
        self._lines.put((role, None))

    def _next(self) -> None:
        try:
            role, line = self._lines.get(timeout=max(0.0, self._deadline - time.monotonic()))
        except queue.Empty:
            raise DemoFailed(f"not over after {SECONDS:.0f} s: is this machine very busy?") from None
        self._show(role, line)
        if line is None and (self._processes[role].wait() or role in LISTENERS or role in METER):
            raise DemoFailed(f"{role} ended with status {self._processes[role].returncode}")

    def _show(self, role: str, line: str | None) -> None:
        if line is None:
            self._ended.add(role)
        else:
            self._spoken.add(role)
            if role in METER:  # it is no part of the play
                return
            self._console.print(Text(f"{role:>10}  ", COLOURS[role]) + Text(line), soft_wrap=True)

    def _dismiss(self, roles: Iterable[str]) -> None:
        """The end of its input tells a program to leave; one that has not left a second later is killed."""
        processes = [self._processes[role] for role in roles]
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
