"""A shop: publishes what happens and queues what has to be done."""

from __future__ import annotations

import time
from decimal import Decimal

import pymq
from pymq.cli.demo.shop import OrderPlaced, Parcel


def main() -> None:
    """The whole program."""
    pymq.init()
    parcels = pymq.queue("parcels")
    for number, item in enumerate(["a lamp", "two chairs", "a table", "a clock"], 1):
        reached = pymq.publish(OrderPlaced(number, item, Decimal("9.50") * number))
        print(f"publishes order {number}: {item}; it reached {reached}")
        parcels.put(Parcel(number, item))
        pymq.topic("sensors/door").publish(20.5 + number / 2)
        time.sleep(0.3)


if __name__ == "__main__":
    main()
