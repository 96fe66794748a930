"""Every error pymq raises, in one tree.

::

    PymqError
    ├── NotInitialized (ValueError)        a verb other than publish, subscribe, expose was used before init()
    ├── CodecError (ValueError)            a value cannot travel, or does not fit the declared type
    ├── ProviderError                      what carries the messages failed
    │   ├── QueueNotFound                  no such queue, or it was deleted meanwhile
    │   ├── MessageTooLarge (ValueError)   above the provider's max_message_bytes
    │   └── ConnectionLost                 a network provider cannot confirm what it did
    ├── LeaseLost                          settled too late: the message belongs to somebody else
    └── RpcException
        ├── NoSuchRemoteError              nobody serves that name
        └── RemoteInvocationError          the call was made and failed
            ├── RpcTimeout (TimeoutError)  no reply before the deadline
            └── ServerDied                 the server's process ended before it replied

`Empty` and `Full` are the standard library's (`queue.Empty`, `queue.Full`).
"""

from __future__ import annotations

import math
import queue
from collections.abc import Sequence
from numbers import Real
from typing import Any


class PymqError(Exception):
    """The base of every error that only pymq raises."""


class NotInitialized(PymqError, ValueError):
    """The module-level bus was used before `pymq.init`."""


class CodecError(PymqError, ValueError):
    """A value cannot travel unchanged, or what arrived is not of the declared type."""


class ProviderError(PymqError):
    """The provider could not do what it was asked; the driver's error is the `__cause__`."""


class QueueNotFound(ProviderError):
    """The queue does not exist, or was deleted while it was waited on."""


class MessageTooLarge(ProviderError, ValueError):
    """The message exceeds the provider's `max_message_bytes`; nothing was written."""


class ConnectionLost(ProviderError):
    """A network provider could not confirm that the operation took place."""


class LeaseLost(PymqError):
    """The delivery was settled after its lease had ended; nothing was settled."""


class RpcException(PymqError):
    """The base of what a remote call raises."""


class NoSuchRemoteError(RpcException):
    """No live server exposes that name."""


class RemoteInvocationError(RpcException):
    """The remote function raised, or the call could not be completed.

    `remote_type` is the name of the remote exception's class, `remote_args` its arguments (as text where they cannot travel),
    `remote_traceback` its traceback as text.
    """

    def __init__(self, message: str = "", remote_type: str = "", remote_args: Sequence[Any] = (), remote_traceback: str = "") -> None:
        super().__init__(message)
        self.remote_type = remote_type
        self.remote_args: tuple[Any, ...] = tuple(remote_args)
        self.remote_traceback = remote_traceback


class RpcTimeout(RemoteInvocationError, TimeoutError):
    """No reply before the call's deadline; a server that had begun the call may have executed it."""


class ServerDied(RemoteInvocationError):
    """The server's process ended before it replied; it may have executed the call."""


class PublishFull(queue.Full):
    """A consumer group's queue stayed full: `accepted` receivers have the event, `groups` do not.

    `queues` are those of the groups, as the provider calls them.
    """

    def __init__(self, accepted: int, queues: Sequence[str]) -> None:
        super().__init__(accepted, queues)
        self.accepted = accepted
        self.queues: tuple[str, ...] = tuple(queues)

    @property
    def groups(self) -> tuple[str, ...]:
        """Their names: a group has a queue for each channel and pattern."""
        return tuple(dict.fromkeys(queue.removeprefix("group/").partition("\0")[0] for queue in self.queues))

    def __str__(self) -> str:
        return f"no room for the event in {', '.join(self.groups)}; {self.accepted} receivers have it"


class Reject(Exception):
    """Raised by a handler of a group: this event goes to the dead letters at once."""


class Retry(Exception):
    """Raised by a handler of a group: this event comes again after `delay` seconds, and that is no failure.

    Raises ValueError for what is no time to wait, which then is the handler's failure.
    """

    def __init__(self, delay: float = 0.0) -> None:
        if not (isinstance(delay, Real) and 0 <= delay < math.inf):
            raise ValueError(f"delay={delay!r}: must be 0 or more seconds, and end")
        super().__init__(delay)
        self.delay: float = delay
