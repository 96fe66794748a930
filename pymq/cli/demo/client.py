"""Calls a function that another process serves."""

from __future__ import annotations

import time

import pymq


def main() -> None:
    """The whole program."""
    pymq.init()
    price = pymq.stub("price", timeout=2)
    for item, amount in [("lamp", 2), ("chair", 4), ("clock", 1)]:
        print(f"calls price({item!r}, amount={amount}): {price(item, amount=amount)}")
        time.sleep(0.3)


if __name__ == "__main__":
    main()
