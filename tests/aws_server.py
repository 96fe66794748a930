"""An emulated AWS in a process of its own: moto's server on a free port of the loopback interface, as strict as AWS (`aws_strict`).

`python tests/aws_server.py` prints its URL and serves until its standard input ends, so that it cannot outlive its parent.
"""

from __future__ import annotations

import atexit
import subprocess
import sys
from functools import cache
from pathlib import Path


class AwsServer:
    """Runs until `close`; `url` is its endpoint."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "moto's server did not start"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@cache
def emulator() -> str:
    """The URL of one that runs until this process ends; its namespaces keep the tests apart."""
    server = AwsServer()
    atexit.register(server.close)
    return server.url


def main() -> None:
    import logging

    from aws_strict import be_strict
    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    be_strict()
    WSGIRequestHandler.protocol_version = "HTTP/1.1"  # keeps connections: else each request begins with making one
    logging.getLogger("werkzeug").disabled = True
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
