"""Values arrive exactly as they were sent, by every way a value can travel, or are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from harness import Heard
from programs import shop, values
from programs.values import EVERYTHING, MISFITS, REFUSED, VALUES, Frozen, Plain, Point, Strict

import pymq


@pytest.fixture
def jobs(bus) -> Iterator[pymq.Queue]:
    """The queue "jobs", gone afterwards."""
    yield bus.queue("jobs")
    bus.queue("jobs").free()


def told(value: Any) -> str:
    """All that makes a value: its type and its parts', recursively (sets and mappings by their parts, sorted)."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__qualname__}{sorted(map(told, value))}"
    if isinstance(value, dict):
        return f"{type(value).__qualname__}{[(told(key), told(item)) for key, item in value.items()]}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__qualname__}{[told(item) for item in value]}"
    if hasattr(value, "__dict__") and not isinstance(value, type) and type(value).__module__ == "programs.values":
        return f"{type(value).__qualname__}{told(vars(value))}" if not hasattr(value, "name") else f"{type(value)}{value!r}"
    return f"{type(value).__qualname__} {value!r}"


def differences(got: list[Any]) -> dict[int, tuple[str, str]]:
    """What did not arrive as it was sent."""
    pairs = ((number, told(value), told(arrived)) for number, ((_, value), arrived) in enumerate(zip(VALUES, got, strict=True)))
    return {number: (sent, arrived) for number, sent, arrived in pairs if sent != arrived}


def test_the_comparison_sees_everything():
    containers = [(1,), [1], {1}, frozenset({1}), {1: 1}, {"1": 1}, {1: 1.0}]
    different = [1, 1.0, True, "1", *containers, Point(1), Frozen(1), Plain("a"), Plain("a", 1)]
    assert len({told(value) for value in different}) == len(different)


@pytest.mark.parametrize("ways", [1, 2], ids=["typed", "typed and untyped"])
def test_published(peers, ways):
    """Untyped, too: the typed subscriptions name the classes for the others."""
    alice, bob = peers(2)
    bob.call(values.subscribe_to_all, True)
    if ways == 2:
        bob.call(values.subscribe_to_all, False)
    assert alice.call(values.publish_all) == [1] * len(VALUES)
    arrived: dict[int, list[Any]] = {}
    for number, value in (bob.hear() for _ in range(ways * len(VALUES))):
        arrived.setdefault(number, []).append(value)
    for way in range(ways):
        assert differences([arrived[number][way] for number in range(len(VALUES))]) == {}


def test_put(peers, bus, jobs):
    (alice,) = peers(1)
    alice.call(values.put_all, "jobs")
    assert differences([bus.queue("jobs", type=hint).get(timeout=5) for hint, _ in VALUES]) == {}


def test_put_into_a_queue_without_type(peers, jobs):
    """This process puts each value once itself, which names its class."""
    (alice,) = peers(1)
    for _, value in VALUES:
        jobs.put(value)
    jobs.free()
    alice.call(values.put_all, "jobs")
    assert differences([jobs.get(timeout=5) for _ in VALUES]) == {}


def test_passed_and_returned(peers, bus):
    (server,) = peers(1)
    server.call(values.expose_all)
    assert differences([bus.stub(str(number), timeout=10)(value) for number, (_, value) in enumerate(VALUES)]) == {}
    assert differences([bus.stub(str(number), timeout=10)(value=value) for number, (_, value) in enumerate(VALUES)]) == {}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_travel_is_refused(bus, kind):
    bus.subscribe(Heard(), "c")
    bus.expose(lambda value: None, "take")
    for send in (
        lambda value: bus.publish(value, "c"),
        bus.queue("jobs").put,
        bus.stub("take", timeout=5),
        bus.stub("take", timeout=5, multi=True),
    ):
        with pytest.raises(pymq.CodecError):
            send(REFUSED[kind])
    assert bus.queue("jobs").empty()


@pytest.mark.parametrize("kind", MISFITS)
def test_what_is_not_of_its_declared_type_is_refused_or_unchanged(bus, jobs, kind):
    value = MISFITS[kind]
    try:
        jobs.put(value)
        got = bus.queue("jobs", type=Strict).get(timeout=5)
    except pymq.CodecError:
        got = value
    assert told(got) == told(value)


def test_an_attribute_that_no_field_declares_is_not_dropped_silently(bus, jobs):
    value = Strict(1)
    value.extra = "not a field"
    try:
        jobs.put(value)
        assert vars(bus.queue("jobs", type=Strict).get(timeout=5)) == vars(value)
    except pymq.CodecError:
        pass


def test_init_builds_a_plain_class_as_a_user_would_expect(peers, bus):
    (alice,) = peers(1)
    value = Plain("a", 5)
    value.later = [1]
    alice.queue("jobs", "put", value)
    got = bus.queue("jobs", type=Plain).get(timeout=5)
    assert vars(got) == {"name": "a", "size": 5, "built_by_init": True, "later": [1]}


def test_a_stranger_gets_plain_data_and_builds_nothing(separate, peers):
    (alice,), (stranger,) = peers(1), peers(1, fresh=True)
    stranger.subscribe(shop.anything, "c")
    alice.publish(shop.Secret("word"), "c")
    alice.publish([shop.Secret("nested")], "c")
    assert stranger.hear() == {"word": "word"}
    assert stranger.hear() == [{"word": "nested"}]


def test_everything_at_once_many_times(bus, jobs):
    """A type's encoder is built once; it must not remember anything of a value."""
    everything = bus.queue("jobs", type=values.Everything)
    for number in range(50):
        EVERYTHING.number = number
        jobs.put(EVERYTHING)
    assert [everything.get(timeout=5).number for _ in range(50)] == list(range(50))
