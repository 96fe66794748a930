"""Channels of bytes between the processes of one machine: the shared memory of `pymq.init()`, without its events, queues and calls.

    with Channel(topic="logs.+") as channel:             # `=` is exactly one word, `+` one or more; dots separate words
        publish("logs.app.debug", b"cache hit")          # -> 1, the number of channels that received it
        message = fetch(channel)                         # a Message, or None
        subscribe(channel, print, timeout_seconds=2.0)   # blocks; how many messages were processed

Needs nothing but the standard library and Linux. A channel is a temporary queue of the shm provider and a binding, and what travels
is an event: a bus in the same place publishes to channels and hears from them. After a fork the child has channels of its own only.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import logging
import math
import os
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from pymq import message as frames
from pymq._channels import Header, Message, check_topic, config, reader_of, received, sender_to
from pymq._signals import Caught, caught_signals
from pymq.exceptions import CodecError, ProviderError
from pymq.topics import WORDS, words_matcher

if TYPE_CHECKING:
    from pymq.provider.shm import ShmProvider

__all__ = ["Channel", "Message", "fetch", "publish", "subscribe"]

_Send: TypeAlias = "Callable[[bytes, Mapping[str, Header] | None], int]"
_Reader: TypeAlias = "Callable[[bytes], Message | None]"

log: logging.Logger = logging.getLogger("pymq")

_MOST_REMEMBERED = 10_000


class Channel:
    """What is published to the topic from now on is kept for this object alone, up to 32 MiB, until `close` or this process's end.

    `topic` is words of letters, digits and hyphens with dots between them; `=` stands for any one word, `+` for one or more. Any number
    of channels may have the same. Use as a context manager, or `open` and `close`. Raises ValueError for a topic that is none,
    ProviderError where there is no shared memory to be had. Threads may share a channel; one at a time subscribes to it.
    """

    def __init__(self, topic: str) -> None:
        check_topic(topic, wildcards=True)
        self.topic = topic
        self.is_open: bool = False
        """Whether `fetch` and `subscribe` are possible: after `open`, until `close`; not in a forked child, whose parent's it is."""
        self.failed = 0
        """How often a callback has raised."""
        self._provider = _here.provider
        self._queue = f"inbox/{secrets.randbits(63):016x}"
        self._matches = words_matcher(topic)
        self._readers: dict[bytes, _Reader] = {}
        self._last: tuple[bytes | None, int, _Reader] = (None, 0, _skip)
        self._waiting: deque[bytes] = deque()
        self._later: list[tuple[float, int, bytes]] = []
        self._numbers = itertools.count()
        self._reading = threading.RLock()  # who does not hold it cannot release it
        self._is_read = False
        self._subscribed = threading.Lock()
        self._is_over = False
        exact = "=" not in topic and "+" not in topic
        self._provider.declare(self._queue, temporary=True)
        self._provider.bind(self._queue, f"e/{topic}" if exact else WORDS + topic, exact=exact)
        _here.channels.add(self)

    def open(self) -> None:
        """Make `fetch` and `subscribe` possible. Idempotent. Raises RuntimeError after `close`, and in a forked child."""
        self._check_not_over()
        self.is_open = True

    def close(self) -> None:
        """End the channel, and drop what nobody has read. From any thread, which ends a `subscribe`; idempotent."""
        was_over = self._is_over
        self._end()
        if not was_over:
            self._provider.delete(self._queue)

    def _end(self) -> None:
        self.is_open = False
        self._is_over = True

    def __enter__(self) -> Channel:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Channel(topic={self.topic!r}, is_open={self.is_open})"

    def _check_not_over(self) -> None:
        if self._is_over:
            raise RuntimeError(f"{self!r} is closed, or a parent process's: make a new one")

    def _check_open(self) -> None:
        if not self.is_open:
            self._check_not_over()
            raise RuntimeError(f"{self!r}: use it as `with channel:`, or call open() first")

    def _next(self) -> Message | None:
        """The next message that has come to this process."""
        try:
            while True:
                is_due = self._later and self._later[0][0] <= monotonic()
                frame = heapq.heappop(self._later)[-1] if is_due else self._waiting.popleft()
                known, end, read = self._last
                if frame[8:end] != known:  # most have the prefix of the one before: 0.15 us less than to look it up
                    packed = frames.prefix_of(frame)
                    read = self._readers.get(packed) or self._make_reader(packed)
                    end = frames.START.size + len(packed)
                    self._last = (None if read is _skip else frame[8:end]), end, read  # where a frame is cut tells nothing of the next
                message = read(frame)
                if message is not None:
                    return message
        except IndexError:  # looking before would not do: other threads fetch, too
            return None

    def _make_reader(self, packed: bytes) -> _Reader:
        """What makes messages for this channel of frames with that prefix."""
        try:
            prefix = frames.unpack_prefix(packed)
        except CodecError as error:
            log.warning("a message was skipped: %s", error)
            return _skip
        read: _Reader
        if prefix.kind != frames.EVENT or not any(map(self._matches, (prefix.channel, *prefix.topics))):
            read = _skip
        else:
            read = reader_of(packed) if prefix.flags == frames.TIMED else self._read_any
        if len(self._readers) >= _MOST_REMEMBERED:
            self._readers.clear()
        self._readers[packed] = read
        return read

    def _read_any(self, frame: bytes) -> Message | None:
        """A message with headers, or the event of a bus, which may not be due yet, or have expired."""
        try:
            message, options = received(frame)
        except CodecError as error:
            log.warning("a message was skipped: %s", error)
            return None
        if options.get("expires", math.inf) <= monotonic():
            return None
        if options.get("due", 0) > monotonic():
            heapq.heappush(self._later, (options["due"], next(self._numbers), frame))
            return None
        return message

    def _read(self, seconds: float, wait: bool) -> None:
        """`_receive`, unless another thread does: then what comes is for that one, and this one waits for its turn, or does not.

        A signal handler may raise between any two lines: nobody would ever read again if the lock were held then.
        """
        try:
            if self._reading.acquire(blocking=wait) and (wait or not self._is_read):
                self._is_read = True
                try:
                    self._receive(seconds)
                finally:
                    self._is_read = False
        finally:
            try:
                self._reading.release()
            except RuntimeError:
                pass  # it is another's

    def _receive(self, seconds: float) -> None:
        """Take what has come, or wait so long for it. The lock `_reading` is held."""
        for due, *_ in self._later[:1]:
            seconds = min(seconds, max(0, due - monotonic()))
        try:
            found = self._provider.receive(self._queue, None if seconds == math.inf else seconds)
        except ProviderError:
            if self.is_open:
                raise
            return  # closed meanwhile
        self._waiting.extend([frame for frame, _ in found])


def publish(topic: str, data: bytes, headers: Mapping[str, Header] | None = None) -> int:
    """Send bytes to every channel whose topic matches; how many received them.

    Never waits for a receiver unless that is more than 32 MiB behind, then for 1 s at most; after that the copy is dropped, counted
    out and logged. From any thread. Raises ValueError for a topic with wildcards or other characters, TypeError for data that is not
    bytes-like and headers that are no dict of texts to scalars, MessageTooLarge (a ValueError), ProviderError.
    """
    try:
        send = _here.senders[topic]
    except (KeyError, TypeError):
        send = _here.make_sender(topic)
    return send(data, headers)


def fetch(channel: Channel) -> Message | None:
    """The channel's next message, or None; never blocks. Raises RuntimeError where the channel is not open."""
    try:
        channel._check_open()
    except AttributeError:
        raise _no_channel(channel) from None
    message = channel._next()
    if message is None:
        channel._read(0, wait=False)
        message = channel._next()
    return message


def subscribe(channel: Channel, callback: Callable[[Message], Any], timeout_seconds: float = 0) -> int:
    """Call `callback` with each message for so many seconds (0: without end); how many there were, or -1 if a signal ended it.

    In the main thread SIGTERM and SIGINT are caught meanwhile: the callback that runs is finished, what was not handled stays in the
    channel, and the handlers that the program itself had are put back and called. A callback that raises is logged, counted in
    `channel.failed`, and the next message follows. Raises ValueError for a negative timeout, RuntimeError where the channel is not open
    or another thread subscribes to it.
    """
    if not timeout_seconds >= 0:
        raise ValueError(f"timeout_seconds={timeout_seconds!r}: 0 or more")
    if not isinstance(channel, Channel):
        raise _no_channel(channel)
    channel._check_open()
    if not channel._subscribed.acquire(blocking=False):
        raise RuntimeError(f"{channel!r} is subscribed to already: make another Channel of that topic")
    try:
        with caught_signals(channel._provider.wake) as caught:
            handled = _listen(channel, callback, monotonic() + timeout_seconds if timeout_seconds else math.inf, caught)
    finally:
        channel._subscribed.release()
    return -1 if caught else handled


def _no_channel(given: Any) -> TypeError:
    return TypeError(f"it wants a channel, as in `with Channel('logs') as channel:`, not {given!r:.100}")


def _listen(channel: Channel, callback: Callable[[Message], Any], end: float, caught: Caught) -> int:
    handled, is_timed = 0, end < math.inf
    channel._read(0, wait=False)  # what has come is there, however little time there is
    while channel.is_open and not caught:
        message = channel._next()
        if message is None:
            left = end - monotonic()
            if left <= 0:
                break
            channel._read(left, wait=True)
            continue
        handled += 1
        try:
            callback(message)
        except Exception:
            channel.failed += 1
            log.exception("the callback %r failed for %r", callback, message)
        if is_timed and monotonic() >= end:
            break
    return handled


def _skip(frame: bytes) -> None:
    """The reader of what is not for a channel."""


class _Place:
    """Where the channels of this process are, opened when it is first needed, and what publishes from here."""

    def __init__(self) -> None:
        self.senders: dict[str, _Send] = {}
        self.channels: weakref.WeakSet[Channel] = weakref.WeakSet()
        self._opening = threading.Lock()
        self._provider: ShmProvider | None = None

    @property
    def provider(self) -> ShmProvider:
        """Raises ProviderError where there is no shared memory to be had."""
        with self._opening:
            if self._provider is None:
                provider = config().create()
                provider.open()
                self._provider = provider
            return self._provider

    def make_sender(self, topic: str) -> _Send:
        """What publishes to the topic. Raises ValueError and TypeError as `publish` does."""
        check_topic(topic, wildcards=False)
        if len(self.senders) >= _MOST_REMEMBERED:
            self.senders.clear()
        send = self.senders[topic] = sender_to(topic, self.provider)
        return send

    def close(self) -> None:
        """End all channels of this process."""
        self.forget_channels()
        if self._provider is not None:
            self._provider.close()

    def forget_channels(self) -> None:
        """Nobody reads them any more; a forked child must not touch more than that of its parent's."""
        for channel in self.channels:
            channel._end()


_here = _Place()


@atexit.register
def _close() -> None:
    _here.close()


def _begin_anew() -> None:
    """In a forked child: the provider and the channels are the parent's."""
    global _here
    _here.forget_channels()
    _here = _Place()


os.register_at_fork(after_in_child=_begin_anew)
