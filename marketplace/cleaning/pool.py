"""Cleaning many photos over several processes, of this machine or of a cluster, in order."""

import functools
import hashlib
import itertools
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from marketplace.cleaning import decoders, photos
from marketplace.cleaning.sources import Photo, read
from marketplace.files import cluster, s3
from marketplace.files.stages import StageError

READERS = 2  # files read at once for each process: one while the other is decoded
S3_READERS = 8  # likewise, of objects, for which the network takes most of the time
AHEAD = 24  # photos a process: enough to keep the others busy beside one that takes long, few enough that memory stays flat
CHUNK = 8  # photos a call on a node of a cluster: some tenths of a second

READ_ERROR = "read_error"  # the file, not the photo in it, could not be read
TRIED_AGAIN = {READ_ERROR, decoders.TOO_SLOW, decoders.CRASHED}  # by the next run: reasons that may be the machine's


@dataclass(frozen=True)
class Task:
    """One photo to clean. content: the digest of the bytes that its cleaned photo was made from, "" where there is none."""

    photo: Photo
    content: str


@dataclass(frozen=True)
class Result:
    """row: what photos.csv says of the photo, None where its content is what it was; jpeg: empty when it is rejected; display:
    None likewise, and where it was not asked for; card: the JPEG of its smaller copy, empty without it."""

    content: str
    row: dict | None
    jpeg: bytes = b""
    display: photos.DisplayCopy | None = None
    card: bytes = b""


Read = tuple[bytes, str]  # a photo's bytes and their digest


def read_photo(task: Task, zip_path: str | None) -> Read | Result:
    """What is to be cleaned, or the result where nothing is."""
    try:
        data = read(task.photo, zip_path)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError):  # RuntimeError: an encrypted or unknown zip member
        return Result("", {"status": "rejected", "reason": READ_ERROR})
    content = hashlib.sha256(data).hexdigest()
    return Result(content, None) if content == task.content else (data, content)


def clean_photo(
    given: Task | Read | Result,
    zip_path: str | None,
    settings: photos.CleanSettings,
    with_display: bool,
    pool: decoders.Decoders,
) -> Result:
    """given: the photo, or what read_photo() made of it."""
    if isinstance(given, Task):
        given = read_photo(given, zip_path)
    if isinstance(given, Result):
        return given
    data, content = given
    try:
        with pool.one() as decoder:
            cleaned = decoder.clean(data, settings, with_display)
    except photos.PhotoRejected as rejection:
        return Result(content, {"status": "rejected", "reason": rejection.reason})
    facts = {"width": str(cleaned.width), "height": str(cleaned.height)}
    facts |= {"sha256": cleaned.sha256, "phash": cleaned.phash, "colours": cleaned.colours}
    card = photos.card_copy(cleaned.display.jpeg) if cleaned.display else b""
    return Result(content, {"status": "ok", "reason": ""} | facts, cleaned.jpeg, cleaned.display, card)


def clean_all(
    todo: Iterable[Task],
    zip_path: str | None,
    settings: photos.CleanSettings,
    with_display: bool,
    workers: int,
    nodes: cluster.Cores | None = None,
) -> Iterator[tuple[Photo, Result]]:
    """clean_photo() of every task, in order, decoded by `workers` processes here, or by the nodes of a cluster; StageError when
    a process cannot start.

    todo: read no further ahead than keeps them busy.
    """
    todo = iter(todo)
    first = list(itertools.islice(todo, workers))
    if not first:
        return
    workers, todo = len(first), itertools.chain(first, todo)
    from_s3 = not zip_path and s3.is_s3(first[0].photo.place)
    if nodes:
        yield from _clean_on_nodes(todo, zip_path, from_s3, settings, with_display, nodes)
        return
    threads = ThreadPoolExecutor(workers * (S3_READERS if from_s3 else READERS))
    try:
        with decoders.Decoders(workers, _limits(settings)) as pool:

            def submit(task: Task) -> Future[Result]:
                return threads.submit(clean_photo, task, zip_path, settings, with_display, pool)

            for task, result in cluster.in_order(submit, todo, AHEAD * workers):
                yield task.photo, result
    except decoders.CannotStart as error:
        raise StageError(f"{error}: mend what the lines above say, or give fewer --workers") from None
    finally:
        threads.shutdown(cancel_futures=True)


def _limits(settings: photos.CleanSettings) -> decoders.Limits:
    return decoders.Limits(decoders.BATCH_CPU_S, settings.max_pixels)


def _clean_on_nodes(
    todo: Iterator[Task],
    zip_path: str | None,
    from_s3: bool,
    settings: photos.CleanSettings,
    with_display: bool,
    nodes: cluster.Cores,
) -> Iterator[tuple[Photo, Result]]:
    """The nodes read what is on S3; they do not see this machine's files, so those bytes go along."""

    def submit(chunk: list[Task]) -> Future[list[Result]]:
        return nodes.submit(
            clean_chunk, chunk if from_s3 else [read_photo(task, zip_path) for task in chunk], settings, with_display
        )

    chunks = iter(lambda: list(itertools.islice(todo, CHUNK)), [])
    for chunk, results in cluster.in_order(submit, chunks, AHEAD // CHUNK * nodes.count):
        yield from zip((task.photo for task in chunk), results, strict=True)


def clean_chunk(chunk: list[Task] | list[Read | Result], settings: photos.CleanSettings, with_display: bool) -> list[Result]:
    """clean_photo() of each, on a node of a cluster."""
    pool = _own_decoder(_limits(settings))
    with ThreadPoolExecutor(S3_READERS if isinstance(chunk[0], Task) else READERS) as threads:
        try:
            return list(threads.map(lambda given: clean_photo(given, None, settings, with_display, pool), chunk))
        except decoders.CannotStart as error:
            raise StageError(str(error)) from None


@functools.lru_cache(maxsize=1)
def _own_decoder(limits: decoders.Limits) -> decoders.Decoders:
    """Of this process, which cleans one chunk after the other; it ends with it."""
    return decoders.Decoders(1, limits)
