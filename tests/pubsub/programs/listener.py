"""listener.py topic [seconds]: prints what comes to a channel, and in the end what subscribe returned."""

import sys

from pymq.pubsub import Channel, subscribe

topic, seconds = sys.argv[1], float((sys.argv[2:] or ["0"])[0])
with Channel(topic=topic) as channel:
    print("ready", flush=True)
    handled = subscribe(channel, lambda m: print(m.topic, m.content, m.headers, flush=True), timeout_seconds=seconds)
print("handled", handled, flush=True)
