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

MOST_CHANNELS = 10_000
"""How many routes a bus keeps, and how many channels it counts one by one: a program may have a channel for each of its users."""
OTHERS = ""
"""The channel for which all others are counted."""


class Counts:
    """Numbers the events of one bus, each channel in a range of its own: ids are unique in the sender, and increase in a channel."""

    def __init__(self) -> None:
        self._sequences: dict[str, itertools.count[int]] = {}

    def of(self, channel: str) -> itertools.count[int]:
        """What numbers the events of a channel, now and always: a number that is given again would be another event's id."""
        if channel not in self._sequences and len(self._sequences) >= MOST_CHANNELS:
            channel = OTHERS
        return self._sequences.setdefault(channel, itertools.count((len(self._sequences) + 1) << 40))

    def published(self) -> dict[str, int]:
        """How many numbers were given out, by channel: read from the counters' reprs, since looking must not count."""
        given = {channel: int(repr(sequence)[len("count(") : -1]) for channel, sequence in list(self._sequences.items())}
        return {channel: following - (number << 40) for number, (channel, following) in enumerate(given.items(), 1)}


class Route:
    """How events of one class are published to one channel: all that is constant, made once."""

    __slots__ = ("_encode", "_flagged_prefix", "_provider", "_sequence", "send", "topics")

    def __init__(self, cls: type, channel: str | None, token: int, counts: Counts, provider: Provider) -> None:
        from pymq import codec

        encoder = codec.encoder_for(cls)
        channels = topics_of(cls) if channel is None else [channel]
        prefix = frames.Prefix(frames.EVENT, encoder.form, 0, token, channels[0], encoder.type_name, tuple(channels[1:]))
        self._encode: Callable[[Any], bytes] = encoder.encode
        packed = frames.pack_prefix(prefix)  # before it takes a place among the counts: it may be too long
        self._flagged_prefix: bytes = frames.pack_prefix(prefix._replace(flags=frames.OPTIONS))
        self.topics: tuple[str, ...] = tuple("e/" + name for name in channels)
        self._provider: Provider = provider
        self._sequence: itertools.count[int] = counts.of(channels[0])
        self.send: Callable[[Any], int | None] = provider.publisher(self.topics, *encoder.numbered(self._sequence, packed))
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
