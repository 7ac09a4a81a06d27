"""Where raw photos come from: a folder, a zip or S3; what is there, under which ids, and its bytes."""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import stat
import zipfile
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from marketplace.cleaning import listings
from marketplace.files import s3
from marketplace.files.stages import StageError

IMAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a file's stem; the export's are UUIDs
NOT_PHOTOS = {".csv", ".db", ".ini", ".json", ".md", ".parquet", ".txt", ".zip"}  # suffixes of what lies beside photos
# Suffixes of pictures, in the order in which files of one id are tried: HEIC last, as what lies beside it was made from it for
# programs that cannot read it. Files of other suffixes, such as a phone's .MOV and .AAE, come after all of these.
PICTURES = (
    {".jpg", ".jpeg", ".jpe", ".jfif"},
    {".png"},
    {".webp"},
    {"", ".avif", ".bmp", ".gif", ".tif", ".tiff"},
    {".heic", ".heif"},
)
MAX_ZIP_BYTES = 20_000_000_000  # of a zip's members unpacked, by default: a dozen times the real export
MAX_PHOTO_BYTES = 100_000_000  # of one file: no camera's JPEG comes near


@dataclass(frozen=True)
class Photo:
    """One file of the source.

    name: its path below the source, "/" between parts. place: the path, zip member number or S3 URI to read it from.
    identity: changes when its content changes, as far as that can be told without reading it. size: bytes. id: what a table gave
    it; "" where its name is its id.
    """

    name: str
    place: str | int
    identity: str
    size: int
    id: str = ""

    @functools.cached_property
    def path(self) -> PurePosixPath:
        return PurePosixPath(self.name)

    @property
    def image_id(self) -> str:
        return self.id or listings.canonical_id(self.path.stem)


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

    def names_digest(self) -> str:
        """Changes when a photo comes or goes."""
        return hashlib.sha256(json.dumps([photo.name for photo in self.photos]).encode()).hexdigest()


def uri_of(given: str | None, data_dir: Path) -> str:
    """Where the photos are: as given with --photos, or what there is below data/raw; StageError where there is nothing."""
    if not given:
        for default in (data_dir / "raw" / "images", data_dir / "raw" / "images_fb.zip"):
            if default.exists():
                return str(default)
        raise StageError(
            f"{data_dir / 'raw'} holds neither images/ nor images_fb.zip: put the photos there, or name them with --photos"
        )
    if not s3.is_s3(given):
        path = Path(given)
        if not path.exists():
            raise StageError(f"{path} does not exist: give the photos' folder, .zip or s3:// URI with --photos")
        if (data_dir / "images").resolve() in (path.resolve(), *path.resolve().parents):
            raise StageError(f"{path} is where the cleaned photos go: give the folder of the raw ones with --photos")
    return given


def list_source(uri: str, cache_dir: Path, max_zip_bytes: int) -> Source:
    """Every file of a folder, a zip or an S3 prefix that may be a photo, in the order of the names.

    uri: a folder, a .zip or an s3:// URI. Raises StageError when it is none of these, holds no photo or cannot be read whole.
    """
    _open_zip.cache_clear()
    zip_path, others = None, 0
    if s3.is_s3(uri) and not uri.lower().endswith(".zip"):
        prefix = uri if uri.endswith("/") else uri + "/"
        found = [Photo(o.uri.removeprefix(prefix), o.uri, f"{o.etag}-{o.size}", o.size) for o in s3.list_objects(prefix)]
        found = [photo for photo in found if not photo.name.endswith("/") and photo.name]  # folder markers
    elif not s3.is_s3(uri) and Path(uri).is_dir():
        found, others = _folder_photos(Path(uri))
    else:
        zip_path = s3.local_file(uri, cache_dir)
        found = _zip_photos(zip_path, max_zip_bytes)
    kept = sorted((photo for photo in found if _may_be_photo(photo.path)), key=lambda photo: photo.name)
    if not kept:
        raise StageError(f"{uri} holds no photos: give their folder, .zip or s3:// URI with --photos")
    return Source(_below_common_folder(kept), others + len(found) - len(kept), zip_path and str(zip_path))


def _folder_photos(folder: Path) -> tuple[list[Photo], int]:
    """The files below a folder, through links too, and how many entries are neither a file nor a folder that is listed.

    Raises StageError where a folder cannot be read: its photos would pass for removed.
    """
    found, others = [], 0
    entered = {folder: {_inode(folder)}}  # folder -> it and those above it, among which a link would lead in circles
    for path, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        above = entered.pop(Path(path))
        for name in list(folders):
            inode = _inode(Path(path, name))
            if inode in above:
                folders.remove(name)
                others += 1
            else:
                entered[Path(path, name)] = above | {inode}
        below = "" if (relative := Path(path).relative_to(folder).as_posix()) == "." else f"{relative}/"
        for name in names:
            photo = _file_photo(os.path.join(path, name), below + name)
            found += [photo] if photo else []
            others += photo is None
    return found, others


def _refuse(error: OSError) -> None:
    raise StageError(f"{error.filename} cannot be read ({error.strerror}): give the permission, or mount it, and run it again")


def _inode(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        _refuse(error)
    return status.st_dev, status.st_ino


def _file_photo(path: str, name: str) -> Photo | None:
    """The file as a photo, a link that leads nowhere too: it is one that cannot be read. None where it is no regular file."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            _refuse(error)
        return Photo(name, path, "unreadable", 0)
    if not stat.S_ISREG(status.st_mode):
        return None
    # The time of the last change of the inode tells of a file that was rewritten and given its old time back.
    identity = f"{status.st_size}-{status.st_ino}-{status.st_mtime_ns}-{status.st_ctime_ns}"
    return Photo(name, path, identity, status.st_size)


def _zip_photos(path: Path, max_zip_bytes: int) -> list[Photo]:
    members = _open_zip(str(path)).infolist()
    total = sum(member.file_size for member in members)
    if total > max_zip_bytes:
        raise StageError(
            f"{path} unpacks to {total:,} bytes, more than --max-zip-bytes {max_zip_bytes}: raise it if you trust the zip"
        )
    names = [member.filename.replace("\\", "/") for member in members]  # as some programs on Windows write them
    return [
        Photo(name, number, f"{member.CRC:08x}-{member.file_size}", member.file_size)
        for number, (name, member) in enumerate(zip(names, members, strict=True))
        if not name.endswith("/")
    ]


@functools.lru_cache(maxsize=1)
def _open_zip(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        raise StageError(f"{path} is neither a folder nor a readable .zip: give the photos' folder, .zip or s3:// URI") from None


def _may_be_photo(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") and part != ".." or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() not in NOT_PHOTOS


def _below_common_folder(found: list[Photo]) -> list[Photo]:
    """The photos under their names below the folder they share, so that a folder and a zip of it are listed alike."""
    common = os.path.commonprefix([photo.path.parts[:-1] for photo in found])
    shared = len(list(itertools.takewhile(lambda part: part != "..", common)))
    names = ("/".join(photo.path.parts[shared:]) for photo in found)
    return [photo if name == photo.name else replace(photo, name=name) for photo, name in zip(found, names, strict=True)]


def image_id_of(name: str) -> str:
    """The id that a photo's name stands for: its stem; a UUID in lower case, as the table's ids are."""
    return listings.canonical_id(PurePosixPath(name).stem)


def is_image_id(text: str) -> bool:
    """Whether a photo can have this id: it is a file's name, and part of an address."""
    return IMAGE_ID.fullmatch(text) is not None


@dataclass(frozen=True)
class Selection:
    """Which photos of a source are to be read.

    candidates: id in lower case (some file systems take a.jpg and A.jpg for one file) -> the files that have it, in the order in
    which they are tried; unread: rejected files and why; skipped: how many files have an id that is not wanted.
    """

    candidates: dict[str, list[Photo]]
    unread: list[tuple[Photo, str]]
    skipped: int

    @property
    def wanted(self) -> int:
        """Files of the ids that are wanted; one that several ids have counts for each."""
        return sum(map(len, self.candidates.values())) + len(self.unread)


def select(source: Source, wanted: Collection[str] | None) -> Selection:
    """Sort a source's photos out by their names and sizes. wanted: the ids to take, in lower case; None: all."""
    candidates, unread, skipped = defaultdict(list), [], 0
    for photo in source.photos:
        path = photo.path
        if wanted is not None and path.stem.lower() not in wanted:
            skipped += 1
        elif ".." in path.parts or not IMAGE_ID.fullmatch(path.stem):
            unread.append((photo, "bad_name"))
        elif photo.size > MAX_PHOTO_BYTES:
            unread.append((photo, "too_large"))
        else:
            candidates[path.stem.lower()].append(photo)
    for photos in candidates.values():
        photos.sort(key=_preference)  # stable: the first by name comes first among its kind
    return Selection(dict(candidates), unread, skipped)


def select_files(source: Source, files: Mapping[str, str], urls: Mapping[str, str]) -> Selection:
    """Sort a source's photos out by the names that a table gives them.

    files: id -> the file's name, a path or an address, of which the source may have the end, or begin further up. urls: stem of a
    name in the source -> the address it was fetched from, where that is known.
    """
    by_name = defaultdict(list)
    for image_id, file in files.items():
        by_name[PurePosixPath(_path_of(file)).name].append((image_id, file))
    candidates, unread, skipped = defaultdict(list), [], 0
    for photo in source.photos:
        name = urls.get(photo.path.stem, photo.name)
        named = by_name.get(PurePosixPath(_path_of(name)).name, [])
        image_ids = _same_file(name, named)
        skipped += not image_ids
        for image_id in image_ids:
            mine = replace(photo, id=image_id)
            if photo.size > MAX_PHOTO_BYTES:
                unread.append((mine, "too_large"))
            else:
                candidates[image_id.lower()].append(mine)
    return Selection(dict(candidates), unread, skipped)


def _path_of(file: str) -> str:
    """The host and path of an address, percent signs decoded, as wget -x keeps them; any other name as it is."""
    if not re.match("https?://", file):
        return file
    address = urlsplit(file)
    return address.netloc + unquote(address.path)


def _same_file(name: str, named: list[tuple[str, str]]) -> list[str]:
    """The ids whose file this one is: of the same name, or, where only one name is, with the same path's end."""
    if exact := [image_id for image_id, file in named if file == name]:
        return exact
    if re.match("https?://", name):
        return []
    parts = PurePosixPath(name).parts[::-1]
    ends = [(image_id, file) for image_id, file in named if _agree(parts, PurePosixPath(_path_of(file)).parts[::-1])]
    return [image_id for image_id, _ in ends] if len({file for _, file in ends}) == 1 else []


def _agree(some: tuple[str, ...], others: tuple[str, ...]) -> bool:
    length = min(len(some), len(others))
    return some[:length] == others[:length]


def urls_of(uri: str) -> dict[str, str]:
    """Stem of a photo's name -> the address it was fetched from, in a folder that img2dataset wrote; else nothing.

    Source: img2dataset's README, "File format": NUMBER.json beside NUMBER.jpg in folders of ten thousand, its "url".
    """
    found, folder = {}, Path(uri)
    for path in sorted(folder.glob("[0-9]*/[0-9]*.json")) if not s3.is_s3(uri) and folder.is_dir() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found[path.stem] = str(json.loads(path.read_bytes())["url"])
    return found


def _preference(photo: Photo) -> int:
    suffix = photo.path.suffix.lower()
    return next((rank for rank, suffixes in enumerate(PICTURES) if suffix in suffixes), len(PICTURES))


def is_sidecar(photo: Photo) -> bool:
    """Whether a file is, by its name, something that lies beside a photo of its id."""
    return _preference(photo) == len(PICTURES)


def read(photo: Photo, zip_path: str | None) -> bytes:
    """A photo's bytes. (zipfile stops at a member's listed size.)"""
    if zip_path:
        archive = _open_zip(zip_path)
        return archive.read(archive.infolist()[photo.place])
    if s3.is_s3(photo.place):
        return s3.read_object(photo.place)
    return Path(photo.place).read_bytes()
