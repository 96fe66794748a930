"""Leases: ack, nack, extend, their end, and what is counted."""

from __future__ import annotations

import time
from contextlib import suppress
from unittest import SkipTest

from pymq.exceptions import LeaseLost
from pymq.testing._helpers import END, consume, numbered, raises
from pymq.testing._suite import Suite


class Leases(Suite):
    """Of the suite."""

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
            with raises(LeaseLost):
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
        with raises(LeaseLost):
            provider.ack(receipt)
        again = self._take(provider, queue)[1]
        assert again.attempt == 2
        provider.ack(again)
        with raises(LeaseLost):
            provider.nack(again)
        assert provider.receive(queue) == []

    def test_an_ack_may_bring_the_next(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        for number in range(5):
            provider.send(queue, b"%d" % number)
        received = [self._take(provider, queue)]
        for _ in range(3):
            found = provider.ack_and_receive(received[-1][1], lease=1000.0)
            received.append(self._leased(found or provider.receive(queue, self.patience, lease=1000.0)))
            with suppress(LeaseLost):
                provider.nack(received[-2][1])  # what was not acked comes again
        assert [receipt.attempt for _, receipt in received] == [1, 1, 1, 1]
        messages = [message for message, _ in received]
        assert sorted(messages + self._messages(other, queue, 1)) == [b"0", b"1", b"2", b"3", b"4"]
        provider.nack(received[-1][1])
        assert self._take(other, queue)[1].attempt == 2
        assert other.receive(queue) == []

    def test_a_late_ack_brings_nothing(self) -> None:
        provider, other = self._open(), self._open()
        queue = self._shared(provider)
        provider.send(queue, b"contested")
        late = self._take(provider, queue, lease=self.tick)[1]
        valid = self._take(other, queue)[1]
        provider.send(queue, b"next")
        with raises(LeaseLost):
            provider.ack_and_receive(late)
        assert self._messages(provider, queue, 1) == [b"next"]
        other.ack(valid)
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
        queue, messages = self._shared(sender), numbered(self._many(500))
        tasks = [self._task(consume, self._open(), queue, lease) for lease in (30.0, None, 30.0, None)]
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
        for message in numbered(3):
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
        for message in numbered(3):
            provider.send(queue, message)
        self._take(provider, queue)
        counters = provider.counters().get(queue, {})
        assert counters.get("waiting", 2) == 2
        assert counters.get("leased", 1) == 1
