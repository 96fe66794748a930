"""Consumers and requests, wake and watch, namespaces."""

from __future__ import annotations

from queue import Full

from pymq.exceptions import QueueNotFound
from pymq.testing._helpers import FILL, numbered, raises
from pymq.testing._suite import Suite


class Consumers(Suite):
    """Of the suite."""

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
            for message in numbered(waiting):
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
        assert min(firsts.count(inbox) for inbox in inboxes) >= 5, "of equal consumers one comes first again and again"

    def test_the_consumers_of_each_topic_take_turns_by_themselves(self) -> None:
        provider, topics, owners = self._open(), [self._name(), self._name()], [self._open(), self._open()]
        inboxes = {self._inbox(owner): owner for owner in owners}
        replies = self._inbox(provider)
        for inbox, owner in inboxes.items():
            for topic in topics:
                owner.bind(inbox, topic, exact=True)
        firsts = [[provider.consumers(topic)[0] for topic in topics] for _ in range(12)]
        for first in zip(*firsts):
            assert min(map(first.count, inboxes)) >= 3, "calls for one topic have moved the turns of another"

        def ask(topic: str) -> str | None:
            asked = provider.request(topic, b"request", replies)
            assert asked is not None
            assert self._messages(inboxes[asked], asked, 1) == [b"request"]
            return asked

        requested = [[ask(topic) for topic in topics] for _ in range(12)]
        assert all(min(map(asked.count, inboxes)) >= 3 for asked in zip(*requested))

    def test_a_request_reaches_one_consumer_and_says_which(self) -> None:
        provider, topic = self._open(), self._name()
        replies = self._inbox(provider)
        assert provider.request(topic, b"nobody", replies) is None
        owners = [self._open() for _ in range(2)]
        inboxes = [self._inbox(owner) for owner in owners]
        for owner, inbox in zip(owners, inboxes, strict=True):
            owner.bind(inbox, topic, exact=True)
        requests = numbered(12)
        asked = [provider.request(topic, request, replies) for request in requests]
        for owner, inbox in zip(owners, inboxes, strict=True):
            expected = [request for request, name in zip(requests, asked, strict=True) if name == inbox]
            assert len(expected) >= 3, "the work is not spread"
            assert self._messages(owner, inbox, len(expected)) == expected
        owners[0].close()
        assert [provider.request(topic, request, replies) for request in numbered(3)] == [inboxes[1]] * 3

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

    def test_a_reply_is_received_however_it_is_waited_for(self) -> None:
        caller, server = self._open(), self._open()
        replies, requests = self._inbox(caller), self._inbox(server)
        for reply in (b"", b"small", b"large" * 20_000):
            server.reply(replies, reply)
            assert self._task(self._poll, caller, replies).result() == [reply]
            task = self._task(self._messages, caller, replies, 1)
            self._let_it_block()
            server.reply(replies, reply)
            assert task.result() == [reply]
            server.send(replies, b"sent")
            server.reply(replies, reply)
            assert sorted(self._messages(caller, replies, 2)) == sorted([b"sent", reply])
        server.reply(replies, b"last words")
        server.close()
        (received,) = caller.receive(replies, self.patience, watch=[requests])
        assert received[0] == b"last words"
        assert self._task(caller.receive, replies, None, watch=[requests]).result() == []

    def test_a_request_passes_over_the_full_and_waits_for_nobody(self) -> None:
        sender, slow, quick = self._bounded("max_pending"), self._bounded("max_pending"), self._bounded("max_pending")
        topic, slow_inbox, quick_inbox = self._name(), self._inbox(slow), self._inbox(quick)
        replies = self._inbox(sender)
        slow.bind(slow_inbox, topic, exact=True)
        filled = self._fill(sender, slow_inbox)
        with raises(Full):
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
        with raises(QueueNotFound):
            stranger.send(shared, b"not for you")
