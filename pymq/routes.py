"""Routes: how the events of one class are published to one channel. `publish` looks one up and calls its `send`: the hot path."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from pymq import message as frames
from pymq.provider.base import Provider
from pymq.topics import topics_of


class Route:
    """How events of one class are published to one channel: all that is constant, made once."""

    __slots__ = ("_encode", "_flagged_prefix", "_provider", "_sequence", "_start", "send", "topics")

    def __init__(self, cls: type, channel: str | None, token: int, number: int, provider: Provider) -> None:
        from pymq import codec

        encoder = codec.encoder_for(cls)
        channels = topics_of(cls) if channel is None else [channel]
        prefix = frames.Prefix(frames.EVENT, encoder.form, 0, token, channels[0], encoder.type_name, tuple(channels[1:]))
        self._encode: Callable[[Any], bytes] = encoder.encode
        self._flagged_prefix: bytes = frames.pack_prefix(prefix._replace(flags=frames.OPTIONS))
        self.topics: tuple[str, ...] = tuple("e/" + name for name in channels)
        self._provider: Provider = provider
        self._start: int = number << 40  # each route counts in a range of its own, so that ids are unique in the sender
        self._sequence: itertools.count[int] = itertools.count(self._start)
        heads = frames.heads(self._sequence, frames.pack_prefix(prefix))
        self.send: Callable[[Any], int | None] = provider.publisher(self.topics, heads, encoder.encode)
        """Publish an event that has no options."""

    def send_with(self, event: Any, headers: dict[str, Any] | None, delay: float, ttl: float | None) -> int | None:
        """Publish an event that has some."""
        check_times(self._provider, delay, ttl)
        if not isinstance(headers, dict | None):
            raise TypeError(f"headers are a dict, not {headers!r}")
        now = self._provider.clock()
        options = {"headers": headers, "due": now + delay if delay else None, "expires": None if ttl is None else now + delay + ttl}
        packed = frames.pack_options({name: value for name, value in options.items() if value is not None})
        payload = self._encode(event)  # first: what cannot travel takes no number
        message = frames.pack_sequence(next(self._sequence)) + self._flagged_prefix + packed + payload
        return self._provider.publish(self.topics, message, delay=delay, ttl=None if ttl is None else delay + ttl)

    @property
    def published(self) -> int:
        """How many numbers were given out: read from the counter's repr, since looking must not count."""
        return int(repr(self._sequence)[len("count(") : -1]) - self._start


def check_seconds(**durations: float | None) -> None:
    """Raises ValueError for one that is no time to wait."""
    for name, seconds in durations.items():
        if seconds is not None and not (isinstance(seconds, Real) and seconds >= 0):
            raise ValueError(f"{name}={seconds!r}: must be a number of seconds, 0 or more")


def check_times(provider: Provider, delay: float, ttl: float | None) -> None:
    """Raises ValueError for what is no time to wait, or a longer delay than the provider can keep."""
    check_seconds(delay=delay, ttl=ttl)
    if delay > provider.features.max_delay:
        raise ValueError(f"delay={delay!r}: this provider delays by at most {provider.features.max_delay} s")


def check_lease(seconds: float) -> None:
    """Raises ValueError for what is no time that ends."""
    if not (isinstance(seconds, Real) and 0 < seconds < math.inf):
        raise ValueError(f"lease={seconds!r}: must be more than 0 seconds, and end")
