"""What travels in the demo: plain dataclasses, shared by the programs."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass
class OrderPlaced:
    """An event: published, and handled by whoever listens."""

    number: int
    item: str
    total: Decimal


@dataclass
class Parcel:
    """An item of a queue: one worker gets it."""

    number: int
    item: str


@dataclass
class Tick:
    """What the speed of events is measured with."""

    number: int
    item: str


@dataclass
class Counted:
    """The answer to the last tick: how many came, and when (seconds of the monotonic clock, which all processes share)."""

    ticks: int
    moment: float
