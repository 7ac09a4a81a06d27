"""What earlier runs of clean_images.py know of each photo, so that it need not be cleaned again: on the disk, not in memory."""

import contextlib
import enum
import hashlib
import itertools
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from marketplace.cleaning.photos import CARD, DISPLAY
from marketplace.cleaning.pool import TRIED_AGAIN, Result, Task
from marketplace.cleaning.sources import CACHE_KB, Photo, photo_of
from marketplace.files import photo_store
from marketplace.files.photo_store import PhotoStore, Stored
from marketplace.files.progress import progress
from marketplace.files.stages import StageError

FILE = ".records.sqlite"  # in the stage's folder; times are in it, so two runs that do the same leave other bytes
VERSION = 1  # raised when the columns change: then every photo is cleaned again
OLD_RECORDS, OLD_IDENTITIES = ".progress.jsonl", ".identities.json"  # of versions before FILE
TOGETHER = 2_000  # records in memory at a time
ROW = ("status", "reason", "width", "height", "sha256", "phash", "colours")  # of photos.csv
COLUMNS = {
    "id": "TEXT",  # the photo's in lower case; with the turn it is the key
    "turn": "INTEGER",  # the file's place among the candidates for the id, from 0
    "image_id": "TEXT",
    "settings": "TEXT",  # digest of how it was cleaned
    "identity": "TEXT",  # of the Photo
    "content": "TEXT",  # sha256 of the raw file
    **dict.fromkeys(ROW, "TEXT"),
    "jpeg": "TEXT",  # sha256 of the cleaned photo
    "jpeg_bytes": "INTEGER",
    "display": "TEXT",  # sha256 of the copy to look at; NULL without one, as all of the copies
    "display_bytes": "INTEGER",
    "display_width": "INTEGER",
    "display_height": "INTEGER",
    "card": "TEXT",  # sha256 of the smaller copy
    "card_bytes": "INTEGER",
    "jpegs": "TEXT",  # the identity of these JPEGs, once they were on the disk; else NULL
}
_COPIES = [name for name in COLUMNS if name.startswith(("display", "card"))]
_KEY = "id = :id AND turn = :turn"
# A file is tried when no file of its id with an earlier turn is a photo.
_IS_TRIED = "NOT EXISTS (SELECT 1 FROM kept.records e WHERE e.id = c.id AND e.turn < c.turn AND e.status = 'ok')"
_TO_READ = f"""
    FROM candidates c CROSS JOIN files ON number = c.file LEFT JOIN kept.records r ON r.id = c.id AND r.turn = c.turn
    WHERE c.turn = :turn AND (:full OR r.id IS NULL OR r.identity != files.identity) AND {_IS_TRIED}"""


class Check(enum.Enum):
    """What became of a record's photo."""

    KNOWN = "the JPEGs are by their times and sizes what they were, or it was read and rejected"
    WHOLE = "the JPEGs are what they were by their content"
    LOST = "it has to be cleaned again"


class Records:
    """The records of a stage's folder: the table kept.records, beside the tables of a source and its selection.

    Every change outside a transaction is in the file at once, and outlives a kill; after a power cut the last ones may be
    missing, and none is half.
    """

    def __init__(self, database: sqlite3.Connection, folder: Path):
        """store: where the JPEGs are; one that is written, while it is."""
        self.database, self.folder, self.store = database, folder, photo_store.open_store(folder)

    @classmethod
    @contextlib.contextmanager
    def open(cls, database: sqlite3.Connection, folder: Path) -> Iterator["Records"]:
        """Those of the folder; none where the file is damaged at its head. Raises StageError where damage shows later.

        At the end the database is closed, for the next run.
        """
        path = folder / FILE
        try:
            try:
                _attach(database, folder)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                _detach(database)
                for name in (FILE, f"{FILE}-wal"):
                    (folder / name).unlink(missing_ok=True)
                _attach(database, folder)
            yield cls(database, folder)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            raise StageError(f"{path} is damaged: delete it and run python clean_images.py again") from None
        finally:
            database.close()

    def count(self, where: str = "TRUE") -> int:
        return self.database.execute(f"SELECT COUNT(*) FROM kept.records WHERE {where}").fetchone()[0]

    def forget_others(self, settings: str, with_display: bool) -> None:
        """Forget the records of files that are no candidates, and of photos that were cleaned by other settings."""
        is_candidate = "EXISTS (SELECT 1 FROM candidates c WHERE c.id = r.id AND c.turn = r.turn)"
        self.database.execute(f"DELETE FROM kept.records AS r WHERE settings != ? OR NOT {is_candidate}", (settings,))
        if not with_display:
            nothing = ", ".join(f"{name} = NULL" for name in _COPIES)
            self.database.execute(f"UPDATE kept.records SET {nothing} WHERE display IS NOT NULL")

    def forget_lost(self, with_display: bool, full: bool) -> None:
        """Forget the records of photos that have to be cleaned again, and identities that JPEGs have no longer."""
        with self.database:
            self.database.execute("BEGIN")
            for record, found in self.check(with_display, full):
                if found is Check.LOST:
                    self.database.execute(f"DELETE FROM kept.records WHERE {_KEY}", record)
                elif found is Check.WHOLE:
                    self.database.execute(f"UPDATE kept.records SET jpegs = NULL WHERE {_KEY}", record)

    def forget_untried(self) -> None:
        """Forget the records of files that were not tried, as another one of their id is a photo."""
        self.database.execute(f"DELETE FROM kept.records AS c WHERE NOT {_IS_TRIED}")

    def check(self, with_display: bool, full: bool = False) -> Iterator[tuple[dict, Check]]:
        """Every record and what became of its photo. full: read every JPEG, as bytes may change on a bad disk."""
        checked = self._check(with_display, full)
        return progress(checked, "check cleaned photos", "photo", self.count())

    def _check(self, with_display: bool, full: bool) -> Iterator[tuple[dict, Check]]:
        with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
            for block in self._blocks():
                there = list(zip(block, _stored(self.store, block), strict=True))
                found = [self._by_identity(*one, with_display, full) for one in there]
                by_content = iter(pool.map(_by_content, (one for one, check in zip(there, found, strict=True) if check is None)))
                for record, one in zip(block, found, strict=True):
                    yield record, one or next(by_content)

    def _by_identity(self, record: Mapping, there: list[Stored | None], with_display: bool, full: bool) -> Check | None:
        """None where the content must tell."""
        if record["status"] != "ok":
            return Check.LOST if record["reason"] in TRIED_AGAIN else Check.KNOWN
        if with_display and not record["display"]:
            return Check.LOST
        return Check.KNOWN if not full and record["jpegs"] and record["jpegs"] == identity(there) else None

    def _blocks(self, where: str = "TRUE") -> Iterator[list[dict]]:
        """All records in the order of their keys, which may be changed meanwhile."""
        key, last = f"(id, turn) > (:id, :turn) AND {where}", {"id": "", "turn": -1}
        cursor = self.database.cursor()
        cursor.row_factory = sqlite3.Row
        while rows := cursor.execute(
            f"SELECT * FROM kept.records WHERE {key} ORDER BY id, turn LIMIT {TOGETHER}", last
        ).fetchall():
            block = list(map(dict, rows))
            yield block
            last = block[-1]

    def count_todo(self, turn: int, full: bool) -> int:
        return self.database.execute(f"SELECT COUNT(*) {_TO_READ}", {"turn": turn, "full": full}).fetchone()[0]

    def todo(self, turn: int, full: bool) -> Iterator[Task]:
        """The files of a turn that have to be read: all of them with full, else those that have no record, or changed since.

        Records may be kept meanwhile. A photo whose bytes turn out the same is not cleaned again.
        """
        columns = "c.file, c.id, r.content, name, place, files.identity, size, c.image_id"
        query = f"SELECT {columns} {_TO_READ} AND (c.file, c.id) > (:file, :id) ORDER BY c.file, c.id LIMIT {TOGETHER}"
        after = {"turn": turn, "full": full, "file": 0, "id": ""}
        # Block by block: while a row is still to be read the write-ahead log only grows.
        while rows := self.database.execute(query, after).fetchall():
            for _, _, content, *row in rows:
                yield Task(photo_of(*row), content or "")
            after |= {"file": rows[-1][0], "id": rows[-1][1]}

    def keep(self, photo: Photo, turn: int, settings: str, result: Result) -> None:
        """Keep what was found of a photo whose JPEGs, if any, are written."""
        image_id = photo.image_id
        record = {"id": image_id.lower(), "turn": turn, "image_id": image_id, "settings": settings}
        record |= {"identity": photo.identity, "content": result.content}
        if result.row is None:
            own = ", ".join(f"{name} = :{name}" for name in record)
            self.database.execute(f"UPDATE kept.records SET {own} WHERE {_KEY}", record)
            return
        record |= result.row | {"jpeg": hashlib.sha256(result.jpeg).hexdigest(), "jpeg_bytes": len(result.jpeg)}
        if (display := result.display) is not None:
            record |= {"display": hashlib.sha256(display.jpeg).hexdigest(), "display_bytes": len(display.jpeg)}
            record |= {"display_width": display.width, "display_height": display.height}
            record |= {"card": hashlib.sha256(result.card).hexdigest(), "card_bytes": len(result.card)}
        self.database.execute(_INSERT, _EMPTY | record)

    def keep_identities(self) -> None:
        """At the end of a run: keep what the next one knows its JPEGs by without reading them."""
        os.sync()  # a power cut must not spoil what the next run believes to be whole
        with self.database:
            self.database.execute("BEGIN")
            for block in self._blocks("status = 'ok' AND jpegs IS NULL"):
                found = [record | {"jpegs": identity(own)} for record, own in zip(block, _stored(self.store, block), strict=True)]
                self.database.executemany(f"UPDATE kept.records SET jpegs = :jpegs WHERE {_KEY}", found)


_EMPTY = dict.fromkeys(COLUMNS)
_INSERT = f"INSERT OR REPLACE INTO kept.records VALUES ({', '.join(f':{name}' for name in COLUMNS)})"


def _attach(database: sqlite3.Connection, folder: Path) -> None:
    """Make the table where there is none, with what an older version of this program kept."""
    database.execute("ATTACH ? AS kept", (str(folder / FILE),))
    # Without shared memory, which network disks lack: the lock of the stage keeps others out.
    for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = NORMAL", f"cache_size = -{CACHE_KB}"):
        database.execute(f"PRAGMA kept.{pragma}")
    (version,) = database.execute("PRAGMA kept.user_version").fetchone()
    if version != VERSION:
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        with database:
            database.execute("BEGIN")
            database.execute("DROP TABLE IF EXISTS kept.records")
            database.execute(f"CREATE TABLE kept.records ({columns}, PRIMARY KEY (id, turn)) WITHOUT ROWID")
            database.executemany(_INSERT, _old_records(folder))
            database.execute(f"PRAGMA kept.user_version = {VERSION}")
    for name in (OLD_RECORDS, OLD_IDENTITIES):
        (folder / name).unlink(missing_ok=True)


def _detach(database: sqlite3.Connection) -> None:
    if "kept" in (name for _, name, _ in database.execute("PRAGMA database_list")):
        database.execute("DETACH kept")


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether SQLite says that a file is none of its own, or malformed: its other errors are of classes below this one."""
    return type(error) is sqlite3.DatabaseError


def _old_records(folder: Path) -> Iterator[dict]:
    """What an older version kept: a line a photo, the last one torn by a kill, and the identities of the JPEGs by image id."""
    identities = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        identities = orjson.loads((folder / OLD_IDENTITIES).read_bytes())
    with contextlib.suppress(FileNotFoundError), open(folder / OLD_RECORDS, "rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                old = orjson.loads(line)
                record = {name: old[name] for name in ("image_id", "settings", "identity", "content", "jpeg", "jpeg_bytes")}
                record |= {"id": old["image_id"].lower(), "turn": int(old["turn"])} | {name: old["row"].get(name) for name in ROW}
                if display := old["display"]:
                    record |= {"display": display["sha256"], "card": display["card_sha256"], "card_bytes": display["card_bytes"]}
                    record |= {f"display_{name}": display[name] for name in ("bytes", "width", "height")}
                yield _EMPTY | record | {"jpegs": identities.get(old["image_id"])}


def _jpegs(record: Mapping) -> Iterator[tuple[str, int, str]]:
    """The name, bytes and sha256 of each JPEG that a record tells of."""
    if record["status"] != "ok":
        return
    name = f"{record['image_id']}.jpg"
    yield name, record["jpeg_bytes"], record["jpeg"]
    if record["display"]:
        yield f"{DISPLAY}/{name}", record["display_bytes"], record["display"]
        yield f"{CARD}/{name}", record["card_bytes"], record["card"]


def _stored(store: PhotoStore, records: Sequence[Mapping]) -> Iterator[list[Stored | None]]:
    """What is there of the JPEGs of each record."""
    names = [[name for name, _, _ in _jpegs(record)] for record in records]
    found = store.find_each(itertools.chain.from_iterable(names))
    for own in names:
        yield list(itertools.islice(found, len(own)))


def identity(there: Sequence[Stored | None]) -> str:
    """What is another one when a JPEG of a record is replaced or written to; "" where one is not there."""
    return "" if None in there else " ".join(one.identity for one in there)


def _by_content(found: tuple[Mapping, Sequence[Stored | None]]) -> Check:
    jpegs = zip(_jpegs(found[0]), found[1], strict=True)
    return Check.WHOLE if all(_is_whole(stored, size, sha256) for (_, size, sha256), stored in jpegs) else Check.LOST


def _is_whole(stored: Stored | None, size: int, sha256: str) -> bool:
    # The size first: what took the place of a JPEG may be of any.
    if stored is None or stored.size != size:
        return False
    with contextlib.suppress(OSError):
        return hashlib.sha256(stored.read()).hexdigest() == sha256
    return False
