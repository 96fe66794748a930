"""Inboxes and the registry of the shm provider: what must hold whatever its processes do, in real processes."""

from __future__ import annotations

import fcntl
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pymq.exceptions import MessageTooLarge, ProviderError, QueueNotFound
from pymq.message import beside
from pymq.provider._shm.frames import DATA, INLINE_BYTES, LOCATION, LOGGED, NUDGE, REFERENCE, SLEEPERS, STATE, arena_name, frame
from pymq.provider.base import IDLE
from pymq.provider.shm import ShmConfig, ShmProvider

GUARD = 20.0
spawn = multiprocessing.get_context("spawn")


class Peer:
    """Another process with a provider of its own: `peer.call(function, *args)` is `function(provider, *args)` there."""

    def __init__(self, config: ShmConfig) -> None:
        self._connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(config, theirs))
        self.process.start()
        theirs.close()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        self.begin(function, *args)
        return self.result()

    def begin(self, function: Callable[..., Any], *args: Any) -> None:
        self._connection.send((function, args))

    def result(self) -> Any:
        assert self._connection.poll(GUARD), "no answer"
        return self._connection.recv()

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def end(self) -> None:
        if self.process.is_alive():
            self.signal(signal.SIGCONT)
            self._connection.close()
            self.process.join(GUARD)
        self.kill()
        self._connection.close()


def _serve(config: ShmConfig, connection: Any) -> None:
    provider = config.create()
    provider.open()
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return provider.close()
        connection.send(function(provider, *args))


def subscribe(provider: ShmProvider, name: str, topic: str = "topic") -> None:
    provider.declare(name, temporary=True)
    provider.bind(name, topic, exact=True)


def take(provider: ShmProvider, name: str, count: int) -> list[bytes]:
    """That many messages, or what came until nothing did for a while."""
    found: list[bytes] = []
    while len(found) < count:
        new = provider.receive(name, GUARD)
        if not new:
            break
        found += [message for message, _ in new]
    return found


def flood(provider: ShmProvider, sender: int, first: int, count: int, sizes: tuple[int, ...] = (200,)) -> int:
    """Publish numbered messages; how many were accepted."""
    return sum(provider.publish(("topic",), numbered(sender, number, sizes)) for number in range(first, first + count))


def numbered(sender: int, number: int, sizes: tuple[int, ...] = (200,)) -> bytes:
    return b"%d %d " % (sender, number) + bytes([number % 251]) * sizes[number % len(sizes)]


def shrink_pipe(provider: ShmProvider, name: str, size: int) -> None:
    assert fcntl.fcntl(provider._inboxes[name]._fifo, fcntl.F_SETPIPE_SZ, size) == size


def holes(messages: list[bytes], senders: int, count: int, sizes: tuple[int, ...] = (200,)) -> list[int]:
    """The senders whose messages are not exactly what they sent, in their order."""
    by_sender: dict[int, list[bytes]] = {sender: [] for sender in range(senders)}
    for message in messages:
        by_sender[int(message.split(b" ", 1)[0])].append(message)
    return [sender for sender, found in by_sender.items() if found != [numbered(sender, number, sizes) for number in range(count)]]


@pytest.fixture
def config() -> Iterator[ShmConfig]:
    """In a home of its own, of which nothing may be left."""
    with tempfile.TemporaryDirectory(prefix="pymq-unit-", dir="/dev/shm") as place:
        yield ShmConfig(home=f"{place}/home")
        assert [str(path) for path in Path(place).rglob("*")] == []


@pytest.fixture
def opened(config: ShmConfig) -> Iterator[Callable[..., ShmProvider]]:
    providers: list[ShmProvider] = []

    def make(config: ShmConfig = config) -> ShmProvider:
        providers.append(config.create())
        providers[-1].open()
        return providers[-1]

    yield make
    for provider in providers:
        provider.close()


@pytest.fixture
def peers(config: ShmConfig) -> Iterator[Callable[..., Any]]:
    started: list[Peer] = []

    def start(count: int, config: ShmConfig = config) -> list[Peer]:
        new = [Peer(config) for _ in range(count)]
        started.extend(new)
        return new

    yield start
    for peer in started:
        peer.end()
    sweeper = config.create()  # what the killed have left
    sweeper.open()
    sweeper.close()


# Overflow


@pytest.mark.parametrize("pipe", [8192, 256 << 10])
def test_each_senders_order_holds_across_the_overflow(opened, peers, pipe):
    receiver, senders, sizes = opened(), peers(3), (200, 0, 1500, 70_000, 5000)
    subscribe(receiver, "inbox")
    shrink_pipe(receiver, "inbox", pipe)
    found = []
    for first in (0, 600, 1200):
        for sender, peer in enumerate(senders):
            peer.begin(flood, sender, first, 600, sizes)
        if first == 600:  # nobody reads until all is written
            assert [peer.result() for peer in senders] == [600] * 3
            assert receiver._inboxes["inbox"].head[LOGGED]
        found += take(receiver, "inbox", 1800)
        if first != 600:
            assert [peer.result() for peer in senders] == [600] * 3
    assert holes(found, 3, 1800, sizes) == []


def test_a_receiver_that_is_busy_for_seconds_loses_none_of_100000_events(opened, peers):
    receiver, (sender,) = opened(), peers(1)
    subscribe(receiver, "inbox")
    shrink_pipe(receiver, "inbox", 8192)
    assert sender.call(flood, 0, 0, 100_000) == 100_000
    assert holes(take(receiver, "inbox", 100_000), 1, 100_000) == []


def test_what_a_sender_adds_to_the_log_while_it_is_read_waits_for_the_next_time(opened, monkeypatch):
    receiver, sender = opened(), opened()
    subscribe(receiver, "inbox")
    shrink_pipe(receiver, "inbox", 4096)
    inbox = receiver._inboxes["inbox"]
    sent = 0
    while not inbox.head[LOGGED]:
        sent += flood(sender, 0, sent, 1)
    read_log = inbox._read_log

    def read_beside_a_sender(end: int) -> None:
        nonlocal sent
        read_log(end)
        if sent < 500:
            sent += flood(sender, 0, sent, 1)

    monkeypatch.setattr(inbox, "_read_log", read_beside_a_sender)
    batch = [message for message, _ in receiver.receive("inbox", GUARD)]
    assert len(batch) < sent < 100
    found = batch + take(receiver, "inbox", 500 - len(batch))
    assert holes(found, 1, 500) == []
    assert not inbox.head[LOGGED]


def test_where_all_that_was_in_the_log_is_damaged_what_was_added_meanwhile_comes_at_once(opened, monkeypatch):
    receiver, sender = opened(), opened()
    subscribe(receiver, "inbox")
    shrink_pipe(receiver, "inbox", 4096)
    inbox = receiver._inboxes["inbox"]
    while not inbox.head[LOGGED]:
        flood(sender, 0, 1, 1)
    read_log = inbox._read_log

    def read_damaged(end: int) -> None:
        monkeypatch.undo()
        flood(sender, 0, 0, 1)
        read_log(end)
        inbox._found.clear()

    monkeypatch.setattr(inbox, "_read_log", read_damaged)
    assert [message for message, _ in receiver.receive("inbox", 0)] == [numbered(0, 0)]


def test_a_stopped_receiver_costs_one_wait_and_its_copies_are_counted(config, opened, peers, monkeypatch, caplog):
    slow = ShmConfig(home=config.home, max_pending=1 << 20, publish_timeout=0.2)
    publisher, (stopped, *others) = opened(slow), peers(3, slow)
    for number, peer in enumerate((stopped, *others)):
        peer.call(subscribe, f"inbox {number}")
    for number, peer in enumerate(others, 1):
        peer.begin(take, f"inbox {number}", 10_000)
    waits = []
    wait = publisher._wait_for_room
    monkeypatch.setattr(publisher, "_wait_for_room", lambda *args: waits.append(args) or wait(*args))
    stopped.signal(signal.SIGSTOP)
    accepted = flood(publisher, 0, 0, 10_000, (1000,))
    assert [holes(peer.result(), 1, 10_000, (1000,)) for peer in others] == [[], []]
    waited_for = [outlet.name for full, *_ in waits for outlet in full]
    assert waited_for.count("inbox 0") == 1, "each publish waited for it"
    assert "inbox 0" in caplog.text
    stopped.signal(signal.SIGCONT)
    kept = accepted - 20_000
    assert stopped.call(take, "inbox 0", kept) == [numbered(0, number, (1000,)) for number in range(kept)]
    assert stopped.call(ShmProvider.counters)["inbox 0"]["dropped"] == 10_000 - kept > 0
    assert publisher.publish(("topic",), b"0 after") == 3, "it has caught up, and is not passed over any more"
    assert stopped.call(take, "inbox 0", 1) == [b"0 after"]


def test_a_sender_waits_for_room_and_goes_on(config, opened, peers):
    receiver, (sender,) = opened(), peers(1, ShmConfig(home=config.home, max_pending=100_000, publish_timeout=100 * GUARD))
    subscribe(receiver, "inbox")
    sender.begin(flood, 0, 0, 3000)
    while not (sleepers := receiver._inboxes["inbox"].head[SLEEPERS]):
        time.sleep(0.001)
    assert sleepers == 1
    assert holes(take(receiver, "inbox", 3000), 1, 3000) == []
    assert sender.result() == 3000


def test_a_process_never_waits_for_itself(config, opened):
    small = ShmConfig(home=config.home, max_pending=100_000, publish_timeout=GUARD)
    provider, sizes = opened(small), (200, 20_000, 200_000)
    subscribe(provider, "inbox")
    assert flood(provider, 0, 0, 3000, sizes) == 3000
    assert provider.size("inbox") == 3000
    assert holes(take(provider, "inbox", 3000), 1, 3000, sizes) == []


def test_a_blocked_receive_finds_what_its_own_process_moved_to_memory(config, opened):
    provider = opened(ShmConfig(home=config.home, max_pending=100_000))
    subscribe(provider, "inbox")
    found: list[bytes] = []
    receiver = threading.Thread(target=lambda: found.extend(take(provider, "inbox", 20_000)))
    receiver.start()
    assert flood(provider, 0, 0, 20_000) == 20_000
    receiver.join(GUARD)
    assert holes(found, 1, 20_000) == []


# Deaths


def test_a_killed_receiver_is_not_counted_and_its_files_go(config, opened, peers):
    publisher, (victim, other) = opened(), peers(2)
    for name, peer in (("victim", victim), ("other", other)):
        peer.call(subscribe, name)
    assert publisher.publish(("topic",), b"both") == 2
    assert sorted(publisher.consumers("topic")) == ["other", "victim"]
    victim.kill()
    assert publisher.publish(("topic",), b"one") == 1
    assert {name.split(".")[0] for name in os.listdir(f"{config.home}/default/inboxes")} == {"other"}
    assert publisher.consumers("topic") == ["other"]
    with pytest.raises(QueueNotFound, match="victim"):
        publisher.send("victim", b"")
    other.kill()
    assert publisher.consumers("topic") == []


def test_a_watched_process_ends_a_receive_with_its_death(opened, peers):
    waiting, (victim,) = opened(), peers(1)
    subscribe(waiting, "inbox")
    victim.call(subscribe, "victim", "elsewhere")
    threading.Timer(0.05, victim.signal, [signal.SIGKILL]).start()
    began = time.monotonic()
    assert waiting.receive("inbox", GUARD, watch=["victim"]) == []
    assert waiting.receive("inbox", GUARD, watch=["victim"]) == []
    assert time.monotonic() - began < GUARD / 2


def test_publishers_killed_at_random_leave_only_whole_messages_in_order(opened, peers):
    receiver, sizes = opened(), (200, 4000, 9000, 300_000)
    subscribe(receiver, "inbox")
    chance = random.Random(7)
    for _ in range(8):
        (publisher,) = peers(1)
        publisher.begin(flood, 0, 0, 1_000_000, sizes)
        found = take(receiver, "inbox", chance.randrange(1, 2000))
        publisher.kill()
        while new := receiver.receive("inbox", 0):
            found += [message for message, _ in new]
        assert found == [numbered(0, number, sizes) for number in range(len(found))]
    assert receiver.publish(("topic",), b"0 after") == 1
    assert take(receiver, "inbox", 1) == [b"0 after"]


def test_the_arenas_of_dead_senders_do_not_pile_up(config, opened, peers):
    receiver = opened()
    subscribe(receiver, "inbox")
    for _ in range(4):
        (sender,) = peers(1)
        sender.call(flood, 0, 0, 1, (100_000,))
        assert len(take(receiver, "inbox", 1)) == 1
        sender.kill()
    arenas = [name for name in os.listdir(f"{config.home}/default/inboxes") if len(name.split(".")[1]) == 16]
    assert len(arenas) == 1


def fork_and_stay(provider: ShmProvider) -> int:
    child = os.fork()
    if child == 0:
        time.sleep(GUARD)
        os._exit(0)
    return child


def test_a_forked_child_does_not_keep_its_dead_parents_inbox_alive(opened, peers):
    publisher, (parent,) = opened(), peers(1)
    parent.call(subscribe, "inbox")
    child = parent.call(fork_and_stay)
    parent.kill()
    try:
        deadline = time.monotonic() + GUARD
        while publisher.publish(("topic",), b""):  # until the child has run as far as to close its copies
            assert time.monotonic() < deadline
    finally:
        os.kill(child, signal.SIGKILL)


# Damage


def test_stray_bytes_between_frames_are_counted_and_skipped(opened):
    provider, chance = opened(), random.Random(11)
    subscribe(provider, "inbox")
    writer = provider._outlet("inbox").fifo
    for number in range(300):
        os.write(writer, chance.randbytes(chance.randrange(1, 300)))
        assert provider.publish(("topic",), numbered(0, number)) == 1
    assert holes(take(provider, "inbox", 300), 1, 300) == []
    assert provider.counters()["inbox"]["corrupt"] > 0


def test_no_flipped_bit_of_a_frame_makes_a_wrong_message(opened):
    provider = opened()
    subscribe(provider, "inbox")
    writer, messages = provider._outlet("inbox").fifo, [b"the first", b"", b"the third"]
    frames = b"".join(frame(DATA, message) for message in messages)
    for bit in range(8 * len(frames)):
        damaged = bytearray(frames)
        damaged[bit // 8] ^= 1 << bit % 8
        os.write(writer, damaged)
        found = [message for message, _ in provider.receive("inbox")]
        assert len(found) >= 2
        assert not set(found) - set(messages)
        assert provider.publish(("topic",), b"next") == 1
        assert provider.receive("inbox") == [(b"next", None)]


def test_foreign_frames_that_are_whole_do_no_harm(opened):
    provider = opened()
    subscribe(provider, "inbox")
    writer = provider._outlet("inbox").fifo
    for magic, body in ((REFERENCE, b"short"), (REFERENCE, bytes(24)), (REFERENCE, b"\xff" * 24), (NUDGE, b"long")):
        os.write(writer, frame(magic, body))
    os.write(writer, frame(DATA, b"good"))
    assert provider.receive("inbox") == [(b"good", None)]
    assert provider.counters()["inbox"]["corrupt"] == 3


@pytest.mark.parametrize("size", [0, 30, 32, 64])
def test_an_arena_that_is_too_short_is_none(opened, size):
    provider = opened()
    subscribe(provider, "inbox")
    outlet, token = provider._outlet("inbox"), 77
    os.truncate(outlet._directory.open(arena_name(outlet._stem, token), os.O_RDWR | os.O_CREAT), size)
    os.write(outlet.fifo, frame(REFERENCE, LOCATION.pack(token, 0, 10)))
    os.write(outlet.fifo, frame(DATA, b"good"))
    assert provider.receive("inbox") == [(b"good", None)]
    assert provider.counters()["inbox"]["corrupt"] == 1


def test_a_damaged_log_loses_only_what_is_damaged(opened):
    provider = opened()
    subscribe(provider, "inbox")
    outlet = provider._outlet("inbox")
    sent = [numbered(0, number) for number in range(3)]
    for message in sent:
        with outlet._lock:
            assert outlet._append([frame(DATA, message)])
    os.pwrite(outlet._log, b"\0\0", len(frame(DATA, sent[0])) + 40)
    assert provider.receive("inbox") == [(sent[0], None), (sent[2], None)]
    assert provider.counters()["inbox"]["corrupt"] > 0


# Sizes


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, 4096, 65_535, 65_537, 2 << 20, (2 << 20) + 1, 16 << 20])
def test_any_size_up_to_the_maximum(config, opened, size):
    sender, receiver = opened(ShmConfig(home=config.home, max_message_bytes=16 << 20)), opened()
    subscribe(receiver, "inbox")
    message = random.Random(size).randbytes(size)
    assert sender.publish(("topic",), message) == 1
    assert take(receiver, "inbox", 1) == [message]
    sender.send("inbox", message)
    assert take(receiver, "inbox", 1) == [message]
    for send in (lambda: sender.publish(("topic",), bytes(1 + (16 << 20))), lambda: sender.send("inbox", bytes(1 + (16 << 20)))):
        with pytest.raises(MessageTooLarge, match="16777217"):
            send()


@pytest.mark.parametrize("head", [b"", b"head", bytes(4060), bytes(4061), bytes(65_535)], ids=len)
@pytest.mark.parametrize("size", [4096, 65_536, (2 << 20) + 1])
@pytest.mark.parametrize("is_joined", [False, True], ids=["apart", "joined"])
def test_a_large_payload_arrives_behind_its_head(opened, head, size, is_joined):
    sender, receiver = opened(), opened()
    subscribe(receiver, "inbox")
    how = (None, head.__add__, len(head)) if is_joined else (itertools.repeat(head), bytes)
    publish = sender.publisher(("topic",), *how)
    payloads = [random.Random(number).randbytes(size) for number in range(4)]
    for payload in payloads:
        assert publish(payload) == 1
    found = take(receiver, "inbox", len(payloads))
    assert [message[len(head) :] or beside(message) for message in found] == payloads
    assert all(message[: len(head)] == head for message in found)


# Interrupted


class Interrupting:
    """Does what the other does, and lets the caller find itself interrupted after the next call of one method."""

    def __init__(self, other: Any, method: str) -> None:
        self._other, self._method = other, method

    def __getattr__(self, name: str) -> Any:
        do = getattr(self._other, name)
        if name != self._method:
            return do

        def interrupted(*args: Any) -> None:
            self._method = ""
            do(*args)
            raise KeyboardInterrupt

        return interrupted


@pytest.mark.parametrize("method", ["register", "unregister"])
def test_whom_to_watch_may_be_interrupted(opened, peers, method):
    """Every later receive from that queue failed, or did not see the death."""
    provider, (first, second) = opened(), peers(2)
    provider.declare("inbox", temporary=True)
    first.call(subscribe, "first")
    second.call(subscribe, "second")
    inbox = provider._inboxes["inbox"]
    assert provider.receive("inbox", 0.001, watch=["first"]) == []
    inbox._poll = Interrupting(inbox._poll, method)
    with pytest.raises(KeyboardInterrupt):
        provider.receive("inbox", 0.001, watch=["second"])
    assert provider.receive("inbox", 0.001, watch=["second"]) == []
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(provider.receive, "inbox", 60, watch=["second"])
        while inbox.head[STATE] != IDLE:
            time.sleep(0.001)
        second.kill()
        assert receiving.result(10) == []


def test_what_was_parsed_when_a_signal_handler_raised_comes_once(opened, monkeypatch):
    sender, receiver = opened(), opened()
    subscribe(receiver, "inbox")
    sent = [b"%d" % number for number in range(20)]
    for message in sent:
        sender.send("inbox", message)
    checked = itertools.count()

    def interrupted(body: bytes) -> int:
        if next(checked) == 9:
            raise KeyboardInterrupt
        return zlib.adler32(body)

    with monkeypatch.context() as patched:
        patched.setattr("pymq.provider._shm.inbox.checksum", interrupted)
        with pytest.raises(KeyboardInterrupt):
            receiver.receive("inbox")
    assert take(receiver, "inbox", 20) == sent


# Idle


def block(provider: ShmProvider, name: str) -> None:
    provider.receive(name, None)


@pytest.mark.needs_strace
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_an_idle_receiver_makes_no_system_call(opened, peers, tmp_path):
    waker, (idle,) = opened(), peers(1)
    idle.call(subscribe, "inbox")
    idle.begin(block, "inbox")
    log = tmp_path / "strace"
    tracer = subprocess.Popen(["strace", "-f", "-o", log, "-p", str(idle.process.pid)], stderr=subprocess.PIPE, text=True)
    try:
        if "attached" not in tracer.stderr.readline():
            pytest.skip("needs the right to ptrace")
        while waker._outlet("inbox").head[STATE] != IDLE:
            time.sleep(0.001)
        time.sleep(0.05)
        before = log.read_text()
        time.sleep(1)
        assert log.read_text() == before
        assert waker.publish(("topic",), b"") == 1
        idle.result()
        assert log.read_text() != before
    finally:
        tracer.terminate()
        tracer.communicate()


# The registry


def test_bindings_are_in_force_everywhere_at_once_also_across_compactions(config, opened):
    first, second = opened(), opened()
    subscribe(first, "inbox", "kept")
    for number in range(1500):
        first.bind("inbox", f"topic {number} {'x' * 100}", exact=True)
        assert second.publish((f"topic {number} {'x' * 100}",), b"") == 1
        first.unbind("inbox", f"topic {number} {'x' * 100}", exact=True)
        assert second.publish((f"topic {number} {'x' * 100}",), b"") == 0
    (journal,) = [name for name in os.listdir(f"{config.home}/default") if name.startswith("journal.")]
    assert os.path.getsize(f"{config.home}/default/{journal}") < 150_000
    assert opened().publish(("kept",), b"") == second.publish(("kept",), b"") == 1


def test_what_a_killed_writer_left_in_the_journal_is_ignored_and_overwritten(config, opened):
    first = opened()
    subscribe(first, "inbox", "kept")
    with open(next(Path(config.home).glob("default/journal.*")), "ab") as journal:
        journal.write(json.dumps(["drop", "inbox"]).encode() + b"\n[")
    first.bind("inbox", "another", exact=True)
    assert [opened().publish((topic,), b"") for topic in ("kept", "another")] == [1, 1]


def test_a_namespace_of_another_version_is_refused(config, opened):
    first = opened()
    words = first._words
    ours, words[0] = words[0], words[0] + (1 << 56)
    with pytest.raises(ProviderError, match="another version"):
        config.create().open()
    words[0] = ours


def test_a_home_that_others_may_enter_is_refused(config):
    os.mkdir(config.home, 0o755)
    with pytest.raises(ProviderError, match="mode 755"):
        config.create().open()
    os.rmdir(config.home)


def open_and_close(provider: ShmProvider, config: ShmConfig, count: int) -> int:
    """Again and again the last one out, while others come in."""
    for number in range(count):
        other = config.create()
        other.open()
        subscribe(other, f"{os.getpid()} {number}")
        assert other.publish(("topic",), b"") >= 1
        other.close()
    return count


def test_coming_and_going_at_the_same_time(config, peers):
    elsewhere = ShmConfig(home=config.home, namespace="busy")
    gang = peers(3)
    for peer in gang:
        peer.begin(open_and_close, elsewhere, 60)
    assert [peer.result() for peer in gang] == [60] * 3
    assert os.listdir(config.home) == ["default"]


def test_killed_while_coming_and_going(config, peers):
    elsewhere = ShmConfig(home=config.home, namespace="busy")
    chance = random.Random(3)
    for _ in range(6):
        gang = peers(2)
        for peer in gang:
            peer.begin(open_and_close, elsewhere, 1000)
        time.sleep(chance.uniform(0, 0.05))
        for peer in gang:
            peer.kill()
    sweeper = elsewhere.create()
    sweeper.open()
    subscribe(sweeper, "inbox")
    assert sweeper.publish(("topic",), b"") == 1
    sweeper.close()
    assert not os.path.exists(f"{config.home}/busy")


def test_who_comes_while_the_last_one_removes_the_namespace_begins_a_new_one(config, opened):
    last, newcomer = config.create(), config.create()
    last.open()
    last.declare("jobs")
    last.send("jobs", b"for this one, the directory stays")
    coming = threading.Thread(target=newcomer.open)
    with last._registry.lock:
        coming.start()
        time.sleep(0.05)  # it waits for the lock of a file that is about to go
        last._registry.bells.close()
        last._registry._dissolve()
        subscribe(opened(), "inbox")  # another one was faster
    coming.join(GUARD)
    assert os.fstat(newcomer._registry.lock.fd).st_nlink, "it holds a lock that nobody else knows"
    assert newcomer.publish(("topic",), b"") == 1
    assert len(newcomer.receive("jobs", lease=None)) == 1
    newcomer.close()


def test_queues_that_hold_items_or_are_bound_stay_and_empty_ones_go(config):
    provider = config.create()
    provider.open()
    for name in ("empty", "full", "group"):
        provider.declare(name)
    provider.send("full", b"kept")
    provider.bind("group", "topic", exact=True)
    provider.close()
    assert sorted(os.listdir(f"{config.home}/default/queues")) == ["full", "group"]
    provider = config.create()
    provider.open()
    assert provider.publish(("topic",), b"grouped") == 1
    assert [provider.receive(name, lease=None) for name in ("full", "group")] == [[(b"kept", None)], [(b"grouped", None)]]
    provider.delete("group")
    provider.close()


def test_names_of_any_kind(opened):
    provider = opened()
    for name in ("..", "a/b", "a.b", "", "\0", "ü" * 300, "\ud800", "x" * 1000):
        provider.declare(f"shared {name}")
        provider.send(f"shared {name}", name.encode(errors="surrogatepass"))
        subscribe(provider, name, name)
        assert provider.publish((name,), b"in") == 1
        assert provider.receive(name) == [(b"in", None)]
        assert provider.receive(f"shared {name}", lease=None) == [(name.encode(errors="surrogatepass"), None)]


# Limits


def publish_with_few_files(provider: ShmProvider, names: list[str]) -> tuple[str, int]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        provider.publish(("topic",), b"")
    except ProviderError as error:
        failure = str(error)
    for name in names:
        provider.send(name, b"one by one")
    return failure, len(os.listdir("/proc/self/fd"))


def test_too_many_receivers_for_the_open_files_is_a_clear_error(opened, peers):
    receiver, (sender,) = opened(), peers(1)
    names = [f"inbox {number}" for number in range(60)]
    for name in names:
        subscribe(receiver, name)
    failure, files = sender.call(publish_with_few_files, names)
    assert "RLIMIT_NOFILE" in failure
    assert files <= 64
    assert all(take(receiver, name, 1)[-1:] == [b"one by one"] for name in names)


def test_a_limit_of_the_sizes_of_files_is_told_as_such(opened):
    """It was damage, for which a queue was to be deleted, or a full file system; and nothing is wrong with either."""
    provider = opened()
    subscribe(provider, "in")
    provider.declare("jobs")
    provider.send("jobs", b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for verb in (
            lambda: provider.send("in", bytes(300_000)),
            lambda: provider.send("jobs", bytes(300_000)),
            lambda: provider.declare("other jobs"),
        ):
            with pytest.raises(ProviderError, match="RLIMIT_FSIZE"):
                verb()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    provider.send("in", b"after")
    assert take(provider, "in", 1) == [b"after"]
    assert provider.receive("jobs", lease=None) == [(b"before", None)]


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_full_file_system_is_an_error_that_ends_with_it(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("needs the right to mount")
    provider = ShmConfig(home=f"{tmp_path}/home").create()
    try:
        provider.open()
        assert provider.max_message_bytes == 1 << 20
        subscribe(provider, "inbox")
        provider._outlet("inbox").own = None  # as if it were another process's
        fill(tmp_path / "ballast")
        accepted = publish_until_it_fails(provider)
        with pytest.raises(ProviderError, match="is full"):
            provider.publish(("topic",), bytes(500_000))
        (tmp_path / "ballast").unlink()
        accepted += flood(provider, 0, accepted, 1, (3000,))
        assert holes(take(provider, "inbox", accepted), 1, accepted, (3000,)) == []
    finally:
        provider.close()
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def fill(ballast: Path) -> None:
    with suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def publish_until_it_fails(provider: ShmProvider) -> int:
    for number in itertools.count():
        try:
            assert flood(provider, 0, number, 1, (3000,)) == 1
        except ProviderError as failure:
            error = failure
            break
    assert "is full" in str(error)
    return number


def test_the_url_and_its_unknown_options():
    assert ShmConfig.from_url("shm://here?spin=0.0001&publish_timeout=2") == ShmConfig("here", spin=0.0001, publish_timeout=2.0)
    with pytest.raises(ValueError, match=r"spn.*known:.*max_pending.*spin"):
        ShmConfig.from_url("shm://here?spn=1")


def test_elsewhere_than_on_linux_the_error_names_what_to_use(monkeypatch, config):
    provider = config.create()
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ProviderError, match=r"simple.*redis.*aws"):
        provider.open()


def test_a_frames_header_covers_its_body():
    assert frame(DATA, b"body")[8:12] == zlib.adler32(b"body").to_bytes(4, "little")


def test_the_names_of_shared_queues_are_listed(config, opened):
    first, second = opened(), opened()
    for name in ("a/1", "a/2", "b", "a/" + "long" * 100):
        first.declare(name)
    first.declare("a/inbox", temporary=True)
    first.bind("a/" + "long" * 100, "topic", exact=True)
    assert sorted(second.queues("a/")) == ["a/1", "a/2", "a/" + "long" * 100]
    first.delete("a/1")
    first.delete("a/" + "long" * 100)
    assert second.queues("a/") == ["a/2"]


def test_a_dead_receiver_is_none_however_much_it_left_in_its_pipe(opened, peers):
    sender, (receiver,) = opened(), peers(1)
    receiver.call(subscribe, "inbox")
    receiver.signal(signal.SIGSTOP)
    while not sender._outlet("inbox").head[LOGGED]:
        assert flood(sender, 0, 0, 1, (3000,)) == 1
    receiver.signal(signal.SIGKILL)
    receiver.kill()
    assert flood(sender, 0, 0, 1) == 0


def test_two_threads_may_list_a_directory(opened):
    bells = opened()._registry.bells
    wrong = []
    with ThreadPoolExecutor(3) as pool:
        expected = [bells.borrow().number for _ in range(50)] and bells.directory.names()
        for _ in range(3):
            pool.submit(lambda: wrong.extend(found for _ in range(2000) if (found := bells.directory.names()) != expected))
    assert wrong == []


def test_what_was_read_when_a_signal_handler_raised_is_received_next(opened, monkeypatch):
    provider = opened()
    subscribe(provider, "in")
    provider.publish(("topic",), b"m")

    def interrupted(data: bytes) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pymq.provider._shm.inbox.checksum", interrupted)
        with pytest.raises(KeyboardInterrupt):
            provider.receive("in", 0)
    assert provider.receive("in", 0) == [(b"m", None)]
    assert provider.receive("in", 0) == []


# Spinning


def spins_of(provider: ShmProvider, monkeypatch: pytest.MonkeyPatch, pays: bool) -> Callable[[int], bool]:
    """Receives so many messages that come together, in a conversation, after a first look in vain; whether it spun before."""
    inbox = provider._inboxes["in"]
    sleep = inbox._sleep
    coming: list[bytes] = []
    spun: list[float] = []

    def come() -> bool:
        while coming:
            provider.publish(("topic",), coming.pop())
        return True

    monkeypatch.setattr(inbox, "_spin", lambda end: spun.append(end) or (inbox.take() if pays and come() else []))
    monkeypatch.setattr(inbox, "_sleep", lambda end, busy: not come() or sleep(end, busy))

    def receive(count: int) -> bool:
        coming.extend([b"m"] * count)
        provider._has_sent = True
        spun.clear()
        assert len(provider.receive("in", GUARD)) == count
        return bool(spun)

    return receive


def test_who_spins_in_vain_tries_less_and_less_often(opened, monkeypatch):
    provider = opened()
    subscribe(provider, "in")
    provider.receive("in", 0)
    receive = spins_of(provider, monkeypatch, pays=False)
    monkeypatch.setattr("pymq.patience.MOMENT", GUARD)  # every wait is a short one, however busy the machine
    assert [number for number in range(40) if receive(1)] == [1, 4, 9, 18, 35]


def test_who_spins_and_gets_an_answer_goes_on(opened, monkeypatch):
    provider = opened()
    subscribe(provider, "in")
    provider.receive("in", 0)
    receive = spins_of(provider, monkeypatch, pays=True)
    monkeypatch.setattr("pymq.patience.MOMENT", GUARD)
    assert [receive(1) for _ in range(4)] == [False, True, True, True]
    assert receive(3)
    assert not receive(1)  # several had come: this is a stream
    assert receive(1)


def test_an_answer_that_is_there_after_one_yield_is_not_polled_for(config, opened, monkeypatch):
    provider = opened(ShmConfig(home=config.home, spin=GUARD))
    subscribe(provider, "in")
    provider.receive("in", 0)
    monkeypatch.setattr(provider._inboxes["in"], "_poll", None)
    monkeypatch.setattr("pymq.provider._shm.inbox.sched_yield", lambda: provider.publish(("topic",), b"m"))
    for _ in range(3):
        provider._has_sent = True
        assert provider.receive("in", GUARD) == [(b"m", None)]


def test_a_spin_is_part_of_the_timeout_and_never_long(config, opened, monkeypatch):
    provider = opened(ShmConfig(home=config.home, spin=GUARD))
    subscribe(provider, "in")
    provider.receive("in", 0)
    spun, ends = [], []
    inbox = provider._inboxes["in"]
    monkeypatch.setattr(inbox, "_spin", lambda seconds: spun.append(seconds) or [])  # in vain
    monkeypatch.setattr(inbox, "_sleep", lambda end, busy: ends.append(end) or True)
    provider.receive("in", 0.02)
    assert (spun, ends) == ([0.02], [])
    assert provider.receive("in", GUARD) == []
    assert spun == [0.02, 0.05]  # who is watched may be dead: only who sleeps learns of that
    assert ends[0] <= time.monotonic() + GUARD - 0.05


def test_a_spin_in_vain_shortens_only_the_wait_behind_it(config, opened, monkeypatch):
    provider = opened(ShmConfig(home=config.home, spin=GUARD))
    subscribe(provider, "in")
    provider.receive("in", 0)
    inbox = provider._inboxes["in"]
    monkeypatch.setattr(inbox, "_spin", lambda seconds: [])
    assert provider.receive("in", GUARD, watch=["nobody's"]) == []  # so it does not wait
    for _ in range(2):
        provider.publish(("topic",), b"m")
    assert len(provider.receive("in", GUARD)) == 2
    ends = []
    monkeypatch.setattr(inbox, "_sleep", lambda end, busy: ends.append(end) or True)
    begin = time.monotonic()
    assert provider.receive("in", GUARD) == []
    assert ends[0] >= begin + GUARD


def test_a_receiver_that_spins_while_the_provider_is_closed_just_ends(config, opened, monkeypatch):
    monkeypatch.setattr("pymq.provider._shm.inbox._LONGEST_SPIN", GUARD)
    provider = opened(ShmConfig(home=config.home, spin=GUARD))
    subscribe(provider, "in")
    provider.receive("in", 0)
    spinning = threading.Event()
    monkeypatch.setattr("pymq.provider._shm.inbox.sched_yield", spinning.set)
    results = []
    thread = threading.Thread(target=lambda: results.append(provider.receive("in", GUARD)))
    thread.start()
    assert spinning.wait(GUARD)
    provider.close()
    thread.join(GUARD)
    assert results == [[]]


def test_a_wake_ends_a_spin_at_once_which_was_not_in_vain(config, opened, monkeypatch):
    monkeypatch.setattr("pymq.provider._shm.inbox._LONGEST_SPIN", GUARD)
    provider = opened(ShmConfig(home=config.home, spin=GUARD))
    subscribe(provider, "in")
    provider.receive("in", 0)
    yields = []
    monkeypatch.setattr("pymq.provider._shm.inbox.sched_yield", lambda: yields.append(None) or (len(yields) == 2 and provider.wake()))
    assert provider.receive("in", GUARD) == []
    assert len(yields) == 2
    assert not provider._inboxes["in"]._in_vain
    provider.publish(("topic",), b"m")
    assert provider.receive("in", GUARD) == [(b"m", None)]


def test_a_receiver_that_goes_on_when_the_provider_is_closed_is_told_so(opened, monkeypatch):
    """And not that its queue was deleted: nobody has asked for that."""
    provider = opened()
    subscribe(provider, "in")
    inbox = provider._inboxes["in"]
    look = inbox.look
    monkeypatch.setattr(inbox, "look", lambda *how: inbox.delete() or setattr(provider, "_closed", True) or look(*how))
    with pytest.raises(ProviderError, match="was closed") as told:
        provider.receive("in", GUARD)
    assert not isinstance(told.value, QueueNotFound)
    provider._closed = False


def test_who_gets_answers_after_one_yield_forgets_the_failures_before(opened, monkeypatch):
    provider = opened()
    subscribe(provider, "in")
    provider.receive("in", 0)
    receive = spins_of(provider, monkeypatch, pays=False)
    monkeypatch.setattr("pymq.patience.MOMENT", GUARD)
    assert [number for number in range(11) if receive(1)] == [1, 4, 9]
    inbox = provider._inboxes["in"]
    inbox._patience.seconds = GUARD
    with monkeypatch.context() as patch:
        patch.setattr("pymq.provider._shm.inbox.sched_yield", lambda: provider.publish(("topic",), b"m"))
        provider._has_sent = True
        assert provider.receive("in", GUARD) == [(b"m", None)]
    assert [number for number in range(5) if receive(1)] == [0, 3]


def test_receivers_of_events_do_not_spin(opened, monkeypatch):
    provider = opened()
    subscribe(provider, "in")
    provider.receive("in", 0)
    receive = spins_of(provider, monkeypatch, pays=True)
    monkeypatch.setattr("pymq.patience.MOMENT", GUARD)
    assert [receive(1), receive(1)] == [False, True]
    monkeypatch.setattr(provider._inboxes["in"], "_spin", lambda seconds: pytest.fail("it spun"))
    provider.publish(("topic",), b"m")
    assert provider.receive("in", GUARD) == [(b"m", None)]


def test_in_a_stream_more_may_gather_before_the_next_look(opened, monkeypatch):
    provider = opened()
    subscribe(provider, "in")
    for _ in range(2):
        provider.publish(("topic",), b"m")
    assert len(provider.receive("in", GUARD)) == 2
    inbox = provider._inboxes["in"]
    gather = inbox._let_gather
    monkeypatch.setattr(inbox, "_let_gather", lambda end: provider.publish(("topic",), b"more") and gather(end))
    provider._has_sent = False
    assert provider.receive("in", GUARD) == [(b"more", None)]


@pytest.mark.parametrize(
    ("count", "spin", "sends_to", "waiting", "pauses"),
    [
        pytest.param(16, None, "", 0, 1, id="a stream"),
        pytest.param(15, None, "", 0, 0, id="a few"),
        pytest.param(16, 0.0, "inbox", 0, 0, id="who sends may wait for an answer"),
        pytest.param(16, 0.0, "shared", 0, 0, id="who puts may wait for one, too"),
        pytest.param(16, 1e-6, "", 0, 0, id="who was told to spin"),
        pytest.param(16, None, "", 16 << 10, 0, id="a stream in which enough has come"),
    ],
)
def test_the_reader_of_a_stream_sleeps_past_the_writes(config, opened, monkeypatch, count, spin, sends_to, waiting, pauses):
    sender, provider = opened(), opened(replace(config, spin=spin))
    subscribe(provider, "in")
    sender.declare("shared")
    subscribe(sender, "inbox", "answers")
    if sends_to == "inbox":
        provider.publish(("answers",), b"m")
    elif sends_to:
        provider.send(sends_to, b"m")
        provider.receive(sends_to, lease=None)
    for _ in range(count):
        sender.publish(("topic",), b"m")
    assert len(provider.receive("in", GUARD)) == count
    slept: list[float] = []
    monkeypatch.setattr("pymq.provider._shm.inbox.time.sleep", slept.append)
    monkeypatch.setattr("pymq.provider._shm.inbox.bytes_waiting", lambda fifo: waiting)
    provider._inboxes["in"].wake()
    assert provider.receive("in", GUARD) == []
    assert len(slept) == pauses


def test_a_pause_that_a_signal_handler_ends_is_not_made_again(opened, monkeypatch):
    """Else who is interrupted more often than every 150 us would read nothing."""
    sender, provider = opened(), opened()
    subscribe(provider, "in")
    for _ in range(16):
        sender.publish(("topic",), b"m")
    assert len(provider.receive("in", GUARD)) == 16
    sender.publish(("topic",), b"m")

    def interrupted(seconds: float) -> None:
        raise ValueError

    monkeypatch.setattr("pymq.provider._shm.inbox.time.sleep", interrupted)
    with pytest.raises(ValueError):
        provider.receive("in", GUARD)
    assert provider.receive("in", GUARD) == [(b"m", None)]
