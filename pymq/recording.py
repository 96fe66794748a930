"""A bus for tests: remembers what was published and what went wrong, and can be waited for."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from unittest.mock import patch

from pymq.bus import SHUTDOWN_SECONDS, EventBus
from pymq.exceptions import NotInitialized
from pymq.provider import Config
from pymq.subscriptions import Coroutines, Pooled

LOOK_SECONDS = 0.002


class Published(NamedTuple):
    """An event that was published: `channel` where one was given, `headers` or None."""

    event: Any
    channel: str | None
    headers: dict[str, Any] | None


class RecordingBus(EventBus):
    """An `EventBus` that a test can question. `recorded` is everything published through it, in order; `errors` is what its handlers
    raised, and whatever else pymq logs as an error: what is left there at the test's end fails it.
    """

    def __init__(self, config: Config) -> None:
        self.recorded: list[Published] = []
        self.errors: list[BaseException] = []
        super().__init__(config)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block `errors` gets what is logged: also where the program has shut the bus down, or turned logging off."""
        logger = logging.getLogger("pymq")
        is_enabled_for, handle = logger.isEnabledFor, logger.handle

        def hear(record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                error = record.exc_info[1] if record.exc_info else None
                self.errors.append(error or RuntimeError(record.getMessage()))
            if is_enabled_for(record.levelno):
                handle(record)

        # a logging.Handler would hear nothing behind `logging.disable`, a level, or a dictConfig that disables existing loggers
        is_heard = patch.object(logger, "isEnabledFor", lambda level: level >= logging.ERROR or is_enabled_for(level))
        with is_heard, patch.object(logger, "handle", hear):
            yield

    def shutdown(self, timeout: float = SHUTDOWN_SECONDS) -> None:
        """As `EventBus.shutdown`; nothing is left at the provider."""
        self._delete_queues()
        super().shutdown(timeout)

    def _delete_queues(self) -> None:
        with suppress(NotInitialized):
            queues = self.provider.queues("")
            for member in self._members:
                member.leave()
            for queue in queues:
                self.provider.delete(queue)

    def publish(
        self,
        event: Any,
        channel: str | None = None,
        headers: dict[str, Any] | None = None,
        delay: float = 0,
        ttl: float | None = None,
    ) -> int | None:
        """As `EventBus.publish`, and recorded, unless that raises."""
        entry = Published(event, channel, headers)
        self.recorded.append(entry)  # before its handlers can publish in turn
        try:
            return super().publish(event, channel, headers, delay, ttl)
        except BaseException:
            self.recorded[:] = [each for each in self.recorded if each is not entry]
            raise

    def assert_published(self, what: type | str, **attributes: Any) -> Any:
        """The first event of that class, or on that channel, whose attributes have these values. Waits for the handlers that may still
        publish it; raises AssertionError, with what was published instead.
        """
        found = self._find(what, attributes)
        if not found:
            self.drain()
            found = self._find(what, attributes)
        if not found:
            wanted = f"{what if isinstance(what, str) else what.__name__}({', '.join(f'{k}={v!r}' for k, v in attributes.items())})"
            said = "\n".join(f"    {each.event!r}{f' on {each.channel!r}' if each.channel else ''}" for each in self.recorded)
            raise AssertionError(f"{wanted} was not published, but\n{said or '    nothing'}")
        return found[0]

    def _find(self, what: type | str, attributes: dict[str, Any]) -> list[Any]:
        of_kind = [
            each.event for each in self.recorded if (each.channel == what if isinstance(what, str) else isinstance(each.event, what))
        ]
        missing = object()
        return [event for event in of_kind if all(getattr(event, name, missing) == value for name, value in attributes.items())]

    def drain(self, timeout: float = 10.0) -> None:
        """Wait until nothing is in flight: every event was handled, those that handlers published and retries of groups included.

        Raises TimeoutError, naming what is, after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            published, are_delayed = len(self.recorded), bool(self._schedule._waiting)
            with self._behind_what_came() as passed:
                is_read = passed.wait(max(0.0, deadline - time.monotonic()))
            # twice: what went from a queue to a member, or back, between two looks of the first was seen by neither
            left = self._in_flight() or self._in_flight() or ([] if is_read else ["the inbox"])
            if not (left or are_delayed) and len(self.recorded) == published:
                return
            if time.monotonic() >= deadline:
                raise TimeoutError(f"still in flight after {timeout} s: {', '.join(left) or 'handlers that publish'}")
            time.sleep(LOOK_SECONDS)

    @contextmanager
    def _behind_what_came(self) -> Iterator[threading.Event]:
        """Set when everything that is in the inbox now has been begun: by an event that comes after it all."""
        passed, channel = threading.Event(), f"pymq/drain/{secrets.token_hex(8)}"

        def on_passing(event: bool) -> None:
            passed.set()

        self.subscribe(on_passing, channel)
        super().publish(True, channel)
        try:
            yield passed
        finally:
            with suppress(ValueError):  # shut down meanwhile
                self.unsubscribe(on_passing, channel)

    def _in_flight(self) -> list[str]:
        names = [f"the handler {name}" for name in self.loop._names]
        for subscription in self.subscriptions.all():
            waits = isinstance(subscription, Pooled | Coroutines) and subscription._bytes
            if waits or subscription.serial.owner is not None or subscription.serial.backlog:
                names.append(f"the handler {subscription.name}")
        if self._schedule._waiting:
            names.append("delayed events")
        queues = {queue for queue, counts in self.provider.counters().items() if counts.get("waiting", 0) + counts.get("leased", 0)}
        queues |= {receipt.queue for receipt in list(self.leases._held)}  # a provider need not count
        queues |= {member._queue for member in self._members if self.provider.size(member._queue)}
        return names + [f"the group {queue[6:].partition(chr(0))[0]!r}" for queue in sorted(queues) if queue.startswith("group/")]

    def raise_errors(self, timeout: float) -> None:
        """Raise what handlers raised, when they have ended, or after so many seconds. Several: the first, which names the others."""
        try:
            self.drain(timeout)
        except (TimeoutError, NotInitialized):
            pass  # a handler that still runs, as a test may want, has not failed; and none runs where the test has shut the bus down
        if self.errors:
            first, *others = self.errors
            more = "".join(f"\n  and {type(error).__name__}: {error}" for error in others)
            raise AssertionError(f"a handler failed: {type(first).__name__}: {first}{more}") from first
