"""Events as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from pymq.asyncio._threads import resolve
from pymq.message import Message

T = TypeVar("T")

HELD = 1000
"""How many decoded events wait for the loop's body; more wait as bytes, as they do for a slow handler."""


class _Buffer:
    """What has come and was not looked at yet."""

    def __init__(self, hint: Any) -> None:
        self.events: deque[tuple[Any, Message]] = deque()
        self.is_ended = False
        self.entering = asyncio.Lock()
        self._waiting: set[asyncio.Future[None]] = set()
        self._room: asyncio.Future[None] | None = None

        async def handler(event: Any, message: Message) -> None:
            self.events.append((event, message))
            self.wake()
            if len(self.events) >= HELD:
                self._room = asyncio.get_running_loop().create_future()
                await self._room

        handler.__annotations__ = {"event": hint, "message": Message}
        self.handler = handler

    def wake(self) -> None:
        for future in self._waiting:
            resolve(future)

    async def next(self) -> tuple[Any, Message]:
        while not self.events:
            if self.is_ended:
                raise StopAsyncIteration
            changed = asyncio.get_running_loop().create_future()
            self._waiting.add(changed)
            try:
                await changed
            finally:
                self._waiting.discard(changed)
        if self._room is not None and len(self.events) < HELD // 2:
            resolve(self._room)
        return self.events.popleft()

    def end(self) -> None:
        self.is_ended = True
        if self._room is not None:
            resolve(self._room)
        self.wake()


class Events(Generic[T]):
    """`async for event, message in bus.events(OrderPlaced)`: subscribed from the first step on, until the iteration is left.

    `async with bus.events(OrderPlaced) as orders` is subscribed when the block begins, and no more when it ends. A step that is
    cancelled loses nothing: the event comes with the next one. It ends when the bus is shut down. Of several tasks that iterate
    over one, each event goes to one.
    """

    def __init__(
        self,
        hint: Any,
        subscribe: Callable[[Callable[..., Any]], Awaitable[None]],
        unsubscribe: Callable[[Callable[..., Any]], Awaitable[None]],
        let_go: Callable[[Callable[..., Any]], object],
    ) -> None:
        self._hint = hint
        self._buffer = _Buffer(hint)
        self._subscribe = subscribe
        self._unsubscribe = unsubscribe
        self._let_go = let_go
        self._finalizer: Any = None

    async def __aenter__(self) -> Events[T]:
        if self._buffer.is_ended:  # by an earlier block, or by the end of the bus
            self._buffer, finalizer, self._finalizer = _Buffer(self._hint), self._finalizer, None
            if finalizer is not None:
                finalizer.detach()
        async with self._buffer.entering:  # of several tasks, one subscribes; the next, where that one is cancelled
            if self._finalizer is None:
                await self._subscribe(self._buffer.handler)
                self._finalizer = weakref.finalize(self, self._let_go, self._buffer.handler)
                self._finalizer.atexit = False
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Not subscribed any more."""
        if self._finalizer is not None and self._finalizer.detach() and not self._buffer.is_ended:
            self._buffer.end()
            await self._unsubscribe(self._buffer.handler)

    def __aiter__(self) -> Events[T]:
        return self

    async def __anext__(self) -> tuple[T, Message]:
        if self._finalizer is None:
            await self.__aenter__()
        return await self._buffer.next()

    def end(self) -> None:
        """The bus ends: what has come can still be had, and then the iteration ends."""
        self._buffer.end()
