"""Where raw photos come from: a folder, a zip or S3; what is there, under which ids, and its bytes."""

import errno
import functools
import hashlib
import itertools
import json
import os
import re
import sqlite3
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from marketplace.cleaning import listings
from marketplace.files import disk, s3
from marketplace.files.stages import StageError

IMAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a file's stem; the export's are UUIDs
_SIMPLE = re.compile(
    r"[A-Za-z0-9_-]+\.[A-Za-z0-9]+"
)  # a name that a path of its own tells nothing more of, in ten times the time
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
CACHE_KB = 32_000  # of memory, for a source's database: what does not fit lies on the disk


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

    @functools.cached_property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0] if _SIMPLE.fullmatch(self.name) else self.path.stem

    @functools.cached_property
    def suffix(self) -> str:
        return os.path.splitext(self.name)[1] if _SIMPLE.fullmatch(self.name) else self.path.suffix

    @property
    def image_id(self) -> str:
        return self.id or listings.canonical_id(self.stem)


class Source:
    """The files of a source that may be photos, in the order of their names, and how many others are ignored.

    They lie in a temporary database of SQLite's, on the disk: millions of them take no memory. Its table `files`: number (the
    place in the order), name, place, identity and size, as Photo has them; names and paths in UTF-8, which sorts as Python does.
    zip_path: the local zip whose members the photos are; None where each photo is a file or an S3 object.
    """

    def __init__(self, found: Iterable[Photo | None], zip_path: str | None = None):
        """found: in any order; None for what is no file."""
        self.zip_path, self.ignored, self._common = zip_path, 0, None
        self.database = sqlite3.connect("", isolation_level=None)
        for pragma in ("journal_mode = OFF", f"cache_size = -{CACHE_KB}"):
            self.database.execute(f"PRAGMA {pragma}")
        with disk.writing(disk.sqlite_temporary()):
            self._fill("found", map(_row, self._kept(found)))
            ordered = self.database.execute("SELECT name, place, identity, size FROM found ORDER BY name, rowid")
            self._fill("files", ((self._name_below(name), *rest) for name, *rest in ordered))
            self.database.execute("DROP TABLE found")
        (self.n_photos,) = self.database.execute("SELECT COUNT(*) FROM files").fetchone()

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_) -> None:
        self.database.close()

    def _fill(self, table: str, rows: Iterable[tuple]) -> None:
        self.database.execute(f"CREATE TABLE {table} (number INTEGER PRIMARY KEY, name BLOB, place, identity TEXT, size INTEGER)")
        with self.database:
            self.database.execute("BEGIN")
            self.database.executemany(f"INSERT INTO {table} (name, place, identity, size) VALUES (?, ?, ?, ?)", rows)

    def _kept(self, found: Iterable[Photo | None]) -> Iterator[Photo]:
        """Those that may be photos; meanwhile, which folders they share."""
        for photo in found:
            if photo is None or not _may_be_photo(photo):
                self.ignored += 1
                continue
            if self._common != ():
                folders = () if _SIMPLE.fullmatch(photo.name) else photo.path.parts[:-1]
                self._common = os.path.commonprefix([folders if self._common is None else self._common, folders])
            yield photo

    def _name_below(self, name: bytes) -> bytes:
        """A name below the folder that all share, so that a folder and a zip of it are listed alike."""
        text = _text(name)
        if _SIMPLE.fullmatch(text):
            return name
        shared = len(list(itertools.takewhile(lambda part: part != "..", self._common)))
        return _blob("/".join(PurePosixPath(text).parts[shared:]))

    def photos(self) -> Iterator[Photo]:
        for _, photo in self.numbered():
            yield photo

    def numbered(self) -> Iterator[tuple[int, Photo]]:
        for number, *row in self.database.execute("SELECT number, name, place, identity, size FROM files ORDER BY number"):
            yield number, photo_of(*row)

    def digest(self) -> str:
        """Changes when a photo comes, goes or changes."""
        listing = self.database.execute("SELECT name, identity FROM files ORDER BY number")
        return _digest([_text(name), identity] for name, identity in listing)

    def names_digest(self) -> str:
        """Changes when a photo comes or goes."""
        return _digest(_text(name) for (name,) in self.database.execute("SELECT name FROM files ORDER BY number"))


def _digest(values: Iterable) -> str:
    """The sha256 of the JSON list of the values, some thousands in memory at a time."""
    values, digest, separator = iter(values), hashlib.sha256(b"["), b""
    while block := list(itertools.islice(values, 10_000)):
        digest.update(separator + json.dumps(block)[1:-1].encode())
        separator = b", "
    digest.update(b"]")
    return digest.hexdigest()


def _blob(text: str) -> bytes:
    """A name that may be no UTF-8, as Python has it, for SQLite."""
    return text.encode("utf-8", "surrogatepass")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")


def _row(photo: Photo) -> tuple:
    place = photo.place if isinstance(photo.place, int) else _blob(photo.place)
    return _blob(photo.name), place, photo.identity, photo.size


def photo_of(name: bytes, place: bytes | int, identity: str, size: int, image_id: str = "") -> Photo:
    """A row of a source's files."""
    return Photo(_text(name), place if isinstance(place, int) else _text(place), identity, size, image_id)


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
    zip_path = None
    if s3.is_s3(uri) and not uri.lower().endswith(".zip"):
        found = _s3_photos(uri if uri.endswith("/") else uri + "/")
    elif not s3.is_s3(uri) and Path(uri).is_dir():
        found = _folder_photos(str(Path(uri)))
    else:
        zip_path = s3.local_file(uri, cache_dir)
        found = _zip_photos(zip_path, max_zip_bytes)
    source = Source(found, zip_path and str(zip_path))
    if not source.n_photos:
        raise StageError(f"{uri} holds no photos: give their folder, .zip or s3:// URI with --photos")
    return source


def _s3_photos(prefix: str) -> Iterator[Photo]:
    for found in s3.iterate_objects(prefix):
        name = found.uri.removeprefix(prefix)
        if name and not name.endswith("/"):  # folder markers
            yield Photo(name, found.uri, f"{found.etag}-{found.size}", found.size)


def _folder_photos(folder: str, below: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[Photo | None]:
    """The files below a folder, through links too; None for each entry that is neither a file nor a folder to be listed.

    below: the folder's name as its files have it; above: the folders above it, among which a link would lead in circles.
    Raises StageError where a folder cannot be read: its photos would pass for removed.
    """
    inode = _inode(folder)
    if inode in above:
        yield None
        return
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _folder_photos(entry.path, f"{below}{entry.name}/", (*above, inode))
        else:
            yield _file_photo(entry.path, below + entry.name)


def _entries(folder: str) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        _refuse(error)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _refuse(error: OSError) -> None:
    raise StageError(f"{error.filename} cannot be read ({error.strerror}): give the permission, or mount it, and run it again")


def _inode(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
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


def _zip_photos(path: Path, max_zip_bytes: int) -> Iterator[Photo]:
    members = _open_zip(str(path)).infolist()
    total = sum(member.file_size for member in members)
    if total > max_zip_bytes:
        raise StageError(
            f"{path} unpacks to {total:,} bytes, more than --max-zip-bytes {max_zip_bytes}: raise it if you trust the zip"
        )
    for number, member in enumerate(members):
        name = member.filename.replace("\\", "/")  # as some programs on Windows write them
        if not name.endswith("/"):
            yield Photo(name, number, f"{member.CRC:08x}-{member.file_size}", member.file_size)


@functools.lru_cache(maxsize=1)
def _open_zip(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        raise StageError(f"{path} is neither a folder nor a readable .zip: give the photos' folder, .zip or s3:// URI") from None


def _may_be_photo(photo: Photo) -> bool:
    if not _SIMPLE.fullmatch(photo.name) and any(
        part.startswith(".") and part != ".." or part == "__MACOSX" for part in photo.path.parts
    ):
        return False
    return photo.suffix.lower() not in NOT_PHOTOS


def image_id_of(name: str) -> str:
    """The id that a photo's name stands for: its stem; a UUID in lower case, as the table's ids are."""
    return listings.canonical_id(PurePosixPath(name).stem)


def is_image_id(text: str) -> bool:
    """Whether a photo can have this id: it is a file's name, and part of an address."""
    return IMAGE_ID.fullmatch(text) is not None


@dataclass(frozen=True)
class Selection:
    """Which photos of a source are to be read: in tables of its database.

    `candidates`: file (its number in `files`), id (in lower case: some file systems take a.jpg and A.jpg for one file), image_id
    (as a table gives it; "" where the name is the id) and turn: files of one id are tried by their turns, from 0. `unread`: file,
    id, image_id and reason of those that are rejected by name and size. `listed`: image_id, id and file, as the table has them,
    of the photos that are wanted; empty where all are. skipped: how many files have an id that is not wanted.
    """

    database: sqlite3.Connection
    skipped: int

    @property
    def wanted(self) -> int:
        """Files of the ids that are wanted; one that several ids have counts for each."""
        return self.count("SELECT (SELECT COUNT(*) FROM candidates) + (SELECT COUNT(*) FROM unread)")

    @property
    def turns(self) -> int:
        """How many files the id with the most of them has."""
        return self.count("SELECT IFNULL(MAX(turn) + 1, 0) FROM candidates")

    def count(self, query: str) -> int:
        (count,) = self.database.execute(query).fetchone()
        return count

    def unread(self) -> Iterator[tuple[Photo, str]]:
        columns = "reason, name, place, identity, size, image_id"
        query = f"SELECT {columns} FROM unread JOIN files ON number = file ORDER BY file, unread.rowid"
        for reason, *row in self.database.execute(query):
            yield photo_of(*row), reason


def select(source: Source, wanted: Iterable[str] | None) -> Selection:
    """Sort a source's photos out by their names and sizes. wanted: the ids to take; None: all."""
    _begin_selection(source, ((image_id, None, None) for image_id in wanted or ()))
    picked = (
        # A name that is no UTF-8 is no id either: how it is spelt matters to nobody.
        (number, photo.stem.lower().encode("utf-8", "backslashreplace").decode(), "", _preference(photo), _fault(photo))
        for number, photo in source.numbered()
    )
    source.database.executemany("INSERT INTO picked VALUES (?, ?, ?, ?, ?)", picked)
    skipped = 0
    if wanted is not None:
        skipped = source.database.execute("DELETE FROM picked WHERE id NOT IN (SELECT id FROM listed)").rowcount
    return _end_selection(source, skipped)


def select_files(source: Source, files: Iterable[tuple[str, str]], address_of: Callable[[Photo], str]) -> Selection:
    """Sort a source's photos out by the names that a table gives them.

    files: ids, and of each the file's name, a path or an address, of which the source may have the end, or begin further up.
    address_of: the address that a photo was fetched from, "" where that is not known.
    """
    _begin_selection(source, ((image_id, file, PurePosixPath(_path_of(file)).name) for image_id, file in files))
    skipped = 0

    def picked() -> Iterator[tuple]:
        nonlocal skipped
        for number, photo in source.numbered():
            name = address_of(photo) or photo.name
            last = PurePosixPath(_path_of(name)).name.encode("utf-8", "replace").decode()
            named = source.database.execute("SELECT image_id, file FROM listed WHERE last = ? ORDER BY rowid", (last,))
            image_ids = _same_file(name, named.fetchall())
            skipped += not image_ids
            for image_id in image_ids:
                yield number, image_id.lower(), image_id, _preference(photo), "too_large" if is_too_large(photo) else None

    source.database.executemany("INSERT INTO picked VALUES (?, ?, ?, ?, ?)", picked())
    return _end_selection(source, skipped)


def _begin_selection(source: Source, listed: Iterable[tuple[str, str | None, str | None]]) -> None:
    """listed: id, name of the file, and its last part."""
    execute = source.database.execute
    execute("BEGIN")
    execute("CREATE TABLE listed (image_id TEXT, id TEXT, file TEXT, last TEXT)")
    execute("CREATE TABLE picked (file INTEGER, id TEXT, image_id TEXT, preference INTEGER, reason TEXT)")
    rows = ((image_id, image_id.lower(), file, last) for image_id, file, last in listed)
    source.database.executemany("INSERT INTO listed VALUES (?, ?, ?, ?)", rows)
    execute("CREATE INDEX listed_ids ON listed (id)")
    execute("CREATE INDEX listed_files ON listed (last) WHERE last IS NOT NULL")


def _end_selection(source: Source, skipped: int) -> Selection:
    execute = source.database.execute
    # Of one id and one kind the first by name comes first.
    turns = "ROW_NUMBER() OVER (PARTITION BY id ORDER BY preference, file) - 1"
    columns = "turn INTEGER, file INTEGER, id TEXT, image_id TEXT, PRIMARY KEY (turn, file, id)"
    execute(f"CREATE TABLE candidates ({columns}) WITHOUT ROWID")
    execute(
        f"INSERT INTO candidates SELECT {turns} AS turn, file, id, image_id FROM picked WHERE reason IS NULL ORDER BY turn, file"
    )
    execute("CREATE INDEX candidate_ids ON candidates (id, turn)")
    execute("CREATE TABLE unread AS SELECT file, id, image_id, reason FROM picked WHERE reason IS NOT NULL")
    execute("DROP TABLE picked")
    execute("COMMIT")
    return Selection(source.database, skipped)


def _fault(photo: Photo) -> str | None:
    """Why a photo is rejected by its name or size; None where it is not."""
    if not IMAGE_ID.fullmatch(photo.stem) or ".." in photo.name and ".." in photo.path.parts:
        return "bad_name"
    return "too_large" if is_too_large(photo) else None


def is_too_large(photo: Photo) -> bool:
    return photo.size > MAX_PHOTO_BYTES


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


def address_of(photo: Photo, folder: Path) -> str:
    """The address that a photo was fetched from, in a folder that img2dataset wrote; else "".

    Source: img2dataset's README, "File format": NUMBER.json beside NUMBER.jpg in folders of ten thousand, its "url".
    """
    path = Path(photo.place) if isinstance(photo.place, str) and photo.stem.isdigit() else None
    if path is None or path.parent.parent != folder or not path.parent.name.isdigit():
        return ""
    try:
        return str(json.loads(path.with_suffix(".json").read_bytes())["url"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""


def _preference(photo: Photo) -> int:
    suffix = photo.suffix.lower()
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
