"""What providers refuse, on each for the same reasons and in the same words."""

from __future__ import annotations

from pymq.exceptions import LeaseLost, MessageTooLarge, ProviderError, QueueNotFound
from pymq.provider.base import Provider, Receipt


def check(provider: Provider, message: bytes, delay: float, priority: int = 0) -> None:
    """Raises MessageTooLarge, or ValueError, for what is beyond the provider's features."""
    if len(message) > provider.max_message_bytes:
        raise MessageTooLarge(f"a message of {len(message)} bytes; at most {provider.max_message_bytes} are allowed")
    if not 0 <= delay <= provider.features.max_delay:
        raise ValueError(f"delay={delay}: between 0 and {provider.features.max_delay:.0f} seconds are possible")
    if not 0 <= priority < provider.features.priorities:
        raise ValueError(f"priority={priority}: the levels are 0 to {provider.features.priorities - 1}")


def gone(queue: str) -> QueueNotFound:
    """The error for a queue that is not there."""
    return QueueNotFound(f"there is no queue {queue!r}: it was not declared, was deleted, or its owner has ended")


def lost(receipt: Receipt) -> LeaseLost:
    """The error for a receipt that came too late."""
    return LeaseLost(f"delivery {receipt.attempt} from {receipt.queue!r} was settled before, or its lease had ended: nothing was done")


def closed_in_vain(queue: str) -> ProviderError:
    """The error for a send that waited for room when the provider was closed."""
    return ProviderError(f"the provider was closed while a send waited for room in the queue {queue!r}")
