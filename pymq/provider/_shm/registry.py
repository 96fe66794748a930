"""Who is bound to what: a journal that every process replays, and what was left by processes that died.

A namespace is a directory with `registry` (one mapped page, and the lock), `journal.<epoch>`, `bells/`, `inboxes/`, `queues/`.

The journal is lines, each a CRC-32 in hexadecimal and what it is of, JSON: `["bind", queue, pattern, exact]`, `["unbind", queue,
pattern, exact]`, `["drop", queue]`. Each has a newline before it and one behind it, so that a damaged byte costs one line, which is
skipped and counted. It is written under the lock, at the committed length, and committed by one store: the word
`epoch << 40 | committed length`, which is also the generation that readers compare with theirs (a mapped read, 25 ns). Who finds
another generation reads the new lines, without the lock. What a killed writer left lies behind the committed length and is
overwritten. A journal that has doubled is replaced by one with the live facts only, under the next epoch.

Where somebody removes the directory while it is in use, those who are in it still share the mapped page. Who notices stores REMOVED
there; everybody then begins anew under the same name, and takes what they know of along.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from zlib import crc32

from pymq.exceptions import ProviderError
from pymq.provider._shm.files import (
    Bells,
    Directory,
    Lock,
    Mutex,
    Owned,
    Removed,
    Result,
    close_file,
    closed,
    encode_name,
    exists,
    has_reader,
    is_removed,
    map_file,
    write_at,
)
from pymq.provider._shm.state import read_format
from pymq.topics import Bindings

_VERSION = int.from_bytes(b"pymq-r\0\2", "little")
_ANY_VERSION = (1 << 56) - 1
"""All of it but the version's number."""
_MAGIC, WORD, _COMPACTED = range(3)
REMOVED = (1 << 64) - 1
"""What WORD is where the directory was removed."""
_EPOCH = 1 << 40
_SMALLEST_COMPACTION = 1 << 16
_MOST_ATTEMPTS = 100
_OURS = re.compile(
    r"journal\.\d+|bells(/[0-9a-f]{16})?|inboxes(/[^./]+\.(fifo|head|log|mq|[0-9a-f]{16}))?"
    r"|queues(/[^./]+(/(state|lock|log\.[0-9a-f]{8}))?)?"
)
"""What is in a namespace beside `registry`."""
_INBOX = re.compile(r"([^.]+)\.(fifo|head|mq|[0-9a-f]{16})")
"""A file by which a sweep knows an inbox: a log alone could be somebody's own."""
logger = logging.getLogger("pymq")


class Registry:
    """A namespace, held open, and this process's replica of its bindings. Every method may be called from any thread.

    Raises ProviderError where the directory is not ours, or was written by another version of pymq.
    """

    def __init__(self, base: str, namespace: str) -> None:
        for attempt in range(_MOST_ATTEMPTS):
            try:
                self._open(base, encode_name(namespace))
                return
            except (FileNotFoundError, ProviderError) as error:  # the last one out is removing it: begin again
                vanished = isinstance(error.__cause__ or error, FileNotFoundError | Removed)
                if not vanished or attempt == _MOST_ATTEMPTS - 1:
                    raise

    def _open(self, base: str, name: str) -> None:
        self._base, self._name = Directory(base), name
        self.directory = Directory(name, self._base)
        if not exists("registry", self.directory) and (stranger := _stranger(self.directory)):
            raise _not_ours(self.directory, stranger)
        fd = self.directory.open("registry", os.O_RDWR | os.O_CREAT)
        self.lock = Lock(fd, Owned(partial(close_file, fd)))
        self._mutex = Mutex()
        self._journal = -1
        self._length = self.generation = self.corrupted = 0
        self.bindings = Bindings()
        with self.lock:
            if not os.fstat(fd).st_nlink:
                raise FileNotFoundError(f"{self.directory.path}/registry")
            self._check_version(read_format(fd))
            self.words = map_file(self.directory, "registry", os.O_RDWR, 4096).cast("Q")
            self.words[_MAGIC] = _VERSION
            bells, self.inboxes, self.queues = (Directory(part, self.directory) for part in ("bells", "inboxes", "queues"))
            self._resume()
            self.bells = Bells(bells, self.lock)
            try:
                self.member = self.bells.new().number
                self.sweep()
            except BaseException:
                self.bells.close()
                raise

    def _check_version(self, found: int) -> None:
        if found in (0, _VERSION):
            return
        if not _is_a_version(found):
            raise _not_ours(self.directory, "registry")
        raise ProviderError(f"{self.directory.path} is of another version of pymq ({found:x}); remove it")

    def _resume(self) -> None:
        """Replay the journal; begin one where all is new. Where it is gone, as after a death inside `leave`, all begins anew."""
        if not self.words[WORD]:
            self._compact()
        self.catch_up()

    def look(self, thoroughly: bool = False) -> None:
        """Raises Removed where the namespace is not there any more, and tells the others."""
        if self.words[WORD] == REMOVED or is_removed(self.lock.fd):
            raise self.removed()
        if thoroughly:
            self._mutex.hold(self._look_at_journal)  # another thread that follows a compaction changes what is looked at

    def _look_at_journal(self) -> None:
        self._replay()
        if is_removed(self._journal) and self.words[WORD] // _EPOCH == self.generation // _EPOCH:  # else it was compacted
            raise self.removed()

    def removed(self) -> Removed:
        """Give it up, if somebody has removed part of it: nobody begins here any more, and who is here begins anew."""
        self.words[WORD] = REMOVED
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat("registry", dir_fd=self.directory.fd), os.fstat(self.lock.fd)):
                self.directory.unlink("registry")
        return Removed(f"{self.directory.path} was removed while it was in use")

    def catch_up(self) -> None:
        """The bindings are at least those that were in force when this was called."""
        if self.words[WORD] != self.generation:
            self._mutex.hold(self._replay)

    def matching(self, topics: Iterable[str]) -> tuple[int, list[str]]:
        """The queues bound to any of the topics, and the generation of which that is true."""
        self.look()
        return self._mutex.hold(self._replayed, lambda: self.bindings.matching(topics))

    def bound(self, topic: str) -> tuple[int, list[str]]:
        """The generation, and the queues that were bound to exactly this topic in it."""
        self.look()
        return self._mutex.hold(self._replayed, lambda: self.bindings.bound(topic))

    def bound_queues(self) -> set[str]:
        """The queues that are bound to anything."""
        self.look()
        found: tuple[int, set[str]] = self._mutex.hold(self._replayed, lambda: {queue for queue, _, _ in self.bindings.of()})
        return found[1]

    def record(self, facts: Sequence[Sequence[Any]]) -> None:
        """Commit facts to the journal, in this process's replica too. The lock is held."""
        if not facts:
            return
        self.look()
        self.catch_up()
        if self._length > 2 * self.words[_COMPACTED] + _SMALLEST_COMPACTION:
            self._compact()
            self.catch_up()
        end = self._length + write_at(self._journal, [_lines(facts)], self._length)
        self.words[WORD] = self.generation // _EPOCH * _EPOCH + end
        self.catch_up()

    def sweep(self) -> None:
        """Remove what the dead have left, and the bindings of queues that are no more. The lock is held.

        A newborn, made under the lock as well, is never taken for dead.
        """
        self.look()
        for name in self.bells.directory.names():
            if not has_reader(self.bells.directory, name):
                self.bells.directory.unlink(name)
        for stem in {found[1] for found in map(_INBOX.fullmatch, self.inboxes.names()) if found}:
            if not has_reader(self.inboxes, f"{stem}.fifo"):
                self.remove_inbox(stem)
        known = {name.split(".")[0] for name in self.inboxes.names() + self.queues.names()}
        self.record([("drop", queue) for queue in self.bound_queues() if encode_name(queue) not in known])

    def remove_inbox(self, stem: str) -> None:
        """Remove an inbox's files; those by which a sweep knows it last."""
        self.inboxes.unlink(f"{stem}.log")
        for name in self.inboxes.names():
            if name.split(".")[0] == stem:
                self.inboxes.unlink(name)

    def remove_queue(self, stem: str) -> None:
        """Remove a shared queue's directory, if it is there."""
        if stem in self.queues.names():
            directory = Directory(stem, self.queues)
            directory.clear()
            directory.close()
            os.rmdir(stem, dir_fd=self.queues.fd)

    def leave(self, is_disposable: Callable[[str], bool]) -> None:
        """End the membership; the last one out also removes what nobody needs. What is open is closed when nothing refers to this any
        more: a thread may be in the middle of any method.

        `is_disposable(encoded name)` tells whether a shared queue holds nothing; one that is bound stays in any case.
        """
        try:
            with self.lock:
                self.bells.close()
                self.sweep()
                if not self.bells.directory.names() and not self.inboxes.names():
                    bound = set(map(encode_name, self.bound_queues()))
                    for stem in set(self.queues.names()) - bound:
                        if is_disposable(stem):
                            self.remove_queue(stem)
                    self._dissolve()
        finally:
            self.bells.close()

    def let_go(self) -> None:
        """As `leave`, where the directory was removed."""
        self.bells.close()

    def _dissolve(self) -> None:
        """Remove the namespace, but for queues that stay. `registry` goes last, since its lock keeps newcomers waiting."""
        if self.bindings.of():
            self._compact()
            return
        for name in filter(_OURS.fullmatch, self.directory.names()):
            if name.startswith("journal."):
                self.directory.unlink(name)
            else:
                _remove_if_empty(name, self.directory)
        self.directory.unlink("registry")
        _remove_if_empty(self._name, self._base)
        _remove_if_empty(self._base.path, None)

    def _compact(self) -> None:
        """Begin a new epoch with the live facts only. The lock is held."""
        epoch = self.words[WORD] // _EPOCH
        fd = self.directory.open(f"journal.{epoch + 1}", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            length = write_at(fd, [_lines([("bind", *fact) for fact in self.bindings.of()])], 0)
        finally:
            close_file(fd)
        self.words[_COMPACTED] = length
        self.words[WORD] = (epoch + 1) * _EPOCH + length
        self.directory.unlink(f"journal.{epoch}")

    def _replayed(self, look: Callable[[], Result]) -> tuple[int, Result]:
        """The generation, and what is true in it. The mutex is held."""
        self._replay()
        return self.generation, look()

    def _replay(self) -> None:
        """Read what was committed since. The mutex is held."""
        while (word := self.words[WORD]) != self.generation:
            if word == REMOVED:
                raise self.removed()
            epoch, length = divmod(word, _EPOCH)
            try:
                if self._journal < 0 or epoch != self.generation // _EPOCH or length < self._length:
                    self._open_journal(epoch)
            except FileNotFoundError:
                if word == self.words[WORD]:  # not compacted meanwhile
                    raise self.removed() from None
                continue
            if length > os.fstat(self._journal).st_size:
                raise self.removed()  # what is said to be committed was never written
            for line in os.pread(self._journal, length - self._length, self._length).split(b"\n"):
                if line:
                    self._apply(line)
            self._length, self.generation = length, word

    def _open_journal(self, epoch: int) -> None:
        journal = self.directory.open(f"journal.{epoch}", os.O_RDWR)
        self._journal_owned = Owned(partial(close_file, journal))
        self._journal, self._length, self.bindings = journal, 0, Bindings()

    def _apply(self, line: bytes) -> None:
        table = self.bindings
        try:
            if line[:_SUM] != _sum(line[_SUM:]):
                raise ValueError("its checksum is of something else")
            verb, *arguments = json.loads(line[_SUM:])
            verbs: dict[str, Callable[..., None]] = {"bind": table.bind, "unbind": table.unbind, "drop": table.drop}
            verbs[verb](*arguments)
        except (ValueError, TypeError, KeyError):
            self.corrupted += 1
            logger.warning("skipped a damaged line of the registry in %s: %r", self.directory.path, line)


class Left:
    """In the place of the registry of a provider that is closed."""

    def __getattr__(self, name: str) -> Any:
        raise closed()


def is_namespace(directory: Directory) -> bool:
    """Whether that is one, of whatever version: what is in any other directory is not pymq's to remove."""
    try:
        fd = directory.open("registry", os.O_RDONLY | os.O_NONBLOCK)
        try:
            return _is_a_version(read_format(fd))
        finally:
            close_file(fd)
    except OSError:
        return False


def _is_a_version(word: int) -> bool:
    return word & _ANY_VERSION == _VERSION & _ANY_VERSION


def _stranger(directory: Directory) -> str | None:
    """Something in there that is none of a namespace's files."""
    for path, directories, files, _ in os.fwalk(".", dir_fd=directory.fd):
        for name in (*directories, *files):
            found = os.path.normpath(f"{path}/{name}")
            if not _OURS.fullmatch(found) and found != "registry":  # which another process may have made just now
                return found
    return None


def _not_ours(directory: Directory, stranger: str) -> ProviderError:
    return ProviderError(
        f"{directory.path}/{stranger} is not pymq's, so the directory is no namespace: "
        "choose another namespace, or set PYMQ_HOME to another directory"
    )


_SUM = 9


def _sum(fact: bytes) -> bytes:
    return b"%08x " % crc32(fact)


def _lines(facts: Iterable[Sequence[Any]]) -> bytes:
    encoded = [json.dumps(fact).encode() for fact in facts]
    return b"".join(b"\n" + _sum(fact) + fact + b"\n" for fact in encoded)


def _remove_if_empty(name: str, parent: Directory | None) -> None:
    with suppress(OSError):
        os.rmdir(name, dir_fd=parent.fd if parent else None)
