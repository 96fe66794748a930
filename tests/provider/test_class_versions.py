"""A class that changes while programs with both versions run: what docs/delivery.md says under "Changing a class"."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from harness import Heard, eventually, run_program

import pymq

SENDER = """
import sys
from dataclasses import dataclass
import pymq

@pymq.event(sys.argv[1])
@dataclass
class Order:
    {fields}

order = Order({values})
pymq.init()
jobs = pymq.queue("jobs")
jobs.put(order)
jobs.put(order)
print(pymq.publish(order))
response = pymq.stub("accept", timeout=10).rpc(order)
print(response.result if not response.error else response.result.remote_type)
pymq.shutdown()
"""
REQUIRED = dataclasses.MISSING
Fields = dict[str, tuple[Any, Any]]

CASES: dict[str, tuple[str, str, Fields, Any]] = {
    "the receiver has a new field with a default": ("number: int", "7", {"number": (int, REQUIRED), "note": (str, "-")}, (7, "-")),
    "the receiver has a new field without one": ("number: int", "7", {"number": (int, REQUIRED), "note": (str, REQUIRED)}, "'note'"),
    "the sender has a new field": ("number: int; note: str = '-'", "7, 'x'", {"number": (int, REQUIRED)}, "Order has no note"),
    "the receiver has removed a field": ("number: int; note: str", "7, 'x'", {"number": (int, REQUIRED)}, "Order has no note"),
    "the sender has removed a field": ("number: int", "7", {"number": (int, REQUIRED), "note": (str | None, None)}, (7, None)),
    "a field has another name": ("number: int", "7", {"no": (int, REQUIRED)}, "Order has no number"),
    "the receiver takes more": ("number: int", "7", {"number": (int | str, REQUIRED)}, (7,)),
    "the receiver takes something else": ("number: int", "7", {"number": (str, REQUIRED)}, "7 is int, not str"),
}


@pytest.mark.parametrize("place", ["shm"], indirect=True)
@pytest.mark.parametrize("case", CASES)
def test_what_becomes_of_an_object_of_another_version(case, place, bus, tmp_path, caplog):
    fields, values, theirs, outcome = CASES[case]
    order_class = version(f"order, where {case}", theirs)
    heard, plain, accepted = Heard(), Heard(), Heard()

    def on_order(event: order_class) -> None:  # type: ignore[valid-type]
        plain(event)

    def bill(event: order_class) -> None:  # type: ignore[valid-type]
        heard(event)

    def accept(order: order_class) -> str:  # type: ignore[valid-type]
        accepted(order)
        return "accepted"

    bus.subscribe(on_order)
    bus.subscribe(bill, group="billing")
    bus.expose(accept, "accept")
    jobs, dead = bus.queue("jobs", type=order_class), bus.group("billing").dead
    (tmp_path / "sender.py").write_text(SENDER.format(fields=fields, values=values))
    reached, called = run_program(tmp_path / "sender.py", f"order, where {case}")
    assert reached == "2"
    if isinstance(outcome, tuple):
        order = order_class(*outcome)
        assert [plain.next(), heard.next(), accepted.next(), called] == [order, order, order, "accepted"]
        assert jobs.get(timeout=0) == order
        with jobs.take(timeout=0) as job:
            assert job.value == order
    else:
        for receive in (jobs.get, jobs.take):
            with pytest.raises(pymq.CodecError, match=outcome):
                receive(timeout=0)
        eventually(lambda: len(dead) == 1)
        eventually(lambda: bus.stats()["failed"])
        sent = {"number": 7, "note": "x"} if "note" in fields else {"number": 7}
        assert [letter.value for letter in (*jobs.dead, *dead)] == [sent] * 3, "as where the class is unknown"
        assert (called, plain.rest(), heard.rest(), accepted.rest()) == ("CodecError", [], [], [])
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"], "of the subscription and of the group"
    jobs.dead.purge()
    jobs.free()
    bus.group("billing").delete()


def version(channel: str, fields: Fields) -> Any:
    """The class Order with these fields."""
    made = [(name, hint, dataclasses.field(default=default)) for name, (hint, default) in fields.items()]
    made_class = dataclasses.make_dataclass("Order", made)
    made_class.__module__ = __name__  # that of `dataclasses` is not the program's
    return pymq.event(channel)(made_class)


@pytest.mark.parametrize("place", ["simple", "shm"], indirect=True)
def test_the_dead_letters_are_requeued_when_the_receiver_has_the_new_class(bus):
    old, new = version("order", {"number": (int, REQUIRED)}), version("order", {"number": (int, REQUIRED), "note": (str, "-")})
    heard = Heard()

    def bill_old(event: old) -> None: ...  # type: ignore[valid-type]

    def bill_new(event: new) -> None:  # type: ignore[valid-type]
        heard(event)

    group = bus.group("billing")
    bus.subscribe(bill_old, group="billing")
    bus.publish(new(7, "x"))
    eventually(lambda: len(group.dead) == 1)
    bus.unsubscribe(bill_old)
    bus.subscribe(bill_new, group="billing")
    assert group.dead.requeue() == 1
    assert heard.next() == new(7, "x")
    group.delete()
