"""The deliveries that a provider holds under leases: settled once and in time, extended while the process lives."""

from __future__ import annotations

import math
import threading
import time
from functools import partial

from pymq.provider._aws.keeper import Keeper
from pymq.provider._aws.mailbox import concurrently
from pymq.provider._aws.queue import SqsReceipt
from pymq.provider._aws.sweep import quietly
from pymq.provider._refusals import lost

ROUNDING = 0.5
"""Seconds by which a lease may end after the visibility timeout that stands for it."""


class Leases:
    """Those of one provider; `longest` is the longest visibility timeout that SQS is told. Safe in all threads."""

    def __init__(self, keeper: Keeper, longest: float) -> None:
        self._keeper = keeper
        self._longest = longest
        self._lock = threading.Lock()
        self._held: set[SqsReceipt] = set()

    def hold(self, receipt: SqsReceipt) -> None:
        """Until it is settled, or its lease ends."""
        with self._lock:
            self._held = {held for held in self._held if held.until > time.monotonic()} | {receipt}
        self._extend_later(receipt)

    def _extend_later(self, receipt: SqsReceipt) -> None:
        if receipt.until > receipt.hidden_until + ROUNDING:
            self._keeper.add(self._extend, "extending leases")

    def _extend(self) -> None:
        """Those that are longer than SQS was told."""
        with self._lock:
            short = [held for held in self._held if held.until > max(time.monotonic(), held.hidden_until + ROUNDING)]
        concurrently(lambda receipt: quietly(partial(self._extend_one, receipt), "extending a lease"), short)

    def _extend_one(self, receipt: SqsReceipt) -> None:
        if not receipt.home.hide(receipt, min(receipt.until - time.monotonic(), self._longest)):
            receipt.until = -math.inf

    def spend(self, receipt: SqsReceipt) -> None:
        """It is to be settled, now and once. Raises LeaseLost."""
        with self._lock:
            self._held.discard(receipt)
            if time.monotonic() >= receipt.until:
                raise lost(receipt)
            receipt.until = -math.inf

    def extend(self, receipt: SqsReceipt, seconds: float) -> None:
        """Its lease ends `seconds` from now. Raises LeaseLost."""
        if time.monotonic() >= receipt.until or not receipt.home.hide(receipt, min(seconds, self._longest)):
            receipt.until = -math.inf
            raise lost(receipt)
        receipt.until = time.monotonic() + seconds
        self._extend_later(receipt)

    def give_back(self) -> None:
        """All of them: the provider ends."""
        with self._lock:
            held, self._held = self._held, set()
        concurrently(lambda receipt: quietly(lambda: receipt.home.hide(receipt, 0), "giving a message back"), held)
