"""What only the ipc provider does: its lanes, its kernel queues and whoever removes them, and the limits of both."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from queue import Full
from types import SimpleNamespace

import pytest
from harness import ProcessPeer, eventually, run_program
from programs import shop
from programs.participant import verbs

import pymq
from pymq.exceptions import ProviderError
from pymq.provider import config_from

posix_ipc = pytest.importorskip("posix_ipc", reason="needs posix_ipc, which has no wheel for this Python")

from pymq.provider import _kernel  # noqa: E402
from pymq.provider._shm.frames import SLEEPERS  # noqa: E402
from pymq.provider.ipc import IpcConfig, IpcEventBus, kernel_queue  # noqa: E402

needs_a_user = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who has no other queues")
FORKING = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}
"""A fork beside threads, from Python 3.12 on."""


@pytest.fixture
def config():
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="pymq-test-") as home:
        yield IpcConfig(home=f"{home}/pymq")
        assert list(Path(home).iterdir()) == []


@pytest.fixture
def opened(config):
    providers = []

    def make():
        providers.append(config.create())
        providers[-1].open()
        return providers[-1]

    yield make
    for provider in providers:
        provider.close()


@pytest.fixture
def pair(opened):
    """A provider with an inbox, and one that sends to it."""
    receiver, sender = opened(), opened()
    receiver.declare("inbox", temporary=True)
    receiver.bind("inbox", "topic", exact=True)
    return receiver, sender


def take(provider, count):
    found = []
    while len(found) < count:
        more = provider.receive("inbox", 10)
        assert more, f"{len(found)} of {count} messages in 10 s"
        found += [message for message, _ in more]
    return found


# --- lanes ------------------------------------------------------------------------------------------------------------


def test_requests_overtake_events_in_the_kernel_queue(pair):
    receiver, sender = pair
    for number in range(3):
        sender.publish(("topic",), b"event %d" % number)
        sender.send("inbox", b"request %d" % number)
    assert take(receiver, 6) == [b"request 0", b"request 1", b"request 2", b"event 0", b"event 1", b"event 2"]


def test_requests_overtake_the_overflow_log(pair):
    """As long as there is room in the kernel queue: those that find none wait behind the events, and all after them, too."""
    receiver, sender = pair
    for number in range(6):
        sender.publish(("topic",), b"event %d" % number)
    sender.publish(("topic",), bytes(5 << 20))  # too large for the kernel queue and for an arena
    sender.publish(("topic",), b"event 7")
    for number in range(7):
        sender.send("inbox", b"request %d" % number)
    found = take(receiver, 15)
    waiting = [b"event %d" % number for number in range(6)]
    assert found == [
        *(b"request %d" % n for n in range(4)),
        *waiting,
        bytes(5 << 20),
        b"event 7",
        *(b"request %d" % n for n in (4, 5, 6)),
    ]


def test_after_a_request_went_through_the_log_the_next_ones_do_too_until_it_is_read(pair):
    receiver, sender = pair
    for number in range(12):
        sender.send("inbox", b"%d" % number)
    kernel_queue = receiver._inboxes["inbox"]._queue
    kernel_queue.receive()  # there is room again, but 10 and 11 are in the log
    sender.send("inbox", b"12")
    assert take(receiver, 12) == [b"%d" % number for number in range(1, 13)]
    sender.send("inbox", b"13")
    assert kernel_queue.current_messages == 1


@pytest.mark.parametrize("sizes", [(10, 200), (10, 1011, 1012, 1013, 5000, 100_000)])
def test_each_lane_keeps_its_order(pair, sizes):
    receiver, sender = pair
    count = 1500

    def work():
        for number in range(count):
            body = b"%06d" % number + bytes(sizes[number % len(sizes)] - 6)
            sender.publish(("topic",), b"e" + body, timeout=60)
            sender.send("inbox", b"r" + body, timeout=60)

    thread = threading.Thread(target=work)
    thread.start()
    found = take(receiver, 2 * count)
    thread.join()
    for kind in (b"e", b"r"):
        lane = [message for message in found if message[:1] == kind]
        assert [int(message[1:7]) for message in lane] == list(range(count))
        assert all(len(message) == 1 + sizes[number % len(sizes)] for number, message in enumerate(lane))


def test_a_request_that_had_to_wait_for_room_is_not_overtaken_by_the_senders_next(config):
    small = dataclasses.replace(config, max_pending=20_000)
    with closing(small.create()) as receiver, closing(small.create()) as sender, ThreadPoolExecutor() as pool:
        receiver.open()
        sender.open()
        receiver.declare("inbox", temporary=True)
        filled = 0
        with suppress(Full):
            while True:
                sender.send("inbox", bytes(900), timeout=0)
                filled += 1
        sent = [b"%d" % number for number in range(20)]
        sending = pool.submit(lambda: [sender.send("inbox", message.rjust(900), timeout=10) for message in sent])
        eventually(lambda: receiver._inboxes["inbox"].head[SLEEPERS])
        assert [message.strip() for message in take(receiver, filled + len(sent))[filled:]] == sent
        sending.result(10)


def test_a_request_arrives_also_while_another_thread_asks_whether_the_receiver_is_dead(pair):
    receiver, sender = pair
    sender.send("inbox", b"first")
    outlet = sender._outlet("inbox")

    class Busy:
        def poll(self, timeout):
            raise RuntimeError("concurrent poll() invocation")

    outlet._death = outlet.urgent()._death = Busy()
    sender.send("inbox", b"second")
    assert take(receiver, 2) == [b"first", b"second"]


def test_the_lanes_share_no_arena(pair):
    receiver, sender = pair
    first, request, second = (bytes([number]) * 5000 for number in range(3))
    sender.publish(("topic",), first)
    sender.send("inbox", request)
    sender.publish(("topic",), second)
    assert take(receiver, 3) == [request, first, second]


# --- where messages go ------------------------------------------------------------------------------------------------


def test_a_small_message_is_one_of_the_kernels(pair):
    receiver, sender = pair
    sender.publish(("topic",), bytes(_kernel.MESSAGE_BYTES - 12))
    assert receiver._inboxes["inbox"]._queue.current_messages == 1
    assert sender._outlets["inbox"].head[0] == 0
    assert take(receiver, 1) == [bytes(_kernel.MESSAGE_BYTES - 12)]


def test_signals_and_messages_do_not_cut_each_other(pair):
    receiver, sender = pair
    for _ in range(6000):
        receiver.wake()  # a read of the FIFO ends in the middle of one
    assert receiver.receive("inbox") == []
    sender.publish(("topic",), b"in the kernel queue")
    assert eventually(lambda: receiver.receive("inbox")) == [(b"in the kernel queue", None)]
    assert receiver.receive("inbox") == []
    assert receiver.counters()["inbox"]["corrupt"] == 0


def test_a_bus_has_one_kernel_queue_however_many_threads_call(config):
    with pymq.EventBus(config) as bus:
        bus.expose(lambda: "pong", "ping")
        threads = [threading.Thread(target=bus.stub("ping", timeout=10)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bus.stub("ping", timeout=10)() == "pong"
        assert len(list(Path(config.home).rglob("*.mq"))) == 1


def test_one_that_was_removed_by_hand_is_done_without(pair, opened):
    receiver, _ = pair
    posix_ipc.unlink_message_queue(name_of(receiver))
    newcomer = opened()
    assert newcomer.publish(("topic",), b"by the log") == 1
    newcomer.send("inbox", b"too")
    assert sorted(take(receiver, 2)) == [b"by the log", b"too"]


def name_of(provider):
    return kernel_queue(_kernel._token(provider._registry.inboxes, "inbox"))


# --- removal ----------------------------------------------------------------------------------------------------------


def exists(name):
    try:
        os.close(posix_ipc.MessageQueue(name).mqd)
    except posix_ipc.ExistentialError:
        return False
    return True


def test_close_and_delete_remove_it(pair, opened):
    receiver, _ = pair
    name = name_of(receiver)
    assert exists(name)
    receiver.delete("inbox")
    assert not exists(name)
    other = opened()
    other.declare("inbox", temporary=True)
    name = name_of(other)
    other.close()
    assert not exists(name)


def test_the_next_participant_removes_that_of_a_dead_process(config, opened):
    watching = opened()  # else the directory would go with the last one
    peer = ProcessPeer()
    try:
        peer.call(verbs.open, config)
        peer.subscribe(shop.orders)
        (token,) = Path(config.home).rglob("*.mq")
        name = kernel_queue(token.read_text())
        assert exists(name)
        peer.kill()
        assert exists(name)
        opened()
        assert not exists(name)
    finally:
        peer.end()
    assert watching._registry.inboxes.names() == []


def test_it_goes_with_its_bus_also_where_the_directory_was_removed(config):
    with pymq.EventBus(config) as bus:
        bus.subscribe(print, "news")
        names = [kernel_queue(token.read_text()) for token in Path(config.home).rglob("*.mq")]
        shutil.rmtree(config.home)
        bus.health()
        names += [kernel_queue(token.read_text()) for token in Path(config.home).rglob("*.mq")]
        shutil.rmtree(config.home)
    assert len(names) == 2
    assert not any(map(exists, names))


@pytest.mark.parametrize("written", [b"", b"0123456789abcdef"])
def test_a_process_that_died_before_it_had_made_it_is_swept_up_after(config, opened, written):
    first = opened()
    Path(first._registry.inboxes.path, "inbox.mq").write_bytes(written)
    second = opened()
    assert second._registry.inboxes.names() == []
    second.declare("inbox", temporary=True)
    assert exists(name_of(second))


def test_an_inbox_that_cannot_be_made_leaves_nothing(opened):
    one, other = opened(), opened()
    one.declare("inbox", temporary=True)
    before, name = one._registry.inboxes.names(), name_of(one)
    with pytest.raises(ProviderError, match="another process's"):
        other.declare("inbox", temporary=True)
    assert one._registry.inboxes.names() == before
    assert exists(name)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_twenty_buses_at_once_without_privileges_under_the_default_limits():
    assert run_program("limited.py", "crowd") == ["20", "True", "True", "{0}", "[]"]


@pytest.mark.needs_root
@needs_a_user
def test_the_limit_is_named_and_nothing_else_suffers():
    error, *rest = run_program("limited.py", "one_too_many", env=FORKING)
    assert all(
        word in error
        for word in ("22400 bytes (RLIMIT_MSGQUEUE)", "11200", "ulimit -q", "pymq clean --yes", "fs.mqueue.queues_max", "shm")
    )
    assert rest == ["2 ['still', 'still']", "[1, 1]", "2", "[]"]


@pytest.mark.needs_root
@needs_a_user
def test_nobody_holds_what_the_kernel_kept_for_the_gone():
    assert run_program("limited.py", "come_and_go", env=FORKING) == ["done", "[]"]


@pytest.mark.needs_root
@needs_a_user
def test_a_forked_child_holds_no_kernel_queue():
    assert run_program("limited.py", "forked_child_holds_nothing", env=FORKING) == ["1", "0", "[]"]


def test_too_few_descriptors_are_not_taken_for_too_few_queues(monkeypatch, opened):
    provider = opened()
    monkeypatch.setattr(
        _kernel, "posix_ipc", SimpleNamespace(Error=posix_ipc.Error, O_CREX=0, MessageQueue=refusing(OSError("too many")))
    )
    monkeypatch.setattr(os, "open", refusing(OSError(24, "Too many open files"), only=os.O_PATH))
    with pytest.raises(ProviderError, match="RLIMIT_NOFILE"):
        _kernel._create("0")
    monkeypatch.undo()
    provider.declare("inbox", temporary=True)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(38, "Function not implemented"), "no POSIX message queues: use shm"),
        (ValueError("Invalid parameter(s)"), r"fs\.mqueue\.msg_max and fs\.mqueue\.msgsize_max .* shm"),
        (OSError("Insufficient space for a new queue"), r"RLIMIT_MSGQUEUE.* fs\.mqueue\.queues_max"),
    ],
)
def test_what_the_kernel_refuses_is_explained(monkeypatch, opened, error, said):
    provider = opened()
    monkeypatch.setattr(posix_ipc, "MessageQueue", refusing(error))
    with pytest.raises(ProviderError, match=said) as raised:
        provider.declare("inbox", temporary=True)
    assert raised.value.__cause__ is error
    assert provider._registry.inboxes.names() == []


def refusing(error, only=None):
    original = os.open

    def refuse(*args, **kwargs):
        if only is None or only in args:
            raise error
        return original(*args, **kwargs)

    return refuse


# --- other places -----------------------------------------------------------------------------------------------------

SCRIPT = """
import queue, sys, pymq
heard = queue.Queue()
pymq.init()
pymq.subscribe(heard.put, "news")
pymq.expose(lambda: "pong", "ping")
print(pymq.publish("hello", "news"), heard.get(timeout=10), pymq.stub("ping", timeout=10)())
"""


@pytest.fixture
def unshared(tmp_path, config):
    """Runs a script in namespaces of its own."""

    def run(script, *options, before="true"):
        command = f"{before}; exec {sys.executable} -c '{script}'"
        environment = {**os.environ, "PYMQ_HOME": config.home, "PYMQ_URL": "ipc://default", "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(
            ["unshare", *options, "sh", "-c", command], env=environment, capture_output=True, text=True, check=True
        ).stdout

    if (
        os.geteuid() != 0
        or not shutil.which("unshare")
        or subprocess.run(["unshare", "--mount", "--ipc", "true"], check=False).returncode
    ):
        pytest.skip("needs root and the right to make namespaces")
    return run


@pytest.mark.needs_root
def test_dev_mqueue_need_not_be_mounted(unshared):
    assert unshared(SCRIPT, "--mount", before="umount -a -t mqueue") == "1 hello pong\n"


@pytest.mark.needs_root
def test_another_ipc_namespace_is_reached_by_the_log(unshared, pair):
    receiver, _ = pair
    publish = 'import pymq; pymq.init(); print(pymq.publish("hello", "topic"))'
    receiver.bind("inbox", "e/topic", exact=True)
    assert unshared(publish, "--ipc") == "1\n"
    assert len(take(receiver, 1)) == 1


def test_without_the_driver_the_error_names_the_extra_and_shm():
    script = """
import sys
sys.modules["posix_ipc"] = None
import pymq
try:
    pymq.init("ipc://anywhere")
except pymq.ProviderError as error:
    print(error, type(error.__cause__).__name__)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "the extra `ipc`" in ran.stdout
    assert "shm" in ran.stdout
    assert ran.stderr == ""


def test_elsewhere_than_on_linux_the_error_names_what_to_use(monkeypatch, config):
    provider = config.create()
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ProviderError, match=r"shm.*simple.*redis.*aws"):
        provider.open()


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_url_and_the_names_of_old(config, monkeypatch):
    assert config_from("ipc://here?publish_timeout=2") == IpcConfig("here", publish_timeout=2.0)
    monkeypatch.setenv("PYMQ_HOME", config.home)
    pymq.init(IpcEventBus)
    try:
        assert pymq.publish("nobody", "news") == 0
        assert [path.name for path in Path(config.home).iterdir()] == ["ipc.default"]
    finally:
        pymq.shutdown()


def test_it_does_not_meet_shm(config):
    from pymq.provider.shm import ShmConfig

    heard = []
    with pymq.EventBus(config) as bus, pymq.EventBus(ShmConfig(home=config.home)) as other:
        bus.subscribe(heard.append, "news")
        assert other.publish("hello", "news") == 0
        assert bus.publish("hello", "news") == 1
        eventually(lambda: heard == ["hello"])


def test_an_event_loop_waits_for_both_the_kernel_queue_and_the_fifo(pair):
    receiver, sender = pair
    readiness = receiver.readiness("inbox")
    try:
        assert receiver.receive("inbox") == []
        assert readiness.arm() is None
        poll = _poll(readiness.fd)
        assert poll(0) == []
        sender.publish(("topic",), b"in the kernel queue")
        assert poll(10_000)
        assert take(receiver, 1) == [b"in the kernel queue"]
        sender.publish(("topic",), bytes(5 << 20))
        assert poll(10_000)
        assert take(receiver, 1) == [bytes(5 << 20)]
    finally:
        readiness.close()


def _poll(fd):
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll.poll
