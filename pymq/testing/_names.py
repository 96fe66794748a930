"""Names of queues and topics as the core makes them, and the list of queues."""

from __future__ import annotations

from pymq.provider.base import Provider
from pymq.testing._suite import Suite

_LONG = "x" * 300
PAIRS = (
    ("\0=a", "\0~a"),
    ("/a", "/A"),
    ("/a/b", "/a/b/"),
    ("a b", "a  b"),
    ("\u00e4", "\u00f6"),
    ("\u00e9", "e\u0301"),
    ("/", "%2F"),
    (".", ".."),
    ("*", "?"),
    (f"{_LONG}1", f"{_LONG}2"),
)
"""Ends of names that a careless provider takes for the same, or refuses: the queue of a group has a NUL in its name, and what users
call their channels, queues and groups is any text."""


class Names(Suite):
    """Of the suite."""

    def test_every_name_is_a_queue_of_its_own(self) -> None:
        sender, receiver = self._open(), self._open()
        for temporary in (False, True):
            root = self._name()
            names = [root + end for pair in PAIRS for end in pair]
            for name in names:
                receiver.declare(name, temporary=temporary)
                self._cleanup.callback(self._delete, name)
            for name in names:
                sender.send(name, name.encode())
            for name in names:
                assert self._messages(receiver, name, 1) == [name.encode()], f"of the queue {name!r}"
                assert receiver.receive(name) == []
                receiver.delete(name)

    def test_every_name_is_a_topic_of_its_own(self) -> None:
        provider, publisher = self._open(), self._open()
        inboxes, root = [self._inbox(provider) for _ in range(2)], self._name()
        for pair in PAIRS:
            for inbox, end in zip(inboxes, pair, strict=True):
                provider.bind(inbox, root + end, exact=True)
                assert list(publisher.consumers(root + end)) == [inbox]
        for inbox, *ends in zip(inboxes, *PAIRS, strict=True):
            for end in ends:
                self._reached(publisher.publish([root + end], end.encode()), 1)
                assert self._messages(provider, inbox, 1) == [end.encode()], f"published to {end!r}"
        assert all(provider.receive(inbox) == [] or self.over_delivers for inbox in inboxes)

    def test_the_shared_queues_are_listed_by_what_their_names_begin_with(self) -> None:
        provider, other = self._open(), self._open()
        root, topic = self._name(), self._name()
        shared = [f"{root}{end}" for end in ("", "\0=a", "\0~a", f"\0={_LONG}")]
        for queue in (*shared, f"{root[:-1]}\0=a", f"-{root}"):
            provider.declare(queue)
            self._cleanup.callback(self._delete, queue)
            provider.bind(queue, topic, exact=True)
        provider.declare(f"{root}\0=inbox", temporary=True)
        self._lists(other, root, shared)
        self._lists(other, f"{root}\0", shared[1:])
        provider.unbind(shared[1], topic, exact=True)
        provider.delete(shared[2])
        self._lists(other, f"{root}\0", [shared[1], shared[3]])

    def _lists(self, provider: Provider, prefix: str, expected: list[str]) -> None:
        found = sorted(provider.queues(prefix))
        assert found == sorted(expected), f"of {prefix!r}"
