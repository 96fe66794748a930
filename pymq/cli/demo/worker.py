"""Works off a queue: what it takes comes back, to it or to another worker, unless the block ends well."""

from __future__ import annotations

import pymq
from pymq.cli.demo.shop import Parcel


def main() -> None:
    """The whole program."""
    pymq.init()
    parcels = pymq.queue("parcels", type=Parcel)
    print("waits for parcels")
    while True:
        with parcels.take() as parcel:
            print(f"packs {parcel.value.item}")


if __name__ == "__main__":
    main()
