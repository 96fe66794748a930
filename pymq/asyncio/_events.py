"""Events as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from pymq.message import Message

T = TypeVar("T")

HELD = 1000
"""How many decoded events wait for the loop's body; more wait as bytes, as they do for a slow handler."""


class _Buffer:
    """What has come and was not looked at yet."""

    def __init__(self, hint: Any) -> None:
        self.events: deque[tuple[Any, Message]] = deque()
        self.is_ended = False
        self._changed: asyncio.Future[None] | None = None
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
        _resolve(self._changed)

    async def next(self) -> tuple[Any, Message]:
        while not self.events:
            if self.is_ended:
                raise StopAsyncIteration
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
        if len(self.events) < HELD // 2:
            _resolve(self._room)
        return self.events.popleft()

    def end(self) -> None:
        self.is_ended = True
        _resolve(self._room)
        self.wake()


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class Events(Generic[T]):
    """`async for event, message in bus.events(OrderPlaced)`: subscribed from the first step on, until the iteration is left.

    `async with bus.events(OrderPlaced) as orders` is subscribed when the block begins, and no more when it ends. A step that is
    cancelled loses nothing: the event comes with the next one. It ends when the bus is shut down.
    """

    def __init__(
        self,
        hint: Any,
        subscribe: Callable[[Callable[..., Any]], Awaitable[None]],
        unsubscribe: Callable[[Callable[..., Any]], Awaitable[None]],
        let_go: Callable[[Callable[..., Any]], object],
    ) -> None:
        self._buffer = _Buffer(hint)
        self._subscribe = subscribe
        self._unsubscribe = unsubscribe
        self._let_go = let_go
        self._finalizer: Any = None

    async def __aenter__(self) -> Events[T]:
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
