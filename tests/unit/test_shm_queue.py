"""The shared queue of the shm provider, by itself: two or more processes wherever that makes a difference."""

from __future__ import annotations

import errno
import multiprocessing
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shm_peers import GUARD, Peer, finish, in_thread, until

from pymq.exceptions import LeaseLost, MessageTooLarge, ProviderError, QueueNotFound
from pymq.provider._shm import claims as _claims
from pymq.provider._shm import queue as _queue
from pymq.provider._shm import segments as _segments
from pymq.provider._shm import state as _state
from pymq.provider._shm import store as _store
from pymq.provider._shm.files import Bell, Directory, close_file, open_file

spawn = multiprocessing.get_context("spawn")


def waiting(peer: Peer, table: int, count: int = 1) -> None:
    until(lambda: peer.queue._words[table] == count)


# order, settling, expiry


def test_first_in_first_out(peer: Peer, other: Peer) -> None:
    sent = [b"x" * size for size in (0, 1, 7, 8, 100, 4096, 70_000, 3)]
    for message in sent:
        peer.queue.send(message)
    assert other.queue.size() == len(sent)
    assert [other.one(lease=None)[0] for _ in sent] == sent
    assert other.take() == []
    assert peer.queue.is_idle_and_empty()


def test_receivers_that_have_read_the_same_records_ahead_take_each_once(peer: Peer, other: Peer) -> None:
    import random

    rng, sent = random.Random(7), [b"%d" % number * (1 + number % 50) for number in range(2000)]
    for message in sent:
        peer.queue.send(message)
    assert [rng.choice([peer, peer, other]).one(lease=None)[0] for _ in sent] == sent
    assert other.take() == peer.take() == []


def test_messages_stay_when_nobody_is_attached(home: str) -> None:
    with Peer(home) as first:
        first.queue.send(b"1")
    with Peer(home, create=False) as second:
        assert second.messages() == [b"1"]


def test_no_queue_without_create(home: str) -> None:
    with pytest.raises(QueueNotFound, match="jobs"):
        Peer(home, create=False)


def test_a_limit_takes_that_many(peer: Peer) -> None:
    for number in range(10):
        peer.queue.send(b"%d" % number)
    assert peer.messages(limit=3) == [b"0", b"1", b"2"]
    assert peer.messages(limit=3, lease=30) == [b"3", b"4", b"5"]
    assert peer.queue.counters() | {"bytes": 0} == {"waiting": 4, "leased": 3, "bytes": 0, "expired": 0, "corrupt": 0}


def test_ack_forgets(peer: Peer, other: Peer) -> None:
    peer.queue.send(b"1")
    message, receipt = other.one()
    assert (message, receipt.attempt, receipt.queue) == (b"1", 1, "jobs")
    assert peer.take() == []
    other.queue.ack(receipt)
    assert other.queue.is_idle_and_empty()
    assert other.queue.counters()["bytes"] == 0
    with pytest.raises(LeaseLost):
        other.queue.ack(receipt)


def test_nack_returns_it_before_what_waits(peer: Peer, other: Peer) -> None:
    for message in (b"1", b"2"):
        peer.queue.send(message)
    _, receipt = other.one()
    other.queue.nack(receipt)
    for settle in (other.queue.ack, other.queue.nack):
        with pytest.raises(LeaseLost):
            settle(receipt)
    again, second = peer.one()
    assert (again, second.attempt) == (b"1", 2)
    assert peer.messages() == [b"2"]
    peer.queue.ack(second)
    assert peer.queue.is_idle_and_empty()


def test_nack_with_a_delay_comes_in_time(peer: Peer) -> None:
    peer.queue.send(b"1")
    begun = time.monotonic()
    peer.queue.nack(peer.one()[1], 0.1)
    assert peer.take() == []
    assert peer.queue.size() == 1
    assert peer.one(GUARD)[1].attempt == 2
    assert time.monotonic() - begun >= 0.1


def test_a_late_ack_touches_nobody_elses(peer: Peer, other: Peer) -> None:
    peer.queue.send(b"1")
    _, late = peer.one(lease=0.02)
    again, receipt = other.one(GUARD)
    assert (again, receipt.attempt) == (b"1", 2)
    for settle in (peer.queue.ack, peer.queue.nack, lambda receipt: peer.queue.extend(receipt, 9)):
        with pytest.raises(LeaseLost):
            settle(late)
    other.queue.ack(receipt)


def test_a_lease_that_ended_is_lost_before_anybody_takes_it(peer: Peer) -> None:
    peer.queue.send(b"1")
    _, receipt = peer.one(lease=0.01)
    assert peer.queue.size() == 0
    until(lambda: peer.queue.size() == 1)
    with pytest.raises(LeaseLost):
        peer.queue.ack(receipt)
    assert peer.messages() == [b"1"]


def test_an_ack_brings_the_next(peer: Peer, other: Peer) -> None:
    for message in (b"1", b"2" * 100, b"3"):
        peer.queue.send(message)
    _, first = peer.one()
    begun = time.monotonic()
    [(message, second)] = peer.queue.ack_and_receive(first, 0.05)
    assert (message, second.attempt, second.queue) == (b"2" * 100, 1, "jobs")
    assert peer.queue.counters() == {"waiting": 1, "leased": 1, "bytes": 176, "expired": 0, "corrupt": 0}
    assert other.messages() == [b"3"]
    again, third = other.one(GUARD)
    assert (again, third.attempt) == (b"2" * 100, 2)
    assert time.monotonic() - begun >= 0.05
    for late in (first, second):
        with pytest.raises(LeaseLost):
            peer.queue.ack_and_receive(late, 30.0)
    assert other.queue.ack_and_receive(third, 30.0) == []
    assert peer.queue.is_idle_and_empty()
    assert peer.queue.counters()["bytes"] == 0


def test_what_is_due_again_comes_before_what_an_ack_would_bring(peer: Peer) -> None:
    for message in (b"1", b"2", b"3"):
        peer.queue.send(message)
    (_, first), (_, second) = peer.one(), peer.one()
    peer.queue.nack(second)
    assert peer.queue.ack_and_receive(first, 30.0) == []
    assert peer.messages() == [b"2", b"3"]


def test_a_higher_level_comes_before_what_an_ack_would_bring(peer: Peer) -> None:
    for message in (b"1", b"2"):
        peer.queue.send(message)
    _, first = peer.one()
    peer.queue.send(b"urgent", priority=3)
    assert peer.queue.ack_and_receive(first, 30.0) == []
    assert peer.messages() == [b"urgent", b"2"]


def test_acks_that_bring_the_next_keep_the_order_of_leases(peer: Peer, other: Peer) -> None:
    """By threes, with leases of other lengths: what they leave comes back in the order in which it is due."""
    rng = random.Random(5)
    for number in range(100):
        peer.queue.send(b"%d" % number)
    held = [peer.one() for _ in range(3)]
    words, claims = peer.queue._words, peer.queue._store.claims
    for number in range(3, 97):
        place, lease = rng.randrange(3), rng.uniform(20, 40)
        held[place] = (peer.queue.ack_and_receive(held[place][1], lease) or peer.take(0, 1, lease))[0]
        assert held[place][0] == b"%d" % number
        assert claims.next_due() == min(words[receipt.slot + _claims.DUE] for _, receipt in held)
    assert peer.queue.counters() | {"bytes": 0} == {"waiting": 3, "leased": 3, "bytes": 0, "expired": 0, "corrupt": 0}
    for _, receipt in held:
        peer.queue.ack(receipt)
    assert other.messages() == [b"97", b"98", b"99"]


def test_acks_that_bring_the_next_give_back_what_was_consumed(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_segments, "SEGMENT_BYTES", 1000)
    for number in range(100):
        peer.queue.send(b"%d" % number * 30)
    held = [peer.one() for _ in range(13)]  # from more than one segment
    for number in range(100):
        message, receipt = held.pop(0)
        assert message == b"%d" % number * 30
        held += peer.queue.ack_and_receive(receipt, 30.0) or peer.take(0, 1, 30.0)
    assert held == []
    assert len(peer.queue._store.log.segments()) == 1
    assert peer.queue.counters()["bytes"] == 0


def test_an_ack_that_brings_the_next_makes_room(peer: Peer, other: Peer) -> None:
    for message in (b"1", b"2"):
        peer.queue.send(message)
    _, first = peer.one()
    thread, results = in_thread(lambda: other.queue.send(b"3", maxsize=1))
    waiting(peer, _state.SENDERS)
    [(message, _)] = peer.queue.ack_and_receive(first, 30.0)
    finish(thread)
    assert (message, results) == (b"2", [None])
    assert peer.messages() == [b"3"]


def test_extend_moves_the_end(peer: Peer, other: Peer) -> None:
    peer.queue.send(b"1")
    _, receipt = peer.one(lease=0.05)
    peer.queue.extend(receipt, 30)
    assert other.take(0.1) == []
    peer.queue.extend(receipt, 0.01)
    assert other.one(GUARD)[1].attempt == 2


def test_redelivery_without_a_lease_removes(peer: Peer) -> None:
    peer.queue.send(b"1")
    peer.queue.nack(peer.one()[1])
    assert peer.messages() == [b"1"]
    assert peer.queue.is_idle_and_empty()


def test_delayed_come_when_due_and_hold_up_nobody(peer: Peer, other: Peer) -> None:
    begun = time.monotonic()
    peer.queue.send(b"late", delay=0.1)
    peer.queue.send(b"now")
    assert other.messages() == [b"now"]
    assert other.queue.size() == 1
    message, receipt = other.one(GUARD)
    assert (message, receipt.attempt) == (b"late", 1)
    assert time.monotonic() - begun >= 0.1


def test_expired_are_dropped_and_counted(peer: Peer) -> None:
    peer.queue.send(b"0", ttl=0)
    peer.queue.send(b"1", ttl=30)
    peer.queue.send(b"2", ttl=0, delay=0)
    assert peer.messages() == [b"1"]
    assert peer.queue.counters()["expired"] == 2


def test_a_redelivery_expires_too(peer: Peer) -> None:
    peer.queue.send(b"1", ttl=0.05)
    _, receipt = peer.one()
    peer.queue.nack(receipt, 0.06)
    assert peer.take(0.2) == []
    assert peer.queue.counters()["expired"] == 1
    assert peer.queue.is_idle_and_empty()


def test_thousands_of_expired_are_passed_over(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "MOST_SKIPPED", 10)
    for _ in range(95):
        peer.queue.send(b"0", ttl=0)
    peer.queue.send(b"1")
    assert peer.take() == [(b"1", None)]


def test_priorities(peer: Peer, other: Peer) -> None:
    for level in (0, 3, 9, 3, 0):
        peer.queue.send(b"%d" % level, priority=level)
    assert other.queue.size() == 5
    assert [other.one(lease=None)[0] for _ in range(5)] == [b"9", b"3", b"3", b"0", b"0"]
    assert other.queue.is_idle_and_empty()
    peer.queue.send(b"4", priority=4)
    assert other.messages() == [b"4"]


@pytest.mark.parametrize("priority", [-1, 10])
def test_unknown_priority(peer: Peer, priority: int) -> None:
    with pytest.raises(ValueError, match=f"0 to 9, not {priority}"):
        peer.queue.send(b"", priority=priority)


def test_simultaneously_due_cost_no_scan_each(peer: Peer) -> None:
    """20,000 that are leased make neither a put, a get, an ack nor a nack touch more than the depth of the heap."""
    count = 20_000
    for number in range(count):
        peer.queue.send(b"%d" % number)
    receipts = [receipt for _, receipt in peer.take(limit=count, lease=30)]
    reads = 0

    class Counting:
        def __init__(self, words: Any) -> None:
            self.words = words

        def __getitem__(self, place: Any) -> Any:
            nonlocal reads
            reads += 1
            return self.words[place]

        def __setitem__(self, place: Any, value: int) -> None:
            self.words[place] = value

    peer.queue._store.claims._words = Counting(peer.queue._words)
    for receipt in receipts[: count // 2 : 100]:
        peer.queue.nack(receipt)
        peer.queue.ack(peer.one()[1])
    assert reads / 100 < 2000


def test_the_heap_keeps_its_order(peer: Peer) -> None:
    """Delays, nacks, extensions and acks in a random order: what is due first always comes first."""
    import random

    rng = random.Random(7)
    peer.queue.send(b"")
    claims = peer.queue._store.claims
    owned: dict[int, int] = {}
    for number in range(3000):
        choice = rng.random()
        if choice < 0.5 or not owned:
            slot, _ = claims.add(8, 8, 1, 1, due := rng.randrange(1, 1000))
            owned[slot] = due
        elif choice < 0.75:
            slot = rng.choice(list(owned))
            claims.remove(slot)
            del owned[slot]
        else:
            slot = rng.choice(list(owned))
            owned[slot] = rng.randrange(1, 1000)
            claims.move(slot, owned[slot])
        if number % 10 == 0:
            assert sorted(claims.all()) == sorted(owned)
            assert claims.next_due() == min(owned.values(), default=_claims.NEVER)
    while owned:
        top = claims.top()
        assert owned.pop(top) == min([claims.next_due(), *owned.values()])
        claims.remove(top)


# segments


def test_segments_come_and_go(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_segments, "SEGMENT_BYTES", 1000)
    with Peer(home) as peer, Peer(home) as other:
        sent = [b"%d" % number * (number % 40) for number in range(200)] + [b"x" * 5000, b"end"]
        for message in sent:
            peer.queue.send(message)
        assert len(peer.queue._store.log.segments()) > 10
        assert [other.one(lease=None)[0] for _ in sent] == sent
        assert len(peer.queue._store.log.segments()) == 1
        assert len(other.queue._store.log.files) <= 4


@pytest.fixture
def mapped_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small segments, mapped by whoever writes the second record."""
    monkeypatch.setattr(_segments, "SEGMENT_BYTES", 1000)
    monkeypatch.setattr(_segments, "_PAGE", 48)


@pytest.mark.usefixtures("mapped_soon")
def test_senders_that_have_a_segment_mapped_and_others_take_turns(home: str) -> None:
    with Peer(home) as peer, Peer(home) as other, Peer(home) as receiver:
        sent = [b"%d" % number for number in range(200)]
        for number, message in enumerate(sent):
            (other if number % 3 else peer).queue.send(message + b"x" * (number % 70))
        assert [message.rstrip(b"x") for message in receiver.messages()] == sent
        assert peer.queue._store.tail_log._mapped == other.queue._store.tail_log._mapped > 0
        assert receiver.queue.counters()["corrupt"] == 0
        assert len(receiver.queue._store.log.segments()) == 1


@pytest.mark.usefixtures("mapped_soon")
def test_a_sender_that_dies_before_it_moves_the_tail_takes_no_segment_from_another(peer: Peer, other: Peer) -> None:
    for message in (b"1", b"2"):
        peer.queue.send(message)
    log = peer.queue._store.tail_log
    assert len(log._map) == 1000
    other.queue._store.tail_log.write(other.queue._store.state.end(0, _state.TAIL)[0], 996, b"too much for the rest of it")
    peer.queue.send(b"3")  # where the file was cut off that would be a SIGBUS
    assert (log._mapped, peer.messages()) == (0, [b"1", b"2", b"3"])


def test_what_a_dead_sender_left_behind_the_tail_is_no_message(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_segments, "SEGMENT_BYTES", 300)
    peer.queue.send(b"1")
    store = peer.queue._store
    store.tail_log.write(store.state.end(0, _state.TAIL)[0], 80, _segments.pack_record(b"not committed", 0, None))
    peer.queue.send(b"2" * 250)  # in the next segment
    assert (peer.messages(), peer.queue.counters()["corrupt"]) == ([b"1", b"2" * 250], 0)


def test_a_queue_with_little_in_it_takes_little(peer: Peer) -> None:
    for number in range(20):
        peer.queue.send(b"%d" % number)
    assert (peer.queue._store.tail_log._mapped, os.stat("log.00000000", dir_fd=peer.directory.fd).st_blocks * 512) == (-1, 4096)


def test_where_nothing_more_can_be_mapped_a_queue_works_as_before(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(_segments, "map_open_file", refuse)
    sent = [b"%d" % number * 20 for number in range(500)]
    for message in sent:
        peer.queue.send(message)
    assert (peer.messages(), peer.queue._store.tail_log._mapped) == (sent, -1)


def test_a_sender_maps_the_file_it_has_open_and_no_successor_of_that_name(peer: Peer) -> None:
    peer.queue.send(b"first")
    name, directory = "log.00000000", peer.directory
    os.unlink(name, dir_fd=directory.fd)
    successor = directory.open(name, os.O_RDWR | os.O_CREAT)
    for number in range(200):
        peer.queue.send(b"%d" % number)
    assert (peer.queue._store.tail_log._mapped, os.fstat(successor).st_size) == (0, 0)
    close_file(successor)


@pytest.mark.parametrize("count", [100, 4000])
def test_zeros_over_a_header_cost_one_message_and_are_counted(peer: Peer, count: int) -> None:
    """In the segment that is written to, and in one before it."""
    sent = [b"%d" % number for number in range(count)]
    for message in sent:
        peer.queue.send(message)
    damaged = 40
    with open(os.path.join(peer.directory.path, "log.00000000"), "r+b") as file:
        file.seek(_state.START + damaged * 40)
        assert file.read(8)[4:] == _segments._MARKED
        file.seek(-8, os.SEEK_CUR)
        file.write(bytes(_segments.HEADER))
    received: list[bytes] = []
    while found := peer.messages():
        received += found
    assert received == sent[:damaged] + sent[damaged + 1 :]
    counters = peer.queue.counters()
    assert (counters["corrupt"], counters["waiting"], counters["bytes"]) == (1, 0, 0)


def test_a_straggler_keeps_only_its_own_segment(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_segments, "SEGMENT_BYTES", 1000)
    with Peer(home) as peer, Peer(home) as other:
        for number in range(300):
            peer.queue.send(b"%d" % number * 10)
        held = []
        for number in range(300):
            message, receipt = other.one()
            if number in (50, 51, 200):
                held.append((message, receipt))
            else:
                other.queue.ack(receipt)
        assert len(peer.queue._store.log.segments()) <= 4
        peer.queue._words[_state.STATUS] = _state.DIRTY
        assert peer.queue.counters()["leased"] == 3
        other.queue.nack(held[1][1])
        assert peer.messages() == [held[1][0]]
        for _, receipt in (held[0], held[2]):
            other.queue.ack(receipt)
        assert len(peer.queue._store.log.segments()) == 1
        assert peer.queue.counters()["bytes"] == 0


def test_what_was_consumed_is_given_back(peer: Peer, other: Peer) -> None:
    for number in range(1000):
        peer.queue.send(b"%d" % number * 1000)
        assert other.messages() == [b"%d" % number * 1000]
    assert sum(os.stat(name, dir_fd=peer.directory.fd).st_blocks for name in peer.directory.names() if name != "state") <= 512


def test_a_put_and_a_get_do_not_wait_for_each_other(peer: Peer, other: Peer) -> None:
    peer.queue.send(b"1")
    with other.queue._lock:
        peer.queue.send(b"2")
    with other.queue._sending:
        assert peer.messages() == [b"1", b"2"]


def test_what_was_read_ahead_is_not_taken_for_a_successor(peer: Peer, other: Peer) -> None:
    """The same place holds another message after a return to the start: nobody may take the old one for it."""
    for message in (b"1", b"2", b"3"):
        peer.queue.send(message)
    assert peer.one(lease=None)[0] == b"1"
    assert other.messages() == [b"2", b"3"]
    for message in (b"4", b"5", b"6"):
        other.queue.send(message)
    assert [peer.one(lease=None)[0] for _ in range(3)] == [b"4", b"5", b"6"]


def test_a_message_beyond_the_largest_offset_is_refused(peer: Peer) -> None:
    with pytest.raises(MessageTooLarge, match="less than 256 MiB"):
        peer.queue._store.tail_log.write(_state.START, 1 << _segments.SHIFT, b"")


# room


def test_full(peer: Peer, other: Peer) -> None:
    peer.queue.send(b"1", maxsize=2)
    peer.queue.send(b"2", maxsize=2)
    with pytest.raises(queue.Full):
        peer.queue.send(b"3", maxsize=2, timeout=0)
    with pytest.raises(queue.Full):
        peer.queue.send(b"3", maxsize=2, timeout=0.01)
    other.one()  # the leased do not count
    peer.queue.send(b"3", maxsize=2, timeout=0)
    peer.queue.send(b"4", maxsize=0, timeout=0)
    assert peer.queue._words[_state.SENDERS] == 0


def test_a_sender_waits_for_room(peer: Peer, other: Peer) -> None:
    peer.queue.send(b"1")
    thread, results = in_thread(lambda: peer.queue.send(b"2", maxsize=1))
    waiting(peer, _state.SENDERS)
    assert other.messages(limit=1) == [b"1"]
    finish(thread)
    assert results == [None]
    assert other.messages() == [b"2"]


def test_bytes_are_bounded(home: str) -> None:
    with Peer(home, max_bytes=1000) as peer:
        peer.queue.send(b"x" * 5000, timeout=0)
        with pytest.raises(queue.Full):
            peer.queue.send(b"y", timeout=0)
        thread, results = in_thread(lambda: peer.queue.send(b"y"))
        waiting(peer, _state.SENDERS)
        assert len(peer.messages(limit=1)[0]) == 5000
        finish(thread)
        assert results == [None]


def test_leased_bytes_count_until_acked(home: str) -> None:
    with Peer(home, max_bytes=1000) as peer:
        peer.queue.send(b"x" * 900)
        _, receipt = peer.one()
        peer.queue.send(b"y" * 100, timeout=0)
        thread, results = in_thread(lambda: peer.queue.send(b"z" * 500))
        waiting(peer, _state.SENDERS)
        peer.queue.ack(receipt)
        finish(thread)
        assert results == [None]


# waiting


def test_a_blocked_receiver_is_woken(peer: Peer, other: Peer) -> None:
    thread, results = in_thread(lambda: peer.messages(None))
    waiting(peer, _state.RECEIVERS)
    other.queue.send(b"1")
    finish(thread)
    assert results == [[b"1"]]


def test_a_timeout_leaves_no_trace(peer: Peer) -> None:
    begun = time.monotonic()
    assert peer.take(0.05) == []
    assert time.monotonic() - begun >= 0.05
    assert peer.queue._words[_state.RECEIVERS] == 0


def test_wake_ends_a_receive(peer: Peer) -> None:
    thread, results = in_thread(lambda: peer.take(None))
    waiting(peer, _state.RECEIVERS)
    peer.stopped = True
    peer.bells.ring_own()
    finish(thread)
    assert results == [[]]
    assert peer.queue._words[_state.RECEIVERS] == 0


def test_an_earlier_deadline_rearms_sleepers(peer: Peer, other: Peer) -> None:
    for message in (b"1", b"2"):
        other.queue.send(message)
    other.one(lease=1000)
    _, receipt = other.one(lease=1000)
    thread, results = in_thread(lambda: peer.take(None, lease=30))
    waiting(peer, _state.RECEIVERS)
    other.queue.extend(receipt, 0.05)
    finish(thread)
    [[(message, again)]] = results
    assert (message, again.attempt) == (b"2", 2)


def test_close_gives_back_what_is_leased(home: str, peer: Peer) -> None:
    peer.queue.send(b"1")
    thread, results = in_thread(lambda: peer.take(None, lease=30))
    with Peer(home) as other:
        waiting(peer, _state.RECEIVERS, 0)
        finish(thread)
        peer.queue.nack(results[0][0][1])
        other.one()
        thread, results = in_thread(lambda: peer.take(None, lease=30))
        waiting(peer, _state.RECEIVERS)
    finish(thread)
    assert results[0][0][1].attempt == 3


def test_more_sleepers_than_places(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_state, "TABLE_SIZE", 2)
    threads = [in_thread(lambda: peer.messages(None, 1)) for _ in range(4)]
    time.sleep(0.05)
    for _ in threads:
        peer.queue.send(b"1")
    for thread, results in threads:
        finish(thread)
        assert results == [[b"1"]]


def test_a_receiver_spins_only_while_that_helps(peer: Peer, other: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    def woken() -> bool:
        thread, results = in_thread(lambda: peer.messages(None))
        waiting(peer, _state.RECEIVERS)
        other.queue.send(b"1")
        finish(thread)
        assert results == [[b"1"]]
        return peer.queue._spins

    monkeypatch.setattr(_queue, "_SHORT_NS", 0)
    assert not woken()
    monkeypatch.setattr(_queue, "_SHORT_NS", 1 << 62)
    assert any(woken() for _ in range(5))  # a ring may come after its message was found: the next sleep is none then
    monkeypatch.setattr(_queue, "_SPIN_NS", 1 << 62)
    thread, results = in_thread(lambda: peer.messages(None))
    other.queue.send(b"2")
    finish(thread)
    assert results == [[b"2"]]
    monkeypatch.setattr(_queue, "_SPIN_NS", 0)
    assert peer.take(0.001) == []
    assert not peer.queue._spins


def test_a_look_at_an_empty_queue_takes_no_lock(peer: Peer, other: Peer) -> None:
    with other.queue._lock:
        assert peer.take() == []


def test_a_signal_handler_may_raise_while_another_thread_is_waited_for(peer: Peer) -> None:
    """It ends the call with what it raised, and the lock is that other thread's as before."""

    def give_up(*_: object) -> None:
        raise KeyboardInterrupt

    held, done = threading.Event(), threading.Event()

    def hold_it() -> None:
        with peer.queue._sending:
            held.set()
            done.wait(GUARD)

    thread, _ = in_thread(hold_it)
    assert held.wait(GUARD)
    before = signal.signal(signal.SIGUSR1, give_up)
    alarm = threading.Timer(0.1, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))
    alarm.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            peer.queue.send(b"1")
    finally:
        alarm.join()
        signal.signal(signal.SIGUSR1, before)
    assert peer.queue._sending.is_held
    done.set()
    finish(thread)
    peer.queue.send(b"2")
    assert peer.messages() == [b"2"]


def test_deleted(peer: Peer, other: Peer) -> None:
    peer.queue.send(b"1")
    full = in_thread(lambda: other.queue.send(b"2", maxsize=1))
    waiting(peer, _state.SENDERS)
    peer.queue.mark_deleted()
    assert peer.directory.names() == []
    finish(full[0])
    assert isinstance(full[1][0], QueueNotFound)
    for call in (other.take, other.queue.size, lambda: other.queue.send(b"3")):
        with pytest.raises(QueueNotFound, match="deleted"):
            call()


def test_deletion_ends_a_blocked_receive(peer: Peer, other: Peer) -> None:
    thread, results = in_thread(lambda: peer.take(None))
    waiting(peer, _state.RECEIVERS)
    other.queue.mark_deleted()
    finish(thread)
    assert isinstance(results[0], QueueNotFound)


def test_a_deleted_queue_can_be_made_anew(home: str, peer: Peer) -> None:
    peer.queue.send(b"1")
    peer.queue.mark_deleted()
    with Peer(home) as again:
        again.queue.send(b"2")
        assert again.messages() == [b"2"]


def test_a_receipt_of_a_deleted_queue_settles_nothing_of_its_successor(home: str, peer: Peer) -> None:
    peer.queue.send(b"1")
    _, old = peer.one()
    peer.queue.mark_deleted()
    with Peer(home) as again:
        again.queue._store._member = peer.member.number  # as in one provider, which has one number for all its queues
        again.queue.send(b"2")
        _, receipt = again.one()
        assert receipt.slot == old.slot
        for settle in (again.queue.ack, again.queue.nack, lambda late: again.queue.extend(late, 9)):
            with pytest.raises(LeaseLost):
                settle(old)
        assert again.queue.counters()["leased"] == 1
        again.queue.ack(receipt)


def test_a_deletion_that_was_interrupted_is_finished(home: str, peer: Peer) -> None:
    peer.queue.send(b"1")
    peer.queue._words[_state.STATUS] = _state.IS_DELETED
    with pytest.raises(QueueNotFound):
        Peer(home, create=False)
    with Peer(home) as again:
        assert again.take() == []


def test_opening_what_is_being_deleted_makes_another(home: str, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened the file before it was unlinked must not keep a queue that nobody else can see."""
    opened = []

    def delete_when_opened(directory: Directory, name: str, flags: int) -> int:
        fd = open_file(name, flags, directory.fd)
        if name == "state":
            opened.append(fd)
            if len(opened) == 1:
                peer.queue.mark_deleted()
        return fd

    monkeypatch.setattr(Directory, "open", delete_when_opened)
    with Peer(home) as late:
        assert len(opened) == 3  # the deleted one, and the new one for its lock and for its mapping
        late.queue.send(b"1")
        peer.queue.mark_deleted()
        assert late.messages() == [b"1"]


def test_what_was_taken_takes_no_memory_whoever_has_its_file_open(home: str, peer: Peer) -> None:
    """A few large messages filled the file system of a container, with nothing in the queue, or with the queue deleted."""
    with Peer(home) as other, Peer(home) as taker:
        for _ in range(3):
            for sender in (peer, other):
                sender.queue.send(bytes(1 << 20))
                (_, receipt), *_ = taker.take(limit=2, lease=GUARD)
                taker.queue.ack(receipt)
        assert len(held(peer) + held(other)) > 4
        assert sum(map(bool, held(peer) + held(other))) == 1, "the one with the tail, which the head has not left"
        for priority in (0, 9):
            other.queue.send(bytes(1 << 20), priority=priority)
        taker.queue.mark_deleted()
        assert not any(held(peer) + held(other))


@pytest.mark.parametrize("priority", [0, 3, 9])
def test_the_claims_of_each_level_are_counted_again_after_a_death(priority: int, peer: Peer, other: Peer) -> None:
    """A process died behind the claims' change, and before the segment's count of them was written."""
    big = bytes(200 << 10)
    for _ in range(3):
        peer.queue.send(big, priority=priority)
    claimed = other.take(limit=2, lease=GUARD)
    first = min(other.queue._store.log.segments())
    os.pwrite(other.queue._store.log._file(first), bytes(8), 0)
    other.queue._words[_state.STATUS] = _state.DIRTY
    for _, receipt in claimed:
        other.queue.ack(receipt)
    assert sorted(other.queue._store.log.segments()) == [first + 1, first + 2], "the head has left the first"
    assert peer.messages() == [big]


def held(peer: Peer) -> list[int]:
    """How much memory each file of the log takes that senders have open."""
    return [os.fstat(file).st_blocks for file in peer.queue._store.tail_log.files.values()]


def test_closed(home: str) -> None:
    with Peer(home) as peer:
        peer.queue.close()
        for call in (peer.take, peer.queue.size, lambda: peer.queue.send(b"1")):
            with pytest.raises(ProviderError, match="closed"):
                call()


def test_who_waits_for_a_lock_of_what_is_closed_is_told_so(home: str) -> None:
    """And not that a signal handler had interrupted it: there was none."""
    with Peer(home) as peer:
        lock = peer.queue._lock
        with lock.mutex:
            thread, results = in_thread(peer.queue.size)
            thread.join(0.2)
            assert not results
            lock.close()
        finish(thread)
        assert str(results[0]) == "the queue was closed"
        peer.queue._closed = True
        peer.queue._store.close()
        peer.queue._sending.close()


def test_what_was_taken_while_it_was_closed_is_not_lost(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    take = _store.Store.take

    def take_and_close(store: _store.Store, *args: Any) -> Any:
        peer.queue._closed = True
        return take(store, *args)

    peer.queue.send(b"1")
    monkeypatch.setattr(_store.Store, "take", take_and_close)
    assert peer.messages(limit=1) == [b"1"]
    peer.queue._closed = False


# several processes


def produce(home: str, name: str, count: int) -> None:
    with Peer(home) as peer:
        for number in range(count):
            peer.queue.send(f"{name} {number}".encode())


def consume(home: str, lease: float | None, results: Any) -> None:
    with Peer(home) as peer:
        found = []
        while not found or found[-1] != b"end":
            message, receipt = peer.one(None, lease)
            found.append(message)
            if receipt:
                peer.queue.ack(receipt)
        results.put(found[:-1])


@pytest.mark.parametrize("lease", [None, 30.0])
def test_many_producers_and_consumers(home: str, start: Callable[..., Any], lease: float | None) -> None:
    results = spawn.Queue()
    for _ in range(3):
        start(consume, home, lease, results)
    producers = [start(produce, home, f"p{number}", 1500) for number in range(3)]
    for producer in producers:
        producer.join(60)
    with Peer(home) as peer:
        for _ in range(3):
            peer.queue.send(b"end")
        found = [results.get(timeout=60) for _ in range(3)]
        assert sorted(message for one in found for message in one) == sorted(
            f"p{producer} {number}".encode() for producer in range(3) for number in range(1500)
        )
        for one in found:
            for producer in range(3):
                numbers = [int(message.split()[1]) for message in one if message.startswith(b"p%d" % producer)]
                assert numbers == sorted(numbers)


def hold(home: str, lease: float, ready: Any) -> None:
    with Peer(home) as peer:
        peer.one(None, lease)
        ready.set()
        time.sleep(1000)


def test_a_killed_owner_gives_back_at_once(home: str, peer: Peer, start: Callable[..., Any]) -> None:
    peer.queue.send(b"1")
    ready = spawn.Event()
    process = start(hold, home, 1000.0, ready)
    assert ready.wait(GUARD)
    thread, results = in_thread(lambda: peer.take(None, lease=30))
    waiting(peer, _state.RECEIVERS)
    process.kill()
    finish(thread)
    [[(message, receipt)]] = results
    assert (message, receipt.attempt) == (b"1", 2)
    assert peer.queue._store.state.table(_state.OWNERS) == [peer.member.number]


@pytest.mark.parametrize("timeout", [0, 10.0])
def test_a_death_while_nobody_waited_is_found(home: str, peer: Peer, start: Callable[..., Any], timeout: float) -> None:
    peer.queue.send(b"1")
    ready = spawn.Event()
    process = start(hold, home, 1000.0, ready)
    assert ready.wait(GUARD)
    process.kill()
    process.join()
    assert peer.messages(timeout) == [b"1"]


def test_a_death_is_found_by_who_always_gets_the_next_with_an_ack(home: str, peer: Peer, start: Callable[..., Any]) -> None:
    peer.queue.send(b"1")
    ready = spawn.Event()
    process = start(hold, home, 1000.0, ready)
    assert ready.wait(GUARD)
    for _ in range(1000):  # all of them are read at once
        peer.queue.send(b"2")
    (delivery,) = peer.take(0, lease=30)
    process.kill()
    process.join()
    time.sleep(2 * _queue._LOOK_NS / 1e9)
    for _ in range(500):
        (delivery,) = peer.queue.ack_and_receive(delivery[1], 30.0) or peer.take(0, lease=30)
        if delivery[0] == b"1":
            break
    assert (delivery[0], delivery[1].attempt) == (b"1", 2)


def lock_and_fork(home: str, ready: Any) -> None:
    with Peer(home) as peer, peer.queue._lock:
        if os.fork() == 0:
            time.sleep(1000)
        ready.put(os.getpid())
        time.sleep(1000)


def test_a_forked_child_does_not_keep_its_dead_parents_lock(home: str, peer: Peer, start: Callable[..., Any]) -> None:
    ready = spawn.Queue()
    process = start(lock_and_fork, home, ready)
    ready.get(timeout=GUARD)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.join()
    try:
        peer.queue.send(b"1")
        assert peer.messages() == [b"1"]
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)


def test_a_stopped_owner_gives_back_when_its_lease_ends(home: str, peer: Peer, start: Callable[..., Any]) -> None:
    peer.queue.send(b"1")
    ready = spawn.Event()
    process = start(hold, home, 1.0, ready)
    assert ready.wait(GUARD)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        assert peer.one(GUARD)[1].attempt == 2
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_the_death_of_a_watched_process_ends_a_receive(peer: Peer, home: str) -> None:
    bell = Bell(
        Directory("bells", Directory(home)),
    )
    writer = peer.bells.writer(bell.number)
    assert writer is not None
    thread, results = in_thread(lambda: peer.take(None, watch=(writer,)))
    waiting(peer, _state.RECEIVERS)
    os.close(bell.fd)
    finish(thread)
    assert results == [[]]


# damage


def head_of(peer: Peer, name: str) -> bytes:
    with open(Path(peer.directory.path, name), "rb") as file:
        return file.read(20_000)


def overwrite(peer: Peer, name: str, place: int, content: bytes) -> None:
    with open(Path(peer.directory.path, name), "r+b") as file:
        file.seek(place)
        file.write(content)


def test_a_flipped_byte_of_the_log_loses_at_most_its_message(home: str) -> None:
    sent = [b"first", b"second message", b"third"]
    size = _state.START + sum(_segments.HEADER + len(message) for message in sent)
    for place in range(_state.START, size):
        with Peer(home, name=f"q{place}") as peer:
            for message in sent:
                peer.queue.send(message)
            original = head_of(peer, "log.00000000")
            overwrite(peer, "log.00000000", place, bytes([original[place] ^ 0x41]))
            found = peer.messages(limit=3)
            assert [message for message in sent if message in found] == found
            assert len(found) >= 2
            assert peer.take() == []
            assert peer.queue.size() == 0
            assert len(found) == 3 or peer.queue.counters()["corrupt"] == 1
            peer.queue.send(b"next")
            assert peer.messages() == [b"next"]


def test_a_damaged_claim_is_dropped_and_counted(peer: Peer) -> None:
    peer.queue.send(b"message")
    _, receipt = peer.one()
    overwrite(peer, "log.00000000", _state.START + _segments.HEADER, b"M")
    peer.queue.nack(receipt)
    assert peer.take() == []
    assert peer.queue.counters()["corrupt"] == 1
    assert peer.queue.is_idle_and_empty()


def test_a_flipped_byte_of_the_state_is_an_error_or_nothing(home: str) -> None:
    """Three messages, one of them leased, one delayed: whatever byte is wrong, no foreign error and no wrong payload."""
    sent = {b"first", b"second message", b"third", b"fourth"}
    level, slot = range(_state.LEVELS, _state.LEVELS + 12), range(_state.SLOTS, _state.SLOTS + 16)
    tables = [table + place for table in (_state.RECEIVERS, _state.SENDERS, _state.OWNERS) for place in range(2)]
    used = [8 * word + byte for word in (*range(16), *level, *slot, *tables) for byte in (0, 2, 7)]
    for number, place in enumerate(used):
        with Peer(home, name=f"q{number}") as peer:
            for message in sorted(sent):
                peer.queue.send(message, delay=30 if message == b"fourth" else 0)
            peer.take(lease=1000)
            original = head_of(peer, "state")
            overwrite(peer, "state", place, bytes([original[place] ^ 0x41]))
            for call in (
                peer.messages,
                lambda: peer.messages(lease=9),
                peer.queue.size,
                lambda: peer.queue.send(b"third", timeout=0),
            ):
                try:
                    result = call()
                except (ProviderError, queue.Full):
                    continue
                assert not isinstance(result, list) or set(result) <= sent
            peer.queue._words[_state.STATUS] = 0
            overwrite(peer, "state", 0, original[:8192])


def test_another_version_is_refused(home: str, peer: Peer) -> None:
    overwrite(peer, "state", 0, b"\xff")
    with pytest.raises(ProviderError, match="another version"):
        Peer(home)


def test_a_half_made_queue_is_made_again(home: str, peer: Peer) -> None:
    overwrite(peer, "state", 0, bytes(4096))
    with pytest.raises(QueueNotFound):
        Peer(home, create=False)
    with Peer(home) as again:
        again.queue.send(b"1")
        assert again.messages() == [b"1"]


FULL = """
import os, sys
sys.path[:0] = [{tests!r}]
from test_shm_queue import Peer
from pymq.exceptions import ProviderError
import subprocess
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", sys.argv[1]], check=True)
with Peer(sys.argv[1] + "/pymq", max_bytes=1 << 30) as peer:
    sent = 0
    try:
        while True:
            peer.queue.send(bytes([sent % 256]) * 50_000)
            sent += 1
    except ProviderError as error:
        assert "full" in str(error), error
    assert 10 < sent < 21 and peer.queue.size() == sent
    held = [peer.one() for _ in range(sent)]
    assert [message[0] for message, _ in held] == list(range(sent))
    for _, receipt in held:
        peer.queue.ack(receipt)
    for number in range(30):
        peer.queue.send(b"x" * 50_000)
        assert peer.messages() == [b"x" * 50_000]
    small = 0
    try:
        while True:
            peer.queue.send(b"x")
            small += 1
    except ProviderError:
        pass
    try:
        taken = [peer.one() for _ in range(small)]
        raise SystemExit("the table of claims grew without space")
    except ProviderError as error:
        assert "full" in str(error), error
    assert peer.queue.counters()["waiting"] + peer.queue.counters()["leased"] == small
print("ok")
"""


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_full_file_system(tmp_path: Path) -> None:
    script = FULL.format(tests=str(Path(__file__).parent))
    command = ["unshare", "-m", sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ok\n", done.stderr


IDLE = """
import sys, threading
sys.path[:0] = [{tests!r}]
from test_shm_queue import Peer
with Peer(sys.argv[1]) as peer:
    peer.queue.send(b"1")
    peer.queue.ack(peer.one()[1])
    threading.Timer(0.2, lambda: print("ready", flush=True)).start()
    peer.one(None, 30)
"""


@pytest.mark.needs_strace
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_an_idle_receiver_makes_no_system_call(home: str, tmp_path: Path) -> None:
    script = IDLE.format(tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", script, home], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        log = tmp_path / "strace"
        with subprocess.Popen(["strace", "-f", "-o", str(log), "-p", str(process.pid)], stderr=subprocess.DEVNULL) as strace:
            time.sleep(2)
            strace.terminate()
        with Peer(home) as peer:
            peer.queue.send(b"end")
        process.wait(GUARD)
    lines = log.read_text().splitlines()
    assert lines
    assert [line for line in lines if "poll" not in line and "detached" not in line] == []
