"""Where raw photos come from: a folder, a zip or S3; what is there, under which ids, and its bytes."""

import functools
import hashlib
import itertools
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from marketplace.cleaning import listings
from marketplace.files import s3
from marketplace.files.stages import StageError

IMAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a file's stem; the export's are UUIDs
NOT_PHOTOS = {".csv", ".db", ".ini", ".json", ".md", ".txt", ".zip"}  # suffixes of what lies beside photos
MAX_PHOTO_BYTES = 100_000_000  # of one file: no camera's JPEG comes near


@dataclass(frozen=True)
class Photo:
    """One file of the source.

    name: its path below the source, "/" between parts. place: the path, zip member number or S3 URI to read it from.
    identity: changes when its content changes, as far as that can be told without reading it. size: bytes.
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

    def digest(self) -> str:
        """Changes when a photo comes, goes or changes."""
        listing = [[photo.name, photo.identity] for photo in self.photos]
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


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
    for path in sorted(folder.rglob("*")):
        try:
            status = path.stat()
        except OSError:  # a link that leads nowhere
            continue
        if stat.S_ISREG(status.st_mode):
            # The time of the last change of the inode tells of a file that was rewritten and given its old time back.
            identity = f"{status.st_size}-{status.st_ino}-{status.st_mtime_ns}-{status.st_ctime_ns}"
            yield Photo(path.relative_to(folder).as_posix(), str(path), identity, status.st_size)


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


def read(photo: Photo, zip_path: str | None) -> bytes:
    """A photo's bytes. (zipfile stops at a member's listed size.)"""
    if zip_path:
        archive = _open_zip(zip_path)
        return archive.read(archive.infolist()[photo.place])
    if s3.is_s3(photo.place):
        return s3.read_object(photo.place)
    return Path(photo.place).read_bytes()
