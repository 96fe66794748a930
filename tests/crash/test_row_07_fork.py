"""Forks while other threads are in the middle of everything: the parent does not notice, and each child can work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness import ROOT, run_program

PROGRAM = """
import os, signal, sys, threading, time, warnings
import pymq
from pymq.provider.shm import ShmConfig

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads, which is what this is about
bus = pymq.init(ShmConfig("fork", sys.argv[1]))
heard, stop, done = [], threading.Event(), [0, 0, 0]
bus.subscribe(lambda number: heard.append(number), "numbers")
bus.expose(lambda number: number + 1, "add")

def publish():
    while not stop.is_set():
        assert bus.publish(done[0], "numbers") == 1
        done[0] += 1

def put():
    jobs = bus.queue("jobs")
    while not stop.is_set():
        jobs.put("parent's")
        assert jobs.get(timeout=10) == "parent's"
        done[1] += 1

def call():
    add = bus.stub("add", timeout=10)
    while not stop.is_set():
        assert add(done[2]) == done[2] + 1
        done[2] += 1

def child(number):
    signal.alarm(30)  # whoever hangs is killed, and that fails the test
    if number % 3 == 0:
        os._exit(0)
    if number % 3 == 1:
        assert bus.publish(-1, "numbers") == 1
        bus.queue("children").put(number)
        assert bus.stub("add", timeout=20)(41) == 42
        bus.shutdown()
    else:
        pymq.shutdown()
        with pymq.EventBus(ShmConfig("fork", sys.argv[1])) as own:
            assert own.publish(-1, "numbers") == 1
            own.queue("children").put(number)
    os._exit(0)

threads = [threading.Thread(target=work) for work in (publish, put, call)]
for thread in threads:
    thread.start()
statuses = []
for number in range(30):
    pid = os.fork()
    if not pid:
        try:
            child(number)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(1)
    statuses.append(os.waitpid(pid, 0)[1])
before = list(done)
deadline = time.monotonic() + 20
while any(now == then for now, then in zip(done, before)):
    assert time.monotonic() < deadline, "the parent stands still"
    time.sleep(0.01)
stop.set()
for thread in threads:
    thread.join(20)
    assert not thread.is_alive()
children = bus.queue("children")
assert sorted(children.get(timeout=5) for _ in range(20)) == [number for number in range(30) if number % 3]
while len(heard) < done[0] + 20:
    assert time.monotonic() < deadline + 20, (len(heard), done)
    time.sleep(0.01)
assert [number for number in heard if number >= 0] == list(range(done[0]))
children.free()
bus.queue("jobs").free()
pymq.shutdown()
print(set(statuses))
"""


def test_fork_while_threads_are_at_work(stage: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(stage / "pymq")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("{0}\n", "")
    assert list((stage / "pymq").rglob("*")) == []


def test_fork(separate, place):
    children = ["publishes", "inits", "shuts_down", "does_nothing", "ends_at_once", "execs"]
    assert run_program("forking.py") == [f"child_{name} 0" for name in children] + [str([("parent", 0)] * 4), "put True"]
    assert place.leftovers() == []


def test_fork_in_a_loop(separate, place):
    children = ["does_nothing", "publishes", "waits_for_room_first", "forks", "shuts_down", "begins_anew"]
    assert run_program("loop_forking.py") == [f"child_{name} 0" for name in children] + ["later"]
    assert place.leftovers() == []
