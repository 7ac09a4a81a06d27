"""Clean the photos: every one an upright sRGB JPEG square of one size and a larger copy to look at, or a row that says why not.

Reads   data/raw/images/ or data/raw/images_fb.zip (--photos: a folder, a .zip, s3://bucket/prefix or s3://bucket/file.zip),
        data/tabular/ (images.csv, which photos listings have)
Writes  data/images/     (<image_id>.jpg, photos.csv; display/<image_id>.jpg, card/<image_id>.jpg, display.csv)
Run     python clean_images.py
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import orjson
import pandas as pd

from marketplace.cleaning import photos
from marketplace.cleaning.photo_names import FILE
from marketplace.cleaning.photos import CARD, COPIES, DISPLAY, DISPLAY_TABLE
from marketplace.cleaning.pool import READ_ERROR, TRIED_AGAIN, Result, Task, clean_all
from marketplace.cleaning.redaction import UUID, redact
from marketplace.cleaning.sources import (
    MAX_ZIP_BYTES,
    Photo,
    Selection,
    Source,
    is_sidecar,
    list_source,
    select,
    select_files,
    uri_of,
    urls_of,
)
from marketplace.files import atomic, cli, reading, s3, stages
from marketplace.files.progress import progress
from marketplace.files.stages import StageError

RECORD = ("image_id", "turn", "settings", "identity", "content", "jpeg", "jpeg_bytes", "display", "row")
PROGRESS = ".progress.jsonl"  # one line a photo done, appended; not *.tmp, so that it outlives a kill
IDENTITIES = ".identities.json"  # times among them: what a killed run leaves has others
DUPLICATE = "duplicate_id"  # another file of its id was kept: the reason of a reject by which no photo is lost
Key = tuple[str, int]  # id in lower case, and the file's place among the candidates for it, from 0
_PLAIN = re.compile(rf"(?:{UUID.pattern})\.[a-z]{{3,4}}")  # a file of the export, with nothing to take out of its name
COLUMNS = ["image_id", "status", "reason", "width", "height", "sha256", "phash", "colours", "source"]
DISPLAY_COLUMNS = ["image_id", "width", "height"]


# Records of earlier runs: what need not be done again.


def read_progress(path: Path) -> dict[Key, dict]:
    """The last record of each file; a line torn by a kill is dropped.

    A record: image_id and turn (its key), settings (digest of how it was cleaned), identity (of the Photo), content (sha256 of
    the raw file), jpeg (sha256 of the cleaned one, of jpeg_bytes bytes), display (sha256, bytes, width and height of the copy to
    look at, card_sha256 and card_bytes of the smaller one; null without them), row (of photos.csv).
    """
    records = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                record = {"display": None} | orjson.loads(line)
                records[record["image_id"].lower(), int(record["turn"])] = {name: record[name] for name in RECORD}
    return records


def write_progress(path: Path, records: Mapping[Key, dict]) -> None:
    atomic.write_bytes(path, "".join(_line(records[key]) for key in sorted(records)).encode())


def _line(record: Mapping) -> str:
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS).decode() + "\n"


def _jpegs(folder: Path, record: Mapping) -> Iterator[tuple[str, int, str]]:
    """The path, bytes and sha256 of each JPEG that a record tells of."""
    name, display = f"{record['image_id']}.jpg", record["display"]
    yield f"{folder}/{name}", record["jpeg_bytes"], record["jpeg"]
    if display:
        yield f"{folder}/{DISPLAY}/{name}", display["bytes"], display["sha256"]
        yield f"{folder}/{CARD}/{name}", display["card_bytes"], display["card_sha256"]


def _identity(folder: Path, record: Mapping) -> str:
    """What is another one when a JPEG of a record is replaced or written to; "" where one is not there."""
    try:
        found = [os.stat(path) for path, _, _ in _jpegs(folder, record)]
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return " ".join(f"{each.st_size}-{each.st_ino}-{each.st_mtime_ns}-{each.st_ctime_ns}" for each in found)


def write_identities(folder: Path, records: Mapping[Key, dict]) -> None:
    """At the end of a run: what the next one knows its JPEGs by without reading them."""
    os.sync()  # a power cut must not spoil what the next run believes to be whole
    kept = [record for record in records.values() if record["row"]["status"] == "ok"]
    atomic.write_json(folder / IDENTITIES, {record["image_id"]: _identity(folder, record) for record in kept}, indent=None)


def read_identities(folder: Path) -> dict[str, str]:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return orjson.loads((folder / IDENTITIES).read_bytes())
    return {}


def _has_jpegs(record: Mapping, folder: Path) -> bool:
    """Whether the JPEGs of a record are those that were made, by their content."""
    return all(_is_whole(Path(path), size, sha256) for path, size, sha256 in _jpegs(folder, record))


def _is_whole(path: Path, size: int, sha256: str) -> bool:
    try:  # the size first: what took the place of a JPEG may be of any
        return path.stat().st_size == size and stages.digest(path) == sha256
    except (FileNotFoundError, NotADirectoryError, StageError):
        return False


def usable_records(records: Mapping[Key, dict], folder: Path, with_display: bool, full: bool = False) -> set[Key]:
    """Keys of the photos that need not be cleaned again: the JPEGs are whole, or the photo was read and rejected.

    full: read every JPEG, as bytes may change on a bad disk.
    """
    cleaned = {key: record for key, record in records.items() if record["row"]["status"] == "ok"}
    usable = {key for key, record in records.items() if key not in cleaned and record["row"]["reason"] not in TRIED_AGAIN}
    complete = {key: record for key, record in cleaned.items() if record["display"] or not with_display}
    identities = {} if full else read_identities(folder)
    usable |= {key for key, one in complete.items() if identities.get(one["image_id"]) == (_identity(folder, one) or None)}
    unsure = {key: record for key, record in complete.items() if key not in usable}
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
        whole = pool.map(functools.partial(_has_jpegs, folder=folder), unsure.values())
        checked = progress(zip(unsure, whole, strict=True), "check cleaned photos", "photo", len(unsure))
        return usable | {key for key, is_whole in checked if is_whole}


def nothing_is_left(folder: Path, with_display: bool) -> bool:
    """Whether every photo of a finished run was read, and every cleaned one is there still, by content."""
    records, counts = read_progress(folder / PROGRESS), stages.read_manifest(folder)["counts"]
    kept = sum(record["row"]["status"] == "ok" for record in records.values())
    all_read = not TRIED_AGAIN & counts["reasons"].keys()
    return all_read and kept == counts["kept"] and len(usable_records(records, folder, with_display)) == len(records)


def sort_out(
    readable: Mapping[Key, Photo], earlier: Mapping[Key, dict], folder: Path, with_display: bool, full: bool
) -> tuple[dict[Key, dict], list[Task]]:
    """The records that stay as they are, and what has to be read; a photo whose bytes turn out the same is not cleaned again."""
    usable = usable_records({key: earlier[key] for key in readable if key in earlier}, folder, with_display, full)
    records, todo = {}, []
    for key, photo in readable.items():
        if key in usable and not full and earlier[key]["identity"] == photo.identity:
            records[key] = earlier[key]
        else:
            todo.append(Task(photo, earlier[key]["content"] if key in usable else ""))
    return records, todo


@dataclass(frozen=True)
class Cleaning:
    """One run's cleaning. folder: where the JPEGs go; with_display: whether to make copies to look at; full: whether to read
    every file."""

    folder: Path
    settings: photos.CleanSettings
    with_display: bool
    workers: int
    full: bool

    @property
    def settings_digest(self) -> str:
        """Of how the JPEGs are made."""
        copies = [photos.DISPLAY_SIDE, photos.DISPLAY_QUALITY, photos.CARD_SIDE, photos.CARD_QUALITY]
        made_by = [stages.STAGES["images"].schema, self.settings.as_dict(), *copies]
        return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:16]

    def clean(self, selection: Selection, zip_path: str | None) -> tuple[dict[Key, dict], int]:
        """Clean of each id the first file that is a usable photo.

        Returns the records of the files that were tried, now or by an earlier run, and how many were cleaned now.
        """
        all_records, settings_digest = read_progress(self.folder / PROGRESS), self.settings_digest
        dropped = {} if self.with_display else {"display": None}
        earlier = {
            (name, turn): record | dropped
            for (name, turn), record in all_records.items()
            if name in selection.candidates and record["settings"] == settings_digest
        }
        if len(earlier) < len(all_records):
            write_progress(self.folder / PROGRESS, earlier)
        records, cleaned, waiting = {}, 0, selection.candidates
        for turn in itertools.count():
            readable = {(name, turn): files[turn] for name, files in waiting.items()}
            usable, todo = sort_out(readable, earlier, self.folder, self.with_display, self.full)
            cleaned_photos = clean_all(todo, zip_path, self.settings, self.with_display, self.workers)
            with contextlib.closing(cleaned_photos) as results:
                fresh, made = self._store(progress(results, "clean photos", "photo", len(todo)), turn, earlier)
            records |= usable | fresh
            cleaned += made
            failed = {name for name, _ in readable if records[name, turn]["row"]["status"] != "ok"}
            waiting = {name: waiting[name] for name in failed if turn + 1 < len(waiting[name])}
            if not waiting:
                return records, cleaned

    def _store(
        self, results: Iterable[tuple[Photo, Result]], turn: int, earlier: Mapping[Key, dict]
    ) -> tuple[dict[Key, dict], int]:
        """Write the JPEGs of the results; returns the records of all of them, and how many were cleaned."""
        records, cleaned, settings_digest = {}, 0, self.settings_digest
        with open(self.folder / PROGRESS, "a", encoding="utf-8", buffering=1) as done:
            for photo, result in results:
                image_id = photo.image_id
                record = {"image_id": image_id, "turn": turn, "settings": settings_digest, "identity": photo.identity}
                record["content"] = result.content
                if result.row is None:
                    record = earlier[image_id.lower(), turn] | record
                else:
                    cleaned += 1
                    record |= self._write(image_id, result) | {"row": result.row}
                done.write(_line(record))
                records[image_id.lower(), turn] = record
        return records, cleaned

    def _write(self, image_id: str, result: Result) -> dict:
        """Write the JPEGs of a photo; returns what its record tells of them."""
        display, told = result.display, None
        if result.jpeg:
            _write_jpeg(self.folder / f"{image_id}.jpg", result.jpeg)
        if display is not None:
            _write_jpeg(self.folder / DISPLAY / f"{image_id}.jpg", display.jpeg)
            _write_jpeg(self.folder / CARD / f"{image_id}.jpg", result.card)
            told = {"sha256": hashlib.sha256(display.jpeg).hexdigest(), "bytes": len(display.jpeg)}
            told |= {"card_sha256": hashlib.sha256(result.card).hexdigest(), "card_bytes": len(result.card)}
            told |= {"width": display.width, "height": display.height}
        return {"jpeg": hashlib.sha256(result.jpeg).hexdigest(), "jpeg_bytes": len(result.jpeg), "display": told}


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
    parser.add_argument("--all-photos", action="store_true", help="also clean photos that no listing has (default: skip them)")
    parser.add_argument(
        "--max-zip-bytes", default=MAX_ZIP_BYTES, type=int, help="refuse a zip that unpacks to more (default: %(default)s)"
    )
    parser.add_argument(
        "--full", action="store_true", help="read every photo again, also those whose size and times say that nothing changed"
    )
    parser.add_argument("--workers", default=cli.cores(), type=int, help="processes (default: one a core)")
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
    uri = uri_of(args.photos, args.data)
    source = list_source(uri, args.data / "raw" / "s3", args.max_zip_bytes)
    reads = () if args.all_photos else stages.STAGES["images"].reads
    with_display = not args.no_display
    arguments = args.settings.as_dict() | {"display": with_display}
    flags = cli.flags_of(args, "settings", "workers", "full", "max_removed")
    raw = {"--photos": source.digest()}
    with stages.open_stage(args.data, "images", arguments, raw, reads=reads, flags=flags) as stage:
        if not args.full and stage.is_done() and nothing_is_left(stage.folder, with_display):
            _check_rejected(stage, stage.summary(), uri, args.max_rejected)
            return stage.summary()
        listed = None if args.all_photos else reading.read_csv(args.data / "tabular" / "images.csv")
        wanted = None if listed is None else set(listed["image_id"].str.lower())
        selection = _select(source, uri, listed)
        if not selection.candidates and selection.skipped:
            raise StageError(none_is_wanted(args.data / "tabular", selection.skipped, uri, listed))
        tell_missing(selection, uri, listed)
        there = {name for name in _cleaned(stage.folder) if wanted is None or name.lower() in wanted}
        _check_removed(uri, there, {name for name in there if name.lower() not in selection.candidates}, args.max_removed)
        stage.begin()
        _begin_display(stage.folder, with_display)
        cleaning = Cleaning(stage.folder, args.settings, with_display, args.workers, args.full)
        records, cleaned = cleaning.clean(selection, source.zip_path)
        table = tabulate(selection, records)
        atomic.write_csv(stage.folder / "photos.csv", table)
        write_progress(stage.folder / PROGRESS, records)
        counts = count(table, source, selection)
        _check_rejected(stage, counts, uri, args.max_rejected)
        kept = set(table.image_id[table.status == "ok"])
        _check_removed(uri, there, there - kept, args.max_removed)
        removed = _remove_others(stage.folder, kept)
        outputs = ["photos.csv"]
        if with_display:
            atomic.write_csv(stage.folder / DISPLAY_TABLE, tabulate_display(records))
            outputs.append(DISPLAY_TABLE)
        write_identities(stage.folder, records)
        return stage.finish(counts, outputs) | {"cleaned": cleaned, "reused": len(records) - cleaned, "removed": removed}


def none_is_wanted(tabular_dir: Path, photos_there: int, uri: str, listed: pd.DataFrame) -> str:
    """The sentence for a source whose photos no listing has. listed: images.csv."""
    nobodys = f"no listing in {tabular_dir} has one of the {photos_there} photos of {uri}"
    if FILE in listed and len(listed):
        return f"{nobodys}: they are not called as the table names them, such as {listed[FILE].iloc[0]}; give their folder"
    return f"{nobodys}: take Products.csv, Images.csv and the photos from one export, or give --all-photos"


def tell_missing(selection: Selection, uri: str, listed: pd.DataFrame | None) -> None:
    """Say on stderr which photos that a shop's table names are not there. listed: images.csv."""
    if listed is None or FILE not in listed:
        return
    there = selection.candidates.keys() | {photo.image_id.lower() for photo, _ in selection.unread}
    missing = listed.loc[~listed["image_id"].str.lower().isin(there), FILE]
    if len(missing):
        print(
            f"{len(missing)} of {len(listed)} photos that the table names are not in {uri}, such as {missing.iloc[0]}",
            file=sys.stderr,
        )


def tabulate(selection: Selection, records: Mapping[Key, Mapping]) -> pd.DataFrame:
    """photos.csv: a row for every photo that is wanted, but for what lies beside one that is kept."""
    rows = [_row(photo, {"status": "rejected", "reason": reason}) for photo, reason in selection.unread]
    for name, files in selection.candidates.items():
        for turn, photo in enumerate(files):
            if (name, turn) in records:
                rows.append(_row(photo, records[name, turn]["row"]))
            elif not is_sidecar(photo):
                rows.append(_row(photo, {"status": "rejected", "reason": DUPLICATE}))
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=str).fillna("")
    return table.sort_values(["image_id", "source"], kind="stable")


def tabulate_display(records: Mapping[Key, Mapping]) -> pd.DataFrame:
    """display.csv: a row for every photo that is kept, with the size of its copy to look at."""
    rows = [{"image_id": record["image_id"]} | record["display"] for record in records.values() if record["display"]]
    return pd.DataFrame(rows, columns=DISPLAY_COLUMNS).sort_values("image_id")


def count(table: pd.DataFrame, source: Source, selection: Selection) -> dict:
    """The stage's counts: seen = kept + rejected + skipped, and what lies beside the photos is ignored."""
    skipped, sidecars = selection.skipped, selection.wanted - len(table)
    reasons = Counter(table.reason[table.status == "rejected"])
    counts = {
        "seen": selection.wanted + skipped - sidecars,
        "kept": int((table.status == "ok").sum()),
        "rejected": sum(reasons.values()),
        "skipped": skipped,
        "reasons": dict(sorted(reasons.items())),
        "ignored": source.ignored + sidecars,
    }
    assert counts["seen"] == counts["kept"] + counts["rejected"] + counts["skipped"], counts
    return counts


def _select(source: Source, uri: str, listed: pd.DataFrame | None) -> Selection:
    """The photos to clean. listed: images.csv, with the files' names where a schema told them; None: all photos are wanted."""
    if listed is None:
        return select(source, None)
    if FILE in listed:
        return select_files(source, dict(zip(listed["image_id"], listed[FILE], strict=True)), urls_of(uri))
    return select(source, set(listed["image_id"].str.lower()))


def _write_jpeg(path: Path, jpeg: bytes) -> None:
    """Whole or not at all; not flushed one by one, as what a power cut spoils no longer fits its record and is done again."""
    temporary = path.with_name(f".{path.name}{atomic.TEMPORARY_SUFFIX}")
    try:
        temporary.write_bytes(jpeg)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _row(photo: Photo, row: Mapping) -> dict:
    image_id = photo.image_id
    # A file's name is text too; the id of a cleaned photo is what its file is called, and stays.
    shown_id = image_id if row["status"] == "ok" else redact(image_id)
    name = photo.name if _PLAIN.fullmatch(photo.name) else _printable(redact(photo.name))
    return {"image_id": _printable(shown_id), "source": name} | dict(row)


def _printable(name: str) -> str:
    """A name that survives a CSV: control characters and bytes that are no UTF-8 as escapes."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", lambda match: f"\\x{ord(match[0]):02x}", name)


def _begin_display(folder: Path, with_display: bool) -> None:
    """Make the folders of the copies to look at, without what a killed run left half-written; or remove them and their table."""
    if not with_display:
        (folder / DISPLAY_TABLE).unlink(missing_ok=True)
    for copies in (folder / name for name in COPIES):
        if with_display:
            copies.mkdir(exist_ok=True)
            atomic.remove_leftovers(copies)
        else:
            shutil.rmtree(copies, ignore_errors=True)


def _cleaned(folder: Path) -> set[str]:
    """The ids of the photos whose JPEGs are in the folder."""
    return {name.removesuffix(".jpg") for name in os.listdir(folder) if name.endswith(".jpg")} if folder.exists() else set()


def _remove_others(folder: Path, kept: set[str]) -> int:
    """Take away the JPEGs of photos that left the source, are listed no more or are rejected now; returns how many."""
    others = _cleaned(folder) - kept
    for name in others:
        (folder / f"{name}.jpg").unlink()
    for copies in (folder / name for name in COPIES):
        for name in _cleaned(copies) - kept:
            (copies / f"{name}.jpg").unlink()
    return len(others)


def _check_removed(uri: str, there: set[str], removed: set[str], max_removed: float) -> None:
    """StageError when too large a share of the cleaned photos would go: a folder of the source is missing, or its mount."""
    if len(removed) > max_removed * len(there):
        raise StageError(
            f"{len(removed)} of {len(there)} cleaned photos would be removed, more than --max-removed {max_removed:g}: "
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
