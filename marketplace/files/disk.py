"""A disk that is full: recognised in whatever a library raises, and named."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT}
# FAISS, tantivy, safetensors and torch say it in words; so do SQLite and NumPy, in their own.
SAYS_FULL = re.compile(
    r"no space left on device|disk quota exceeded|database or disk is full|\d+ requested and \d+ written", re.I
)
SCARCE_BYTES = 2**20  # a disk with less room than this is full, whatever was to be written


def is_full(error: BaseException | None) -> bool:
    """Whether an exception, or one that led to it, says that a disk is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # pymilvus raises an error from itself
        if isinstance(error, OSError) and error.errno in FULL or SAYS_FULL.search(str(error)):
            return True
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn whatever says that a disk is full into an OSError of ENOSPC that names a file or folder on that disk.

    path: what is written meanwhile. Libraries write temporary files too, so the error is of those where their disk has no room.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(_named(error) or _full(path))) from error


def _named(error: Exception) -> str | None:
    """The file that an exception says it could not write: of two, what is copied or renamed has room already."""
    return getattr(error, "filename2", None) or getattr(error, "filename", None)


def _full(path: Path) -> Path:
    """The first place without room of those where what writes `path` may write."""
    places = (Path(path), Path(tempfile.gettempdir()), sqlite_temporary(), Path("/dev/shm"))
    return next((place for place in places if _free_bytes(place) < SCARCE_BYTES), path)


def sqlite_temporary() -> Path:
    """Where SQLite keeps its temporary files. Source: sqlite.org/tempfiles.html, "Temporary File Storage Locations"."""
    return Path(os.environ.get("SQLITE_TMPDIR") or os.environ.get("TMPDIR") or "/var/tmp")


def _free_bytes(path: Path) -> float:
    try:
        return shutil.disk_usage(mount_of(path)).free
    except OSError:  # there is no such place on this system
        return float("inf")


def mount_of(path: Path) -> Path:
    """Where the disk that holds a path, or will hold it, is mounted."""
    path = Path(path).resolve()
    return next(place for place in (path, *path.parents) if place.is_mount())
