"""What a member remembers of what the server holds for it: how far its inboxes are read, and which patterns there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pymq.provider._redis.operations import decoded
from pymq.provider.base import Delivery
from pymq.topics import matcher

if TYPE_CHECKING:
    from pymq.provider._redis.receiver import Receiver


class Inbox:
    """How far a temporary queue has been read: what was handed out is trimmed by the next fetch.

    A reply comes by a list of its own, of which it is removed when it is handed out.
    """

    def __init__(self, prefix: bytes, name: bytes) -> None:
        self.name = name
        self.replies = prefix + b"d:" + name
        self.lists = prefix + b"w:" + name, self.replies  # who waits takes from the first: a token where one was left by a fetch
        self.done = 0
        self.looks = 0  # how often its receiver has looked for messages
        self.ready_after = -1  # after so many looks it was empty, and the server knew that the next message will be waited for
        self._receiver: Receiver | None = None
        self._losses = 0
        self.is_calm = False  # messages come one by one: the next one will have to be waited for

    @property
    def is_ready(self) -> bool:
        """The next message will come with a token: nobody has looked since the server knew that it is waited for."""
        return self.ready_after == self.looks and not self.is_unsure

    @property
    def is_unsure(self) -> bool:
        """A reply may have been lost with its receiver's connection: the server has a copy."""
        return self._receiver is not None and self._receiver.losses > self._losses

    def rely_on(self, receiver: Receiver) -> None:
        """What that one has taken so far has come."""
        self._receiver, self._losses = receiver, receiver.losses

    def hand_out(self, answer: Sequence[Any]) -> list[Delivery]:
        """What was fetched, or, with the token that woke its receiver, came alone. Empty where it was handed out before."""
        if answer[0] == b"ok":
            self.is_calm = len(answer[2]) < 2
            first, messages = int(answer[1]), answer[2]
        elif answer[0] == self.replies:
            self.is_calm = True
            self.ready_after += self.is_ready  # still: only what comes by the script makes the server forget it
            return [(answer[1], None)]
        else:
            self.is_calm = True
            number, _, message = answer[1].partition(b" ")
            first, messages = int(number), [message]
        if first < self.done:
            return []
        self.done = first + len(messages)
        return [(message, None) for message in messages]


class Patterns:
    """Bindings to globs, as of one generation: they are matched here, and the script refuses a publish with an older one."""

    def __init__(self, generation: bytes, entries: Sequence[bytes]) -> None:
        self.generation = generation
        self._entries = [_entry(each) for each in entries]

    def matching(self, topics: Sequence[str]) -> list[bytes]:
        return list(dict.fromkeys(name for pattern, name in self._entries if any(map(matcher(pattern), topics))))


def _entry(packed_entry: bytes) -> tuple[str, bytes]:
    length, _, rest = packed_entry.partition(b":")
    return decoded(rest[: int(length)]), rest[int(length) :]
