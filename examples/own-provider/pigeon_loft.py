"""The service behind pigeon post, which keeps queues as pymq's `simple` does: `python -m pigeon_loft [address]`, until it is ended."""

from __future__ import annotations

import itertools
import os
import socketserver
import sys
from typing import Any

from pigeon_post import PigeonConfig, decoded, encoded

from pymq.exceptions import LeaseLost, ProviderError, PublishFull
from pymq.provider.base import Provider, Receipt
from pymq.provider.simple import SimpleConfig, SimpleProvider

Receipts = dict[int, Receipt]
NUMBERS = itertools.count(1)


class Loft(socketserver.ThreadingUnixStreamServer):
    """A thread for each connection, and for each client a provider in memory, with its deliveries that are not settled."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str) -> None:
        self.clients: dict[str, tuple[SimpleProvider, Receipts]] = {}
        super().__init__(address, Visit)


class Visit(socketserver.StreamRequestHandler):
    """One connection; with the one on which a client was opened, the client ends."""

    server: Loft
    opened = ""

    def handle(self) -> None:
        try:
            for line in self.rfile:
                self.wfile.write(encoded(self.answer(*decoded(line))))
        except ConnectionError:
            pass  # it was killed meanwhile
        if self.opened in self.server.clients:
            self.server.clients.pop(self.opened)[0].close()

    def answer(self, client: str, method: str, args: list[Any], options: dict[str, Any]) -> list[Any]:
        try:
            if method == "open":
                self.opened, options = client, self.register(client, options)
            return [None, self.call(client, method, args, options)]
        except PublishFull as full:
            return ["PublishFull", [full.accepted, full.queues]]
        except Exception as error:
            return [type(error).__name__, [str(error)]]

    def register(self, client: str, options: dict[str, Any]) -> dict[str, Any]:
        self.server.clients[client] = SimpleProvider(SimpleConfig(**options)), {}
        return {}

    def call(self, client: str, method: str, args: list[Any], options: dict[str, Any]) -> Any:
        if method not in Provider.__abstractmethods__ | {"counters"} or client not in self.server.clients:
            raise ProviderError(f"no method {method!r}, or not from a client that is open")
        provider, receipts = self.server.clients[client]
        if method in ("ack", "nack", "extend"):
            args[0] = find(receipts, args[0], is_last=method != "extend")
        value = getattr(provider, method)(*args, **options)
        return [(message, receipt and number(receipts, receipt)) for message, receipt in value] if method == "receive" else value


def number(receipts: Receipts, receipt: Receipt) -> list[Any]:
    """Keep the receipt, under a number that no other ever has: what is settled too late must not touch another delivery."""
    found = next(NUMBERS)
    receipts[found] = receipt
    return [receipt.queue, receipt.attempt, found]


def find(receipts: Receipts, number: int, is_last: bool) -> Receipt:
    """The receipt of that number, which is forgotten when it is settled."""
    found = receipts.pop(number, None) if is_last else receipts.get(number)
    if found is None:
        raise LeaseLost("this delivery was settled already")
    return found


if __name__ == "__main__":
    os.umask(0o077)  # a socket for this user only
    with Loft(*sys.argv[1:] or [PigeonConfig.address]) as loft:
        print("the loft is open", flush=True)
        loft.serve_forever()
