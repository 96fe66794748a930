"""SimpleProvider behind a socket, so that processes meet on it: what the suite's tests with several processes are tried on.

The process that starts a `Server` holds the real providers. A client holds one connection as long as it lives, whose end closes
its provider there, and opens another for each call.
"""

from __future__ import annotations

import copyreg
import dataclasses
import itertools
import secrets
import threading
from multiprocessing.connection import Client, Connection, Listener

from pymq.exceptions import PublishFull
from pymq.provider.base import Features, Provider, Receipt
from pymq.provider.simple import SimpleConfig, SimpleProvider

copyreg.pickle(PublishFull, lambda error: (PublishFull, (error.accepted, error.queues)))


class NumberedReceipt(Receipt):
    """A receipt that travels; the server knows the real one by its number."""

    __slots__ = ("number",)

    def __init__(self, queue, attempt, number):
        super().__init__(queue, attempt)
        self.number = number

    def __reduce__(self):
        return NumberedReceipt, (self.queue, self.attempt, self.number)


class Server:
    """Runs until `close`; `make(config)` makes the provider of each client."""

    def __init__(self, make=SimpleProvider):
        self._make = make
        self._providers = {}
        self._receipts = {}
        self._numbers = itertools.count()
        self._listener = Listener(family="AF_UNIX", backlog=64)
        self.address = self._listener.address
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self):
        Client(self.address).close()
        self._thread.join()
        self._listener.close()

    def _accept(self):
        while True:
            connection = self._listener.accept()
            try:
                request = connection.recv()
            except EOFError:
                return connection.close()
            threading.Thread(target=self._handle, args=(connection, *request), daemon=True).start()

    def _handle(self, connection: Connection, client, method, args, options):
        with connection:
            if method == "open":
                return self._live(connection, client, *args)
            try:
                answer = (None, self._call(client, method, args, options))
            except Exception as error:
                answer = (error, None)
            try:
                connection.send(answer)
            except BrokenPipeError:
                pass  # the client was killed meanwhile

    def _live(self, connection, client, config):
        provider = self._providers[client] = self._make(config)
        provider.open()
        connection.send("open")
        try:
            connection.recv()
        except (EOFError, ConnectionResetError):
            self.client_ended(provider)

    def client_ended(self, provider):
        provider.close()

    def _call(self, client, method, args, options):
        args = [self._receipts[arg.number] if isinstance(arg, NumberedReceipt) else arg for arg in args]
        result = getattr(self._providers[client], method)(*args, **options)
        return [self._numbered(*delivery) for delivery in result] if method == "receive" else result

    def _numbered(self, message, receipt):
        if receipt is None:
            return message, None
        number = next(self._numbers)
        self._receipts[number] = receipt
        return message, NumberedReceipt(receipt.queue, receipt.attempt, number)


@dataclasses.dataclass(frozen=True)
class SocketConfig(SimpleConfig):
    address: str = ""

    def create(self):
        return SocketProvider(self)


class SocketProvider(Provider):
    """Every method of the contract is a request."""

    features = Features(cross_process=True, priorities=10)

    def __init__(self, config):
        self._config = config
        self._name = secrets.token_hex(8)
        self.max_message_bytes = config.max_message_bytes

    def open(self):
        self._life = Client(self._config.address)
        fields = {field.name: getattr(self._config, field.name) for field in dataclasses.fields(SimpleConfig)}
        self._life.send((self._name, "open", (SimpleConfig(**fields),), {}))
        self._life.recv()

    def close(self):
        if not self._life.closed:
            self._request("close")
            self._life.close()

    def _request(self, method, *args, **options):
        with Client(self._config.address) as connection:
            connection.send((self._name, method, args, options))
            error, value = connection.recv()
        if error is not None:
            raise error
        return value


def _forwarding(method):
    return lambda self, *args, **options: self._request(method, *args, **options)


for _method in Provider.__abstractmethods__ - {"open", "close"} | {"counters", "clock"}:
    setattr(SocketProvider, _method, _forwarding(_method))
SocketProvider.__abstractmethods__ = frozenset()
