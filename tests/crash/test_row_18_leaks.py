"""Row 18: after hundreds of deaths there is as much in the directory, and open in those who live, as before."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from pathlib import Path

from harness import eventually
from stage import Nursery, Witness


def test_200_deaths(actors: Nursery, witness: Witness) -> None:
    seed = int(time.time())
    print("seed", seed)
    rng = random.Random(seed)
    kill_one(actors, witness, rng)
    clean_up(actors, witness)
    before = counts()
    for _ in range(200):
        kill_one(actors, witness, rng)
    clean_up(actors, witness)
    assert witness.left_behind() == set()
    print(before, counts())
    eventually(lambda: grown_by(before)[2] == 0)
    assert max(grown_by(before)) <= 60, "each death left two descriptors; what leads to a few of the dead may be there still"


def kill_one(actors: Nursery, witness: Witness, rng: random.Random) -> None:
    """Somewhere in its short life; the witness has sent to it and called it, if it came so far."""
    actor = actors.begin("do_everything", str(witness.config.home), rng.random())
    time.sleep(rng.expovariate(1 / 0.015))
    witness.bus.publish("x" * rng.choice([10, 10, 100_000]), "other")
    os.kill(actor, signal.SIGKILL)
    actors.end(actor)
    actors.forget(actor)
    witness.heard()


def clean_up(actors: Nursery, witness: Witness) -> None:
    """What waits in queues and groups stays: the next one frees it. Then all that can go has gone."""
    actors.run("look", str(witness.config.home))
    witness.heard()
    witness.bus.publish("x" * 100_000, "events")  # with a large message an inbox removes the arenas of the dead
    witness.heard()


def grown_by(before: tuple[int, ...]) -> list[int]:
    gc.collect()
    return [now - then for now, then in zip(counts(), before)]


def counts() -> tuple[int, ...]:
    """Of this process: open files, mappings of files of shared memory, threads."""
    return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("/dev/shm/"), threading.active_count()
