"""The aws provider, held to the contract over moto's server, with standard and with FIFO queues.

SQS's times are whole seconds, so most of the suite's tests mostly wait: several run at once, each in a namespace of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from aws_server import emulator

from pymq.provider.aws import LocalstackConfig
from pymq.testing import ProviderSuite

AT_ONCE = 6


class Aws(ProviderSuite):
    scale = 0.02
    tick = 1.0
    patience = 30.0
    ordered = False

    def config(self):
        own = {"namespace": secrets.token_hex(4), "ordered": self.ordered}
        return LocalstackConfig(endpoint_url=emulator(), lease=12, refresh=0, poll=1, **own)


class Fifo(Aws):
    ordered = True


ALL = [name for name in dir(Aws) if name.startswith("test_")]
OF_ORDER = [
    "test_first_in_first_out",
    "test_each_senders_order_is_kept",
    "test_what_was_returned_comes_before_what_is_younger",
    "test_a_leased_message_is_invisible_until_acked",
    "test_only_what_matches_is_copied",
    "test_a_queue_gets_one_copy_however_often_it_is_bound",
    "test_messages_of_another_process_arrive",
    "test_delete_removes_messages_and_bindings",
]
"""What FIFO queues do otherwise; in the rest of the suite several messages of one sender are leased at once, which they refuse."""
CASES = [(Aws, name) for name in ALL] + [(Fifo, name) for name in OF_ORDER]


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[tuple[type[Aws], str], Future[None]]]:
    """The tests that were asked for, begun."""
    asked = [item.callspec.params["case"] for item in request.session.items if item.path == request.path]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {case: pool.submit(run, *case) for case in asked}


def run(suite: type[Aws], name: str) -> None:
    test = suite()
    test.setup_method()
    try:
        getattr(test, name)()
    finally:
        test.teardown_method()


@pytest.mark.parametrize("case", CASES, ids=[f"{suite.__name__}-{name.removeprefix('test_')}" for suite, name in CASES])
def test_the_contract(running, case):
    running[case].result()
