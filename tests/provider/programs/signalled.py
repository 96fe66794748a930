"""Publishes from a signal handler that interrupts publishing, putting and calling for a second."""

import signal
import time

import pymq

pymq.init()
ticks, accepted = 0, 0
pymq.expose(lambda: "pong", "ping")


def on_signal(*_: object) -> None:
    global ticks, accepted
    ticks += 1
    accepted += pymq.publish(ticks, "ticks") or 0


heard = []
pymq.subscribe(heard.append, "ticks")
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
pymq.shutdown()
print(ticks > 10, accepted == ticks)
