"""Bindings and publishing, also to receivers that do not keep up."""

from __future__ import annotations

import time

from pymq.exceptions import PublishFull
from pymq.message import beside
from pymq.provider.base import Provider
from pymq.testing._helpers import FILL, SIZES, numbered, raises
from pymq.testing._suite import Suite


class Bindings(Suite):
    """Of the suite."""

    def test_a_binding_is_in_force_on_return_and_ends_with_unbind(self) -> None:
        provider, publisher = self._open(), self._open()
        for queue in (self._inbox(provider), self._shared(provider)):
            for n in range(self._many(20)):
                topic, exact = self._name(), n % 2 == 0
                pattern = topic if exact else f"{topic[:-2]}??"
                provider.bind(queue, pattern, exact=exact)
                self._reached(publisher.publish([topic], b"bound"), 1)
                assert self._messages(provider, queue, 1) == [b"bound"]
                provider.unbind(queue, pattern, exact=exact)
                self._reached(publisher.publish([topic], b"not bound"), 0)
                assert provider.receive(queue) == []

    def test_only_what_matches_is_copied(self) -> None:
        provider, publisher = self._open(), self._open()
        inbox, root = self._inbox(provider), self._name()
        cases = (
            ("a*c", ("ac", "a/b.c"), ("a", "acd")),
            ("?x", ("ax", "/x"), ("x", "aax")),
            ("[a-c]1", ("b1",), ("d1", "[a-c]1")),
            ("[!a]1", ("b1",), ("a1",)),
            ("[^a]1", ("b1",), ("a1",)),
            ("\\*", ("*",), ("a",)),
        )
        for pattern, matching, others in cases:
            provider.bind(inbox, root + pattern, exact=False)
            for topic in matching:
                publisher.publish([root + topic], topic.encode())
                assert self._messages(provider, inbox, 1) == [topic.encode()], f"{topic} matches {pattern}"
            self._not_copied(publisher, [root + topic for topic in others], provider, inbox)
            provider.unbind(inbox, root + pattern, exact=False)

    def test_an_exact_binding_is_no_glob(self) -> None:
        provider, publisher = self._open(), self._open()
        inbox, root = self._inbox(provider), self._name()
        provider.bind(inbox, f"{root}*", exact=True)
        publisher.publish([f"{root}*"], b"itself")
        assert self._messages(provider, inbox, 1) == [b"itself"]
        self._not_copied(publisher, [f"{root}x", root], provider, inbox)

    def test_a_queue_gets_one_copy_however_often_it_is_bound(self) -> None:
        provider, publisher = self._open(), self._open()
        base, derived = self._name(), self._name()
        for queue in (self._inbox(provider), self._shared(provider)):
            for topic in (base, derived, base):
                provider.bind(queue, topic, exact=True)
            provider.bind(queue, f"{base}*", exact=False)
            self._reached(publisher.publish([derived, base], b"one"), 1)
            publisher.publish([derived], b"two")
            assert self._same(self._messages(provider, queue, 2), [b"one", b"two"])
            assert provider.receive(queue) == []
            provider.delete(queue)

    def test_each_binding_ends_by_itself(self) -> None:
        provider = self._open()
        inbox, topic = self._inbox(provider), self._name()
        for _ in range(2):
            provider.bind(inbox, topic, exact=True)
        provider.bind(inbox, topic, exact=False)
        provider.unbind(inbox, topic, exact=True)
        self._reached(provider.publish([topic], b"the glob is left"), 1)
        assert self._messages(provider, inbox, 1) == [b"the glob is left"]
        provider.unbind(inbox, topic, exact=False)
        self._reached(provider.publish([topic], b"nothing is left"), 0)
        provider.unbind(inbox, topic, exact=False)
        provider.unbind(self._name(), topic, exact=True)

    def test_publish_counts_the_queues_that_accepted(self) -> None:
        provider, other = self._open(), self._open()
        topic = self._name()
        self._reached(provider.publish([topic], b"nobody"), 0)
        queues = [(provider, self._inbox(provider)), (other, self._inbox(other)), (provider, self._shared(provider))]
        for owner, queue in queues:
            owner.bind(queue, topic, exact=True)
        self._reached(provider.publish([topic], b"everybody"), 3)
        for owner, queue in queues:
            assert self._messages(owner, queue, 1) == [b"everybody"]

    def test_a_publisher_sends_each_value_behind_the_next_head(self) -> None:
        provider, receiver = self._open(), self._open()
        inbox, shared, topic = self._inbox(receiver), self._shared(receiver), self._name()
        heads = numbered(100)
        publish = provider.publisher((topic,), iter(heads), bytes)
        self._reached(publish(0), 0)
        sizes = [size for size in SIZES if size + len(heads[0]) <= provider.max_message_bytes]
        receiver.bind(inbox, topic, exact=True)
        for head, size in zip(heads[1:], sizes, strict=False):
            self._reached(publish(size), 1)
            assert self._whole(receiver, inbox) == head + bytes(size), f"published {size} bytes"
        with raises(ValueError):
            publish(-1)
        receiver.bind(shared, topic, exact=True)
        self._reached(publish(10), 2)
        for queue in (inbox, shared):
            assert self._whole(receiver, queue) == heads[1 + len(sizes)] + bytes(10), "what cannot travel took a head"

    def test_a_publisher_sends_what_has_its_head_already(self) -> None:
        provider, receiver = self._open(), self._open()
        inbox, topic, head = self._inbox(receiver), self._name(), numbered(1)[0]
        publish = provider.publisher((topic,), None, lambda size: head + bytes(size), len(head))
        receiver.bind(inbox, topic, exact=True)
        for size in [size for size in SIZES if size + len(head) <= provider.max_message_bytes]:
            self._reached(publish(size), 1)
            assert self._whole(receiver, inbox) == head + bytes(size), f"published {size} bytes"

    def _whole(self, receiver: Provider, queue: str) -> bytes:
        """The next message, with what a publisher's provider may have left beside its head."""
        (message,) = self._messages(receiver, queue, 1)
        return message + beside(message)

    def test_publish_wakes_a_blocked_receive(self) -> None:
        provider, publisher = self._open(), self._open()
        for queue in (self._inbox(provider), self._shared(provider)):
            topic = self._name()
            provider.bind(queue, topic, exact=True)
            task = self._task(provider.receive, queue, None)
            self._let_it_block()
            publisher.publish([topic], b"wake up")
            assert [message for message, _ in task.result()] == [b"wake up"]

    def test_delay_and_ttl_of_publish_are_for_shared_queues(self) -> None:
        provider = self._open()
        shared, topic = self._shared(provider), self._name()
        provider.bind(shared, topic, exact=True)
        began = time.monotonic()
        provider.publish([topic], b"later", delay=2 * self.tick)
        provider.publish([topic], b"expires", ttl=self.tick)
        time.sleep(1.5 * self.tick)
        assert self._messages(provider, shared, 1) == [b"later"]
        assert time.monotonic() - began >= 0.9 * 2 * self.tick
        assert provider.receive(shared) == []

    def test_a_publisher_waits_for_a_full_receiver_after_it_has_served_the_ready_ones(self) -> None:
        publisher, slow, quick = self._bounded("max_pending"), self._bounded("max_pending"), self._bounded("max_pending")
        topic, slow_inbox, quick_inbox = self._name(), self._inbox(slow), self._inbox(quick)
        slow.bind(slow_inbox, topic, exact=True)
        quick.bind(quick_inbox, topic, exact=True)
        filled = self._fill(publisher, slow_inbox)
        task = self._task(publisher.publish, [topic], FILL, timeout=self.patience)
        assert self._messages(quick, quick_inbox, 1) == [FILL]
        assert not task.ended, "a full receiver was not waited for"
        assert len(self._messages(slow, slow_inbox, filled + 1)) == filled + 1
        self._reached(task.result(), 2)

    def test_a_receiver_that_does_not_keep_up_loses_its_copies_and_delays_nobody(self) -> None:
        publisher, slow, quick = self._bounded("max_pending"), self._bounded("max_pending"), self._bounded("max_pending")
        topic, slow_inbox, quick_inbox = self._name(), self._inbox(slow), self._inbox(quick)
        slow.bind(slow_inbox, topic, exact=True)
        quick.bind(quick_inbox, topic, exact=True)
        filled = self._fill(publisher, slow_inbox)
        self._reached(publisher.publish([topic], FILL, timeout=self.tick), 1)
        began, lost = time.monotonic(), 3
        for _ in range(lost):
            self._reached(publisher.publish([topic], FILL, timeout=self.patience), 1)
        assert time.monotonic() - began < self.patience, "a receiver that is behind was waited for again"
        assert len(self._messages(quick, quick_inbox, lost + 1)) == lost + 1
        counts = [provider.counters().get(slow_inbox, {}).get("dropped") for provider in (slow, publisher)]
        assert lost + 1 in counts or counts == [None, None]
        assert len(self._messages(slow, slow_inbox, filled)) == filled
        assert slow.receive(slow_inbox) == []
        self._reached(publisher.publish([topic], b"caught up"), 2)
        assert self._messages(slow, slow_inbox, 1) == [b"caught up"]

    def test_all_full_receivers_share_one_wait(self) -> None:
        publisher, receiver, topic = self._bounded("max_pending"), self._bounded("max_pending"), self._name()
        count = 30
        for _ in range(count):
            inbox = self._inbox(receiver)
            receiver.bind(inbox, topic, exact=True)
            self._fill(publisher, inbox)
        began, timeout = time.monotonic(), 0.1
        self._reached(publisher.publish([topic], FILL, timeout=timeout), 0)
        assert 0.9 * timeout <= time.monotonic() - began < 20 * timeout < count * timeout

    def test_a_full_shared_queue_is_an_error_after_every_other_copy_is_out(self) -> None:
        publisher, receiver = self._bounded("max_queue_bytes"), self._bounded("max_queue_bytes")
        topic, inbox, shared = self._name(), self._inbox(receiver), self._shared(receiver)
        receiver.bind(shared, topic, exact=True)
        receiver.bind(inbox, topic, exact=True)
        filled = self._fill(publisher, shared)
        with raises(PublishFull) as caught:
            publisher.publish([topic], FILL, timeout=self.tick)
        assert (caught[0].accepted, caught[0].groups) == (1, (shared,))
        assert self._messages(receiver, inbox, 1) == [FILL]
        assert len(self._messages(receiver, shared, filled)) == filled
        self._reached(publisher.publish([topic], b"room again"), 2)

    def test_nobody_waits_for_itself(self) -> None:
        provider = self._bounded("max_pending")
        inbox, topic = self._inbox(provider), self._name()
        provider.bind(inbox, topic, exact=True)
        count = 3 * self._limit // len(FILL)
        for _ in range(count):
            self._reached(self._task(provider.publish, [topic], FILL, timeout=self.patience).result(), 1)
        assert len(self._messages(provider, inbox, count)) == count
