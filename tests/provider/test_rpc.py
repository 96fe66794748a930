"""Remote calls: what is called, with which values, by whom, and what the caller learns when it goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from harness import GUARD, Heard, eventually, in_thread
from programs import shop
from programs.shop import Basket, OrderPlaced, Reading

import pymq
from pymq.provider.simple import SimpleConfig


@pytest.fixture
def heard() -> Heard:
    return Heard()


# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_call_by_name(peers, bus):
    (server,) = peers(1)
    server.expose(shop.add, "add")
    add = bus.stub("add", timeout=10)
    assert isinstance(add, pymq.StubMethod)
    assert (add(1), add(1, 3), add(a=1, b=4), add(1, b=5)) == (3, 4, 5, 6)


def test_without_a_timeout(peers, bus):
    (server,) = peers(1)
    server.expose(shop.add, "add")
    assert bus.stub("add")(20, 22) == 42


def multiply(a: int, b: int = 2) -> int:
    """The same function on both sides: a stub is made from it."""
    return a * b


def test_a_call_by_callable(bus):
    bus.expose(multiply)
    assert bus.stub(multiply, timeout=10)(3, b=4) == 12
    assert bus.stub("test_rpc.multiply", timeout=10)(3) == 6, "its name is module and qualified name"


def test_remote_exposes_and_leaves_the_function_as_it_is(bus):
    @bus.remote("product_remote")
    def product(a: int, b: int = 2) -> int:
        return a * b

    @bus.remote
    def bare(a: int) -> int:
        return -a

    @bus.remote()
    def called(a: int) -> int:
        return a + 1

    assert product(3) == 6
    assert bus.stub("product_remote", timeout=2)(3, b=4) == 12
    assert bus.stub(product, timeout=2)(5) == 10, "a stub of the function finds the name it was given"
    assert bus.stub(bare, timeout=2)(5) == -5
    assert bus.stub(called, timeout=2)(5) == 6


def test_a_reply_that_came_just_before_its_server_went_is_the_result(config, monkeypatch):
    server, asked = pymq.EventBus(config), []
    with server, pymq.EventBus(config) as bus:
        server.expose(lambda: 7, channel="seven")
        receive = bus.provider.receive

        def interrupted(queue, timeout=0, **how):
            if asked or not queue.startswith("reply/"):
                return receive(queue, timeout, **how)
            asked.append(queue)
            eventually(lambda: bus.provider.size(queue) > 0)
            server.shutdown()
            return []

        monkeypatch.setattr(bus.provider, "receive", interrupted)
        assert bus.stub("seven", timeout=GUARD)() == 7


def test_a_reply_that_finds_no_connection_is_sent_when_there_is_one_again(bus, monkeypatch):
    """Also where the caller comes back after its server."""
    reply = bus.provider.reply
    failures = [pymq.ConnectionLost("away"), pymq.ConnectionLost("still away"), pymq.QueueNotFound("not back yet")]

    def failing(queue, message):
        if failures:
            raise failures.pop(0)
        reply(queue, message)

    monkeypatch.setattr(bus.provider, "reply", failing)
    bus.expose(lambda: "result", "f")
    assert bus.stub("f", timeout=GUARD)() == "result"


def test_a_reply_is_given_up_whose_caller_has_not_come_back(monkeypatch):
    with pymq.EventBus(SimpleConfig("given up")) as bus:
        failures = [pymq.ConnectionLost("away")]

        def failing(queue, message):
            raise failures.pop() if failures else pymq.QueueNotFound("gone")

        monkeypatch.setattr(bus.provider, "reply", failing)
        bus.expose(lambda: "result", "f")
        with pytest.raises(pymq.RpcTimeout):
            bus.stub("f", timeout=0.1)()
        assert not failures
        eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "pymq-late"])


def test_each_argument_becomes_what_its_hint_says(peers, bus):
    (server,) = peers(1)
    server.expose(shop.kinds, "kinds")
    order, basket = OrderPlaced(1, Decimal("2.50")), Basket(["a"], {1: OrderPlaced(3)})
    arguments = (order, Decimal("1E+2"), timedelta(days=1), timedelta(2))
    result = bus.stub("kinds", timeout=10)(*arguments, named={1, 2}, one=basket, two=basket)
    assert result == [repr(value) for value in (*arguments, {1, 2}, basket, basket)]


def test_plain_data_becomes_what_the_hint_says(peers, bus):
    (server,) = peers(1)
    server.expose(shop.kinds, "kinds")
    result = bus.stub("kinds", timeout=10)({"order_id": 1, "total": "2.50"}, named={1})
    assert result == [repr(OrderPlaced(1, Decimal("2.50"))), "Decimal('1')", "{1}"]


def test_the_result_is_of_the_hinted_type(peers, bus):
    (server,) = peers(1)
    server.expose(shop.double, "double")
    result = bus.stub("double", timeout=10)(OrderPlaced(21, Decimal("1.25")))
    assert repr(result) == repr(OrderPlaced(42, Decimal("2.50")))


def test_calls_and_results_of_different_shapes_take_turns(bus):
    def echo(*args: Any, **kwargs: Any) -> Any:
        if args == (0,):
            raise ValueError("zero")
        return [*args, kwargs] if kwargs or len(args) > 1 else args[0] if args else None

    bus.expose(echo, "echo")
    stub = bus.stub("echo", timeout=10)
    for _ in range(3):
        assert (stub(1), stub("1"), stub(), stub(1, "2"), stub(a=1)) == (1, "1", None, [1, "2", {}], [{"a": 1}])
        assert (stub("2", 1), stub(1, a=2), stub(b"1"), stub(OrderPlaced(1))) == (["2", 1, {}], [1, {"a": 2}], b"1", OrderPlaced(1))
        with pytest.raises(pymq.RemoteInvocationError, match="zero"):
            stub(0)


def test_async_remotes(peers, bus):
    (server,) = peers(1)
    server.expose(shop.later, "later")
    assert [bus.stub("later", timeout=10)(word) for word in ("a", "b")] == ["A", "B"]


def test_any_async_callable_may_be_a_remote(bus):
    class Adder:
        async def __call__(self, a: int, b: int) -> int:
            return a + b

    class Inherited(Adder):
        pass

    for number, remote in enumerate([Adder(), Inherited(), partial(Adder(), 1), staticmethod(Adder().__call__)]):
        bus.expose(remote, f"add/{number}")
    assert [bus.stub(f"add/{number}", timeout=GUARD)(1, 2) for number in (0, 1, 3)] == [3, 3, 3]
    assert bus.stub("add/2", timeout=GUARD)(2) == 3


@pytest.mark.parametrize("hint", [int, Any])
def test_what_only_returns_a_coroutine_has_not_been_executed(bus, hint):
    async def inner() -> int:
        raise AssertionError("nothing awaits it")

    def wrapper():
        return inner()

    wrapper.__annotations__["return"] = hint
    bus.expose(wrapper, "wrapper")
    with pytest.raises(pymq.RemoteInvocationError, match="wrapper returned a coroutine, which nothing runs"):
        bus.stub("wrapper", timeout=GUARD)()


def test_a_remote_may_be_exposed_before_the_start_and_before_its_classes(config, monkeypatch):
    """Hints are texts here: the one is of a class that only its function's caller knows, the other of one that follows."""
    bus = pymq.EventBus(config)

    def set_up() -> None:
        @dataclass
        class Local:
            number: int

        def of_local(value: Local) -> int:
            return value.number

        bus.expose(of_local, "local")

    def of_later(value: Later) -> int:  # noqa: F821
        return int(value.value)

    set_up()
    bus.expose(of_later, "later")
    monkeypatch.setitem(globals(), "Later", Reading)
    with bus:
        assert bus.stub("local", timeout=GUARD)({"number": 2}) == 2
        assert bus.stub("later", timeout=GUARD)({"value": 2.0}) == 2


def test_methods_and_lambdas(bus):
    class Counter:
        value = 0

        def count(self, by: int = 1) -> int:
            self.value += by
            return self.value

    counter = Counter()
    bus.expose(counter.count, "count")
    bus.expose(lambda a: [a], "listed")
    count = bus.stub("count", timeout=10)
    assert (count(), count(by=4), counter.value) == (1, 5, 5)
    assert bus.stub("listed", timeout=10)(None) == [None]
    bus.unexpose("count")
    with pytest.raises(pymq.NoSuchRemoteError):
        count()


def test_a_stub_of_a_method_calls_that_of_its_object(bus):
    class Worker:
        def __init__(self, name: str) -> None:
            self.name = name

        def who(self) -> str:
            return self.name

    one, two, third = Worker("one"), Worker("two"), Worker("third")
    bus.expose(one.who, "1")
    bus.expose(two.who, "2")
    assert [bus.stub(worker.who, timeout=10)() for worker in (one, two)] == ["one", "two"]
    bus.expose(third.who)  # under its own name, whatever others are called
    assert bus.stub(third.who).name.endswith("Worker.who")
    bus.unexpose(one.who)
    assert bus.stub(two.who, timeout=10)() == "two"


def test_a_name_given_by_expose_ends_with_the_bus(config):
    def double(number: int) -> int:
        return 2 * number

    with pymq.EventBus(config) as first:
        first.expose(double, "first")
        assert first.stub(double).name == "first"
    with pymq.EventBus(config) as second:
        second.expose(double)
        assert second.stub(double).name.endswith("double")
        second.expose(double, "second")
        assert second.stub("second", timeout=10)(4) == second.stub(double, timeout=10)(4) == 8


def test_a_lambda_without_a_name_is_refused(bus):
    with pytest.raises(ValueError, match="lambda"):
        bus.expose(lambda: 1)


def test_none_is_a_result(bus):
    bus.expose(lambda: None, "nothing")
    assert bus.stub("nothing", timeout=10)() is None


def test_rpc_returns_the_response(peers, bus):
    (server,) = peers(1)
    server.expose(shop.add, "add")
    server.expose(shop.refuse, "refuse")
    response = bus.stub("add", timeout=10).rpc(1, 2)
    assert isinstance(response, pymq.RpcResponse)
    assert (response.result, response.error) == (3, False)
    assert response.result_type == "int"
    name, result, kind, failed = bus.stub("refuse", timeout=10).rpc("why")  # a NamedTuple, as it was in PyMQ
    assert (name, kind, failed) == ("refuse", result.remote_type, True)
    (listed,) = bus.stub("add", timeout=10, multi=True).rpc(1, 2)
    assert listed.result == 3


def test_large_arguments_and_results(peers, bus):
    (server,) = peers(1)
    server.expose(shop.later, "later")
    text = "a" * 3_000_000
    assert bus.stub("later", timeout=GUARD)(text) == text.upper()


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "missing 1 required positional argument: 'a'"),
        ((1, 2, 3), {}, "takes from 1 to 2 positional arguments but 3 were given"),
        ((1,), {"c": 1}, "unexpected keyword argument 'c'"),
        ((1,), {"a": 1}, "multiple values for argument 'a'"),
    ],
)
def test_wrong_arguments_carry_the_text_of_the_type_error(peers, bus, args, kwargs, text):
    (server,) = peers(1)
    server.expose(shop.add, "add")
    with pytest.raises(pymq.RemoteInvocationError) as caught:
        bus.stub("add", timeout=10)(*args, **kwargs)
    assert caught.value.remote_type == "TypeError"
    said = str(caught.value)
    assert text in said or {"unexpected", "multiple", "missing", "too"} & set(said.split()), said


def test_an_argument_that_does_not_fit_its_hint_is_refused_by_the_server(peers, bus):
    (server,) = peers(1)
    server.expose(shop.add, "add")
    with pytest.raises(pymq.RemoteInvocationError):
        bus.stub("add", timeout=10)("one", "two")
    assert bus.stub("add", timeout=10)(1) == 3


def test_a_remote_exception_tells_all(peers, bus):
    (server,) = peers(1)
    server.expose(shop.refuse, "refuse")
    with pytest.raises(pymq.RemoteInvocationError) as caught:
        bus.stub("refuse", timeout=10)("because")
    error = caught.value
    assert (error.remote_type, error.remote_args) == ("LookupError", ("because", 42))
    assert "in refuse" in error.remote_traceback
    assert "raise LookupError(reason, 42)" in error.remote_traceback
    assert "LookupError" in str(error)
    assert "because" in str(error)


class Unsendable(Exception):
    pass


def test_an_exception_whose_arguments_cannot_travel(bus):
    def fail() -> None:
        raise Unsendable(object(), 1)

    bus.expose(fail, "fail")
    with pytest.raises(pymq.RemoteInvocationError) as caught:
        bus.stub("fail", timeout=10)()
    assert caught.value.remote_type.endswith("Unsendable")
    assert caught.value.remote_args[0].startswith("<object object")


@pytest.mark.parametrize("failure", [SystemExit, KeyboardInterrupt, RecursionError, GeneratorExit, MemoryError])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_remote_that_raises_ends_nothing(bus, failure, kind):
    def fail(now: bool) -> str:
        if now:
            raise failure("why")
        return "alive"

    async def fail_async(now: bool) -> str:
        return fail(now)

    bus.expose(fail if kind == "def" else fail_async, "fail")
    with pytest.raises(pymq.RemoteInvocationError) as caught:
        bus.stub("fail", timeout=10)(True)
    assert caught.value.remote_type == failure.__name__
    assert bus.stub("fail", timeout=10)(False) == "alive"


def test_an_exception_that_cannot_be_told_is_told_by_its_name(bus):
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError

    class Broken(Exception):
        @property
        def args(self) -> Any:
            raise RuntimeError

    def fail(how: str) -> None:
        raise {"mute": ValueError(Mute()), "broken": Broken(), "long": ValueError("x" * (bus.provider.max_message_bytes // 3))}[how]

    bus.expose(fail, "fail")
    for how, name in (("mute", "ValueError"), ("broken", "Broken"), ("long", "ValueError")):
        with pytest.raises(pymq.RemoteInvocationError) as caught:
            bus.stub("fail", timeout=GUARD)(how)
        assert caught.value.remote_type == name
        assert len(str(caught.value)) < 2000


def test_a_remote_that_finds_nobody_was_executed(bus):
    bus.expose(bus.stub("gone", timeout=10), "outer")
    with pytest.raises(pymq.RemoteInvocationError, match="nobody serves 'gone'") as caught:
        bus.stub("outer", timeout=GUARD)()
    assert caught.value.remote_type == "NoSuchRemoteError"


def test_a_result_that_cannot_travel_is_an_error_of_the_call(bus):
    bus.expose(lambda good: "fine" if good else object(), "give")
    with pytest.raises(pymq.RemoteInvocationError, match="object"):
        bus.stub("give", timeout=10)(False)
    assert bus.stub("give", timeout=10)(True) == "fine"


def test_an_argument_that_cannot_travel_is_refused_by_the_caller(bus):
    bus.expose(lambda value: value, "give")
    with pytest.raises(pymq.CodecError):
        bus.stub("give", timeout=10)(object())


def test_nobody_serves(bus):
    started = time.monotonic()
    with pytest.raises(pymq.NoSuchRemoteError, match="nobody"):
        bus.stub("nobody", timeout=60)()
    assert bus.stub("nobody", timeout=60, multi=True)() == []
    assert time.monotonic() - started < 5


def test_nobody_serves_any_more(peers, bus):
    (server,) = peers(1)
    server.expose(shop.add, "add")
    add = bus.stub("add", timeout=60)
    assert add(1) == 3
    server.call(shop.unexpose, "add")
    with pytest.raises(pymq.NoSuchRemoteError):
        add(1)
    server.expose(shop.add, "add")
    assert add(1) == 3
    server.close()
    with pytest.raises(pymq.NoSuchRemoteError):
        add(1)


def test_unexpose_by_name_and_by_callable(bus):
    bus.expose(multiply)
    bus.expose(multiply, "other name")
    bus.unexpose("other name")
    with pytest.raises(pymq.NoSuchRemoteError):
        bus.stub("other name", timeout=10)(1)
    assert bus.stub("test_rpc.multiply", timeout=10)(1) == 2
    bus.unexpose(multiply)
    with pytest.raises(pymq.NoSuchRemoteError):
        bus.stub(multiply, timeout=10)(1)
    bus.expose(multiply)
    assert bus.stub(multiply, timeout=10)(2) == 4


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_negative_timeout_is_refused(bus, timeout):
    bus.expose(lambda: 1, "one")
    with pytest.raises(ValueError, match="timeout"):
        bus.stub("one", timeout=timeout)()


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_a_deadline(peers, bus):
    (server,) = peers(1)
    server.expose(shop.hang, "hang")
    started = time.monotonic()
    with pytest.raises(pymq.RpcTimeout) as caught:
        bus.stub("hang", timeout=0.3)(1)
    assert 0.3 <= time.monotonic() - started < 5
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, pymq.RemoteInvocationError)
    server.release()
    assert bus.stub("hang", timeout=10)("next") == "next", "a late reply is nobody's"


def test_an_expired_request_is_not_executed(peers, bus):
    (server,) = peers(1)
    server.expose(shop.hang, "hang")
    first = in_thread(bus.stub("hang", timeout=GUARD), "first")
    assert server.hear() == ("begun", "first")
    with pytest.raises(pymq.RpcTimeout):
        bus.stub("hang", timeout=0.1)("expired")
    server.release()
    assert first.result(GUARD) == "first"
    assert bus.stub("hang", timeout=10)("last") == "last"
    assert server.heard.take(1) == [("begun", "last")]


def test_one_deadline_for_all_of_a_multi_call(peers, bus):
    servers = peers(3)
    for server in servers:
        server.expose(shop.hang, "hang")
    started = time.monotonic()
    results = bus.stub("hang", timeout=0.5, multi=True)("x")
    assert time.monotonic() - started < 1.4, "not one deadline per server"
    assert [type(result) for result in results] == [pymq.RpcTimeout] * 3


# --- several servers --------------------------------------------------------------------------------------------------


def asked(servers: list[Any], count: int) -> list[int]:
    """How often each was, as soon as it was that often in all."""
    eventually(lambda: sum(server.heard.waiting() for server in servers) >= count)
    return [len(server.heard.rest()) for server in servers]


def test_one_live_server_executes_a_call(peers, bus):
    servers = peers(3)
    for server in servers:
        server.expose(shop.who, "who")
    for _ in range(10):
        bus.stub("who", timeout=10)()
    bus.stub("who", timeout=10, multi=True)()
    assert sum(asked(servers, 13)) == 13


def test_calls_spread(peers, bus):
    servers = peers(3)
    for server in servers:
        server.expose(shop.who, "who")
    bus.stub("who", timeout=10, multi=True)()  # now each has been given the processor: one that has not is not idle
    for _ in range(60):
        bus.stub("who", timeout=10)()
    assert min(asked(servers, 63)) >= 5


def test_a_server_that_has_been_busy_for_a_while_does_not_get_the_calls(peers, bus):
    """Then another of its threads waits for messages, and it must not look idle for that."""
    busy, free = peers(2)
    busy.expose(shop.hang_on_one, "work")
    held = in_thread(bus.stub("work", timeout=GUARD), 1)
    assert busy.hear() == "begun"
    free.expose(shop.hang_on_one, "work")
    time.sleep(0.1)
    assert [bus.stub("work", timeout=GUARD)(number) for number in range(2, 10)] == list(range(2, 10))
    busy.release()
    assert held.result(GUARD) == 1


def test_a_busy_server_does_not_get_the_call(peers, bus):
    servers = peers(2)
    for server in servers:
        server.expose(shop.hang, "hang")
    first = in_thread(bus.stub("hang", timeout=GUARD), 1)
    eventually(lambda: any(server.heard.waiting() for server in servers))
    second = in_thread(bus.stub("hang", timeout=GUARD), 2)
    begun = [server.hear() for server in servers]
    assert sorted(begun) == [("begun", 1), ("begun", 2)]
    for server in servers:
        server.release()
    assert (first.result(GUARD), second.result(GUARD)) == (1, 2)


def test_a_builtin_that_tells_no_signature_may_be_a_remote(bus):
    bus.expose(max, "max")
    assert bus.stub("max", timeout=GUARD)(1, 3, 2) == 3


def test_multi_asks_everybody(peers, bus):
    servers = peers(3)
    for server in servers:
        server.expose(shop.refuse_here_only, "ask")
    assert bus.stub("ask", timeout=10, multi=True)() == ["fine"] * 3
    servers[1].call(shop.fail_here)
    results = bus.stub("ask", timeout=10, multi=True)()
    assert sorted(map(str, results))[-2:] == ["fine", "fine"]
    (failure,) = [result for result in results if result != "fine"]
    assert isinstance(failure, pymq.RemoteInvocationError)
    assert (failure.remote_type, failure.remote_args) == ("LookupError", ("here",))


def test_multi_returns_the_results_there_are(peers, bus):
    quick, slow = peers(2)
    quick.release()
    for server in (quick, slow):
        server.expose(shop.hang, "hang")
    results = bus.stub("hang", timeout=0.5, multi=True)("x")
    assert sorted(type(result).__name__ for result in results) == ["RpcTimeout", "str"]


# --- death ------------------------------------------------------------------------------------------------------------


# --- calls inside handlers and remotes, and from many threads ---------------------------------------------------------


def test_a_remote_may_call_a_remote_of_its_own_process(peers, bus):
    (server,) = peers(1)
    server.expose(shop.add, "add")
    server.expose(shop.product_by_stub, "product")
    assert bus.stub("product", timeout=GUARD)(6, 7) == 42


def test_two_processes_may_call_each_other(peers):
    alice, bob = peers(2)
    alice.expose(shop.add, "add")
    bob.expose(shop.product_by_stub, "product")
    assert alice.call(shop.call, "product", 3, 4) == 12


def test_an_async_remote_may_call(bus):
    bus.expose(lambda value: value + 1, "next")

    async def twice(value: int) -> int:
        return bus.stub("next", timeout=10)(bus.stub("next", timeout=10)(value))

    bus.expose(twice, "twice")
    assert bus.stub("twice", timeout=GUARD)(1) == 3


def test_a_call_that_would_wait_for_its_own_loop_is_refused(bus):
    async def inner() -> int:
        return 1

    async def outer(how: str) -> int:
        stub = bus.stub("inner", timeout=10)
        return stub() if how == "here" else await asyncio.to_thread(stub)

    bus.expose(inner, "inner")
    bus.expose(outer, "outer")
    assert bus.stub("outer", timeout=GUARD)("in a thread") == 1
    with pytest.raises(pymq.RemoteInvocationError, match="to_thread"):
        bus.stub("outer", timeout=GUARD)("here")


def test_a_shutdown_ends_the_calls_that_wait(peers, config):
    (server,) = peers(1)
    server.expose(shop.hang, "hang")
    bus = pymq.EventBus(config)
    bus.start()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(bus.stub("hang"))
        time.sleep(0.5)
        begin = time.monotonic()
        bus.shutdown()
        with pytest.raises((pymq.ProviderError, pymq.NotInitialized)):
            result.result(GUARD)
        assert time.monotonic() - begin < 1.5


def test_a_timeout_may_be_very_long(bus):
    bus.expose(lambda: 1, "one")
    assert bus.stub("one", timeout=1e10)() == 1
    with contextlib.suppress(pymq.NoSuchRemoteError):
        bus.stub("nobody", timeout=1e300)()


def test_a_call_does_not_wait_for_a_slow_handler(bus, heard):
    gate = threading.Event()

    def slow(value: int) -> None:
        heard("begun")
        gate.wait(GUARD)

    bus.subscribe(slow, "c")
    bus.expose(lambda: "pong", "ping")
    bus.publish(1, "c")
    assert heard.next() == "begun"
    try:
        assert [bus.stub("ping", timeout=10)() for _ in range(20)] == ["pong"] * 20
    finally:
        gate.set()


def test_events_arrive_while_a_call_waits(peers, bus, heard):
    (server,) = peers(1)
    server.expose(shop.hang, "hang")
    bus.subscribe(heard, "c")
    calling = in_thread(bus.stub("hang", timeout=GUARD), "x")
    assert server.hear() == ("begun", "x")
    for value in range(5):
        assert server.publish(value, "c") == 1
    assert heard.take(5) == list(range(5))
    server.release()
    assert calling.result(GUARD) == "x"


def test_every_thread_gets_its_own_answer(peers, bus, place):
    servers = peers(2)
    for server in servers:
        server.expose(shop.add, "add")
    add = bus.stub("add", timeout=GUARD)

    def ask(thread: int) -> list[int]:
        return [add(thread * 1000, number) for number in range(int(200 * place.scale))]

    answers = [future.result(GUARD * 3) for future in [in_thread(ask, thread) for thread in range(6)]]
    assert answers == [[thread * 1000 + number for number in range(int(200 * place.scale))] for thread in range(6)]


def test_ever_new_names_are_not_remembered_for_ever(peers, bus, monkeypatch):
    monkeypatch.setattr("pymq.topics.MOST_TOPICS", 5, raising=False)
    servers = peers(2)
    for number in range(12):
        for server in servers:
            server.expose(shop.add, f"add/{number}")
        assert bus.stub(f"add/{number}", timeout=10)(number, 1) == number + 1
        assert bus.stub(f"add/{number}", timeout=10, multi=True)(number, 1) == [number + 1] * 2
        with pytest.raises(pymq.NoSuchRemoteError):
            bus.stub(f"nobody/{number}", timeout=10)()
    tables = [table for table in vars(bus.provider).values() if isinstance(table, dict)]
    tables += [queue.prefixes for queue in bus.caller._idle]
    assert [table for table in tables if sum("add/" in key or "nobody/" in key for key in table if isinstance(key, str)) > 5] == []
