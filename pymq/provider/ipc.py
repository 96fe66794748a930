"""POSIX message queues: the kernel keeps what is sent to a bus's inbox. Everything else is shared with shm, which is the faster one.

For programs that come from PyMQ's `IpcConfig`, or want requests to overtake events. docs/providers/ipc.md says when to choose it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pymq.bus import EventBus
from pymq.exceptions import ProviderError
from pymq.provider.shm import ShmConfig, ShmProvider

if TYPE_CHECKING:
    from pymq.provider._shm.inbox import Inbox
    from pymq.provider._shm.outlet import Outlet
    from pymq.provider._shm.registry import Registry
    from pymq.provider._shm.sending import Route

REPLIES = "reply/"
"""Temporary queues of these names stay FIFOs: a process has one for each thread that calls, and a user only some 70 kernel queues."""


def kernel_queue(token: str) -> str:
    """The name of one of this user's kernel queues."""
    return f"/pymq-{os.geteuid()}-{token}"


@dataclass(frozen=True)
class IpcConfig(ShmConfig):
    """Queues of the kernel and files below `<home>/ipc.<namespace>`: processes with the same of both meet. The options are shm's.

    `ipc://namespace?option=number` as a URL.
    """

    def create(self) -> IpcProvider:
        """A provider, not open yet."""
        return IpcProvider(self)


class IpcProvider(ShmProvider):
    """See `IpcConfig`; the promises are those of `Provider`, but what is sent to an inbox may overtake what is published to it."""

    def open(self) -> None:
        if sys.platform != "linux":
            raise ProviderError(f"ipc needs Linux, as shm does, not {sys.platform}: use simple (in one process), redis or aws")
        try:
            from pymq.provider import _kernel
        except ImportError as error:
            raise ProviderError("ipc needs the extra `ipc` (pip install '.[ipc]' in a checkout); shm needs none") from error
        self._kernel = _kernel
        super().open()
        self._inline = -1

    def _enter(self) -> Registry:
        return self._kernel.KernelRegistry(self._home, self._config.namespace)

    def _new_inbox(self, name: str) -> Inbox:
        if name.startswith(REPLIES):
            return super()._new_inbox(name)
        return self._kernel.KernelInbox(name, self._registry.inboxes, self._registry.bells)

    def _open_outlet(self, name: str) -> Outlet:
        self._forget_ended()  # a kernel queue counts for its user until the last process lets go of it
        return super()._open_outlet(name)

    def _renewed(self) -> tuple[int, dict[Sequence[str], Route]]:
        self._forget_ended()
        return super()._renewed()

    def _outlet_class(self, name: str) -> type[Outlet]:
        return self._kernel.KernelOutlet if self._kernel.has_queue(self._registry.inboxes, name) else super()._outlet_class(name)

    def _send_directly(self, queue: str, message: bytes) -> bool:
        outlet = self._outlets.get(queue)
        if not isinstance(outlet, self._kernel.KernelOutlet) or len(message) > self.max_message_bytes:
            return super()._send_directly(queue, message)
        return outlet.send_urgently(message)

    def _send_to_inbox(self, outlet: Outlet, message: bytes, timeout: float | None) -> None:
        super()._send_to_inbox(outlet.urgent() if isinstance(outlet, self._kernel.KernelOutlet) else outlet, message, timeout)


class IpcEventBus(EventBus):
    """PyMQ's name for a bus on POSIX message queues; instead of a config, the namespace will do."""

    def __init__(self, config: IpcConfig | str | None = None, *, namespace: str = "default") -> None:
        super().__init__(config if isinstance(config, IpcConfig) else IpcConfig(namespace=config or namespace))
