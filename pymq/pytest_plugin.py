"""A pytest plugin, found by its entry point and off until a test asks for one of its fixtures; docs/testing.md shows their use.

`pymq_bus` is the process-wide bus, fresh for each test, that remembers what was published; `pymq_config` is what it was made with. They
are in memory unless `--pymq-url`, or `pymq_url` in the ini file, says otherwise.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pymq.provider import Config
    from pymq.recording import RecordingBus

SETTLE_SECONDS = 5.0
"""How long the end of a test waits for its handlers, whose errors are its own."""

HELP = "what the fixtures pymq_bus and pymq_config use, as shm:// or redis://localhost/0 (default: simple://, in memory)"


def pytest_addoption(parser: pytest.Parser) -> None:
    """One option, and the same in the ini file."""
    parser.getgroup("pymq").addoption("--pymq-url", metavar="URL", help=HELP)
    parser.addini("pymq_url", HELP, default="simple://")


@pytest.fixture
def pymq_config(pytestconfig: pytest.Config) -> Config:
    """A config of the chosen provider with a namespace that no other test has: for buses of your own, and for other processes."""
    from pymq.provider import config_from

    config: Any = copy.copy(config_from(pytestconfig.getoption("--pymq-url") or pytestconfig.getini("pymq_url")))
    if not hasattr(config, "namespace"):
        raise TypeError(f"{config!r} has no attribute `namespace`, by which each test gets a place of its own")
    object.__setattr__(config, "namespace", f"{config.namespace}-test-{secrets.token_hex(8)}")
    chosen: Config = config
    return chosen


@pytest.fixture
def pymq_bus(pymq_config: Config) -> Iterator[RecordingBus]:
    """The process-wide bus of this test: `recorded`, `assert_published`, `drain`, and `errors`, which fail it unless it takes them."""
    import pymq
    from pymq.recording import RecordingBus

    bus = RecordingBus(pymq_config)
    with bus.listening():
        pymq.init(bus)
        yield bus
        pymq.shutdown()


@pytest.fixture
def assert_published(pymq_bus: RecordingBus) -> Callable[..., Any]:
    """`assert_published(OrderPlaced, order_id=1)`: the event of that class, or on that channel, with these attributes."""
    return pymq_bus.assert_published


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """The errors of handlers fail the test that caused them, a function or a method of unittest's, and not the end of a fixture."""
    result = yield
    bus: Any = getattr(item, "funcargs", {}).get("pymq_bus")
    if bus is not None:
        bus.raise_errors(SETTLE_SECONDS)
    return result
