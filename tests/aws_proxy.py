"""An HTTP proxy before the emulated AWS that does to chosen calls what networks do: it refuses, loses, cuts and repeats."""

from __future__ import annotations

import http.client
import threading
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}
"""Headers that each leg has of its own."""


class Proxy:
    """`faults[call]` is what happens to the next calls of that name, one after the other:

    `refuse`: it does not reach AWS; `lose`: its answer is lost; `cut`: half of its answer comes; `repeat`: AWS gets it twice.
    """

    def __init__(self, url: str) -> None:
        self.target = urlsplit(url).netloc
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.seen: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self, call: str) -> str:
        """What happens to this call."""
        self.seen[call] += 1
        return self.faults[call].pop(0) if self.faults[call] else ""


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fault = self.proxy.fault(_name_of(self.headers.get("X-Amz-Target"), body))
        if fault == "refuse":
            return self._hang_up()
        if fault == "repeat":
            self._forward(body)
        status, headers, answer = self._forward(body)
        if fault == "lose":
            return self._hang_up()
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer[: len(answer) // 2] if fault == "cut" else answer)
        return self._hang_up() if fault == "cut" else None

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.target)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in HOP}
        connection.request("POST", self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, [(key, value) for key, value in answer.getheaders() if key.lower() not in HOP], content

    def _hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """No word of each request."""


def _name_of(target: str | None, body: bytes) -> str:
    return target.split(".")[1] if target else parse_qs(body.decode())["Action"][0]
