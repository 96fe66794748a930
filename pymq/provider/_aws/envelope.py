"""What travels in a body of SQS or SNS: a line of JSON that says whose message it is, and the message in base64.

Both are plain ASCII, so that the body is legal text whatever the message's bytes are, and costs a third more than they do.
Attributes are not used: with raw delivery, more than ten of them are silently discarded, and they count in the size all the same.
"""

from __future__ import annotations

import base64
import json
import math
from collections import OrderedDict
from typing import Any, NamedTuple

from pymq.exceptions import MessageTooLarge

LARGEST_BODY = 256 << 10
"""Bytes: what SNS takes without asking, and what one batch may hold in all."""
LARGEST_MESSAGE = 180 << 10
"""Bytes that are 240 KiB in base64, with room for the line before them."""


class Envelope(NamedTuple):
    """A message and what the provider must know of it. Times are AWS's, in seconds."""

    message: bytes
    queue: str = ""
    """Which of a mailbox's temporary queues it is for."""
    topics: tuple[str, ...] = ()
    """What it was published to."""
    to_everything: bool = False
    """Whether it came through the topic for patterns."""
    id: str = ""
    """Unique: by it copies of one message are recognised."""
    due: float = 0.0
    expires: float | None = None
    attempts: int = 0
    """Deliveries of the copy that this one replaces."""

    def pack(self) -> str:
        """The body. Raises MessageTooLarge."""
        fields = {key: value for key, value in zip(_KEYS, self[1:]) if value not in _UNSAID}
        body = f"{json.dumps(fields, separators=(',', ':'))}\n{base64.b64encode(self.message).decode()}"
        if len(body) > LARGEST_BODY:
            raise MessageTooLarge(f"a message of {len(self.message)} bytes, {len(body)} as AWS carries it, which are too many")
        return body


_KEYS = ("queue", "topics", "all", "id", "due", "expires", "attempts")
_UNSAID: tuple[Any, ...] = ("", (), False, 0.0, None)


def unpack(body: str) -> Envelope:
    """The envelope; a body that somebody else wrote becomes the message as it is."""
    first, _, rest = body.partition("\n")
    try:
        fields = json.loads(first)
        queue, topics, *others = (fields.get(key, default) for key, default in zip(_KEYS, Envelope(b"")[1:]))
        envelope = Envelope(base64.b64decode(rest, validate=True), queue, tuple(topics), *others)
        if isinstance(topics, str) or not _is_ours(envelope):
            raise TypeError(first)
        return envelope
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return Envelope(body.encode("utf-8", "surrogatepass"))


def _is_ours(envelope: Envelope) -> bool:
    """Whether the fields are such as `pack` writes: whoever receives reckons with them, and one body must not end a whole poll."""
    return (
        all(isinstance(text, str) for text in (envelope.queue, envelope.id, *envelope.topics))
        and isinstance(envelope.due, int | float)
        and math.isfinite(envelope.due)
        and isinstance(envelope.expires, int | float | None)  # infinite for what lives for ever
        and isinstance(envelope.attempts, int)
    )


class Window:
    """The latest keys, by which repetitions are recognised. Not thread-safe."""

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._keys: OrderedDict[str, None] = OrderedDict()

    def note(self, key: str) -> bool:
        """Whether it is new."""
        if key in self._keys:
            return False
        self._keys[key] = None
        if len(self._keys) > self._size:
            self._keys.popitem(last=False)
        return True

    def __contains__(self, key: str) -> bool:
        return key in self._keys
