"""SIGTERM and SIGINT: subscribe ends in good order in the main thread, and leaves signals alone elsewhere."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import GUARD, start_program

PROGRAM = Path(__file__).parent / "programs" / "signalled.py"
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@contextmanager
def ready(how: str) -> Iterator[subprocess.Popen[str]]:
    with start_program(PROGRAM, how, stdin=subprocess.PIPE) as process:
        try:
            while (line := process.stdout.readline()) != "ready\n":
                assert line, process.stderr.read()  # what comes before is of a child
            yield process
        finally:
            process.kill()


def rest(process: subprocess.Popen[str], *said: str) -> list[str]:
    """What it says from now on until it ends, well."""
    out, err = process.communicate("".join(said), timeout=GUARD)
    assert (process.returncode, err) == (0, "")
    return out.splitlines()


@BOTH
def test_a_signal_ends_an_idle_subscribe(home, number):
    with ready("idle") as process:
        process.send_signal(number)
        assert rest(process) == ["-1", "-1"]


@BOTH
def test_the_programs_own_handlers_are_called_and_put_back(home, number):
    with ready("idle_with_handlers") as process:
        process.send_signal(number)
        assert rest(process) == [f"own handler {number.name}", "-1", "[True, True]", "-1"]


@BOTH
def test_the_handlers_of_an_event_loop_are_called_as_well(home, number):
    with ready("in_a_loop") as process:
        process.send_signal(signal.SIGUSR1)
        process.send_signal(number)
        assert rest(process) == ["-1", str([number.name, "SIGUSR1"]), "-1"]


@BOTH
def test_a_callback_is_finished_first_and_the_rest_stays(home, number):
    with ready("handling") as process:
        process.send_signal(number)
        assert rest(process, "\n") == ["finished b'1'", "-1", "b'2'", "-1"]


@BOTH
def test_a_subscribe_within_a_callback_ends_and_the_outer_one_too(home, number):
    with ready("nested") as process:
        process.send_signal(number)
        assert rest(process) == ["inner -1", "outer -1", "-1"]


def test_in_a_thread_signals_are_left_alone(home):
    with ready("in_thread") as process:
        process.send_signal(signal.SIGTERM)
        assert rest(process) == ["own handler SIGTERM", "thread 0", "-1"]


def test_a_forked_child_ends_at_a_signal(home):
    with ready("forked") as process:
        assert rest(process) == ["child ended by SIGTERM", "1", "-1"]


def test_a_forked_child_that_goes_on_does_not_end_its_parents_watch(home):
    with ready("returned") as process:
        process.send_signal(signal.SIGTERM)
        assert rest(process) == ["-1", "child 0", "-1"]


def test_whenever_a_signal_comes_it_is_not_lost(home):
    for _ in range(10):
        with ready("many") as process:
            process.send_signal(signal.SIGTERM)
            assert rest(process) == ["True", "-1"]
