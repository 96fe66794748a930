"""Listens to a class of events."""

from __future__ import annotations

import pymq
from pymq.cli.demo.shop import OrderPlaced


@pymq.subscriber
def on_order(order: OrderPlaced) -> None:
    """The hint says which events arrive here."""
    print(f"handles order {order.number} of {order.total}")


if __name__ == "__main__":
    pymq.init()
    print("listens to OrderPlaced")
    pymq.wait()
