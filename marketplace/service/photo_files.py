"""Where the photos are that the API shows: in a folder, or in a bucket, whose photos are kept here or shown where they are."""

import contextlib
import functools
import hashlib
import logging
import os
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import anyio
import numpy as np

from marketplace.cleaning.photos import PHOTO_FOLDERS
from marketplace.files import atomic, bucket, photo_store, reading, s3
from marketplace.files.stages import StageError
from marketplace.retrieval.recommender import Recommender
from marketplace.service.settings import Settings

AT_ONCE = 16  # photos that are being copied; more wait, and hold no thread that others could use
PAUSE_S = 5  # after a failure, until the bucket is asked again: meanwhile a photo that is not here is refused at once
PHOTO = re.compile(rf"{bucket.SHA256.pattern}\.jpg")
SIGNED_S = 300  # that a signed address can be used

log = logging.getLogger("marketplace")


class Unavailable(Exception):
    """The photo is not on this machine, and nothing can be had from the bucket."""


@dataclass(frozen=True)
class InShard:
    """A photo that has no file of its own. tag: another one for other bytes."""

    data: bytes
    tag: str


class PhotoPlaces(Protocol):
    origin: str | None  # that clients are sent to for photos, such as https://bucket.s3.amazonaws.com

    async def find(self, recommender: Recommender, image_id: str, folders: Sequence[str]) -> "Path | InShard | str | None":
        """The file, the bytes or the address of a photo of a listing that is not hidden, None where there is none; raises
        Unavailable.

        folders: those of PHOTO_FOLDERS that it may come from, the best first.
        """


def photos_of(settings: Settings) -> PhotoPlaces:
    if settings.bucket is None:
        return FolderPhotos(settings.images_dir)
    return RedirectedPhotos(settings) if settings.photo_redirects else CopiedPhotos(settings)


class FolderPhotos:
    origin = None

    def __init__(self, folder: Path):
        self._folder = folder

    async def find(self, recommender: Recommender, image_id: str, folders: Sequence[str]) -> Path | InShard | None:
        return await anyio.to_thread.run_sync(self._find, recommender, image_id, folders)

    def _find(self, recommender: Recommender, image_id: str, folders: Sequence[str]) -> Path | InShard | None:
        if recommender.catalogue.photo_row(image_id) is None:
            return None
        names, store = [str(Path(folder, f"{image_id}.jpg")) for folder in folders], photo_store.open_store(self._folder)
        if not isinstance(store, photo_store.Shards):
            return next((self._folder / name for name in names if store.find(name)), None)
        try:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    stored, data = store.load(name)
                    return InShard(data, stored.identity)
        except (StageError, OSError) as error:  # of the index, or of the disk
            log.error("%s", error)
            raise Unavailable(image_id) from None
        return None


class BucketPhotos:
    def __init__(self, settings: Settings):
        self._uri, self._index_dir = settings.bucket, settings.index_dir
        self._digests = functools.lru_cache(maxsize=2)(self._read_digests)

    def _read_digests(self, path: Path, mtime_ns: int) -> np.ndarray:
        return reading.read_array(path)

    def _uri_of(self, recommender: Recommender, image_id: str, folders: Sequence[str]) -> str | None:
        row = recommender.catalogue.photo_row(image_id)
        if row is None:
            return None
        path = self._index_dir / recommender.generation / bucket.PHOTO_DIGESTS
        try:
            digests = self._digests(path, path.stat().st_mtime_ns)[row]  # the same generation may be published with more photos
        except (StageError, FileNotFoundError):  # an old generation, removed while it answers for the last time
            raise Unavailable(image_id) from None
        found = (digests[PHOTO_FOLDERS.index(folder)] for folder in folders)
        return next((bucket.photo_uri(self._uri, bytes(digest).hex()) for digest in found if digest.any()), None)


class RedirectedPhotos(BucketPhotos):
    """Clients get addresses by which anybody may read a photo from the bucket for a while."""

    @functools.cached_property
    def origin(self) -> str:
        parts = urlsplit(s3.sign(bucket.photo_uri(self._uri, ""), SIGNED_S))
        return f"{parts.scheme}://{parts.netloc}"

    async def find(self, recommender: Recommender, image_id: str, folders: Sequence[str]) -> str | None:
        return await anyio.to_thread.run_sync(self._find, recommender, image_id, folders)

    def _find(self, recommender: Recommender, image_id: str, folders: Sequence[str]) -> str | None:
        uri = self._uri_of(recommender, image_id, folders)
        try:
            return uri and s3.sign(uri, SIGNED_S)
        except StageError as error:  # credentials that have run out
            log.error("%s", error)
            raise Unavailable(image_id) from None


class CopiedPhotos(BucketPhotos):
    """Photos are copied when they are asked for; those that were not for the longest give way."""

    origin = None

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._folder, self._max_bytes = settings.photos_dir, settings.photo_cache_bytes
        self._folder.mkdir(parents=True, exist_ok=True)
        self._copying = anyio.CapacityLimiter(AT_ONCE)
        self._refused_until_s = 0.0
        self._unchecked_bytes = self._max_bytes  # written since the folder's size was looked at: at first, of those before

    async def find(self, recommender: Recommender, image_id: str, folders: Sequence[str]) -> Path | None:
        uri = await anyio.to_thread.run_sync(self._uri_of, recommender, image_id, folders)
        if uri is None:
            return None
        path = self._folder / uri.rpartition("/")[2]
        try:
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # when it was last asked for
        except FileNotFoundError:
            await anyio.to_thread.run_sync(self._copy, uri, path, limiter=self._copying)
        return path

    def _copy(self, uri: str, path: Path) -> None:
        if path.exists():  # another request has brought it
            return
        if time.monotonic() < self._refused_until_s:
            raise Unavailable(uri)
        try:
            data = s3.read_object(uri)
            if hashlib.sha256(data).hexdigest() != path.stem:
                raise OSError(f"{uri} is damaged: delete it, and publish again")
            self._make_room(len(data))
            temporary = path.with_name(f".{uuid.uuid4().hex}{atomic.TEMPORARY_SUFFIX}")
            temporary.write_bytes(data)
            atomic.flush(temporary)
            os.replace(temporary, path)
        except (StageError, OSError) as error:  # the bucket's failure; or that of this one photo, or of this machine's disk
            if isinstance(error, StageError):
                self._refused_until_s = time.monotonic() + PAUSE_S
            log.error("%s", error)
            raise Unavailable(uri) from None

    def _make_room(self, n_bytes: int) -> None:
        """Remove the photos that were not asked for the longest, until a tenth of the room is free, where there are too many.

        The folder is looked at after each hundredth of what it may hold: each process may exceed its limit by as much.
        """
        self._unchecked_bytes += n_bytes
        if self._unchecked_bytes < self._max_bytes / 100:
            return
        self._unchecked_bytes = 0
        photos = []
        for entry in os.scandir(self._folder):
            if PHOTO.fullmatch(entry.name):  # the folder may hold what is not of this service
                with contextlib.suppress(FileNotFoundError):  # another process takes photos away too
                    photos.append((entry.stat(), entry.path))
        left = sum(status.st_size for status, _ in photos) + n_bytes
        if left <= self._max_bytes:
            return
        for status, path in sorted(photos, key=lambda photo: photo[0].st_atime_ns):
            Path(path).unlink(missing_ok=True)
            left -= status.st_size
            if left <= 0.9 * self._max_bytes:
                return
