"""`pymq doctor` finds what would fail and says what to do; `pymq clean` removes what the dead have left, and nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from harness import ROOT
from stage import Nursery, Witness

import pymq
from pymq.provider.shm import ShmConfig

pytestmark = pytest.mark.skipif(not (find_spec("typer") and find_spec("rich")), reason="needs the extra cli")


def pymq_command(*words: str, home: Path, prefix: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in os.environ.items() if name != "PYMQ_URL"}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "pymq.cli", *words],
        env={**given, "PYTHONPATH": str(ROOT), "PYMQ_HOME": str(home), "COLUMNS": "300", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def lines_with(done: subprocess.CompletedProcess[str], *words: str) -> list[str]:
    return [line for line in done.stdout.splitlines() if all(word in line for word in words)]


def test_a_healthy_machine(stage: Path) -> None:
    done = pymq_command("doctor", home=stage / "pymq")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    for checked in ("Python", "pymq", "pydantic", "room in", "home", "open files", "pipes", "an event arrives", "PYMQ_URL"):
        assert lines_with(done, checked), checked
    assert not lines_with(done, "fails")
    assert list(stage.rglob("*")) == [], "it leaves nothing"


def test_a_home_that_others_may_enter(stage: Path) -> None:
    (stage / "pymq").mkdir(mode=0o755)
    done = pymq_command("doctor", home=stage / "pymq")
    assert done.returncode == 1
    assert lines_with(done, "fails", "home", "mode 755", "set PYMQ_HOME")


def test_a_path_is_told_whole(stage: Path) -> None:
    done = pymq_command("doctor", home=stage / ("long" * 20), COLUMNS="80")
    assert "…" not in done.stdout


def test_few_open_files(stage: Path) -> None:
    done = pymq_command("doctor", home=stage / "pymq", prefix=("sh", "-c", 'ulimit -n 30; exec "$@"', "sh"))
    assert done.returncode == 1
    assert lines_with(done, "fails", "open files", "at most 30", "ulimit -n")


@pytest.mark.parametrize(
    ("url", "told"),
    [("redis://user:secret@localhost:1/0", "redis://user@localhost:1/0"), ("nosuch://x", "no provider is called 'nosuch'")],
)
def test_what_pymq_url_names_cannot_be_reached(url: str, told: str, stage: Path) -> None:
    if url.startswith("redis") and not find_spec("redis"):
        pytest.skip("needs the extra redis")
    done = pymq_command("doctor", home=stage / "pymq", PYMQ_URL=url)
    assert done.returncode == 1
    assert lines_with(done, "fails", "PYMQ_URL", told)
    assert "secret" not in done.stdout


@pytest.mark.skipif(not find_spec("posix_ipc"), reason="needs posix_ipc")
def test_no_room_for_kernel_queues(stage: Path) -> None:
    limited = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 0)); os.execv(sys.argv[1], sys.argv[1:])"
    prefix = (sys.executable, "-c", limited)
    done = pymq_command("doctor", home=stage / "pymq", prefix=prefix, PYMQ_URL="ipc://x", COLUMNS="600")
    assert done.returncode == 1
    assert lines_with(done, "look", "kernel queues", "room for 0 buses: 0 bytes", "ulimit -q")
    assert lines_with(done, "fails", "PYMQ_URL", "ipc://x", "RLIMIT_MSGQUEUE")
    assert lines_with(pymq_command("doctor", home=stage / "pymq", PYMQ_URL="ipc://x"), "ok", "ipc://x: reached")
    assert list(stage.iterdir()) == []


@pytest.mark.parametrize("service", ["redis", "aws"])
def test_what_pymq_url_names_is_reached(service: str, stage: Path) -> None:
    if service == "redis":
        from redis_server import shared_url

        url, environment = shared_url(), {}
    else:
        from aws_server import emulator

        url = "aws://us-east-1/doctor"
        environment = {"AWS_ENDPOINT_URL": emulator(), "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    done = pymq_command("doctor", home=stage / "pymq", PYMQ_URL=url, **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert lines_with(done, "ok", "PYMQ_URL", f"{url}: reached")


AS_NOBODY = """
import fcntl, io, os, sys
from rich.console import Console
from pymq.cli.clean import clean
from pymq.cli.doctor import doctor

command = {"doctor": doctor, "clean": lambda console: clean(console, remove=True)}[sys.argv[1]]
home, os.environ["PYMQ_HOME"] = os.environ["PYMQ_HOME"], sys.argv[2]
command(Console(file=io.StringIO()))  # imports what that user may not be able to read
os.environ["PYMQ_HOME"] = home
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
try:
    while "no large pipes" in sys.argv:
        fcntl.fcntl(os.pipe()[1], fcntl.F_SETPIPE_SZ, 1 << 20)
except OSError:
    pass
sys.exit(command(Console()))
"""


def as_nobody(*words: str, home: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_NOBODY, words[0], str(tmp_path / "pymq"), *words[1:]],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYMQ_HOME": str(home), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_no_more_large_pipes(stage: Path, tmp_path: Path) -> None:
    """As a user who has as many as the kernel allows: slower, but nothing fails."""
    stage.chmod(0o1777)
    done = as_nobody("doctor", "no large pipes", home=stage / "pymq", tmp_path=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert lines_with(done, "look", "pipes", "no more large ones", "pipe-user-pages-soft")
    assert lines_with(done, "ok", "an event arrives")


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("command", ["doctor", "clean"])
def test_as_another_user(command: str, stage: Path, tmp_path: Path) -> None:
    stage.chmod(0o1777)
    (stage / "pymq").mkdir(mode=0o700)
    done = as_nobody(command, home=stage / "pymq", tmp_path=tmp_path)
    assert (done.returncode, done.stderr) == (1, ""), done.stdout
    assert "set PYMQ_HOME to another directory" in " ".join(done.stdout.split())


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_directory_that_is_there_but_not_to_be_written_is_not_to_be_made(stage: Path, tmp_path: Path) -> None:
    stage.chmod(0o755)
    done = as_nobody("doctor", home=stage / "pymq", tmp_path=tmp_path)
    assert done.returncode == 1
    assert lines_with(done, "fails", "home", f"{stage} is not to be written for you: set PYMQ_HOME"), done.stdout


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_no_room(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,nr_inodes=40", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        done = pymq_command("doctor", home=tmp_path / "pymq")
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)
    assert done.returncode == 1
    assert lines_with(done, "fails", "room in", "0 of 0 MiB free")
    assert lines_with(done, "fails", "inodes there")


def leave_something(actors: Nursery, home: Path) -> None:
    """A process with items, a lease, a group and a subscription, killed."""
    actors.shut()
    actor = actors.begin("perform", str(home), "Close", actors.gate, False)
    actors.wait_for(actor, "ready")
    os.kill(actor, signal.SIGKILL)
    actors.end(actor)


def test_what_the_dead_have_left(actors: Nursery, stage: Path) -> None:
    home = stage / "pymq"
    leave_something(actors, home)
    before = sorted(map(str, stage.rglob("*")))
    examined = pymq_command("doctor", home=home)
    assert examined.returncode == 0
    assert lines_with(examined, "look", "0 files of living processes", "pymq clean")
    looked = pymq_command("clean", home=home)
    assert looked.returncode == 0
    assert lines_with(looked, "files of dead processes", "nobody there")
    assert lines_with(looked, "nothing was removed", "--yes")
    assert sorted(map(str, stage.rglob("*"))) == before
    cleaned = pymq_command("clean", "--yes", home=home)
    assert lines_with(cleaned, "removed")
    assert lines_with(pymq_command("clean", "--yes", home=home), "nothing to remove")
    assert [path for path in stage.rglob("*") if path.parent.name in {"bells", "inboxes"}] == []
    assert lines_with(pymq_command("doctor", home=home), "ok", "0 of dead ones")
    found = [line[1] for line in finish(actors, home) if line[0] == "found"]
    assert found == ["a", "b", "c"], "what waits, and what was lent, stays"
    assert list(home.rglob("*")) == []


def finish(actors: Nursery, home: Path) -> list[list[str]]:
    """Somebody comes, and takes what is there."""
    witness = Witness(ShmConfig("faults", str(home)))
    try:
        return actors.run("look", str(home))
    finally:
        witness.close()


LEAVER = """
import contextlib, pymq
pymq.init({url!r})
for number in range(3):
    pymq.queue("jobs").put(number, priority=number % 2)
pymq.queue("jobs").put("later", delay=1000)
with contextlib.suppress(pymq.Reject), pymq.queue("jobs").take():
    raise pymq.Reject
for channel in ("a", "b"):
    pymq.group("billing").bind(channel)
    pymq.publish(1, channel)
pymq.group("waiting").bind("nothing")
pymq.queue("empty")
pymq.queue("freed").put(1)
pymq.queue("freed").free()
"""


@pytest.mark.parametrize("url", ["shm://shop", "ipc://shop"])
def test_what_stays_is_named_and_counted(url: str, stage: Path) -> None:
    home = stage / "pymq"
    environment = {**os.environ, "PYMQ_HOME": str(home), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", LEAVER.format(url=url)], env=environment, check=True)
    for words in (["clean"], ["clean", "--yes"], ["clean"]):
        told = [line.strip() for line in pymq_command(*words, home=home).stdout.splitlines() if line.startswith("    ")]
        assert sorted(told) == ["dead letters of the queue 'jobs': 1", "group 'billing': 2", "group 'waiting': 0", "queue 'jobs': 3"]


def test_of_what_stays_nobody_says_that_it_can_be_removed(stage: Path) -> None:
    home = stage / "pymq"
    environment = {**os.environ, "PYMQ_HOME": str(home), "PYTHONPATH": str(ROOT)}
    program = "import pymq; pymq.init('shm://shop'); pymq.group('billing').bind('a')"
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    looked = pymq_command("clean", home=home)
    assert lines_with(looked, "group 'billing': 0")
    assert not lines_with(looked, "to remove it")


LISTENER = "import pymq, signal; pymq.init('ipc://shop'); pymq.subscribe(print, 'c'); print('ready', flush=True); signal.pause()"


def test_what_the_dead_have_left_in_kernel_queues(stage: Path) -> None:
    home = stage / "pymq"
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER], env={**os.environ, "PYMQ_HOME": str(home)}, stdout=subprocess.PIPE, text=True
    ) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        listener.kill()
    assert [path.name for path in home.iterdir()] == ["ipc.shop"]
    assert lines_with(pymq_command("clean", "--yes", home=home), "ipc.shop", "removed")
    assert list(home.rglob("*")) == []


KERNEL_QUEUES = f"""
mount -t mqueue none $1/mqueue || exit
export PYTHONPATH={ROOT}
listen() {{
    mkfifo $1.says
    PYMQ_HOME=$1 {sys.executable} -c "{LISTENER}" >$1.says 2>&1 &
    read said <$1.says
}}
listen $1/living
trap "kill -9 $!" EXIT
listen $1/dead
kill -9 $! && rm -r $1/dead
ls $1/mqueue | wc -l
export PYMQ_HOME=$1/pymq
for option in "" --yes ""; do {sys.executable} -m pymq.cli clean $option || exit 1; ls $1/mqueue | wc -l; done
"""


@pytest.mark.needs_root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_kernel_queues_whose_namespace_was_removed(stage: Path) -> None:
    """In IPC and mount namespaces of its own, where nobody else's are; the one of a living bus in another home stays."""
    (stage / "mqueue").mkdir()
    command = ["unshare", "--mount", "--ipc", "sh", "-c", KERNEL_QUEUES, "sh", str(stage)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"COLUMNS": "300"})
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("needs the right to make namespaces")
    told = [re.sub(r"pymq-0-[0-9a-f]{16}", "pymq-0-…", line) for line in done.stdout.splitlines()]
    kernel_queue = f"{stage}/mqueue/pymq-0-…: a kernel queue of a dead process"
    nothing = f"nothing to clean in {stage}/pymq"
    nothing_removed = "nothing was removed; to remove it: pymq clean --yes"
    assert told == ["2", kernel_queue, nothing_removed, "2", f"{kernel_queue}: removed", "1", nothing, "1"], done.stderr


def test_the_living_stay(actors: Nursery, witness: Witness, stage: Path) -> None:
    leave_something(actors, stage / "pymq")
    done = pymq_command("clean", "--yes", home=stage / "pymq")
    assert done.returncode == 0
    assert lines_with(done, "removed")
    found = actors.run("look", str(stage / "pymq"))
    assert ["reached", "1", "0"] in found
    assert ["echo", "look"] in found
    assert [line[1] for line in found if line[0] == "found"] == ["a", "b", "c"]
    witness.heard()


def test_what_is_not_pymqs_stays(stage: Path) -> None:
    """A user's own directory as the home: what is in it may look a little like namespaces."""
    photos, lp = stage / "photos" / "2024", stage / "printer" / "queues" / "lp"
    for directory in (photos, lp, stage / "mail" / "inboxes", stage / "old"):
        directory.mkdir(mode=0o700, parents=True)
    for directory in stage.iterdir():
        directory.chmod(0o700)
    (photos.parent / "journal.txt").write_text("a day")
    (lp / "job1").write_text("an invoice")
    (stage / "mail" / "registry").write_bytes(bytes(4096))
    (stage / "old" / "registry").write_text("of births")
    before = sorted(stage.rglob("*"))
    assert not lines_with(pymq_command("doctor", home=stage), "pymq clean")
    done = pymq_command("clean", "--yes", home=stage)
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_with(done, "nothing to clean")
    assert sorted(stage.rglob("*")) == before


def test_a_home_that_is_no_directory(stage: Path) -> None:
    (stage / "pymq").write_text("precious")
    for words in (["doctor"], ["clean"], ["clean", "--yes"]):
        done = pymq_command(*words, home=stage / "pymq")
        assert (done.returncode, done.stderr) == (1, "")
        assert lines_with(done, f"{stage}/pymq is not a directory", "set PYMQ_HOME")
    assert (stage / "pymq").read_text() == "precious"


def test_paths_are_told_whole_where_there_is_no_terminal(stage: Path) -> None:
    home = stage / ("h" * 60)
    with pymq.EventBus(ShmConfig("n" * 60, str(home))):
        for words in ("doctor", "clean"):
            assert lines_with(pymq_command(words, home=home, COLUMNS="80"), str(home)), words


def test_nothing_to_clean(stage: Path) -> None:
    done = pymq_command("clean", home=stage / "pymq")
    assert done.returncode == 0
    assert lines_with(done, "nothing to clean")
    assert list(stage.iterdir()) == []
