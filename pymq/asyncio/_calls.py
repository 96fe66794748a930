"""Remote calls from a loop: all calls of a bus share one reply queue."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Generator, Sequence
from operator import itemgetter
from queue import Full
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from pymq.asyncio._port import Inflow, Port, send_patiently
from pymq.asyncio._threads import fail, resolve
from pymq.calls import pack_call
from pymq.exceptions import NoSuchRemoteError, NotInitialized, RpcException, RpcTimeout
from pymq.provider.base import Delivery, Provider
from pymq.remotes import DEADLINE, NEVER, SEQUENCE
from pymq.rpc import _START, Caller, ReplyQueue, RpcResponse, StubMethod, died

if TYPE_CHECKING:
    from pymq.asyncio._core import Core

log = logging.getLogger("pymq")
P = ParamSpec("P")
R = TypeVar("R")

_SHUT_DOWN = "the bus was shut down"


class Call:
    """One call: who was asked and has not answered yet, and the answers that nobody has looked at yet."""

    def __init__(self, caller: LoopCaller, stub: StubMethod[..., Any]) -> None:
        self.stub = stub
        self.pending: dict[int, str] = {}
        self.results: dict[int, Any] = {}
        self._caller = caller
        self._answers: deque[Any] = deque()
        self._waiting: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_late = False

    async def begin(self, data: bytes) -> None:
        """Ask. Raises NoSuchRemoteError where nobody serves the name and not all were asked for."""
        port = self._caller.port
        if self.stub.timeout is not None:
            self._timer = port.loop.call_later(self.stub.timeout, self.expire)
        await self._caller.ask(self, data)
        if self._is_late:
            self.expire()
        if not self.pending and not self.results and not self.stub.multi:
            raise NoSuchRemoteError(f"nobody serves {self.stub.name!r}")

    def answer(self, request: int, result: Any) -> None:
        """One of those who were asked has answered, or never will."""
        del self.pending[request]
        self.results[request] = result
        self._answers.append(result)
        for future in self._waiting:
            resolve(future)

    def expire(self) -> None:
        """It has taken too long."""
        self._is_late = True
        for request in list(self.pending):
            self._caller.forget(request)
            self.answer(request, RpcTimeout(f"no reply from {self.stub.name!r} within {self.stub.timeout} s"))

    def fail(self, error: Exception) -> None:
        """The bus was shut down."""
        for future in self._waiting:
            fail(future, error)

    async def next(self) -> Any:
        """The next answer. Raises StopAsyncIteration when all have answered."""
        while not self._answers:
            if not self.pending:
                raise StopAsyncIteration
            changed = self._caller.port.loop.create_future()
            self._waiting.add(changed)
            try:
                await changed
            finally:
                self._waiting.discard(changed)
        return self._answers.popleft()

    def end(self) -> None:
        """Nobody waits for answers any more."""
        if self._timer is not None:
            self._timer.cancel()
        for request in self.pending:
            self._caller.forget(request)
        self.pending.clear()


class LoopCaller(Caller):
    """Makes the calls of one bus from its loop."""

    def __init__(self, core: Core, port: Port) -> None:
        super().__init__(core)
        self.port = port
        self._queue = ReplyQueue(f"reply/{core.token:016x}/0")
        self._inflow = Inflow(port, self._queue.name, self._deliver, self._awaited, self._mourn)
        self._opening: asyncio.Future[None] | None = None
        self._is_open = self._closed = False
        self._calls: dict[int, Call] = {}
        self._asking = 0
        self._early: dict[int, bytes] = {}

    async def _opened(self) -> ReplyQueue:
        """The reply queue; the first caller opens it for all, also where that one is cancelled meanwhile."""
        if self._opening is None or _has_failed(self._opening):
            self._opening = asyncio.ensure_future(self.port.do(self._inflow.start))
        await asyncio.shield(self._opening)
        self._is_open = True
        return self._queue

    async def ask(self, call: Call, data: bytes) -> None:
        """Send the request to one server, or to each; a reply may come before a thread has told whom it has asked."""
        if self._closed:
            raise NotInitialized(_SHUT_DOWN)
        queue = self._queue if self._is_open else await self._opened()
        provider, stub = self.port.provider, call.stub
        deadline = NEVER if stub.timeout is None else provider.clock() + stub.timeout
        packed = DEADLINE.pack(deadline) + data
        hasty: Any = _Hasty(self.port, stub.timeout)
        if self.port.direct:
            asked = self._request(hasty, queue, stub, packed, deadline)
        else:
            self._asking += 1
            try:
                asked = await self.port.in_thread(self._request, hasty, queue, stub, packed, deadline)
            finally:
                self._asking -= 1
            if self._closed:
                raise NotInitialized(_SHUT_DOWN)
        call.pending.update(asked)
        for request, server in asked.items():
            self._calls[request] = call
            self._inflow.watch(server)
            if request in self._early:
                self._receive(self._early.pop(request))
        self._inflow.expect()
        if not self._asking:
            self._early.clear()

    def forget(self, request: int) -> None:
        """Its reply will not be looked at."""
        self._calls.pop(request, None)

    def _deliver(self, batch: Sequence[Delivery]) -> bool:
        for message, _ in batch:
            self._receive(message)
        return False

    def _receive(self, message: bytes) -> None:
        if len(message) < _START:
            return  # not ours
        (request,) = SEQUENCE.unpack_from(message)
        call = self._calls.pop(request, None)
        if call is not None:
            call.answer(request, call.stub.finish(message))
        elif self._asking:
            self._early[request] = message

    def _awaited(self) -> set[str]:
        return {call.pending[request] for request, call in self._calls.items()}

    def _mourn(self, gone: Collection[str]) -> None:
        for request, call in list(self._calls.items() if gone else ()):
            if call.pending[request] in gone:
                self.forget(request)
                call.answer(request, died(call.stub.name))

    def abandon(self) -> None:
        """In a forked child: the replies are the parent's."""
        self._inflow.abandon()

    def close(self) -> None:
        """All calls end with NotInitialized."""
        self._closed = True
        self._inflow.close()
        for call in set(self._calls.values()):
            call.fail(NotInitialized(_SHUT_DOWN))


def _has_failed(opening: asyncio.Future[None]) -> bool:
    return opening.done() and (opening.cancelled() or opening.exception() is not None)


class _Hasty:
    """A provider to `Caller._request`: where it would wait for room, a task does instead: a shutdown would wait for a thread."""

    def __init__(self, port: Port, timeout: float | None) -> None:
        self._port = port
        self._provider: Provider = port.provider
        self._seconds = 3600.0 if timeout is None else timeout
        self.consumers = self._provider.consumers
        self.request = self._provider.request
        self.clock = self._provider.clock

    def send(self, queue: str, message: bytes, *, timeout: float | None) -> None:
        try:
            self._provider.send(queue, message, timeout=0)
        except Full:
            if timeout == 0:
                raise
            self._port.in_loop(self._wait_for_room, queue, message)

    def _wait_for_room(self, queue: str, message: bytes) -> None:
        self._port.loop.create_task(send_patiently(self._port, queue, message, self._seconds))


class Stub(Generic[P, R]):
    """A remote function, to be awaited like a local `async def`. For the bus's loop."""

    def __init__(self, core: Core, stub: StubMethod[P, R]) -> None:
        self._core = core
        self._stub = stub
        self.name: str = stub.name

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The remote's result.

        Raises NoSuchRemoteError, RpcTimeout, ServerDied, RemoteInvocationError with what the remote raised, CodecError for an
        argument that cannot travel. A call that is cancelled may have been executed.
        """
        result = await self._result(args, kwargs)
        if isinstance(result, RpcException):
            raise result
        return result  # type: ignore[no-any-return]

    async def rpc(self, *args: P.args, **kwargs: P.kwargs) -> RpcResponse:
        """The raw `RpcResponse`: a failure is in its result instead of being raised."""
        return self._stub._response(await self._result(args, kwargs))

    async def _result(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        call = Call(self._core.loop_caller(), self._stub)
        try:
            await call.begin(pack_call(args, kwargs))
            return await call.next()
        finally:
            call.end()

    def __repr__(self) -> str:
        return f"<async stub of {self.name!r}>"


class MultiStub(Generic[P, R]):
    """A remote function of all live servers. For the bus's loop."""

    def __init__(self, core: Core, stub: StubMethod[P, R]) -> None:
        self._core = core
        self._stub = stub
        self.name: str = stub.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Results[R]:
        """The results: `async for` gets them as they come, `await` a list of all, in the order in which the servers were asked.

        An error stands in the place of each failure. Nothing is sent before one of the two is begun. Raises CodecError.
        """
        return Results(Call(self._core.loop_caller(), self._stub), lambda: pack_call(args, kwargs))

    async def rpc(self, *args: P.args, **kwargs: P.kwargs) -> list[RpcResponse]:
        """The raw `RpcResponse` of each server."""
        return [self._stub._response(result) for result in await self(*args, **kwargs)]


class Results(Generic[R]):
    """The results of a call of all servers. A step that is cancelled loses nothing: the result comes with the next one."""

    def __init__(self, call: Call, pack: Callable[[], bytes]) -> None:
        self._call = call
        self._pack = pack
        self._begun: asyncio.Future[None] | None = None

    async def _begin(self) -> None:
        try:
            await self._call.begin(self._pack())
        except BaseException:
            self._call.end()
            raise

    def __aiter__(self) -> AsyncIterator[R]:
        return self

    async def __anext__(self) -> R:
        if self._begun is None:
            self._begun = asyncio.ensure_future(self._begin())
        if not self._begun.done() or self._begun.exception():
            await asyncio.shield(self._begun)  # by several tasks, and to its end where one of them is cancelled
        try:
            return await self._call.next()  # type: ignore[no-any-return]
        except (StopAsyncIteration, NotInitialized):  # not a cancellation: a step can be tried again
            self._call.end()
            raise

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self._all().__await__()

    async def _all(self) -> list[R]:
        async for _ in self:
            pass
        return [result for _, result in sorted(self._call.results.items(), key=itemgetter(0))]

    def __del__(self) -> None:
        self._call.end()
