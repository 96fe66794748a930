"""pymq: events, queues and remote calls between Python processes; what carries the messages is one config.

Importing it loads the standard library only.
"""

from queue import Empty, Full
from typing import Any

from pymq.bus import EventBus, Topic
from pymq.core import (
    event,
    expose,
    group,
    init,
    publish,
    queue,
    remote,
    shutdown,
    start,
    stats,
    stub,
    subscribe,
    subscriber,
    topic,
    unexpose,
    unsubscribe,
    wait,
)
from pymq.exceptions import (
    CodecError,
    ConnectionLost,
    LeaseLost,
    MessageTooLarge,
    NoSuchRemoteError,
    NotInitialized,
    ProviderError,
    PymqError,
    QueueNotFound,
    Reject,
    RemoteInvocationError,
    Retry,
    RpcException,
    RpcTimeout,
    ServerDied,
)
from pymq.message import Message
from pymq.queues import Queue
from pymq.rpc import RpcRequest, RpcResponse, StubMethod

__all__ = [
    "CodecError",
    "ConnectionLost",
    "Empty",
    "EventBus",
    "Full",
    "LeaseLost",
    "Message",
    "MessageTooLarge",
    "NoSuchRemoteError",
    "NotInitialized",
    "ProviderError",
    "PymqError",
    "Queue",
    "QueueNotFound",
    "Reject",
    "RemoteInvocationError",
    "Retry",
    "RpcException",
    "RpcRequest",
    "RpcResponse",
    "RpcTimeout",
    "ServerDied",
    "StubMethod",
    "Topic",
    "event",
    "expose",
    "group",
    "init",
    "publish",
    "queue",
    "remote",
    "shutdown",
    "start",
    "stats",
    "stub",
    "subscribe",
    "subscriber",
    "topic",
    "unexpose",
    "unsubscribe",
    "wait",
]


def __getattr__(name: str) -> Any:
    if name != "__version__":
        raise AttributeError(f"module 'pymq' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version  # 12 ms, which only who asks is to pay

    try:
        return version("pymq")
    except PackageNotFoundError as error:
        raise AttributeError("this pymq is not installed, so it has no version") from error
