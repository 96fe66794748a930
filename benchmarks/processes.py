"""Really separate processes, each a generator that is asked one question at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeAlias

PATIENCE = 60.0
"""Seconds after which a process that does not answer is an error: a message was lost, or something hangs."""

Program: TypeAlias = "Generator[Any, Any, None]"
"""What a process runs: its first `yield` says that it is ready, each later one answers a question (`yield` returns the next)."""

_spawn = multiprocessing.get_context("spawn")


class Child:
    """A fresh interpreter that runs one program, pinned to one processor where asked; use it as a context manager."""

    def __init__(self, program: Callable[..., Program], *args: object, processor: int | None = None) -> None:
        self._line, theirs = _spawn.Pipe()
        self._process = _spawn.Process(target=_serve, args=(theirs, processor, program, args), daemon=True)
        self._process.start()
        theirs.close()
        self.pid = self._process.pid
        self._name = program.__name__

    def __enter__(self) -> Child:
        self._answer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._line.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def ask(self, question: object = None) -> Any:
        """The program's answer; `tell` and `hear` in one."""
        self.tell(question)
        return self.hear()

    def tell(self, question: object = None) -> None:
        """Let the program go on."""
        self._line.send(question)

    def hear(self) -> Any:
        """What it answers. Raises RuntimeError when it fails, or does not answer in time."""
        return self._answer()

    def _answer(self) -> Any:
        if not self._line.poll(PATIENCE):
            raise RuntimeError(f"{self._name} did not answer within {PATIENCE:.0f} s: a message is lost, or it hangs")
        try:
            answer = self._line.recv()
        except EOFError:
            raise RuntimeError(f"{self._name} ended before it answered") from None
        if isinstance(answer, Exception):
            raise RuntimeError(f"{self._name}: {type(answer).__name__}: {answer}")
        return answer


def _serve(line: Connection, processor: int | None, program: Callable[..., Program], args: tuple[object, ...]) -> None:
    """The child's main: ask the program what the parent asks, until the parent closes the line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it then closes the line
    if processor is not None:
        os.sched_setaffinity(0, {processor})  # before the bus starts threads: they inherit it
    running = program(*args)
    with suppress(EOFError, BrokenPipeError):
        try:
            line.send(next(running))
            while True:
                line.send(running.send(line.recv()))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:
            line.send(RuntimeError(f"{type(error).__name__}: {error}"))
    running.close()
