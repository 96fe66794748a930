"""`pymq doctor`: what this machine offers, what would fail, and what to do about it."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import resource
import secrets
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

import pymq
from pymq.exceptions import ProviderError
from pymq.provider import without_password

OK, HINT, BAD = "ok", "look", "fails"
COLOURS = {OK: "green", HINT: "yellow", BAD: "red"}
REACH_SECONDS = 10.0
SMALL, TINY = 64 << 20, 1 << 20
"""Containers usually have 64 MiB of /dev/shm; below 1 MiB not even a queue's state and a few messages fit."""


class Finding(NamedTuple):
    """One line of the table; the remedy is told where there is something to be remedied."""

    what: str
    found: str
    verdict: str = OK
    remedy: str = ""


def doctor(console: Console) -> int:
    """Print what was found; 1 where something would fail, else 0."""
    findings = [finding for check in CHECKS for finding in _run(check)]
    # a path is of use only as a whole
    table = Table(*[Column(title, overflow="fold") for title in ("", "checked", "found", "what to do")], show_edge=False)
    for what, found, verdict, remedy in findings:
        table.add_row(f"[{COLOURS[verdict]}]{verdict}", *map(escape, (what, found, "" if verdict == OK else remedy)))
    console.print(table)
    return int(any(finding.verdict == BAD for finding in findings))


def _run(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except (OSError, ProviderError) as error:
        return [Finding(check.__name__.replace("_", " "), str(error), BAD, "see the message")]


def versions() -> Iterator[Finding]:
    """Python, pymq and what its extras bring."""
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.release()} {platform.machine()}")
    for name in ("pymq", "pydantic", "redis", "boto3", "posix_ipc"):
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            if name == "pymq":
                yield Finding(name, f"not installed, run from {Path(pymq.__file__).parent.parent}")
            elif name == "pydantic":
                yield Finding(name, "not installed", BAD, "pip install pydantic")
            else:
                yield Finding(name, "not installed, and only needed for its provider")


def shared_memory() -> Iterator[Finding]:
    """The file system of shm's home: room, inodes, rights."""
    home = _home()
    if home is None:
        yield Finding("shm", f"needs Linux, not {sys.platform}", HINT, "use simple, redis or aws")
        return
    existing = next(path for path in [home, *home.parents] if path.exists())
    space = os.statvfs(existing)
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    verdict = OK if not total or free >= SMALL else HINT if free >= TINY else BAD
    remedy = "docker run --shm-size=256m, mount -o remount,size=…, or set PYMQ_HOME to a directory with more"
    yield Finding(f"room in {existing}", f"{free >> 20} of {total >> 20} MiB free", verdict, remedy)
    if space.f_files:
        verdict = BAD if space.f_favail < 50 else HINT if space.f_favail < 1000 else OK
        yield Finding("inodes there", f"{space.f_favail} free", verdict, "remove files there, or pymq clean")
    yield _rights(home, existing)


def _home() -> Path | None:
    from pymq.provider.shm import ShmConfig

    return Path(ShmConfig().base_directory()).absolute() if sys.platform == "linux" else None


def _rights(home: Path, existing: Path) -> Finding:
    if existing != home:
        able = existing == home.parent and os.access(existing, os.W_OK | os.X_OK)
        lacks = f"{existing} is not to be written for you:" if existing == home.parent else f"make {home.parent}, or"
        remedy = "" if able else f"{lacks} set PYMQ_HOME to a directory of yours"
        return Finding("home", f"{home} will be made", OK if able else BAD, remedy)
    found = home.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return Finding("home", f"{home}, only yours")
    kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no directory"
    about = f"{home} is {kind} of user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}"
    return Finding("home", about, BAD, "remove it (it must be yours, with mode 700), or set PYMQ_HOME to another directory")


def limits() -> Iterator[Finding]:
    """Open files, and the size of pipes."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    verdict = BAD if 0 <= files < 32 else HINT if 0 <= files < 256 else OK
    yield Finding("open files", "no limit" if files < 0 else f"at most {files}", verdict, "ulimit -n 1024")
    if _home() is None:
        return
    reader, writer = os.pipe()
    try:
        size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 256 << 10)
        yield Finding("pipes", f"of {size >> 10} KiB")
    except OSError:
        size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
        remedy = "slower under load; raise fs.pipe-user-pages-soft (sysctl), or run fewer processes as this user"
        yield Finding("pipes", f"no more large ones for this user: {size >> 10} KiB", HINT, remedy)
    finally:
        os.close(reader)
        os.close(writer)


def kernel_queues() -> Iterator[Finding]:
    """How many buses ipc has room for, where it is installed and the kernel has them."""
    system = Path("/proc/sys/fs/mqueue")
    try:
        from pymq.provider._kernel import MESSAGE_BYTES, MESSAGES, QUEUE_BYTES
    except ImportError:
        return
    if not system.is_dir():
        return
    size, _ = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    most, messages, message_size = (int((system / name).read_text()) for name in ("queues_max", "msg_max", "msgsize_max"))
    room = most if size < 0 else min(most, size // QUEUE_BYTES)
    if messages < MESSAGES or message_size < MESSAGE_BYTES:
        room = 0
    limits = f"{'any number of' if size < 0 else size} bytes, {most} queues of {messages} messages of {message_size} bytes"
    remedy = "to use ipc: ulimit -q 819200, sysctl fs.mqueue.msg_max=10 fs.mqueue.msgsize_max=8192"
    yield Finding("kernel queues", f"room for {room} buses: {limits}", OK if room else HINT, remedy)


def removal_at_logout() -> Iterator[Finding]:
    """RemoveIPC of systemd, which empties /dev/shm of a user's files at the end of the last session."""
    if not Path("/run/systemd/system").exists() or os.geteuid() < 1000 or _home() is None:
        return
    set_to_no = any("RemoveIPC=no" in path.read_text().split() for path in Path("/etc/systemd").glob("logind.conf*") if path.is_file())
    lingers = Path("/var/lib/systemd/linger", os.environ.get("USER", "")).is_file()
    if not set_to_no and not lingers:
        yield Finding(
            "logout", "systemd may remove what is in /dev/shm", HINT, "loginctl enable-linger, or RemoveIPC=no in logind.conf"
        )


def leftovers() -> Iterator[Finding]:
    """What dead processes have left."""
    home = _home()
    if home is None:
        return
    from pymq.cli.leftovers import namespaces

    for namespace in namespaces(str(home)):
        found = f"{namespace.alive} files of living processes, {len(namespace.dead)} of dead ones"
        yield Finding(namespace.path, found, HINT if namespace.dead else OK, "pymq clean")


def round_trip() -> Iterator[Finding]:
    """A bus in a namespace of its own: does the default provider work here?"""
    if _home() is None:
        return
    from pymq.provider.shm import ShmConfig

    came = threading.Event()
    with pymq.EventBus(ShmConfig(f"doctor-{secrets.token_hex(4)}")) as bus:
        bus.subscribe(lambda text: came.set(), "doctor")
        bus.publish("anybody there?", "doctor")
        arrived = came.wait(REACH_SECONDS)
    yield Finding("shm", "an event arrives" if arrived else f"no event within {REACH_SECONDS} s", OK if arrived else BAD)


def configured() -> Iterator[Finding]:
    """What PYMQ_URL names: can it be reached?"""
    url = os.environ.get("PYMQ_URL")
    if not url:
        yield Finding("PYMQ_URL", "not set: init() uses shm")
        return
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(_reach(url)), daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    failure = outcome[0] if outcome else f"no answer within {REACH_SECONDS} s"
    remedy = "start the service, correct PYMQ_URL, or what the message says"
    yield Finding("PYMQ_URL", f"{without_password(url)}: {failure or 'reached'}", BAD if failure else OK, remedy)


def _reach(url: str) -> str:
    """What fails; empty where nothing does."""
    from pymq.provider import config_from

    try:
        provider = config_from(url).create()
        provider.open()
        try:
            if not provider.features.waits_on_io:  # where it costs nothing: ipc has no room for an inbox before it is out of others
                provider.declare(f"doctor/{secrets.token_hex(8)}", temporary=True)
        finally:
            provider.close()
    except Exception as error:
        return str(error) if isinstance(error, ProviderError | ValueError) else f"{type(error).__name__}: {error}"
    return ""


CHECKS: list[Callable[[], Iterator[Finding]]] = [
    *(versions, shared_memory, limits, kernel_queues, removal_at_logout, leftovers, round_trip, configured),
]
