"""Programs of `examples/`, each started as a person would: in its own directory, in a process of its own."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
GUARD = 30.0


class Started:
    """One of them. A `with` block ends with it."""

    def __init__(self, program: str, *args: str, env: dict[str, str]) -> None:
        path = EXAMPLES / program
        self.printed: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.process = subprocess.Popen(
            [sys.executable, path.name, *args],
            cwd=path.parent,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                "COLUMNS": "100",
                **env,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="harness", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def hear(self, text: str) -> str:
        """The next line that contains this."""
        while True:
            try:
                line = self._lines.get(timeout=GUARD)
            except queue.Empty:
                raise AssertionError(f"{self.process.args} printed {self.printed}, and no {text!r}") from None
            assert line is not None, f"{self.process.args} has ended without {text!r}: {self.printed}"
            self.printed.append(line)
            if text in line:
                return line

    def say(self, line: str) -> None:
        """On its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end(self) -> list[str]:
        """What else it prints until it has ended by itself, and well."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        status = self.process.wait(GUARD)
        rest = list(iter(lambda: self._lines.get(timeout=GUARD), None))
        assert status == 0, (status, self.printed, rest)
        return rest

    def interrupt(self) -> list[str]:
        """As Ctrl-C does."""
        self.process.send_signal(2)
        return self.end()

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
