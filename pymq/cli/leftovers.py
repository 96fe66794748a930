"""What is in the home of shm and ipc: namespaces, whether anybody is there, what dead processes have left. Changes nothing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from pymq.exceptions import ProviderError
from pymq.provider._shm.files import EXCLUSIVE_NOW, Directory, close_file, decode_name, has_reader, open_file
from pymq.provider._shm.registry import is_namespace
from pymq.provider._shm.state import FORMAT, HEAPED, LEVELS_COUNT, State, read_format
from pymq.provider.ipc import IpcConfig, kernel_queue
from pymq.provider.shm import ShmConfig

IPC = "ipc."
"""What the directories of ipc's namespaces begin with; in an encoded name there is no dot."""


class Namespace(NamedTuple):
    """One namespace: its config (None where its name was too long to keep), how many files live processes have there, and dead ones."""

    config: ShmConfig | None
    path: str
    alive: int
    dead: list[str]


def namespaces(home: str) -> Iterator[Namespace]:
    """All namespaces below a home, where there may be other things, too; none where there is no home.

    Raises ProviderError where it is not ours.
    """
    if not os.path.lexists(home):
        return
    with closing(Directory(home)) as base:
        for stem in base.names():
            # suppressed: it is no directory of ours, or goes away just now
            with suppress(ProviderError, FileNotFoundError), closing(Directory(stem, base, create=False)) as directory:
                if is_namespace(directory):
                    yield _look_at(stem, home, directory)


def kept(path: str) -> dict[str, int]:
    """How many messages each queue, group and queue of dead letters of a namespace has, leased ones included; of queues, if any."""
    found: dict[str, int] = {}
    with suppress(FileNotFoundError), closing(Directory(f"{path}/queues", create=False)) as queues:
        for stem in queues.names():
            name, count = _readable(decode_name(stem) or stem), _count(Directory(stem, queues, create=False))
            if count or name.startswith("group"):
                found[name] = found.get(name, 0) + count
    return found


def _readable(queue: str) -> str:
    """Of a group's queues, one for each channel and pattern, all have the group's name."""
    kind, _, name = queue.partition("\0")[0].partition("/")
    kinds = {"queue": "queue", "group": "group", "queue-dead": "dead letters of the queue", "group-dead": "dead letters of the group"}
    return f"{kinds.get(kind, kind)} {name!r}"


def _count(directory: Directory) -> int:
    """Takes no lock and repairs nothing: after a death in the middle of a change it may be one too many or too few."""
    with closing(directory), suppress(FileNotFoundError):
        fd = directory.open("state", os.O_RDWR)
        try:
            if read_format(fd) == FORMAT:
                state = State(directory, fd)
                return sum(state.inside(level)[0] for level in range(LEVELS_COUNT)) + state.words[HEAPED]
        finally:
            close_file(fd)
    return 0


def kernel_queues() -> Iterator[str]:
    """The paths of this user's kernel queues whose processes are dead, in whatever home they were; none where no mqueue is mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for directory in [Path(where) for _, where, kind, *_ in mounts if kind == "mqueue"][:1]:
        for path in sorted(directory.glob(f"{kernel_queue('').removeprefix('/')}*")):
            with suppress(FileNotFoundError):  # it goes away just now
                if not _is_held(path):
                    yield str(path)


def _is_held(path: Path) -> bool:
    fd = open_file(str(path), os.O_RDONLY)
    try:
        fcntl.flock(fd, EXCLUSIVE_NOW)
    except BlockingIOError:
        return True
    finally:
        close_file(fd)
    return False


def _look_at(stem: str, home: str, directory: Directory) -> Namespace:
    alive, dead = 0, []
    for part in {"bells", "inboxes"} & set(directory.names()):
        with closing(Directory(part, directory)) as inside:
            for name in inside.names():
                if has_reader(inside, name if part == "bells" else f"{name.split('.')[0]}.fifo"):
                    alive += 1
                else:
                    dead.append(f"{part}/{name}")
    return Namespace(_config_of(stem, home), directory.path, alive, sorted(dead))


def _config_of(stem: str, home: str) -> ShmConfig | None:
    config_class = IpcConfig if stem.startswith(IPC) else ShmConfig
    name = decode_name(stem.removeprefix(IPC))
    return None if name is None else config_class(name, home)
