"""Cleaning many photos over several processes, in order."""

import functools
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from marketplace.cleaning import photos
from marketplace.cleaning.sources import Photo, read
from marketplace.files import s3
from marketplace.files.stages import StageError

CHUNK = 8  # photos a worker takes at a time: 0.1 s of work where they are large, so that the workers end together
CHUNKS_AHEAD = 3  # a worker: enough to keep it busy, few enough that memory stays flat

S3_READERS = 8  # objects a worker fetches at once

READ_ERROR = "read_error"  # the file, not the photo in it, could not be read: tried again by the next run


@dataclass(frozen=True)
class Task:
    """One photo to clean. content: the digest of the bytes that its cleaned photo was made from, "" where there is none."""

    photo: Photo
    content: str


@dataclass(frozen=True)
class Result:
    """row: what photos.csv says of the photo, None where its content is what it was; jpeg: empty when it is rejected."""

    content: str
    row: dict | None
    jpeg: bytes = b""


def clean_photo(task: Task, zip_path: str | None, settings: photos.CleanSettings) -> Result:
    try:
        data = read(task.photo, zip_path)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError):  # RuntimeError: an encrypted or unknown zip member
        return Result("", {"status": "rejected", "reason": READ_ERROR})
    content = hashlib.sha256(data).hexdigest()
    if content == task.content:
        return Result(content, None)
    try:
        cleaned = photos.clean(data, settings)
    except photos.PhotoRejected as rejection:
        return Result(content, {"status": "rejected", "reason": rejection.reason})
    facts = {"width": str(cleaned.width), "height": str(cleaned.height)}
    facts |= {"sha256": cleaned.sha256, "phash": cleaned.phash, "colours": cleaned.colours}
    return Result(content, {"status": "ok", "reason": ""} | facts, cleaned.jpeg)


def _clean_chunk(chunk: list[Task], zip_path: str | None, settings: photos.CleanSettings) -> list[Result]:
    clean_one = functools.partial(clean_photo, zip_path=zip_path, settings=settings)
    if zip_path or not s3.is_s3(chunk[0].photo.place):
        return [clean_one(task) for task in chunk]
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
    todo: list[Task], zip_path: str | None, settings: photos.CleanSettings, workers: int
) -> Iterator[tuple[Photo, Result]]:
    """clean_photo() of every task, in order, over processes; StageError when one of them dies."""
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    if min(workers, len(chunks)) <= 1:
        for chunk in chunks:
            for task, result in zip(chunk, _clean_chunk(chunk, zip_path, settings), strict=True):
                yield task.photo, result
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
            for task, result in zip(chunk, future.result(), strict=True):
                yield task.photo, result
    except BrokenProcessPool:
        raise StageError(
            f"a cleaning process died near {chunk[0].photo.name}, perhaps for want of memory: run it again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
