"""Publishes from a signal handler that interrupts publishing, putting and calling for a second.

Where the interrupted call was writing into the same inbox's overflow log, the handler is told so. On ipc, where that begins behind
ten messages, it happens on a busy machine; elsewhere it takes a full pipe.
"""

import queue
import signal
import time

import pymq

pymq.init()
accepted = []
pymq.expose(lambda: "pong", "ping")


def on_signal(*_: object) -> None:
    try:
        accepted.append(pymq.publish("tick", "ticks"))
    except pymq.ProviderError as error:
        if "signal handler has interrupted" not in str(error):
            raise


heard: "queue.Queue[str]" = queue.Queue()
pymq.subscribe(heard.put, "ticks")
signal.signal(signal.SIGALRM, on_signal)
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
end = time.monotonic() + 1
jobs = pymq.queue("jobs")
while time.monotonic() < end:
    pymq.publish("x" * 100, "others")
    jobs.put(1)
    jobs.get(timeout=10)
    assert pymq.stub("ping", timeout=10)() == "pong"
signal.setitimer(signal.ITIMER_REAL, 0)
print([heard.get(timeout=10) for _ in accepted] == ["tick"] * len(accepted))
print(len(accepted) > 10, set(accepted))
pymq.shutdown()
