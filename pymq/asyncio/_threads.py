"""Threads that wait for loops, where a provider has nothing that a loop could wait on."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SLICE = 1.0
"""For how many seconds a thread waits before it looks whether anybody still wants what it waits for."""

GRACE = 0.2
"""How much longer than asked for is waited for a thread to find nothing: one that is left alone takes an item, and gives it back."""


async def in_thread(loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor | None, call: Callable[[], T]) -> T:
    """The result of the call, made by a thread of the pool, or by one that lives as long as the call."""
    if pool is not None:
        return await loop.run_in_executor(pool, call)
    outcome: Future[T] = Future()
    threading.Thread(target=_run, args=(outcome, call), name="pymq-asyncio", daemon=True).start()
    return await asyncio.wrap_future(outcome, loop=loop)


def _run(outcome: Future[T], call: Callable[[], T]) -> None:
    if not outcome.set_running_or_notify_cancel():
        return
    try:
        outcome.set_result(call())
    except BaseException as error:
        outcome.set_exception(error)


class _Fetch(Generic[T]):
    """A thread's attempts, and who awaits their result: nobody, where that one was cancelled."""

    def __init__(self, attempt: Callable[[float], T], future: asyncio.Future[T], end: float) -> None:
        self.attempt = attempt
        self.future: asyncio.Future[T] | None = future
        self.end = end
        self.is_over = False


class Fetches:
    """Receives in threads for those who await.

    A thread whose waiter was cancelled cannot be called back: it works for the next who wants the same, and when there is none in
    time, what it gets is given back. So a program that awaits with short time limits does not take its own items away.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, post: Callable[[Callable[[], object]], None], spawn: Callable[..., None]
    ) -> None:
        self._loop = loop
        self._post = post
        self._spawn = spawn
        self._mutex = threading.Lock()
        self._orphans: dict[Hashable, list[_Fetch[Any]]] = {}
        self._waiting: set[asyncio.Future[Any]] = set()
        self._closed = False

    async def fetch(self, key: Hashable, attempt: Callable[[float], T], deadline: float, give_back: Callable[[T], object]) -> T:
        """The first result of `attempt(seconds)` that is not Empty. Those of one `key` are alike. Raises Empty at the deadline."""
        future: asyncio.Future[T] = self._loop.create_future()
        seconds = max(0.0, deadline - self._loop.time())
        end = monotonic() + seconds
        fetch = self._adopt(key, future, end) if seconds else None
        if fetch is None:
            fetch = _Fetch(attempt, future, end)
            self._spawn("pymq-asyncio-wait", self._work, key, fetch, give_back)
        timer = self._loop.call_at(deadline + GRACE, fail, future, Empty()) if 0 < seconds < math.inf else None
        self._waiting.add(future)
        try:
            return await future
        except BaseException:
            self._abandon(key, fetch)
            if not future.cancelled() and future.exception() is None:  # it had come, and then its waiter was cancelled
                self._post(lambda: give_back(future.result()))
            raise
        finally:
            self._waiting.discard(future)
            if timer is not None:
                timer.cancel()

    def _adopt(self, key: Hashable, future: asyncio.Future[T], end: float) -> _Fetch[T] | None:
        with self._mutex:
            orphans = self._orphans.get(key)
            if not orphans:
                return None
            fetch = orphans.pop()
            fetch.future, fetch.end = future, end
            return fetch

    def _abandon(self, key: Hashable, fetch: _Fetch[Any]) -> None:
        with self._mutex:
            if not fetch.is_over:
                fetch.future = None
                self._orphans.setdefault(key, []).append(fetch)

    def _work(self, key: Hashable, fetch: _Fetch[T], give_back: Callable[[T], object]) -> None:
        while True:
            result, error = [], None
            try:
                result.append(fetch.attempt(min(SLICE, max(0.0, fetch.end - monotonic()))))
            except Exception as raised:
                error = raised
            with self._mutex:
                future = fetch.future
                if isinstance(error, Empty) and future is not None and monotonic() < fetch.end and not self._closed:
                    continue
                fetch.is_over = True
                if future is None:
                    self._orphans[key].remove(fetch)
                    if not self._orphans[key]:
                        del self._orphans[key]
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._arrive, future, result, error, give_back)
            return

    def _arrive(
        self, future: asyncio.Future[T] | None, result: list[T], error: Exception | None, give_back: Callable[[T], object]
    ) -> None:
        if future is not None and not future.done():
            if error is None:
                future.set_result(result[0])
            else:
                future.set_exception(error)
        elif result:
            self._post(lambda: give_back(result[0]))

    def close(self, error: Exception) -> None:
        """Whoever waits gets the error."""
        self._closed = True
        for future in self._waiting:
            fail(future, error)


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    """An exception for whoever waits, if anybody still does."""
    if not (future.done() or future.get_loop().is_closed()):
        future.set_exception(error)


def resolve(future: asyncio.Future[None]) -> None:
    """Wake whoever waits, if anybody still does."""
    if not (future.done() or future.get_loop().is_closed()):
        future.set_result(None)
