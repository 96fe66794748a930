"""What `pymq.pubsub` is made of: where channels are, what they may be called, and their messages.

A message is the frame of an event whose payload is bytes, packed and read with the standard library alone. Its options are JSON as the
codec writes it for the same dict, so that a bus reads them, and they what a bus sends:
`[[],[["time",<nanoseconds since the epoch>],["headers",{…}]]]`. Without headers there is the time alone, packed.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from operator import index
from time import time_ns
from typing import TYPE_CHECKING, Any, TypeAlias
from zlib import crc32

from pymq import message as frames
from pymq.exceptions import CodecError
from pymq.message import EVENT, FIXED, LENGTH, OPTIONS, RAW, START, TIME, TIMED, Prefix, beside

if TYPE_CHECKING:
    from pymq.provider.shm import ShmConfig, ShmProvider

Header: TypeAlias = "str | int | float | bool | None"

_SCALARS = (str, int, float, bool, type(None))
_SPIN = 0.00005
"""For how many seconds a receiver yields the processor before it sleeps: in half the time, with that, a message goes there and back."""
_FLAGS = 3
"""Where they are in a prefix."""
_CHECKED = struct.Struct("<4sI")
_MAGIC = b"pymq"


class Sender:
    """Who this process is to its receivers: the token and the numbers that make a message's id."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Be somebody else: a forked child must not give out its parent's ids."""
        self.token = secrets.randbits(63)
        self.numbers: Iterator[int] = itertools.count(1)


sender = Sender()
os.register_at_fork(after_in_child=sender.renew)


def sender_to(topic: str, provider: ShmProvider) -> Callable[[bytes, Mapping[str, Header] | None], int]:
    """What publishes content to that topic: all that is constant is packed once."""
    topics, numbers, prefix = ("e/" + topic,), sender.numbers, _prefix(sender.token, topic, OPTIONS)
    heads = frames.heads(numbers, _prefix(sender.token, topic, TIMED), iter(time_ns, None), layout="Q")
    publish = provider.publisher(topics, heads, as_bytes)

    def send(content: Any, headers: Mapping[str, Header] | None) -> int:
        if not headers:
            return publish(content)
        content = as_bytes(content)
        return provider.publish(topics, frames.pack_sequence(next(numbers)) + prefix + _options(time_ns(), headers) + content)

    return send


def _prefix(token: int, topic: str, flags: int) -> bytes:
    return frames.pack_prefix(Prefix(EVENT, RAW, flags, token, topic, "bytes", ()))


def _options(nanoseconds: int, headers: Mapping[str, Header]) -> bytes:
    """The options section. Raises TypeError for what is no header, ValueError for a text that is no Unicode."""
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers are a dict, not {headers!r}")
    for name, value in headers.items():
        if type(name) is not str or type(value) not in _SCALARS:
            raise TypeError(f"the header {name!r}: {value!r}: a name is a str, a value a str, int, float, bool or None")
    node: Any = headers if "~" not in headers else {"~": "dict", "v": [list(headers), list(headers.values())]}
    options = [["time", nanoseconds], *([["headers", node]] if headers else [])]
    packed = json.dumps([[], options], ensure_ascii=False, separators=(",", ":")).encode()
    return LENGTH.pack(len(packed)) + packed


class Message:
    """One message of bytes: `topic`, `content` and `headers` as they were published.

    `id` is an int that no other message has, and grows from message to message of one publisher. `timestamp` is when it was published
    (an event of a bus: received), in microseconds since the epoch. What a bus published that is not bytes is its encoding.
    """

    __slots__ = ("_head", "content", "headers", "id", "timestamp", "topic")

    topic: str
    content: bytes
    headers: dict[str, Header]
    id: int
    timestamp: int
    _head: bytes

    def __init__(self, topic: str, content: bytes, headers: Mapping[str, Header] | None = None) -> None:
        """Raises TypeError for a topic that is no str, content that is not bytes-like, and headers that cannot travel."""
        if not isinstance(topic, str):
            raise TypeError(f"a topic is a str, not {topic!r}")
        _options(0, headers or {})
        self.topic = topic
        self.content = as_bytes(content)
        self.headers = dict(headers or {})
        self.id = sender.token << 64 | next(sender.numbers)
        self.timestamp = time_ns() // 1000

    def __getattr__(self, name: str) -> Any:
        """What is read from the head of a received message when it is first asked for: 3 us that most programs save."""
        if name not in ("headers", "id", "timestamp"):
            raise AttributeError(f"a Message has no {name!r}")
        self._read_head()
        return getattr(self, name)

    def _read_head(self) -> dict[str, Any]:
        sequence, length = START.unpack_from(self._head)
        options = _read_options(self._head, START.size + length)
        self.id = FIXED.unpack_from(self._head, START.size)[-1] << 64 | sequence
        self.timestamp = index(options["time"] if "time" in options else time_ns()) // 1000
        self.headers = options.get("headers", {})
        return options

    def _pack(self) -> bytes:
        options = _options(self.timestamp * 1000, self.headers)
        return frames.pack_sequence(self.id & (1 << 64) - 1) + _prefix(self.id >> 64, self.topic, OPTIONS) + options + self.content

    def to_bytes(self) -> bytes:
        """The whole message, to be kept or sent by other means."""
        packed = self._pack()
        return _CHECKED.pack(_MAGIC, crc32(packed)) + packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """What `to_bytes` gave. Raises ValueError for anything else, also where a single bit of it has changed."""
        data = as_bytes(data)
        frame = data[_CHECKED.size :]
        if len(data) < _CHECKED.size or _CHECKED.unpack_from(data) != (_MAGIC, crc32(frame)):
            raise ValueError(f"these {len(data)} bytes are no message, or not as to_bytes() gave them: {data[:40]!r}")
        return received(frame)[0]

    def __eq__(self, other: object) -> bool:
        """Whether it is the same message: no two have the same id, but a copy may have been changed."""
        if not isinstance(other, Message):
            return NotImplemented
        mine, theirs = ((each.id, each.timestamp, each.topic, each.content, each.headers) for each in (self, other))
        return mine == theirs

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Message(id={self.id}, topic={self.topic!r}, content_length={len(self.content)})"


def as_bytes(data: Any) -> bytes:
    """What is bytes-like as bytes. Raises TypeError for anything else."""
    if type(data) is bytes:
        return data
    try:
        return bytes(memoryview(data))
    except TypeError:
        raise TypeError(f"content is bytes-like, not {data!r:.100}") from None


def reader_of(packed: bytes) -> Callable[[bytes], Message | None]:
    """What makes messages of the frames with that prefix, which is TIMED: the hot path."""
    start, topic, new = START.size + len(packed) + TIME.size, frames.unpack_prefix(packed).channel, object.__new__

    def read(frame: bytes) -> Message | None:
        message = new(Message)
        message.topic = topic
        message.content = content = frame[start:] or beside(frame)
        if not content and len(frame) < start:
            return None  # cut short
        message._head = frame[:start]
        return message

    return read


def received(frame: bytes) -> tuple[Message, dict[str, Any]]:
    """The message in any event's frame, and its options. Raises CodecError."""
    try:
        packed = frames.prefix_of(frame)
        prefix = frames.unpack_prefix(packed)
        start = START.size + len(packed)
        start += LENGTH.size + LENGTH.unpack_from(frame, start)[0] if prefix.flags & OPTIONS else frames.time_size(prefix)
        message: Message = object.__new__(Message)
        message.topic, message.content, message._head = prefix.channel, frame[start:] or beside(frame), frame[:start]
        return message, message._read_head()
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CodecError(f"not a message of ours: {frame[:40]!r}") from error


def _read_options(head: bytes, start: int) -> dict[str, Any]:
    """The options that begin at `start`, where there are any. The codec is asked only for what no channel sends."""
    if start == len(head):
        return {}
    if head[START.size + _FLAGS] == TIMED:
        return {"time": TIME.unpack_from(head, start)[0]}
    options = dict(json.loads(head[start + LENGTH.size :].decode())[1])
    headers = options.get("headers", {})
    if "~" in headers:
        headers = options["headers"] = dict(zip(*headers["v"], strict=True))
    if any(isinstance(value, (dict, list)) for value in headers.values()):
        return frames.unpack_options(head, start)[0]
    return options


def config() -> ShmConfig:
    """That of `pymq.init()` in the same environment, if that is shared memory; PUBSUB_HOME counts where nothing else says the home."""
    from pymq.provider.shm import ShmConfig

    url = os.environ.get("PYMQ_URL", "")
    found = ShmConfig.from_url(url) if url.startswith("shm:") else ShmConfig(spin=_SPIN)
    return replace(found, home=found.home or os.environ.get("PYMQ_HOME") or os.environ.get("PUBSUB_HOME"))


def check_topic(topic: str, wildcards: bool) -> None:
    """Raises ValueError that says what is wrong with it, TypeError where it is no text."""
    if not isinstance(topic, str):
        raise TypeError(f"a topic is a str, not {topic!r}")
    for word in topic.split("."):
        wrong = _NOT_IN_WORDS.search(word)
        if not word:
            raise ValueError(f"the topic {topic!r} has an empty word: words of letters, digits and hyphens have one dot between them")
        if wrong is not None and not (wildcards and word in ("=", "+")):
            raise ValueError(f"the topic {topic!r} has {wrong[0]!r} in it: {_EXPECTED[wildcards]}")


_NOT_IN_WORDS = re.compile("[^a-zA-Z0-9-]")
_EXPECTED = (
    "one publishes to words of letters, digits and hyphens with dots between them; wildcards are for channels",
    "words are of letters, digits and hyphens with dots between them, and = or + stand for whole words",
)
