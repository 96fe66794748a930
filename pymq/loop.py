"""The event loop of a bus that has none around it: where its `async def` handlers and remotes run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any

from pymq.dispatch import SLOW

if TYPE_CHECKING:
    import asyncio


class Loop:
    """The event loop on which a bus runs its `async def` handlers: one thread, started by the first of them; none after `close`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._names: list[str] = []
        self._awaited: set[Future[tuple[Any, BaseException | None]]] = set()
        self._is_inherited = self._is_closed = self._has_ended = False

    def is_run_by(self, thread: threading.Thread) -> bool:
        """Whether it is that thread."""
        return thread is self._thread

    def submit(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run it; its result and its errors are its own affair."""
        self._start(name, coroutine)

    def wait_for(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run it and wait for its result, or for what it raised, in this thread."""
        outcome = self._start(name, coroutine)
        self._awaited.add(outcome)  # and then looks, as the loop's end does the other way round
        if self._has_ended:
            self._let_go()
        try:
            result, error = outcome.result()
        finally:
            self._awaited.discard(outcome)
        if error is not None:
            raise error
        return result

    def _start(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> Future[tuple[Any, BaseException | None]]:
        import asyncio  # 45 ms that `import pymq` need not take

        with self._lock:  # until it is on its way: what comes after the end's look at what runs would be waited for in vain
            if not self._is_closed:
                try:
                    loop = self._running_loop()
                except BaseException:  # no thread to be had
                    coroutine.close()
                    raise
                return asyncio.run_coroutine_threadsafe(self._outcome(name, coroutine), loop)
        coroutine.close()
        ended: Future[tuple[Any, BaseException | None]] = Future()
        ended.set_result((None, _cancelled()))
        return ended

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        import asyncio

        if self._loop is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=self._run, args=(loop,), name=self._name, daemon=True)
            try:
                thread.start()
            except BaseException:  # the system may refuse it
                loop.close()
                raise
            self._loop, self._thread = loop, thread
        return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        import asyncio

        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            self._has_ended = True
            if not self._is_inherited:  # what it waits with is the parent's, too
                loop.call_soon(loop.stop)
                loop.run_forever()  # once more: what was on its way is not begun, and not left lying about
                self._let_go()
                loop.close()

    def _let_go(self) -> None:
        """Nobody else would end the wait for what came too late, or has ignored its cancellation."""
        for outcome in list(self._awaited):
            with suppress(InvalidStateError):  # it has just ended
                outcome.set_result((None, _cancelled()))

    async def _outcome(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
        """The result or what was raised: asyncio ends the whole loop for a SystemExit or KeyboardInterrupt in one task."""
        if self._has_ended:
            coroutine.close()
            return None, _cancelled()
        self._names.append(name)
        try:
            return await coroutine, None
        except BaseException as error:
            return None, error
        finally:
            self._names.remove(name)

    def end_with_the_handler(self) -> None:
        """In a forked child: the thread that has forked ends at the next `await`."""
        self._is_inherited = True
        if self._loop is not None:
            self._loop.stop()

    def close(self, deadline: float, latest: float, end: Callable[[], list[str]]) -> list[str]:
        """Give what runs time to end until the deadline, then cancel it, and wait for that until `latest`; say what was abandoned.

        `end` is called before that: a handler that is cancelled must not be begun again with its next event. What comes later is
        cancelled before it begins: nobody would end a loop that it started.
        """
        with self._lock:
            self._is_closed = True
            loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return []
        finished: Future[list[str]] = Future()
        given_up = threading.Event()

        def finish() -> None:
            if given_up.is_set():
                return
            task = loop.create_task(_finish_tasks(deadline, self._names, end))
            task.add_done_callback(lambda done: finished.set_result(done.result()))

        loop.call_soon_threadsafe(finish)
        try:
            abandoned = finished.result(max(0.0, latest - monotonic()))
        except (FutureTimeout, TimeoutError):  # a handler blocks the loop itself
            given_up.set()
            abandoned = _still_running(self._names)
        loop.call_soon_threadsafe(loop.stop)
        if self._thread is not threading.current_thread():
            self._thread.join(max(0.0, latest - monotonic()))
        return abandoned


COUNTS_CANCELLATIONS = sys.version_info >= (3, 11)
"""Whether a task knows its own cancellation from one inside of what it awaits."""


class Shift:
    """What one task does that runs handlers one after the other. To be made in that task."""

    def __init__(self) -> None:
        import asyncio

        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[Any] = task
        self._is_over = False
        self._context = copy_context()
        self.turn_ends: float = monotonic() + SLOW
        """When to ask whether it `goes_on`, as after each failure: handlers that never wait would keep the loop from all else."""

    async def goes_on(self) -> bool:
        """Let the loop do something else; whether to begin more: not where the task was cancelled, whatever a handler made of it."""
        import asyncio

        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._is_over = True
        self.turn_ends = monotonic() + SLOW
        return not self.is_over()

    def is_clean(self) -> bool:
        """Whether the context is as it was at the beginning: what a handler has set there is not for the next event.

        0.1 us; a task for each event would be 3 us.
        """
        try:
            return copy_context() == self._context
        except Exception:  # of a value that cannot be compared
            return False

    def hand_over(self, submit: Callable[[], None]) -> None:
        """Begin another task in the context of this one's beginning."""
        self._context.run(submit)

    def is_over(self) -> bool:
        """Whether the task was cancelled."""
        return self._is_over or (sys.version_info >= (3, 11) and self._task.cancelling() > 0)

    async def apart(self, handler: Coroutine[Any, Any, Any]) -> None:
        """Await it in a task of its own, where tasks do not count their cancellations."""
        import asyncio

        inner = asyncio.ensure_future(_error_of(handler))
        try:
            await asyncio.wait([inner])
        except asyncio.CancelledError:
            self._is_over = True
            inner.cancel()
            await asyncio.wait([inner])
            raise
        error = inner.result()
        if error is not None:
            raise error


async def _error_of(handler: Coroutine[Any, Any, Any]) -> BaseException | None:
    """What it raised: asyncio ends the whole loop for a SystemExit or KeyboardInterrupt in one task."""
    try:
        await handler
    except BaseException as error:
        return error
    return None


def _cancelled() -> BaseException:
    import asyncio

    return asyncio.CancelledError()


def is_cancelled(error: BaseException) -> bool:
    """Whether it is what ends a cancelled task, or one whose loop is gone. Imports asyncio only where it may be."""
    if isinstance(error, Exception):
        return False
    import asyncio

    return isinstance(error, asyncio.CancelledError | GeneratorExit)


def _still_running(names: list[str]) -> list[str]:
    return [f"the handler {name}, which still ran" for name in names]


async def _finish_tasks(deadline: float, names: list[str], end: Callable[[], list[str]]) -> list[str]:
    import asyncio

    others = asyncio.all_tasks() - {asyncio.current_task()}
    if not others:
        return []
    _, pending = await asyncio.wait(others, timeout=max(0.0, deadline - monotonic()))
    if not pending:
        return []
    abandoned = _still_running(names) + end()
    for task in pending:
        task.cancel()
    await asyncio.wait(pending, timeout=0.2)
    return abandoned
