"""speaker.py topic content ...: publishes and prints how many channels received each."""

import sys

from pymq.pubsub import publish

print(*[publish(sys.argv[1], content.encode(), headers={"n": n}) for n, content in enumerate(sys.argv[2:])])
