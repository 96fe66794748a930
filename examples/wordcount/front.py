"""The HTTP front: `python front.py [PORT]` takes texts, hands them to the workers, and knows the results.

POST /texts          a text as the body; 202 and its number
GET  /texts/7        200 and the result, 404 while there is none
GET  /dead           the texts that failed too often, and why
POST /dead/requeue   try them again; how many
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from texts import Counted, Text

import pymq

results: dict[int, Counted] = {}
numbers = itertools.count(time.time_ns())  # other than those before a restart, whose results may still be on their way


@pymq.subscriber(group="front")
def on_counted(result: Counted) -> None:
    """With a group, so that results are kept while the front is restarted. What comes twice replaces itself."""
    results[result.number] = result


class Front(BaseHTTPRequestHandler):
    """One request, in a thread of its own."""

    def do_POST(self) -> None:
        queue = pymq.queue("texts", type=Text, maxsize=1000)
        if self.path == "/dead/requeue":
            return self.answer(200, {"requeued": queue.dead.requeue()})
        if self.path != "/texts":
            return self.answer(404, {"error": "POST /texts or /dead/requeue"})
        text = self.rfile.read(int(self.headers["Content-Length"])).decode(errors="replace")
        number = next(numbers)
        try:
            queue.put(Text(number, text), timeout=1)
        except pymq.Full:
            return self.answer(503, {"error": "too much to do; come again later"})
        return self.answer(202, {"number": number})

    def do_GET(self) -> None:
        if self.path == "/dead":
            letters = pymq.queue("texts", type=Text).dead
            return self.answer(200, [{"number": each.value.number, "error": each.headers["dead-error"]} for each in letters])
        number = self.path.removeprefix("/texts/")
        result = results.get(int(number)) if number.isdecimal() else None
        if result is None:
            return self.answer(404, {"error": "there is no such result, or not yet"})
        return self.answer(200, dataclasses.asdict(result))

    def answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def main(port: int = 8000) -> None:
    """Answer until Ctrl-C."""
    with pymq.init(), ThreadingHTTPServer(("127.0.0.1", port), Front) as server:
        print(f"http://127.0.0.1:{server.server_port}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
