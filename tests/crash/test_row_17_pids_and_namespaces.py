"""Processes in PID namespaces of their own, with the same pids: nothing depends on them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from stage import Nursery, Witness

import pymq

UNSHARE = ("unshare", "--pid", "--fork", "--kill-child")
pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare"),
]


@pytest.fixture
def strangers() -> Iterator[list[Nursery]]:
    """Two nurseries, each in a PID namespace: their children have the same pids."""
    if subprocess.run([*UNSHARE, "true"], check=False).returncode:
        pytest.skip("needs the right to make PID namespaces")
    nurseries = [Nursery(*UNSHARE), Nursery(*UNSHARE)]
    yield nurseries
    for nursery in nurseries:
        nursery.close()


def test_they_meet_and_their_deaths_are_seen(strangers: list[Nursery], witness: Witness) -> None:
    one, other = strangers
    jobs = witness.bus.queue("jobs")
    jobs.put("work")
    victim = one.begin("serve_and_hold", str(witness.config.home))
    one.wait_for(victim, "holds", "work", "1")
    assert witness.bus.publish("hello", "other") == 1
    one.wait_for(victim, "heard", "hello")
    assert witness.bus.stub("served", timeout=10)("fast") == victim
    same = other.begin("look_around", str(witness.config.home))
    assert same == victim, "the same pid in both namespaces"
    other.wait_for(same, "reached", "1")
    other.end(same)
    one.kill(victim, signal.SIGKILL)
    one.end(victim)
    begun = time.monotonic()
    with pytest.raises(pymq.NoSuchRemoteError):
        witness.bus.stub("served", timeout=10)("fast")
    job = jobs.receive(timeout=10)
    assert (job.value, job.attempt) == ("work", 2)
    assert time.monotonic() - begun < 9, "at once, and not when a lease or a deadline ended"
    job.ack()
    assert witness.bus.publish("nobody?", "other") == 0
    jobs.free()
    assert witness.left_behind() == set()


def test_a_call_ends_with_a_server_in_another_namespace(strangers: list[Nursery], witness: Witness) -> None:
    one, _ = strangers
    witness.bus.queue("jobs").put("work")
    victim = one.begin("serve_and_hold", str(witness.config.home))
    one.wait_for(victim, "holds", "work", "1")
    killer = one.begin("kill_later", victim)
    with pytest.raises(pymq.ServerDied):
        witness.bus.stub("served", timeout=30)("slow")
    one.end(killer)
    one.end(victim)
    assert witness.bus.queue("jobs").get(timeout=10) == "work"
    witness.bus.queue("jobs").free()


def test_a_pid_that_is_given_out_again(strangers: list[Nursery], witness: Witness) -> None:
    """The successor lives, is a participant, and has the dead one's number: nobody takes it for the dead one."""
    one, _ = strangers
    jobs = witness.bus.queue("jobs")
    jobs.put("work")
    victim = one.begin("serve_and_hold", str(witness.config.home))
    one.wait_for(victim, "holds", "work", "1")
    one.kill(victim, signal.SIGKILL)
    one.end(victim)
    one.run("give_out_next", victim)
    successor = one.begin("subscribe_only", str(witness.config.home))
    assert successor == victim, "the pid was not given out again"
    one.wait_for(successor, "subscribed")
    begun = time.monotonic()
    job = jobs.receive(timeout=10)
    assert (job.value, job.attempt) == ("work", 2)
    assert time.monotonic() - begun < 9, "at once, and not when the lease ended"
    job.ack()
    with pytest.raises(pymq.NoSuchRemoteError):
        witness.bus.stub("served", timeout=10)("fast")
    assert witness.bus.publish("to the witness and the successor", "events") == 2
    one.kill(successor, signal.SIGKILL)
    one.end(successor)
    assert witness.bus.publish("to the witness", "events") == 1
    jobs.free()
    witness.heard()
    assert witness.left_behind() == set()
