"""Decoding many cleaned photos over several processes, into memory that they share with the one that asks.

Threads would wait for each other's Python: more than eight of them decode no more than eight.
"""

import itertools
import mmap
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from marketplace.cleaning import photos

TOGETHER = 32  # photos a process decodes at a time: some hundredths of a second
USED_AT_ONCE = 2  # batches: one is made ready while the other runs

T = TypeVar("T")
_shared: dict[str, np.ndarray] = {}  # in a process that decodes


def map_batches(
    use: Callable[[np.ndarray], T], images_dir: Path, batches: Sequence[Sequence[str]], side: int, workers: int
) -> Iterator[T]:
    """use() of each batch's (n, side, side, 3) uint8 pixels, in order; called by two threads, and done with them when it returns.

    batches: of image ids, the first the longest. Raises StageError when a photo is gone or damaged.
    """
    if not batches:
        return
    size = len(batches[0])
    n_slots = min(len(batches), USED_AT_ONCE + -(-2 * workers * TOGETHER // size))  # each process has two tasks
    # Anonymous: a container's /dev/shm has 64 MB.
    memory = mmap.mmap(-1, n_slots * size * side * side * 3)
    slots = np.frombuffer(memory, np.uint8).reshape(n_slots, size, side, side, 3)
    # Forked, as that memory has no name; before any thread of ours begins.
    context = multiprocessing.get_context("fork")
    processes = ProcessPoolExecutor(workers, context, _begin, (slots,))
    threads = ThreadPoolExecutor(USED_AT_ONCE)

    def begin(slot: int, batch: Sequence[str]) -> Future:
        starts = range(0, len(batch), TOGETHER)
        parts = [processes.submit(_decode, images_dir, batch[start : start + TOGETHER], slot, start) for start in starts]
        return threads.submit(finish, parts, slots[slot, : len(batch)])

    def finish(parts: list[Future], pixels: np.ndarray) -> T:
        for part in parts:
            part.result()
        return use(pixels)

    under_way: deque[Future] = deque()
    try:
        for slot, batch in zip(itertools.cycle(range(n_slots)), batches, strict=False):
            if len(under_way) == n_slots:
                yield under_way.popleft().result()
            under_way.append(begin(slot, batch))
        while under_way:
            yield under_way.popleft().result()
    finally:
        processes.shutdown(cancel_futures=True)
        threads.shutdown(cancel_futures=True)


def _begin(slots: np.ndarray) -> None:
    """In each process: keep what is shared, leave Ctrl-C to the one that asks, and end when that one is gone."""
    _shared["slots"] = slots
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _decode(images_dir: Path, image_ids: Sequence[str], slot: int, start: int) -> None:
    for row, image_id in enumerate(image_ids, start):
        _shared["slots"][slot, row] = photos.load(images_dir, image_id, photos.pixels)
