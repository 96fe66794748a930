"""Opening and closing, declaring and deleting."""

from __future__ import annotations

import time

from pymq.exceptions import LeaseLost, QueueNotFound
from pymq.testing._helpers import raises
from pymq.testing._suite import Suite


class Lifecycle(Suite):
    """Of the suite."""

    def test_close_may_come_twice_and_from_any_thread(self) -> None:
        provider = self._open()
        self._task(provider.close).result()
        provider.close()

    def test_close_ends_every_blocked_receive(self) -> None:
        provider = self._open()
        names = (self._inbox(provider), self._shared(provider))
        tasks = [self._task(provider.receive, name, None) for name in names]
        self._let_it_block()
        provider.close()
        for task in tasks:
            assert task.result() == []

    def test_close_removes_its_temporary_queues_and_no_others(self) -> None:
        provider, other = self._open(), self._open()
        inbox, kept, shared, topic = self._inbox(provider), self._inbox(other), self._shared(provider), self._name()
        for queue in (inbox, shared):
            provider.bind(queue, topic, exact=True)
        provider.close()
        with raises(QueueNotFound):
            other.send(inbox, b"too late")
        self._reached(other.publish([topic], b"for the shared one"), 1)
        assert self._messages(other, shared, 1) == [b"for the shared one"]
        other.send(kept, b"still there")
        assert self._messages(other, kept, 1) == [b"still there"]

    def test_declare_is_idempotent_and_keeps_messages(self) -> None:
        provider, other = self._open(), self._open()
        shared, inbox = self._shared(provider), self._inbox(provider)
        for queue in (shared, inbox):
            other.send(queue, b"kept")
        provider.declare(inbox, temporary=True)
        for member in (provider, other):
            member.declare(shared)
        for queue in (shared, inbox):
            assert self._messages(provider, queue, 1) == [b"kept"]

    def test_a_shared_queue_keeps_messages_while_nobody_is_attached(self) -> None:
        provider = self._open()
        queue = self._shared(provider)
        for message in (b"1", b"2"):
            provider.send(queue, message)
        provider.close()
        assert self._same(self._messages(self._open(), queue, 2), [b"1", b"2"])

    def test_a_bound_queue_collects_while_nobody_is_attached(self) -> None:
        provider = self._open()
        queue, topic = self._shared(provider), self._name()
        provider.bind(queue, topic, exact=True)
        provider.close()
        publisher = self._open()
        self._reached(publisher.publish([topic], b"kept"), 1)
        publisher.close()
        assert self._messages(self._open(), queue, 1) == [b"kept"]

    def test_delete_removes_messages_and_bindings(self) -> None:
        provider, other = self._open(), self._open()
        queue, topic = self._shared(provider), self._name()
        provider.bind(queue, topic, exact=True)
        provider.bind(queue, f"{topic}*", exact=False)
        provider.send(queue, b"gone")
        other.delete(queue)
        assert provider.size(queue) == 0
        with raises(QueueNotFound):
            provider.send(queue, b"nowhere")
        provider.declare(queue)
        self._reached(other.publish([topic], b"not bound any more"), 0)
        assert other.receive(queue) == []

    def test_delete_ignores_what_does_not_exist(self) -> None:
        provider = self._open()
        provider.delete(self._name())
        inbox = self._inbox(provider)
        provider.delete(inbox)
        provider.delete(inbox)

    def test_delete_ends_blocked_receives_with_an_error(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        tasks = [self._task(receiver.receive, queue, None) for receiver in (provider, other)]
        self._let_it_block()
        other.delete(queue)
        for task in tasks:
            with raises(QueueNotFound):
                task.result()

    def test_delete_ends_a_blocked_send_with_an_error(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        provider.send(queue, b"1", maxsize=1)
        task = self._task(provider.send, queue, b"2", maxsize=1)
        self._let_it_block()
        other.delete(queue)
        with raises(QueueNotFound):
            task.result()

    def test_a_receipt_of_a_deleted_queue_settles_nothing(self) -> None:
        provider = self._open()
        queue = self._shared(provider)
        provider.send(queue, b"old")
        receipt = self._take(provider, queue)[1]
        provider.delete(queue)
        provider.declare(queue)
        provider.send(queue, b"new")
        for settle in (provider.ack, provider.nack):
            with raises(LeaseLost, QueueNotFound):
                settle(receipt)
        assert self._messages(provider, queue, 1) == [b"new"]

    def test_an_unknown_queue_is_an_error_and_has_no_size(self) -> None:
        provider = self._open()
        unknown = self._name()
        assert provider.size(unknown) == 0
        with raises(QueueNotFound):
            provider.send(unknown, b"")
        for timeout in (0, 1):
            with raises(QueueNotFound):
                provider.receive(unknown, timeout)

    def test_all_have_the_same_clock(self) -> None:
        first = self._open()
        time.sleep(2 * self.tick)
        second = self._open()
        before, read, after = first.clock(), second.clock(), first.clock()
        assert before - self.tick <= read <= after + self.tick
        time.sleep(self.tick)
        assert second.clock() - read >= 0.9 * self.tick

    def test_its_health_is_told(self) -> None:
        before = time.time()
        health = self._open().health()
        assert (health.state, health.gaps) == ("connected", 0)
        assert before - health.since < 366 * 86400, "a time as time.time() tells it"
        assert health.since <= time.time()
