"""Messages that mean harm, by every way into a program: nothing is imported, opened, run or built, and the next good one arrives.

The same user may send them: a bug, another version, another program. See also tests/unit/test_codec.py for the codec by itself.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from queue import SimpleQueue
from typing import Any

import pytest
from harness import GUARD, eventually

import pymq
from pymq import codec
from pymq import message as frames
from pymq.message import Prefix

pytestmark = pytest.mark.parametrize("place", ["simple", "shm"], indirect=True)


@dataclass
class Reading:
    number: int
    text: str = ""


NAMES = ["os.system", "subprocess.Popen", "builtins.eval", "pickle.loads", "antigravity", "../../etc/passwd", "a.\0", "", "list", "~"]
NAMES += [
    "os.system(id:s)",
    "list(a:q,b:__import__('os').system('id'))",
    "Reading(number:9999999q)",
    "Reading(number:s,number:s)",
    "x(:)",
    "x((:s)",
]
STATES: list[Any] = [{"args": ["id"]}, ["touch /tmp/owned"], "id", {"__reduce__": ["os.system", ["id"]]}, {"number": {}, "~": 1}, None]
PAYLOADS = [
    *(
        json.dumps({"~": kind, "t": name, "v": state}).encode()
        for kind in ("object", "enum", "zone")
        for name in NAMES
        for state in STATES
    ),
    *(json.dumps(state).encode() for state in STATES),
    *(
        b"[" * 100_000,
        b'{"~":' * 100_000,
        b"1" * 5000,
        b"1e999",
        b"NaN",
        b'{"number":1,"number":2,"text":"x"}',
        b"\xff\xfe",
        b"",
        b"nul",
    ),
    *(
        b'{"~":"no such tag"}',
        b'{"~":["~"]}',
        b'{"~":"set","v":[[1]]}',
        b'{"~":"dict","v":[[1],[]]}',
        b'{"~":"decimal","v":"1e9999999999"}',
    ),
    *(b'{"py/object":"os.system"}', b"cos\nsystem\n(S'id'\ntR.", b"!!python/object/apply:os.system ['id']"),
    *(b"\0" + bytes(8), b"\0\2\0\0\0id", b"\0" + b"\xff" * 16, b"\0" * 100_000, b"[]", b'["id"]'),
]
OPTIONS: list[dict[str, Any]] = [
    *(
        {"attempts": "many"},
        {"attempts": float("inf")},
        {"attempts": -(10**30)},
        {"uncounted": []},
        {"headers": 5},
        {"expires": "soon"},
    ),
    *(
        {"due": "later"},
        {"due": float("inf")},
        {"first-failure": {}},
        {"origin": 7},
        {"priority": "high"},
        {"due": None, "expires": None},
    ),
]
SEQUENCE = 1 << 62
"""A number that no call waits for: who knows that is one of the same user's processes, and is believed."""
HARM = ("import", "exec", "compile", "open", "os.", "subprocess.", "socket.", "ctypes.", "marshal.", "pickle.", "shutil.", "code.")
KERNEL = {"os.listdir", "os.mkdir", "os.rmdir", "os.remove", "os.truncate"}
"""What the provider itself asks for, with names of its own."""


class Guard:
    """An audit hook: it cannot be removed again, so it listens only while it is armed."""

    def __init__(self) -> None:
        self.armed = False
        self.caught: list[object] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.armed and event.startswith(HARM) and not (event in KERNEL or "pymq-test-" in repr(arguments) or event == "open"):
            self.caught.append((event, arguments))
        if self.armed and event == "open" and arguments[1] is not None:  # the provider's files are opened by descriptor: no mode
            self.caught.append((event, arguments))


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard()


@pytest.fixture
def armed(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """The test arms it when all is warm: the first message of a kind imports what pymq itself needs."""
    logging.getLogger("pymq").disabled = True
    monkeypatch.setattr("traceback.format_exception", lambda *_: ["a traceback"])  # to format one opens the source
    with suppress(pymq.CodecError):
        codec.decoder_for(codec.TAGGED, "")(b'{"~":"zone","v":"UTC"}')  # reads the system's list of zones, once
    codec.encoder_for(Reading)  # compiles, once, what reads this class of the program's own
    guard.caught.clear()
    yield guard
    guard.armed = False
    logging.getLogger("pymq").disabled = False


def hostile(kind: int, channel: str, good: bytes) -> Iterator[bytes]:
    """Frames that are whole, and what is in them is not."""
    for number, payload in enumerate(PAYLOADS):
        for form in (codec.RAW, codec.TYPED, codec.TAGGED, codec.PACKED, 200):
            prefix = Prefix(kind, form, 0, 7, channel, NAMES[number % len(NAMES)], ())
            yield frames.pack_sequence(SEQUENCE + number) + frames.pack_prefix(prefix) + payload
    for options in OPTIONS:
        prefix = Prefix(kind, codec.TAGGED, frames.OPTIONS, 7, channel, "int", ())
        yield frames.pack_sequence(SEQUENCE) + frames.pack_prefix(prefix) + frames.pack_options(options) + b"1"
    for cut in range(1, len(good), 3):
        yield good[:cut]
        yield good[:cut] + bytes([good[cut] ^ 0xFF]) + good[cut + 1 :]


PLAIN = {Decimal, dict, list, tuple, str, int, float, bool, bytes, set, frozenset, type(None), Reading}


def is_harmless(value: Any) -> bool:
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return type(value) in PLAIN and all(map(is_harmless, inside))


def good_message(bus: pymq.EventBus, kind: int, channel: str) -> bytes:
    encoder = codec.encoder_for(Reading)
    prefix = Prefix(kind, encoder.form, 0, bus.token, channel, encoder.type_name, ())
    return frames.pack_sequence(SEQUENCE) + frames.pack_prefix(prefix) + encoder.encode(Reading(1, "good"))


@pytest.mark.parametrize("hint", [Any, Reading], ids=["Any", "Reading"])
@pytest.mark.parametrize("group", [None, "members"])
def test_events(hint: Any, group: str | None, bus: pymq.EventBus, armed: Guard) -> None:
    got: SimpleQueue[Any] = SimpleQueue()

    def handler(event: Any, message: pymq.Message) -> None:
        got.put(event)

    handler.__annotations__["event"] = hint
    options: dict[str, Any] = {"group": group, "retries": 0} if group else {}
    bus.subscribe(handler, "readings", **options)
    bus.publish(Reading(0), "readings")
    assert got.get(timeout=GUARD) == Reading(0)
    target = bus.group("members").queue_of("readings", False) if group else bus.inbox
    armed.armed = True
    for message in hostile(frames.EVENT, "readings", good_message(bus, frames.EVENT, "readings")):
        bus.provider.send(target, message, timeout=GUARD)
    bus.publish(Reading(2, "the last"), "readings")
    seen = []
    while (event := got.get(timeout=GUARD)) != Reading(2, "the last"):
        seen.append(event)
    armed.armed = False
    assert armed.caught == []
    assert [event for event in seen if not is_harmless(event)] == []
    if group:
        assert bus.group("members").qsize() == 0
        eventually(lambda: bus.provider.counters()[target]["leased"] == 0)  # whatever it was, it is settled
        assert len(list(bus.group("members").dead)) > 100
        bus.group("members").delete()


@pytest.mark.parametrize("verb", ["get", "take"])
@pytest.mark.parametrize("hint", [Any, Reading], ids=["Any", "Reading"])
def test_items(verb: str, hint: Any, bus: pymq.EventBus, armed: Guard) -> None:
    jobs = bus.queue("jobs", type=hint)
    jobs.put(Reading(0))
    assert receive(jobs, verb) == Reading(0)
    sent = list(hostile(frames.ITEM, "jobs", good_message(bus, frames.ITEM, "jobs")))
    armed.armed = True
    for message in sent:
        bus.provider.send("queue/jobs", message)
    jobs.put(Reading(2, "the last"))
    seen = []
    while True:
        try:
            item = receive(jobs, verb)
        except pymq.CodecError:
            continue
        if item == Reading(2, "the last"):
            break
        seen.append(item)
    armed.armed = False
    assert armed.caught == []
    assert [item for item in seen if not is_harmless(item)] == []
    assert jobs.empty()
    assert len(seen) + len(list(jobs.dead)) + 40 > len(sent), "what was no item is a dead letter, but for what had expired"
    jobs.dead.purge()
    jobs.free()
    bus.provider.delete("queue-dead/jobs")


def receive(jobs: Any, verb: str) -> Any:
    if verb == "get":
        return jobs.get(timeout=0)
    with jobs.take(timeout=0) as job:
        return job.value


def test_requests_and_replies(bus: pymq.EventBus, armed: Guard) -> None:
    seen = []

    def remote(value: Any, more: Reading | None = None) -> Any:
        seen.append((value, more))
        return value

    bus.expose(remote, "remote")
    stub = bus.stub("remote", timeout=GUARD)
    assert stub(1) == 1
    deadline = (0.0, float("inf"), float("nan"))
    armed.armed = True
    for message in hostile(frames.REQUEST, "remote", good_message(bus, frames.REQUEST, "remote")):
        bus.provider.send(bus.inbox, message, timeout=GUARD)
    for payload in [*PAYLOADS, b"[[],[[1,2]]]", b'[1,"ab"]', b"[[1,2,3,4,5],{}]", b'[[],{"self":1}]']:
        for end in deadline:
            prefix = Prefix(frames.REQUEST, codec.TAGGED, 0, 7, "remote", "reply/nobody", ())
            request = frames.pack_sequence(1) + frames.pack_prefix(prefix) + frames_deadline(end) + payload
            bus.provider.send(bus.inbox, request, timeout=GUARD)
    assert stub("good") == "good"
    armed.armed = False
    assert armed.caught == []
    assert [call for call in seen if not is_harmless(call)] == []
    replies(bus, armed, stub)


def frames_deadline(end: float) -> bytes:
    from pymq.remotes import DEADLINE

    return DEADLINE.pack(end)


def replies(bus: pymq.EventBus, armed: Guard, stub: Any) -> None:
    """A server that is hostile: the caller gets its own reply all the same."""
    (reply_queue,) = bus_reply_queues(bus)
    sending = threading.Event()

    def slow(value: Any) -> Any:
        for kind in (frames.REPLY, frames.FAILURE, frames.EVENT):
            for message in hostile(kind, "", good_message(bus, kind, "")):
                bus.provider.send(reply_queue, message, timeout=GUARD)
        sending.set()
        return value

    bus.expose(slow, "slow")
    armed.armed = True
    assert bus.stub("slow", timeout=GUARD)("mine") == "mine"
    armed.armed = False
    assert sending.is_set()
    assert armed.caught == []


def bus_reply_queues(bus: pymq.EventBus) -> list[str]:
    return [queue.name for queue in bus.caller._idle]


@pytest.mark.parametrize("harm", ["import colorsys", "exec('1')", "open('/etc/hostname').close()", "__import__('os').system('true')"])
def test_the_guard_sees_harm(harm: str, place: Any, guard: Guard) -> None:
    program = compile(harm, "harm", "exec")
    sys.modules.pop("colorsys", None)
    guard.armed = True
    exec(program)
    guard.armed = False
    assert len(guard.caught) > 1  # the exec of this test itself is one
    guard.caught.clear()
