"""Puts numbers and gets them while Ctrl-C comes every few milliseconds; says what became of each."""

import contextlib
import signal
import time

import pymq

COUNT = 10_000

is_at_work = False


def interrupt(*_: object) -> None:
    """Once for each time that there is somebody to catch it: Python 3.12 calls it between two rounds of the loop, too."""
    global is_at_work
    if is_at_work:
        is_at_work = False
        raise KeyboardInterrupt


pymq.init()
jobs = pymq.queue("jobs", type=int)
put, got, interrupts = 0, [], 0
end = time.monotonic() + 60
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
while put < COUNT and time.monotonic() < end:
    try:
        is_at_work = True
        jobs.put(put)
        put += 1
        got.append(jobs.get(timeout=10))
        is_at_work = False
    except KeyboardInterrupt:
        interrupts += 1
signal.setitimer(signal.ITIMER_REAL, 0)
with contextlib.suppress(pymq.Empty):
    while True:
        got.append(jobs.get_nowait())
print(put == COUNT, interrupts > 10, got == sorted(got))
print(len(set(range(COUNT)) - set(got)) <= interrupts)
jobs.free()
pymq.shutdown()
