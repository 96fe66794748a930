"""holder.py topic ...: has a channel of each topic, and reads nothing until it is told to by a line."""

import sys

from pymq.pubsub import Channel, fetch

channels = [Channel(topic=topic) for topic in sys.argv[1:]]
print("ready", flush=True)
sys.stdin.readline()
for channel in channels:
    with channel:
        while (message := fetch(channel)) is not None:
            print(message.topic, message.content, flush=True)
