"""Signal handlers that raise, as that of Ctrl-C does, in a thread that sends what other threads want sent as well."""

from __future__ import annotations

import secrets
import signal
import time

import pytest
from harness import GUARD, eventually, in_thread
from redis_server import RedisServer, shared_url

import pymq
from pymq.exceptions import ConnectionLost
from pymq.provider._redis import pipe
from pymq.provider._redis.pipe import Pipe
from pymq.provider.redis import RedisConfig


@pytest.fixture
def provider(monkeypatch):
    """It gives no sign of life meanwhile: a thread that waits for ever would be served with that, a second later."""
    monkeypatch.setattr(pipe, "BEAT", 6 * GUARD)
    provider = RedisConfig.from_url(f"{shared_url()}/interrupts-{secrets.token_hex(4)}").create()
    provider.open()
    provider.declare("jobs")
    yield provider
    provider.delete("jobs")
    provider.close()


@pytest.fixture
def interrupt(monkeypatch):
    """`interrupt(owner, name, before)`: the next call of that function ends as if a signal's handler had raised just behind it."""

    def one(owner, name, before=lambda: None):
        real = getattr(owner, name)

        def interrupted(*args):
            monkeypatch.setattr(owner, name, real)
            before()
            real(*args)
            raise KeyboardInterrupt

        monkeypatch.setattr(owner, name, interrupted)

    return one


@pytest.mark.parametrize("place", [(Pipe, "_fill_batch"), (pipe._Task, "wake")])
def test_an_interrupted_leader_leaves_nobody_waiting(provider, interrupt, place):
    """After it has gathered a batch, and while it tells the first of its tasks the result."""
    sending = []

    def others_come() -> None:
        sending.extend(in_thread(provider.send, "jobs", b"another's") for _ in range(3))
        eventually(lambda: len(provider._pipe._waiting) >= 3)

    real = Pipe._fill_batch

    def gathered(own):
        others_come() if not sending else None
        real(own)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Pipe, "_fill_batch", gathered)
        interrupt(*place)
        with pytest.raises(KeyboardInterrupt):
            provider.send("jobs", b"the leader's")
    provider.send("jobs", b"later")
    outcomes = [each.exception(GUARD) for each in sending]
    assert {type(outcome) for outcome in outcomes} <= {type(None), pipe.Unsure}
    assert provider.size("jobs") >= 1 + outcomes.count(None)


def test_who_came_while_an_interrupted_leader_led_is_served_at_once(provider, interrupt):
    sending = []

    def another_comes() -> None:
        sending.append(in_thread(provider.send, "jobs", b"another's"))
        eventually(lambda: len(provider._pipe._waiting) == 1)

    interrupt(Pipe, "_confirmed", another_comes)
    with pytest.raises(KeyboardInterrupt):
        provider.send("jobs", b"the leader's")
    assert sending[0].result(GUARD) is None
    assert provider.size("jobs") == 2


def test_a_handler_that_raises_right_behind_the_lock_leaves_it_free(provider, monkeypatch):
    lead = provider._pipe._lead

    class Interrupted:
        release = lead.release

        def acquire(self, blocking: bool) -> bool:
            assert lead.acquire(blocking=blocking)
            raise KeyboardInterrupt

    monkeypatch.setattr(provider._pipe, "_lead", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        provider.send("jobs", b"m")
    monkeypatch.setattr(provider._pipe, "_lead", lead)
    in_thread(provider.send, "jobs", b"another's").result(GUARD)


def test_a_result_too_large_to_be_remembered_is_the_only_one_that_is_lost(provider, monkeypatch):
    """The connection is cut behind a batch of a large `get` and a `put`, which is sent again with its number."""
    provider.send("jobs", bytes(100_000))
    real, batches, sending = Pipe._evaluate, [], []

    def cut(own, wire, operations, number=b""):
        batches.append(len(operations))
        if batches == [1]:
            sending.append(in_thread(provider.receive, "jobs", lease=None))
            eventually(lambda: len(own._waiting) == 1)
            sending.append(in_thread(provider.send, "jobs", b"put"))
            eventually(lambda: len(own._waiting) == 2)
        reply = real(own, wire, operations, number)
        if batches == [1, 2]:
            raise ConnectionLost("cut before the reply came")
        return reply

    monkeypatch.setattr(Pipe, "_evaluate", cut)
    assert provider.size("jobs") == 1
    got, put = sending
    with pytest.raises(ConnectionLost, match="lost with the connection"):
        got.result(GUARD)
    put.result(GUARD)
    assert [message for message, _ in provider.receive("jobs", lease=None)] == [b"put"]


def test_a_silent_server_is_noticed_whatever_signals_come():
    """Each of them ends a system call, which Python then begins again."""
    server = RedisServer().start()
    handled: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: handled.append(number))
    try:
        with pymq.EventBus(RedisConfig.from_url(server.url)) as bus:
            bus.publish(1, "c")
            server.pause()
            signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
            began = time.monotonic()
            with pytest.raises(ConnectionLost):
                bus.publish(1, "c")
            assert time.monotonic() - began < 8
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert handled
            server.resume()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        server.end()
