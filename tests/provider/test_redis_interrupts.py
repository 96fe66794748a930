"""Signal handlers that raise, as that of Ctrl-C does, in a thread that sends what other threads want sent as well."""

from __future__ import annotations

import secrets

import pytest
from harness import GUARD, eventually, in_thread
from redis_server import shared_url

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
