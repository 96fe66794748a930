"""A forked child uses the bus that it inherits, over connections of its own; the parent's goes on, and the program ends by itself.

argv: the endpoint, the namespace.
"""

import os
import queue
import sys
import warnings

import pymq
from pymq.provider.aws import LocalstackConfig

heard: "queue.Queue[object]" = queue.Queue()


def child() -> None:
    pymq.publish("from the child", "c")
    pymq.queue("jobs").put("put by the child")
    assert pymq.stub("double", timeout=30)(4) == 8
    assert heard.empty(), "an inherited bus owns no subscription"


def main(endpoint: str, namespace: str) -> None:
    pymq.init(LocalstackConfig(endpoint_url=endpoint, namespace=namespace, refresh=0))
    pymq.subscribe(heard.put, "c")
    pymq.expose(lambda number: 2 * number, "double")
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # since Python 3.12: that is the point
    pid = os.fork()
    if not pid:
        child()
        sys.exit(0)
    print(heard.get(timeout=30))
    print(pymq.queue("jobs").get(timeout=30))
    print("the child's exit:", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    pymq.publish("the parent lives", "c")
    print(heard.get(timeout=30))


if __name__ == "__main__":
    main(*sys.argv[1:])
