"""Every Python block of README.md and docs/*.md runs.

The blocks of a page are one program: they run in order, in one namespace, in a process of their own with a fresh home. A comment on
the line before a block says otherwise:

* ``<!-- terminal: listen.py -->``: a program of its own. They start in the order of the page, each when the one before has ended or
  has come to `pymq.wait()`, and before the page's other blocks; at the end they get what Ctrl-C sends.
* ``<!-- prints: listen.py -->``: before a ```text block: that program prints these lines.
* ``<!-- not run: reason -->``: only compiled.
"""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "providers").glob("*.md"))]
PATIENCE = 30

BLOCK = re.compile(r"^(?:<!-- (?P<word>[a-z ]+): (?P<argument>.+?) -->\n)?```(?P<language>\w+)\n(?P<source>.*?)^```$", re.M | re.S)

STARTER = """
import pymq, runpy, sys
wait = pymq.wait
def announced_wait(*args, **options):
    print("waiting", flush=True)
    return wait(*args, **options)
pymq.wait = announced_wait
runpy.run_path(sys.argv[1], run_name="__main__")
"""


class Block(NamedTuple):
    """A fenced block of a page, with the line on which its source begins."""

    line: int
    word: str | None
    argument: str | None
    language: str
    source: str

    def padded(self) -> str:
        """At its place in the page, so that a traceback shows the page's line."""
        return "\n" * (self.line - 1) + self.source


def blocks_of(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    return [Block(page.count("\n", 0, found.start("source")) + 1, *found.groups()) for found in BLOCK.finditer(page)]


class Terminal:
    """A program that runs until it ends or is interrupted; `with` makes sure of it."""

    def __init__(self, path: Path, environment: dict[str, str]) -> None:
        self.source = path.read_text()
        command = [sys.executable, "-c", STARTER, str(path)]
        self.process = subprocess.Popen(
            command,
            cwd=path.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.printed: list[str] = []
        self._ended = False
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def until(self, line: str) -> None:
        """It has printed that line, or has ended."""
        while line not in self.printed and not self._ended:
            try:
                found = self._lines.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"{self.process.args} printed {self.printed}, not {line!r}") from None
            if found is None:
                self._ended = True
            else:
                self.printed.append(found)

    def interrupt(self) -> None:
        """As Ctrl-C; a program that has ended already has ended well."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            status = self.process.wait(PATIENCE)
            self.until("the end of what it prints")
            if "KeyboardInterrupt" in self.source or "SIGINT" in self.source:  # one that shows how to end
                assert (status, "Traceback" in "".join(self.printed)) == (0, False), self.printed
            assert status in (0, 1, -signal.SIGINT), self.printed
        else:
            assert self.process.returncode == 0, self.printed


def run_page(text: str, directory: Path) -> None:
    """Run all blocks of a page as the module's docstring says. Raises AssertionError with what was printed."""
    environment = environment_of(directory)
    blocks = blocks_of(text)
    with ExitStack() as stack:
        terminals: dict[str, Terminal] = {}
        for block in blocks:
            if block.word == "terminal":
                path = directory / str(block.argument)
                path.write_text(block.source)
                terminals[path.name] = stack.enter_context(Terminal(path, environment))
                terminals[path.name].until("waiting")
        run_blocks([block for block in blocks if block.language == "python" and block.word is None], directory, environment)
        for block in blocks:
            if block.word == "prints":
                check_printed(terminals[str(block.argument)], block.source.splitlines())
        for terminal in terminals.values():
            terminal.interrupt()


def environment_of(directory: Path) -> dict[str, str]:
    """That of programs which meet in this directory and nowhere else."""
    environment = os.environ | {"PYMQ_HOME": str(directory / "home"), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environment.pop("PYMQ_URL", None)
    return environment


def run_blocks(blocks: list[Block], directory: Path, environment: dict[str, str]) -> None:
    """The page's own program."""
    lines: list[str] = []
    for block in blocks:
        lines += [""] * (block.line - 1 - len(lines)) + block.source.splitlines()
    program = directory / "page.py"
    program.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr


def check_printed(terminal: Terminal, expected: list[str]) -> None:
    """All these lines, in any order, among others."""
    for line in expected:
        terminal.until(line)
        assert line in terminal.printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_runs(page: Path, tmp_path: Path) -> None:
    run_page(page.read_text(), tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_not_run_is_python(page: Path) -> None:
    for block in blocks_of(page.read_text()):
        if block.language == "python":
            compile(block.padded(), page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_escapes(page: Path) -> None:
    text = page.read_text()
    assert text.count("```") == 2 * len(blocks_of(text)), "a fence that blocks_of does not see"
    assert {block.word for block in blocks_of(text)} <= {None, "terminal", "prints", "not run"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_service_of_the_docs_finishes_what_it_has_begun(number: signal.Signals, tmp_path: Path) -> None:
    (source,) = [block.source for block in blocks_of((ROOT / "docs" / "start.md").read_text()) if block.argument == "service.py"]
    (tmp_path / "service.py").write_text(source)
    environment = environment_of(tmp_path)
    with Terminal(tmp_path / "service.py", environment) as service:
        service.until("waiting")
        publish = "import pymq; pymq.init(); print([pymq.publish(n, 'work') for n in (1, 2)]); pymq.shutdown()"
        done = subprocess.run([sys.executable, "-c", publish], env=environment, capture_output=True, text=True, check=False)
        assert done.stdout == "[1, 1]\n", done.stderr
        service.until("begins 1")
        service.process.send_signal(number)
        assert service.process.wait(PATIENCE) == 0
        service.until("the end of what it prints")
        assert service.printed == ["waiting", "begins 1", "ends 1"]


def test_a_wrong_block_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r'page\.py", line 3'):
        run_page("# page\n```python\n1 / 0\n```\n", tmp_path)


def test_a_missing_line_fails(tmp_path: Path) -> None:
    page = "<!-- terminal: a.py -->\n```python\nprint('one')\n```\n<!-- prints: a.py -->\n```text\ntwo\n```\n"
    with pytest.raises(AssertionError):
        run_page(page, tmp_path)


def test_readme_has_exactly_two_set_up_commands() -> None:
    commands = [block.source for block in blocks_of((ROOT / "README.md").read_text()) if block.language == "sh"]
    assert len(commands) == 2
    assert all(command.count("\n") == 1 and command.startswith("python3 -m venv .venv && ") for command in commands)
    assert "'.[cli]' && .venv/bin/pymq demo" in commands[0]
    assert "'.[test]' && .venv/bin/python -m pytest" in commands[1]


def test_nothing_is_installed_by_its_name_from_an_index() -> None:
    for page in PAGES:
        assert not re.search(r"pip3? install (-U |--upgrade )?['\"]?pymq", page.read_text()), page
