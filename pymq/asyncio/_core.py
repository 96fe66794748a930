"""The bus beneath an asynchronous one: an `EventBus` whose inbox is read, and whose handlers run, on a loop."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from queue import Empty, Full
from time import monotonic
from typing import Any

from pymq.asyncio._calls import LoopCaller
from pymq.asyncio._port import Inflow, NoPort, Port, is_direct, send_patiently
from pymq.bus import SHUTDOWN_SECONDS, EventBus, _Closed
from pymq.deliveries import Leases
from pymq.dispatch import Task
from pymq.exceptions import ProviderError, PymqError, QueueNotFound, Retry
from pymq.groups import Group, Member, Options, refuse_without_group
from pymq.handlers import Target, hints_in_reach, targets_of, unrun
from pymq.loop import COUNTS_CANCELLATIONS, Loop, Shift
from pymq.message import Prefix
from pymq.provider.base import LATER, Delivery, Provider, Receipt
from pymq.remotes import Remotes
from pymq.subscriptions import Subscription, Work

log = logging.getLogger("pymq")

TURN = 100
"""After how many messages the loop gets to do something else."""
PATIENCE = 1.0
"""For how many seconds a reply waits for room."""


class Core(EventBus):
    """Everything that the asynchronous bus does not do differently. It is started, and then entered."""

    caller: LoopCaller

    def _reset(self) -> None:
        super()._reset()
        self.port: Port = NoPort()  # type: ignore[assignment]
        """The loop's way to the provider; its methods raise NotInitialized before `enter` and after `shutdown`."""
        self.tasks: Tasks = Tasks(self)
        self.loop: Tasks = self.tasks
        self.leases: Extensions = Extensions(self)
        self.remotes: Servers = Servers(self)

    def enter(self) -> Port:
        """From now on this bus is used in the loop that runs, and in no other."""
        return self._enter(self.provider, is_direct(self.provider))

    def _enter(self, provider: Provider, direct: bool) -> Port:
        self.context: Context = copy_context()
        self.port = Port(asyncio.get_running_loop(), provider, direct)
        self.caller = LoopCaller(self, self.port)
        return self.port

    def shutdown(self, timeout: float = SHUTDOWN_SECONDS) -> None:
        """As ever. At the end of a program that has not awaited its own, a thread may still wait for replies."""
        self.end_calls()
        super().shutdown(timeout)

    def end_calls(self) -> None:
        """Whoever waits for a reply gets NotInitialized. Also where there is no caller, or another shutdown takes it away meanwhile."""
        caller = self.caller
        if isinstance(caller, LoopCaller):
            caller.close()

    def _after_fork(self) -> None:
        inherited = self.port
        if isinstance(inherited, Port):
            inherited.is_inherited = True
            self.caller.abandon()
        super()._after_fork()
        if isinstance(inherited, Port):
            self.port = NoPort(partial(self._enter_in_child, inherited.direct))  # type: ignore[assignment]
        else:
            self.port = inherited  # of a child that has not used it: so its own child may be the first

    def _enter_in_child(self, direct: bool) -> Port:
        """Over a network, a thread opens the provider with its first call."""
        return self._enter(self._open() if direct else self.provider, direct)

    def loop_caller(self) -> LoopCaller:
        """What makes this bus's calls. Raises NotInitialized."""
        self.port.here()
        return self.caller

    def _open(self) -> Provider:
        is_new = isinstance(self.provider, _Closed)
        provider = super()._open()
        if is_new and is_direct(provider):
            provider.publish = partial(provider.publish, timeout=LATER)  # type: ignore[method-assign]  # all of them are made in the loop
        return provider

    def inbox_ready(self) -> str:
        with self._lock:
            if self._dispatcher is None:
                dispatcher = LoopDispatcher(self.subscriptions.tasks, self._look_up)
                dispatcher.inflow = Inflow(self.port, self.inbox, dispatcher.deliver)
                dispatcher.inflow.start()
                self._dispatcher = dispatcher  # type: ignore[assignment]
        return self.inbox

    def later(self, seconds: float, task: Task, message: bytes) -> None:
        self.port.loop.call_later(seconds, task.run, message)

    def subscribing(
        self,
        callback: Callable[..., Any],
        channel: str | None = None,
        pattern: bool = False,
        group: str | None = None,
        retries: int | None = None,
        backoff: float | None = None,
        lease: float | None = None,
        workers: int | None = None,
    ) -> Callable[[], Callable[[], None]]:
        """`subscribe` for later, or for another thread: the classes in hints that are texts are found among the caller's names.

        It returns what undoes this one, and no earlier one of the same handler. Raises as `subscribe`, and ValueError for more than one
        of `workers` without a group: those of a plain subscription would be threads.
        """
        options = Options.of(group, retries, backoff, lease, workers)
        if group is None and workers != 1:
            refuse_without_group(workers=workers)
        return partial(self._begin, targets_of(callback, channel, pattern), group, options)

    def _begin(self, targets: list[Target], group: str | None, options: Options) -> Callable[[], None]:
        return partial(self._drop, [self._subscribe(target, group, options) for target in targets])

    def _drop(self, begun: list[Work]) -> None:
        self.subscriptions.drop([work for work in begun if isinstance(work, Subscription)])
        with self._lock:
            self._members = [member for member in self._members if member not in begun]
        for work in begun:
            if isinstance(work, Member):
                work.leave()

    def exposing(self, fn: Callable[..., Any], channel: str | None = None) -> Callable[[], Callable[[], None]]:
        """`expose`, likewise. It returns what undoes it, unless the function was served under that name before."""
        return partial(self._serve, fn, self.remotes.name_of(fn, channel), hints_in_reach(fn))

    def _serve(self, fn: Callable[..., Any], name: str, hints: dict[str, Any] | None) -> Callable[[], None]:
        remote = self.remotes.add(fn, name, hints)
        return lambda: None if remote is None else self.remotes.drop(remote)

    def _subscribe(self, target: Target, group: str | None, options: Options) -> Work:
        if group is None:
            return self.subscriptions.add(target, 1)
        member = LoopMember(self, self.group(group), target, options)
        member.start()
        self._members = [*self._members, member]
        return member

    def handler(self) -> asyncio.Task[Any] | None:
        """The task of the handler of this bus from which this is called, also by way of a task that it has begun."""
        task = _RUN_BY.get()
        return task if task in self.tasks.running else None

    def is_of_a_group(self, handler: asyncio.Task[Any] | None) -> bool:
        """Whether that task handles the event of a group now."""
        return any(member.is_handled_by(handler) for member in self._members if isinstance(member, LoopMember))

    def quiet(self) -> None:
        """Begin no handler any more."""
        for member in self._members:
            member.leave()
        if self._dispatcher is not None:
            self._dispatcher.close(0)


_RUN_BY: ContextVar[asyncio.Task[Any] | None] = ContextVar("the task of a handler", default=None)


class Tasks(Loop):
    """What runs on the loop: the handlers that are coroutines, and the members of groups."""

    def __init__(self, core: Core) -> None:
        super().__init__("pymq-async")
        self._core = core
        self.running: dict[asyncio.Task[Any], str] = {}

    def submit(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._core.port.in_loop(self._begin, name, coroutine)

    def _begin(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self._core.port.loop.create_task(self._outcome(name, coroutine))
        self.running[task] = name
        task.add_done_callback(self.running.pop)

    async def _outcome(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
        _RUN_BY.set(asyncio.current_task())
        return await super()._outcome(name, coroutine)

    async def finish(self, timeout: float, but: asyncio.Task[Any] | None) -> list[str]:
        """Give what runs so many seconds to end, then cancel it; what was abandoned. Not `but`, the handler that ends the bus."""
        deadline = monotonic() + timeout
        while (pending := set(self.running) - {but}) and (left := deadline - monotonic()) > 0:
            await asyncio.wait(pending, timeout=left)  # again: one may have handed over to another
        names = [f"the handler {self.running[task]}, which still ran" for task in pending]
        names += self._core.subscriptions.end()  # a cancelled handler is not begun again with the next event
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending, timeout=0.5)
        return names


class LoopDispatcher:
    """Runs the tasks that each message of the inbox is for, in the loop; stands in the place of the threads of `Dispatcher`."""

    inflow: Inflow

    may_receive = True
    """As `Dispatcher` says: also after `close`."""

    def __init__(self, tasks: Mapping[bytes, Sequence[Task]], look_up: Callable[[bytes], Sequence[Task]]) -> None:
        self._tasks = tasks
        self._look_up = look_up
        self._work: deque[bytes] = deque()

    def deliver(self, batch: Sequence[Delivery]) -> bool:
        """Handle some of what has come; whether there is more."""
        work, tasks_by_prefix = self._work, self._tasks
        work.extend([message for message, _ in batch])
        for _ in range(min(TURN, len(work))):
            message = work.popleft()
            try:
                tasks = tasks_by_prefix[message[10 : 10 + message[8] + (message[9] << 8)]]  # frames.prefix_of, inline
            except (KeyError, IndexError):
                tasks = self._look_up(message)
            for task in tasks:
                task.run(message)
        return bool(work)

    def step_aside(self) -> None:
        """A call in the loop is awaited: nothing has to make way."""

    def end_with_the_handler(self) -> None:
        """In a forked child: the inbox is the parent's alone."""
        self.inflow.abandon()

    def close(self, deadline: float) -> list[str]:
        """Receive no more; handle what was received."""
        self.inflow.close()
        while self.deliver([]):
            pass
        return []


class Servers(Remotes):
    """Replies without waiting in the loop."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._core = core

    def look_up(self, packed: bytes, prefix: Prefix) -> tuple[Task, ...]:
        """Each call sees what the start of the bus saw in its context variables, and nothing of other calls."""
        found = super().look_up(packed, prefix)
        for requests in found:
            requests.run = partial(self._run_apart, requests.run)  # type: ignore[method-assign]
        return found

    def _run_apart(self, run: Callable[[bytes], None], message: bytes) -> None:
        self._core.context.copy().run(run, message)

    def withdraw(self) -> None:
        """No further call is sent to this bus."""
        with suppress(ProviderError):  # its server is away
            for name in list(self._remotes):
                self._core.provider.unbind(self._core.inbox, "r/" + name, exact=True)

    def send(self, queue: str, message: bytes) -> None:
        port = self._core.port
        if not port.direct:
            return port.post(super().send, queue, message)
        try:
            port.provider.send(queue, message, timeout=0)
        except QueueNotFound:
            pass  # the caller is gone
        except Full:
            self._core.tasks.submit("reply", send_patiently(port, queue, message, PATIENCE))
        return None


class Extensions(Leases):
    """Extends leases by the loop's timers where nobody holds up the loop and the provider needs no thread."""

    def __init__(self, core: Core) -> None:
        super().__init__(lambda: core.provider)
        self._core = core
        self._timers: dict[Receipt, asyncio.TimerHandle] = {}

    def hold(self, receipt: Receipt, lease: float) -> None:
        if self._core.port.direct:
            self._held[receipt] = [lease, math.inf]
            self._timers[receipt] = self._core.port.loop.call_later(lease / 3, self._again, receipt, lease)
        else:
            super().hold(receipt, lease)

    def hold_by_thread(self, receipt: Receipt, lease: float) -> None:
        """`hold`, while a plain function holds up the loop."""
        super().hold(receipt, lease)

    def _again(self, receipt: Receipt, lease: float) -> None:
        self._extend(receipt, lease)
        if receipt in self._held:
            self.hold(receipt, lease)

    def release(self, receipt: Receipt) -> None:
        super().release(receipt)
        timer = self._timers.pop(receipt, None)
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        for receipt in list(self._timers):
            self.release(receipt)
        super().close()


class LoopMember(Member):
    """A member of a group whose workers are tasks of the loop."""

    def __init__(self, core: Core, group: Group, target: Target, options: Options) -> None:
        super().__init__(core, group, target, options._replace(workers=0))
        self._core = core
        self._workers = options.workers
        self._hold = core.leases.hold if self.shape.is_async else core.leases.hold_by_thread
        self._working: set[asyncio.Task[Any]] = set()
        self._idle: set[asyncio.Task[Any]] = set()

    def is_handled_by(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether that task runs the handler, or settles an event by what came of it."""
        return task in self._working and task not in self._idle

    def start(self) -> None:
        super().start()
        for _ in range(self._workers):
            self._begin()

    def _begin(self) -> None:
        self._core.tasks.submit(self.name, self._take_part())

    def leave(self) -> None:
        self.stop()
        self._core.port.in_loop(self._dismiss)

    def _dismiss(self) -> None:
        for task in self._idle:
            task.cancel()

    async def _take_part(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._working.add(task)
        shift = Shift()
        while not self._stopping:
            try:
                self._idle.add(task)
                try:
                    message, receipt = await self._core.port.poll(self._attempt, self._queue, None, self._lease, self._give_back)
                finally:
                    self._idle.discard(task)
                if await self._work(message, receipt, shift) is None and monotonic() < shift.turn_ends and shift.is_clean():
                    continue
            except QueueNotFound:
                return self._tell_deleted()
            except Exception as error:
                if not self._stopping:
                    log.error("group %r: %s; trying again", self.group.name, error, exc_info=not isinstance(error, PymqError))
                    await asyncio.sleep(0.1)
            if not await shift.goes_on():
                return None
            if not shift.is_clean():
                self._working.discard(task)
                return shift.hand_over(self._begin)
        return None

    def _attempt(self, seconds: float) -> tuple[bytes, Receipt]:
        found = self.bus.provider.receive(self._queue, seconds, lease=self._lease)
        if not found:
            raise Empty
        message, receipt = found[0]
        assert receipt is not None
        return message, receipt

    def _give_back(self, delivery: tuple[bytes, Receipt]) -> None:
        self.settle(*delivery, Retry())

    async def _work(self, message: bytes, receipt: Receipt, shift: Shift) -> BaseException | None:
        """Run the handler, and let `Member` settle the event by what came of it, which this returns.

        One that was cancelled by the end of the bus, or of the loop, has not failed: its event comes again.
        """
        self._hold(receipt, self._lease)
        try:
            error = await self._error_of(message, receipt, shift)
            if isinstance(error, asyncio.CancelledError) and (self._stopping or shift.is_over()):
                error = Retry()
            await self._core.port.do(self.settle, message, receipt, error)
            return error
        finally:
            self.bus.leases.release(receipt)

    async def _error_of(self, message: bytes, receipt: Receipt, shift: Shift) -> BaseException | None:
        """What the handler raised."""
        try:
            _, args, kwargs = self._unpack(message, receipt)
            result = self.callback(*args, **kwargs)
            if not self.shape.is_async:
                return unrun(self.callback, result)
            await (result if COUNTS_CANCELLATIONS else shift.apart(result))
        except BaseException as error:
            return error
        return None
