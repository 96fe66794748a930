"""Random histories of queues and a group, held against a model of dictionaries and deques; the values are made from hints.

The examples are the same in every run. For more, at random, or on another provider:

    PYMQ_MODEL_EXAMPLES=5000 PYMQ_MODEL_URL=redis://localhost/1 python -m pytest --timeout 0 tests/crash/test_model.py
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import pytest
from harness import eventually
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from model_values import anything, hints, same
from stage import GUARD, Nursery

import pymq
from pymq import codec
from pymq import message as frames
from pymq.provider import config_from
from pymq.provider.shm import ShmConfig
from pymq.provider.simple import SimpleConfig

EXAMPLES = int(os.environ.get("PYMQ_MODEL_EXAMPLES", "0"))
URL = os.environ.get("PYMQ_MODEL_URL")
LONG, SHORT = 1000.0, 0.002
MOST_ATTEMPTS = 5
"""With one more an item would be given up as exhausted, which is tested elsewhere."""


class Item(NamedTuple):
    value: Any
    fits: bool
    attempt: int = 1


class Model:
    """One queue: what waits for its first delivery, in order, and what comes again, whenever that is."""

    def __init__(self, name: str, hint: Any, values: st.SearchStrategy[Any]) -> None:
        self.name = name
        self.hint = hint
        self.values = values
        self.fresh: deque[Item] = deque()
        self.again: list[Item] = []
        self.dead = 0

    def size(self) -> int:
        return len(self.fresh) + len(self.again)

    def next(self, is_it: Callable[[Item], bool]) -> Item:
        """Take out the item that was delivered: one that came again, or else the oldest."""
        for place, item in enumerate(self.again):
            if is_it(item):
                return self.again.pop(place)
        assert self.fresh, "there is no such item"
        assert is_it(self.fresh[0]), f"{self.fresh[0]!r} would be next"
        return self.fresh.popleft()

    def crashed(self, messages: list[tuple[int, bytes]]) -> None:
        """These deliveries ended with their process: they come again."""
        gone = []
        for attempt, message in messages:
            frame = frames.unpack(message)
            try:
                value = codec.decoder_for(frame.prefix.form, frame.prefix.type_name, self.hint)(frame.payload)
            except pymq.CodecError:
                gone.append(self.next(lambda item: not item.fits))
            else:
                gone.append(self.next(lambda item: item.attempt == attempt and same(item.value, value)))  # noqa: B023
        self.again += [item._replace(attempt=item.attempt + 1) for item in gone]

    def can_fail(self) -> bool:
        return self.size() > 0 and all(item.attempt < MOST_ATTEMPTS for item in self.again)

    def can_lapse(self) -> bool:
        """None that does not fit: whether it could be buried before its lease ends is a question of time."""
        return self.can_fail() and all(item.fits for item in [*self.fresh, *self.again])


class Histories(RuleBasedStateMachine):
    """`make_config` and `crash` are the provider's."""

    make_config: Callable[[], Any]
    nursery: Nursery | None = None

    @initialize()
    def begin(self) -> None:
        self.config = type(self).make_config()
        self.bus = pymq.EventBus(self.config)
        self.bus.start()
        self.queues: list[Model] = []
        self.leased: list[tuple[Model, Item, Any]] = []
        self.bound = False
        self.events: list[Any] = []

    # What a program does

    @precondition(lambda self: len(self.queues) < 3)
    @rule(hinted=hints())
    def declare(self, hinted: tuple[Any, Any]) -> None:
        self.queues.append(Model(f"queue {len(self.queues)}", *hinted))
        self.queue(self.queues[-1])

    @precondition(lambda self: self.queues)
    @rule(data=st.data(), fits=st.sampled_from([True, True, True, False]))
    def put(self, data: st.DataObject, fits: bool) -> None:
        model = self.any_queue(data)
        value = data.draw(model.values if fits else anything)
        try:
            self.queue(model).put(value)
        except pymq.CodecError:
            assert not fits
            return
        model.fresh.append(Item(value, fits))

    @precondition(lambda self: self.queues)
    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        model = self.any_queue(data)
        try:
            got = self.queue(model).get(timeout=0)
        except pymq.Empty:
            assert model.size() == 0
        except pymq.CodecError:
            model.next(lambda item: not item.fits)
            model.dead += 1
        else:
            model.next(lambda item: same(item.value, got))

    @precondition(lambda self: self.queues)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        model = self.any_queue(data)
        lease = self.receive(model, LONG)
        if lease is not None:
            self.leased.append(lease)

    @precondition(lambda self: self.leased)
    @rule(data=st.data(), action=st.sampled_from(["ack", "nack", "fail"]))
    def settle(self, data: st.DataObject, action: str) -> None:
        model, item, job = self.leased.pop(data.draw(st.integers(0, len(self.leased) - 1)))
        if action == "ack" or item.attempt >= MOST_ATTEMPTS:
            job.ack()
        elif action == "nack":
            job.nack()
            model.again.append(item._replace(attempt=item.attempt + 1))
        else:
            with suppress(ArithmeticError), job:
                raise ArithmeticError
            model.again.append(item._replace(attempt=item.attempt + 1))
        with pytest.raises(pymq.LeaseLost):
            job.ack()

    @precondition(lambda self: any(map(Model.can_lapse, self.queues)))
    @rule(data=st.data())
    def let_a_lease_end(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from([model for model in self.queues if model.can_lapse()]))
        lease = self.receive(model, SHORT)
        assert lease is not None
        time.sleep(SHORT)
        with pytest.raises(pymq.LeaseLost):
            lease[2].ack()
        model.again.append(lease[1]._replace(attempt=lease[1].attempt + 1))

    @precondition(lambda self: not self.bound)
    @rule()
    def bind(self) -> None:
        self.bus.group("members").bind("events/*", pattern=True)
        self.bound = True

    @rule(value=anything, channel=st.sampled_from(["events/1", "events/2", "others"]))
    def publish(self, value: Any, channel: str) -> None:
        try:
            reached = self.bus.publish(value, channel)
        except pymq.CodecError:
            return
        hit = self.bound and channel != "others"
        assert reached == int(hit) or reached is None
        if hit:
            self.events.append(value)

    @precondition(lambda self: self.events)
    @rule()
    def handle(self) -> None:
        """A member comes, handles what is there, in order, and leaves."""
        handled = SimpleQueue[Any]()

        def handler(event: Any) -> None:
            handled.put(event)

        self.bus.subscribe(handler, "events/*", pattern=True, group="members")
        got = [handled.get(timeout=GUARD) for _ in self.events]
        self.bus.unsubscribe(handler, "events/*", pattern=True)
        assert handled.empty()
        assert same(got, self.events)
        self.events.clear()

    # What happens to it

    @rule()
    def reopen(self) -> None:
        """What was leased comes again; all else is as it was."""
        for lease in [lease for lease in self.leased if lease[1].attempt > MOST_ATTEMPTS]:
            self.leased.remove(lease)
            lease[2].ack()
        self.bus.shutdown()
        self.bus.start()
        for model, item, _ in self.leased:
            model.again.append(item._replace(attempt=item.attempt + 1))
        self.leased.clear()
        assert all(item.attempt <= MOST_ATTEMPTS + 1 for model in self.queues for item in model.again)

    @precondition(lambda self: self.nursery and any(map(Model.can_fail, self.queues)))
    @rule(data=st.data(), count=st.integers(1, 3))
    def crash(self, data: st.DataObject, count: int) -> None:
        """Another process takes some, and is killed."""
        model = data.draw(st.sampled_from([model for model in self.queues if model.can_fail()]))
        assert self.nursery is not None
        actor = self.nursery.begin("hold", self.config, f"queue/{model.name}", count)
        self.nursery.wait_for(actor, "ready")
        messages = [(int(line[1]), bytes.fromhex(line[2])) for line in self.nursery.board(actor) if line[0] == "holds"]
        os.kill(actor, signal.SIGKILL)
        self.nursery.end(actor)
        assert len(messages) == min(count, model.size())
        model.crashed(messages)
        eventually(lambda: self.queue(model).qsize() == model.size())

    # What is always true

    @invariant()
    def sizes_are_right(self) -> None:
        for model in self.queues:
            assert self.queue(model).qsize() == model.size()
            assert self.queue(model).dead.qsize() == model.dead
        if self.bound:
            assert self.bus.group("members").qsize() == len(self.events)

    def teardown(self) -> None:
        if not hasattr(self, "bus"):
            return
        self.reopen()
        for model in self.queues:
            jobs = self.queue(model)
            while model.size():
                try:
                    got = jobs.get(timeout=0)
                except pymq.CodecError:
                    model.next(lambda item: not item.fits)
                else:
                    model.next(lambda item, got=got: same(item.value, got))  # type: ignore[misc]
            assert jobs.empty()
            jobs.dead.purge()
            jobs.free()
        self.bus.group("members").delete()
        self.bus.shutdown()
        if isinstance(self.config, ShmConfig):
            assert list(Path(str(self.config.home)).rglob("*")) == []

    # Tools

    def any_queue(self, data: st.DataObject) -> Model:
        model: Model = data.draw(st.sampled_from(self.queues))
        return model

    def queue(self, model: Model) -> Any:
        return self.bus.queue(model.name, type=model.hint, backoff=0)  # the model knows no time

    def receive(self, model: Model, lease: float) -> tuple[Model, Item, Any] | None:
        try:
            job = self.queue(model).receive(timeout=0, lease=lease)
        except pymq.Empty:
            assert model.size() == 0
        except pymq.CodecError:
            model.next(lambda item: not item.fits)
            model.dead += 1
        else:
            return model, model.next(lambda item: same(item.value, job.value) and item.attempt == job.attempt), job
        return None


def model_settings(examples: int) -> settings:
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        phases=list(Phase) if EXAMPLES else [Phase.generate],  # to shrink takes minutes
        database=None,
        deadline=None,
        stateful_step_count=40,
        suppress_health_check=list(HealthCheck),
    )


def test_simple() -> None:
    class OnSimple(Histories):
        make_config = staticmethod(lambda: SimpleConfig(secrets.token_hex(8)))

    run_state_machine_as_test(OnSimple, settings=model_settings(60))


def test_shm(actors: Nursery) -> None:
    home = tempfile.mkdtemp(prefix="pymq-test-", dir="/dev/shm")

    class OnShm(Histories):
        make_config = staticmethod(lambda: ShmConfig("model", f"{home}/{secrets.token_hex(8)}"))

    OnShm.nursery = actors
    try:
        run_state_machine_as_test(OnShm, settings=model_settings(60))
    finally:
        shutil.rmtree(home)


if URL:

    def test_another_provider() -> None:
        class OnOther(Histories):
            make_config = staticmethod(lambda: config_from(str(URL)))

        run_state_machine_as_test(OnOther, settings=model_settings(20))
