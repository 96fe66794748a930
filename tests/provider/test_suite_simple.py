"""The provider in memory, held to the contract: as it is, and behind a socket, where processes meet. And what only it does."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import tracemalloc
import warnings
from importlib.metadata import EntryPoint
from unittest import SkipTest

import pytest
from over_socket import Server, SocketConfig

from pymq.exceptions import ProviderError
from pymq.provider import config_from, simple
from pymq.provider.simple import SimpleConfig
from pymq.testing import ProviderSuite


class TestSimple(ProviderSuite):
    def config(self):
        return SimpleConfig(namespace=secrets.token_hex(4))


class TestSimpleOverSocket(ProviderSuite):
    def config(self):
        server = Server()
        self._cleanup.callback(server.close)
        return SocketConfig(namespace=secrets.token_hex(4), address=server.address, max_message_bytes=2 << 20)


@pytest.fixture
def config():
    return SimpleConfig(namespace=secrets.token_hex(4))


@pytest.fixture
def opened(config):
    """Makes open providers of one namespace."""
    providers = []

    def make():
        providers.append(config.create())
        providers[-1].open()
        return providers[-1]

    yield make
    for provider in providers:
        provider.close()
    assert config.namespace not in simple._brokers, "something was left behind"


def test_a_message_is_a_copy(opened):
    provider, buffer = opened(), bytearray(b"as it was")
    provider.declare("inbox", temporary=True)
    provider.send("inbox", buffer)
    buffer[:] = b"different"
    assert provider.receive("inbox") == [(b"as it was", None)]


def test_close_gives_leases_back_at_once(opened):
    closing, other = opened(), opened()
    other.declare("jobs")
    other.send("jobs", b"job")
    closing.receive("jobs", lease=1000)
    closing.close()
    ((message, receipt),) = other.receive("jobs")
    assert (message, receipt.attempt) == (b"job", 2)
    other.ack(receipt)


def test_what_is_acked_is_not_kept_until_its_lease_would_have_ended(opened):
    provider = opened()
    provider.declare("jobs")
    tracemalloc.start()
    for _ in range(500):
        provider.send("jobs", bytes(100_000))
        provider.ack(provider.receive("jobs", lease=1000)[0][1])
    assert tracemalloc.get_traced_memory()[0] < 100 * 100_000
    tracemalloc.stop()


def test_a_name_is_of_one_kind_and_has_one_receiver(opened):
    provider, other = opened(), opened()
    provider.declare("inbox", temporary=True)
    provider.declare("shared")
    for owner, name, temporary in ((provider, "inbox", False), (other, "inbox", True), (other, "shared", True)):
        with pytest.raises(ProviderError, match=name):
            owner.declare(name, temporary=temporary)


def test_a_bad_glob_is_refused_by_bind_and_troubles_no_publisher(opened):
    provider = opened()
    provider.declare("inbox", temporary=True)
    with pytest.raises(ValueError, match="not a glob"):
        provider.bind("inbox", "[z-a]", exact=False)
    assert provider.publish(["x"], b"") == 0


def test_drops_are_logged_once_a_second(opened, caplog):
    receiver, publisher = opened(), opened()
    receiver.declare("inbox", temporary=True)
    receiver.bind("inbox", "topic", exact=True)
    for _ in range(3):
        publisher.publish(["topic"], bytes(20 << 20), timeout=0)
    assert receiver.counters()["inbox"]["dropped"] == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "inbox" in caplog.text


def test_a_forked_child_has_no_part_in_the_parents_broker(opened, config):
    parent, held, done = opened(), threading.Event(), threading.Event()
    parent.declare("jobs")

    def hold():
        with parent._broker.lock, simple._brokers_lock:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    pid = _fork(lambda: _send_and_receive_in_child(config))
    ended = os.waitpid(pid, 0)[1]
    done.set()
    holder.join()
    assert os.waitstatus_to_exitcode(ended) == 0
    assert parent.receive("jobs") == []


def _fork(child):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are other threads: that is the point
        pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            child()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def _send_and_receive_in_child(config):
    provider = config.create()
    provider.open()
    provider.declare("jobs")
    provider.send("jobs", b"the child's")
    assert provider.receive("jobs", lease=None) == [(b"the child's", None)]
    assert provider.receive("jobs", 0.01) == []


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("simple", SimpleConfig()),
        ("simple://", SimpleConfig()),
        ("simple://Name", SimpleConfig("Name")),
        ("simple://a%2Fb?publish_timeout=2&max_pending=100", SimpleConfig("a/b", max_pending=100, publish_timeout=2.0)),
    ],
)
def test_a_config_by_name_or_url(target, expected):
    assert config_from(target) == expected


class Plain:
    """A config that has only what it must."""

    def create(self):
        return SimpleConfig("plain").create()


@pytest.mark.parametrize(
    ("value", "error", "named"),
    [
        ("nowhere:Config", ProviderError, "'pigeon'.*'nowhere:Config'"),
        ("pymq.provider.simple:Nothing", ProviderError, "'pymq.provider.simple:Nothing'"),
        (f"{__name__}:Plain", ValueError, r"Plain, the config of 'pigeon', has no from_url\(url\)"),
    ],
)
def test_what_an_entry_point_names_cannot_be_used(monkeypatch, value, error, named):
    entry = EntryPoint("pigeon", value, "pymq.providers")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [entry])
    with pytest.raises(error, match=named):
        config_from("pigeon://coop")


def test_the_suite_says_what_it_cannot_vary(monkeypatch):
    suite = ProviderSuite()
    suite._config = Plain()
    with pytest.raises(SkipTest, match="Plain has no max_pending"):
        suite._with(max_pending=1)


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("carrier-pigeon://coop", "'carrier-pigeon'.*known:.*shm, simple"),
        ("simple//x", "'simple//x'.*known:"),
        ("simple://x?publish_timout=2", "'publish_timout'.*known:.*publish_timeout"),
        ("simple://x?publish_timeout=soon", "publish_timeout='soon'"),
        ("simple://x?publish_timeout=nan", "publish_timeout='nan'"),
        ("simple://x?max_pending=-1", "max_pending='-1'"),
        ("simple://x?max_pending=1.5", "max_pending='1.5'.*int"),
        ("simple://x/y", "%2F"),
        ("simple://user:s3cret@x", "'simple://user@x'.*%40"),
    ],
)
def test_a_config_that_cannot_be_is_a_clear_error(target, named):
    with pytest.raises(ValueError, match=named) as caught:
        config_from(target)
    assert "s3cret" not in str(caught.value)
