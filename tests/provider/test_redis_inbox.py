"""What a member remembers of what the server holds for it, while several of its threads change that at once."""

from __future__ import annotations

import asyncio
import secrets
import threading
from contextlib import nullcontext

import pytest
import redis
from harness import GUARD, ProcessPeer, in_thread
from programs import shop
from programs.participant import verbs
from redis_server import shared_url

import pymq
import pymq.asyncio
from pymq.exceptions import ConnectionLost, QueueNotFound
from pymq.provider._redis import pipe
from pymq.provider._redis.inbox import Patterns
from pymq.provider._redis.operations import packed
from pymq.provider._redis.pipe import Pipe
from pymq.provider._redis.receiver import Receiver
from pymq.provider._redis.script import Script
from pymq.provider.redis import RedisConfig, RedisProvider


@pytest.fixture
def config():
    return RedisConfig.from_url(f"{shared_url()}/inbox-{secrets.token_hex(4)}")


@pytest.fixture
def opened(config):
    """A provider with the inbox "in", which nobody else writes to, and one that serves calls of "t"."""
    asking, serving = config.create(), config.create()
    for provider in (asking, serving):
        provider.open()
    asking.declare("in", temporary=True)
    serving.declare("out", temporary=True)
    serving.bind("out", "t", exact=True)
    yield asking, serving
    for provider in (asking, serving):
        provider.close()


def received(provider: RedisProvider, timeout: float = 0) -> list[bytes]:
    return [message for message, _ in provider.receive("in", timeout)]


def test_a_call_that_finds_messages_leaves_them_to_the_next_look(opened):
    asking, serving = opened
    for number in range(3):
        serving.send("in", b"%d" % number)
    assert received(asking) == [b"0", b"1", b"2"]
    serving.send("in", b"3")
    serving.send("in", b"4")
    for _ in range(3):
        asking.request("t", b"question", "in")
    assert asking.size("in") == 2
    assert received(asking) == [b"3", b"4"]
    serving.send("in", b"5")
    assert received(asking) == [b"5"]


def test_every_one_of_many_calls_at_once_is_answered(config):
    async def main() -> list[list[int]]:
        async with pymq.asyncio.EventBus(config) as bus:
            add = bus.stub("add")

            async def client() -> list[int]:
                return [await add(number, number) for number in range(50)]

            calls = asyncio.gather(*[client() for _ in range(8)])
            return await asyncio.wait_for(calls, 6 * GUARD)

    server = ProcessPeer()
    try:
        server.call(verbs.open, config)
        server.expose(shop.add, "add")
        assert asyncio.run(main()) == [[2 * number for number in range(50)]] * 8
    finally:
        server.end()


@pytest.fixture
def late(opened):
    """`late(look)` asks in another thread, which hears only after the look that the server had known who would wait."""
    asking, _ = opened
    call = asking._pipe.call

    def one(look) -> None:
        told, go = threading.Event(), threading.Event()

        def slowly(operation):
            result = call(operation)
            if operation.name == b"request":
                told.set()
                go.wait(GUARD)
            return result

        asking._pipe.call = slowly
        requesting = in_thread(asking.request, "t", b"question", "in")
        assert told.wait(GUARD)
        asking._pipe.call = call
        look()
        go.set()
        requesting.result(GUARD)

    return one


@pytest.mark.parametrize("answers", [[], [b"answer"]])
def test_who_hears_late_that_a_message_will_be_waited_for_does_not_wait_in_vain(opened, late, answers, monkeypatch):
    asking, serving = opened
    looked = []
    run_and_block = Receiver.run_and_block

    def noted(receiver, operation, *args):
        looked.append(operation is not None)
        return run_and_block(receiver, operation, *args)

    def look() -> None:
        for answer in answers:
            serving.send("in", answer)
        assert received(asking) == answers

    monkeypatch.setattr(Receiver, "run_and_block", noted)
    late(look)
    serving.send("in", b"next")
    assert received(asking, GUARD) == [b"next"]
    assert False not in looked, "it waited for a token, which does not come, without a look"


@pytest.mark.parametrize("error", [ConnectionLost("cut"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_a_reply_that_was_taken_and_did_not_arrive_comes_again(opened, monkeypatch, error):
    asking, serving = opened
    real = Receiver._awaited

    def cut(own, wire, seconds):
        assert real(own, wire, seconds) is not None
        monkeypatch.setattr(Receiver, "_awaited", real)
        raise error

    monkeypatch.setattr(Receiver, "_awaited", cut)
    asking.request("t", b"question", "in")
    serving.reply("in", b"answer")
    with pytest.raises(KeyboardInterrupt) if isinstance(error, KeyboardInterrupt) else nullcontext():
        assert received(asking, GUARD) == [b"answer"]
    if isinstance(error, KeyboardInterrupt):
        assert received(asking, GUARD) == [b"answer"]
    asking.request("t", b"another question", "in")
    serving.reply("in", b"another answer")
    assert received(asking, GUARD) == [b"another answer"]


def test_a_reply_that_was_taken_by_one_who_waits_no_more_is_the_next_ones(opened):
    asking, serving = opened
    serving.reply("in", b"second")
    asking._pipe.call(packed(b"again", b"d:", b"in", b"first"))
    assert received(asking, GUARD) == [b"first"]
    assert received(asking, GUARD) == [b"second"]


def test_who_waits_for_replies_alone_looks_for_nothing_else(opened, monkeypatch):
    asking, serving = opened
    looked = []
    evaluation = Pipe.evaluation

    def noted(own, operations, number=b""):
        looked.extend(operation.name for operation in operations if operation.name in (b"fetch", b"request"))
        return evaluation(own, operations, number)

    monkeypatch.setattr(Pipe, "evaluation", noted)
    for _ in range(3):
        asking.request("t", b"question", "in")
        serving.reply("in", b"answer")
        assert received(asking, GUARD) == [b"answer"]
    assert looked == [b"request"] * 3


def test_a_reply_to_one_who_is_gone_leaves_nothing(opened, config):
    asking, serving = opened
    serving.reply("in", b"nobody takes it")
    with redis.Redis.from_url(shared_url()) as client:
        kept = client.keys(f"{config.prefix}[dk]:*")
        assert len(kept) == 2
        assert all(0 < client.pttl(key) <= 600_000 for key in kept)
        asking.delete("in")
        with pytest.raises(QueueNotFound):
            serving.reply("in", b"it is late")
        assert client.keys(f"{config.prefix}[dk]:*") == []


def test_a_reply_comes_where_the_short_way_is_barred(opened, monkeypatch):
    asking, serving = opened
    monkeypatch.setattr(pipe, "REPLY", Script(b"return error", b"0" * 40))
    asking.request("t", b"question", "in")
    serving.reply("in", b"answer")
    assert received(asking, GUARD) == [b"answer"]


def test_of_the_connections_of_many_replies_at_once_a_few_are_kept(opened, monkeypatch):
    asking, serving = opened
    at_once, run = threading.Barrier(40), pipe._run

    def together(wire, script, data):
        if script is pipe.REPLY:
            at_once.wait(GUARD)
        return run(wire, script, data)

    monkeypatch.setattr(pipe, "_run", together)
    for task in [in_thread(serving.reply, "in", b"%d" % number) for number in range(40)]:
        task.result(GUARD)
    assert sorted(int(received(asking, GUARD)[0]) for _ in range(40)) == [*range(40)]
    assert 0 < len(serving._pipe._spares) <= 16


def test_of_many_replies_a_few_are_kept(opened, config):
    asking, serving = opened
    for number in range(100):
        serving.reply("in", b"%d" % number)
        assert received(asking, GUARD) == [b"%d" % number]
    with redis.Redis.from_url(shared_url()) as client:
        assert client.lrange(f"{config.prefix}k:in", -20, -1) == [b"%d" % number for number in range(80, 100)]
        assert client.llen(f"{config.prefix}k:in") <= 40
        assert 0 < client.pttl(f"{config.prefix}k:in") <= 600_000


def test_a_plan_made_while_another_thread_refreshes_the_patterns_is_not_taken_for_a_new_one(opened, monkeypatch):
    publishing, receiving = opened
    publishing.bind("in", "another*", exact=False)
    matching = Patterns.matching
    publishing.publish(("topic/1",), b"it has read the patterns")

    def interrupted(patterns, topics):
        monkeypatch.setattr(Patterns, "matching", matching)
        found = matching(patterns, topics)
        receiving.bind("out", "topic/*", exact=False)
        assert in_thread(publishing.publish, ("topic/2",), b"noticed by another thread").result(GUARD) == 1
        return found

    monkeypatch.setattr(Patterns, "matching", interrupted)
    assert publishing.publish(("topic/3",), b"first") == 1
    assert publishing.publish(("topic/3",), b"second") == 1
    assert [message for message, _ in receiving.receive("out")] == [b"noticed by another thread", b"first", b"second"]
