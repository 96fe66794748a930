"""A process that is stopped inside a critical section: the others get an error at their deadline, and nothing is harmed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from harness import eventually
from stage import Nursery, Witness

import pymq
from pymq.provider._shm import files as _files

SECTIONS: list[tuple[str, str, Callable[[pymq.EventBus], object]]] = [
    ("Put", "append", lambda bus: bus.queue("jobs").put("mine")),
    ("PutLarge", "append", lambda bus: bus.queue("jobs").put("mine")),
    ("Get", "take", lambda bus: bus.queue("jobs").get(timeout=0)),
    ("Take", "take", lambda bus: bus.queue("jobs").receive(timeout=0)),
    ("Take", "ack", lambda bus: bus.queue("jobs").get(timeout=0)),
    ("Free", "delete", lambda bus: bus.queue("jobs").put("mine")),
    ("Subscribe", "record", lambda bus: bus.subscribe(print, "something")),
    ("Close", "sweep", lambda bus: bus.queue("new").put("mine")),
    ("PublishOverflow", "_append", lambda bus: bus.publish("x" * 3000, "events")),
]


@pytest.mark.parametrize(("operation", "method", "verb"), SECTIONS, ids=[f"{name} in {method}" for name, method, _ in SECTIONS])
def test_inside_a_critical_section(
    operation: str,
    method: str,
    verb: Callable[[pymq.EventBus], Any],
    actors: Nursery,
    witness: Witness,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_files, "LOCK_SECONDS", 0.2)
    bus = witness.bus
    actor = actors.begin("stop_inside", str(witness.config.home), operation, method)
    actors.wait_for(actor, "stopping")
    eventually(lambda: is_stopped(actor))
    for _ in range(2):
        with pytest.raises(pymq.ProviderError, match="is a process stopped"):
            verb(bus)
    os.kill(actor, signal.SIGCONT)
    assert actors.end(actor) == 0, actors.board(actor)
    monkeypatch.undo()
    given_back = verb(bus)
    if isinstance(given_back, pymq.queues.Delivery):
        given_back.ack()
    bus.queue("new").free()
    bus.unsubscribe(print, "something") if method == "record" else None
    found = actors.run("look", str(witness.config.home))
    told = [line[1] for line in found if line[0] == "found"]
    assert len(told) == len(set(told))
    assert ["echo", "look"] in found
    assert not [line for line in found if line[0] == "damaged"]
    witness.heard()
    assert witness.left_behind() == set()


def is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(") ")[2][0] == "T"
