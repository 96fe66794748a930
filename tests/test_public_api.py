"""What programs import: the names, what importing costs, and what type checkers see."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, run_program

import pymq
import pymq.asyncio
from pymq import core
from pymq.provider.ipc import IpcConfig, IpcEventBus
from pymq.provider.redis import RedisConfig, RedisEventBus
from pymq.provider.simple import SimpleConfig, SimpleEventBus

EXPORTS = [
    "CodecError",
    "ConnectionLost",
    "Empty",
    "EventBus",
    "Full",
    "LeaseLost",
    "Message",
    "MessageTooLarge",
    "NoSuchRemoteError",
    "NotInitialized",
    "ProviderError",
    "PymqError",
    "Queue",
    "QueueNotFound",
    "Reject",
    "RemoteInvocationError",
    "Retry",
    "RpcException",
    "RpcRequest",
    "RpcResponse",
    "RpcTimeout",
    "ServerDied",
    "StubMethod",
    "Topic",
    "event",
    "expose",
    "group",
    "init",
    "publish",
    "queue",
    "remote",
    "shutdown",
    "start",
    "stats",
    "stub",
    "subscribe",
    "subscriber",
    "topic",
    "unexpose",
    "unsubscribe",
    "wait",
]


def test_the_exports_are_these():
    assert pymq.__all__ == EXPORTS
    assert all(hasattr(pymq, name) for name in EXPORTS)


def test_importing_loads_the_standard_library_only(tmp_path: Path):
    program = tmp_path / "imports.py"
    program.write_text(
        "import sys\n"
        "before = set(sys.modules)\n"
        "import pymq\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(loaded - sys.stdlib_module_names - {'pymq'}))\n"
    )
    assert run_program(program) == ["[]"]


def test_a_bus_by_its_old_name():
    with pymq.init(SimpleEventBus) as bus:
        assert isinstance(bus, SimpleEventBus)
        assert pymq.publish(1, "nobody") == 0


def test_buses_of_pymq_take_a_namespace():
    assert IpcEventBus("app").config == IpcEventBus(namespace="app").config == IpcEventBus(IpcConfig(namespace="app")).config
    assert RedisEventBus(namespace="app").config == RedisConfig(namespace="app")


def test_decorators_take_a_function_and_more():
    def hear(event: object) -> None: ...

    with pymq.init(SimpleEventBus) as bus:
        pymq.subscriber(hear, "direct")
        pymq.subscriber("a/*", True)(hear)
        bus.subscriber(hear, "b/*", True)
        pymq.remote(lambda: 2, "two")
        assert [pymq.publish(1, channel) for channel in ("direct", "a/x", "b/x", "*")] == [1, 1, 1, 0]
        assert pymq.stub("two", timeout=10)() == 2


def note(text: str) -> None: ...


@pytest.mark.parametrize("way", ["module", "threads", "loop"])
def test_decorators_drop_nothing_that_they_are_given(way):
    verbs = {"module": pymq, "threads": pymq.EventBus(SimpleConfig("x")), "loop": pymq.asyncio.EventBus(SimpleConfig("x"))}[way]
    with pytest.raises(TypeError, match="note: multiple values for argument 'channel'; its options are channel, pattern, group"):
        verbs.subscriber("a", channel="b")(note)
    with pytest.raises(TypeError, match=r"note: got an unexpected keyword argument 'retry'; .* retries"):
        verbs.subscriber("jobs", group="billing", retry=2)(note)
    with pytest.raises(TypeError, match="note: too many positional arguments; its options are channel"):
        verbs.remote(note, "a", True)
    with pytest.raises(TypeError, match="note: got an unexpected keyword argument 'name'"):
        verbs.remote(name="double")(note)
    with pytest.raises(TypeError, match="note: got an unexpected keyword argument 'retry'"):
        pymq.subscribe(note, "jobs", group="billing", retry=2)


def test_decorators_take_all_by_position_too():
    with pymq.init(SimpleEventBus) as bus:
        pymq.subscriber("jobs", False, "workers")(lambda event: None)
        assert [member.group.name for member in bus._members] == ["workers"]
        bus.group("workers").delete()


def test_what_is_no_config_is_told_how_to_be_one():
    with pytest.raises(TypeError, match=r"^init wants a config, .* init\(RedisConfig\(client\)\), .*; not \[1, 1, 1") as raised:
        pymq.init([1] * 1000)  # type: ignore[arg-type]
    assert len(str(raised.value)) < 350


@pytest.mark.parametrize("option", [{"retries": 3}, {"retries": 5}, {"backoff": 1.0}, {"lease": 30.0}])
def test_an_option_of_groups_without_one_is_refused_where_it_stands(option):
    (named,) = option
    with pytest.raises(ValueError, match=f"{named}=.* needs group="):
        pymq.EventBus(SimpleConfig("options")).subscribe(print, "x", **option)
    with pytest.raises(ValueError, match=f"{named}=.* needs group="):
        pymq.subscriber("x", **option)(note)
    assert note not in [declared for _, declared, _ in core._declared.values()]
    for loops in (option, {"workers": 2}):
        with pytest.raises(ValueError, match="needs group="):
            pymq.asyncio.EventBus(SimpleConfig("options")).subscriber("x", **loops)(note)
        with pytest.raises(ValueError, match="needs group="):
            asyncio.run(pymq.asyncio.EventBus(SimpleConfig("options")).subscribe(note, "x", **loops))


@dataclass
class Trade:
    price: float


def on_trade(event: Trade) -> None: ...


def on_anything(event: Any) -> None: ...


@pytest.mark.parametrize("way", ["module", "threads", "loop"])
def test_a_class_in_the_place_of_a_channel_is_told_how_it_is_named(way):
    module = {"module": pymq, "threads": pymq, "loop": pymq.asyncio}[way]
    verbs: Any = module if way == "module" else module.EventBus(SimpleConfig("options"))
    wrong = [lambda: verbs.subscriber(Trade)(on_trade), lambda: verbs.subscriber(channel=Trade)(on_trade), lambda: verbs.topic(Trade)]
    for use in wrong:
        with pytest.raises(TypeError, match=r"a text, not .*Trade'>: leave it out, .* `def handler\(event: Trade\)`"):
            use()
    assert {on_trade, Trade}.isdisjoint(declared for _, declared, _ in core._declared.values())


def test_a_class_in_the_place_of_a_channel_of_a_running_bus():
    with pymq.init(SimpleConfig("options")) as bus:
        bus.subscribe(on_trade)
        for verb in (bus.publish, pymq.publish, bus.subscribe, pymq.subscribe, bus.unsubscribe, pymq.unsubscribe):
            with pytest.raises(TypeError, match=r"a text, not .*Trade'>: leave it out, .* `publish\(Trade\(\.\.\.\)\)`"):
                verb(on_trade if "subscribe" in verb.__name__ else Trade(1.0), Trade)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a channel is a text, not 5"):
            bus.group("billing").bind(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pattern": True},
        {"channel": "[z-a]", "pattern": True},
        {"channel": 5},
        {"channel": "x", "group": 5},
        {"channel": "x", "workers": 1.5},
    ],
    ids=str,
)
def test_what_no_bus_would_take_is_refused_where_it_is_declared(options):
    for verb in (pymq.subscriber(**options), partial(pymq.subscribe, **options)):
        with pytest.raises((TypeError, ValueError)):
            verb(on_anything)
    assert on_anything not in [declared for _, declared, _ in core._declared.values()]


def test_the_version_is_that_of_the_package():
    assert pymq.__version__ == metadata.version("pymq")
    with pytest.raises(AttributeError, match="'nothing'"):
        print(pymq.nothing)


def test_threads_that_name_events_at_once(monkeypatch):
    """Of two that look whether one is left, as where modules are imported in threads, the second finds none."""

    class Shared(list[type]):
        def pop(self, *args: Any) -> type:
            self.clear()  # the other was quicker
            return super().pop(*args)

    monkeypatch.setattr(pymq.core, "_named", Shared())
    pymq.event(type("Event", (), {}))


TYPED = """
from dataclasses import dataclass
from typing import Any
import pymq

@dataclass
class Job:
    number: int

@pymq.event("billed")
@dataclass
class Billed:
    total: float

@pymq.remote("product_remote")
def product(a: int, b: int = 2) -> int:
    return a * b

@pymq.subscriber
def on_billed(event: Billed) -> None: ...

@pymq.subscriber("sensors/*", pattern=True)
def on_reading(value: float, message: pymq.Message) -> None: ...

reveal_type(product)
reveal_type(on_billed)
reveal_type(Billed(1.5).total)
reveal_type(pymq.stub(product))
reveal_type(pymq.stub(product, timeout=2)(3, b=4))
reveal_type(pymq.stub("product_remote")(3))
reveal_type(pymq.queue("jobs", type=Job))
reveal_type(pymq.queue("jobs", type=Job).get())
reveal_type(pymq.queue("jobs"))
with pymq.queue("jobs", type=Job).take(timeout=1) as job:
    reveal_type(job.value)
reveal_type(pymq.publish(Job(1)))
pymq.stub(product)("three")
pymq.queue("jobs", type=Job).put("four")
"""

REVEALED = [
    "def (a: int, b: int =) -> int",
    "def (event: program.Billed)",
    "float",
    "pymq.rpc.StubMethod[[a: int, b: int =], int]",
    "int",
    "Any",
    "pymq.queues.Queue[program.Job]",
    "program.Job",
    "pymq.queues.Queue[Any]",
    "program.Job",
    "int | None",
]


def test_what_type_checkers_see(tmp_path: Path):
    (tmp_path / "program.py").write_text(TYPED)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", "program.py"],
        check=False,
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    notes = [line.partition('Revealed type is "')[2][:-1] for line in checked.stdout.splitlines() if "Revealed" in line]
    plain = [note.replace("builtins.", "").replace("typing.", "").replace("Union[int, None]", "int | None") for note in notes]
    assert plain == REVEALED, checked.stdout + checked.stderr
    errors = [line for line in checked.stdout.splitlines() if " error: " in line]
    assert len(errors) == 2, checked.stdout
    assert '"str"; expected "int"' in errors[0]
    assert '"str"; expected "Job"' in errors[1]
