"""Somebody removes the directory while it is in use, as systemd does at a logout: it is noticed, made again, and counted."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from harness import GUARD, eventually
from stage import Nursery

import pymq
from pymq.provider.shm import ShmConfig


@pytest.fixture
def config(stage: Path) -> Iterator[ShmConfig]:
    yield ShmConfig("faults", str(stage / "pymq"), max_pending=1 << 20, publish_timeout=0.05)
    assert list((stage / "pymq").rglob("*")) == []


@pytest.fixture
def bus(config: ShmConfig) -> Iterator[pymq.EventBus]:
    with pymq.EventBus(config) as bus:
        yield bus


@pytest.fixture
def survivor(bus: pymq.EventBus, actors: Nursery) -> Iterator[int]:
    """Another process that was there before: it subscribes to "other", serves "served", and holds an item of "jobs"."""
    bus.queue("jobs").put("lent")
    pid = actors.begin("serve_and_hold", bus.config.home)
    actors.wait_for(pid, "holds", "lent", "1")
    yield pid
    os.kill(pid, signal.SIGKILL)
    actors.end(pid)
    with pymq.EventBus(bus.config) as last:  # sweeps
        last.queue("jobs").free()


def remove(config: ShmConfig) -> None:
    shutil.rmtree(str(config.home))


def heard_by(actors: Nursery, pid: int, text: str) -> None:
    actors.wait_for(pid, "heard", text)


def test_those_who_were_there_go_on_and_meet_the_newcomers(bus: pymq.EventBus, survivor: int, actors: Nursery) -> None:
    """The first publish reaches the others where they were, and wakes them; from the second one on all meet in the new place."""
    assert bus.publish("before", "other") == 1
    remove(bus.config)
    assert bus.publish("meanwhile", "other") == 1
    heard_by(actors, survivor, "meanwhile")
    with pymq.EventBus(bus.config) as newcomer:
        eventually(lambda: bus.publish("ping", "other") == newcomer.publish("newcomer", "other") == 1)
        heard_by(actors, survivor, "newcomer")
        assert newcomer.stub("served", timeout=GUARD)("fast") == survivor
        assert bus.stub("served", timeout=GUARD)("fast") == survivor
    assert bus.health().gaps == 1


def test_a_publish_that_reaches_nobody_looks_whether_others_are_elsewhere(bus: pymq.EventBus, config: ShmConfig) -> None:
    got: SimpleQueue[Any] = SimpleQueue()
    assert bus.publish("nobody is there", "news") == 0
    remove(config)
    with pymq.EventBus(config) as newcomer:
        newcomer.subscribe(got.put, "news")
        assert bus.publish("found", "news") == 1
        assert got.get(timeout=GUARD) == "found"
        assert (bus.health().gaps, newcomer.health().gaps) == (1, 0)


def test_who_sleeps_is_found_again_after_a_health_check(bus: pymq.EventBus, config: ShmConfig) -> None:
    got: SimpleQueue[Any] = SimpleQueue()
    bus.subscribe(got.put, "news")
    bus.subscribe(got.put, "news/*", pattern=True)
    bus.subscribe(got.put, "tasks", group="members")
    bus.expose(lambda: "here", "where")
    remove(config)
    assert bus.health().gaps == 1
    with pymq.EventBus(config) as newcomer:
        for channel in ("news", "news/7", "tasks"):
            assert newcomer.publish(channel, channel) == 1
            assert got.get(timeout=GUARD) == channel
        assert newcomer.stub("where", timeout=GUARD)() == "here"
    assert bus.health().gaps == 1
    bus.group("members").delete()


def test_what_waits_in_queues_and_groups_is_taken_along(bus: pymq.EventBus, config: ShmConfig, caplog: Any) -> None:
    jobs, tasks = bus.queue("jobs"), bus.group("members")
    tasks.bind("tasks")
    for number in range(500):
        jobs.put(number)
        assert bus.publish(number, "tasks") == 1
    lent = [jobs.receive(timeout=0) for _ in range(3)]
    jobs.put("not due", delay=1000)
    remove(config)
    assert bus.health().gaps == 1
    assert "3 messages were leased, and 1 not due yet" in caplog.text
    with pymq.EventBus(config) as newcomer:
        assert [newcomer.queue("jobs").get(timeout=0) for _ in range(497)] == list(range(3, 500))
        assert newcomer.group("members").qsize() == 500
        lent[0].ack()
        lent[1].nack()
        with pytest.raises(ArithmeticError), lent[2]:
            raise ArithmeticError
        assert newcomer.queue("jobs").get(timeout=GUARD) == 1
        with newcomer.queue("jobs").take(timeout=GUARD) as job:
            assert (job.value, job.attempt) == (2, 2)
        assert newcomer.queue("jobs").empty()
    jobs.free()
    tasks.delete()


BLOCKED: dict[str, Callable[[pymq.EventBus], object]] = {
    "get": lambda bus: bus.queue("jobs").get(timeout=GUARD),
    "take": lambda bus: bus.queue("jobs").receive(timeout=GUARD).ack(),
    "put": lambda bus: bus.queue("full", maxsize=1).put("blocked", timeout=GUARD),
}


@pytest.mark.parametrize("how", BLOCKED)
def test_who_is_blocked_goes_on_in_the_new_place(how: str, bus: pymq.EventBus, config: ShmConfig) -> None:
    from concurrent.futures import ThreadPoolExecutor

    bus.queue("jobs")
    bus.queue("full", maxsize=1).put("first")
    with ThreadPoolExecutor() as pool:
        blocked = pool.submit(BLOCKED[how], bus)
        eventually(lambda: sleepers(bus))
        remove(config)
        bus.health()
        with pymq.EventBus(config) as newcomer:
            newcomer.queue("jobs").put("work")
            assert newcomer.queue("full").get(timeout=GUARD) == "first"
            blocked.result(GUARD)
            assert newcomer.queue("full").qsize() == (how == "put")
            newcomer.queue("jobs").free()
            newcomer.queue("full").free()


def sleepers(bus: pymq.EventBus) -> int:
    from pymq.provider._shm.state import RECEIVERS, SENDERS

    return sum(queue._words[RECEIVERS] + queue._words[SENDERS] for queue, _ in bus.provider._queues.values())


@pytest.mark.parametrize("what", ["inboxes/*.fifo", "journal.*", "queues/*/state", "queues/*/*", "inboxes/*", "registry"])
def test_only_some_of_it_is_removed(what: str, bus: pymq.EventBus, config: ShmConfig) -> None:
    got: SimpleQueue[Any] = SimpleQueue()
    bus.subscribe(got.put, "news")
    jobs = bus.queue("jobs")
    jobs.put("waits")
    for path in Path(str(config.home), "faults").glob(what):
        path.unlink()
    bus.health()
    with pymq.EventBus(config) as newcomer:
        assert newcomer.publish("new", "news") == 1
        assert got.get(timeout=GUARD) == "new"
        assert newcomer.queue("jobs").get(timeout=GUARD) == "waits"
        bus.health()
    jobs.free()


def test_a_compaction_that_another_thread_follows_is_no_removal(config: ShmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymq.provider._shm import registry as module

    with pymq.EventBus(config) as bus, pymq.EventBus(config) as other:
        ours, theirs = bus.provider._registry, other.provider._registry
        is_removed = module.is_removed
        followers: list[threading.Thread] = []

        def compacted_meanwhile(fd: int) -> bool:
            if fd != ours._journal or followers:
                return is_removed(fd)
            with theirs.lock:
                theirs._compact()
            found = is_removed(fd)
            followers.append(threading.Thread(target=ours.catch_up))
            followers[0].start()
            followers[0].join(0.2)  # it comes to its end if nothing holds it up
            return found

        monkeypatch.setattr(module, "is_removed", compacted_meanwhile)
        assert bus.health().gaps == 0
        followers[0].join(GUARD)
        assert other.health().gaps == 0


@pytest.mark.parametrize("verb", ["bind", "delete"])
def test_no_other_thread_makes_the_directory_again_in_the_middle_of_a_change(verb: str, bus: pymq.EventBus, config: ShmConfig) -> None:
    """It would be half of the old registry and half of the new one, without its lock."""
    provider = bus.provider
    provider.declare("jobs")
    shared, looks = provider._shared, []

    def removed_meanwhile(name: str) -> Any:
        if not looks and threading.current_thread() is threading.main_thread():
            remove(config)
            looks.append(threading.Thread(target=bus.health))
            looks[0].start()
            looks[0].join(0.2)  # it comes to its end if nothing holds it up
            registries.append(provider._registry)
        return shared(name)

    registries = [provider._registry]
    provider._shared = removed_meanwhile
    provider.bind("jobs", "news", exact=True) if verb == "bind" else provider.delete("jobs")
    looks[0].join(GUARD)
    assert registries[0] is registries[1] is not provider._registry
    assert bus.health().gaps == 1
    assert provider._registry.bindings.of() == ([("jobs", "news", True)] if verb == "bind" else [])
    provider.delete("jobs")


def test_what_was_made_again_by_another_thread_is_not_made_again_once_more(bus: pymq.EventBus, config: ShmConfig) -> None:
    """A thread that finds the old files removed may say so late."""
    from pymq.provider._shm.queue import SharedQueue

    provider = bus.provider
    provider.declare("jobs")
    queue: SharedQueue = provider._queues["jobs"][0]
    send = queue.send

    def put_late(*args: Any, **how: Any) -> None:
        assert bus.health().gaps == 1
        send(*args, **how)

    remove(config)
    queue.send = put_late  # type: ignore[method-assign]
    queue._next_look_at_files = 0
    provider.send("jobs", b"late")
    assert bus.health().gaps == 1
    assert [message for message, _ in provider.receive("jobs", 0, limit=2, lease=None)] == [b"late"]
    provider.delete("jobs")


def test_a_question_for_consumers_looks_whether_others_are_elsewhere(bus: pymq.EventBus, config: ShmConfig) -> None:
    assert bus.provider.consumers("asked") == []
    remove(config)
    assert bus.provider.consumers("another") == []
    remove(config)
    assert bus.provider.request("a third", b"", "answers") is None
    assert bus.health().gaps == 2


def test_a_delayed_publish_goes_to_the_new_place_once(bus: pymq.EventBus, config: ShmConfig) -> None:
    """The inbox has its copy already when the queue is found removed."""
    provider = bus.provider
    provider.declare("jobs")
    provider.declare("inbox", temporary=True)
    for queue in ("jobs", "inbox"):
        provider.bind(queue, "news", exact=True)
    assert provider.publish(("news",), b"before") == 2
    remove(config)
    provider._queues["jobs"][0]._next_look_at_files = 0
    assert provider.publish(("news",), b"delayed", delay=0.01) == 2
    assert [message for message, _ in provider.receive("inbox", 0)] == [b"before", b"delayed"]
    assert [provider.receive("jobs", GUARD, lease=None)[0][0] for _ in range(2)] == [b"before", b"delayed"]
    assert bus.health().gaps == 1
    provider.delete("jobs")


def test_who_would_wait_for_room_in_a_removed_inbox_is_told_where_it_went(bus: pymq.EventBus, config: ShmConfig) -> None:
    with pymq.EventBus(config) as other:
        other.provider.declare("inbox", temporary=True)
        outlet = bus.provider._outlet("inbox")
        message = bytes(100_000)
        while outlet.send(message):
            pass
        remove(config)
        with pytest.raises(pymq.QueueNotFound):
            bus.provider.send("inbox", message, timeout=0)
        assert (bus.health().gaps, other.health().gaps) == (1, 1)
        bus.provider.send("inbox", message, timeout=0)
        assert other.provider.receive("inbox", 0)


FIRST_TO_LOOK: dict[str, Callable[[pymq.EventBus], object]] = {
    "receive": lambda bus: bus.provider.receive("inbox", 0),
    "publish": lambda bus: bus.provider.publish(("nobody",), b""),
    "health": lambda bus: bus.health(),
}


@pytest.mark.parametrize("who", FIRST_TO_LOOK)
def test_there_are_too_few_descriptors_to_make_it_again(who: str, bus: pymq.EventBus, config: ShmConfig) -> None:
    """However many are missing: a ProviderError says so, and with enough of them all is well."""
    bus.provider.declare("inbox", temporary=True)
    bus.queue("jobs").put("kept")
    bus.provider.publish(("nobody",), b"")
    remove(config)
    failures = 0
    for free in range(100):
        bus.provider._next_look = 0
        with descriptors(free), suppress(pymq.ProviderError):
            FIRST_TO_LOOK[who](bus)
            break
        failures += 1
    assert 0 < failures < 50
    assert bus.health().gaps == 1
    assert bus.queue("jobs").get(timeout=0) == "kept"
    bus.queue("jobs").free()


@contextmanager
def descriptors(free: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd"))) + 1 + free
    taken = [os.dup(0) for _ in range(most - len(os.listdir("/proc/self/fd")) + 1)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        for fd in sorted(taken)[len(taken) - free :]:
            os.close(fd)
        yield
    finally:
        for fd in sorted(taken)[: len(taken) - free]:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def no_duplicate(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Once, the first to ask for a second descriptor of a file, which a queue is moved with, gets none."""
    dup, refused = os.dup, []

    def refuse_once(fd: int) -> int:
        if refused:
            return dup(fd)
        refused.append("once")
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", refuse_once)
    return refused


def test_a_queue_that_cannot_be_moved_yet_keeps_nothing_else(bus: pymq.EventBus, config: ShmConfig, no_duplicate: list[str]) -> None:
    got: SimpleQueue[Any] = SimpleQueue()
    bus.subscribe(got.put, "news")
    for name in ("jobs", "tasks"):
        bus.queue(name).put(name)
    remove(config)
    assert bus.health().gaps == 1
    assert no_duplicate
    with pymq.EventBus(config) as newcomer:
        assert newcomer.publish("news", "news") == 1
        assert got.get(timeout=GUARD) == "news"
        bus.health()
        for name in ("jobs", "tasks"):
            assert newcomer.queue(name).get(timeout=0) == name
            newcomer.queue(name).free()


def test_what_a_stopped_process_held_up_is_moved_later(config: ShmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pymq.provider._shm.files.LOCK_SECONDS", 0.05)
    with pymq.EventBus(config) as bus:
        bus.queue("jobs").put("held up")
        state = next(Path(str(config.home), "faults").glob("queues/*/state"))
        with state.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            remove(config)
            assert bus.health().gaps == 1
            assert bus.queue("jobs").qsize() == 0
    with pymq.EventBus(config) as newcomer:
        assert newcomer.queue("jobs").get(timeout=0) == "held up"
        newcomer.queue("jobs").free()


def test_over_and_over(bus: pymq.EventBus, survivor: int, actors: Nursery) -> None:
    jobs = bus.queue("steady")
    assert bus.publish("before", "other") == 1  # who has never sent there cannot wake who sleeps
    for turn in range(10):
        remove(bus.config)
        jobs.put(turn)
        with pymq.EventBus(bus.config) as newcomer:
            eventually(lambda: bus.publish("ping", "other") == newcomer.publish(f"turn-{turn}", "other") == 1)  # noqa: B023
            heard_by(actors, survivor, f"turn-{turn}")
        bus.health()
        assert bus.publish("here", "other") == 1
        assert jobs.get(timeout=GUARD) == turn
    assert bus.health().gaps == 10
    jobs.free()


def test_it_cannot_be_made_again(bus: pymq.EventBus, config: ShmConfig, stage: Path) -> None:
    """While somebody else's file is in its place: an error that names it; when that is gone, all is well again."""
    got: SimpleQueue[Any] = SimpleQueue()
    bus.subscribe(got.put, "news")
    remove(config)
    (stage / "pymq").touch()
    with pytest.raises(pymq.ProviderError, match="is not a directory of ours"):
        bus.health()
    (stage / "pymq").unlink()
    assert bus.health().gaps == 1
    with pymq.EventBus(config) as newcomer:
        assert newcomer.publish("news", "news") == 1
    assert got.get(timeout=GUARD) == "news"


def test_a_program_that_ends_takes_what_waits_to_the_new_place(config: ShmConfig) -> None:
    with pymq.EventBus(config) as bus:
        bus.queue("jobs").put("must not be lost")
        remove(config)
    with pymq.EventBus(config) as newcomer:
        assert newcomer.queue("jobs").get(timeout=0) == "must not be lost"
        newcomer.queue("jobs").free()


@pytest.mark.parametrize("_", range(4))
def test_a_put_that_waits_for_room_ends_with_its_bus(_: int, config: ShmConfig) -> None:
    """It does not go on on what is closed by then, and may be the program's own files."""
    with ThreadPoolExecutor(1) as pool:
        with pymq.EventBus(config) as bus:
            jobs = bus.queue("jobs", maxsize=1)
            jobs.put("all there is room for")
            putting = pool.submit(jobs.put, "more")
            eventually(lambda: bus.provider._registry.bells.senders)
            remove(config)
        with pytest.raises(pymq.ProviderError, match="closed while a send waited for room"):
            putting.result(GUARD)
    with pymq.EventBus(config) as other:
        assert other.queue("jobs").get(timeout=GUARD) == "all there is room for"
        other.queue("jobs").free()


def test_on_an_event_loop(config: ShmConfig) -> None:
    import asyncio

    import pymq.asyncio

    async def main() -> None:
        async with pymq.asyncio.EventBus(config) as bus:
            got: asyncio.Queue[Any] = asyncio.Queue()
            await bus.subscribe(got.put_nowait, "news")
            assert await bus.publish("before", "news") == 1
            assert await asyncio.wait_for(got.get(), GUARD) == "before"
            remove(config)
            await asyncio.sleep(0.11)
            assert await bus.publish("meanwhile", "news") == 1
            assert await asyncio.wait_for(got.get(), GUARD) == "meanwhile"
            await asyncio.to_thread(publish_from_a_newcomer, config)
            assert await asyncio.wait_for(got.get(), GUARD) == "after"

    asyncio.run(main())


def test_who_awaits_an_item_on_an_event_loop_gets_it_from_the_new_place(config: ShmConfig) -> None:
    import asyncio

    import pymq.asyncio

    async def main() -> None:
        async with pymq.asyncio.EventBus(config) as bus:
            jobs: Any = bus.queue("jobs")
            assert await jobs.qsize() == 0
            for turn in range(3):
                getter = asyncio.ensure_future(jobs.get(timeout=GUARD))
                while not sleepers(bus._core):
                    await asyncio.sleep(0.001)
                remove(config)
                assert bus.health().gaps == turn + 1
                await asyncio.to_thread(put_by_a_newcomer, config, turn)
                assert await getter == turn
            await jobs.free()

    asyncio.run(main())


def put_by_a_newcomer(config: ShmConfig, item: object) -> None:
    with pymq.EventBus(config) as newcomer:
        newcomer.queue("jobs").put(item)


def publish_from_a_newcomer(config: ShmConfig) -> None:
    with pymq.EventBus(config) as newcomer:
        eventually(lambda: newcomer.publish("after", "news") == 1)


def test_a_deletion_in_the_middle_of_a_look_is_no_removal(config: ShmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else everything would be made again, and what was on its way be lost, since somebody has freed a queue."""
    from pymq.provider._shm import queue as module

    with pymq.EventBus(config) as bus, pymq.EventBus(config) as other:
        jobs, theirs = bus.queue("jobs"), other.queue("jobs")
        jobs.put("in use")
        is_removed = module.is_removed

        def freed_meanwhile(fd: int) -> bool:
            monkeypatch.undo()
            theirs.free()
            return is_removed(fd)

        monkeypatch.setattr(module, "is_removed", freed_meanwhile)
        assert bus.health().gaps == 0
        assert other.health().gaps == 0


USES: dict[str, Callable[[pymq.EventBus], object]] = {
    "send": lambda bus: bus.publish("one more", "news"),
    "size": lambda bus: bus.group("readers").qsize(),
    "mark_deleted": lambda bus: bus.group("readers").delete(),
}


@pytest.mark.parametrize("use", USES)
def test_a_queue_that_another_thread_lets_go_of_meanwhile(use: str, config: ShmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that finds it deleted: it stays open for those who are in the middle of using it."""
    from pymq.provider._shm.queue import SharedQueue

    with pymq.EventBus(config) as bus:
        bus.group("readers").bind("news")
        bus.publish("first", "news")
        bus.publish("second", "news")
        go_on = getattr(SharedQueue, use)

        def let_go_meanwhile(queue: SharedQueue, *args: Any, **options: Any) -> Any:
            bus.provider._queues.clear()
            return go_on(queue, *args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(SharedQueue, use, let_go_meanwhile)
            USES[use](bus)
        bus.group("readers").delete()
