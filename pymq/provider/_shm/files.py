"""What the kernel lends the shm provider: a directory of our own, locks that die with their holder, FIFOs that ring.

Facts behind every choice here are measured in docs/faults.md: liveness is the read end of a FIFO (opening it for writing
fails with ENXIO, and a held write end polls POLLERR, as soon as the reader's process is dead), never a PID.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import secrets
import select
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn, TypeVar
from urllib.parse import quote, unquote

from pymq.exceptions import ProviderError

LOCK_SECONDS = 5.0
"""How long a lock may be held by somebody else (stopped inside its few microseconds) before its waiters get an error."""

Result = TypeVar("Result")

_open_files: set[int] = set()


def open_file(path: str, flags: int, dir_fd: int | None = None) -> int:
    """Open without following links, closed on exec and in a forked child (whose copy would keep a dead parent alive)."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=dir_fd)
    _open_files.add(fd)
    return fd


def adopt_file(fd: int) -> None:
    """From now on that descriptor, which somebody else has opened, is as one of `open_file`."""
    _open_files.add(fd)


def close_file(fd: int) -> None:
    """Close what `open_file` opened."""
    _open_files.discard(fd)
    os.close(fd)


def _close_all_in_child() -> None:
    for fd in _open_files:
        os.close(fd)
    _open_files.clear()


os.register_at_fork(after_in_child=_close_all_in_child)


class Owned:
    """Runs functions when nothing refers to it any more: a thread that still uses a descriptor never meets its successor.

    Not in a forked child, whose copies are closed already.
    """

    def __init__(self, *closers: Callable[[], object]) -> None:
        self._closers = closers
        self._process = os.getpid()

    def __del__(self) -> None:
        if self._process == os.getpid():
            for close in self._closers:
                close()


class Directory:
    """A directory that only this user can enter, held open: whatever is inside is reached through its descriptor. That is closed when
    nothing refers to this any more, or by `close`.

    Created if missing, unless `create` is false: then FileNotFoundError. Raises ProviderError where somebody else made it, or could
    enter it.
    """

    fd: int

    def __init__(self, path: str, parent: Directory | None = None, *, create: bool = True) -> None:
        self.path: str = path if parent is None else f"{parent.path}/{path}"
        at = None if parent is None else parent.fd
        try:
            if create:
                os.mkdir(path, 0o700, dir_fd=at)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno in _FULL:
                raise translated(error, self.path) from error
            raise ProviderError(f"cannot create {self.path}: {error.strerror}; set PYMQ_HOME to a directory of yours") from error
        try:
            self.fd = open_file(path, os.O_RDONLY | os.O_DIRECTORY, at)
        except OSError as error:
            if error.errno == errno.ENOENT and not create:
                raise
            if error.errno in _SCARCE:
                raise translated(error, self.path) from error
            raise ProviderError(f"{self.path} is not a directory of ours ({error.strerror}); {_REMEDY}") from error
        self._owned: Owned | None = Owned(partial(close_file, self.fd))
        found = os.fstat(self.fd)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            self.close()
            raise ProviderError(
                f"{self.path} belongs to user {found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}, "
                f"not to user {os.geteuid()} with mode 700; {_REMEDY}"
            )

    def open(self, name: str, flags: int) -> int:
        """A descriptor of the file of that name in here."""
        return open_file(name, flags, self.fd)

    def unlink(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass

    def names(self) -> list[str]:
        """What is in here, sorted."""
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)  # two threads that list one share its position
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def clear(self) -> None:
        """Remove all that is in here."""
        for name in self.names():
            self.unlink(name)

    def close(self) -> None:
        """Let go of the descriptor: of a directory that only this thread uses."""
        self._owned = None


class Removed(ProviderError):
    """Somebody has removed the directory, or something in it, while it was in use."""


def exists(name: str, directory: Directory) -> bool:
    """Whether there is such a file in there."""
    return os.access(name, os.F_OK, dir_fd=directory.fd)


def is_removed(fd: int) -> bool:
    """Whether an open file has no name any more. 0.7 us."""
    return not os.fstat(fd).st_nlink


_FULL = (errno.ENOSPC, errno.EDQUOT)
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What says nothing of the directory: to remove it would not help."""
_REMEDY = "remove it, or set PYMQ_HOME to another directory"


class Mutex:
    """Mutual exclusion between threads. Use as `with mutex:`. Raises ProviderError, instead of waiting for ever, in a signal handler
    that has interrupted its own thread inside of it: what is half changed can be neither used nor waited for.
    """

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.is_held = False

    def __enter__(self) -> None:
        entered = False
        try:
            self.mutex.acquire()
            if not self.is_held:
                self.is_held = entered = True
                return self.take()
        except BaseException:  # also what a signal handler raises, at any of these lines
            if entered:
                self.__exit__(None, None, None)
            else:
                with suppress(RuntimeError):
                    self.mutex.release()
            raise
        self.mutex.release()
        raise self.refusal()

    def __exit__(self, *_: object) -> None:
        self.is_held = False
        self.mutex.release()

    def hold(self, action: Callable[..., Result], *args: object) -> Result:
        """`with self: return action(*args)` that leaves it unlocked whenever a signal handler raises: that may be at the call of
        `__exit__`, before its first line.
        """
        with self.mutex:  # whose own `__exit__` is no Python
            if self.is_held:
                raise self.refusal()
            try:
                self.is_held = True
                return action(*args)
            finally:
                self.is_held = False

    def refusal(self) -> ProviderError:
        """What is raised where it is held, by whom has the mutex."""
        return interrupted()

    def take(self) -> None:
        """What else there is to take."""


def closed() -> ProviderError:
    """What a thread gets that still uses a provider which another has closed."""
    return ProviderError("the provider was closed")


def interrupted() -> ProviderError:
    """What a signal handler gets that comes in the middle of what it calls."""
    return ProviderError(
        "a signal handler has interrupted its thread in the middle of what it calls now; nothing was done: "
        "let the handler set a flag, or call from another thread"
    )


class Lock(Mutex):
    """Mutual exclusion between threads and processes that ends with its holder: a `Mutex` around `flock`.

    0.8 us a pair. Not reentrant. Use as `with lock:`. Raises ProviderError when it stays taken for LOCK_SECONDS: flock itself
    waits without end for a holder that was stopped.
    """

    def __init__(self, fd: int, owned: Owned | None = None) -> None:
        super().__init__()
        self.fd = fd
        self._owned = owned  # where nobody else closes it

    def __exit__(self, *_: object) -> None:
        self.is_held = False
        try:
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        finally:
            self.mutex.release()

    def hold(self, action: Callable[..., Result], *args: object) -> Result:
        result: Result = super().hold(self._with_file, action, *args)
        return result

    def _with_file(self, action: Callable[..., Result], *args: object) -> Result:
        try:
            self.take()
            return action(*args)
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def take(self) -> None:
        self.wait()

    def wait(self) -> None:
        """Take the file's lock from another process. For those who hold the mutex and write `with lock` out."""
        patiently(self._is_taken_now)

    def _is_taken_now(self) -> bool:
        try:
            fcntl.flock(self.fd, EXCLUSIVE_NOW)
        except BlockingIOError:
            return False
        return True


def patiently(attempt: Callable[[], bool]) -> None:
    """Until it succeeds: yield the processor for as long as the holder of a lock usually needs, then sleep in small steps. Raises
    ProviderError after LOCK_SECONDS.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    turns = 0
    while not attempt():
        turns += 1
        if turns < 200:
            os.sched_yield()
        elif time.monotonic() < deadline:
            time.sleep(0.0005)
        else:
            raise ProviderError(f"a lock was held for {LOCK_SECONDS} s: is a process stopped?") from None


EXCLUSIVE_NOW = fcntl.LOCK_EX | fcntl.LOCK_NB


def milliseconds(seconds: float) -> float:
    """For `poll`, which takes at most 24 days, and never fewer than none: who waits longer looks again in between."""
    return min(max(0.0, seconds * 1000), (1 << 31) - 1)


def encode_name(name: str) -> str:
    """A file name for any text, different for different texts: percent-encoded, with a hash in the place of what is too long."""
    encoded = quote(name, safe="", errors="surrogatepass").replace(".", "%2E").replace("~", "%7E")  # the tilde is of the hash's
    if len(encoded) <= 160:
        return encoded or "%"
    return f"{encoded[:80]}~{hashlib.sha256(encoded.encode()).hexdigest()}"


def decode_name(encoded: str) -> str | None:
    """The text that `encode_name` encoded; None where it was too long to keep."""
    return None if "~" in encoded else unquote(encoded, errors="surrogatepass") if encoded != "%" else ""


def map_file(directory: Directory, name: str, flags: int, size: int = 0) -> memoryview:
    """A file of ours, mapped. Its maker gives the size: allocated before (a full file system is an error, no SIGBUS), never shrunk.

    Opened by itself, never through a lock's descriptor: a mapping keeps a duplicate, which a forked child could not close and
    with which it would hold its dead parent's lock.
    """
    fd = directory.open(name, flags)
    try:
        return map_open_file(fd, size)
    finally:
        close_file(fd)


def map_open_file(fd: int, size: int) -> memoryview:
    """The same of one that is open and no lock."""
    if size:
        os.posix_fallocate(fd, 0, size)
    return memoryview(mmap.mmap(fd, size))


def write_at(fd: int, parts: list[bytes], position: int) -> int:
    """Write all of the parts there; how many bytes. A full file system, or a limit, may take some first: the same error then."""
    size = sum(map(len, parts))
    written = os.pwritev(fd, parts, position)
    if written != size:
        raise cut_short(fd, position + written)
    return size


def cut_short(fd: int, position: int) -> OSError:
    """Why a write has ended there, too early: what the next byte gets."""
    try:
        os.pwrite(fd, b"\0", position)
    except OSError as error:
        return error
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_of_a_handler(error: BaseException) -> bool:
    """Whether it is no news of a file, but what a signal handler has raised: a TimeoutError is an OSError. What the kernel says, and
    what is raised here in its place, has a number.
    """
    return isinstance(error, OSError) and error.errno is None


def pass_on(error: OSError) -> None:
    """Raise what a signal handler has raised; go on after an error of the kernel's."""
    if is_of_a_handler(error):
        raise error


def raise_translated(error: OSError, path: str) -> NoReturn:
    """What users are told about an error of the kernel's; what a signal handler has raised is theirs."""
    pass_on(error)
    raise translated(error, path) from error


def translated(error: OSError, path: str) -> ProviderError:
    """What users are told about an error of the kernel's."""
    if error.errno in _FULL:
        return ProviderError(
            f"the file system of {path} is full, of bytes or of files (df, df -i): free some, or set PYMQ_HOME to a directory with more"
        )
    if error.errno == errno.EFBIG:
        return ProviderError(f"no file of this process may become as large as one in {path} must: raise RLIMIT_FSIZE (ulimit -f)")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ProviderError(f"too many open files in {path}: raise RLIMIT_NOFILE (ulimit -n), or serve fewer receivers")
    return ProviderError(f"{path} failed: {error}")


def make_fifo(directory: Directory, name: str) -> int:
    """A new FIFO, opened for reading and for writing: it never sees an end of file, and lives as long as this process.

    Nobody asks when it was read: 0.07 us less for each read.
    """
    os.mkfifo(name, 0o600, dir_fd=directory.fd)
    return directory.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_NOATIME)


def open_writer(directory: Directory, name: str) -> int | None:
    """The write end of a FIFO; None when nobody lives to read it."""
    try:
        fd = directory.open(name, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        close_file(fd)
        return None
    return fd


def has_reader(directory: Directory, name: str) -> bool:
    """Whether somebody lives who reads that FIFO."""
    writer = open_writer(directory, name)
    if writer is None:
        return False
    close_file(writer)
    return True


def is_dead(writer: int) -> bool:
    """Whether the reader of a FIFO, whose write end this is, has died."""
    poll = select.poll()
    poll.register(writer, 0)
    return bool(poll.poll(0))


class Bell:
    """A FIFO on which one thread of this process sleeps until somebody rings."""

    def __init__(self, directory: Directory) -> None:
        self.number = secrets.randbits(63) | 1
        self.fd = make_fifo(directory, bell_name(self.number))
        self.owned: Owned | None = None
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def sleep(self, timeout: float | None, watch: tuple[int, ...] = ()) -> bool:
        """Until rung (True), or until the timeout or the death of a watched reader (False)."""
        for writer in watch:
            self._poll.register(writer, 0)
        try:
            ready = self._poll.poll(None if timeout is None else milliseconds(timeout))
        finally:
            for writer in watch:
                self._poll.unregister(writer)
        return any(fd == self.fd for fd, _ in ready)

    def ring(self) -> bool:
        """Wake the thread that sleeps on it, in this process."""
        with suppress(OSError):  # full of rings; or there is no memory for one, and who wants the thread to wake tries again
            os.write(self.fd, b"!")
        return True

    def silence(self) -> None:
        """Forget the rings so far."""
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            pass


def bell_name(number: int) -> str:
    """The file name of a bell."""
    return f"{number:016x}"


_FEW_WRITERS = 16


def _close_all(writers: dict[int, int]) -> None:
    while writers:
        close_file(writers.popitem()[1])


class Bells:
    """The bells of one process, borrowed by threads that must sleep, and the write ends to those of others."""

    def __init__(self, directory: Directory, registry: Lock) -> None:
        self.directory = directory
        self._registry = registry
        self._mutex = threading.RLock()  # a signal handler may ring in the middle of a ring: at worst a bell is opened twice
        self._idle: list[Bell] = []
        self._all: list[Bell] = []
        self._writers: dict[int, int] = {}
        self._writers_owned = Owned(partial(_close_all, self._writers))  # also those that a thread opens after `close`
        self._most_writers = _FEW_WRITERS
        self.senders: list[Bell] = []
        """Those on which threads wait for room. `close` comes when none does: their descriptors may be others' files afterwards."""
        self.is_closing: bool = False
        self._is_closed = False

    def borrow(self) -> Bell:
        """A silent bell for this thread alone, until it is given back."""
        try:
            return self._idle.pop()
        except IndexError:
            pass
        return self._registry.hold(self.new)

    def new(self) -> Bell:
        """A bell of this process's. The registry's lock is held: a sweeper must not take a newborn for a dead one. Raises Removed."""
        if self._is_closed:
            raise closed()
        try:
            bell = Bell(self.directory)
        except FileNotFoundError as error:
            raise self._removed() from error
        bell.owned = Owned(partial(close_file, bell.fd))
        self._all.append(bell)
        return bell

    def give_back(self, bell: Bell) -> None:
        """End of `borrow`. It must not be in any table of waiters any more; a late ring is only a spurious wake-up."""
        bell.silence()
        self._idle.append(bell)

    def ring(self, number: int) -> bool:
        """Wake the thread that sleeps on that bell; False when its process is dead (its bell is then removed)."""
        try:
            writer = self.writer(number)
        except Removed:  # of those whose names are gone, and whom this process has never rung, only its own can be reached
            return any(bell.ring() for bell in self._all if bell.number == number)
        if writer is None:
            return False
        try:
            os.write(writer, b"!")
        except BlockingIOError:
            pass  # thousands of rings wait already
        except BrokenPipeError:
            self._bury(number)
            return False
        return True

    def ring_own(self) -> None:
        """Wake every thread of this process that sleeps on a bell."""
        with self._mutex:  # else `close` might give the descriptor to somebody else's file in between
            for bell in self._all:
                bell.ring()

    def writer(self, number: int) -> int | None:
        """A held write end, to watch for the death of the bell's process; None when it is dead. Raises Removed."""
        with self._mutex:
            if number not in self._writers:
                writer = open_writer(self.directory, bell_name(number))
                if writer is None:
                    if is_removed(self.directory.fd):  # then a missing name says nothing
                        raise self._removed()
                    self.directory.unlink(bell_name(number))
                    return None
                if len(self._writers) >= self._most_writers:
                    self._forget_dead()
                self._writers[number] = writer
            return self._writers[number]

    def _removed(self) -> Removed:
        return Removed(f"{self.directory.path} was removed while it was in use")

    def _forget_dead(self) -> None:
        """Those who wait come and go; each that was ever rung is a descriptor."""
        for number, writer in list(self._writers.items()):
            if is_dead(writer):
                self._bury(number)
        self._most_writers = 2 * len(self._writers) + _FEW_WRITERS

    def is_alive(self, number: int) -> bool:
        """Whether the bell's process lives."""
        writer = self.writer(number)
        if writer is None:
            return False
        if is_dead(writer):
            self._bury(number)
            return False
        return True

    def _bury(self, number: int) -> None:
        with self._mutex:
            writer = self._writers.pop(number, None)
        if writer is not None:
            close_file(writer)
        self.directory.unlink(bell_name(number))

    def close(self) -> None:
        """Remove this process's bells and let go of the others'."""
        with self._mutex:
            self._is_closed = True
            for bell in self._all:
                self.directory.unlink(bell_name(bell.number))
            _close_all(self._writers)
            self._all.clear()
            self._idle.clear()
