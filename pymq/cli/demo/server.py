"""Serves a function to other processes."""

from __future__ import annotations

from decimal import Decimal

import pymq


@pymq.remote("price")
def price(item: str, amount: int = 1) -> Decimal:
    """Runs here, whoever calls it."""
    print(f"is asked for the price of {amount} x {item}")
    return Decimal(len(item)) * amount


if __name__ == "__main__":
    pymq.init()
    print("serves price(item, amount)")
    pymq.wait()
