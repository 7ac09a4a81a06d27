"""What is served follows the files: a published generation, once it is open and warm, and which listings are hidden."""

import contextlib
import ctypes
import functools
import gc
import io
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Protocol, Self

import anyio
import threadpoolctl
from fastapi import FastAPI
from PIL import Image

from marketplace.files import generations as generation_files
from marketplace.files import hidden
from marketplace.files.mirror import Mirror
from marketplace.files.stages import StageError
from marketplace.retrieval.milvus import Server
from marketplace.retrieval.recommender import Recommender
from marketplace.retrieval.vectors import Unavailable
from marketplace.service.meters import Meters

POLL_S = 1  # between two looks at current.json, and two at hidden.json
BUCKET_POLL_S = 10  # between two looks at those in a bucket
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's mallopt
LARGE_BYTES = 4 * 2**20
# What opening a generation of another version, or one that goes meanwhile, may raise beside StageError.
REFUSALS = (OSError, LookupError, TypeError, ValueError, MemoryError, RuntimeError, sqlite3.Error)  # RuntimeError: FAISS, ONNX

log = logging.getLogger("marketplace")


def open_generation(folder: Path, runtime: str, device: str | None, server: Server | None = None) -> Recommender:
    """A generation that has answered once to each kind of query, so that no client waits for what is loaded late."""
    recommender = Recommender(folder, runtime, device, server)
    photo = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(photo, "JPEG")
    recommender.embed(photo.getvalue())
    recommender.search(recommender.typed(recommender.catalogue.product(0)["name"]), 1)
    recommender.recommend(recommender.query_of(0), 1)
    return recommender


class Opened(Protocol):
    """What Generations serves."""

    generation: str

    def hiding(self, product_ids: Collection[str]) -> Self:
        """The same without some listings."""


class Generations:
    """The generation being served, without the listings that are hidden; a newly published one takes its place once it is open
    and warm."""

    def __init__(self, index_dir: Path, open_generation: Callable[[Path], Opened], meters: Meters, mirror: Mirror | None = None):
        """mirror: what keeps the files of `index_dir` as a bucket has them."""
        self.current: Opened | None = None
        self._mirror = mirror
        self._index_dir, self._open, self._meters = index_dir, open_generation, meters
        self._lock = threading.Lock()
        self._seen: tuple[int, int] | None = None
        # A lock of their own: listings are hidden while a generation is being opened, which takes seconds.
        self._switching = threading.Lock()
        self._whole: Opened | None = None  # the current one with every listing
        self._hidden: frozenset[str] = frozenset()
        self._hidden_seen: tuple[int, int] | None = None

    def open_first(self) -> None:
        """Open the published generation, unless one is open, in a process set up for serving it; raises StageError."""
        if self.current is None:
            keep_memory_compact()
            # A query's matrices are small: BLAS threads that wait for each other double what a title query costs.
            threadpoolctl.threadpool_limits(1, user_api="blas")
            if self._mirror:
                self._mirror.begin()
            self.follow_hidden()
            self.reload()

    def reload(self) -> bool:
        """Switch to the published generation; whether it is another than before.

        A request that holds the old one keeps it to its end. Raises StageError, and the old one goes on being served,
        when there is no published generation or it cannot be served.
        """
        with self._lock:
            self._seen = self._signature()
            folder = self._index_dir
            try:
                folder = generation_files.current_generation(self._index_dir)
                if self.current is not None and folder.name == self.current.generation:
                    return False
                fresh = self._open(folder)
                self._meters.generation.set(folder.stat().st_mtime)
            except StageError as error:
                self._meters.reloads.labels("refused").inc()
                if isinstance(error, Unavailable):
                    self._seen = None  # tried again with the next poll
                raise
            except REFUSALS as error:
                self._meters.reloads.labels("refused").inc()
                self._seen = None  # it may be the machine's fault: tried again with the next poll
                raise StageError(f"{folder} cannot be served ({error!r}): run python build_index.py again") from error
            self._meters.reloads.labels("switched").inc()
            with self._switching:
                self._serve(fresh, self._hidden)
            _give_memory_back()
            return True

    def look(self) -> bool:
        """As reload(), after a look at the bucket, where there is one."""
        if self._mirror:
            self._mirror.look()
        return self.reload()

    def poll(self) -> None:
        """Reload if current.json was written since it was last looked at; a refusal is logged in one sentence."""
        if self._signature() == self._seen:
            return
        try:
            if self.reload():
                log.info("serving generation %s", self.current.generation)
        except StageError as error:
            log.error("%s; generation %s goes on being served", error, self.current.generation)

    def hide(self, product_ids: Collection[str], hide: bool) -> int:
        """Hide listings, or show them again, here now and in other processes with their next look; returns how many are hidden.

        Raises hidden.UnknownIds, StageError, and OSError where the file cannot be written.
        """
        change = self._mirror.change_hidden if self._mirror else functools.partial(hidden.change, self._index_dir)
        left = change(product_ids, hide, self._whole.catalogue.find_ids)
        self.follow_hidden()
        return len(left)

    def follow_hidden(self) -> None:
        """Serve without the listings that are hidden now, or raise StageError, and those of before stay hidden."""
        with self._switching:
            self._hidden_seen = hidden.signature(self._index_dir)
            ids = hidden.read(self._index_dir)
            if ids != self._hidden:
                self._serve(self._whole, ids)
                log.info("listings that are hidden: %d", len(ids))

    def _serve(self, whole: Opened | None, hidden_ids: frozenset[str]) -> None:
        """A request that holds what was served before keeps it to its end. Without hidden ids there is nothing to leave out."""
        self.current = whole.hiding(hidden_ids) if whole is not None and hidden_ids else whole
        self._whole, self._hidden = whole, hidden_ids

    def poll_hidden(self) -> None:
        """Follow hidden.json if it was written since it was last looked at; a refusal is logged in one sentence."""
        if hidden.signature(self._index_dir) == self._hidden_seen:
            return
        try:
            self.follow_hidden()
        except StageError as error:
            log.error("%s; the same listings as before stay hidden", error)

    async def watch(self) -> None:
        """Poll for both, and for both in the bucket, until cancelled."""
        async with anyio.create_task_group() as tasks:
            for poll in (self.poll, self.poll_hidden):
                tasks.start_soon(_repeat, poll, POLL_S)
            for poll in self.bucket_polls():
                tasks.start_soon(_repeat, poll, BUCKET_POLL_S)

    def bucket_polls(self) -> list[Callable[[], None]]:
        """What follows the bucket, if there is one; figures tell when each last succeeded, or was made."""
        polls = {"generation": self._mirror.poll, "hidden": self._mirror.poll_hidden} if self._mirror else {}
        figures = {name: self._meters.bucket.labels(name) for name in polls}
        for figure in figures.values():
            figure.set_to_current_time()
        return [functools.partial(_poll_timed, poll, figures[name]) for name, poll in polls.items()]

    def close(self) -> None:
        self._serve(None, frozenset())

    def _signature(self) -> tuple[int, int] | None:
        """Changes whenever current.json is renamed into its place."""
        try:
            status = (self._index_dir / "current.json").stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens the published generation and the photo queue, and follows what is published until the application ends."""
    generations: Generations = app.state.generations
    await anyio.to_thread.run_sync(generations.open_first)
    with app.state.photo_queue.open():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(generations.watch)
            yield
            tasks.cancel_scope.cancel()
    generations.close()


def _poll_timed(poll: Callable[[], bool], figure) -> None:
    if poll():
        figure.set_to_current_time()


async def _repeat(poll: Callable[[], None], every_s: float) -> None:
    thread = anyio.CapacityLimiter(1)  # its own: uploads may hold all of the others, and another poll its for seconds
    while True:
        await anyio.sleep(every_s)
        # The service does not wait for a copy of minutes when it stops: what is half there is cleared away by the next.
        await anyio.to_thread.run_sync(poll, limiter=thread, abandon_on_cancel=True)


def keep_memory_compact() -> None:
    """Have glibc, where it is the C library, give large arrays back at once and not spread small ones over an arena a thread.

    Else memory grows with every generation that is opened: python benchmarks/api.py --minutes 10 shows it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def _give_memory_back() -> None:
    """Return what the old generation held to the system: glibc would keep it, and take more for the next one."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)
