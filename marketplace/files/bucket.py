"""A bucket that generations are published to, and served from by machines that share nothing else.

Below its URI: blobs/<sha256>, the files of generations; photos/<sha256>.jpg; hidden.json; and current.json, written last, which
says which generation is served and what every one that is there is made of.
"""

import datetime
import functools
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from marketplace.files import hidden, s3
from marketplace.files.generations import GENERATIONS_KEPT
from marketplace.files.progress import progress
from marketplace.files.stages import StageError

GRACE_S = 3600  # that what is no longer kept stays, for who has begun to copy it
# Of a generation in a bucket: (N, C, 32) bytes, by photo row, of the photo and the copies to look at; zeros where one is missing.
PHOTO_DIGESTS = "photo_digests.npy"
HEX_DIGITS = "0123456789abcdef"  # what digests begin with
BATCH = 4096  # uploads that wait in memory
SHA256 = re.compile("[0-9a-f]{64}")
ATTEMPTS = 20  # at hidden.json, while others write it too


@dataclass(frozen=True)
class Kept:
    """A generation in the bucket. files: path -> sha256; retired_s: since when, in Unix time, it has only been kept for grace."""

    files: dict[str, str]
    retired_s: float | None = None


@dataclass(frozen=True)
class Contents:
    """What current.json says. generation: the served one, None before the first; generations: that one, then those before it."""

    generation: str | None = None
    generations: dict[str, Kept] = field(default_factory=dict)

    @classmethod
    def decode(cls, data: bytes, uri: str) -> "Contents":
        try:
            told = json.loads(data)
            generations = {name: Kept(**kept) for name, kept in told["generations"].items()}
            generations[told["generation"]]
            paths = [*generations, *(path for kept in generations.values() for path in kept.files)]
            digests = [digest for kept in generations.values() for digest in kept.files.values()]
            # They become paths of this machine: none may lead out of its folder.
            is_safe = all(part not in ("", ".", "..") and part.isprintable() for path in paths for part in path.split("/"))
            has_photos = all(PHOTO_DIGESTS in kept.files for kept in generations.values())
            if not (
                is_safe and has_photos and all(map(SHA256.fullmatch, digests)) and all("/" not in name for name in generations)
            ):
                raise ValueError
        except (ValueError, LookupError, TypeError, AttributeError):
            raise StageError(
                f"{uri} is damaged: delete it, and run python build_index.py --publish {uri.removesuffix('/current.json')}"
            ) from None
        return cls(told["generation"], generations)

    def encode(self) -> bytes:
        generations = {name: {"files": kept.files, "retired_s": kept.retired_s} for name, kept in self.generations.items()}
        return json.dumps({"generation": self.generation, "generations": generations}, indent=1).encode()

    def with_photos(self, outgoing: "Outgoing") -> "Contents":
        """The same, where a generation that is there is published again, with the photos that it has now."""
        if (kept := self.generations.get(outgoing.name)) is None:
            return self
        files = kept.files | {PHOTO_DIGESTS: outgoing.files[PHOTO_DIGESTS]}
        return Contents(self.generation, self.generations | {outgoing.name: Kept(files, kept.retired_s)})

    def serving(self, name: str, files: Mapping[str, str], alone: bool, now_s: float) -> "Contents":
        """The same with a generation served, which takes along the files it has if it is there; alone: with none beside it."""
        generations = {name: self.generations[name] if name in self.generations else Kept(dict(files))}
        generations[name] = Kept(generations[name].files)
        others = {} if alone else {other: kept for other, kept in self.generations.items() if other != name}
        for place, (other, kept) in enumerate(others.items(), start=1):
            retired_s = None if place < GENERATIONS_KEPT else kept.retired_s or now_s
            if retired_s is None or now_s - retired_s < GRACE_S:
                generations[other] = Kept(kept.files, retired_s)
        return Contents(name, generations)


@dataclass(frozen=True)
class Outgoing:
    """A generation to publish. files: path -> sha256; paths: where the file of each sha256 is; photos: what gives the bytes
    of the photo of each."""

    name: str
    files: dict[str, str]
    paths: dict[str, Path]
    photos: dict[str, Callable[[], bytes]]


def current_uri(uri: str) -> str:
    return f"{uri}/current.json"


def hidden_uri(uri: str) -> str:
    return f"{uri}/{hidden.FILE}"


def blob_uri(uri: str, digest: str) -> str:
    return f"{uri}/blobs/{digest}"


def photo_uri(uri: str, digest: str) -> str:
    return f"{uri}/photos/{digest}.jpg"


def read(uri: str, seen: str | None = None) -> tuple[Contents, str | None]:
    """What the bucket holds, and the ETag of current.json; s3.Unchanged while that is the one seen."""
    data, etag = s3.read_version(current_uri(uri), seen)
    return (Contents(), None) if data is None else (Contents.decode(data, current_uri(uri)), etag)


def read_served(uri: str, seen: str | None = None) -> tuple[Contents, str]:
    """As read(); StageError where nothing has been published."""
    contents, etag = read(uri, seen)
    if etag is None:
        raise StageError(f"{uri} holds no published index: run python build_index.py --publish {uri} first")
    return contents, etag


def publish(uri: str, outgoing: Outgoing, hidden_ids: frozenset[str], moves: bool, alone: bool) -> dict:
    """Bring a generation into the bucket, have it served, and delete what no generation there is made of; returns figures.

    hidden_ids: listings that are hidden in a bucket that has served none before; later it has its own. moves: whether a
    generation that is there, but not served, is to be served again; alone: whether the others go at once, without grace.
    Raises StageError where another publisher was faster.
    """
    before, etag = read(uri)
    served = outgoing.name if moves or outgoing.name not in before.generations else before.generation
    after = before.with_photos(outgoing).serving(served, outgoing.files, alone, time.time())
    objects = _objects(uri, outgoing)
    uploaded, n_bytes = _upload_missing(objects, _listed(uri))
    if before.generation is None:
        _update_hidden(uri, lambda ids: ids | hidden_ids)
    if after != before:
        try:
            etag = s3.write_version(current_uri(uri), after.encode(), etag)
        except s3.Overtaken:
            raise StageError(f"another run published to {uri} meanwhile: run the command again") from None
    named, listed = _named(uri, after), _listed(uri)
    _upload_missing(objects, listed)  # a publisher before this one may have deleted it just now, as nothing named it
    recent = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=GRACE_S)
    doomed = [one for one, modified in listed.items() if one not in named and (alone or modified <= recent)]
    if read(uri)[1] != etag:  # another has published meanwhile, perhaps something made of these
        doomed = []
    s3.delete(doomed)
    return {"published": uri, "served": served, "uploaded": uploaded, "uploaded_bytes": n_bytes, "deleted": len(doomed)}


def _objects(uri: str, outgoing: Outgoing) -> dict[str, Path | Callable[[], bytes]]:
    objects = {blob_uri(uri, digest): path for digest, path in outgoing.paths.items()}
    return objects | {photo_uri(uri, digest): read for digest, read in outgoing.photos.items()}


def _listed(uri: str) -> dict[str, datetime.datetime]:
    """When each blob and photo in the bucket was last written."""
    prefixes = [f"{uri}/blobs/", *(f"{uri}/photos/{digit}" for digit in HEX_DIGITS)]  # a page of a listing is a thousand
    with ThreadPoolExecutor(len(prefixes)) as pool:
        return {one.uri: one.modified for some in pool.map(s3.list_objects, prefixes) for one in some}


def _upload_missing(objects: Mapping[str, Path | Callable[[], bytes]], listed: Mapping[str, object]) -> tuple[int, int]:
    """Upload what is not listed; returns how many, and their bytes."""
    missing = [one for one in objects if one not in listed]

    def upload(one: str) -> int:
        if isinstance(source := objects[one], Path):
            s3.upload(source, one)
            return source.stat().st_size
        s3.write(one, data := source(), "image/jpeg")
        return len(data)

    def sizes() -> Iterator[int]:
        with ThreadPoolExecutor(s3.CONNECTIONS) as pool:
            for start in range(0, len(missing), BATCH):
                yield from pool.map(upload, missing[start : start + BATCH])

    return len(missing), sum(progress(sizes(), "upload", "file", len(missing))) if missing else 0


def _named(uri: str, contents: Contents) -> set[str]:
    """Every object that a generation in the bucket is made of."""
    files = [kept.files for kept in contents.generations.values()]
    named = {blob_uri(uri, digest) for own in files for digest in own.values()}
    for digest in {own[PHOTO_DIGESTS] for own in files}:
        digests = np.load(io.BytesIO(s3.read_object(blob_uri(uri, digest))), allow_pickle=False)
        named.update(photo_uri(uri, bytes(own).hex()) for own in digests.reshape(-1, 32))
    return named


# Hidden listings: the same file as beside a local current.json, written by many.


def change_hidden(uri: str, ids: list[str], hide: bool, find: hidden.Find) -> frozenset[str]:
    """As hidden.change()."""
    return _update_hidden(uri, functools.partial(hidden.changed, ids=ids, hide=hide, find=find))


def forget_gone(uri: str, find: hidden.Find) -> None:
    """As hidden.forget_gone()."""
    _update_hidden(uri, lambda ids: ids & find(ids))


def read_hidden(uri: str, seen: str | None = None) -> tuple[frozenset[str], str | None]:
    """The ids of all hidden listings, and the file's ETag; s3.Unchanged while that is the one seen."""
    data, etag = s3.read_version(hidden_uri(uri), seen)
    return (frozenset(), None) if data is None else (hidden.decode(data, hidden_uri(uri)), etag)


def _update_hidden(uri: str, update: Callable[[frozenset[str]], frozenset[str]]) -> frozenset[str]:
    for _ in range(ATTEMPTS):
        before, etag = read_hidden(uri)
        after = update(before)
        if after == before:
            return after
        try:
            s3.write_version(hidden_uri(uri), hidden.encode(after), etag)
        except s3.Overtaken:
            continue
        return after
    raise StageError(f"others keep writing {hidden_uri(uri)}: run the command again")
