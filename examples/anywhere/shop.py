"""A shop and its customers: the same program on one machine or on many, as PYMQ_URL says.

`python shop.py serve` in one process, `python shop.py buy ITEM` in others.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from decimal import Decimal

import pymq

PRICES = {"lamp": Decimal("19.90"), "chair": Decimal("49.00")}


@dataclass
class Sold:
    """Something was sold."""

    item: str
    price: Decimal


def serve() -> None:
    """Tell prices, and note what is sold, in spite of restarts: once, or once more where the shop is killed as it notes it."""

    @pymq.remote("price")
    def price(item: str) -> Decimal:
        return PRICES[item]

    @pymq.subscriber(group="books")
    def note(sold: Sold) -> None:
        print(f"sold: {sold.item} for {sold.price}")

    print("the shop is open")
    pymq.wait()


def buy(item: str) -> None:
    """Ask for the price, pay it, and wait for nothing."""
    try:
        price = pymq.stub("price", timeout=5)(item)
    except pymq.NoSuchRemoteError:
        sys.exit("the shop is closed")
    except pymq.RemoteInvocationError as error:
        sys.exit(f"the shop has no {item}: {error}")
    assert isinstance(price, Decimal)  # it was one there, it is one here
    pymq.publish(Sold(item, price))
    print(f"bought {item} for {price}")


if __name__ == "__main__":
    with pymq.init() as bus:
        print(f"over {type(bus.config).__name__}")
        try:
            serve() if sys.argv[1:] == ["serve"] else buy(sys.argv[2])
        except KeyboardInterrupt:
            pass
