"""The conformance suite: what `pymq.provider.base` promises, as tests for any provider.

A provider's whole test::

    class TestMine(ProviderSuite):
        def config(self):
            return MyConfig(namespace=secrets.token_hex(4))

Run it with pytest. The suite asks for what the provider's `Features` declare, and that it says so where it cannot. It also works
without pytest: `setup_method`, one `test_…`, `teardown_method`.
"""

from __future__ import annotations

import dataclasses
import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from queue import Full
from typing import Any, TypeVar
from unittest import SkipTest

from pymq.exceptions import LeaseLost, MessageTooLarge, ProviderError, PublishFull, QueueNotFound
from pymq.provider import Config
from pymq.provider.base import Delivery, Provider, Receipt

T = TypeVar("T")

SIZES = (0, 1, 4095, 4096, 4097, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 1 << 20)
"""Where providers change their ways: nothing, a page and a pipe's atomic write, a pipe, more than that."""

FILL = b"." * 4000
END = b"no more"


class ProviderSuite:
    """Subclass it, say `config`, run it. Attributes and the other hooks are for providers that are far away."""

    scale: float = 1.0
    """How many messages a test moves, relative to a local provider's."""
    patience: float = 20.0
    """Seconds to wait for what has to come: a guard, never what a test that passes waits."""
    tick: float = 0.1
    """The delays, leases and lifetimes in the tests, in seconds."""
    over_delivers: bool = False
    """Whether messages also come to queues that are not bound to them, which the contract allows."""

    def config(self) -> Config:
        """A config with a namespace that nobody else uses; called once for each test, and sent to other processes by pickle."""
        raise NotImplementedError("a subclass of ProviderSuite says which config to test")

    def elsewhere(self) -> Config:
        """The same config with another namespace."""
        return self._with(namespace=f"{getattr(self._config, 'namespace', '')}-elsewhere")

    def setup_method(self) -> None:
        """Before each test."""
        self._cleanup = ExitStack()
        self._config = self.config()

    def teardown_method(self) -> None:
        """After each test: what it has made is deleted and closed."""
        self._cleanup.close()

    # ---- open, close, declare, delete -------------------------------------------------------------------------------------

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
        with _raises(QueueNotFound):
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
        with _raises(QueueNotFound):
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
            with _raises(QueueNotFound):
                task.result()

    def test_delete_ends_a_blocked_send_with_an_error(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        provider.send(queue, b"1", maxsize=1)
        task = self._task(provider.send, queue, b"2", maxsize=1)
        self._let_it_block()
        other.delete(queue)
        with _raises(QueueNotFound):
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
            with _raises(LeaseLost, QueueNotFound):
                settle(receipt)
        assert self._messages(provider, queue, 1) == [b"new"]

    def test_an_unknown_queue_is_an_error_and_has_no_size(self) -> None:
        provider = self._open()
        unknown = self._name()
        assert provider.size(unknown) == 0
        with _raises(QueueNotFound):
            provider.send(unknown, b"")
        for timeout in (0, 1):
            with _raises(QueueNotFound):
                provider.receive(unknown, timeout)

    # ---- send and receive -------------------------------------------------------------------------------------------------

    def test_first_in_first_out(self) -> None:
        sender, receiver = self._open(), self._open()
        messages = _numbered(self._many(1000))
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
            tasks = [self._task(_publish_all, self._open(), topic, _numbered(count, prefix)) for prefix in (b"a", b"b", b"c")]
            received = self._messages(receiver, queue, 3 * count)
            for task in tasks:
                task.result()
            for prefix in (b"a", b"b", b"c"):
                assert self._same([message for message in received if message.startswith(prefix)], _numbered(count, prefix))
            receiver.unbind(queue, topic, exact=True)

    def test_a_temporary_queue_returns_all_that_has_come(self) -> None:
        sender, receiver = self._open(), self._open()
        inbox, messages = self._inbox(receiver), _numbered(20)
        for message in messages:
            sender.send(inbox, message)
        if receiver.features.waits_on_io:
            return  # what was sent may still be on its way
        assert receiver.receive(inbox) == [(message, None) for message in messages]

    def test_a_shared_queue_returns_at_most_limit(self) -> None:
        provider = self._open()
        queue, messages = self._shared(provider), _numbered(7)
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
            with _raises(MessageTooLarge):
                provider.send(queue, message)
        with _raises(MessageTooLarge):
            provider.publish([topic], message)
        assert (provider.receive(shared), provider.receive(inbox)) == ([], [])

    # ---- maxsize, delay, ttl, priority ------------------------------------------------------------------------------------

    def test_a_full_queue_refuses_after_its_timeout(self) -> None:
        provider = self._bounding()
        queue = self._shared(provider)
        for message in (b"1", b"2"):
            provider.send(queue, message, maxsize=2, timeout=0)
        began = time.monotonic()
        for timeout in (0, self.tick):
            with _raises(Full):
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
        with _raises(Full):
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
        tasks = [self._task(_put_until_full, self._open(), queue, maxsize) for _ in range(senders)]
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
            with _raises(ValueError, ProviderError, naming=str(priority)):
                provider.send(queue, b"", priority=priority)
        with _raises(ValueError, ProviderError, naming="delay"):
            provider.send(queue, b"", delay=2 * provider.features.max_delay)
        assert provider.size(queue) == 0

    # ---- leases -----------------------------------------------------------------------------------------------------------

    def test_a_leased_message_is_invisible_until_acked(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        provider.send(queue, b"mine")
        message, receipt = self._take(provider, queue, lease=2 * self.tick)
        assert (message, receipt.queue, receipt.attempt) == (b"mine", queue, 1)
        assert other.receive(queue) == provider.receive(queue) == []
        assert provider.size(queue) == 0
        provider.ack(receipt)
        assert other.receive(queue, 3 * self.tick) == []

    def test_it_comes_again_when_the_lease_ends(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        provider.send(queue, b"again")
        began = time.monotonic()
        self._take(provider, queue, lease=2 * self.tick)
        message, receipt = self._take(other, queue)
        assert (message, receipt.attempt) == (b"again", 2)
        assert time.monotonic() - began >= 0.9 * 2 * self.tick
        other.ack(receipt)
        assert provider.receive(queue) == []

    def test_a_blocked_receive_gets_what_is_leased_and_lost_meanwhile(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        task = self._task(other.receive, queue, None)
        self._let_it_block()
        provider.send(queue, b"whose")
        provider.receive(queue, 0, lease=self.tick)  # one of the two is the first
        assert [message for message, _ in task.result()] == [b"whose"]

    def test_a_late_receipt_settles_nothing_and_touches_nobody_elses(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        provider.send(queue, b"contested")
        late = self._take(provider, queue, lease=self.tick)[1]
        valid = self._take(other, queue)[1]
        for settle in (provider.ack, provider.nack, lambda receipt: provider.extend(receipt, self.patience)):
            with _raises(LeaseLost):
                settle(late)
        assert provider.receive(queue) == []
        other.nack(valid)
        assert self._take(provider, queue)[1].attempt == 3

    def test_a_late_ack_that_nobody_contests_tells_the_truth(self) -> None:
        provider = self._open()
        queue = self._shared(provider)
        provider.send(queue, b"late")
        late = self._take(provider, queue, lease=self.tick)[1]
        time.sleep(2 * self.tick)
        try:
            provider.ack(late)
        except LeaseLost:
            assert self._messages(provider, queue, 1) == [b"late"]
        assert provider.receive(queue, self.tick) == []

    def test_a_settled_receipt_is_spent(self) -> None:
        provider = self._open()
        queue = self._shared(provider)
        provider.send(queue, b"once")
        receipt = self._take(provider, queue)[1]
        provider.nack(receipt)
        with _raises(LeaseLost):
            provider.ack(receipt)
        again = self._take(provider, queue)[1]
        assert again.attempt == 2
        provider.ack(again)
        with _raises(LeaseLost):
            provider.nack(again)
        assert provider.receive(queue) == []

    def test_extend_moves_the_end_of_the_lease(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        for message in (b"longer", b"shorter"):
            provider.send(queue, message)
            receipt = self._take(provider, queue, lease=3 * self.tick if message == b"longer" else 50 * self.patience)[1]
            provider.extend(receipt, 50 * self.patience if message == b"longer" else self.tick)
            if message == b"longer":
                assert other.receive(queue, 4 * self.tick) == []
                provider.ack(receipt)
            else:
                assert self._messages(other, queue, 1) == [message]

    def test_nack_returns_it_at_once(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        provider.send(queue, b"returned")
        receipt = self._take(provider, queue)[1]
        task = self._task(other.receive, queue, None)
        self._let_it_block()
        provider.nack(receipt)
        message, again = self._leased(task.result())
        assert (message, again.attempt) == (b"returned", 2)

    def test_nack_returns_it_after_its_delay(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        provider.send(queue, b"later")
        receipt = self._take(provider, queue)[1]
        began = time.monotonic()
        provider.nack(receipt, 2 * self.tick)
        assert other.receive(queue) == []
        assert other.size(queue) == 1
        assert self._take(other, queue)[1].attempt == 2
        assert time.monotonic() - began >= 0.9 * 2 * self.tick

    def test_what_was_returned_comes_before_what_is_younger(self) -> None:
        provider = self._open()
        if not provider.features.ordered:
            raise SkipTest("not ordered")
        queue = self._shared(provider)
        for message in (b"old", b"young"):
            provider.send(queue, message)
        provider.nack(self._take(provider, queue)[1])
        assert self._messages(provider, queue, 2) == [b"old", b"young"]

    def test_without_a_lease_it_is_removed(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        provider.send(queue, b"gone")
        assert provider.receive(queue, self.patience, lease=None) == [(b"gone", None)]
        assert other.receive(queue, self.tick) == []

    def test_each_message_goes_to_one_of_many_receivers(self) -> None:
        sender = self._open()
        queue, messages = self._shared(sender), _numbered(self._many(500))
        tasks = [self._task(_consume, self._open(), queue, lease) for lease in (30.0, None, 30.0, None)]
        for message in messages:
            sender.send(queue, message)
        for _ in tasks:
            sender.send(queue, END)
        received = [message for task in tasks for message in task.result()]
        assert sorted(received + self._rest(sender, queue)) == messages

    def test_size_counts_what_waits(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        assert provider.size(queue) == 0
        for message in _numbered(3):
            provider.send(queue, message)
        assert provider.size(queue) == other.size(queue) == 3
        receipt = self._take(provider, queue)[1]
        assert other.size(queue) == 2
        provider.nack(receipt)
        assert other.size(queue) == 3
        provider.ack(self._take(provider, queue)[1])
        assert provider.size(queue) == 2

    def test_counters_agree_with_size(self) -> None:
        provider = self._open()
        queue = self._shared(provider)
        for message in _numbered(3):
            provider.send(queue, message)
        self._take(provider, queue)
        counters = provider.counters().get(queue, {})
        assert counters.get("waiting", 2) == 2
        assert counters.get("leased", 1) == 1

    # ---- bind and publish -------------------------------------------------------------------------------------------------

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

    # ---- receivers that do not keep up ------------------------------------------------------------------------------------

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
        with _raises(PublishFull) as caught:
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

    # ---- consumers, wake, watch, namespaces -------------------------------------------------------------------------------

    def test_consumers_are_the_live_temporary_queues_of_exactly_this_topic(self) -> None:
        provider, other = self._open(), self._open()
        topic = self._name()
        assert list(provider.consumers(topic)) == []
        mine, gone, glob, elsewhere = (self._inbox(owner) for owner in (provider, other, provider, provider))
        shared = self._shared(provider)
        for owner, queue in ((provider, mine), (other, gone), (provider, shared)):
            owner.bind(queue, topic, exact=True)
        provider.bind(glob, f"{topic}*", exact=False)
        provider.bind(elsewhere, self._name(), exact=True)
        assert sorted(provider.consumers(topic)) == sorted([mine, gone])
        other.close()
        assert list(provider.consumers(topic)) == [mine]
        provider.unbind(mine, topic, exact=True)
        assert list(provider.consumers(topic)) == []

    def test_the_consumer_with_the_least_waiting_comes_first(self) -> None:
        provider = self._weighing()
        owners, topic = [self._open() for _ in range(3)], self._name()
        inboxes = [self._inbox(owner) for owner in owners]
        for owner, inbox, waiting in zip(owners, inboxes, (3, 1, 0), strict=True):
            owner.bind(inbox, topic, exact=True)
            for message in _numbered(waiting):
                provider.send(inbox, message)
        for _ in range(4):
            assert list(provider.consumers(topic)) == inboxes[::-1]

    def test_the_consumer_that_is_not_busy_comes_first(self) -> None:
        owners, topic = [self._weighing() for _ in range(3)], self._name()
        inboxes = [self._inbox(owner) for owner in owners]
        for owner, inbox, busy in zip(owners, inboxes, (True, True, False), strict=True):
            owner.bind(inbox, topic, exact=True)
            self._task(owner.receive, inbox, None, busy=busy)
        self._until(lambda: all(owners[0].consumers(topic)[0] == inboxes[2] for _ in range(6)))

    def test_equal_consumers_take_turns(self) -> None:
        provider, topic = self._open(), self._name()
        owners = [self._open() for _ in range(3)]
        inboxes = [self._inbox(owner) for owner in owners]
        for owner, inbox in zip(owners, inboxes, strict=True):
            owner.bind(inbox, topic, exact=True)
        firsts = [provider.consumers(topic)[0] for _ in range(30)]
        assert min(firsts.count(inbox) for inbox in inboxes) >= 5

    def test_a_request_reaches_one_consumer_and_says_which(self) -> None:
        provider, topic = self._open(), self._name()
        replies = self._inbox(provider)
        assert provider.request(topic, b"nobody", replies) is None
        owners = [self._open() for _ in range(2)]
        inboxes = [self._inbox(owner) for owner in owners]
        for owner, inbox in zip(owners, inboxes, strict=True):
            owner.bind(inbox, topic, exact=True)
        requests = _numbered(12)
        asked = [provider.request(topic, request, replies) for request in requests]
        for owner, inbox in zip(owners, inboxes, strict=True):
            expected = [request for request, name in zip(requests, asked, strict=True) if name == inbox]
            assert len(expected) >= 3, "the work is not spread"
            assert self._messages(owner, inbox, len(expected)) == expected
        owners[0].close()
        assert [provider.request(topic, request, replies) for request in _numbered(3)] == [inboxes[1]] * 3

    def test_what_is_received_after_a_request(self) -> None:
        """A reply that comes before, while and after it is waited for; what came before the request; the end of a server."""
        caller, server, topic = self._open(), self._open(), self._name()
        replies, requests = self._inbox(caller), self._inbox(server)
        server.bind(requests, topic, exact=True)

        def ask(message: bytes) -> None:
            assert caller.request(topic, message, replies) == requests
            assert self._messages(server, requests, 1) == [message]

        for size in (0, 10, 100_000):
            ask(b"answer at once")
            server.send(replies, b"a" * size)
            assert self._messages(caller, replies, 1) == [b"a" * size]
            ask(b"answer later")
            task = self._task(self._messages, caller, replies, 1)
            self._let_it_block()
            server.send(replies, b"b" * size)
            assert task.result() == [b"b" * size]
        ask(b"never answer in time")
        assert caller.receive(replies, self.tick, watch=[requests]) == []
        server.send(replies, b"late")
        ask(b"once more")
        server.send(replies, b"in time")
        assert self._messages(caller, replies, 2) == [b"late", b"in time"]
        ask(b"last words")
        server.close()
        assert self._task(caller.receive, replies, None, watch=[requests]).result() == []
        caller.send(replies, b"from another")
        assert self._messages(caller, replies, 1) == [b"from another"]

    def test_a_request_passes_over_the_full_and_waits_for_nobody(self) -> None:
        sender, slow, quick = self._bounded("max_pending"), self._bounded("max_pending"), self._bounded("max_pending")
        topic, slow_inbox, quick_inbox = self._name(), self._inbox(slow), self._inbox(quick)
        replies = self._inbox(sender)
        slow.bind(slow_inbox, topic, exact=True)
        filled = self._fill(sender, slow_inbox)
        with _raises(Full):
            sender.request(topic, FILL, replies)
        quick.bind(quick_inbox, topic, exact=True)
        assert [sender.request(topic, FILL, replies) for _ in range(2)] == [quick_inbox] * 2
        assert len(self._messages(slow, slow_inbox, filled)) == filled
        assert slow.receive(slow_inbox) == []

    def test_wake_ends_every_blocked_receive_and_loses_nothing(self) -> None:
        provider, sender = self._open(), self._open()
        queues = (self._inbox(provider), self._shared(provider))
        tasks = [self._task(provider.receive, queue, None) for queue in queues]
        self._let_it_block()
        provider.wake()
        assert [task.result() for task in tasks] == [[], []]
        for queue in queues:
            sender.send(queue, b"after")
            assert self._messages(provider, queue, 1) == [b"after"]

    def test_a_watching_receive_ends_when_the_watched_queue_does(self) -> None:
        provider, watched = self._open(), self._open()
        owned = self._inbox(watched)
        queues = (self._inbox(provider), self._shared(provider))
        tasks = [self._task(provider.receive, queue, None, watch=[owned]) for queue in queues]
        self._let_it_block()
        assert not any(task.ended for task in tasks)
        watched.close()
        assert [task.result() for task in tasks] == [[], []]

    def test_what_came_before_a_watched_queue_ended_is_received(self) -> None:
        provider, watched = self._open(), self._open()
        owned, inbox = self._inbox(watched), self._inbox(provider)
        watched.send(inbox, b"last words")
        watched.close()
        received = self._task(provider.receive, inbox, None, watch=[owned]).result()
        assert [message for message, _ in received] == [b"last words"]
        assert self._task(provider.receive, inbox, None, watch=[owned]).result() == []
        self._open().send(inbox, b"after that")
        assert self._messages(provider, inbox, 1) == [b"after that"]

    def test_namespaces_do_not_meet(self) -> None:
        provider, stranger = self._open(), self._open(self.elsewhere())
        shared, inbox, topic = self._shared(provider), self._inbox(provider), self._name()
        provider.bind(inbox, topic, exact=True)
        self._reached(stranger.publish([topic], b"not for you"), 0)
        assert provider.receive(inbox, self.tick) == []
        assert list(stranger.consumers(topic)) == []
        with _raises(QueueNotFound):
            stranger.send(shared, b"not for you")

    # ---- other processes --------------------------------------------------------------------------------------------------

    def test_messages_of_another_process_arrive(self) -> None:
        provider, other = self._open(), self._process()
        shared, inbox, topic = self._shared(provider), self._inbox(provider), self._name()
        provider.bind(inbox, topic, exact=True)
        for queue in (shared, inbox):
            other.call(_send_all, queue, [b"sent", bytes(100_000)])
            assert self._same(self._messages(provider, queue, 2), [b"sent", bytes(100_000)])
        self._reached(other.call(_publish, [topic], b"published"), 1)
        assert self._messages(provider, inbox, 1) == [b"published"]

    def test_a_binding_of_another_process_is_in_force_when_it_returns(self) -> None:
        provider, other = self._open(), self._process()
        for _ in range(self._many(20)):
            inbox, topic = self._name(), self._name()
            other.call(_bind_inbox, inbox, topic)
            self._reached(provider.publish([topic], b"at once"), 1)
            assert other.call(_receive, inbox, self.patience) == [(b"at once", 0)]

    def test_a_blocked_receive_of_another_process_is_woken(self) -> None:
        provider, other = self._open(), self._process()
        queue = self._shared(provider)
        other.begin(_receive, queue, self.patience)
        self._let_it_block()
        provider.send(queue, b"wake up")
        assert other.result() == [(b"wake up", 1)]

    def test_a_killed_process_is_no_receiver(self) -> None:
        provider, other = self._open(), self._process()
        inbox, topic = self._name(), self._name()
        other.call(_bind_inbox, inbox, topic)
        assert list(provider.consumers(topic)) == [inbox]
        own = self._inbox(provider)
        task = self._task(provider.receive, own, None, watch=[inbox])
        self._let_it_block()
        assert not task.ended
        other.kill()
        assert task.result(self._after_death()) == []
        self._until(lambda: not list(provider.consumers(topic)), self._after_death())
        self._reached(provider.publish([topic], b"nobody"), 0)
        with _raises(QueueNotFound):
            provider.send(inbox, b"nobody")

    def test_what_a_killed_process_has_leased_comes_again(self) -> None:
        provider, other = self._open(), self._process()
        queue = self._shared(provider)
        for message in (b"waited for", b"asked for later"):
            provider.send(queue, message)
            assert other.call(_receive, queue, self.patience, 1e6) == [(message, 1)]
            assert provider.receive(queue) == []
            if message == b"waited for":
                task = self._task(provider.receive, queue, self._after_death())
                self._let_it_block()
                other.kill()
            else:
                other.kill()
                task = self._task(provider.receive, queue, self._after_death())
            again, receipt = self._leased(task.result(2 * self._after_death()))
            assert (again, receipt.attempt) == (message, 2)
            provider.ack(receipt)
            other = self._process()

    def test_a_shared_queue_outlives_the_process_that_filled_it(self) -> None:
        queue, messages = self._name(), _numbered(self._many(100))
        for end in (_Process.close, _Process.kill):
            other = self._process()
            other.call(_declare, queue)
            other.call(_send_all, queue, messages)
            end(other)
            provider = self._open()
            assert self._same(self._messages(provider, queue, len(messages)), messages)
            provider.delete(queue)
            provider.close()

    def test_many_processes_share_a_queue(self) -> None:
        provider, count = self._open(), self._many(1000)
        queue = self._shared(provider)
        producers = {prefix: self._process() for prefix in (b"a", b"b")}
        consumers = [self._process() for _ in range(2)]
        for prefix, producer in producers.items():
            producer.begin(_send_all, queue, _numbered(count, prefix))
        for consumer, lease in zip(consumers, (30.0, None), strict=True):
            consumer.begin(_consume, queue, lease)
        for producer in producers.values():
            producer.result(10 * self.patience)
        for _ in consumers:
            provider.send(queue, END)
        received = [message for consumer in consumers for message in consumer.result(10 * self.patience)]
        assert sorted(received + self._rest(provider, queue)) == sorted(_numbered(count, b"a") + _numbered(count, b"b"))

    # ---- what the tests are written with ----------------------------------------------------------------------------------

    def _with(self, **changes: Any) -> Config:
        """The config with these fields, or no test where it has no such fields."""
        names = {field.name for field in dataclasses.fields(self._config)}  # type: ignore[arg-type]
        if not changes.keys() <= names:
            raise SkipTest(f"{type(self._config).__name__} has no {', '.join(changes.keys() - names)}")
        return dataclasses.replace(self._config, **changes)  # type: ignore[type-var]

    def _open(self, config: Config | None = None) -> Provider:
        provider = (config or self._config).create()
        provider.open()
        self._cleanup.callback(provider.close)
        return provider

    _limit = 256 << 10

    def _bounded(self, field: str) -> Provider:
        """A provider that soon has no room."""
        return self._open(self._with(**{field: self._limit}))

    def _bounding(self) -> Provider:
        """A provider that respects maxsize."""
        provider = self._open()
        if not provider.features.exactly_bound:
            raise SkipTest("maxsize is not exact")
        return provider

    def _weighing(self) -> Provider:
        """A provider that knows which consumers are busy."""
        provider = self._open()
        if not provider.features.weighs_consumers:
            raise SkipTest("consumers only take turns")
        return provider

    def _process(self) -> _Process:
        provider = self._config.create()
        if not provider.features.cross_process:
            raise SkipTest("not for several processes")
        process = _Process(self._config, self.patience)
        self._cleanup.callback(process.kill)
        return process

    def _task(self, function: Callable[..., Any], *args: Any, **options: Any) -> _Task:
        return _Task(self.patience, function, args, options)

    def _name(self) -> str:
        return f"suite-{secrets.token_hex(8)}"

    def _shared(self, provider: Provider) -> str:
        name = self._name()
        provider.declare(name)
        self._cleanup.callback(self._delete, name)
        return name

    def _delete(self, queue: str) -> None:
        provider = self._config.create()
        provider.open()
        provider.delete(queue)
        provider.close()

    def _inbox(self, provider: Provider) -> str:
        name = self._name()
        provider.declare(name, temporary=True)
        return name

    def _many(self, count: int) -> int:
        return max(3, int(count * self.scale))

    def _after_death(self) -> float:
        return max(20 * self._config.create().features.death_seconds, self.tick)

    def _take(self, provider: Provider, queue: str, lease: float = 1000.0) -> tuple[bytes, Receipt]:
        """One message under a lease."""
        return self._leased(provider.receive(queue, self.patience, lease=lease))

    def _leased(self, received: list[Delivery]) -> tuple[bytes, Receipt]:
        assert len(received) == 1, f"{len(received)} messages came in the place of one"
        message, receipt = received[0]
        assert receipt is not None, "a leased message has no receipt"
        return message, receipt

    def _collect(self, provider: Provider, queue: str, count: int, limit: int = 1) -> list[Delivery]:
        """As many as expected, removed; fewer where they do not come."""
        collected: list[Delivery] = []
        while len(collected) < count and (more := provider.receive(queue, self.patience, limit=limit, lease=None)):
            collected += more
        return collected

    def _messages(self, provider: Provider, queue: str, count: int) -> list[bytes]:
        return [message for message, _ in self._collect(provider, queue, count)]

    def _rest(self, provider: Provider, queue: str) -> list[bytes]:
        """What is left; nothing where the queue is in order."""
        left: list[Delivery] = []
        while more := provider.receive(queue, self.tick, lease=None):
            left += more
        return [message for message, _ in left]

    def _same(self, received: Sequence[bytes], sent: Sequence[bytes]) -> bool:
        """Whether they are equal, in order where the provider keeps it."""
        ordered = self._config.create().features.ordered
        return list(received) == list(sent) if ordered else sorted(received) == sorted(sent)

    def _reached(self, count: int | None, expected: int) -> None:
        """What a publish has returned."""
        knows = self._config.create().features.counts_receivers
        assert count == (expected if knows else None), f"publish returned {count} in the place of {expected}"

    def _not_copied(self, publisher: Provider, topics: Sequence[str], provider: Provider, queue: str) -> None:
        """None of the topics reaches the queue."""
        for topic in topics:
            publisher.publish([topic], b"not bound")
        received = provider.receive(queue)
        assert received == [] or self.over_delivers, f"{topics} reached a queue that is not bound to them"

    def _fill(self, sender: Provider, queue: str) -> int:
        """Send until there is no room; how many there was room for."""
        for count in range(100 * self._limit // len(FILL)):
            try:
                sender.send(queue, FILL, timeout=0)
            except Full:
                return count
        raise AssertionError(f"{queue} took {100 * self._limit} bytes, with a limit of {self._limit}")

    def _let_it_block(self) -> None:
        """Time for a thread to begin to wait. No event tells when it has; a test that comes too early proves less, and passes."""
        time.sleep(0.05)

    def _until(self, happened: Callable[[], object], seconds: float | None = None) -> None:
        """Wait for what no event tells."""
        guard = time.monotonic() + (self.patience if seconds is None else seconds)
        while not happened():
            assert time.monotonic() < guard, "it did not happen"
            time.sleep(0.01)


@contextmanager
def _raises(*expected: type[Exception], naming: str = "") -> Iterator[list[Any]]:
    """The block has to raise one of these, whose text has to name something; the error is in the list afterwards."""
    caught: list[Any] = []
    try:
        yield caught
    except expected as error:
        caught.append(error)
    assert caught, f"no {' or '.join(error.__name__ for error in expected)} was raised"
    assert naming in str(caught[0]), f"{caught[0]!r} does not name {naming}"


class _Task:
    """A call in a thread of its own, that may hang without hanging the test."""

    def __init__(self, patience: float, function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]) -> None:
        self._patience = patience
        self._outcome: Callable[[], Any] = self._hangs
        self._thread = threading.Thread(target=self._run, args=(function, args, options), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., Any], args: Sequence[Any], options: dict[str, Any]) -> None:
        try:
            value = function(*args, **options)
            self._outcome = lambda: value
        except BaseException as error:
            caught = error
            self._outcome = lambda: _reraise(caught)

    def _hangs(self) -> None:
        raise AssertionError("a call did not return")

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def result(self, seconds: float | None = None) -> Any:
        """What the call returned or raised."""
        self._thread.join(self._patience if seconds is None else seconds)
        return self._outcome()


def _reraise(error: BaseException) -> None:
    raise error


STARTING = 60.0
"""How many seconds an interpreter may take to start, on a busy machine: no promise of a provider's."""


class _Process:
    """Another process with a provider of the same config, which calls functions with it as the first argument."""

    def __init__(self, config: Config, patience: float) -> None:
        ours, theirs = socket.socketpair()
        program = f"from pymq.testing import _serve; _serve({theirs.fileno()})"
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", program], pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": paths}
            )
        self._connection = Connection(ours.detach())
        self._patience = patience
        self._connection.send(config)
        try:
            self.result(self._patience + STARTING)
        except BaseException:
            self.kill()
            raise

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """What the function returned there."""
        self.begin(function, *args)
        result: T = self.result()
        return result

    def begin(self, function: Callable[..., Any], *args: Any) -> None:
        """Let it run there; `result` waits for it."""
        self._connection.send((function, args))

    def result(self, seconds: float | None = None) -> Any:
        """What it returned, an AssertionError with the traceback where it raised, or takes too long."""
        assert self._connection.poll(seconds or self._patience), "the other process did not answer"
        failure, value = self._connection.recv()
        assert not failure, f"in the other process: {failure}"
        return value

    def close(self) -> None:
        """Let it close its provider and end."""
        self._connection.close()
        try:
            self._popen.wait(self._patience)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
            raise

    def kill(self) -> None:
        """As `kill -9` does."""
        self._popen.kill()
        self.close()


def _serve(fd: int) -> None:
    """The other process: until the connection ends, with which also a test that was killed ends it."""
    connection = Connection(fd)
    provider: Provider = connection.recv().create()
    provider.open()
    connection.send(("", "open"))
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            provider.close()
            return
        try:
            connection.send(("", function(provider, *args)))
        except Exception:
            connection.send((traceback.format_exc(), None))


def _numbered(count: int, prefix: bytes = b"") -> list[bytes]:
    return [b"%s%06d" % (prefix, number) for number in range(count)]


def _declare(provider: Provider, queue: str) -> None:
    provider.declare(queue)


def _bind_inbox(provider: Provider, inbox: str, topic: str) -> None:
    provider.declare(inbox, temporary=True)
    provider.bind(inbox, topic, exact=True)


def _publish(provider: Provider, topics: list[str], message: bytes) -> int | None:
    return provider.publish(topics, message)


def _publish_all(provider: Provider, topic: str, messages: Sequence[bytes]) -> None:
    for message in messages:
        provider.publish([topic], message)


def _send_all(provider: Provider, queue: str, messages: Sequence[bytes]) -> None:
    for message in messages:
        provider.send(queue, message)


def _receive(provider: Provider, queue: str, timeout: float, lease: float = 30.0) -> list[tuple[bytes, int]]:
    """Messages with their attempts: a receipt does not travel."""
    return [(message, receipt.attempt if receipt else 0) for message, receipt in provider.receive(queue, timeout, lease=lease)]


def _consume(provider: Provider, queue: str, lease: float | None) -> list[bytes]:
    """What came before an END, acknowledged."""
    consumed = []
    while received := provider.receive(queue, 60, lease=lease):
        ((message, receipt),) = received
        if receipt is not None:
            provider.ack(receipt)
        if message == END:
            break
        consumed.append(message)
    return consumed


def _put_until_full(provider: Provider, queue: str, maxsize: int) -> int:
    """How many there was room for."""
    count = 0
    try:
        while True:
            provider.send(queue, b"raced", maxsize=maxsize, timeout=0)
            count += 1
    except Full:
        return count
