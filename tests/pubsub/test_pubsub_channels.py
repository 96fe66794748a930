"""Channels between processes and threads: who receives what, what is counted, what is kept, and what is left."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest
from harness import GUARD, eventually, run_program, start_program

import pymq
from pymq import message as frames
from pymq import pubsub
from pymq.exceptions import MessageTooLarge
from pymq.pubsub import Channel, Message, fetch, publish, subscribe

PROGRAMS = Path(__file__).parent / "programs"


@contextmanager
def running(name: str, *args: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """A program that has said that it is ready."""
    with start_program(PROGRAMS / name, *args, stdin=subprocess.PIPE, **options) as process:
        try:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            yield process
        finally:
            process.kill()


def rest(process: subprocess.Popen[str], said: str = "") -> list[str]:
    out, err = process.communicate(said, timeout=GUARD)
    assert (process.returncode, err) == (0, "")
    return out.splitlines()


def drain(channel: Channel) -> list[bytes]:
    """The content of all that has come."""
    return [message.content for message in iter(lambda: fetch(channel), None)]


# --- publishing -------------------------------------------------------------------------------------------------------


def test_each_channel_whose_topic_matches_receives_it_and_is_counted(home):
    topics = ["logs.app.debug", "logs.+", "logs.+", "+", "logs.=.debug", "=.=.="]
    others = ["logs.=", "logs", "logs.app", "=.=", "logs.app.debug.+"]
    with running("holder.py", *topics, *others) as holder:
        assert publish("logs.app.debug", b"hit") == len(topics)
        assert publish("metrics.app", b"") == 2  # + and =.=
        assert publish("a.b.c.d.e", b"") == 1
        assert rest(holder, "\n").count("logs.app.debug b'hit'") == len(topics)
    assert publish("logs.app.debug", b"nobody") == 0


def test_the_count_is_the_same_for_whoever_publishes(home):
    with Channel(topic="logs.="), Channel(topic="logs.=.x"), running("holder.py", "logs.app"):
        assert publish("logs.app", b"") == 2
        assert run_program(PROGRAMS / "speaker.py", "logs.app", "a", "b") == ["2 2"]


def test_created_is_subscribed_and_nobody_needs_to_read(home):
    channel = Channel(topic="burst.=")
    for number in range(20_000):  # many times what a pipe holds
        assert publish("burst.x", b"%d" % number) == 1
    with channel:
        assert drain(channel) == [b"%d" % number for number in range(20_000)]


def test_what_is_kept_has_a_limit_and_beyond_it_the_count_says_so(home, caplog):
    with running("holder.py", "full") as holder:
        size = pubsub._here.provider._max_pending // 8
        reached = [publish("full", bytes(size)) for _ in range(10)]
        assert 6 <= sum(reached) <= 9
        assert sorted(reached, reverse=True) == reached
        assert "dropped" in caplog.text
        assert len(rest_of_lines(holder, sum(reached))) == sum(reached)


def rest_of_lines(holder: subprocess.Popen[str], count: int) -> list[str]:
    holder.stdin.write("\n")
    holder.stdin.flush()
    return [holder.stdout.readline() for _ in range(count)]


@pytest.mark.parametrize("size", [0, 1, 4000, 4096, 70_000, 3 << 20])
def test_any_size(home, size):
    content = os.urandom(size)
    with Channel(topic="a") as channel:
        assert publish("a", content, headers={"k": 1}) == publish("a", memoryview(content)) == 1
        assert drain(channel) == [content] * 2


def test_too_large_is_a_value_error(home):
    with pytest.raises(MessageTooLarge) as raised:
        publish("a", bytes(pubsub._here.provider.max_message_bytes + 1))
    assert isinstance(raised.value, ValueError)


def test_order_and_ids_of_one_publisher(home):
    with Channel(topic="+") as channel:
        for number in range(3000):
            publish("a.b" if number % 2 else "a", b"%d" % number, headers={"n": number} if number % 3 else None)
        messages = list(iter(lambda: fetch(channel), None))
    assert [message.content for message in messages] == [b"%d" % number for number in range(3000)]
    assert [message.headers for message in messages] == [{"n": number} if number % 3 else {} for number in range(3000)]
    ids = [message.id for message in messages]
    assert ids == sorted(set(ids))
    assert len({identity >> 64 for identity in ids}) == 1
    stamps = [message.timestamp for message in messages]
    assert max(stamps) - min(stamps) < 3600 * 10**6
    twin = Message.from_bytes(messages[-1].to_bytes())
    assert (twin.id, twin.timestamp, twin.headers) == (messages[-1].id, messages[-1].timestamp, messages[-1].headers)


def test_what_is_remembered_of_topics_has_a_limit(home, monkeypatch):
    monkeypatch.setattr(pubsub, "_MOST_REMEMBERED", 3)
    with Channel(topic="=") as channel:
        for number in range(10):
            assert publish(f"a{number}", b"%d" % number) == 1
        assert drain(channel) == [b"%d" % number for number in range(10)]
        assert len(pubsub._here.senders) <= 3
        assert len(channel._readers) <= 3


@pytest.mark.parametrize("headers", [{"s": "ü~", "i": 1 << 80, "f": 1.5, "b": True, "n": None, "": 0}, {"~": "dict", "v": 1}, {}])
def test_headers_arrive_as_they_were(home, headers):
    with Channel(topic="a") as channel:
        publish("a", b"", headers=headers)
        found = fetch(channel).headers
    assert found == headers
    assert [type(value) for value in found.values()] == [type(value) for value in headers.values()]


# --- fetching ---------------------------------------------------------------------------------------------------------


def test_only_open_channels_are_read(home):
    channel = Channel(topic="a")
    assert not channel.is_open
    for state in ("new", "closed"):
        for use in (fetch, lambda channel: subscribe(channel, print)):
            with pytest.raises(RuntimeError, match="with channel" if state == "new" else "is closed.*make a new one"):
                use(channel)
        with pytest.raises(RuntimeError, match="closed") if state == "closed" else ExitStack():
            channel.open()
            channel.open()
        assert channel.is_open == (state == "new")
        channel.close()
        channel.close()
    assert publish("a", b"") == 0


def test_fetch_never_blocks(home):
    with Channel(topic="a") as channel:
        assert fetch(channel) is None
        publish("a", b"1")
        assert fetch(channel).content == b"1"
        assert fetch(channel) is None


def test_fetch_beside_a_subscribe_does_not_wait_for_it(home):
    handled: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    with Channel(topic="a") as channel:
        thread = threading.Thread(target=subscribe, args=(channel, lambda message: handled.put(message.content)))
        thread.start()
        publish("a", b"1")
        assert handled.get(timeout=GUARD) == b"1"
        assert [fetch(channel) for _ in range(1000)] == [None] * 1000
        channel.close()
        thread.join(GUARD)
        assert not thread.is_alive()


# --- subscribing ------------------------------------------------------------------------------------------------------


def test_subscribe_counts_until_its_time_is_over(home):
    handled: list[bytes] = []
    with Channel(topic="a.+") as channel:
        for number in range(100):
            publish("a.b", b"%d" % number)
        assert subscribe(channel, lambda message: handled.append(message.content), timeout_seconds=0.05) == 100
        assert handled == [b"%d" % number for number in range(100)]
        assert subscribe(channel, handled.append, timeout_seconds=0.001) == 0


def test_a_stream_of_messages_does_not_hold_up_the_end(home):
    with Channel(topic="a") as channel:

        def again(message: Message) -> None:
            publish("a", b"")

        publish("a", b"")
        assert subscribe(channel, again, timeout_seconds=0.05) > 0
        assert drain(channel) == [b""]


def test_what_has_come_is_handled_however_short_the_time(home):
    with Channel(topic="a") as channel:
        publish("a", b"1")
        assert subscribe(channel, lambda message: None, timeout_seconds=1e-9) == 1


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan"), float("-inf")])
def test_a_negative_timeout_is_a_value_error(home, seconds):
    with Channel(topic="a") as channel, pytest.raises(ValueError, match="timeout_seconds"):
        subscribe(channel, print, timeout_seconds=seconds)


def test_a_callback_that_raises_is_logged_and_counted_and_the_loop_goes_on(home, caplog):
    handled: list[bytes] = []

    def callback(message: Message) -> None:
        handled.append(message.content)
        if message.content == b"bad":
            raise KeyError("what happened")

    with Channel(topic="a") as channel, caplog.at_level(logging.ERROR, "pymq"):
        for content in (b"bad", b"good", b"bad"):
            publish("a", content)
        assert subscribe(channel, callback, timeout_seconds=0.05) == 3
        assert (handled, channel.failed) == ([b"bad", b"good", b"bad"], 2)
    assert caplog.text.count("what happened") >= 2
    assert "callback" in caplog.text


@pytest.mark.parametrize("seconds", [0, 1e12, float("inf")])
def test_a_callback_may_end_its_channel(home, seconds):
    with Channel(topic="a") as channel:

        def speak() -> None:
            publish("a", b"1")
            publish("a", b"2")

        speaker = threading.Timer(0.05, speak)
        speaker.start()
        assert subscribe(channel, lambda message: channel.close(), timeout_seconds=seconds) == 1
        speaker.join()


def test_one_at_a_time_subscribes_to_a_channel(home):
    with Channel(topic="a") as channel:
        refused: list[RuntimeError] = []

        def callback(message: Message) -> None:
            try:
                subscribe(channel, print)
            except RuntimeError as error:
                refused.append(error)
            channel.close()

        publish("a", b"")
        assert subscribe(channel, callback) == 1
        assert "another Channel" in str(refused[0])


def test_threads_with_a_channel_each(home):
    heard: list[list[bytes]] = [[] for _ in range(4)]
    with ExitStack() as stack:
        channels = [stack.enter_context(Channel(topic="all.=")) for _ in heard]

        def listen(channel: Channel, into: list[bytes]) -> None:
            def callback(message: Message) -> None:
                into.append(message.content)
                if message.content == b"end":
                    channel.close()

            subscribe(channel, callback)

        threads = [threading.Thread(target=listen, args=each) for each in zip(channels, heard)]
        for thread in threads:
            thread.start()
        for number in range(2000):
            assert publish("all.x", b"%d" % number) == 4
        publish("all.x", b"end")
        for thread in threads:
            thread.join(GUARD)
    assert heard == [[*(b"%d" % number for number in range(2000)), b"end"]] * 4


def test_between_processes(home):
    with running("listener.py", "logs.+") as listener:
        assert publish("logs.app", b"one", headers={"k": 1}) == 1
        assert run_program(PROGRAMS / "speaker.py", "logs.x.y", "two") == ["1"]
        assert listener.stdout.readline() == "logs.app b'one' {'k': 1}\n"
        assert listener.stdout.readline() == "logs.x.y b'two' {'n': 0}\n"
        listener.terminate()
        assert rest(listener) == ["handled -1"]
    assert publish("logs.app", b"") == 0


@pytest.mark.needs_strace
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_an_idle_channel_makes_no_system_call(home, tmp_path):
    log = tmp_path / "strace"
    with running("listener.py", "idle") as listener:
        publish("idle", b"")
        assert listener.stdout.readline()
        with subprocess.Popen(["strace", "-f", "-o", log, "-p", str(listener.pid)], stderr=subprocess.PIPE, text=True) as tracer:
            try:
                if "attached" not in tracer.stderr.readline():
                    pytest.skip("needs the right to ptrace")
                eventually(log.read_text)
                threading.Event().wait(0.3)  # until it is attached to every thread
                before = log.read_text()
                threading.Event().wait(3)
                assert log.read_text() == before
                publish("idle", b"")
                assert listener.stdout.readline()
                assert log.read_text() != before, "nothing was traced"
                listener.terminate()
                assert rest(listener) == ["handled -1"]
            finally:
                tracer.terminate()


# --- what is left -----------------------------------------------------------------------------------------------------


def test_a_killed_process_is_not_counted_and_swept_by_the_next(home):
    with running("holder.py", "a", "a.+") as holder:
        assert publish("a", b"") == 1
        assert publish("a.b", bytes(100_000)) == 1
        holder.kill()
        holder.wait()
        assert publish("a", b"") == publish("a.b", b"") == 0
    with Channel(topic="a"):
        assert len(list((home / "default" / "inboxes").glob("*.fifo"))) == 1


def test_a_channel_that_nobody_closed_ends_with_its_process(home):
    with running("holder.py", "a") as holder:
        holder.stdin.close()
        assert holder.wait(GUARD) == 0
    assert publish("a", b"") == 0


def test_the_end_of_the_process_ends_what_listens(home):
    handled: queue.SimpleQueue[int] = queue.SimpleQueue()
    channel = Channel(topic="a")
    channel.open()
    thread = threading.Thread(target=lambda: handled.put(subscribe(channel, lambda message: heard.set())))
    heard = threading.Event()
    thread.start()
    publish("a", b"")
    assert heard.wait(GUARD)
    pubsub._close()
    assert handled.get(timeout=GUARD) == 1
    thread.join(GUARD)


def test_a_daemon_thread_may_still_listen_when_its_program_ends(home):
    assert run_program(PROGRAMS / "ending.py") == ["heard b'x'"]


def test_only_this_user_can_enter(home):
    with Channel(topic="a"):
        directories = [home, *(path for path in home.rglob("*") if path.is_dir())]
        assert {path.stat().st_mode & 0o777 for path in directories} == {0o700}
        assert all(path.stat().st_mode & 0o077 == 0 for path in home.rglob("*"))


def test_a_forked_child_has_channels_of_its_own_only(home):
    assert run_program(PROGRAMS / "forking.py") == [
        "open False",
        *["RuntimeError"] * 3,
        "reached 2",
        "b'from the child' None",
        "parent b'before'",
        "parent b'from the child'",
        "2 senders; reached 1 b'after'",
    ]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYMQ_HOME": "{}/one", "PUBSUB_HOME": "{}/two"}, "one/default"),
        ({"PUBSUB_HOME": "{}/two"}, "two/default"),
        ({"PUBSUB_HOME": "{}/two", "PYMQ_HOME": ""}, "two/default"),
        ({"PUBSUB_HOME": "{}/two", "PYMQ_URL": "shm://other"}, "two/other"),
        ({"PYMQ_HOME": "{}/one", "PYMQ_URL": "redis://localhost"}, "one/default"),
    ],
)
def test_where_channels_are(home, monkeypatch, environment, expected):
    monkeypatch.delenv("PYMQ_HOME")
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(home.parent))
    with Channel(topic="a"):
        assert (home.parent / expected / "registry").exists()
        assert run_program(PROGRAMS / "speaker.py", "a", "x") == ["1"]


# --- beside a bus -----------------------------------------------------------------------------------------------------


def test_a_bus_and_channels_hear_each_other(home):
    with running("bus.py") as bus, Channel(topic="logs.+") as channel:
        assert publish("logs.app", b"from a channel", headers={"k": 1}) == 2
        heard = {bus.stdout.readline() for _ in range(2)}
        assert heard == {"exact b'from a channel' {'k': 1}\n", "pattern b'from a channel'\n"}
        assert fetch(channel).content == b"from a channel"
        bus.stdin.write("from a bus\n")
        bus.stdin.flush()
        heard = sorted(bus.stdout.readline() for _ in range(5))
        assert heard[:2] == ["exact b'from a bus' {'k': 1}\n", "exact b'from a bus' {}\n"]
        assert heard[2:] == [*["pattern b'from a bus'\n"] * 2, "reached 2 2\n"]
        assert rest(bus) == []
        messages = list(iter(lambda: fetch(channel), None))
    assert [(m.topic, m.content, m.headers) for m in messages] == [
        ("logs.app", b"from a bus", {}),
        ("logs.app", b"from a bus", {"k": 1}),
    ]
    assert messages[0].id != messages[1].id
    assert all(0 <= time.time_ns() // 1000 - message.timestamp < 60e6 for message in messages)


@pytest.fixture
def bus(home: Path) -> Iterator[pymq.EventBus]:
    with pymq.EventBus() as bus:
        yield bus


@dataclass
class Reading:
    celsius: float


def test_a_bus_counts_the_channels_that_match_and_no_others(bus):
    with Channel(topic="sensors.="), Channel(topic="sensors.+"), Channel(topic="sensors"):
        assert bus.publish(b"", "sensors.one") == 2
        assert bus.publish(b"", "sensors.one.two") == 1
        assert bus.publish(b"", "sensors") == 1


def test_a_group_gets_the_content_and_nothing_else(bus):
    got = queue.SimpleQueue()

    def handle(content: bytes) -> None:
        got.put(content)

    bus.subscribe(handle, "sensors.one", group="readers")
    for content in (b"first", b"of the same prefix as the first", b""):
        assert publish("sensors.one", content) == 1
        assert got.get(timeout=GUARD) == content
    bus.group("readers").delete()


def test_what_is_not_bytes_arrives_encoded(bus):
    with Channel(topic="+") as channel:
        assert bus.publish(Reading(21.5), "sensors.one") == 1
        assert bus.publish(Reading(1.0), headers={"when": date(2026, 1, 2)}) == 1
        first, second = fetch(channel), fetch(channel)
    assert first.content == struct.pack("<Bd", 0, 21.5)
    assert second.topic.endswith(".Reading")
    assert second.headers == {"when": date(2026, 1, 2)}


def test_what_is_delayed_comes_when_it_is_due_and_what_has_expired_not_at_all(bus):
    with Channel(topic="a") as channel:
        begin = time.monotonic()
        bus.publish(b"late", "a", delay=0.3)
        bus.publish(b"later", "a", delay=0.6)
        bus.publish(b"expired", "a", ttl=1e-9)
        bus.publish(b"now", "a", ttl=60)
        assert drain(channel) == [b"now"]
        heard: list[tuple[bytes, float]] = []

        def callback(message: Message) -> None:
            heard.append((message.content, time.monotonic() - begin))
            if message.content == b"later":
                channel.close()

        assert subscribe(channel, callback) == 2
    assert [content for content, _ in heard] == [b"late", b"later"]
    assert all(came >= due for (_, came), due in zip(heard, (0.3, 0.6)))


def test_what_expires_while_it_waits_is_not_handed_out(bus):
    with Channel(topic="a") as channel:
        for content, ttl in ((b"first", None), (b"expires", 0.2), (b"expires as soon as it is due", 0.000001), (b"last", 60)):
            bus.publish(content, "a", ttl=ttl, delay=0.1 if b"due" in content else 0)
        assert fetch(channel).content == b"first"
        threading.Event().wait(0.3)
        assert drain(channel) == [b"last"]


def test_a_fetch_that_was_interrupted_does_not_make_the_channel_deaf(home, monkeypatch):
    with Channel(topic="a") as channel:
        reading = channel._reading

        class Interrupting:
            release = reading.release

            def acquire(self, blocking: bool) -> bool:
                reading.acquire(blocking)
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(channel, "_reading", Interrupting())
            with pytest.raises(KeyboardInterrupt):
                fetch(channel)
        publish("a", b"later")
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(fetch, channel).result().content == b"later"


def test_a_frame_that_is_cut_hides_none_behind_it(home):
    with Channel(topic="a") as channel:
        provider = pubsub._here.provider
        publish("a", b"")
        [(whole, _)] = provider.receive(channel._queue)
        for length in range(len(whole)):
            provider.send(channel._queue, whole[:length])
            publish("a", b"%d" % length)
        found = [message.content for _ in range(len(whole) + 1) if (message := fetch(channel))]
    assert [content for content in found if content] == [b"%d" % length for length in range(len(whole))]


def test_strangers_frames_are_skipped(home, caplog):
    with Channel(topic="a") as channel:
        provider = pubsub._here.provider
        request = frames.Frame(1, frames.Prefix(frames.REQUEST, 0, 0, 1, "a", "bytes", ()), {}, b"a call").pack()
        for frame in (b"", b"x", bytes(100), b"\0" * 8 + b"\xff\xff" + b"\1" * 50, request):
            assert provider.publish(("e/a",), frame) == 1
        other = frames.Prefix(frames.EVENT, 0, 0, 1, "b", "bytes", ())
        provider.send(channel._queue, frames.Frame(2, other, {}, b"for somebody else").pack())
        publish("a", b"good")
        assert drain(channel) == [b"good"]
    assert "skipped" in caplog.text
