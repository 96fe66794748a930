"""The event that every contestant sends: four fields, a JSON object of about 70 bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Trade:
    """What a market would publish."""

    trade_id: int
    symbol: str
    price: float
    buy: bool


TRADE = Trade(1_000_017, "EURUSD", 1.0842, True)


@dataclass
class Order:
    """What a remote function is called with."""

    order_id: int
    amount: int
    price: float


ORDER = Order(17, 3, 9.5)


@dataclass
class Receipt:
    """What it returns."""

    order_id: int
    total: float


def settle(order: Order) -> Receipt:
    """The remote function itself."""
    return Receipt(order.order_id, order.amount * order.price)
