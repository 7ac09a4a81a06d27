"""One run at a time in a stage's folder: advisory locks that end with the process which took them, however it ends."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"  # a file of its own in the folder: an exclusive lock of a folder itself is not possible on NFS

_held: set[int] = set()  # file descriptors of this process's locks


class Locked(Exception):
    """Another process holds a lock on the folder that does not go with the one asked for."""


@contextlib.contextmanager
def hold(folder: Path, exclusive: bool) -> Iterator[None]:
    """Hold a lock on an existing folder; raises Locked at once where another process holds one and either is exclusive.

    Where this process may only read, it locks the file that a writer left there; without one nobody ever wrote there.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if exclusive or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        try:
            descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield
            return
    _held.add(descriptor)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Locked(folder) from None
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


@contextlib.contextmanager
def wait_for(path: Path) -> Iterator[None]:
    """Hold an exclusive lock of a file, made where there is none, as soon as whoever holds it lets go: for what takes moments."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _held.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _let_go_in_child() -> None:
    """A forked child, such as a DataLoader's worker, must not hold on to the lock when its parent was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
