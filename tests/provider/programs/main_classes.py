"""Events, handlers and remotes in `__main__`, shared with children that multiprocessing started (argv: the start method)."""

import multiprocessing
import queue
import sys
from dataclasses import dataclass

import pymq


@dataclass
class Greeting:
    text: str


def child() -> None:
    if sys.argv[-1] == "fork":
        assert pymq.publish(Greeting("from the inherited bus")) == 1
    pymq.init()
    print("child called:", pymq.stub(shout, timeout=10)("hello"), flush=True)
    pymq.publish(Greeting("from the child"))
    print("child got:", pymq.queue("jobs", type=Greeting).get(timeout=10), flush=True)
    pymq.shutdown()


def shout(text: str) -> str:
    return text.upper()


def main() -> None:
    heard: queue.Queue[Greeting] = queue.Queue()
    pymq.init()
    pymq.expose(shout)

    def on_greeting(event: Greeting) -> None:
        heard.put(event)

    pymq.subscribe(on_greeting)
    process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
    process.start()
    for _ in range(2 if sys.argv[1] == "fork" else 1):
        print("parent got:", heard.get(timeout=20), flush=True)
    pymq.queue("jobs").put(Greeting("from the parent"))
    process.join(20)
    print("child's exit:", process.exitcode)
    pymq.publish(Greeting("parent lives"))
    print("parent got:", heard.get(timeout=20))
    pymq.shutdown()


if __name__ == "__main__":
    main()
