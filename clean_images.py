"""Clean the photos: every one an upright sRGB JPEG square of one size and a larger copy to look at, or a row that says why not.

Reads   data/raw/images/ or data/raw/images_fb.zip (--photos: a folder, a .zip, s3://bucket/prefix or s3://bucket/file.zip),
        data/tabular/ (images.csv, which photos listings have)
Writes  data/images/     (<image_id>.jpg, photos.csv; display/<image_id>.jpg, card/<image_id>.jpg, display.csv;
        with --shards all JPEGs in shards/<number>.tar, whose index is shards.sqlite)
Run     python clean_images.py
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import re
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from marketplace.cleaning import photos
from marketplace.cleaning.photo_names import FILE
from marketplace.cleaning.photo_records import ROW, Check, Records
from marketplace.cleaning.photos import COPIES, DISPLAY_TABLE
from marketplace.cleaning.pool import READ_ERROR, TRIED_AGAIN, Result, clean_all
from marketplace.cleaning.redaction import UUID, redact
from marketplace.cleaning.sources import (
    MAX_ZIP_BYTES,
    Photo,
    Selection,
    Source,
    address_of,
    is_sidecar,
    list_source,
    photo_of,
    select,
    select_files,
    uri_of,
)
from marketplace.files import atomic, cli, cluster, photo_store, reading, s3, stages
from marketplace.files.photo_store import PhotoStore
from marketplace.files.progress import progress
from marketplace.files.stages import StageError

DUPLICATE = "duplicate_id"  # another file of its id was kept: the reason of a reject by which no photo is lost
_PLAIN = re.compile(rf"(?:{UUID.pattern})\.[a-z]{{3,4}}")  # a file of the export, with nothing to take out of its name
COLUMNS = ["image_id", *ROW, "source"]
DISPLAY_COLUMNS = ["image_id", "width", "height"]
ROWS_AT_A_TIME = 100_000  # of images.csv
# Of a table of JPEGs: those of photos that are not kept.
_IS_GONE = """NOT EXISTS (
    SELECT 1 FROM kept.records r WHERE r.id = jpegs.id AND r.status = 'ok' AND CAST(r.image_id AS BLOB) = jpegs.name
)"""


@dataclass(frozen=True)
class Cleaning:
    """One run's cleaning. store: where the JPEGs go; with_display: whether to make copies to look at; full: whether to read
    every file; nodes: of a cluster, which clean instead of this machine's processes."""

    store: PhotoStore
    settings: photos.CleanSettings
    with_display: bool
    workers: int
    full: bool
    nodes: cluster.Cores | None

    @property
    def settings_digest(self) -> str:
        """Of how the JPEGs are made."""
        copies = [photos.DISPLAY_SIDE, photos.DISPLAY_QUALITY, photos.CARD_SIDE, photos.CARD_QUALITY]
        made_by = [stages.STAGES["images"].schema, self.settings.as_dict(), *copies]
        return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:16]

    def clean(self, selection: Selection, records: Records, zip_path: str | None) -> int:
        """Clean of each id the first file that is a usable photo; returns how many were cleaned now.

        The records are afterwards those of the files that were tried, now or by an earlier run.
        """
        records.forget_others(self.settings_digest, self.with_display)
        records.forget_lost(self.with_display, self.full)
        cleaned = 0
        for turn in range(selection.turns):
            n_todo = records.count_todo(turn, self.full)
            todo = records.todo(turn, self.full)
            cleaned_photos = clean_all(todo, zip_path, self.settings, self.with_display, self.workers, self.nodes)
            with contextlib.closing(cleaned_photos) as results:
                for photo, result in progress(results, "clean photos", "photo", n_todo):
                    self._write(photo.image_id, result)
                    records.keep(photo, turn, self.settings_digest, result)
                    cleaned += result.row is not None
        records.forget_untried()
        return cleaned

    def _write(self, image_id: str, result: Result) -> None:
        """Write the JPEGs of a photo."""
        name, jpegs = f"{image_id}.jpg", {}
        if result.jpeg:
            jpegs[name] = result.jpeg
        if result.display is not None:
            jpegs |= {f"{photos.DISPLAY}/{name}": result.display.jpeg, f"{photos.CARD}/{name}": result.card}
        if jpegs:
            self.store.write(jpegs)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = photos.CleanSettings()
    parser.add_argument("--data", default="data", type=Path, help="folder of all stages (default: %(default)s)")
    parser.add_argument("--photos", help="folder, .zip or s3:// URI (default: raw/images/, else raw/images_fb.zip, below --data)")
    parser.add_argument("--size", default=defaults.size, type=int, help="side of the square in pixels (default: %(default)s)")
    parser.add_argument("--fit", default=defaults.fit, choices=photos.FITS, help="how to make it square (default: %(default)s)")
    parser.add_argument(
        "--max-pixels", default=defaults.max_pixels, type=int, help="reject larger photos unread (default: %(default)s)"
    )
    parser.add_argument(
        "--max-rejected", default=0.2, type=float, help="share of rejected photos that fails the run (default: %(default)s)"
    )
    parser.add_argument(
        "--max-removed",
        default=0.2,
        type=float,
        help="share of the photos cleaned before whose removal fails the run, those listed no more aside (default: %(default)s)",
    )
    parser.add_argument(
        "--no-display",
        action="store_true",
        help=f"keep no copies to look at (default: of at most {photos.DISPLAY_SIDE} and {photos.CARD_SIDE} pixels a side)",
    )
    parser.add_argument(
        "--shards",
        action="store_true",
        help="keep the cleaned photos in tars of a gigabyte, for disks of too few inodes (default: a file each)",
    )
    parser.add_argument("--all-photos", action="store_true", help="also clean photos that no listing has (default: skip them)")
    parser.add_argument(
        "--max-zip-bytes", default=MAX_ZIP_BYTES, type=int, help="refuse a zip that unpacks to more (default: %(default)s)"
    )
    parser.add_argument(
        "--full", action="store_true", help="read every photo again, also those whose size and times say that nothing changed"
    )
    parser.add_argument("--workers", default=cli.cores(), type=int, help="processes (default: one a core)")
    cli.add_ray(parser)
    args = parser.parse_args(argv)
    try:
        args.settings = photos.CleanSettings(args.size, args.fit, args.max_pixels)
    except ValueError as error:
        parser.error(str(error))
    for flag, share in (("--max-rejected", args.max_rejected), ("--max-removed", args.max_removed)):
        if not 0 <= share <= 1:
            parser.error(f"argument {flag}: must be from 0 to 1, not {share}")
    if args.workers < 1:
        parser.error(f"argument --workers: must be at least 1, not {args.workers}")
    return args


def run(args: argparse.Namespace) -> dict:
    uri, with_display = uri_of(args.photos, args.data), not args.no_display
    reads = () if args.all_photos else stages.STAGES["images"].reads
    arguments = args.settings.as_dict() | {"display": with_display} | ({"shards": True} if args.shards else {})
    flags = cli.flags_of(args, "settings", "workers", "ray", "full", "max_removed")
    with (
        list_source(uri, args.data / "raw" / "s3", args.max_zip_bytes) as source,
        stages.open_stage(args.data, "images", arguments, {"--photos": source.digest()}, reads=reads, flags=flags) as stage,
        Records.open(source.database, stage.folder) as records,
    ):
        if not args.full and stage.is_done() and nothing_is_left(records, with_display):
            _check_rejected(stage, stage.summary(), uri, args.max_rejected)
            return stage.summary()
        selection = _select(source, uri, None if args.all_photos else args.data / "tabular" / "images.csv")
        if not selection.turns and selection.skipped:
            raise StageError(none_is_wanted(args.data / "tabular", selection, uri))
        tell_missing(selection, uri)
        list_jpegs(source.database, "there", photo_store.open_store(stage.folder))
        if not args.all_photos:
            source.database.execute("DELETE FROM there WHERE id NOT IN (SELECT id FROM listed)")
        _check_removed(source.database, "id NOT IN (SELECT id FROM candidates)", uri, args.max_removed)
        # The cluster first: what was cleaned before stays finished where there is none.
        with cluster.connect(args.ray) as nodes, _begun(stage, args.shards, with_display) as store:
            records.store = store
            cleaning = Cleaning(store, args.settings, with_display, args.workers, args.full, nodes)
            cleaned = cleaning.clean(selection, records, source.zip_path)
            tabulate(selection)
            sorted_rows = f"{', '.join(COLUMNS)} FROM rows ORDER BY image_id, source, rowid"
            write_csv(stage.folder / "photos.csv", COLUMNS, source.database, sorted_rows)
            counts = count(source, selection)
            _check_rejected(stage, counts, uri, args.max_rejected)
            _check_removed(source.database, _IS_GONE, uri, args.max_removed)
            removed = _remove_others(store, source.database)
            store.tidy()
            outputs = ["photos.csv"]
            if with_display:
                shown = "image_id, display_width, display_height FROM kept.records WHERE display IS NOT NULL ORDER BY image_id"
                write_csv(stage.folder / DISPLAY_TABLE, DISPLAY_COLUMNS, source.database, shown)
                outputs.append(DISPLAY_TABLE)
            records.keep_identities()
            return stage.finish(counts, outputs) | {"cleaned": cleaned, "reused": records.count() - cleaned, "removed": removed}


def nothing_is_left(records: Records, with_display: bool) -> bool:
    """Whether every photo of a finished run was read, and every cleaned one is there still, by content."""
    counts = stages.read_manifest(records.folder)["counts"]
    if TRIED_AGAIN & counts["reasons"].keys() or records.count("status = 'ok'") != counts["kept"]:
        return False
    return all(found is not Check.LOST for _, found in records.check(with_display))


def _select(source: Source, uri: str, table: Path | None) -> Selection:
    """The photos to clean. table: images.csv, with the files' names where a schema told them; None: all photos are wanted."""
    if table is None:
        return select(source, None)
    columns = [name for name in reading.read_csv(table, nrows=0) if name in ("image_id", FILE)]
    blocks = reading.read_csv(table, usecols=columns, chunksize=ROWS_AT_A_TIME)
    if FILE in columns:
        files = (row for block in blocks for row in zip(block["image_id"], block[FILE], strict=True))
        return select_files(source, files, functools.partial(address_of, folder=Path(uri)))
    return select(source, (image_id for block in blocks for image_id in block["image_id"]))


def none_is_wanted(tabular_dir: Path, selection: Selection, uri: str) -> str:
    """The sentence for a source whose photos no listing has."""
    nobodys = f"no listing in {tabular_dir} has one of the {selection.skipped} photos of {uri}"
    if named := selection.database.execute("SELECT file FROM listed WHERE file IS NOT NULL ORDER BY rowid LIMIT 1").fetchone():
        return f"{nobodys}: they are not called as the table names them, such as {named[0]}; give their folder"
    return f"{nobodys}: take Products.csv, Images.csv and the photos from one export, or give --all-photos"


def tell_missing(selection: Selection, uri: str) -> None:
    """Say on stderr which photos that a shop's table names are not there."""
    is_there = "EXISTS (SELECT 1 FROM candidates c WHERE c.id = l.id) OR EXISTS (SELECT 1 FROM unread u WHERE u.id = l.id)"
    missing = f"FROM listed l WHERE file IS NOT NULL AND NOT ({is_there})"
    if n_missing := selection.count(f"SELECT COUNT(*) {missing}"):
        n_listed = selection.count("SELECT COUNT(*) FROM listed")
        (first,) = selection.database.execute(f"SELECT file {missing} ORDER BY rowid LIMIT 1").fetchone()
        print(f"{n_missing} of {n_listed} photos that the table names are not in {uri}, such as {first}", file=sys.stderr)


def tabulate(selection: Selection) -> None:
    """Put the rows of photos.csv into the table `rows`: every photo that is wanted, but for what lies beside one that is kept."""
    selection.database.execute(f"CREATE TABLE rows ({', '.join(f'{name} TEXT' for name in COLUMNS)})")
    with selection.database as database:
        database.execute("BEGIN")
        database.executemany(f"INSERT INTO rows VALUES ({', '.join('?' * len(COLUMNS))})", _rows(selection))


def _rows(selection: Selection) -> Iterator[tuple]:
    nothing = [""] * (len(ROW) - 2)
    for photo, reason in selection.unread():
        yield _row(photo, "rejected", reason, *nothing)
    found = selection.database.execute(
        f"""SELECT name, place, files.identity, size, c.image_id, {", ".join(f"r.{name}" for name in ROW)}
        FROM candidates c CROSS JOIN files ON number = c.file LEFT JOIN kept.records r ON r.id = c.id AND r.turn = c.turn
        ORDER BY c.file, c.turn"""
    )
    for *file, status, reason, width, height, sha256, phash, colours in found:
        photo = photo_of(*file)
        if status:
            yield _row(photo, status, reason, width or "", height or "", sha256 or "", phash or "", colours or "")
        elif not is_sidecar(photo):
            yield _row(photo, "rejected", DUPLICATE, *nothing)


def write_csv(path: Path, columns: list[str], database: sqlite3.Connection, selected: str) -> None:
    with contextlib.closing(database.execute(f"SELECT {selected}")) as rows:
        atomic.write_table(path, columns, rows)


def count(source: Source, selection: Selection) -> dict:
    """The stage's counts: seen = kept + rejected + skipped, and what lies beside the photos is ignored."""
    execute, skipped = selection.database.execute, selection.skipped
    rejected = "SELECT reason, COUNT(*) FROM rows WHERE status = 'rejected' GROUP BY reason ORDER BY reason"
    reasons = dict(execute(rejected).fetchall())
    kept, rows = execute("SELECT COUNT(*) FILTER (WHERE status = 'ok'), COUNT(*) FROM rows").fetchone()
    counts = {
        "seen": rows + skipped,
        "kept": kept,
        "rejected": sum(reasons.values()),
        "skipped": skipped,
        "reasons": reasons,
        "ignored": source.ignored + selection.wanted - rows,
    }
    assert counts["seen"] == counts["kept"] + counts["rejected"] + counts["skipped"], counts
    return counts


def _row(photo: Photo, status: str, *facts: str) -> tuple[str, ...]:
    # A file's name is text too; the id of a cleaned photo is what its file is called, and stays.
    shown_id = photo.image_id if status == "ok" else redact(photo.image_id)
    name = photo.name if _PLAIN.fullmatch(photo.name) else _printable(redact(photo.name))
    return _printable(shown_id), status, *facts, name


def _printable(name: str) -> str:
    """A name that survives a CSV: control characters and bytes that are no UTF-8 as escapes."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", lambda match: f"\\x{ord(match[0]):02x}", name)


@contextlib.contextmanager
def _begun(stage: stages.Stage, in_shards: bool, with_display: bool) -> Iterator[PhotoStore]:
    """Begin the stage: its photos to be written, without what a killed run left half-written, and without the copies to look at
    and their table where there are to be none."""
    stage.begin()
    with photo_store.writing(stage.folder, in_shards, COPIES) as store:
        for place in COPIES:
            atomic.remove_leftovers(stage.folder / place)
        if not with_display:
            (stage.folder / DISPLAY_TABLE).unlink(missing_ok=True)
            for place in COPIES:
                store.remove(store.names(place))
        yield store


def list_jpegs(database: sqlite3.Connection, table: str, store: PhotoStore, place: str = photos.SQUARE) -> None:
    """Put the names of the JPEGs of one of PHOTO_FOLDERS, without .jpg, into a table; and as ids, in lower case."""
    database.execute(f"DROP TABLE IF EXISTS {table}")
    database.execute(f"CREATE TABLE {table} (name BLOB, id TEXT)")
    names = (name.rpartition("/")[2].removesuffix(".jpg") for name in store.names(place))
    rows = ((os.fsencode(name), name.lower().encode("utf-8", "backslashreplace").decode()) for name in names)
    with database:
        database.execute("BEGIN")
        database.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)


def _remove_others(store: PhotoStore, database: sqlite3.Connection) -> int:
    """Take away the JPEGs of photos that left the source, are listed no more or are rejected now; returns how many photos."""
    removed = {}
    for place in photos.PHOTO_FOLDERS:
        list_jpegs(database, "jpegs", store, place)
        gone = (os.fsdecode(name) for (name,) in database.execute(f"SELECT name FROM jpegs WHERE {_IS_GONE}"))
        removed[place] = store.remove(str(Path(place, f"{name}.jpg")) for name in gone)
    return removed[photos.SQUARE]


def _check_removed(database: sqlite3.Connection, is_gone: str, uri: str, max_removed: float) -> None:
    """StageError when too large a share of the cleaned photos, of the table `there`, would go: a folder of the source is missing,
    or its mount."""
    there, removed = database.execute(f"SELECT COUNT(*), COUNT(*) FILTER (WHERE {is_gone}) FROM there AS jpegs").fetchone()
    if removed > max_removed * there:
        raise StageError(
            f"{removed} of {there} cleaned photos would be removed, more than --max-removed {max_removed:g}: "
            f"see whether {uri} is whole, or allow it with --max-removed 1"
        )


def _check_rejected(stage: stages.Stage, counts: Mapping, uri: str, max_rejected: float) -> None:
    """StageError, and no manifest, when too large a share of the photos was rejected."""
    lost, wanted = counts["rejected"] - counts["reasons"].get(DUPLICATE, 0), counts["seen"] - counts["skipped"]
    if lost > max_rejected * wanted:
        stage.unfinish()
        forbidden = s3.is_s3(uri) and READ_ERROR in counts["reasons"]
        raise StageError(
            f"{lost} of {wanted} photos were rejected, more than --max-rejected {max_rejected:g}: "
            f"see the reasons in {stage.folder / 'photos.csv'}"
            + (f", and allow s3:GetObject on {uri} for those of {READ_ERROR}" if forbidden else "")
        )


def main(argv: list[str] | None = None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
