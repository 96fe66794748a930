"""kill -9 of servers and callers of remote calls, over and over: nothing is executed twice, and every call ends.

The loop goes on for PYMQ_CALLS_KILLS (100) deaths, and for at least PYMQ_CALLS_KILL_SECONDS (0). For an hour by hand:

    PYMQ_CALLS_KILL_SECONDS=3600 python -m pytest -s --timeout 4000 tests/crash/test_row_10_dead_server.py -k kill_loop
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter

from harness import eventually
from stage import GUARD, Nursery, Witness

KILLS = int(os.environ.get("PYMQ_CALLS_KILLS", "100"))
SECONDS = float(os.environ.get("PYMQ_CALLS_KILL_SECONDS", "0"))
POPULATION = ["serve_calls"] * 3 + ["make_calls"] * 2


class Loop:
    def __init__(self, nursery: Nursery, home: str, seed: int) -> None:
        self.nursery = nursery
        self.home = home
        self.rng = random.Random(seed)
        self.living: dict[int, str] = {}
        self.executed: Counter[str] = Counter()
        self.results: set[str] = set()
        self.errors: Counter[str] = Counter()
        self.kills = 0
        self._seeds = iter(range(1 << 40))

    def begin(self, role: str) -> None:
        actor = self.nursery.begin(role, self.home, next(self._seeds))
        self.living[actor] = role

    def kill(self, actor: int) -> None:
        os.kill(actor, signal.SIGKILL)
        status = self.nursery.end(actor)
        said = self.nursery.board(actor)
        assert status == signal.SIGKILL, said[-20:]
        self.executed.update(line[1] for line in said if line[0] == "executed")
        self.results |= {line[1] for line in said if line[0] == "result"}
        self.errors.update(line[1] for line in said if line[0] == "error")
        del self.living[actor]
        self.nursery.forget(actor)
        self.kills += 1

    def results_of(self, caller: int) -> int:
        return sum(line[0] == "result" for line in self.nursery.board(caller))


def test_kill_loop(actors: Nursery, witness: Witness) -> None:
    seed = int(time.time())
    print("seed", seed)
    loop = Loop(actors, str(witness.config.home), seed)
    for role in POPULATION:
        loop.begin(role)
    begun = time.monotonic()
    while loop.kills < KILLS or time.monotonic() < begun + SECONDS:
        time.sleep(loop.rng.uniform(0, 0.05))
        actor, role = loop.rng.choice([*loop.living.items()])
        loop.kill(actor)
        loop.begin(role)
    for caller in [actor for actor, role in loop.living.items() if role == "make_calls"]:
        before = loop.results_of(caller)
        eventually(lambda caller=caller, before=before: loop.results_of(caller) > before, GUARD)  # type: ignore[misc]
    for actor in list(loop.living):
        loop.kill(actor)
    print("kills", loop.kills, "executed", len(loop.executed), "answered", len(loop.results), dict(loop.errors))
    assert max(loop.executed.values()) == 1, "executed twice"
    assert loop.results <= set(loop.executed)
    assert len(loop.results) > KILLS
    assert loop.errors["ServerDied"] > 0
    assert ["nobody"] in actors.run("look", loop.home)
    witness.heard()
    assert witness.left_behind() == set()
