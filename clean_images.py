"""Clean the photos: every one an upright sRGB JPEG square of one size, or a row that says why not.

Reads   data/raw/images/ or data/raw/images_fb.zip (--photos: a folder, a .zip, s3://bucket/prefix or s3://bucket/file.zip)
Writes  data/images/     (<image_id>.jpg, photos.csv)
Run     python clean_images.py
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import threading
import zipfile
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm import tqdm

from marketplace.cleaning import listings, photos
from marketplace.files import atomic, cli, s3, stages
from marketplace.files.stages import StageError

IMAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a file's stem; the export's are UUIDs
NOT_PHOTOS = {".csv", ".db", ".ini", ".json", ".md", ".txt", ".zip"}  # suffixes of what lies beside photos
MAX_PHOTO_BYTES = 100_000_000  # of one file: no camera's JPEG comes near
MAX_ZIP_BYTES = 20_000_000_000  # of a zip's members unpacked, by default: a dozen times the real export
CHUNK = 8  # photos a worker takes at a time: 0.1 s of work where they are large, so that the workers end together
CHUNKS_AHEAD = 3  # a worker: enough to keep it busy, few enough that memory stays flat
S3_READERS = 8  # objects a worker fetches at once
PROGRESS = ".progress.jsonl"  # one line a photo done, appended; not *.tmp, so that it outlives a kill
READ_ERROR = "read_error"  # the file, not the photo in it, could not be read: tried again by the next run
COLUMNS = ["image_id", "status", "reason", "width", "height", "sha256", "phash", "source"]


@dataclass(frozen=True)
class Photo:
    """One file of the source.

    name: its path below the source, "/" between parts. place: the path, zip member number or S3 URI to read it from.
    identity: changes when its content changes. size: bytes.
    """

    name: str
    place: str | int
    identity: str
    size: int


@dataclass(frozen=True)
class Source:
    """zip_path: the local zip whose members the photos are; None where each photo is a file or an S3 object."""

    photos: list[Photo]
    ignored: int
    zip_path: str | None = None


# Listing


def list_source(uri: str, cache_dir: Path, max_zip_bytes: int) -> Source:
    """Every file of a folder, a zip or an S3 prefix that may be a photo, in the order of the names.

    uri: a folder, a .zip or an s3:// URI. Raises StageError when it is none of these, or holds no photo.
    """
    _open_zip.cache_clear()
    zip_path = None
    if s3.is_s3(uri) and not uri.lower().endswith(".zip"):
        prefix = uri if uri.endswith("/") else uri + "/"
        found = [Photo(o.uri.removeprefix(prefix), o.uri, f"{o.etag}-{o.size}", o.size) for o in s3.list_objects(prefix)]
        found = [photo for photo in found if not photo.name.endswith("/") and photo.name]  # folder markers
    elif not s3.is_s3(uri) and Path(uri).is_dir():
        found = list(_folder_photos(Path(uri)))
    else:
        zip_path = s3.local_file(uri, cache_dir)
        found = _zip_photos(zip_path, max_zip_bytes)
    kept = sorted((photo for photo in found if _may_be_photo(photo.name)), key=lambda photo: photo.name)
    if not kept:
        raise StageError(f"{uri} holds no photos: give their folder, .zip or s3:// URI with --photos")
    return Source(_below_common_folder(kept), len(found) - len(kept), zip_path and str(zip_path))


def _folder_photos(folder: Path) -> Iterator[Photo]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in tqdm(paths, desc="reading", unit="photo", file=sys.stderr, disable=None):
        name = path.relative_to(folder).as_posix()
        if not _may_be_photo(name):
            yield Photo(name, str(path), "", 0)
            continue
        # By content: a rewritten photo is noticed whatever its size and time, and a copied folder is the same source.
        try:
            yield Photo(name, str(path), stages.digest(path), path.stat().st_size)
        except OSError as error:
            yield Photo(name, str(path), f"unreadable: {error.strerror}", 0)


def _zip_photos(path: Path, max_zip_bytes: int) -> list[Photo]:
    members = _open_zip(str(path)).infolist()
    total = sum(member.file_size for member in members)
    if total > max_zip_bytes:
        raise StageError(
            f"{path} unpacks to {total:,} bytes, more than --max-zip-bytes {max_zip_bytes}: raise it if you trust the zip"
        )
    return [
        Photo(member.filename, number, f"{member.CRC:08x}-{member.file_size}", member.file_size)
        for number, member in enumerate(members)
        if not member.is_dir()
    ]


@functools.lru_cache(maxsize=1)
def _open_zip(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        raise StageError(f"{path} is neither a folder nor a readable .zip: give the photos' folder, .zip or s3:// URI") from None


def _may_be_photo(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != ".." or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() not in NOT_PHOTOS


def _below_common_folder(found: list[Photo]) -> list[Photo]:
    """The photos under their names below the folder they share, so that a folder and a zip of it are listed alike."""
    common = os.path.commonprefix([PurePosixPath(photo.name).parts[:-1] for photo in found])
    shared = len(list(itertools.takewhile(lambda part: part != "..", common)))
    return [Photo("/".join(PurePosixPath(photo.name).parts[shared:]), photo.place, photo.identity, photo.size) for photo in found]


def image_id_of(name: str) -> str:
    """The id that a photo's name stands for: its stem; a UUID in lower case, as the table's ids are."""
    return listings.canonical_id(PurePosixPath(name).stem)


def rejected_by_name(source: Source) -> dict[int, str]:
    """Position of a photo -> why it is rejected unread: bad_name, duplicate_id (the first in order stays) or too_large."""
    reasons, seen = {}, set()
    for position, photo in enumerate(source.photos):
        path = PurePosixPath(photo.name)
        if ".." in path.parts or not IMAGE_ID.fullmatch(path.stem):
            reasons[position] = "bad_name"
        elif path.stem.lower() in seen:  # lower: some file systems take a.jpg and A.jpg for one file
            reasons[position] = "duplicate_id"
        else:
            seen.add(path.stem.lower())
            if photo.size > MAX_PHOTO_BYTES:
                reasons[position] = "too_large"
    return reasons


# Cleaning


def clean_photo(photo: Photo, zip_path: str | None, settings: photos.CleanSettings) -> tuple[dict, bytes]:
    """What photos.csv says of one photo, and its cleaned JPEG, empty when it is rejected."""
    try:
        data = _read(photo, zip_path)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError):  # RuntimeError: an encrypted or unknown zip member
        return {"status": "rejected", "reason": READ_ERROR}, b""
    try:
        cleaned = photos.clean(data, settings)
    except photos.PhotoRejected as rejection:
        return {"status": "rejected", "reason": rejection.reason}, b""
    facts = {"width": str(cleaned.width), "height": str(cleaned.height), "sha256": cleaned.sha256, "phash": cleaned.phash}
    return {"status": "ok", "reason": ""} | facts, cleaned.jpeg


def _read(photo: Photo, zip_path: str | None) -> bytes:
    """A photo's bytes. (zipfile stops at a member's listed size.)"""
    if zip_path:
        archive = _open_zip(zip_path)
        return archive.read(archive.infolist()[photo.place])
    if s3.is_s3(photo.place):
        return s3.read_object(photo.place)
    return Path(photo.place).read_bytes()


def _clean_chunk(chunk: list[Photo], zip_path: str | None, settings: photos.CleanSettings) -> list[tuple[dict, bytes]]:
    clean_one = functools.partial(clean_photo, zip_path=zip_path, settings=settings)
    if zip_path or not s3.is_s3(chunk[0].place):
        return [clean_one(photo) for photo in chunk]
    with ThreadPoolExecutor(S3_READERS) as pool:  # the network's delay, not the processor, is what takes time
        return list(pool.map(clean_one, chunk))


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it however it ends: a pool's workers would wait for a killed parent for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process().sentinel

    def follow() -> None:
        multiprocessing.connection.wait([parent])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def clean_all(
    todo: list[Photo], zip_path: str | None, settings: photos.CleanSettings, workers: int
) -> Iterator[tuple[Photo, dict, bytes]]:
    """clean_photo() of every photo, in order, over processes; StageError when one of them dies."""
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    if min(workers, len(chunks)) <= 1:
        for chunk in chunks:
            for photo, (row, jpeg) in zip(chunk, _clean_chunk(chunk, zip_path, settings), strict=True):
                yield photo, row, jpeg
        return
    # spawn: a fork copies locks that threads of this process may hold.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(chunks)), context, _begin_worker)
    under_way = deque()
    waiting = deque(chunks)
    try:
        while waiting or under_way:
            while waiting and len(under_way) < CHUNKS_AHEAD * workers:
                chunk = waiting.popleft()
                under_way.append((chunk, pool.submit(_clean_chunk, chunk, zip_path, settings)))
            chunk, future = under_way.popleft()
            for photo, (row, jpeg) in zip(chunk, future.result(), strict=True):
                yield photo, row, jpeg
    except BrokenProcessPool:
        raise StageError(
            f"a cleaning process died near {chunk[0].name}, perhaps for want of memory: run it again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


# Resuming


def _record_key(photo: Photo, settings: photos.CleanSettings) -> str:
    """Changes with the photo, the settings and the meaning of the files."""
    key = [stages.SCHEMA_VERSION, settings.as_dict(), photo.identity]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def read_progress(path: Path) -> dict[str, dict]:
    """The last record of each image id: {key, jpeg (sha256 of the file), row}. A line torn by a kill is dropped."""
    records = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                records[record["image_id"]] = {name: record[name] for name in ("image_id", "key", "jpeg", "row")}
    return records


def _line(record: Mapping) -> str:
    return json.dumps(record, sort_keys=True) + "\n"


def _is_done(record: dict | None, key: str, path: Path) -> bool:
    """Whether the record is of this photo under these settings and its JPEG is whole."""
    if record is None or record["key"] != key:
        return False
    if record["row"]["status"] != "ok":
        return record["row"]["reason"] != READ_ERROR
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == record["jpeg"]
    except FileNotFoundError:
        return False


# The stage


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
    parser.add_argument("--workers", default=os.cpu_count(), type=int, help="processes (default: one a core)")
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
    folder = args.data / "images"
    source = list_source(_photos_uri(args, folder), args.data / "raw" / "s3", args.max_zip_bytes)
    listing = hashlib.sha256(json.dumps([[photo.name, photo.identity] for photo in source.photos]).encode()).hexdigest()
    stage = stages.Stage(folder, args.settings.as_dict(), {"photos": listing})
    if done := stage.finished():
        _check_rejected(done, args, folder)
        return done
    stage.begin()

    unread = rejected_by_name(source)
    readable = {image_id_of(p.name): p for position, p in enumerate(source.photos) if position not in unread}
    keys = {image_id: _record_key(photo, args.settings) for image_id, photo in readable.items()}
    earlier = read_progress(folder / PROGRESS)
    records = {
        image_id: earlier[image_id]
        for image_id in readable
        if _is_done(earlier.get(image_id), keys[image_id], folder / f"{image_id}.jpg")
    }
    reused = len(records)
    atomic.write_bytes(folder / PROGRESS, "".join(map(_line, records.values())).encode())
    todo = [photo for image_id, photo in readable.items() if image_id not in records]
    results = clean_all(todo, source.zip_path, args.settings, args.workers)
    with open(folder / PROGRESS, "a", encoding="utf-8", buffering=1) as progress, contextlib.closing(results):
        for photo, row, jpeg in tqdm(results, total=len(todo), desc="cleaning", unit="photo", file=sys.stderr, disable=None):
            image_id = image_id_of(photo.name)
            if jpeg:
                _write_jpeg(folder / f"{image_id}.jpg", jpeg)
            digest = hashlib.sha256(jpeg).hexdigest()
            records[image_id] = {"image_id": image_id, "key": keys[image_id], "jpeg": digest, "row": row}
            progress.write(_line(records[image_id]))

    rows = [_row(photo, unread.get(position), records) for position, photo in enumerate(source.photos)]
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=str).fillna("").sort_values(["image_id", "source"], kind="stable")
    kept = set(table.image_id[table.status == "ok"])
    removed = _remove_others(folder, kept)
    atomic.write_csv(folder / "photos.csv", table)
    atomic.write_bytes(folder / PROGRESS, "".join(_line(records[image_id]) for image_id in sorted(records)).encode())
    reasons = Counter(table.reason[table.status == "rejected"])
    counts = {
        "seen": len(source.photos),
        "kept": len(kept),
        "rejected": sum(reasons.values()),
        "reasons": dict(sorted(reasons.items())),
        "ignored": source.ignored,
    }
    assert counts["seen"] == counts["kept"] + counts["rejected"], counts
    _check_rejected(counts, args, folder)
    summary = stage.finish(counts, ["photos.csv", *(f"{image_id}.jpg" for image_id in sorted(kept))], ["photos.csv"])
    return summary | {"cleaned": len(todo), "reused": reused, "removed": removed}


def _photos_uri(args: argparse.Namespace, folder: Path) -> str:
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
        if folder.resolve() in (path.resolve(), *path.resolve().parents):
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


def _check_rejected(counts: Mapping, args: argparse.Namespace, folder: Path) -> None:
    """StageError, and no manifest, when too large a share of the photos was rejected."""
    if counts["rejected"] > args.max_rejected * counts["seen"]:
        (folder / stages.MANIFEST).unlink(missing_ok=True)
        raise StageError(
            f"{counts['rejected']} of {counts['seen']} photos were rejected, more than --max-rejected {args.max_rejected:g}: "
            f"see the reasons in {folder / 'photos.csv'}"
        )


def main(argv: list[str] | None = None) -> int:
    return cli.exit_code(run, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
