"""Listings that are taken down at once: one small file beside current.json, which all that answer follow."""

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from marketplace.files import atomic, disk, locks
from marketplace.files.stages import StageError

FILE = "hidden.json"
LOCK = ".hidden.lock"  # of its own: a build holds the folder's for minutes
MOST_NAMED = 10  # of the unknown ids in a message
Find = Callable[[Collection[str]], set[str]]  # those of some ids that a catalogue has


class UnknownIds(Exception):
    """Ids that neither a listing nor a hidden one has; the message names them."""

    def __init__(self, ids: list[str]):
        named = ", ".join(one[:64] for one in ids[:MOST_NAMED])
        more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
        super().__init__(f"no listing has the {'id' if len(ids) == 1 else 'ids'} {named}{more}")


def signature(index_dir: Path) -> tuple[int, int] | None:
    """Changes whenever the file is renamed into its place; None where there is none."""
    try:
        status = (Path(index_dir) / FILE).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def read(index_dir: Path) -> frozenset[str]:
    """The ids of all hidden listings; StageError where the file is damaged: nobody can say then what must not be shown."""
    path = Path(index_dir) / FILE
    try:
        return decode(path.read_bytes(), path)
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        raise StageError(f"{path} cannot be read ({error.strerror}): give the permission") from None


def decode(data: bytes, source: Path | str) -> frozenset[str]:
    """The ids that the file's bytes hold; StageError, which names their source, where they are damaged."""
    try:
        ids = json.loads(data.decode())["hidden"]
        if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise StageError(f"{source} is damaged: put a whole one back, or delete it to show every listing again") from None
    return frozenset(ids)


def encode(ids: Collection[str]) -> bytes:
    return (json.dumps({"hidden": sorted(ids)}, indent=0, ensure_ascii=False) + "\n").encode()


def change(index_dir: Path, ids: Collection[str], hide: bool, find: Find) -> frozenset[str]:
    """Hide listings, or show them again; returns the ids of all that are hidden then.

    Raises UnknownIds, and changes nothing, where an id is neither found nor among those hidden; StageError as read() does.
    """
    with locked(index_dir):
        before = read(index_dir)
        after = changed(before, ids, hide, find)
        if after != before:
            write(index_dir, after)
        return after


def changed(before: frozenset[str], ids: Collection[str], hide: bool, find: Find) -> frozenset[str]:
    """What is hidden after change()."""
    found = before | find(ids)
    if unknown := [one for one in dict.fromkeys(ids) if one not in found]:
        raise UnknownIds(unknown)
    return before.union(ids) if hide else before.difference(ids)


def forget_gone(index_dir: Path, find: Find) -> None:
    """Forget the hidden listings that are not found.

    find: of the generation that is served until now. Those that only the next one lacks must stay: it is not served yet.
    """
    if signature(index_dir) is None:
        return
    with locked(index_dir):
        before = read(index_dir)
        after = before & find(before)
        if after != before:
            write(index_dir, after)


@contextlib.contextmanager
def locked(index_dir: Path) -> Iterator[None]:
    """The only writer meanwhile."""
    with locks.wait_for(Path(index_dir) / LOCK):
        yield


def write(index_dir: Path, ids: Collection[str]) -> None:
    """Under one temporary name, as there is one writer: a build removes those of atomic_path(), as a killed run's."""
    path, temporary = Path(index_dir) / FILE, Path(index_dir) / f".{FILE}.new"
    with disk.writing(path):
        temporary.write_bytes(encode(ids))
        atomic.flush(temporary)
        os.replace(temporary, path)
