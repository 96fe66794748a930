"""What the aws provider leaves behind: nothing, whichever way its processes end; and the command that shows and removes the rest."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from aws_proxy import Proxy
from aws_server import emulator
from aws_wire import Wire
from harness import Heard, ProcessPeer, eventually, run_program
from programs import shop
from programs.participant import verbs

import pymq
from pymq.provider.aws import AwsProvider, LocalstackConfig

LEASE = 2.0


@pytest.fixture
def config() -> LocalstackConfig:
    return LocalstackConfig(endpoint_url=emulator(), namespace=secrets.token_hex(4), lease=LEASE, refresh=0, poll=1)


@pytest.fixture
def peer(config: LocalstackConfig) -> Iterator[ProcessPeer]:
    peer = ProcessPeer()
    peer.call(verbs.open, config)
    yield peer
    peer.end()


def owned(config: LocalstackConfig, *kinds: str) -> list[str]:
    """What the namespace has, by kind."""
    provider = AwsProvider(config)
    provider.open()
    return sorted(found.kind for found in provider.sweeper.inventory() if not kinds or found.kind in kinds)


def test_a_process_that_ends_leaves_nothing_of_its_own(config, peer):
    peer.subscribe(shop.orders)
    peer.expose(shop.who, "who")
    assert owned(config, "mailbox", "subscription") == ["mailbox", "subscription", "subscription"]
    peer.call(verbs.close)
    assert owned(config, "mailbox", "subscription") == []


def test_what_a_killed_process_has_left_is_swept_by_a_later_one(config, peer):
    peer.subscribe(shop.orders)
    peer.kill()
    assert owned(config, "mailbox", "subscription") == ["mailbox", "subscription"]
    provider = AwsProvider(config)
    provider.open()
    eventually(lambda: not any(tags_live(provider)))
    with pymq.EventBus(config) as bus:
        bus.subscribe(lambda event: None, "c")
        eventually(lambda: owned(config, "mailbox", "subscription") == ["mailbox", "subscription"])
    assert owned(config, "mailbox", "subscription") == []


def tags_live(provider: AwsProvider) -> list[bool]:
    directory = provider._directory
    return [directory.lives(directory.tags(url)) for url in directory.listed("m")]


def test_the_living_are_not_swept(config, peer):
    peer.subscribe(shop.orders)
    provider = AwsProvider(config)
    provider.open()
    assert provider.sweeper.sweep() == 0
    first = next(provider._directory.tags(url)["pymq:lease"] for url in provider._directory.listed("m"))
    eventually(lambda: next(provider._directory.tags(url)["pymq:lease"] for url in provider._directory.listed("m")) != first)
    assert provider.sweeper.sweep() == 0


def test_nobody_is_taken_for_dead_because_a_clock_was_set(monkeypatch):
    """One that was three minutes slow when this process began, and is right since."""
    of_the_server, of_the_caller = Wire(), Wire()
    config = of_the_server.config()
    with pymq.EventBus(config) as server:
        server.expose(lambda: "here", "who")
        right = time.time
        with monkeypatch.context() as slow:
            slow.setattr("time.time", lambda: right() - 180)
            caller = AwsProvider(of_the_caller.config(namespace=config.namespace))
            caller.open()
        assert caller.consumers("r/who") == [server.inbox]
        assert caller.sweeper.sweep() == 0


def test_a_server_that_is_killed_is_no_server_after_its_lease(config, peer):
    peer.expose(shop.who, "who")
    with pymq.EventBus(config) as bus:
        assert len(bus.stub("who", multi=True, timeout=10)()) == 1
        peer.kill()
        with pytest.raises((pymq.ServerDied, pymq.NoSuchRemoteError)):
            bus.stub("who", timeout=60)()
        assert bus.stub("who", multi=True, timeout=10)() == []


def test_a_process_that_was_taken_for_dead_says_so_and_goes_on(config, caplog):
    heard = Heard()
    with pymq.EventBus(config) as bus, pymq.EventBus(config) as other:
        bus.subscribe(heard, "c")
        bus.expose(lambda: "here", "who")
        provider = AwsProvider(config)
        provider.open()
        provider.sweeper._remove_mailboxes(provider._directory.listed("m"))
        eventually(lambda: "was removed" in caplog.text)
        eventually(lambda: owned(config, "mailbox", "subscription") == ["mailbox", "subscription", "subscription"])
        other.publish("still here", "c")
        assert heard.next() == "still here"
        assert other.stub("who", timeout=10)() == "here"


def test_a_participant_that_cannot_reach_aws_any_more_ends_all_the_same(caplog):
    wire = Wire()
    bus = pymq.EventBus(wire.config())
    bus.start()
    bus.subscribe(lambda event: None, "c")
    for call in ("Unsubscribe", "SendMessage", "DeleteQueue", "ReceiveMessage"):
        wire.answers[call] = unavailable
    bus.shutdown()
    assert "removing this process's mailbox failed" in caplog.text


def unavailable(call):
    return 503, {"content-type": "text/plain"}, b""


def test_a_forked_child_uses_the_bus_over_connections_of_its_own(config):
    """And the program ends without a word, and without the long polls that it has begun, of 20 s."""
    assert run_program("aws_forking.py", emulator(), config.namespace) == [
        "from the child",
        "put by the child",
        "the child's exit: 0",
        "the parent lives",
    ]
    assert owned(config, "mailbox", "subscription") == []


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    return subprocess.run(
        [sys.executable, "-m", "pymq.cli", "aws", *arguments],
        env=os.environ | environment | {"PYTHONPATH": str(Path(pymq.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def command(*arguments: str) -> str:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def test_list_shows_and_purge_removes_what_a_namespace_owns(config, peer):
    peer.subscribe(shop.orders)
    peer.subscribe(shop.orders, group="billing")
    peer.queue("jobs", "put", 1)
    at = ["--namespace", config.namespace, "--endpoint-url", emulator()]
    sns = boto3.client("sns", "us-east-1", endpoint_url=emulator(), aws_access_key_id="test", aws_secret_access_key="test")
    stranger = sns.create_topic(Name="pymq-not-ours")["TopicArn"]

    shown = command("list", *at)
    for kind, what in (
        ("queue", "queue/jobs"),
        ("queue", "group/billing"),
        ("topic", "e/programs.shop"),
        ("mailbox", f"/{peer.process.pid}"),
    ):
        assert any(line.startswith(kind) and what in line for line in shown.splitlines()), f"no {kind} {what} in\n{shown}"
    before = owned(config)

    assert command("purge", *at).endswith(f"{len(before)} things; to remove them, say --yes\n")
    assert owned(config) == before
    peer.kill()
    removed = command("purge", *at, "--yes")
    assert f"removing what '{config.namespace}' owns" in removed, "the progress bar"
    assert f"{len(before)} things removed" in removed
    assert owned(config) == []
    assert stranger in [topic["TopicArn"] for topic in sns.list_topics()["Topics"]]
    assert "owns nothing" in command("list", *at)


def test_policy_prints_the_policy():
    statements = json.loads(command("policy", "--namespace", "shop", "--region", "eu-west-1", "--account", "123456789012"))["Statement"]
    assert any("arn:aws:sqs:eu-west-1:123456789012:pymq-shop-" in statement["Resource"] for statement in statements)


def test_every_call_that_is_made_is_in_the_policy(peer):
    """The emulator asks for no permission, so a call that the policy forgets would be seen on AWS only."""
    from pymq.provider._aws.names import Names, access_policy

    wire = Wire()
    with pymq.EventBus(wire.config(lease=1.5)) as bus:
        bus.subscribe(lambda event: None, "c")
        bus.subscribe(lambda event: None, "c*", pattern=True)
        bus.subscribe(lambda event: None, "c*", pattern=True, group="g")
        bus.publish(1, "c")
        bus.expose(lambda: 1, "one")
        assert bus.stub("one", timeout=10)() == 1
        jobs = bus.queue("jobs", maxsize=10)
        jobs.put(1)
        with jobs.take(timeout=10) as job:
            job.extend(10)
        eventually(lambda: wire.named("TagQueue"))
        bus.group("g").delete()
        provider = bus.provider
        provider.unbind("queue/jobs", "x", exact=False)
        for found in provider.sweeper.inventory():
            found.remove() if found.kind != "mailbox" else None
    made = {call.name.removesuffix("Batch") for call in wire.calls} - {"GetCallerIdentity"}
    allowed = {action.partition(":")[2] for each in access_policy(Names("x", False))["Statement"] for action in each["Action"]}
    assert made <= allowed
    assert allowed - made == {"TagResource"}  # needed where a topic is made with tags, which CreateTopic is


def test_an_error_of_the_command_is_one_line():
    done = run("list", "--endpoint-url", "http://127.0.0.1:9")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("pymq: AWS did not answer")


def test_so_is_one_of_a_removal(config, peer):
    peer.queue("jobs", "put", 1)
    with Proxy(emulator()) as proxy:
        proxy.faults["DeleteQueue"] = ["refuse"] * 100
        done = run("purge", "--yes", "--namespace", config.namespace, "--endpoint-url", proxy.url)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("pymq: AWS did not answer")
    peer.queue("jobs", "free")
