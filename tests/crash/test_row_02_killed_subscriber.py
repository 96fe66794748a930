"""Row 2: kill -9 of a subscriber. The next publish does not count it, at once, and whoever comes sweeps what it left."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from harness import GUARD
from programs import shop
from programs.shop import OrderPlaced
from stage import Nursery, Witness

import pymq

KILLS = int(os.environ.get("PYMQ_SUBSCRIBER_KILLS", "300"))


def test_a_killed_receiver_is_not_counted(separate, place, peers):
    alice, bob, carol = peers(3)
    for peer in (bob, carol):
        peer.subscribe(shop.orders)
    assert alice.publish(OrderPlaced(1)) == 2
    bob.kill()
    place.see_death()
    assert alice.publish(OrderPlaced(2)) == 1
    assert [carol.hear(), carol.hear()] == [OrderPlaced(1), OrderPlaced(2)]


def test_a_killed_process_is_swept_by_the_living(separate, place, peers, bus):
    for _ in range(max(1, int(5 * place.scale))):
        (alice,) = peers(1)
        alice.subscribe(shop.orders)
        alice.expose(shop.add, "add")
        waiting = alice.begin(shop.get_as, "jobs", int)
        assert bus.publish(OrderPlaced(1)) == 1
        alice.kill()
        place.see_death()
        assert bus.publish(OrderPlaced(2)) == 0
        assert isinstance(waiting.exception(GUARD), ChildProcessError)
    with pytest.raises(pymq.NoSuchRemoteError):
        bus.stub("add", timeout=5)(1)
    bus.queue("jobs").free()


def test_the_last_process_killed_is_swept_by_the_next(separate, place, peers):
    for peer in peers(3):
        peer.subscribe(shop.orders)
        peer.publish(OrderPlaced(1))
        peer.begin(shop.get_as, "jobs", int)
        peer.kill()
    place.see_death()
    with pymq.EventBus(place.config) as bus:
        assert bus.publish(OrderPlaced(1)) == 0
    assert place.leftovers() == []


def test_kill_loop(actors: Nursery, witness: Witness) -> None:
    """At any moment, PYMQ_SUBSCRIBER_KILLS (300) times: the next publish ends and counts who lives; what the dead have left is gone."""
    seed = int(time.time())
    print("seed", seed)
    rng = random.Random(seed)
    subscribed = 0
    for turn in range(KILLS):
        actor = actors.begin("subscribe_only", str(witness.config.home))
        if turn % 3:
            actors.wait_for(actor, "subscribed")
        time.sleep(rng.uniform(0, 0.006))
        subscribed += actors.board(actor) != []
        os.kill(actor, signal.SIGKILL)
        actors.end(actor)
        begun = time.monotonic()
        assert witness.bus.publish(f"turn-{turn}", "events") == 1, "the witness"
        assert time.monotonic() - begun < 0.2, "20 times the 10 ms that are promised"
        actors.forget(actor)
    assert witness.heard() == [f"turn-{turn}" for turn in range(KILLS)]
    assert subscribed >= KILLS * 2 / 3
    assert ["reached", "1"] in actors.run("look_around", str(witness.config.home), "events")
    witness.heard()
    assert witness.left_behind() == set()
