"""What docs/fork.md says of servers that fork their workers, with gunicorn."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import eventually
from started import ROOT
from test_readme import blocks_of

APPLICATION = """
import json, os, pymq

@pymq.remote("who")
def who() -> int:
    return os.getpid()

pymq.init()

def application(environ, start):
    start("200 OK", [])
    serving = pymq.stub("who", timeout=20, multi=True)()
    return [json.dumps({"self": os.getpid(), "parent": os.getppid(), "serving": serving}).encode()]
"""
WORKERS = 2


@contextmanager
def gunicorn(directory: Path, *options: str, config: str = "") -> Iterator[str]:
    """The URL of an application whose workers say who serves a remote."""
    (directory / "app.py").write_text(APPLICATION)
    (directory / "gunicorn.conf.py").write_text(config)
    command = [sys.executable, "-m", "gunicorn", "-w", str(WORKERS), "-b", "127.0.0.1:0", *options, "app:application"]
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="pymq-test-") as home:
        environment = {"PYTHONPATH": str(ROOT), "PYMQ_HOME": f"{home}/pymq", "HOME": str(directory)}
        with subprocess.Popen(command, cwd=directory, env=environment, stderr=subprocess.PIPE, text=True) as master:
            assert master.stderr is not None
            try:
                yield next(found[0] for line in master.stderr if (found := re.search(r"http://127\S+", line)))
            finally:
                master.terminate()
        assert not list(Path(home).rglob("*")), "something was left"


def ask(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        found = json.load(answer)
    assert isinstance(found, dict)
    return found


def hook_of_the_page() -> str:
    (hook,) = [block.source for block in blocks_of((ROOT / "docs" / "fork.md").read_text()) if block.argument == "needs gunicorn"]
    return hook


def test_with_a_preloaded_bus_workers_call_and_only_the_master_serves(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--preload") as url:
        found = ask(url)
        assert found["serving"] == [found["parent"]]


@pytest.mark.parametrize("options", [["--preload"], []])
def test_workers_that_begin_their_own_serve(tmp_path: Path, options: list[str]) -> None:
    with gunicorn(tmp_path, *options, config=hook_of_the_page() if options else "") as url:

        def all_serve() -> bool:
            found = ask(url)
            masters = {found["parent"]} if options else set()
            others = set(found["serving"]) - masters  # type: ignore[call-overload]
            return len(others) == WORKERS and found["self"] in others

        assert eventually(all_serve, timeout=30)
