"""Cleaning many photos over several processes, in order."""

import hashlib
import itertools
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from marketplace.cleaning import decoders, photos
from marketplace.cleaning.sources import Photo, read
from marketplace.files import s3
from marketplace.files.stages import StageError

READERS = 2  # files read at once for each process: one while the other is decoded
S3_READERS = 8  # likewise, of objects, for which the network takes most of the time
AHEAD = 24  # photos a process: enough to keep the others busy beside one that takes long, few enough that memory stays flat

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


def clean_photo(
    task: Task, zip_path: str | None, settings: photos.CleanSettings, with_display: bool, pool: decoders.Decoders
) -> Result:
    try:
        data = read(task.photo, zip_path)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError):  # RuntimeError: an encrypted or unknown zip member
        return Result("", {"status": "rejected", "reason": READ_ERROR})
    content = hashlib.sha256(data).hexdigest()
    if content == task.content:
        return Result(content, None)
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
    todo: Iterator[Task], zip_path: str | None, settings: photos.CleanSettings, with_display: bool, workers: int
) -> Iterator[tuple[Photo, Result]]:
    """clean_photo() of every task, in order, decoded by `workers` processes; StageError when they cannot start.

    todo: read no further ahead than keeps them busy.
    """
    first = list(itertools.islice(todo, workers))
    if not first:
        return
    workers, waiting = len(first), itertools.chain(first, todo)
    from_s3 = not zip_path and s3.is_s3(first[0].photo.place)
    threads = ThreadPoolExecutor(workers * (S3_READERS if from_s3 else READERS))
    under_way, task = deque(), next(waiting)
    limits = decoders.Limits(decoders.BATCH_CPU_S, settings.max_pixels)
    try:
        with decoders.Decoders(workers, limits) as pool:
            while task or under_way:
                while task and len(under_way) < AHEAD * workers:
                    result = threads.submit(clean_photo, task, zip_path, settings, with_display, pool)
                    under_way.append((task.photo, result))
                    task = next(waiting, None)
                photo, result = under_way.popleft()
                yield photo, result.result()
    except decoders.CannotStart as error:
        raise StageError(f"{error}: mend what the lines above say, or give fewer --workers") from None
    finally:
        threads.shutdown(cancel_futures=True)
