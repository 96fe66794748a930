"""The lock of a shared queue that belongs to its only user until somebody else wants it."""

from __future__ import annotations

import multiprocessing
import os
import queue
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from shm_peers import GUARD, Peer, finish, in_thread, until

from pymq.exceptions import ProviderError
from pymq.provider._shm import files as _files
from pymq.provider._shm import guard as _guard
from pymq.provider._shm import state as _state
from pymq.provider._shm.guard import Guard

spawn = multiprocessing.get_context("spawn")
pytestmark = pytest.mark.skipif(not _state.IS_ORDERED, reason="locks are biased on x86 only")


def make_biased(peer: Peer) -> Guard:
    """The senders' lock belongs to that one."""
    lock = peer.queue._sending
    for _ in range(_guard._TURNS + 1):
        lock.run(peer.queue._words, int)
    assert bias(peer) == lock._flag
    return lock


def bias(peer: Peer) -> int:
    found: int = peer.queue._words[_state.SENDING + _state.BIAS]
    return found


@contextmanager
def no_file_locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(_guard, "flock", lambda *_: pytest.fail("a system call"))
        yield


def test_its_only_user_takes_it_without_a_system_call(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(_guard._TURNS + 1):
        peer.queue.send(b"%d" % number)
        peer.take()
    with no_file_locks(monkeypatch):
        peer.queue.send(b"last")
        assert peer.messages(limit=1) == [b"last"]


def test_another_gets_it_and_may_make_it_its_own(peer: Peer, other: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    make_biased(peer)
    other.queue.send(b"1")
    assert bias(peer) == 0
    peer.queue.send(b"2")
    make_biased(other)
    with no_file_locks(monkeypatch):
        other.queue.send(b"3")
    peer.queue.send(b"4")
    assert peer.messages() == [b"1", b"2", b"3", b"4"]


def test_whoever_takes_both_locks_gets_it(peer: Peer, other: Peer) -> None:
    make_biased(peer)
    thread, results = in_thread(lambda: other.messages(GUARD))
    until(lambda: peer.queue._words[_state.RECEIVERS])
    assert bias(peer) == 0
    peer.queue.send(b"1")
    finish(thread)
    assert results == [[b"1"]]


def hold(home: str, ready: Any) -> None:
    """With the flag up, until it is told to go on."""
    peer = Peer(home)
    lock = make_biased(peer)
    ready.set()
    lock.run(peer.queue._words, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    peer.queue.send(b"mine")
    signal.pause()


def send(home: str) -> None:
    Peer(home).queue.send(b"too early")


@pytest.fixture
def holder(home: str, peer: Peer, start: Callable[..., Any]) -> Any:
    ready = spawn.Event()
    process = start(hold, home, ready)
    assert ready.wait(GUARD)
    until(lambda: state_of(process.pid) == "T")
    return process


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(") ")[2][0]


def test_a_dead_owner_is_not_waited_for(peer: Peer, holder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "LOCK_SECONDS", 1000)
    thread, results = in_thread(lambda: peer.queue.send(b"1"))
    time.sleep(0.2)
    assert not results, "it did not wait for the living"
    holder.kill()
    finish(thread)
    assert results == [None]
    assert bias(peer) == 0
    assert peer.messages() == [b"1"]


def test_a_stopped_owner_keeps_it(peer: Peer, holder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "LOCK_SECONDS", 0.1)
    for _ in range(2):
        with pytest.raises(ProviderError, match="is a process stopped"):
            peer.queue.send(b"too early")
    os.kill(holder.pid, signal.SIGCONT)
    until(lambda: peer.messages() == [b"mine"])
    peer.queue.send(b"1")
    assert peer.messages() == [b"1"]


def test_what_is_half_revoked_by_one_who_died_is_not_free(
    home: str, peer: Peer, holder: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    revoker = start(send, home)
    until(lambda: bias(peer) & _guard._REVOKED)
    revoker.kill()
    revoker.join()
    monkeypatch.setattr(_files, "LOCK_SECONDS", 0.1)
    with pytest.raises(ProviderError, match="is a process stopped"):
        peer.queue.send(b"too early")
    os.kill(holder.pid, signal.SIGCONT)
    until(lambda: peer.messages() == [b"mine"])


def test_where_there_are_more_than_flags_the_others_do_without(home: str, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guard, "_TURNS", 1)
    guards = [Peer(home) for _ in range(25)]
    flags = {one.queue._sending._flag for one in guards for _ in range(4) if one.queue.send(b"1") is None}
    assert None in flags
    assert len(flags - {None}) == 19
    for one in guards:
        one.__exit__()
    with Peer(home) as one:
        for _ in range(4):
            one.queue.send(b"1")
        assert one.queue._sending._flag in flags
    assert len(peer.messages(limit=1000)) == 104


def test_the_flag_of_a_dead_owner_is_given_to_another(peer: Peer, other: Peer, holder: Any) -> None:
    flag = bias(peer)
    holder.kill()
    holder.join()
    assert make_biased(peer)._flag == flag
    assert make_biased(other)._flag != flag


def test_who_comes_and_goes_uses_up_no_flag(home: str, peer: Peer) -> None:
    for _ in range(50):
        with Peer(home) as one:
            assert make_biased(one)._flag in peer.queue._sending._flags


def test_an_owner_whose_names_are_gone_is_waited_for_while_it_lives(
    home: str, peer: Peer, holder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "LOCK_SECONDS", 0.1)
    shutil.rmtree(f"{home}/bells")
    os.mkdir(f"{home}/bells", 0o700)
    with pytest.raises(ProviderError, match="is a process stopped"):
        peer.queue.send(b"too early")
    holder.kill()
    holder.join()
    peer.queue.send(b"1")
    assert peer.messages() == [b"1"]


def test_who_is_inside_while_its_provider_is_closed_is_not_taken_for_dead(
    peer: Peer, other: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "LOCK_SECONDS", 0.1)
    lock, leave = make_biased(peer), threading.Event()
    thread, results = in_thread(lambda: lock.run(peer.queue._words, leave.wait, GUARD))
    until(lambda: peer.queue._words[lock._flag])
    peer.bells.close()
    with pytest.raises(ProviderError, match="is a process stopped"):
        other.queue.send(b"too early")
    leave.set()
    finish(thread)
    other.queue.send(b"1")
    assert (results, other.messages()) == ([True], [b"1"])


def test_a_forked_child_has_none_of_its_parents_locks(peer: Peer) -> None:
    make_biased(peer)
    child = os.fork()
    if not child:
        try:
            peer.queue._sending.run(peer.queue._words, os._exit, 1)
        except ProviderError:
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    peer.queue.send(b"1")
    assert peer.messages() == [b"1"]


def test_damage_takes_it_from_nobody(peer: Peer) -> None:
    lock = make_biased(peer)
    for bad in (1 << 60, 7, lock._flags[3] | 1 << 40):
        peer.queue._words[_state.SENDING + _state.BIAS] = bad
        peer.queue.send(b"1")
    assert peer.messages() == [b"1"] * 3


def put_into_little_room(peer: Peer) -> None:
    with suppress(queue.Full):
        peer.queue.send(b"mine", 0, 1)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda peer: peer.queue.send(b"mine"), id="put"),
        pytest.param(put_into_little_room, id="put where there may be no room"),
        pytest.param(lambda peer: peer.take(0.00001, 100), id="get that sleeps"),
    ],
)
def test_what_a_signal_handler_raises_leaves_nothing_locked(peer: Peer, other: Peer, use: Callable[[Peer], object]) -> None:
    """At whatever line it comes."""
    armed = [False]

    def give_up(*_: object) -> None:
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, give_up)
    interrupted = 0
    locks = peer.queue._sending, peer.queue._lock
    try:
        for turn in range(3000):
            if turn % 10 == 0:
                make_biased(peer)
            try:
                armed[0] = True
                signal.setitimer(signal.ITIMER_REAL, 0.000001 + turn % 20 * 0.000001)
                for _ in range(10):
                    use(peer)
                armed[0] = False
            except KeyboardInterrupt:
                interrupted += 1
            for lock in locks:
                assert not lock.is_held
                assert not any(peer.queue._words[flag] for flag in lock._flags)
            other.queue.send(b"theirs")
            found = other.messages(limit=100)
            assert found.count(b"theirs") == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 100


def put_in_bursts(home: str, name: int, turns: int) -> None:
    rng, written = random.Random(name), 0
    _guard._TURNS = 3
    with Peer(home) as peer:
        for _ in range(turns):
            for _ in range(rng.randrange(60)):
                written += 1
                peer.queue.send(b"%d %d" % (name, written))
            time.sleep(rng.choice([0, 0, 0.0001, 0.001]))
        peer.queue.send(b"%d 0" % name)


def test_those_who_take_turns_lose_and_mix_up_nothing(home: str, peer: Peer, start: Callable[..., Any]) -> None:
    """Each makes it its own again and again, and has it taken away."""
    for name in range(3):
        start(put_in_bursts, home, name, 400)
    last, left, owners = [0] * 3, 3, set()
    while left:
        owners.add(bias(peer) & ~_guard._REVOKED)
        for message in peer.messages(GUARD, limit=10):
            name, number = map(int, message.split())
            if number:
                assert number == last[name] + 1
                last[name] = number
            else:
                left -= 1
    assert min(last) > 1000
    assert len(owners - {0}) > 1
    assert peer.queue.counters()["corrupt"] == 0


def test_threads_share_it(peer: Peer, other: Peer) -> None:
    make_biased(peer)
    threads = [threading.Thread(target=lambda: [peer.queue.send(b"1") for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        other.queue.send(b"1")
    for thread in threads:
        finish(thread)
    assert len(peer.messages(limit=10_000)) == 2200
