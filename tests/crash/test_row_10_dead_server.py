"""Row 10: a server of remote calls dies, is stopped, or is absent: the caller is told at once, or at its deadline.

The loop is of kill -9 of servers and callers of remote calls, over and over: nothing is executed twice, and every call ends.
It goes on for PYMQ_CALLS_KILLS (300) deaths, and for at least PYMQ_CALLS_KILL_SECONDS (0). For an hour by hand:

    PYMQ_CALLS_KILL_SECONDS=3600 python -m pytest -s --timeout 4000 tests/crash/test_row_10_dead_server.py -k kill_loop
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import wait

import pytest
from harness import eventually, in_thread
from programs import shop
from stage import GUARD, Nursery, Witness

import pymq

KILLS = int(os.environ.get("PYMQ_CALLS_KILLS", "300"))
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


def test_a_stopped_server(separate, peers, bus):
    (server,) = peers(1)
    server.expose(shop.add, "add")
    server.stop()
    with pytest.raises(pymq.RpcTimeout):
        bus.stub("add", timeout=0.3)(1)
    server.resume()
    assert bus.stub("add", timeout=10)(2) == 4


def test_a_server_killed_during_the_call(separate, peers, bus):
    (server,) = peers(1)
    server.expose(shop.hang, "hang")
    for timeout in (60, None):
        calling = in_thread(bus.stub("hang", timeout=timeout), "x")
        assert server.hear() == ("begun", "x")
        server.kill()
        killed = time.monotonic()
        with pytest.raises(pymq.ServerDied):
            calling.result(GUARD)
        bound = bus.provider.features.death_seconds
        assert time.monotonic() - killed < min(20 * bound, bound + 5), "20 times what local providers promise"
        (server,) = peers(1)
        server.expose(shop.hang, "hang")


def test_a_server_killed_before_it_took_the_request(separate, peers, bus):
    (server,) = peers(1)
    server.expose(shop.add, "add")
    server.stop()
    calling = in_thread(bus.stub("add", timeout=60), 1)
    wait([calling], timeout=0.1)
    server.kill()
    with pytest.raises((pymq.ServerDied, pymq.NoSuchRemoteError)):
        calling.result(5)


def test_the_others_serve_on(separate, place, peers, bus):
    servers = peers(3)
    for server in servers:
        server.expose(shop.who, "who")
    servers[0].kill()
    place.see_death()
    living = {server.call(shop.pid) for server in servers[1:]}
    assert {bus.stub("who", timeout=10)() for _ in range(20)} == living
    assert set(bus.stub("who", timeout=10, multi=True)()) == living


def test_a_server_killed_during_a_multi_call(separate, peers, bus):
    doomed, other = peers(2)
    other.release()
    for server in (doomed, other):
        server.expose(shop.hang, "hang")
    calling = in_thread(bus.stub("hang", timeout=60, multi=True), "x")
    assert doomed.hear() == ("begun", "x")
    doomed.kill()
    results = calling.result(5)
    assert sorted(type(result).__name__ for result in results) == ["ServerDied", "str"]


def test_a_killed_caller_harms_nobody(separate, peers, bus):
    server, caller = peers(2)
    server.expose(shop.hang, "hang")
    caller.begin(shop.call, "hang", "lost")
    assert server.hear() == ("begun", "lost")
    caller.kill()
    server.release()
    assert bus.stub("hang", timeout=10)("next") == "next"
