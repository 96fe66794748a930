"""What a forked child can do with the bus it inherits, with one of its own, and how it can end."""

import os
import queue
import sys
import threading
from collections.abc import Callable

import pymq

heard: "queue.Queue[tuple[int, object]]" = queue.Queue()


def on_value(value: object) -> None:
    heard.put((os.getpid(), value))


def parent_pid() -> int:
    return os.getpid()


def child_publishes() -> None:
    assert pymq.publish("published", "c") == 1
    pymq.queue("jobs").put("put")
    assert pymq.stub(parent_pid, timeout=10)() == os.getppid()
    assert heard.empty(), "an inherited bus owns no subscription"


def child_inits() -> None:
    pymq.init()
    assert pymq.publish("two receivers?", "c") == 1
    pymq.subscribe(on_value, "c")
    assert pymq.publish("two receivers", "c") == 2
    assert heard.get(timeout=10) == (os.getpid(), "two receivers")
    assert pymq.stub(parent_pid, timeout=10)() == os.getppid()
    try:
        pymq.init()
    except Exception:
        pymq.shutdown()
    else:
        raise AssertionError("a second init in the child")


def child_shuts_down() -> None:
    pymq.shutdown()


def child_does_nothing() -> None:
    pass


def child_ends_at_once() -> None:
    os._exit(0)


def child_execs() -> None:
    os.execv(sys.executable, [sys.executable, "-c", "pass"])


def fork(work: Callable[[], None]) -> int:
    """The exit code of a child that did that."""
    pid = os.fork()
    if not pid:
        work()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork_here() -> "tuple[str, int]":
    """In a handler or a remote: the child returns as well, and then ends; who called hears of the parent alone."""
    pid = os.fork()
    if not pid:
        return "child", 0
    return "parent", os.waitpid(pid, 0)[1]


async def fork_here_too() -> "tuple[str, int]":
    return fork_here()


def tell_of_fork(value: object) -> None:
    heard.put(fork_here())


def fork_in_handlers() -> list[object]:
    """What children of handlers and remotes leave of them: nothing, and they end."""
    pymq.expose(fork_here)
    pymq.expose(fork_here_too)
    pymq.subscribe(tell_of_fork, "plain")
    pymq.subscribe(tell_of_fork, "grouped", group="g")
    found: list[object] = [pymq.stub(remote, timeout=10)() for remote in (fork_here, fork_here_too)]
    for channel in ("plain", "grouped"):
        assert pymq.publish(1, channel) == 1
        found.append(heard.get(timeout=10))
    pymq.unsubscribe(tell_of_fork)
    pymq.group("g").delete()
    return found


def publish_for_ever(stop: threading.Event) -> None:
    while not stop.is_set():
        pymq.publish("noise", "noise")


def main() -> None:
    pymq.init()
    pymq.subscribe(on_value, "c")
    silent = threading.Event()
    pymq.subscribe(lambda value: silent.set() if value == "silence" else None, "noise")
    pymq.expose(parent_pid)
    stop = threading.Event()
    noise = threading.Thread(target=publish_for_ever, args=(stop,))
    noise.start()
    for work in (child_publishes, child_inits, child_shuts_down, child_does_nothing, child_ends_at_once, child_execs):
        print(work.__name__, fork(work), flush=True)
        assert pymq.publish("parent", "c") == 1
        while heard.get(timeout=10) != (os.getpid(), "parent"):
            pass
        assert pymq.stub(parent_pid, timeout=10)() == os.getpid()
    print(fork_in_handlers(), flush=True)
    stop.set()
    noise.join()
    pymq.publish("silence", "noise")
    assert silent.wait(10)
    print(pymq.queue("jobs").get(timeout=10), heard.empty())
    pymq.shutdown()


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    main()
