"""Several processes, some of which are killed."""

from __future__ import annotations

from pymq.exceptions import QueueNotFound
from pymq.testing._helpers import END, Process, bind_inbox, clock, consume, declare, numbered, publish, raises, receive, send_all
from pymq.testing._suite import Suite


class Processes(Suite):
    """Of the suite."""

    def test_messages_of_another_process_arrive(self) -> None:
        provider, other = self._open(), self._process()
        shared, inbox, topic = self._shared(provider), self._inbox(provider), self._name()
        provider.bind(inbox, topic, exact=True)
        for queue in (shared, inbox):
            other.call(send_all, queue, [b"sent", bytes(100_000)])
            assert self._same(self._messages(provider, queue, 2), [b"sent", bytes(100_000)])
        self._reached(other.call(publish, [topic], b"published"), 1)
        assert self._messages(provider, inbox, 1) == [b"published"]

    def test_a_binding_of_another_process_is_in_force_when_it_returns(self) -> None:
        provider, other = self._open(), self._process()
        for _ in range(self._many(20)):
            inbox, topic = self._name(), self._name()
            other.call(bind_inbox, inbox, topic)
            self._reached(provider.publish([topic], b"at once"), 1)
            assert other.call(receive, inbox, self.patience) == [(b"at once", 0)]

    def test_another_process_has_the_same_clock(self) -> None:
        provider, other = self._open(), self._process()
        before, read, after = provider.clock(), other.call(clock), provider.clock()
        assert before - self.tick <= read <= after + self.tick

    def test_a_blocked_receive_of_another_process_is_woken(self) -> None:
        provider, other = self._open(), self._process()
        queue = self._shared(provider)
        other.begin(receive, queue, self.patience)
        self._let_it_block()
        provider.send(queue, b"wake up")
        assert other.result() == [(b"wake up", 1)]

    def test_a_killed_process_is_no_receiver(self) -> None:
        provider, other = self._open(), self._process()
        inbox, topic = self._name(), self._name()
        other.call(bind_inbox, inbox, topic)
        assert list(provider.consumers(topic)) == [inbox]
        own = self._inbox(provider)
        task = self._task(provider.receive, own, None, watch=[inbox])
        self._let_it_block()
        assert not task.ended
        other.kill()
        assert task.result(self._after_death()) == []
        self._until(lambda: not list(provider.consumers(topic)), self._after_death())
        self._reached(provider.publish([topic], b"nobody"), 0)
        with raises(QueueNotFound):
            provider.send(inbox, b"nobody")

    def test_what_a_killed_process_has_leased_comes_again(self) -> None:
        provider, other = self._open(), self._process()
        queue = self._shared(provider)
        for message in (b"waited for", b"asked for later"):
            provider.send(queue, message)
            assert other.call(receive, queue, self.patience, 1e6) == [(message, 1)]
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
        queue, messages = self._name(), numbered(self._many(100))
        for end in (Process.close, Process.kill):
            other = self._process()
            other.call(declare, queue)
            other.call(send_all, queue, messages)
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
            producer.begin(send_all, queue, numbered(count, prefix))
        for consumer, lease in zip(consumers, (30.0, None), strict=True):
            consumer.begin(consume, queue, lease)
        for producer in producers.values():
            producer.result(10 * self.patience)
        for _ in consumers:
            provider.send(queue, END)
        received = [message for consumer in consumers for message in consumer.result(10 * self.patience)]
        assert sorted(received + self._rest(provider, queue)) == sorted(numbered(count, b"a") + numbered(count, b"b"))
