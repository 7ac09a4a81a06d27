"""The generation that is served here, brought to a bucket with its photos."""

import contextlib
import functools
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from marketplace.cleaning.photos import PHOTO_FOLDERS
from marketplace.files import atomic, bucket, generations, hidden, locks, photo_store, reading, stages
from marketplace.files.stages import StageError
from marketplace.retrieval import builds, catalogue


def publish(data_dir: Path, uri: str, moves: bool, alone: bool) -> dict:
    """Publish the current generation; moves, alone: as bucket.publish() takes them. Returns figures for the summary."""
    index_dir, images_dir = data_dir / "index", data_dir / "images"
    stages.read_manifest(images_dir)
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as temporary:
        try:
            for folder in (index_dir, images_dir):
                stack.enter_context(locks.hold(folder, exclusive=False))
        except locks.Locked as error:
            raise StageError(f"another run is at work in {error}: wait for its end, then run the command again") from None
        outgoing, missing = _collect(generations.current_generation(index_dir), images_dir, Path(temporary))
        if moves:
            _forget_gone(uri, index_dir, outgoing.name)
        figures = bucket.publish(uri, outgoing, hidden.read(index_dir), moves, alone)
    if figures["served"] != outgoing.name:
        command = f"python build_index.py --serve {outgoing.name} --publish {uri}"
        print(f"{uri} goes on serving {figures['served']}, as --serve said; {command} ends it", file=sys.stderr)
    return figures | {"photos_not_published": missing}


def _collect(folder: Path, images_dir: Path, temporary: Path) -> tuple[bucket.Outgoing, int]:
    """All that a generation is made of in a bucket, and how many of its photos there are not.

    temporary: a folder that is there until it is published.
    """
    files = reading.read_json(folder / builds.REPORT)["files"] | {builds.REPORT: stages.digest(folder / builds.REPORT)}
    paths = {digest: folder / name for name, digest in files.items()}
    image_ids = catalogue.read_image_ids(folder)
    names = [[str(Path(place, f"{image_id}.jpg")) for place in PHOTO_FOLDERS] for image_id in image_ids]
    store = photo_store.open_store(images_dir)
    photos = _digests(store, [name for own in names for name in own])
    digests = bytearray().join(bytes.fromhex(photos.get(name, "00" * 32)) for own in names for name in own)
    table = np.frombuffer(digests, np.uint8).reshape(-1, len(PHOTO_FOLDERS), 32)
    atomic.write_array(temporary / bucket.PHOTO_DIGESTS, table)
    digest = stages.digest(temporary / bucket.PHOTO_DIGESTS)
    files, paths = files | {bucket.PHOTO_DIGESTS: digest}, paths | {digest: temporary / bucket.PHOTO_DIGESTS}
    contents = {digest: functools.partial(store.read, name) for name, digest in photos.items()}
    missing = sum(own[0] not in photos for own in names)
    return bucket.Outgoing(folder.name, files, paths, contents), missing


def _digests(store: photo_store.PhotoStore, names: Sequence[str]) -> dict[str, str]:
    """name -> sha256 of the photos that are there, on all cores."""

    def digest(name: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return hashlib.sha256(store.read(name)).hexdigest()
        return ""

    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter to others
        return {name: digest for name, digest in zip(names, pool.map(digest, names), strict=True) if digest}


def _forget_gone(uri: str, index_dir: Path, name: str) -> None:
    """As a local build does: forget the hidden listings that the generation served until now, kept here, lacks already.

    But for those that are back in generation `name`, of before or after that one.
    """
    served = bucket.read(uri)[0].generation
    if served not in (None, name) and (index_dir / served).is_dir():
        folders = [index_dir / served, index_dir / name]
        bucket.forget_gone(uri, lambda ids: set().union(*(catalogue.find_ids(folder, ids) for folder in folders)))
