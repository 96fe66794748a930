"""Queues: sending and receiving; maxsize, delay, time to live, priority."""

from __future__ import annotations

import random
import time
from queue import Full
from unittest import SkipTest

from pymq.exceptions import MessageTooLarge, ProviderError
from pymq.testing._helpers import SIZES, numbered, publish_all, put_until_full, raises
from pymq.testing._suite import Suite


class Queues(Suite):
    """Of the suite."""

    def test_first_in_first_out(self) -> None:
        sender, receiver = self._open(), self._open()
        messages = numbered(self._many(1000))
        for queue in (self._shared(sender), self._inbox(receiver)):
            for message in messages:
                sender.send(queue, message)
            assert self._same(self._messages(receiver, queue, len(messages)), messages)
            assert receiver.receive(queue) == []

    def test_each_senders_order_is_kept(self) -> None:
        receiver = self._open()
        topic, count = self._name(), self._many(300)
        for queue in (self._inbox(receiver), self._shared(receiver)):
            receiver.bind(queue, topic, exact=True)
            tasks = [self._task(publish_all, self._open(), topic, numbered(count, prefix)) for prefix in (b"a", b"b", b"c")]
            received = self._messages(receiver, queue, 3 * count)
            for task in tasks:
                task.result()
            for prefix in (b"a", b"b", b"c"):
                assert self._same([message for message in received if message.startswith(prefix)], numbered(count, prefix))
            receiver.unbind(queue, topic, exact=True)

    def test_a_temporary_queue_returns_all_that_has_come(self) -> None:
        sender, receiver = self._open(), self._open()
        inbox = self._inbox(receiver)
        for count in (5, 20):
            messages = numbered(count)
            for message in messages:
                sender.send(inbox, message)
            if not receiver.features.waits_on_io:  # what was sent may still be on its way
                assert receiver.size(inbox) == count
            assert self._same(self._messages(receiver, inbox, count), messages)
            assert (receiver.size(inbox), receiver.receive(inbox)) == (0, [])

    def test_what_comes_to_a_temporary_queue_has_no_receipt(self) -> None:
        provider = self._open()
        inbox = self._inbox(provider)
        provider.send(inbox, b"m")
        assert provider.receive(inbox, self.patience) == [(b"m", None)]

    def test_a_shared_queue_returns_at_most_limit(self) -> None:
        provider = self._open()
        queue, messages = self._shared(provider), numbered(7)
        for message in messages:
            provider.send(queue, message)
        first = provider.receive(queue, self.patience, limit=3)
        assert 1 <= len(first) <= 3
        assert len(provider.receive(queue, self.patience)) == 1
        rest = self._collect(provider, queue, 6 - len(first), limit=100)
        assert len({message for message, _ in first + rest}) == len(first) + len(rest) == 6

    def test_receive_waits_as_long_as_it_is_told(self) -> None:
        provider = self._open()
        for queue in (self._inbox(provider), self._shared(provider)):
            assert provider.receive(queue) == []
            assert provider.receive(queue, 0) == []
            began = time.monotonic()
            assert provider.receive(queue, self.tick) == []
            assert time.monotonic() - began >= 0.9 * self.tick

    def test_a_blocked_receive_gets_what_is_sent(self) -> None:
        receiver, sender = self._open(), self._open()
        for queue in (self._inbox(receiver), self._shared(receiver)):
            for timeout in (None, self.patience):
                task = self._task(receiver.receive, queue, timeout)
                self._let_it_block()
                sender.send(queue, b"wake up")
                assert [message for message, _ in task.result()] == [b"wake up"]

    def test_any_bytes_of_any_size(self) -> None:
        sender, receiver = self._open(), self._open()
        topic = self._name()
        for queue in (self._shared(sender), self._inbox(receiver)):
            receiver.bind(queue, topic, exact=True)
            for size in (*SIZES, receiver.max_message_bytes):
                if size > receiver.max_message_bytes:
                    continue
                message = random.Random(size).randbytes(size)
                sender.send(queue, message)
                assert self._messages(receiver, queue, 1) == [message], f"sent {size} bytes"
                self._reached(sender.publish([topic], message), 1)
                assert self._messages(receiver, queue, 1) == [message], f"published {size} bytes"
            receiver.unbind(queue, topic, exact=True)

    def test_a_message_that_is_too_large_is_refused_before_anything_is_written(self) -> None:
        provider = self._open()
        shared, inbox, topic = self._shared(provider), self._inbox(provider), self._name()
        provider.bind(inbox, topic, exact=True)
        message = bytes(provider.max_message_bytes + 1)
        for queue in (shared, inbox):
            with raises(MessageTooLarge):
                provider.send(queue, message)
        with raises(MessageTooLarge):
            provider.publish([topic], message)
        assert (provider.receive(shared), provider.receive(inbox)) == ([], [])

    def test_a_full_queue_refuses_after_its_timeout(self) -> None:
        provider = self._bounding()
        queue = self._shared(provider)
        for message in (b"1", b"2"):
            provider.send(queue, message, maxsize=2, timeout=0)
        began = time.monotonic()
        for timeout in (0, self.tick):
            with raises(Full):
                provider.send(queue, b"3", maxsize=2, timeout=timeout)
        assert time.monotonic() - began >= 0.9 * self.tick
        assert provider.size(queue) == 2
        provider.send(queue, b"no bound", maxsize=0, timeout=0)
        assert self._same(self._messages(provider, queue, 3), [b"1", b"2", b"no bound"])

    def test_what_is_leased_does_not_fill_a_queue(self) -> None:
        provider = self._bounding()
        queue = self._shared(provider)
        provider.send(queue, b"leased", maxsize=1, timeout=0)
        self._take(provider, queue)
        provider.send(queue, b"waiting", maxsize=1, timeout=0)
        with raises(Full):
            provider.send(queue, b"too many", maxsize=1, timeout=0)

    def test_a_blocked_send_continues_when_there_is_room(self) -> None:
        sender, receiver = self._bounding(), self._open()
        queue = self._shared(sender)
        sender.send(queue, b"1", maxsize=1)
        for timeout, message in ((None, b"2"), (self.patience, b"3")):
            task = self._task(sender.send, queue, message, maxsize=1, timeout=timeout)
            self._let_it_block()
            assert not task.ended
            assert len(self._messages(receiver, queue, 1)) == 1
            task.result()
        assert self._messages(receiver, queue, 1) == [b"3"]

    def test_racing_senders_do_not_exceed_maxsize(self) -> None:
        provider = self._bounding()
        queue, senders, maxsize = self._shared(provider), 8, 5
        tasks = [self._task(put_until_full, self._open(), queue, maxsize) for _ in range(senders)]
        assert sum(task.result() for task in tasks) == maxsize
        assert provider.size(queue) == maxsize

    def test_a_delayed_message_comes_when_it_is_due(self) -> None:
        provider, sender = self._open(), self._open()
        queue = self._shared(provider)
        began = time.monotonic()
        sender.send(queue, b"later", delay=3 * self.tick)
        sender.send(queue, b"now")
        assert self._messages(provider, queue, 1) == [b"now"]
        assert provider.receive(queue) == []
        assert provider.size(queue) == 1
        assert self._messages(provider, queue, 1) == [b"later"]
        assert time.monotonic() - began >= 0.9 * 3 * self.tick

    def test_a_blocked_receive_gets_a_message_that_is_delayed_meanwhile(self) -> None:
        provider, sender = self._open(), self._open()
        queue = self._shared(provider)
        task = self._task(provider.receive, queue, None)
        self._let_it_block()
        sender.send(queue, b"last", delay=min(1000.0, provider.features.max_delay))
        sender.send(queue, b"soon", delay=self.tick)
        assert [message for message, _ in task.result()] == [b"soon"]

    def test_an_expired_message_is_dropped(self) -> None:
        provider = self._open()
        queue = self._shared(provider)
        provider.send(queue, b"expires", ttl=self.tick)
        provider.send(queue, b"lasts", ttl=50 * self.patience)
        provider.send(queue, b"for ever")
        time.sleep(2 * self.tick)
        assert self._same(self._messages(provider, queue, 2), [b"lasts", b"for ever"])
        assert provider.receive(queue) == []
        assert provider.counters().get(queue, {}).get("expired", 1) == 1

    def test_a_delayed_message_expires_as_well(self) -> None:
        provider = self._open()
        queue = self._shared(provider)
        provider.send(queue, b"expires", delay=self.tick, ttl=2 * self.tick)
        provider.send(queue, b"lasts", delay=self.tick, ttl=50 * self.patience)
        time.sleep(4 * self.tick)
        assert self._messages(provider, queue, 1) == [b"lasts"]
        assert provider.receive(queue) == []

    def test_a_message_that_returns_after_its_ttl_is_dropped(self) -> None:
        provider = self._open()
        queue = self._shared(provider)
        provider.send(queue, b"expires", ttl=3 * self.tick)
        receipt = self._take(provider, queue)[1]
        time.sleep(4 * self.tick)
        provider.nack(receipt)
        assert provider.receive(queue, self.tick) == []

    def test_the_highest_priority_comes_first(self) -> None:
        provider = self._open()
        levels, queue = provider.features.priorities, self._shared(provider)
        if levels == 1:
            raise SkipTest("one level: every message has it")
        sent = [(random.Random(n).randrange(levels), f"{n:03}".encode()) for n in range(self._many(50))]
        for priority, message in sent:
            provider.send(queue, message, priority=priority)
        received = self._messages(provider, queue, len(sent))
        levels_of = {message: priority for priority, message in sent}
        assert [levels_of[message] for message in received] == sorted(levels_of.values(), reverse=True)
        for level in range(levels):
            expected = [message for priority, message in sent if priority == level]
            assert self._same([message for message in received if levels_of[message] == level], expected)

    def test_what_is_beyond_the_features_is_a_clear_error(self) -> None:
        provider = self._open()
        queue = self._shared(provider)
        for priority in (provider.features.priorities, -1):
            with raises(ValueError, ProviderError, naming=str(priority)):
                provider.send(queue, b"", priority=priority)
        with raises(ValueError, ProviderError, naming="delay"):
            provider.send(queue, b"", delay=2 * provider.features.max_delay)
        assert provider.size(queue) == 0
