"""The pytest plugin, as the tests of a program use it."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
import redis
from harness import ROOT
from redis_server import shared_url
from test_readme import blocks_of

from pymq.provider import config_from

pytest_plugins = ["pytester"]

SHOP = """
    from dataclasses import dataclass
    import pymq

    @dataclass
    class OrderPlaced:
        order_id: int

    @dataclass
    class Invoiced:
        order_id: int

    @pymq.subscriber
    def invoice(event: OrderPlaced):
        if event.order_id < 0:
            raise ValueError(f"no such order: {event.order_id}")
        pymq.publish(Invoiced(event.order_id), headers={"by": "invoice"})

    @pymq.subscriber
    async def archive(event: Invoiced):
        pymq.publish(event.order_id, channel="archive")

    @pymq.remote("total")
    def total(order_id: int) -> int:
        return order_id * 10

    @pymq.subscriber(group="billing", retries=2, backoff=0.01)
    def bill(event: Invoiced, message: pymq.Message):
        if event.order_id == 13 and message.attempt == 1:
            raise LookupError("unlucky")

    def place(order_id):
        pymq.publish(OrderPlaced(order_id))
"""

OPTIONS = ("-p", "no:pymq", "-p", "pymq.pytest_plugin", "-p", "no:cacheprovider", "-W", "error")
"""Whether or not this checkout is installed, the plugin is there once."""


@pytest.fixture
def check(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Run tests of the shop; how many passed and failed."""
    pytester.makepyfile(shop=SHOP)
    monkeypatch.setenv("PYMQ_HOME", str(pytester.path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def check(tests: str, *options: str, **outcomes: int) -> pytest.RunResult:
        pytester.makepyfile(test_shop="import pymq, pytest\nfrom shop import *\n" + tests)
        result = pytester.runpytest_subprocess(*OPTIONS, *options)
        result.assert_outcomes(**outcomes)
        return result

    return check


PROGRAM = """
def test_a_program(pymq_bus, assert_published):
    place(7)
    assert assert_published(Invoiced, order_id=7) == Invoiced(7)
    pymq_bus.drain()
    assert [(each.event, each.channel) for each in pymq_bus.recorded] == [
        (OrderPlaced(7), None), (Invoiced(7), None), (7, "archive")]
    assert pymq_bus.recorded[1].headers == {"by": "invoice"}
    assert pymq_bus.assert_published("archive") == 7
    assert pymq.stub("total", timeout=10)(7) == 70

@pytest.mark.parametrize("again", range(3))
def test_is_fresh_each_time(pymq_bus, again):
    assert pymq_bus.recorded == []
    assert pymq.queue("left").qsize() == 0
    pymq.queue("left").put(1)
    place(again)

def test_without_it():
    with pytest.raises(pymq.NotInitialized):
        pymq.queue("jobs")
"""


@pytest.mark.parametrize("url", ["simple://", "shm://"])
def test_the_same_program_in_memory_and_on_shm(check, pytester, url):
    check(PROGRAM, "--pymq-url", url, passed=5)
    left = [path for path in (pytester.path / "home").rglob("*") if path.is_file()]
    assert left == [], "nothing is left behind"


def test_the_same_program_on_redis(check):
    namespace = f"plugin-{secrets.token_hex(4)}"
    url = f"{shared_url()}/{namespace}"
    check(PROGRAM, "--pymq-url", url, passed=5)
    config: Any = config_from(url)
    with redis.Redis(**config.connection) as client:
        assert [key for key in client.scan_iter("*", count=1000) if namespace.encode() in key] == [], "nothing is left behind"


def test_buses_of_loops_meet_it(check):
    tests = """
import asyncio
import pymq.asyncio

def test_a_loop(pymq_bus, pymq_config):
    async def main():
        async with pymq.asyncio.connect(pymq_config) as bus, bus.events(Invoiced) as invoices:
            await bus.publish(OrderPlaced(7))
            event, _ = await invoices.__anext__()
            assert event == Invoiced(7)
    asyncio.run(main())
    pymq_bus.assert_published(Invoiced, order_id=7)

def test_its_handlers_fail_the_test_too(pymq_bus, pymq_config):
    async def main():
        failed = asyncio.Event()
        async def bad(event: OrderPlaced):
            failed.set()
            raise ArithmeticError("in a loop")
        async with pymq.asyncio.connect(pymq_config) as bus:
            await bus.subscribe(bad)
            await bus.publish(OrderPlaced(7))
            await failed.wait()
    asyncio.run(main())
"""
    result = check(tests, passed=1, failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: a handler failed: ArithmeticError: in a loop"])


@pytest.mark.parametrize("url", ["simple://", "shm://"])
def test_the_tests_on_the_page_about_testing_pass(pytester, monkeypatch, url):
    """They are not run with the other blocks of the pages: they want pytest and its fixtures."""
    monkeypatch.setenv("PYMQ_HOME", str(pytester.path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    blocks = [block for block in blocks_of((ROOT / "docs" / "testing.md").read_text()) if block.language == "python"]
    pytester.makepyfile(test_page="\n".join(block.source for block in blocks))
    pytester.runpytest_subprocess(*OPTIONS, "--pymq-url", url).assert_outcomes(passed=3)


def test_the_ini_file_chooses_the_provider(check, pytester):
    pytester.makeini("[pytest]\npymq_url = shm://shop")
    tests = """
def test_it(pymq_bus, pymq_config):
    assert type(pymq_config).__name__ == "ShmConfig"
    assert pymq_config.namespace.startswith("shop-test-")
    with pymq.EventBus(pymq_config) as other:
        assert other.publish(OrderPlaced(1)) == 1
    pymq_bus.assert_published(Invoiced, order_id=1)
"""
    check(tests, passed=1)


def test_the_error_of_a_handler_fails_the_test_that_caused_it(check):
    tests = """
def test_before(pymq_bus):
    place(1)

def test_bad(pymq_bus):
    place(-1)

def test_after(pymq_bus):
    place(2)

def test_expected(pymq_bus):
    place(-2)
    pymq_bus.drain()
    assert isinstance(pymq_bus.errors.pop(), ValueError)

def test_publish_before_init_is_an_error_too(pymq_bus):
    pymq.shutdown()
    pymq.publish(OrderPlaced(1))
"""
    result = check(tests, passed=3, failed=2)
    result.stdout.fnmatch_lines(["*AssertionError: a handler failed: ValueError: no such order: -1"])
    result.stdout.fnmatch_lines(["FAILED test_shop.py::test_bad*"])
    result.stdout.fnmatch_lines(["*AssertionError: a handler failed: RuntimeError: publish before pymq.init()*"])


@pytest.mark.parametrize(
    "off", ["logging.disable()", "logging.config.dictConfig({'version': 1})", "logging.getLogger('pymq').setLevel(logging.CRITICAL)"]
)
def test_the_error_of_a_handler_fails_its_test_also_where_logging_is_off(check, off):
    tests = f"""
import logging.config
def test_bad(pymq_bus, caplog):
    {off}
    place(-1)
    pymq_bus.drain()
    assert not caplog.records
"""
    result = check(tests, failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: a handler failed: ValueError: no such order: -1"])


def test_tests_that_do_not_name_the_fixture_as_a_parameter_fail_as_well(check):
    tests = """
import unittest

@pytest.mark.usefixtures("pymq_bus")
def test_marked():
    place(-1)

@pytest.mark.usefixtures("pymq_bus")
class TestCase(unittest.TestCase):
    def test_bad(self):
        place(-1)

    def test_good(self):
        place(1)

    def test_fails_itself(self):
        place(-1)
        self.fail("for a reason of its own")
"""
    result = check(tests, passed=1, failed=3)
    result.stdout.fnmatch_lines(["FAILED test_shop.py::TestCase::test_bad - AssertionError: a handler failed: *"])
    result.stdout.fnmatch_lines(["FAILED test_shop.py::TestCase::test_fails_itself - AssertionError: for a re*"])


def test_what_was_not_published_is_said_with_what_was(check):
    tests = """
def test_it(pymq_bus):
    pymq.publish(OrderPlaced(1))
    pymq.publish("text", channel="notes")
    pymq_bus.assert_published(OrderPlaced, order_id=2)
"""
    result = check(tests, failed=1)
    result.stdout.fnmatch_lines(
        ["*AssertionError: OrderPlaced(order_id=2) was not published, but", "*OrderPlaced(order_id=1)", "*'text' on 'notes'"]
    )


def test_drain_waits_for_everything(check):
    tests = """
import asyncio, threading, time

def test_retries(pymq_bus):
    place(13)
    pymq_bus.drain()
    assert pymq_bus.stats()["retried"] == {"shop.Invoiced": 1}
    assert pymq_bus.group("billing").qsize() == 0
    assert [type(error) for error in pymq_bus.errors] == [LookupError]
    pymq_bus.errors.clear()

@pytest.mark.parametrize("workers", [1, 3])
def test_slow_handlers(pymq_bus, workers):
    ended = []
    def slow(event: OrderPlaced):
        time.sleep(0.05)
        ended.append(event)
    pymq_bus.subscribe(slow, workers=workers)
    for number in range(4):
        place(number)
    pymq_bus.drain()
    assert len(ended) == 4

def test_slow_coroutines(pymq_bus):
    ended = []
    async def slow(event: OrderPlaced):
        await asyncio.sleep(0.05)
        ended.append(event)
    pymq_bus.subscribe(slow)
    for number in range(4):
        place(number)
    pymq_bus.drain()
    assert len(ended) == 4

def test_delayed(pymq_bus):
    ended = []
    pymq_bus.subscribe(lambda event: ended.append(event), "later")
    pymq.publish(1, "later", delay=0.2)
    pymq_bus.drain()
    assert ended == [1]

def test_says_what_does_not_end(pymq_bus):
    gate = threading.Event()
    def stuck(event: int):
        gate.wait(60)
    pymq_bus.subscribe(stuck, "numbers")
    pymq.publish(1, "numbers")
    with pytest.raises(TimeoutError, match="still in flight after 0.3 s: the handler .*stuck"):
        pymq_bus.drain(timeout=0.3)
    gate.set()
"""
    check(tests, passed=6)


def test_drain_waits_for_the_groups_of_a_provider_that_counts_nothing(check):
    """As the contract's `counters` allows."""
    tests = """
import threading

@pytest.fixture
def pymq_config():
    from pymq.provider.simple import SimpleConfig, SimpleProvider
    class Uncounting(SimpleProvider):
        def counters(self):
            return {}
    class Config(SimpleConfig):
        def create(self):
            return Uncounting(self)
    return Config()

def test_retries(pymq_bus):
    place(13)
    pymq_bus.drain()
    assert pymq_bus.stats()["retried"] == {"shop.Invoiced": 1}
    pymq_bus.errors.clear()

def test_bad(pymq_bus):
    ending = threading.Event()
    def member(event):
        ending.wait(0.2)
        raise ValueError("after the test has ended")
    pymq_bus.subscribe(member, "slow", group="slow", retries=0)
    pymq.publish(1, "slow")
"""
    result = check(tests, passed=1, failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: a handler failed: ValueError: after the test has ended"])


def test_a_test_whose_program_shuts_down(check):
    tests = """
def test_good(pymq_bus):
    place(1)
    pymq_bus.drain()
    pymq.shutdown()

def test_bad(pymq_bus):
    place(-1)
    pymq_bus.drain()
    pymq.shutdown()
"""
    result = check(tests, passed=1, failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: a handler failed: ValueError: no such order: -1"])


def test_it_is_off_until_used(pytester, monkeypatch):
    tests = """
import sys

def test_it():
    assert "pydantic" not in sys.modules
    assert "pymq.recording" not in sys.modules
"""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(test_other=tests)
    pytester.runpytest_subprocess(*OPTIONS).assert_outcomes(passed=1)


def test_it_is_found_by_its_entry_point():
    assert '[project.entry-points.pytest11]\npymq = "pymq.pytest_plugin"\n' in (ROOT / "pyproject.toml").read_text()
