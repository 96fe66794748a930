"""What the READMEs of the examples say, tried out."""

from __future__ import annotations

import json
import re
import secrets
import signal
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from harness import eventually
from redis_server import shared_url
from started import EXAMPLES, Started

import pymq
from pymq.provider import config_from
from pymq.provider.shm import ShmConfig


@pytest.fixture
def home() -> Iterator[dict[str, str]]:
    """The environment of programs that meet on shared memory and leave nothing there."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="pymq-test-") as home:
        yield {"PYMQ_HOME": f"{home}/pymq", "PYMQ_URL": ""}


def start(stack: ExitStack, program: str, *args: str, env: dict[str, str]) -> Started:
    return stack.enter_context(Started(program, *args, env=env))


def test_every_example_has_a_readme_and_is_listed() -> None:
    listed = re.findall(r"\(([\w-]+)/\)", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(path.parent.name for path in EXAMPLES.glob("*/README.md"))
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.iterdir() if any(path.glob("*.py")))


def test_chat(home: dict[str, str]) -> None:
    with ExitStack() as stack:
        ann = start(stack, "chat/chat.py", "ann", env=home)
        ann.hear("ann is in lobby")
        ann.say("anybody?")
        ann.hear("(nobody else is here)")
        bob = start(stack, "chat/chat.py", "bob", env=home)
        ann.hear("bob: (has come)")
        elsewhere = start(stack, "chat/chat.py", "eve", "cellar", env=home)
        elsewhere.hear("eve is in cellar")
        bob.hear("bob is in lobby")
        bob.say("hello")
        ann.hear("bob: hello")
        ann.say("/who")
        ann.hear("here are ann, bob")
        bob.process.kill()
        bob.process.wait()
        ann.say("/who")
        ann.hear("here are ann")
        assert elsewhere.end() == []


def test_word_counts(home: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "wordcount")
    with ExitStack() as stack:
        front, url = start_front(stack, home)
        worker = start(stack, "wordcount/worker.py", env=home)
        worker.hear("ready")
        number = post(f"{url}/texts", "the quick brown fox")["number"]
        worker.hear(f"text {number}, attempt 1")
        assert result(url, number) == {"number": number, "words": 4, "mean_length": 4.0}
        front.interrupt()
        put_texts(home, 1, 2)
        worker.hear("text 1, attempt 1")
        worker.hear("text 2, attempt 1")
        _, url = start_front(stack, home)
        assert [result(url, number)["words"] for number in (1, 2)] == [2, 2]


def test_a_killed_worker_loses_no_text(home: dict[str, str]) -> None:
    with ExitStack() as stack:
        _, url = start_front(stack, home)
        slow = start(stack, "wordcount/worker.py", "600", env=home)
        number = post(f"{url}/texts", "a text")["number"]
        slow.hear(f"text {number}, attempt 1")
        quick = start(stack, "wordcount/worker.py", env=home)
        quick.hear("ready")
        slow.process.kill()
        quick.hear(f"text {number}, attempt 2")
        assert result(url, number)["words"] == 2


def test_what_fails_too_often_is_a_dead_letter(home: dict[str, str]) -> None:
    with ExitStack() as stack:
        _, url = start_front(stack, home)
        worker = start(stack, "wordcount/worker.py", env=home)
        number, binary = post(f"{url}/texts", " ")["number"], post(f"{url}/texts", "\0")["number"]
        for attempt in range(1, 7):
            worker.hear(f"text {number}, attempt {attempt}")
        good = post(f"{url}/texts", "the worker goes on")["number"]
        assert result(url, good)["words"] == 4
        assert sorted((letter["number"], letter["error"]) for letter in get(f"{url}/dead")) == [
            (number, "ZeroDivisionError"),
            (binary, "Reject"),
        ]
        assert post(f"{url}/dead/requeue", "") == {"requeued": 2}
        worker.hear(f"text {number}, attempt 1")


def test_live_metrics(home: dict[str, str]) -> None:
    with ExitStack() as stack:
        cellar, attic, hung = (start(stack, "metrics/agent.py", name, env=home) for name in ("cellar", "attic", "hung"))
        for agent in (cellar, attic, hung):
            agent.hear("answers")
        table = start(stack, "metrics/watch.py", "1", env=home).end()
        assert [re.findall(r"\w+", line)[0] for line in table if "MiB" in line] == ["attic", "cellar", "hung"]
        hung.process.send_signal(signal.SIGSTOP)
        cellar.process.kill()
        table = start(stack, "metrics/watch.py", "1", env=home).end()
        assert [re.findall(r"\w+", line)[0] for line in table if "MiB" in line] == ["attic"]
        assert any("1 did not answer" in line for line in table)
        assert attic.interrupt() == []


@pytest.mark.parametrize(("provider", "config"), [("shm", "ShmConfig"), ("redis", "RedisConfig")])
def test_the_same_program_anywhere(home: dict[str, str], provider: str, config: str) -> None:
    env = home if provider == "shm" else home | {"PYMQ_URL": f"{shared_url()}/examples-{secrets.token_hex(4)}"}
    with ExitStack() as stack:
        shop = start(stack, "anywhere/shop.py", "serve", env=env)
        shop.hear(f"over {config}")
        shop.hear("the shop is open")
        assert start(stack, "anywhere/shop.py", "buy", "lamp", env=env).end() == [f"over {config}", "bought lamp for 19.90"]
        shop.hear("sold: lamp for 19.90")
        stranger = start(stack, "anywhere/shop.py", "buy", "moon", env=env)
        stranger.hear("the shop has no moon: KeyError")
        assert shop.interrupt() == []
        closed = start(stack, "anywhere/shop.py", "buy", "lamp", env=env)
        closed.hear("the shop is closed")
        if provider == "redis":
            with pymq.EventBus(config_from(env["PYMQ_URL"])) as bus:
                bus.group("books").delete()


def start_front(stack: ExitStack, home: dict[str, str]) -> tuple[Started, str]:
    front = start(stack, "wordcount/front.py", "0", env=home)
    return front, front.hear("http://")


def put_texts(home: dict[str, str], *numbers: int) -> None:
    """As the front does."""
    from texts import Text

    with pymq.EventBus(ShmConfig(home=home["PYMQ_HOME"])) as bus:
        for number in numbers:
            bus.queue("texts").put(Text(number, "one two"))


def post(url: str, body: str) -> Any:
    with urllib.request.urlopen(url, body.encode(), timeout=30) as answer:
        return json.load(answer)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def result(url: str, number: int) -> Any:
    """As soon as it is there."""
    return eventually(lambda: found(f"{url}/texts/{number}"), timeout=30)


def found(url: str) -> Any:
    try:
        return get(url)
    except urllib.error.HTTPError as error:
        error.close()
        return None
