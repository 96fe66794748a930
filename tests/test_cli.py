"""The command: the demo as a user runs it, and what it says where its packages are missing."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import pymq

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "pymq.cli"]
SHM = Path("/dev/shm")

needs_cli = pytest.mark.skipif(not (find_spec("typer") and find_spec("rich")), reason="needs the extra cli")


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user's environment, with a mark by which the demo's processes are found again."""
    return os.environ | {"PYTHONPATH": str(ROOT), "PYMQ_TEST_MARK": str(tmp_path)}


def marked(environment: dict[str, str]) -> list[int]:
    """The processes that inherited the mark."""
    mark = f"PYMQ_TEST_MARK={environment['PYMQ_TEST_MARK']}".encode()
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if mark in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it has ended, or is another user's


def homes() -> set[Path]:
    return set(SHM.glob("pymq-demo-*"))


def left_behind(before: set[Path]) -> set[Path]:
    """What does not go away: there may be other demos beside this one."""
    end = time.monotonic() + 60
    while (left := homes() - before) and time.monotonic() < end:
        time.sleep(0.1)
    return left


@needs_cli
def test_demo_shows_what_travels_and_leaves_nothing(environment: dict[str, str]) -> None:
    before, begin = homes(), time.monotonic()
    done = run([*COMMAND, "demo"], environment)
    took = time.monotonic() - begin
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert took < 30, "it gives up by itself after 9 s; what is beyond that is the start and end of processes on a busy machine"
    for line in (
        r"publisher +publishes order 4: a clock; it reached 1$",
        r"by_class +handles order 4 of 38.00$",
        r"by_pattern +reads 22.5 from sensors/door$",
        r"worker +packs a clock$",
        r"server +is asked for the price of 4 x chair$",
        r"client +calls price\('chair', amount=4\): 20$",
        r"speed +events: [\d,]+ a second",
        r"speed +remote calls: [\d,]+ microseconds",
    ):
        assert re.search(line, done.stdout, re.M), f"{line} is not in\n{done.stdout}"
    assert left_behind(before) == set()
    assert marked(environment) == []


@needs_cli
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_ends_the_demo_ends_all_its_processes(environment: dict[str, str], number: signal.Signals) -> None:
    before = homes()
    with start_demo(environment) as demo:
        until_it_talks(demo)
        demo.send_signal(number)
        rest, _ = demo.communicate(timeout=20)
    assert demo.returncode == 130
    assert b"Traceback" not in rest
    assert left_behind(before) == set()
    assert marked(environment) == []


@needs_cli
def test_the_programs_end_with_a_director_that_was_killed(environment: dict[str, str]) -> None:
    with start_demo(environment) as demo:
        until_it_talks(demo)
        programs = [pid for pid in marked(environment) if pid != demo.pid]
        (home,) = {re.findall(rb"PYMQ_HOME=([^\0]*)/pymq\0", _read(Path(f"/proc/{pid}/environ")))[0] for pid in programs}
        others = [os.pidfd_open(pid) for pid in programs]
        demo.kill()
    try:
        assert len(others) >= 4
        assert all(has_ended(fd) for fd in others)
    finally:
        for fd in others:
            os.close(fd)
        shutil.rmtree(home)


@needs_cli
def test_what_a_killed_demo_has_left(tmp_path: Path) -> None:
    from pymq.cli.demo.director import stale

    for name, age in (("pymq-demo-old", 3600), ("pymq-demo-new", 0), ("another", 3600)):
        (tmp_path / name / "pymq").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert stale(str(tmp_path)) == [tmp_path / "pymq-demo-old"]


@needs_cli
@pytest.mark.parametrize("command", [["demo"], ["clean", "--yes"]])
def test_what_a_killed_demo_has_left_is_removed(command: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="pymq-demo-", dir=SHM, ignore_cleanup_errors=True) as left:
        os.utime(left, (time.time() - 3600,) * 2)
        environment["PYMQ_HOME"] = str(tmp_path / "pymq")
        told = run([*COMMAND, "clean"], environment)
        assert f"{left}: of a demo that was killed\n" in told.stdout
        assert Path(left).exists()
        assert run([*COMMAND, *command], environment).returncode == 0
        assert not Path(left).exists()


@needs_cli
def test_a_program_of_the_demo_that_is_told_to_end_at_once_says_nothing(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", "import pymq.cli.demo.stage as stage; stage.run('worker')"]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@needs_cli
def test_output_that_cannot_be_written_is_told_in_a_sentence(environment: dict[str, str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "doctor"], env=environment, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, b"pymq: [Errno 28] No space left on device\n")


def has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(20_000))


def start_demo(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, "demo"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def until_it_talks(demo: subprocess.Popen[bytes]) -> None:
    """All listeners are on stage when the first order is placed."""
    assert demo.stdout is not None
    assert any(b"publishes order" in line for line in demo.stdout)


@needs_cli
def test_a_demo_that_cannot_work_says_why(environment: dict[str, str], tmp_path: Path) -> None:
    full = "import os\n\ndef full(*_):\n    raise OSError(28, 'No space left on device')\n\nos.posix_fallocate = full\n"
    (tmp_path / "sitecustomize.py").write_text(full)
    environment["PYTHONPATH"] = f"{tmp_path}:{ROOT}"
    done = run([*COMMAND, "demo"], environment)
    assert done.returncode == 1
    assert "ProviderError" in done.stdout
    assert "the demo failed: " in done.stdout


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_the_command_names_it(missing: str, environment: dict[str, str]) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['pymq', 'demo']; from pymq.cli import main; main()"
    done = run([sys.executable, "-c", program], environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pymq: the command needs {missing}; in a checkout of pymq: pip install -e '.[cli]'\n"


@needs_cli
def test_the_command_says_its_version(environment: dict[str, str]) -> None:
    done = run([*COMMAND, "--version"], environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pymq {pymq.__version__}\n", "")


@needs_cli
def test_the_command_lists_its_words(environment: dict[str, str]) -> None:
    done = run([*COMMAND, "--help"], environment)
    assert done.returncode == 0
    assert "demo" in done.stdout
