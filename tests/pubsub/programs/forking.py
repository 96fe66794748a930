"""What a forked child has of its parent's channels: nothing, and channels of its own."""

import os

from pymq.pubsub import Channel, fetch, publish, subscribe


def child(parents: Channel) -> None:
    print("open", parents.is_open)
    for use in (fetch, lambda channel: subscribe(channel, print), Channel.open):
        try:
            use(parents)
        except RuntimeError:
            print("RuntimeError")
    parents.close()
    with Channel(topic="a.=") as own:
        print("reached", publish("a.b", b"from the child"))
        print(fetch(own).content, fetch(own))


with Channel(topic="a.b") as channel:
    publish("a.b", b"before")
    pid = os.fork()
    if not pid:
        child(channel)
        raise SystemExit
    os.waitpid(pid, 0)
    ids = []
    while (message := fetch(channel)) is not None:
        ids.append(message.id)
        print("parent", message.content)
    print(len({identity >> 64 for identity in ids}), "senders;", "reached", publish("a.b", b"after"), fetch(channel).content)
