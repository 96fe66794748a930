"""A bus whose handlers say what they get on channels logs.app and logs.*; for each line it publishes that as bytes, twice."""

import os
import sys

import pymq


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")  # at once: several threads speak


pymq.init()
pymq.subscribe(lambda value, message: say(f"exact {value} {message.headers}"), "logs.app")
pymq.subscribe(lambda value: say(f"pattern {value}"), "logs.*", pattern=True)
say("ready")
for line in sys.stdin:
    content = line.strip().encode()
    say(f"reached {pymq.topic('logs.app').publish(content)} {pymq.publish(content, 'logs.app', headers={'k': 1})}")
pymq.shutdown()
