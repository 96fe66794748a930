"""Messages taken in advance: many in a round trip for the fast, given back by the slow, lost by nobody."""

from __future__ import annotations

import re
import secrets
import threading
from concurrent import futures

import pytest
from harness import GUARD, eventually, in_thread
from redis_server import RedisServer, shared_url

import pymq
from pymq.exceptions import LeaseLost
from pymq.provider._redis.operations import packed
from pymq.provider._redis.script import SOURCE, script, script_for
from pymq.provider._redis.stream import RedisReceipt, Stream, Streams
from pymq.provider.redis import RedisConfig


@pytest.fixture
def opened():
    config = RedisConfig.from_url(f"{shared_url()}/stream-{secrets.token_hex(4)}")
    providers = []

    def open_one():
        providers.append(config.create())
        providers[-1].open()
        return providers[-1]

    yield open_one
    open_one().delete("jobs")
    for provider in providers:
        provider.close()


def fill(provider, count):
    provider.declare("jobs")
    for number in range(count):
        provider.send("jobs", b"%d" % number)


def work(provider, count):
    """Handle so many; the numbers and attempts."""
    done = []
    for _ in range(count):
        ((message, receipt),) = provider.receive("jobs", None)
        done.append((int(message), receipt.attempt))
        provider.ack(receipt)
    return done


def test_a_fast_consumer_takes_and_acks_many_at_once(opened):
    provider = opened()
    fill(provider, 300)
    calls = []
    call = provider._pipe.call

    def counted(operation):
        calls.append(operation.name)
        return call(operation)

    provider._pipe.call = provider._streams._call = counted
    assert work(provider, 300) == [(number, 1) for number in range(300)]
    assert calls.count(b"take") < 100
    assert calls.count(b"ack") < 200
    eventually(lambda: provider.counters()["jobs"] == {"waiting": 0, "leased": 0, "dropped": 0, "expired": 0})


def test_what_is_not_handled_goes_to_others_as_if_it_had_not_been_taken(opened):
    fast, other = opened(), opened()
    fill(fast, 200)
    held, gate = threading.Event(), threading.Event()

    def stop_in_the_middle():
        done = work(fast, 60)
        held.set()
        gate.wait(GUARD)
        return done

    working = in_thread(stop_in_the_middle)
    held.wait(GUARD)
    rest = [other.receive("jobs", GUARD, lease=None)[0][0] for _ in range(140)]
    gate.set()
    handled = [number for number, _ in working.result(GUARD)]
    assert sorted([*handled, *map(int, rest)]) == list(range(200))
    assert other.receive("jobs", 0.2) == []


def test_a_provider_that_closes_settles_and_gives_back(opened):
    leaving, staying = opened(), opened()
    fill(leaving, 100)
    handled = in_thread(work, leaving, 30).result(GUARD)
    leaving.close()
    rest = work(staying, 70)
    assert [number for number, _ in handled + rest] == list(range(100))
    assert {attempt for _, attempt in rest} == {1}
    assert staying.receive("jobs", 0.2) == []


class Reloaded(Stream):
    """Loaded again, and reported by `watch`, just after it was seen to be empty."""

    def __init__(self, streams):
        super().__init__("jobs")
        self._streams = streams
        self.again = None

    @property
    def is_loaded(self):
        found = super().is_loaded
        if self.again is None:
            self.again = in_thread(self._load_again)
            futures.wait([self.again], 0.5)  # it waits for the one who has just looked, or it is too early
        return found

    def _load_again(self):
        self.load([(b"message", RedisReceipt("jobs", 1, b"1", self))], False)
        self._streams.watch(self)


def test_a_stream_that_is_loaded_just_after_it_was_seen_to_be_empty_is_looked_after():
    calls = []
    streams = Streams(lambda operation: calls.append(operation.name))
    streams.watch(Reloaded(streams))
    eventually(lambda: calls == [b"nack"])
    streams.close()


def test_a_short_lease_and_a_timeout_take_one_at_a_time(opened):
    provider, other = opened(), opened()
    fill(provider, 50)
    for _ in range(10):
        for timeout, lease in ((None, 0.9), (GUARD, 30.0)):
            ((_, receipt),) = provider.receive("jobs", timeout, lease=lease)
            provider.ack(receipt)
    assert other.size("jobs") == 30


def test_a_late_ack_is_told(opened):
    provider = opened()
    fill(provider, 1)
    ((_, receipt),) = provider.receive("jobs", None)
    provider.delete("jobs")
    with pytest.raises(LeaseLost):
        provider.ack(receipt)


@pytest.fixture
def server():
    server = RedisServer().start()
    yield server
    server.end()


def evaluations(client):
    return client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)


BEATS = 30
"""So many may be among them, on a machine that is very slow."""


def test_who_is_alone_needs_one_round_trip_and_a_call_two(server):
    config = RedisConfig.from_url(server.url)
    with pymq.EventBus(config) as bus, pymq.EventBus(config) as other, server.client() as client:
        jobs = bus.queue("jobs")
        before = evaluations(client)
        for number in range(200):
            bus.publish(number, "c")
            jobs.put(number)
            jobs.get()
        assert 600 <= evaluations(client) - before <= 600 + BEATS
        other.expose(abs, "abs")
        stub = bus.stub("abs", timeout=GUARD)
        stub(0)
        before = evaluations(client)
        for number in range(200):
            assert stub(-number) == number
        # the request, the reply, the server's next look; and one of the caller's where the reply was larger or later than usual
        assert evaluations(client) - before <= 200 * 3 + 100 + BEATS


def test_operations_of_many_threads_travel_together(server):
    with pymq.EventBus(RedisConfig.from_url(server.url)) as bus, server.client() as client:
        bus.publish(0, "c")
        before = evaluations(client)
        server.pause()
        publishing = [in_thread(bus.publish, number, "c") for number in range(40)]
        eventually(lambda: len(bus.provider._pipe._waiting) >= 39, 2)
        server.resume()
        assert [each.result(GUARD) for each in publishing] == [0] * 40
        assert evaluations(client) - before < 10


def test_the_script_of_one_operation_has_all_that_it_needs():
    names = re.findall(r"^function operations\.(\w+)", SOURCE, re.M)
    assert len(names) > 20
    functions = set(re.findall(r"^local function (\w+)", SOURCE, re.M))
    for name in names:
        text = script(name.encode()).text.decode()
        assert re.findall(r"^function operations\.(\w+)", text, re.M) == [name]
        defined = set(re.findall(r"^local function (\w+)", text, re.M))
        assert functions & set(re.findall(r"(\w+)\(", text)) == defined
    assert script_for([packed(b"size", b"a"), packed(b"size", b"b")]) == script(b"size")
    assert script_for([packed(b"size", b"a"), packed(b"beat"), packed(b"size", b"b")]) == script(b"beat", b"size")
    assert script_for([packed(name.encode()) for name in names]) == script()
    assert re.findall(r"^function operations\.(\w+)", script().text.decode(), re.M) == names
