"""Row 30: nothing to do. No thread of a bus makes a system call."""

from __future__ import annotations

import shutil
import subprocess
import threading

import pytest
from harness import GUARD, eventually, start_program

import pymq


@pytest.mark.needs_strace
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("place", ["shm", "ipc"], indirect=True)
def test_an_idle_bus_makes_no_system_call(place, tmp_path):
    """Over a network a process has to show that it lives."""
    log = tmp_path / "strace"
    with start_program("idle.py") as idle:
        try:
            assert idle.stdout.readline() == "ready\n", idle.stderr.read()
            with subprocess.Popen(["strace", "-f", "-o", log, "-p", str(idle.pid)], stderr=subprocess.PIPE, text=True) as tracer:
                try:
                    if "attached" not in tracer.stderr.readline():
                        pytest.skip("needs the right to ptrace")
                    eventually(log.read_text)
                    threading.Event().wait(0.3)  # until it is attached to every thread
                    before = log.read_text()
                    threading.Event().wait(5)
                    assert log.read_text() == before
                    with pymq.EventBus(place.config) as bus:
                        bus.queue("end").put(1)
                    assert idle.wait(GUARD) == 0
                    assert log.read_text() != before, "nothing was traced"
                finally:
                    tracer.terminate()
        finally:
            idle.kill()
