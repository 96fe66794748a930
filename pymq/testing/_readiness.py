"""What an event loop waits on, where the provider has it."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from unittest import SkipTest

from pymq.exceptions import QueueNotFound
from pymq.provider.base import LATER, Provider, Readiness, WouldWait
from pymq.testing._helpers import FILL, raises
from pymq.testing._suite import Suite


class Ready(Suite):
    """Of the suite."""

    def test_an_event_loop_is_told_what_comes(self) -> None:
        sender, receiver = self._open(), self._open()
        topic = self._name()
        for queue in (self._inbox(receiver), self._shared(receiver)):
            receiver.bind(queue, topic, exact=True)
            readiness = self._readiness(receiver, queue)
            for message in (b"sent", bytes(100_000)):
                assert self._as_a_loop(receiver, queue, readiness, lambda: sender.send(queue, message)) == [message]  # noqa: B023
                assert self._as_a_loop(receiver, queue, readiness, lambda: sender.publish([topic], message)) == [message]  # noqa: B023

    def test_an_event_loop_is_told_what_was_there_before(self) -> None:
        provider = self._open()
        for queue in (self._inbox(provider), self._shared(provider)):
            provider.send(queue, b"before")
            readiness = self._readiness(provider, queue)
            assert self._is_told(readiness, readiness.arm(), self.patience)
            assert self._messages(provider, queue, 1) == [b"before"]

    def test_an_event_loop_is_told_what_is_due(self) -> None:
        provider = self._open()
        queue = self._shared(provider)
        readiness = self._readiness(provider, queue)
        provider.send(queue, b"delayed", delay=2 * self.tick)
        assert self._as_a_loop(provider, queue, readiness) == [b"delayed"]
        provider.send(queue, b"leased")
        self._take(provider, queue, lease=2 * self.tick)
        assert self._as_a_loop(provider, queue, readiness) == [b"leased"]

    def test_an_event_loop_is_told_of_an_end(self) -> None:
        provider, other = self._open(), self._open()
        queue, watched = self._inbox(provider), self._inbox(other)
        readiness = self._readiness(provider, queue)
        assert readiness.watch(watched)
        assert provider.receive(queue, 0, watch=[watched]) == []
        seconds = readiness.arm()
        other.close()
        assert self._is_told(readiness, seconds, self.patience)
        assert provider.receive(queue, None, watch=[watched]) == []
        assert not readiness.watch(watched)

    def test_an_event_loop_is_told_that_its_queue_was_deleted(self) -> None:
        provider, other = self._open(), self._open()
        for queue in (self._inbox(provider), self._shared(provider)):
            readiness = self._readiness(provider, queue)
            assert provider.receive(queue) == []
            seconds = readiness.arm()
            other.delete(queue)
            assert self._is_told(readiness, seconds, self.patience)
            with raises(QueueNotFound):
                provider.receive(queue)

    def test_an_event_loop_is_told_that_a_publish_would_wait(self) -> None:
        publisher, receiver = self._bounded("max_pending"), self._bounded("max_pending")
        inbox, topic = self._inbox(receiver), self._name()
        receiver.bind(inbox, topic, exact=True)
        self._readiness(receiver, inbox)  # which is why the provider has to know LATER
        self._reached(publisher.publish([topic], b"", timeout=LATER), 1)
        filled = self._fill(publisher, inbox)
        with raises(WouldWait) as caught:
            publisher.publish([topic], FILL, timeout=LATER)
        task = self._task(caught[0].finish)
        assert len(self._messages(receiver, inbox, filled + 2)) == filled + 2
        self._reached(task.result(), 1)

    def _readiness(self, provider: Provider, queue: str) -> Readiness:
        readiness = provider.readiness(queue)
        if readiness is None:
            raise SkipTest("only a thread can wait")
        self._cleanup.callback(readiness.close)
        return readiness

    def _as_a_loop(
        self, provider: Provider, queue: str, readiness: Readiness, meanwhile: Callable[[], object] = lambda: None
    ) -> Sequence[bytes]:
        """What is received next by who waits on nothing but the readiness."""
        end = time.monotonic() + self.patience
        while not (found := provider.receive(queue, 0, lease=None)):
            seconds = readiness.arm()
            meanwhile()
            meanwhile = lambda: None  # noqa: E731
            assert self._is_told(readiness, seconds, end - time.monotonic()), "an event loop was not told"
        return [message for message, _ in found]

    def _is_told(self, readiness: Readiness, armed: float | None, seconds: float) -> bool:
        """Whether there is a reason to look within so many seconds: the descriptor, or the time that `arm` has said."""
        poll = select.poll()
        poll.register(readiness.fd, select.POLLIN)
        waits = min(seconds, seconds if armed is None else armed)
        return bool(poll.poll(max(0.0, 1000 * waits))) or (armed is not None and armed <= seconds)
