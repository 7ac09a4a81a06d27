"""Clean the photos: every one an upright sRGB JPEG square of one size, or a row that says why not.

Reads   data/raw/images/ or data/raw/images_fb.zip (--photos: a folder, a .zip, s3://bucket/prefix or s3://bucket/file.zip)
Writes  data/images/     (<image_id>.jpg, photos.csv)
Run     python clean_images.py
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from marketplace.cleaning import photos
from marketplace.cleaning.pool import READ_ERROR, Result, Task, clean_all
from marketplace.cleaning.sources import Photo, Source, image_id_of, list_source, rejected_by_name
from marketplace.files import atomic, cli, s3, stages
from marketplace.files.progress import progress
from marketplace.files.stages import StageError

MAX_ZIP_BYTES = 20_000_000_000  # of a zip's members unpacked, by default: a dozen times the real export
RECORD = ("image_id", "settings", "identity", "content", "jpeg", "row")
PROGRESS = ".progress.jsonl"  # one line a photo done, appended; not *.tmp, so that it outlives a kill
COLUMNS = ["image_id", "status", "reason", "width", "height", "sha256", "phash", "colours", "source"]


# Records of earlier runs: what need not be done again.


def read_progress(path: Path) -> dict[str, dict]:
    """The last record of each image id; a line torn by a kill is dropped.

    A record: image_id, settings (digest of how it was cleaned), identity (of the Photo), content (sha256 of the raw file), jpeg
    (sha256 of the cleaned one), row (of photos.csv).
    """
    records = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                records[record["image_id"]] = {name: record[name] for name in RECORD}
    return records


def _line(record: Mapping) -> str:
    return json.dumps(record, sort_keys=True) + "\n"


def _is_usable(record: dict, folder: Path) -> bool:
    """Whether a photo that was cleaned need not be cleaned again: its JPEG is whole, or it was read and rejected."""
    if record["row"]["status"] != "ok":
        return record["row"]["reason"] != READ_ERROR
    try:
        return hashlib.sha256((folder / f"{record['image_id']}.jpg").read_bytes()).hexdigest() == record["jpeg"]
    except FileNotFoundError:
        return False


def usable_records(records: Mapping[str, dict], folder: Path) -> set[str]:
    """Image ids of the records for which _is_usable() holds."""
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
        usable = pool.map(functools.partial(_is_usable, folder=folder), records.values())
        checked = progress(zip(records, usable, strict=True), "check cleaned photos", "photo", len(records))
        return {image_id for image_id, is_usable in checked if is_usable}


def nothing_is_left(folder: Path) -> bool:
    """Whether every photo of a finished run was read, and every cleaned one is there still, by content."""
    records, counts = read_progress(folder / PROGRESS), stages.read_manifest(folder)["counts"]
    kept = sum(record["row"]["status"] == "ok" for record in records.values())
    return kept == counts["kept"] and READ_ERROR not in counts["reasons"] and len(usable_records(records, folder)) == len(records)


def sort_out(
    readable: Mapping[str, Photo], earlier: Mapping[str, dict], settings: str, folder: Path, full: bool
) -> tuple[dict[str, dict], list[Task]]:
    """The records that stay as they are, and what has to be read; a photo whose bytes turn out the same is not cleaned again."""
    made_alike = {name: record for name, record in earlier.items() if name in readable and record["settings"] == settings}
    usable = usable_records(made_alike, folder)
    records, todo = {}, []
    for image_id, photo in readable.items():
        if image_id in usable and not full and earlier[image_id]["identity"] == photo.identity:
            records[image_id] = earlier[image_id]
        else:
            todo.append(Task(photo, earlier[image_id]["content"] if image_id in usable else ""))
    return records, todo


def clean_into(
    folder: Path, results: Iterable[tuple[Photo, Result]], total: int, records: dict[str, dict], earlier: dict, settings: str
) -> int:
    """Write the JPEGs of the results, `total` in number, and add their records; returns how many were cleaned."""
    cleaned = 0
    with open(folder / PROGRESS, "a", encoding="utf-8", buffering=1) as done:
        for photo, result in progress(results, "clean photos", "photo", total):
            image_id = image_id_of(photo.name)
            made = {"image_id": image_id, "settings": settings, "identity": photo.identity, "content": result.content}
            if result.row is None:
                records[image_id] = earlier[image_id] | made
            else:
                cleaned += 1
                if result.jpeg:
                    _write_jpeg(folder / f"{image_id}.jpg", result.jpeg)
                records[image_id] = made | {"jpeg": hashlib.sha256(result.jpeg).hexdigest(), "row": result.row}
            done.write(_line(records[image_id]))
    return cleaned


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
    if not 0 <= args.max_rejected <= 1:
        parser.error(f"argument --max-rejected: must be from 0 to 1, not {args.max_rejected}")
    if args.workers < 1:
        parser.error(f"argument --workers: must be at least 1, not {args.workers}")
    return args


def run(args: argparse.Namespace) -> dict:
    source = list_source(_photos_uri(args), args.data / "raw" / "s3", args.max_zip_bytes)
    with stages.open_stage(args.data, "images", args.settings.as_dict(), {"--photos": source.digest()}) as stage:
        if not args.full and stage.is_done() and nothing_is_left(stage.folder):
            _check_rejected(stage, stage.summary(), args.max_rejected)
            return stage.summary()
        stage.begin()
        unread = rejected_by_name(source)
        readable = {image_id_of(photo.name): photo for position, photo in enumerate(source.photos) if position not in unread}
        settings = hashlib.sha256(json.dumps([stages.STAGES["images"].schema, stage.arguments]).encode()).hexdigest()[:16]
        earlier = read_progress(stage.folder / PROGRESS)
        records, todo = sort_out(readable, earlier, settings, stage.folder, args.full)
        atomic.write_bytes(stage.folder / PROGRESS, "".join(map(_line, records.values())).encode())
        with contextlib.closing(clean_all(todo, source.zip_path, args.settings, args.workers)) as results:
            cleaned = clean_into(stage.folder, results, len(todo), records, earlier, settings)
        table = tabulate(source, unread, records)
        removed = _remove_others(stage.folder, set(table.image_id[table.status == "ok"]))
        atomic.write_csv(stage.folder / "photos.csv", table)
        atomic.write_bytes(stage.folder / PROGRESS, "".join(_line(records[image_id]) for image_id in sorted(records)).encode())
        counts = count(table, source)
        _check_rejected(stage, counts, args.max_rejected)
        reused = len(readable) - cleaned
        return stage.finish(counts, ["photos.csv"]) | {"cleaned": cleaned, "reused": reused, "removed": removed}


def tabulate(source: Source, unread: Mapping[int, str], records: Mapping[str, Mapping]) -> pd.DataFrame:
    """photos.csv: a row for every photo of the source."""
    rows = [_row(photo, unread.get(position), records) for position, photo in enumerate(source.photos)]
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=str).fillna("")
    return table.sort_values(["image_id", "source"], kind="stable")


def count(table: pd.DataFrame, source: Source) -> dict:
    reasons = Counter(table.reason[table.status == "rejected"])
    counts = {
        "seen": len(source.photos),
        "kept": int((table.status == "ok").sum()),
        "rejected": sum(reasons.values()),
        "reasons": dict(sorted(reasons.items())),
        "ignored": source.ignored,
    }
    assert counts["seen"] == counts["kept"] + counts["rejected"], counts
    return counts


def _photos_uri(args: argparse.Namespace) -> str:
    if not args.photos:
        for default in (args.data / "raw" / "images", args.data / "raw" / "images_fb.zip"):
            if default.exists():
                return str(default)
        raise StageError(
            f"{args.data / 'raw'} holds neither images/ nor images_fb.zip: put the photos there, or name them with --photos"
        )
    if not s3.is_s3(args.photos):
        path = Path(args.photos)
        if not path.exists():
            raise StageError(f"{path} does not exist: give the photos' folder, .zip or s3:// URI with --photos")
        if (args.data / "images").resolve() in (path.resolve(), *path.resolve().parents):
            raise StageError(f"{path} is where the cleaned photos go: give the folder of the raw ones with --photos")
    return args.photos


def _write_jpeg(path: Path, jpeg: bytes) -> None:
    """Whole or not at all; not flushed one by one, as what a power cut spoils no longer fits its record and is done again."""
    temporary = path.with_name(f".{path.name}{atomic.TEMPORARY_SUFFIX}")
    temporary.write_bytes(jpeg)
    os.replace(temporary, path)


def _row(photo: Photo, unread_reason: str | None, records: Mapping[str, Mapping]) -> dict:
    image_id = image_id_of(photo.name)
    row = {"status": "rejected", "reason": unread_reason} if unread_reason else records[image_id]["row"]
    return {"image_id": _printable(image_id), "source": _printable(photo.name)} | row


def _printable(name: str) -> str:
    """A name that survives a CSV: control characters and bytes that are no UTF-8 as escapes."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", lambda match: f"\\x{ord(match[0]):02x}", name)


def _remove_others(folder: Path, kept: Iterable[str]) -> int:
    """Take away the JPEGs of photos that left the source or are rejected now; returns how many."""
    names = {f"{image_id}.jpg" for image_id in kept}
    others = [path for path in folder.glob("*.jpg") if path.name not in names]
    for path in others:
        path.unlink()
    return len(others)


def _check_rejected(stage: stages.Stage, counts: Mapping, max_rejected: float) -> None:
    """StageError, and no manifest, when too large a share of the photos was rejected."""
    if counts["rejected"] > max_rejected * counts["seen"]:
        stage.unfinish()
        raise StageError(
            f"{counts['rejected']} of {counts['seen']} photos were rejected, more than --max-rejected {max_rejected:g}: "
            f"see the reasons in {stage.folder / 'photos.csv'}"
        )


def main(argv: list[str] | None = None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
