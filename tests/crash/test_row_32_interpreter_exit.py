"""Every way for a program to end while everything is open: no traceback that is not its own, nothing hangs, and the next one sweeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import ROOT
from stage import Nursery, Witness

from pymq import bus
from pymq.exceptions import ProviderError
from pymq.provider.simple import SimpleConfig

PROGRAM = """
import os, sys, threading, time
import pymq
from pymq.provider.shm import ShmConfig

bus = pymq.init(ShmConfig("faults", sys.argv[1]))
handled = threading.Event()

def member(text):
    handled.set()

async def later(text):
    pass

bus.subscribe(member, "tasks", group="workers")
bus.subscribe(later, "events of others")
bus.subscribe(lambda text: None, "other", workers=2)
bus.expose(lambda: 1, "served")
bus.publish("task", "tasks")
bus.publish("much later", "other", delay=1000)
jobs = bus.queue("jobs")
jobs.put("lent")
lent = jobs.receive(timeout=5, lease=1000)
waiting = threading.Thread(target=bus.queue("empty").get, daemon=True)  # as consumers are often written
waiting.start()
assert bus.stub("echo", timeout=10)("x") == "x"
assert handled.wait(10)
print("ready", flush=True)
"""

ENDS = {
    "return": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "os._exit": ("os._exit(4)", 4),
    "exec": ("os.execv(sys.executable, [sys.executable, '-c', 'raise SystemExit(5)'])", 5),
    "an error": ("raise ArithmeticError('its own')", 1),
    "an error in a thread": ("threading.Thread(target=lambda: 1 / 0).start()", 0),
    "shutdown twice": ("pymq.shutdown(); pymq.shutdown(); waiting.join(20)", 0),
    "abort": ("os.abort()", -signal.SIGABRT),
    "SIGTERM": ("os.kill(os.getpid(), 15); time.sleep(60)", -signal.SIGTERM),
    "SIGINT": ("os.kill(os.getpid(), 2); time.sleep(60)", -signal.SIGINT),
}
OWN = {
    "an error": "ArithmeticError: its own",
    "an error in a thread": "ZeroDivisionError: division by zero",
    "shutdown twice": "ProviderError",  # in the thread that waits in `get`; at the end of a program it just ends
    "SIGINT": "KeyboardInterrupt",
}


@pytest.mark.parametrize("how", ENDS)
def test_a_program_ends(how: str, actors: Nursery, witness: Witness, stage: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    last, status = ENDS[how]
    program.write_text(PROGRAM + last + "\n")
    with subprocess.Popen(
        [sys.executable, str(program), str(stage / "pymq")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        begun = time.monotonic()
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (ready, out) == ("ready\n", ""), err
    assert time.monotonic() - begun < 40, "2 s are stated"
    assert process.returncode == status
    assert err.count("Traceback") == (how in OWN), err
    assert OWN.get(how, "") in err
    found = actors.run("look", str(stage / "pymq"))
    assert [line[1:] for line in found if line[0] == "found"] == [["lent", "2"]]
    assert ["reached", "1", "0"] in found
    assert ["nobody"] in found
    witness.bus.queue("empty").free()
    witness.heard()
    assert witness.left_behind() == set()


@pytest.mark.parametrize("leave", [bus._at_exit, bus._after_fork_in_child])
def test_a_bus_that_cannot_be_left_keeps_no_other_open(leave: Callable[[], None], monkeypatch, caplog) -> None:
    class Stuck:
        def shutdown(self) -> None:
            raise ProviderError("stuck")

        _after_fork = shutdown

    other = bus.EventBus(SimpleConfig("exit"))
    monkeypatch.setattr(bus, "_buses", [Stuck(), other])
    with other:
        provider = other.provider
        leave()
        assert other.provider is not provider
        provider.close()
    assert "stuck" in caplog.text
