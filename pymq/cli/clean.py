"""`pymq clean`: remove what dead processes have left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from rich.console import Console

from pymq.cli.demo.director import stale
from pymq.cli.leftovers import Namespace, kept, kernel_queues, namespaces
from pymq.exceptions import ProviderError
from pymq.provider.shm import ShmConfig


def clean(console: Console, remove: bool) -> int:
    """Say what is there, and remove it if told to; the status to exit with.

    Every process that starts does the same in its own namespace, so this is for those in which none will, and for the kernel queues
    of namespaces that were removed, and for demos that were killed.
    """
    home = ShmConfig().base_directory()
    try:
        found = [namespace for namespace in namespaces(home) if namespace.dead or not namespace.alive]
    except ProviderError as error:
        console.print(str(error), style="red", markup=False)
        return 1
    failures = [_clean_one(console, namespace, remove) for namespace in found]
    queues = list(kernel_queues())
    for path in queues:
        _say(console, f"{path}: a kernel queue of a dead process", os.unlink, path, remove)
    demos = stale()
    for demo in demos:
        _say(console, f"{demo}: of a demo that was killed", shutil.rmtree, str(demo), remove)
    if not (found or queues or demos):
        console.print(f"nothing to clean in {home}", markup=False)
    elif not remove and (queues or demos or any(namespace.dead or not kept(namespace.path) for namespace in found)):
        console.print("nothing was removed; to remove it: pymq clean --yes")
    return int(any(failures))


def _clean_one(console: Console, namespace: Namespace, remove: bool) -> bool:
    """Whether it failed."""
    what = f"{namespace.path}: {len(namespace.dead)} files of dead processes"
    if not namespace.alive:
        what += ", nobody there"
    if not remove:
        console.print(what, markup=False)
        _tell_kept(console, namespace)
        return False
    if namespace.config is None:
        text = f"{what}; its name was too long to be kept: start a process there, or remove the directory"
        console.print(text, style="red", markup=False)
        return True
    try:
        provider = namespace.config.create()
        provider.open()  # sweeps
        provider.close()  # and, as the last one there, removes what is empty
    except ProviderError as error:
        console.print(f"{what}; {error}", style="red", markup=False)
        return True
    is_left = not namespace.alive and os.path.isdir(namespace.path)
    outcome = "removed" if namespace.dead or not is_left else "nothing to remove"
    console.print(f"{what}: {outcome}", markup=False)
    if is_left:
        _tell_kept(console, namespace)
    return False


def _tell_kept(console: Console, namespace: Namespace) -> None:
    """What nobody loses by a clean: queues that hold something, groups, dead letters."""
    lines = [f"    {name}: {count}" for name, count in kept(namespace.path).items()]
    if lines:
        lines.insert(0, "  stays, with so many messages, until Queue.free(), Group.delete() or, of a queue, dead.purge():")
        console.print("\n".join(lines), markup=False)


def _say(console: Console, what: str, removing: Callable[[str], None], path: str, remove: bool) -> None:
    if remove:
        removing(path)
        what += ": removed"
    console.print(what, markup=False)
