"""Which photos a listing has where no Images.csv tells: by the files' names in a column, or by how files are called."""

import hashlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from marketplace.cleaning import listings, records, sources

SOURCE = "photos"  # in rejected.csv
FILE = "file"  # the column of images.csv
MAX_NAME = 1024  # characters of a file's name or address
MAX_STEM = 40  # characters of it in an id made from it

_SAFE = re.compile("[a-z0-9_-]{1,64}")
_UNSAFE = re.compile("[^a-z0-9_-]+")


class Named(NamedTuple):
    """A listing's photo. product_id: "" where the file's name tells none."""

    product_id: str
    file: str


def in_column(photos: Mapping[str, str], separator: str) -> Iterator[Named]:
    """The photos of a column. photos: id of a listing -> the column's text: names between separators, or a list in JSON."""
    for product_id, text in photos.items():
        for name in _names(text.strip(), separator):
            if name.strip():
                yield Named(product_id, name.strip().replace("\\", "/"))


def _names(text: str, separator: str) -> list[str]:
    if text.startswith("["):
        try:
            return list(map(str, json.loads(text)))
        except ValueError:  # a name may begin so
            pass
    return text.split(separator)


def by_pattern(names: Iterable[str], pattern: str, ids: Container[str]) -> list[Named]:
    """The photos among the files of a source, those of one listing by their number. pattern: such as "{id}_{n}.jpg".

    ids: of the listings. One with slashes may stand in the name with folders, or percent-encoded as in an address.
    """
    parts = {"{id}": "(?P<id>.+)", "{n}": "(?P<n>[0-9]{1,9})"}
    whole = "".join(parts.get(part, re.escape(part)) for part in re.split(r"(\{id\}|\{n\})", pattern))
    matches = re.compile(whole, re.IGNORECASE)
    depth = pattern.count("/") + 1  # of folders above the files, those that the pattern names
    found = []
    for place, name in enumerate(names):
        parts_of_name = PurePosixPath(name).parts
        ends = ("/".join(parts_of_name[-length:]) for length in range(depth, max(depth, len(parts_of_name)) + 1))
        fits = [(_id_of(match["id"], ids), match) for match in map(matches.fullmatch, ends) if match]
        product_id, match = next((fit for fit in fits if fit[0] in ids), fits[0] if fits else ("", None))
        number = int(match.groupdict().get("n") or 0) if match else 0
        found.append((number, place, Named(product_id, name)))
    return [named for _, _, named in sorted(found)]


def _id_of(text: str, ids: Container[str]) -> str:
    """The id that a part of a name stands for."""
    spellings = [listings.canonical_id(each.strip()) for each in (text, unquote(text))]
    return next((each for each in spellings if each in ids), spellings[0])


def clean(photos: Iterable[Named], labels: Mapping[str, int]) -> tuple[list[dict], list[dict]]:
    """Rows of images.csv, with the file of each photo, and rejects. labels: id of a listing -> its label.

    A file that several listings name is a photo of each, under an id of its own.
    """
    rows, rejects, seen, taken = [], [], set(), set()
    for number, photo in enumerate(photos, start=1):
        if reason := _fault(photo, labels, seen):
            row = {"source": SOURCE, "record": number, "id": records.clean_id(photo.product_id, records.is_id)}
            rejects.append(row | {"reason": reason, "raw": records.clean_text(photo.file)})
            continue
        seen.add(photo)
        image_id = next(name for name in image_ids_for(photo) if name not in taken)
        taken.add(image_id)
        rows.append({"image_id": image_id, "product_id": photo.product_id, "label": labels[photo.product_id], FILE: photo.file})
    return rows, rejects


def _fault(photo: Named, labels: Mapping[str, int], seen: set[Named]) -> str:
    is_odd = records.IN_NO_NAME.search(photo.file) or len(photo.file) > MAX_NAME or ".." in PurePosixPath(photo.file).parts
    if not photo.product_id or is_odd:
        return "bad_name"
    if photo.product_id not in labels:
        return "no_listing"
    return "duplicate_id" if photo in seen else ""


def image_ids_for(photo: Named) -> Iterator[str]:
    """Ids for a photo, the plainest first: each is a safe name for its file, and a part of an address.

    A UUID or other stem in small letters as it is, where the file is in no folder; else what is safe of it, with a hash of the
    whole name, as names that differ in capitals, folders or endings are different photos.
    """
    path = PurePosixPath(photo.file)
    stem = sources.image_id_of(photo.file)
    if len(path.parts) == 1 and _SAFE.fullmatch(stem):
        yield stem
    readable = _UNSAFE.sub("-", stem.lower()).strip("-")[:MAX_STEM]
    for what in (photo.file, f"{photo.file}\n{photo.product_id}"):
        digest = hashlib.blake2b(what.encode(), digest_size=8).hexdigest()
        yield f"{readable}-{digest}" if readable else digest
