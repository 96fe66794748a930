"""A participant in a process of its own: does what the test asks over a pipe, each request in a thread.

Requests are (number, function, args, kwargs); answers are (number, whether it went well, result or error), and
(None, True, item) for what handlers say. Ends with the pipe.
"""

from __future__ import annotations

import pickle
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from programs.participant import Participant, in_thread


def main(connection: Connection) -> None:
    sending = threading.Lock()

    def send(number: int | None, good: bool, value: Any) -> None:
        with sending:
            connection.send((number, good, value))

    me = Participant(lambda item: send(None, True, item))
    while True:
        try:
            number, function, args, kwargs = connection.recv()
        except EOFError:
            return
        future = in_thread(function, me, *args, **kwargs)
        future.add_done_callback(lambda done, number=number: send(number, *_outcome(done)))


def _outcome(done: Any) -> tuple[bool, Any]:
    error = done.exception()
    if error is None:
        return True, done.result()
    pickle.loads(pickle.dumps(error))  # an error of ours must be able to travel between processes
    return False, error


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
