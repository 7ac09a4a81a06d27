"""Vector search: build, update and open an index; the nearest rows, filtered, grouped by listing."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from marketplace.files import reading
from marketplace.files.stages import StageError
from marketplace.retrieval.filters import Passing
from marketplace.retrieval.keys import RowsByKey

KINDS = ("auto", "flat", "ivf")
FLAT_ROWS = 20_000  # up to here an exact scan takes a few milliseconds
# Lists, as a multiple of sqrt(N); FAISS's guidelines say 4 to 16. More take longer to train; with fewer, a filter that keeps a
# tenth of the rows needs more of them scored for the same recall (python benchmarks/search.py).
LISTS = 6
TRAINING_ROWS = 40  # a list: more hardly move its centre (faiss warns below 39)
KMEANS_ROUNDS = 5  # of Lloyd's algorithm: ten find no more neighbours
PROBED_SHARE = 0.006  # of the lists, at least: catalogue vectors, asked for 10 rows, need fewer than an upload asked for 100
# Candidates taken from the codes for each result, then ordered by their exact cosines: each is a page to read, and from 8 bits
# on more find nothing further (benchmarks/search.py).
RERANKED, RERANKED_OF_4_BITS = 2, 4
# Of those that pass a filter, scored exactly: enough where 10% of 1,000,000 pass (benchmarks/search.py). Where more than 15% do,
# more of the nearest rows pass, and fewer are enough: in inverse proportion, as measured up to 95%.
SCORED_ROWS, SCORED_AT = 20_000, 0.15
SCORED_EACH = 4  # and at least so many for each result
SCORED_SHARE = 0.02  # and at least this share of the catalogue, so that a filter that leaves 1% is exact at any size
MISSES = 0.8  # of those allowed, while nprobe is tuned: other queries than the few of the tuning find a little less
MAX_DRIFT = 0.2  # vectors added and removed since the lists were trained, as a share of those then
RECALL_QUERIES = 200  # of the catalogue's own vectors
RECALL_K = 10
ROUNDING = 1e-5  # of a cosine of unit vectors, at most
ADDED_ROWS = 65_536  # to an index at a time, as FAISS adds them itself: of a mapped file no more is in memory
BLOCK_ROWS = 16_384  # of the vectors held in memory at a time where they are compared with all queries


@dataclass(frozen=True)
class Files:
    """Names of the files of one index in a generation's folder. keys: (N,) int64, the key of each row of the vectors."""

    index: str
    vectors: str
    keys: str


FILES = {  # the last two where there is a text encoder
    "photos": Files("index.faiss", "vectors.npy", "photo_keys.npy"),
    "listings": Files("text.faiss", "text_vectors.npy", "listing_keys.npy"),
    "names": Files("names.faiss", "name_vectors.npy", "listing_keys.npy"),
    "meanings": Files("meanings.faiss", "meaning_vectors.npy", "listing_keys.npy"),
}


class Unavailable(StageError):
    """Vectors that are on another machine cannot be had now."""


class Vectors(ABC):
    """The vectors of one index, by row, and the search among them; safe to use from many threads.

    rows: N, how many there are; dimension: D. VectorIndex has them in files of the generation, and is the default.
    """

    rows: int
    dimension: int
    is_remote = False  # whether they are on another machine; then every call may raise Unavailable

    @abstractmethod
    def nearest(
        self, query: np.ndarray, k: int, passing: Passing | None = None, lists: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64, the k rows nearest to one query, best first, and (n,) float32, their cosines in [-1, 1].

        query: (D,) float32, any non-zero length; normalised here. k: 1 or more. passing: which rows may be found (default: all).
        lists: its row of probed(), where that was asked for. Raises ValueError when the query is not finite, zero, or not (D,),
        or the rows of passing are not (N,).
        """

    @abstractmethod
    def cosines(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(n,) float32, inner products of a (D,) float32 query and the vectors of rows (n,) int64."""

    @abstractmethod
    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) float32, the vectors of rows (n,) int64, in their order."""

    @abstractmethod
    def describe(self) -> dict:
        """kind, and the setting that its searches take."""

    def check(self) -> None:
        """Raises Unavailable where no search would be answered now."""
        return

    def probed(self, queries: np.ndarray) -> np.ndarray:
        """(Q, lists) what nearest() takes as `lists` for each of (Q, D) unit vectors: found together, many cost less."""
        return np.zeros((len(queries), 1), np.int64)

    def nearest_groups(
        self,
        query: np.ndarray,
        k: int,
        group_of_row: np.ndarray,
        passing: Passing | None = None,
        lists: np.ndarray | None = None,
    ) -> np.ndarray:
        """The k different groups whose best rows are nearest to the query, best first; fewer only when fewer exist."""

        depth = 2 * k
        while True:
            rows, _ = self.nearest(query, depth, passing, lists)
            groups, first = np.unique(group_of_row[rows], return_index=True)
            if len(groups) >= k or len(rows) < depth:  # enough, or nothing more is to be found
                return groups[np.argsort(first)][:k]
            depth *= 4


def update(published_path: Path, path: Path, gone: np.ndarray, vectors: np.ndarray, keys: np.ndarray) -> None:
    """Write a copy of a published index without the vectors of the keys in `gone`, and with those that came.

    vectors, keys: (n, D) float32 unit rows that came, and their keys. What its lists were trained to stays.
    """
    index = read(published_path)  # not mapped: to change a mapped index ends the process
    removed = index.remove_ids(np.ascontiguousarray(gone, np.int64))
    if removed != len(gone):
        raise StageError(f"{published_path} lacks vectors that it was published with: run python build_index.py --full")
    index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(keys, np.int64))
    write(index, path)


def write(index: faiss.Index, path: Path) -> None:
    """Write an index. Through Python: FAISS closes its own files without a look at whether the last bytes had room."""
    with open(path, "wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def build(
    vectors: np.ndarray,
    kind: str = "auto",
    recall: float = 0.95,
    max_memory_bytes: int | None = None,
    keys: np.ndarray | None = None,
) -> faiss.Index:
    """An inner-product index over (N, D) float32 unit rows, memory-mapped or not, whose ids are `keys` (N,), by default the rows.

    kind: flat scans everything; ivf probes as many of its lists as reach `recall`@10 on the vectors themselves; auto takes
    flat up to 20,000 rows. ivf keeps 8 bits a dimension, or 4 where that is what max_memory_bytes, of the index, leaves room
    for; StageError where it leaves too little for either. benchmarks/search.py has the measurements behind the choice.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    index = faiss.index_factory(vectors.shape[1], _factory(*vectors.shape, kind, max_memory_bytes), faiss.METRIC_INNER_PRODUCT)
    keys = np.arange(len(vectors)) if keys is None else np.ascontiguousarray(keys, np.int64)
    if (ivf := _ivf(index)) is None:
        index.add_with_ids(vectors, keys)
        return index
    ivf.cp.niter, ivf.cp.max_points_per_centroid = KMEANS_ROUNDS, TRAINING_ROWS
    if _bits(ivf) == 8:  # one range for all dimensions is decoded faster than one for each, and the vectors' are alike
        ivf.sq.qtype = faiss.ScalarQuantizer.QT_8bit_uniform
    sample = np.linspace(0, len(vectors) - 1, min(len(vectors), TRAINING_ROWS * ivf.nlist)).astype(int)
    index.train(_taken(vectors, sample))
    for start in range(0, len(vectors), ADDED_ROWS):
        index.add_with_ids(vectors[start : start + ADDED_ROWS], keys[start : start + ADDED_ROWS])
        reading.release(vectors)
    _tune(VectorIndex(index, vectors, keys), recall)
    return index


def _taken(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows of a mapped file, ascending, of which no more than a block is in memory meanwhile."""
    taken = np.empty((len(rows), vectors.shape[1]), vectors.dtype)
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        taken[start : start + BLOCK_ROWS] = vectors[block]
        reading.release(vectors)
    return taken


def _factory(rows: int, dimension: int, kind: str, max_memory_bytes: int | None) -> str:
    """The first of the index kinds, best first, that fits; faiss's name for it."""
    lists = max(1, min(int(LISTS * rows**0.5), rows // TRAINING_ROWS))
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


def _bits(ivf: faiss.IndexIVF) -> int:
    """Of the code of a dimension."""
    return 8 * ivf.code_size // ivf.d


def rebuild_is_due(index: faiss.Index, rows: int, changed: int, built_rows: int, kind: str = "auto") -> bool:
    """Whether an index should be built anew rather than updated: what was added and removed since its lists were trained exceeds
    a fifth of what they were trained on, or a flat index would outgrow its kind.

    rows: of the vectors after the update; changed: how many were added and removed since the last full build, the update's own
    among them; built_rows: of the vectors then.
    """
    outgrown = kind == "auto" and _ivf(index) is None and rows > FLAT_ROWS
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
    return {"kind": f"IVF{ivf.nlist},SQ{_bits(ivf)}", "nprobe": ivf.nprobe}


def measure(searched: Vectors, vectors: np.ndarray, queries: int = RECALL_QUERIES) -> dict:
    """What a report says of an index of (N, D) vectors: describe(), rows, recall@10, and milliseconds of one search at a time.

    The recall is None where no row has another to be found.
    """
    times_ms: list[float] = []
    asked, tenth = exact_neighbours(vectors, queries)
    recall = recall_of(searched, vectors, asked, tenth, times_ms)
    return searched.describe() | {
        "rows": searched.rows,
        "recall_at_10": round(recall, 4) if len(asked) else None,
        "recall_queries": len(asked),
        "p50_ms": round(float(np.percentile(times_ms or [0], 50)), 3),
        "p99_ms": round(float(np.percentile(times_ms or [0], 99)), 3),
    }


def _tune(searched: "VectorIndex", recall: float) -> None:
    """Set nprobe to the least of those tried that reaches the recall, and a little more."""
    ivf, wanted = searched.index, 1 - MISSES * (1 - recall)
    exact = exact_neighbours(searched.vectors, RECALL_QUERIES)
    ivf.nprobe = max(1, round(PROBED_SHARE * ivf.nlist))
    while ivf.nprobe < ivf.nlist and recall_of(searched, searched.vectors, *exact) < wanted:
        ivf.nprobe = min(ivf.nlist, int(1.4 * ivf.nprobe) + 1)


def exact_neighbours(vectors: np.ndarray, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to `queries` rows of (N, D), and each one's cosine to its RECALL_K-th nearest other row (or the last, if fewer)."""
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(queries, len(vectors))).astype(int))
    asked = vectors[rows]
    filled = asked.any(axis=1) & (len(vectors) > 1)  # a text without a known word is no direction; one row has no neighbour
    rows, asked = rows[filled], asked[filled]
    k = min(RECALL_K + 1, len(vectors))
    best = np.full((len(rows), k), -1, np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        cosines = asked @ vectors[start : start + BLOCK_ROWS].T
        best = np.partition(np.hstack([best, cosines]), -k)[:, -k:]
        reading.release(vectors)
    return rows, best.min(axis=1)


def recall_of(
    searched: Vectors, vectors: np.ndarray, rows: np.ndarray, tenth: np.ndarray, times_ms: list[float] | None = None
) -> float:
    """The share of exact_neighbours() that an index of (N, D) vectors finds; appends the milliseconds of each search to
    times_ms."""
    others = min(RECALL_K, len(vectors) - 1)
    near = []
    for row, least in zip(rows, tenth, strict=True):
        started_s = time.perf_counter()
        hits, cosines = searched.nearest(vectors[row], others + 1)
        if times_ms is not None:
            times_ms.append(1000 * (time.perf_counter() - started_s))
        near.append(np.count_nonzero(cosines[hits != row] >= least - 1e-5))
    return float(np.minimum(near, others).mean() / others) if near else 1.0


class VectorIndex(Vectors):
    """A FAISS index with the vectors it was built from; each search runs on its own thread alone."""

    def __init__(self, index: faiss.Index, vectors: np.ndarray, keys: np.ndarray | None = None):
        """vectors: (N, D) float32, memory-mapped or not; keys: (N,) int64, by which the index knows them (default: their rows).

        Raises ValueError when the index holds other keys.
        """
        self.index = index
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        self.rows, self.dimension, self._pointer = len(self.vectors), index.d, faiss.swig_ptr(self.vectors)
        self._rows_by_key = RowsByKey(np.arange(self.rows) if keys is None else np.asarray(keys))
        own_keys, list_numbers = _keys_and_lists(index)
        rows = self._rows_by_key.rows(own_keys)
        # A filter's rows are narrowed to the nearest lists by NumPy alone.
        self._list_of_row = np.full(self.rows, -1, np.intp)
        self._list_of_row[rows[rows >= 0]] = list_numbers[rows >= 0]
        if len(rows) != self.rows or (rows < 0).any() or (self._list_of_row < 0).any():
            raise ValueError("the index holds other keys than the vectors have")
        self._list_sizes = np.bincount(list_numbers, minlength=1 if (ivf := _ivf(index)) is None else ivf.nlist)
        self._listed_rows = np.split(rows.astype(np.int32), self._list_sizes.cumsum()[:-1])  # of each list

    @classmethod
    def open(cls, folder: Path, files: Files) -> "VectorIndex":
        """Of a generation's folder, memory-mapped. Raises StageError when the files do not belong together."""
        index = read(folder / files.index, mapped=True)
        vectors, keys = (reading.read_array(folder / name) for name in (files.vectors, files.keys))
        try:
            if vectors.shape != (len(keys), index.d):
                raise ValueError("the vectors have another shape")
            return cls(index, vectors, keys)
        except ValueError:
            raise StageError(
                f"{folder / files.index} and {files.vectors} do not belong together: run python build_index.py again"
            ) from None

    def probed(self, queries: np.ndarray) -> np.ndarray:
        """(Q, nprobe) numbers of the lists that a search for each of (Q, D) unit vectors looks into, found together in a fraction
        of the time; an index without lists is one."""
        if (ivf := _ivf(self.index)) is None:
            return np.zeros((len(queries), 1), np.int64)
        nearness, lists = ivf.quantizer.search(queries, min(ivf.nprobe + 1, ivf.nlist))
        # Many are compared by matrices, with other rounding: what that might have decided is asked for by itself.
        for row in np.flatnonzero(nearness[:, -2] - nearness[:, -1] < ROUNDING) if ivf.nprobe < ivf.nlist else ():
            lists[row, :-1] = ivf.quantizer.search(queries[row][None], ivf.nprobe)[1][0]
        return lists[:, : ivf.nprobe]

    def nearest(
        self, query: np.ndarray, k: int, passing: Passing | None = None, lists: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As Vectors.nearest(); fewer only when there are fewer, and exact where at most SCORED_ROWS may be found.

        Source: FAISS wiki, "MetricType and distances" (inner product of unit vectors).
        """
        query = unit(query, self.index.d)
        wanted = min(k, self.rows)
        if passing is not None:
            rows = self._allowed_near(query, wanted, checked(passing, self.rows))
        elif len(rows := self._coded_near(query, wanted, lists)) < wanted:  # the lists probed hold too few rows
            rows = self._allowed_near(query, wanted, np.ones(self.rows, bool))
        cosines = self.cosines(query, rows)
        if len(rows) > k:
            least = np.partition(cosines, len(rows) - k)[len(rows) - k]
            near = np.flatnonzero(cosines >= least)
            rows, cosines = rows[near], cosines[near]
        best = np.lexsort((rows, -cosines))[:k]
        return rows[best], cosines[best]

    def _coded_near(self, query: np.ndarray, k: int, lists: np.ndarray | None) -> np.ndarray:
        """Candidates for the k nearest rows, by the index's codes; all rows of the lists probed where they hold no more than
        would be taken."""
        if k == 0:
            return np.empty(0, np.int64)
        if (ivf := _ivf(self.index)) is None:
            found = self.index.search(query[None], k)[1][0]
        else:
            depth = min((RERANKED_OF_4_BITS if _bits(ivf) == 4 else RERANKED) * k, self.rows)
            nearness = None
            if lists is None:
                nearness, (lists,) = ivf.quantizer.search(query[None], ivf.nprobe)
            if self._list_sizes[lists].sum() <= depth:
                return np.concatenate([self._listed_rows[number] for number in lists.tolist()], dtype=np.int64)
            if nearness is None:  # the codes tell how far a row is from its list's centre
                nearness, (lists,) = ivf.quantizer.search(query[None], ivf.nprobe)
            found = ivf.search_preassigned(query[None], depth, lists[None], nearness)[1][0]
        return self._rows_by_key.rows(found[found >= 0])

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        return self.vectors[rows]

    def describe(self) -> dict:
        return describe(self.index)

    def cosines(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """As Vectors.cosines(); read in place: a copy of the rows would take longer than the arithmetic."""
        cosines = np.empty(len(rows), np.float32)
        with _one_thread():
            faiss.fvec_inner_products_by_idx(
                faiss.swig_ptr(cosines), faiss.swig_ptr(query), self._pointer, faiss.swig_ptr(rows), len(query), 1, len(rows)
            )
        return cosines

    def _allowed_near(self, query: np.ndarray, k: int, allowed: np.ndarray) -> np.ndarray:
        """All allowed rows, or those in the lists nearest to the query that hold enough of them.

        One step for every filter: its time is bounded, however many rows pass and wherever they lie.
        """
        passing = int(np.count_nonzero(allowed))
        enough = max(SCORED_ROWS, int(SCORED_SHARE * len(allowed)), SCORED_EACH * k)
        if passing <= enough or (ivf := _ivf(self.index)) is None:
            return np.flatnonzero(allowed)
        enough = max(SCORED_EACH * k, int(enough * min(1, SCORED_AT * len(allowed) / passing)))
        nearest_lists = np.argsort(-(_centres(ivf) @ query))  # in less time than the quantizer's own search for all of them
        held = self._list_sizes[nearest_lists].cumsum()
        # Rows of all kinds, if those that pass lay evenly; and of no fewer lists than are probed without a filter.
        wanted = max(enough * self.rows // passing, held[ivf.nprobe - 1])
        while True:
            probed = nearest_lists[: np.searchsorted(held, wanted) + 1]
            rows = self._allowed_in(probed, allowed)
            if len(rows) >= enough / 2 or wanted >= self.rows:
                return rows
            wanted *= 4

    def _allowed_in(self, lists: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """The allowed rows of some lists."""
        if self._list_sizes[lists].sum() < self.rows / 3:  # from there on one pass over all rows is faster
            rows = np.concatenate([self._listed_rows[number] for number in lists.tolist()])
            return rows.compress(allowed.take(rows)).astype(np.int64)
        is_probed = np.zeros(len(self._list_sizes), bool)
        is_probed[lists] = True
        return np.flatnonzero(is_probed.take(self._list_of_row) & allowed)


def _centres(ivf: faiss.IndexIVF) -> np.ndarray:
    """(lists, D) float32, read in place."""
    return faiss.rev_swig_ptr(faiss.downcast_index(ivf.quantizer).get_xb(), ivf.nlist * ivf.d).reshape(ivf.nlist, ivf.d)


def _keys_and_lists(index: faiss.Index) -> tuple[np.ndarray, np.ndarray]:
    """The keys that an index holds, and the number of the list that each is in; 0 for one without lists."""
    if (ivf := _ivf(index)) is None:
        return faiss.vector_to_array(index.id_map), np.zeros(index.ntotal, np.intp)
    sizes = [ivf.invlists.list_size(number) for number in range(ivf.nlist)]
    lists = [faiss.rev_swig_ptr(ivf.invlists.get_ids(number), size) for number, size in enumerate(sizes) if size]
    return np.concatenate(lists or [np.empty(0, np.int64)]), np.repeat(np.arange(ivf.nlist), sizes)


def checked(passing: Passing, rows: int) -> np.ndarray:
    """Which rows may be found; ValueError where they are not `rows`."""
    if passing.rows.shape != (rows,):
        raise ValueError(f"what may be found has shape {passing.rows.shape}, the index holds {rows} rows")
    return passing.rows


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenMP on the calling thread alone: the server's threads already use every core. (It counts threads by caller.)"""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """(D,) or (N, D) vectors at unit length; one of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def unit(query: np.ndarray, dimension: int) -> np.ndarray:
    """The query as a float32 unit vector; ValueError when it is not finite, zero, or not (dimension,)."""
    query = np.asarray(query, np.float32)
    if query.shape != (dimension,):
        raise ValueError(f"the query has shape {query.shape}, the index holds vectors of {dimension}")
    length = np.linalg.norm(query)
    if not np.isfinite(length) or length == 0:
        raise ValueError("the query is zero or not finite")
    return query / length
