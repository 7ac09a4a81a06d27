"""Vector search: build, update and open an index; the nearest rows, filtered, grouped by product."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np

from marketplace import storage
from marketplace.errors import StageError

KINDS = ("auto", "flat", "ivf")
FLAT_ROWS = 20_000  # up to here an exact scan takes a few milliseconds
TRAINING_ROWS = 50  # a list: more hardly move its centre (faiss warns below 39)
KMEANS_ROUNDS = 10  # of Lloyd's algorithm
PROBED_SHARE = 0.006  # of the lists, at least: catalogue vectors, asked for 10 rows, need fewer than an upload asked for 100
RERANKED = 4  # candidates taken from the codes for each result, then ordered by their exact cosines
SCORED_ROWS = 36_000  # of those that pass a filter, scored exactly, in about 3 ms: 0.95 recall where 10% of 1,000,000 pass
SCORED_SHARE = 0.02  # and at least this share of the catalogue, so that a filter that leaves 1% is exact at any size
MAX_DRIFT = 0.2  # rows added and removed since the lists were trained, as a share of the rows then
RECALL_QUERIES = 200  # of the catalogue's own vectors
RECALL_K = 10
BLOCK_ROWS = 16_384  # of the vectors held in memory at a time where they are compared with all queries


def build(vectors: np.ndarray, kind: str = "auto", recall: float = 0.95, max_memory_bytes: int | None = None) -> faiss.Index:
    """An inner-product index over (N, D) float32 unit rows, memory-mapped or not: row i has id i.

    kind: flat scans everything; ivf probes as many of its lists as reach `recall`@10 on the vectors themselves; auto takes
    flat up to 20,000 rows. ivf keeps 8 bits a dimension, or 4 where that is what max_memory_bytes, of the index, leaves room
    for; StageError where it leaves too little for either. benchmarks/search.py has the measurements behind the choice.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    index = faiss.index_factory(vectors.shape[1], _factory(*vectors.shape, kind, max_memory_bytes), faiss.METRIC_INNER_PRODUCT)
    if (ivf := _ivf(index)) is None:
        index.add_with_ids(vectors, np.arange(len(vectors)))
        return index
    ivf.cp.niter, ivf.cp.max_points_per_centroid = KMEANS_ROUNDS, TRAINING_ROWS
    sample = np.linspace(0, len(vectors) - 1, min(len(vectors), TRAINING_ROWS * ivf.nlist)).astype(int)
    index.train(vectors[sample])
    index.add(vectors)
    _tune(VectorIndex(index, vectors), recall)
    return index


def _factory(rows: int, dimension: int, kind: str, max_memory_bytes: int | None) -> str:
    """The first of the index kinds, best first, that fits; faiss's name for it."""
    lists = max(1, min(int(4 * rows**0.5), rows // 39))  # 4 sqrt(N): FAISS wiki, "Guidelines to choose an index"
    centres = 4 * dimension * lists
    ivf = {f"IVF{lists},SQ{bits}": rows * (-(-dimension * bits // 8) + 8) + centres for bits in (8, 4)}
    flat = {"IDMap,Flat": rows * (4 * dimension + 8)}
    sizes = {"flat": flat, "ivf": ivf, "auto": flat | ivf if rows <= FLAT_ROWS else ivf}[kind]
    fitting = [name for name, size in sizes.items() if max_memory_bytes is None or size <= max_memory_bytes]
    if not fitting:
        raise StageError(
            f"an index of {rows} vectors of {dimension} does not fit into {max_memory_bytes} bytes: "
            f"give --max-memory at least {min(sizes.values())}"
        )
    return fitting[0]


def _ivf(index: faiss.Index) -> faiss.IndexIVF | None:
    return index if isinstance(index, faiss.IndexIVF) else None


def update(index: faiss.Index, vectors: np.ndarray, first_added: int, removed: np.ndarray) -> None:
    """Take the `removed` rows out of an index and add those of `vectors` from `first_added` on; other rows keep their ids.

    index: from build() or read(), never one that is memory-mapped: changing that ends the process.
    vectors: (N, D) float32 unit rows, the old ones before the new. Raises ValueError when a removed row is not in the index.
    """
    removed = np.unique(np.asarray(removed, np.int64))
    if index.remove_ids(removed) != len(removed):
        raise ValueError("a row to be removed is not in the index")
    index.add_with_ids(np.ascontiguousarray(vectors[first_added:], np.float32), np.arange(first_added, len(vectors)))


def rebuild_is_due(index: faiss.Index, rows: int, live: int, built_rows: int, kind: str = "auto") -> bool:
    """Whether an index should be built anew rather than updated: rows added since, and tombstones, exceed a fifth of what it was
    built on, or a flat index would outgrow its kind.

    rows: of the vectors after the update, tombstones included; live: of those, the ones that are none; built_rows: of the
    vectors at the last full build.
    """
    changed = (rows - built_rows) + (rows - live)
    outgrown = kind == "auto" and _ivf(index) is None and live > FLAT_ROWS
    return changed > MAX_DRIFT * built_rows or outgrown


def read(path: Path, mapped: bool = False) -> faiss.Index:
    """An index from its file; mapped: served from the page cache, which all processes share, and never to be changed."""
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError:
        raise StageError(f"{path} is missing or damaged: run python build_index.py again") from None


def describe(index: faiss.Index) -> dict:
    """kind: "Flat", or such as "IVF4000,SQ8"; nprobe: lists probed by a search, of that many; None for Flat."""
    if (ivf := _ivf(index)) is None:
        return {"kind": "Flat", "nprobe": None}
    return {"kind": f"IVF{ivf.nlist},SQ{8 * ivf.code_size // ivf.d}", "nprobe": ivf.nprobe}


def measure_recall(index: faiss.Index, vectors: np.ndarray) -> float:
    """recall@10 of searches in the index against exact search, queried with evenly spaced rows of it; each row itself left out.

    A row as near as the tenth nearest counts as one of them: which of several equal photos comes first is chance.
    """
    searched = VectorIndex(index, vectors)
    return _recall(searched, *_exact_neighbours(searched))


def measure(index: faiss.Index, vectors: np.ndarray) -> dict:
    """What a report says of an index: describe(), rows, tombstones, recall@10, and milliseconds of one search at a time."""
    searched = VectorIndex(index, vectors)
    times_ms: list[float] = []
    recall = _recall(searched, *_exact_neighbours(searched), times_ms)
    return describe(index) | {
        "rows": index.ntotal,
        "tombstones": len(vectors) - index.ntotal,
        "recall_at_10": round(recall, 4),
        "p50_ms": round(float(np.percentile(times_ms or [0], 50)), 3),
        "p99_ms": round(float(np.percentile(times_ms or [0], 99)), 3),
    }


def _tune(searched: "VectorIndex", recall: float) -> None:
    """Set nprobe to the least of those tried that reaches the recall."""
    ivf = searched.index
    exact = _exact_neighbours(searched)
    ivf.nprobe = max(1, round(PROBED_SHARE * ivf.nlist))
    while ivf.nprobe < ivf.nlist and _recall(searched, *exact) < recall:
        ivf.nprobe = min(ivf.nlist, int(1.4 * ivf.nprobe) + 1)


def _exact_neighbours(searched: "VectorIndex") -> tuple[np.ndarray, np.ndarray]:
    """Up to RECALL_QUERIES rows, and each one's cosine to its RECALL_K-th nearest other row (or the last, if fewer)."""
    vectors, live = searched.vectors, searched.live_rows()
    rows = np.unique(live[np.linspace(0, len(live) - 1, min(RECALL_QUERIES, len(live))).astype(int)])
    rows = rows[vectors[rows].any(axis=1)]  # a text without a known word is no direction
    k = min(RECALL_K + 1, len(live))
    best = np.full((len(rows), k), -1, np.float32)
    for start in range(0, len(live), BLOCK_ROWS):
        cosines = np.hstack([best, vectors[rows] @ vectors[live[start : start + BLOCK_ROWS]].T])
        best = np.partition(cosines, -k)[:, -k:]
    return rows, best.min(axis=1)


def _recall(searched: "VectorIndex", rows: np.ndarray, tenth: np.ndarray, times_ms: list[float] | None = None) -> float:
    """Of _exact_neighbours(); appends the milliseconds of each search to times_ms."""
    others = min(RECALL_K, searched.index.ntotal - 1)
    near = []
    for row, least in zip(rows, tenth, strict=True):
        started_s = time.perf_counter()
        hits, cosines = searched.nearest(searched.vectors[row], others + 1)
        if times_ms is not None:
            times_ms.append(1000 * (time.perf_counter() - started_s))
        near.append(np.count_nonzero(cosines[hits != row] >= least - 1e-5))
    return float(np.minimum(near, others).mean() / others) if others and len(rows) else 1.0


class VectorIndex:
    """An index with the vectors it was built from; safe to search from many threads, each search on its own thread alone."""

    def __init__(self, index: faiss.Index, vectors: np.ndarray):
        """vectors: (N, D) float32; rows that are not in the index are tombstones, found by no search."""
        self.index, self.vectors = index, np.ascontiguousarray(vectors, np.float32)
        if (ivf := _ivf(index)) is None:
            ids, self._list_sizes = faiss.vector_to_array(index.id_map), np.array([index.ntotal])
        else:
            self._list_sizes = np.array([ivf.invlists.list_size(number) for number in range(ivf.nlist)])
            lists = [
                faiss.rev_swig_ptr(ivf.invlists.get_ids(n), size) for n, size in enumerate(self._list_sizes.tolist()) if size
            ]
            ids = np.concatenate(lists or [np.empty(0, np.int64)])
        if len(ids) and ids.max() >= len(vectors):
            raise ValueError("the index holds more rows than the vectors")
        # Of each row, -1 for a tombstone: a filter's rows are then narrowed to the nearest lists by NumPy alone.
        self._list_of_row = np.full(len(vectors), -1, np.intp)
        self._list_of_row[ids] = np.repeat(np.arange(len(self._list_sizes)), self._list_sizes)
        self._live = self._list_of_row >= 0

    @classmethod
    def open(cls, index_path: Path, vectors_path: Path, tombstones: int = 0) -> "VectorIndex":
        """Both memory-mapped. Raises StageError when the two do not belong together, the number of tombstones included."""
        vectors, index = storage.read_array(vectors_path), read(index_path, mapped=True)
        if (index.ntotal + tombstones, index.d) != vectors.shape:
            raise StageError(f"{index_path} and {vectors_path} do not belong together: run python build_index.py again")
        return cls(index, vectors)

    def live_rows(self) -> np.ndarray:
        return np.flatnonzero(self._live)

    def nearest(self, query: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k rows nearest to one query, best first, and their cosines in [-1, 1]; fewer only when there are fewer.

        query: (D,) float32, any non-zero length; normalised here. allowed: (N,) bool, the rows that may be found; exact
        where they are at most SCORED_ROWS.
        Raises ValueError when the query is not finite, zero, or not (D,), or allowed is not (N,).
        Source: FAISS wiki, "MetricType and distances" (inner product of unit vectors).
        """
        query = unit(query, self.index.d)
        wanted = min(k, self.index.ntotal)
        if allowed is not None:
            if allowed.shape != self._live.shape:
                raise ValueError(f"allowed has shape {allowed.shape}, the index holds {len(self._live)} rows")
            rows = self._allowed_near(query, wanted, allowed & self._live)
        elif len(rows := self._coded_near(query, wanted)) < wanted:  # the lists probed hold too few rows
            rows = self._allowed_near(query, wanted, self._live)
        cosines = self._cosines(query, rows)
        if len(rows) > k:
            least = np.partition(cosines, len(rows) - k)[len(rows) - k]
            near = np.flatnonzero(cosines >= least)
            rows, cosines = rows[near], cosines[near]
        best = np.lexsort((rows, -cosines))[:k]
        return rows[best], cosines[best]

    def _coded_near(self, query: np.ndarray, k: int) -> np.ndarray:
        """Candidates for the k nearest rows, by the index's codes."""
        if k == 0:
            return np.empty(0, np.int64)
        depth = k if _ivf(self.index) is None else min(RERANKED * k, self.index.ntotal)
        rows = self.index.search(query[None], depth)[1][0]
        return rows[rows >= 0]

    def _allowed_near(self, query: np.ndarray, k: int, allowed: np.ndarray) -> np.ndarray:
        """All allowed rows, or those in the lists nearest to the query that hold enough of them.

        One step for every filter: its time is bounded, however many rows pass and wherever they lie.
        """
        passing = int(np.count_nonzero(allowed))
        enough = max(SCORED_ROWS, int(SCORED_SHARE * len(allowed)), RERANKED * k)
        if passing <= enough or (ivf := _ivf(self.index)) is None:
            return np.flatnonzero(allowed)
        nearest_lists = ivf.quantizer.search(query[None], ivf.nlist)[1][0]
        held = self._list_sizes[nearest_lists].cumsum()
        wanted = enough * self.index.ntotal // passing  # rows of all kinds, if those that pass lay evenly
        while True:
            probed = np.zeros(ivf.nlist + 1, bool)  # the last for tombstones, whose list is -1
            probed[nearest_lists[: np.searchsorted(held, wanted) + 1]] = True
            rows = np.flatnonzero(np.take(probed, self._list_of_row) & allowed)
            if len(rows) >= enough / 2 or wanted >= self.index.ntotal:
                return rows
            wanted *= 4

    def _cosines(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(n,) cosines of rows of the vectors, read in place: a copy of them would take longer than the arithmetic."""
        cosines = np.empty(len(rows), np.float32)
        pointers = map(faiss.swig_ptr, (cosines, query, self.vectors, rows))
        with _one_thread():
            faiss.fvec_inner_products_by_idx(*pointers, len(query), 1, len(rows))
        return cosines

    def nearest_groups(
        self, query: np.ndarray, k: int, group_of_row: np.ndarray, allowed: np.ndarray | None = None
    ) -> np.ndarray:
        """The k different groups whose best rows are nearest to the query, best first; fewer only when fewer exist."""

        depth = 2 * k
        while True:
            rows, _ = self.nearest(query, depth, allowed)
            groups, first = np.unique(group_of_row[rows], return_index=True)
            if len(groups) >= k or len(rows) < depth:  # enough, or nothing more is to be found
                return groups[np.argsort(first)][:k]
            depth *= 4


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenMP on the calling thread alone: the server's threads already use every core. (It counts threads by caller.)"""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def unit(query: np.ndarray, dimension: int) -> np.ndarray:
    """The query as a float32 unit vector; ValueError when it is not finite, zero, or not (dimension,)."""
    query = np.asarray(query, np.float32)
    if query.shape != (dimension,):
        raise ValueError(f"the query has shape {query.shape}, the index holds vectors of {dimension}")
    length = np.linalg.norm(query)
    if not np.isfinite(length) or length == 0:
        raise ValueError("the query is zero or not finite")
    return query / length
