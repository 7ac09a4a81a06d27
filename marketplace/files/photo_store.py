"""Where the cleaned photos are: a file each in a folder, or together in tar shards, where that many files are too many.

A name is the path of a JPEG below data/images/: <image_id>.jpg, display/<image_id>.jpg, card/<image_id>.jpg. In a shard it is
<image_id>.jpg, <image_id>.display.jpg, <image_id>.card.jpg, one after the other: a sample as WebDataset reads them. WebDataset
reads shards from their beginning; a photo is found here by its place, which the index tells: shards.sqlite, which is only ever
replaced as a whole, by a copy of the one that is written to. No place that it tells is written to.
"""

import contextlib
import io
import itertools
import os
import re
import shutil
import sqlite3
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

INDEX, SHARDS = "shards.sqlite", "shards"  # in the stage's folder: a file, and the folder of the tars
WRITTEN = ".shards.sqlite"  # the index that is written to
SHARD_BYTES = 2**30  # from here on a shard is closed and the next one begun
TOGETHER = 1_000  # photos that are put on the disk at a time; a run that is killed cleans the last ones again
SPARSE = 0.5  # share of a shard's bytes from which on it is written anew without the photos that are gone
GONE = "__gone__"  # what a photo that was taken away is called in its shard; WebDataset leaves such names out
HEADER_BYTES = tarfile.BLOCKSIZE  # of a member
END = bytes(2 * tarfile.BLOCKSIZE)  # of a tar
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\.jpg")  # of a square; a longer one needs more than a header

# Names are bytes, as a folder may hold what is no UTF-8. version: of a JPEG, kept where it is moved; bytes: of the members that
# are on the disk; gone: of those that are in no use; is_whole: whether the shard has its end.
SCHEMA = """
CREATE TABLE members (name BLOB PRIMARY KEY, shard INTEGER NOT NULL, start INTEGER NOT NULL, size INTEGER NOT NULL,
    version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE shards (number INTEGER PRIMARY KEY AUTOINCREMENT, bytes INTEGER NOT NULL, gone INTEGER NOT NULL,
    is_whole INTEGER NOT NULL);
CREATE TABLE gone (shard INTEGER NOT NULL, start INTEGER NOT NULL, bytes INTEGER NOT NULL);
"""


class Stored(NamedTuple):
    """A JPEG that is there. path: its file, or its shard's; offset: in that, None for a file of its own; size: bytes; identity:
    another one when it is written again."""

    path: str
    offset: int | None
    size: int
    identity: str

    def read(self) -> bytes:
        """Raises OSError where it is gone, or cut short, meanwhile."""
        if self.offset is None:
            return Path(self.path).read_bytes()
        with open(self.path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), self.size, self.offset)
        if len(data) < self.size:
            raise FileNotFoundError(f"{self.path} is cut short")
        return data


class PhotoStore(ABC):
    """The JPEGs of a stage's folder; read by many processes while one writes."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @abstractmethod
    def find(self, name: str) -> Stored | None:
        """The JPEG of a name; None where there is none."""

    @abstractmethod
    def names(self, folder: str = "") -> Iterator[str]:
        """The names of all JPEGs of one of the folders."""

    @abstractmethod
    def write(self, jpegs: Mapping[str, bytes]) -> None:
        """Write a photo's JPEGs, by their names, in place of what has them: each whole or not at all."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> int:
        """Take JPEGs away, those that are not there aside; returns how many."""

    def tidy(self) -> None:
        """Leave no byte of what was removed or written over."""
        return

    def find_each(self, names: Iterable[str]) -> Iterator[Stored | None]:
        """find() of many."""
        return map(self.find, names)

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a JPEG; raises FileNotFoundError where there is none of the name."""


class Files(PhotoStore):
    """A file for each."""

    def find(self, name: str) -> Stored | None:
        path = f"{self.folder}/{name}"
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        identity = f"{status.st_size}-{status.st_ino}-{status.st_mtime_ns}-{status.st_ctime_ns}"
        return Stored(path, None, status.st_size, identity)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def names(self, folder: str = "") -> Iterator[str]:
        prefix = folder and f"{folder}/"
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder / folder) as entries:
            for entry in entries:
                if entry.name.endswith(".jpg") and not entry.name.startswith(".") and entry.is_file():
                    yield prefix + entry.name

    def write(self, jpegs: Mapping[str, bytes]) -> None:
        for name, jpeg in jpegs.items():
            _write_file(self.folder / name, jpeg)

    def remove(self, names: Iterable[str]) -> int:
        removed = 0
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).unlink()
                removed += 1
        return removed


def _write_file(path: Path, jpeg: bytes) -> None:
    """Not flushed one by one: what a power cut spoils no longer fits its record, and is done again."""
    from marketplace.files.atomic import TEMPORARY_SUFFIX  # here, as below: who only reads needs no pandas

    temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
    try:
        temporary.write_bytes(jpeg)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class Shards(PhotoStore):
    """Tar shards. Files beside them are found too: those of a folder that is being put into shards."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._files = Files(folder)

    def find(self, name: str) -> Stored | None:
        with self._index() as index:
            return self._find(index, name)

    def find_each(self, names: Iterable[str]) -> Iterator[Stored | None]:
        with self._index() as index:
            for name in names:
                yield self._find(index, name)

    def _find(self, index: sqlite3.Connection, name: str) -> Stored | None:
        query = "SELECT shard, start, size, version FROM members WHERE name = ?"
        if (found := index.execute(query, (os.fsencode(name),)).fetchone()) is None:
            return self._files.find(name)
        shard, start, size, version = found
        return Stored(str(self._path(shard)), start + HEADER_BYTES, size, f"{version:x}-{size}")

    def read(self, name: str) -> bytes:
        return self.load(name)[1]

    def load(self, name: str) -> tuple[Stored, bytes]:
        """A JPEG and its bytes, as read() gives them."""
        while True:
            index, stored = self._index_now(), self.find(name)
            if stored is None:
                raise FileNotFoundError(f"{self.folder / name} is missing")
            data = None
            with contextlib.suppress(FileNotFoundError):
                data = stored.read()
            if index == self._index_now():  # else it may have been moved, or erased, while it was read
                if data is None:
                    raise FileNotFoundError(f"{self.folder / name} is missing from {stored.path}")
                return stored, data

    def names(self, folder: str = "") -> Iterator[str]:
        yield from self.members(folder)
        with self._index() as index:
            for name in self._files.names(folder):
                if not index.execute("SELECT 1 FROM members WHERE name = ?", (os.fsencode(name),)).fetchone():
                    yield name

    def members(self, folder: str = "") -> Iterator[str]:
        """names() of what is in shards."""
        prefix = os.fsencode(folder and f"{folder}/")
        with self._index() as index:
            # Names without a folder lie between those with one.
            found = (name for (name,) in index.execute("SELECT name FROM members WHERE name >= ?", (prefix,)))
            for name in itertools.takewhile(lambda name: name.startswith(prefix), found):
                if prefix or b"/" not in name:
                    yield os.fsdecode(name)

    def write(self, jpegs: Mapping[str, bytes]) -> None:
        raise io.UnsupportedOperation("the shards were opened to be read")

    def remove(self, names: Iterable[str]) -> int:
        raise io.UnsupportedOperation("the shards were opened to be read")

    @contextlib.contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own for each look: none is carried into another thread or process, and it takes 0.1 ms.

        Raises StageError where the index is damaged.
        """
        path = self.folder / INDEX
        with _telling_damage(path), contextlib.closing(_open_immutable(path)) as index:
            yield index

    def _index_now(self) -> tuple[int, int]:
        status = os.stat(self.folder / INDEX)
        return status.st_ino, status.st_mtime_ns

    def _path(self, shard: int) -> Path:
        return self.folder / SHARDS / f"{shard:06d}.tar"


def _open_immutable(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


@contextlib.contextmanager
def _telling_damage(path: Path) -> Iterator[None]:
    from marketplace.files.stages import StageError

    try:
        yield
    except sqlite3.DatabaseError as error:
        if "unable to open" in str(error):  # or its journal cannot be made
            raise StageError(f"{path} cannot be opened: see its permissions, and whether df -i finds room on its disk") from None
        # Of its classes of errors these say that a file is none of SQLite's, or not this one.
        if type(error) is not sqlite3.DatabaseError and "no such table" not in str(error):
            raise
        raise StageError(f"{path} is damaged ({error}): delete it and run python clean_images.py again") from None


class ShardsWriter(Shards):
    """Shards that this process alone writes, until they are closed: readers learn of it by publish()."""

    def __init__(self, folder: Path):
        """Cuts off what a run that was killed has left half-written. Raises StageError where the index is damaged."""
        super().__init__(folder)
        (self.folder / SHARDS).mkdir(exist_ok=True)
        self._file: io.BufferedWriter | None = None
        self._shard = self._bytes = self._untold = 0
        self._is_broken = False
        path = self.folder / WRITTEN
        if not path.exists():
            self._begin_index(path)
        with contextlib.ExitStack() as stack:
            self._database = stack.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
            self._execute("BEGIN IMMEDIATE")
            self._mend()
            stack.pop_all()  # open until close()

    def close(self) -> None:
        """End the shard that is open; where a change was broken off, what was not told before it is as if it had not been."""
        try:
            if self._is_broken:
                self._execute("ROLLBACK")
            else:
                self._end_shard()
                self.tell()
        finally:
            self._database.close()
            if self._file is not None:
                with contextlib.suppress(OSError):  # a full disk, of which the first write has told
                    self._file.close()

    def write(self, jpegs: Mapping[str, bytes]) -> None:
        with self._whole():
            self._forget(jpegs)
            self._begin_shard()
            for name, jpeg in jpegs.items():
                folder, _, file_name = name.rpartition("/")
                info = tarfile.TarInfo(f"{file_name.removesuffix('.jpg')}.{folder}.jpg" if folder else file_name)
                info.size = len(jpeg)
                start = self._append(info.tobuf(tarfile.USTAR_FORMAT) + jpeg)
                # Of its first place, which no other ever has: numbers of shards are not given again.
                version = self._shard << 40 | start
                member = (os.fsencode(name), self._shard, start, len(jpeg), version)
                self._execute("INSERT INTO members VALUES (?, ?, ?, ?, ?)", member)
            self._untold += 1
            if self._untold >= TOGETHER:
                self.tell()

    def remove(self, names: Iterable[str]) -> int:
        removed = 0
        with self._whole():
            for name in names:
                removed += bool(self._files.remove([name]) + self._forget([name]))
        return removed

    def tell(self) -> None:
        """Put what was written and removed on the disk: a run that is killed later need not do it again."""
        with self._whole():
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._execute("UPDATE shards SET bytes = ? WHERE number = ?", (self._bytes, self._shard))
            self._execute("COMMIT")
            self._execute("BEGIN IMMEDIATE")
            self._untold = 0

    def publish(self) -> None:
        """Let readers know of it."""
        from marketplace.files.atomic import atomic_path

        self._end_shard()
        self.tell()
        with (
            atomic_path(self.folder / INDEX) as temporary,
            contextlib.closing(sqlite3.connect(self.folder / WRITTEN)) as told,
            contextlib.closing(sqlite3.connect(temporary)) as copy,
        ):
            told.backup(copy)

    def tidy(self) -> None:
        sparse = self._execute("SELECT number FROM shards WHERE gone > ? * bytes", (SPARSE,)).fetchall()
        for (shard,) in sparse:
            self._write_anew(shard)
        self.publish()
        self._erase()
        known = {self._path(number).name for (number,) in self._execute("SELECT number FROM shards")}
        for path in (self.folder / SHARDS).iterdir():
            if path.name not in known:
                path.unlink()

    def _begin_index(self, path: Path) -> None:
        """From the one that readers know, where there is one."""
        from marketplace.files.atomic import atomic_path

        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)  # of one that was deleted by hand
        with atomic_path(path) as temporary, contextlib.closing(sqlite3.connect(temporary)) as made:
            if (self.folder / INDEX).exists():
                with super()._index() as index:
                    index.execute("SELECT 1 FROM members")
                    index.backup(made)
            else:
                made.executescript(f"BEGIN; {SCHEMA} COMMIT;")

    @contextlib.contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        if self._file is not None:
            self._file.flush()
        with _telling_damage(self.folder / WRITTEN):
            yield self._database

    def _index_now(self) -> tuple[int, int]:
        return 0, 0  # nobody else moves or erases anything

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """A change that counts only as a whole, alone or within another one."""
        was_broken, self._is_broken = self._is_broken, True
        yield  # what is raised here leaves it broken
        self._is_broken = was_broken

    def _execute(self, query: str, values: Sequence = ()) -> sqlite3.Cursor:
        """Raises StageError where the index is damaged."""
        with _telling_damage(self.folder / WRITTEN):
            return self._database.execute(query, values)

    def _begin_shard(self) -> None:
        """Where the one that is open is full: before a photo, whose JPEGs stay together."""
        if self.is_full():
            self._end_shard()
        if self._file is None:
            self._shard = self._execute("INSERT INTO shards (bytes, gone, is_whole) VALUES (0, 0, 0)").lastrowid
            self._file, self._bytes = open(self._path(self._shard), "wb"), 0  # noqa: SIM115

    def is_full(self) -> bool:
        """Whether the shard that is open is."""
        return self._file is not None and self._bytes >= SHARD_BYTES

    def _append(self, member: bytes) -> int:
        """Write a member, with its header, into the shard that is open; returns where it starts."""
        start, n_bytes = self._bytes, _whole_blocks(len(member))
        self._file.write(member.ljust(n_bytes, b"\0"))
        self._bytes += n_bytes
        return start

    def _end_shard(self) -> None:
        with self._whole():
            if self._file is not None:
                self._file.write(END)
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                values = (self._bytes, self._shard)
                self._execute("UPDATE shards SET bytes = ?, is_whole = 1 WHERE number = ?", values)
                self._file = None

    def _forget(self, names: Iterable[str]) -> int:
        """Take names out of the index; what they name goes with tidy()."""
        forgotten = 0
        for name in names:
            query = "DELETE FROM members WHERE name = ? RETURNING shard, start, size"
            for shard, start, size in self._execute(query, (os.fsencode(name),)).fetchall():
                n_bytes = HEADER_BYTES + _whole_blocks(size)
                self._execute("INSERT INTO gone VALUES (?, ?, ?)", (shard, start, n_bytes))
                self._execute("UPDATE shards SET gone = gone + ? WHERE number = ?", (n_bytes, shard))
                forgotten += 1
        return forgotten

    def _erase(self) -> None:
        """Put a member of zeros in the place of each that is gone, of which no reader is told."""
        gone = self._execute("SELECT shard, start, bytes FROM gone ORDER BY shard, start")
        for shard, places in itertools.groupby(gone, lambda place: place[0]):
            with open(self._path(shard), "r+b") as file:
                for _, start, n_bytes in places:
                    info = tarfile.TarInfo(f"{GONE}/{start}")
                    info.size = n_bytes - HEADER_BYTES
                    file.seek(start)
                    file.write(info.tobuf(tarfile.USTAR_FORMAT) + bytes(info.size))
                file.flush()
                os.fsync(file.fileno())
        self._execute("DELETE FROM gone")
        self.tell()

    def _write_anew(self, shard: int) -> None:
        """Write what is left of a shard into another one. It is taken away once no reader is told of it."""
        with self._whole(), tarfile.open(self._path(shard)) as tar, open(self._path(shard), "rb") as file:
            for member in tar:
                image_id, _, copy = member.name.removesuffix(".jpg").partition(".")
                name, start = os.fsencode(f"{copy}/{image_id}.jpg" if copy else f"{image_id}.jpg"), member.offset
                place = self._execute("SELECT shard, start FROM members WHERE name = ?", (name,)).fetchone()
                if place != (shard, start):
                    continue
                if not copy or self._file is None:  # the first of a photo's
                    self._begin_shard()
                file.seek(start)
                moved = self._append(file.read(HEADER_BYTES + member.size))
                self._execute("UPDATE members SET shard = ?, start = ? WHERE name = ?", (self._shard, moved, name))
            self._leave_out(shard)

    def _leave_out(self, shard: int) -> None:
        self._execute("DELETE FROM shards WHERE number = ?", (shard,))
        self._execute("DELETE FROM gone WHERE shard = ?", (shard,))

    def _mend(self) -> None:
        """Cut off what the index does not know of, and forget what is not there."""
        for shard, known, is_whole in self._execute("SELECT number, bytes, is_whole FROM shards").fetchall():
            path = self._path(shard)
            there = path.stat().st_size if path.exists() else 0
            if is_whole and there == known + len(END):
                continue
            if there < known:
                known = self._forget_from(shard, there)
            if not known:
                self._leave_out(shard)
                continue
            with open(path, "r+b") as file:
                file.truncate(known)
                file.seek(known)
                file.write(END)
            self._execute("UPDATE shards SET bytes = ?, is_whole = 1 WHERE number = ?", (known, shard))
        self.tell()

    def _forget_from(self, shard: int, there: int) -> int:
        """Forget what a shard that was cut short holds no longer; returns where the last one ends that it does."""
        last = 0
        for table, n_bytes in (("members", f"{HEADER_BYTES} + size"), ("gone", "bytes")):
            self._execute(f"DELETE FROM {table} WHERE shard = ? AND start + {n_bytes} > ?", (shard, there))
            (stop,) = self._execute(f"SELECT MAX(start + {n_bytes}) FROM {table} WHERE shard = ?", (shard,)).fetchone()
            last = max(last, stop or 0)
        return _whole_blocks(last)


def _whole_blocks(n_bytes: int) -> int:
    return n_bytes + -n_bytes % tarfile.BLOCKSIZE


def open_store(folder: Path) -> PhotoStore:
    """The photos of a stage's folder, to be read."""
    return Shards(folder) if (Path(folder) / INDEX).exists() else Files(folder)


def read(folder: Path, name: str) -> bytes:
    """A JPEG of a stage's folder. Raises OSError where it cannot be had, and StageError where the index of shards is damaged."""
    return open_store(folder).read(name)


@contextlib.contextmanager
def writing(folder: Path, in_shards: bool, copies: Sequence[str]) -> Iterator[PhotoStore]:
    """The photos of a stage's folder, to be written; those that are kept in the other way come along.

    copies: folders of the other JPEGs of a photo.
    """
    files = Files(folder)
    if in_shards:
        with contextlib.closing(ShardsWriter(folder)) as shards:
            _move_into(shards, files, copies)
            yield shards
        return
    for copy in copies:
        (folder / copy).mkdir(exist_ok=True)
    if (folder / INDEX).exists() or (folder / WRITTEN).exists():
        with contextlib.closing(ShardsWriter(folder)) as shards:
            _copy_out_of(shards, files, copies)
        (folder / INDEX).unlink(missing_ok=True)  # from here on readers look for files
        (folder / WRITTEN).unlink()
    shutil.rmtree(folder / SHARDS, ignore_errors=True)
    yield files


def _move_into(shards: ShardsWriter, files: Files, copies: Sequence[str]) -> None:
    """Move what has a file of its own, a shard at a time."""
    from marketplace.files.progress import progress

    def move() -> Iterator[str]:
        moved: list[str] = []
        for name in filter(NAME.fullmatch, files.names()):
            own = [name, *(f"{copy}/{name}" for copy in copies)]
            if shards.find(name).offset is None:  # a run that was killed may have moved it
                shards.write({one: files.read(one) for one in own if files.find(one)})
            moved += [*own[1:], name]  # the square last: by it a run after a kill finds what is left
            if shards.is_full():
                shards.publish()
                files.remove(moved)
                moved.clear()
            yield name
        if moved:
            shards.publish()
            files.remove(moved)

    if n_photos := sum(1 for _ in filter(NAME.fullmatch, files.names())):
        for _ in progress(move(), "move photos into shards", "photo", n_photos):
            pass
    for copy in copies:
        with contextlib.suppress(OSError):  # it is not there, or holds something else
            (files.folder / copy).rmdir()


def _copy_out_of(shards: ShardsWriter, files: Files, copies: Sequence[str]) -> None:
    from marketplace.files.progress import progress

    n_photos = sum(1 for _ in shards.members())
    names = progress(shards.members(), "move photos out of shards", "photo", n_photos)
    for own in ([name, *(f"{copy}/{name}" for copy in copies)] for name in names):
        files.write({name: stored.read() for name, stored in zip(own, shards.find_each(own), strict=True) if stored})
