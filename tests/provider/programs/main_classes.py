"""Events, handlers and remotes in `__main__`, shared with children that multiprocessing started (argv: the start method)."""

import multiprocessing
import queue
import sys
from dataclasses import dataclass

import pymq


@dataclass
class Greeting:
    text: str


def say(line: str) -> None:
    """In one write: two processes print to one pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def child() -> None:
    if sys.argv[-1] == "fork":
        assert pymq.publish(Greeting("from the inherited bus")) == 1
    pymq.init()
    say(f"child called: {pymq.stub(shout, timeout=10)('hello')}")
    pymq.publish(Greeting("from the child"))
    say(f"child got: {pymq.queue('jobs', type=Greeting).get(timeout=10)}")
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
        say(f"parent got: {heard.get(timeout=20)}")
    pymq.queue("jobs").put(Greeting("from the parent"))
    process.join(20)
    say(f"child's exit: {process.exitcode}")
    pymq.publish(Greeting("parent lives"))
    say(f"parent got: {heard.get(timeout=20)}")
    pymq.shutdown()


if __name__ == "__main__":
    main()
