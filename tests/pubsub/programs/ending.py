"""Ends while a daemon thread listens."""

import threading

from pymq.pubsub import Channel, Message, publish, subscribe

heard = threading.Event()


def callback(message: Message) -> None:
    print("heard", message.content)
    heard.set()


channel = Channel(topic="a")
channel.open()
threading.Thread(target=subscribe, args=(channel, callback), daemon=True).start()
publish("a", b"x")
heard.wait(10)
