"""The wall clock may jump: nothing but what travels as data looks at it."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from harness import GUARD

import pymq

pytestmark = pytest.mark.parametrize("place", ["simple", "shm"], indirect=True)
WALL_CLOCK = re.compile(r"time\.time\(|time_ns\(\)|datetime\.(now|utcnow)|st_[mca]time")


def test_local_providers_never_look_at_it(place: Any) -> None:
    provider = Path(pymq.__file__).parent / "provider"
    for part in [provider / "simple.py", provider / "_memory.py", provider / "shm.py", *provider.glob("_shm/*.py")]:
        found = [line for line in part.read_text().splitlines() if WALL_CLOCK.search(line)]
        assert [line for line in found if "monotonic" not in line] == [], part


def test_it_jumps(bus: pymq.EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a year, back and forth, while leases, delays, ttls and deadlines run."""
    begun, clock = time.time(), iter(range(1 << 40))
    monkeypatch.setattr(time, "time", lambda: begun + (-1) ** next(clock) * 365 * 86400)
    jobs, done = bus.queue("jobs"), threading.Event()
    bus.expose(lambda number: number + 1, "add")
    bus.subscribe(lambda text: done.set(), "news")
    jobs.put("lent")
    lent = jobs.receive(timeout=0, lease=1000)
    jobs.put("delayed", delay=0.05)
    jobs.put("lasting", ttl=1000)
    bus.publish("delayed", "news", delay=0.05)
    assert jobs.get(timeout=0) == "lasting"
    assert jobs.get(timeout=GUARD) == "delayed"
    assert bus.stub("add", timeout=GUARD)(1) == 2
    assert done.wait(GUARD)
    lent.ack()
    assert jobs.empty()
    jobs.free()
