"""Vector search: build and open an index, the nearest rows, filtered, grouped by product."""

from pathlib import Path

import faiss
import numpy as np

from marketplace import storage
from marketplace.errors import StageError

KINDS = ("auto", "flat", "ivf")
FLAT_ROWS = 20_000  # up to here an exact scan takes a few milliseconds
EXACT_ROWS = 20_000  # filters that leave at most so many rows are answered exactly, from the vectors
RECALL_QUERIES = 200  # of the catalogue's own vectors
RECALL_K = 10


def build(vectors: np.ndarray, kind: str = "auto", recall: float = 0.95) -> faiss.Index:
    """An inner-product index over (N, D) float32 unit rows: row i has id i.

    kind: flat scans everything; ivf probes as many of its lists as reach `recall`@10 on the vectors themselves;
    auto takes flat up to 20,000 rows. Source: FAISS wiki, "Guidelines to choose an index".
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    rows, dimension = vectors.shape
    if kind == "flat" or (kind == "auto" and rows <= FLAT_ROWS):
        index = faiss.IndexFlatIP(dimension)
        index.add(vectors)
        return index
    lists = max(1, min(int(4 * rows**0.5), rows // 39))  # 39: the points a centroid below which faiss warns
    index = faiss.index_factory(dimension, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    index.nprobe = 1
    while index.nprobe < lists and measure_recall(index, vectors) < recall:
        index.nprobe = min(lists, index.nprobe * 2)
    return index


def measure_recall(index: faiss.Index, vectors: np.ndarray) -> float:
    """recall@10 of the index against exact search, queried with evenly spaced rows of the vectors; each row itself left out.

    A row as near as the tenth nearest counts as one of them: which of several equal photos comes first is chance.
    """
    k = min(RECALL_K + 1, len(vectors))
    if k < 2:
        return 1.0
    rows = np.unique(np.linspace(0, len(vectors) - 1, RECALL_QUERIES).astype(int))
    queries = np.ascontiguousarray(vectors[rows], np.float32)
    cosines = queries @ np.asarray(vectors).T
    tenth = np.partition(cosines, len(vectors) - k, axis=1)[:, len(vectors) - k]
    _, found = index.search(queries, k)
    near = [
        sum(cosines[query, hit] >= tenth[query] - 1e-5 for hit in hits if hit >= 0 and hit != row)
        for query, (hits, row) in enumerate(zip(found, rows, strict=True))
    ]
    return float(np.mean(np.minimum(near, k - 1)) / (k - 1))


class VectorIndex:
    """An index with the vectors it was built from; safe to search from many threads."""

    def __init__(self, index: faiss.Index, vectors: np.ndarray):
        self.index, self.vectors = index, vectors

    @classmethod
    def open(cls, index_path: Path, vectors_path: Path) -> "VectorIndex":
        """Raises StageError when the two do not belong together."""
        vectors = storage.read_array(vectors_path)
        try:
            index = faiss.read_index(str(index_path))
        except RuntimeError:
            raise StageError(f"{index_path} is missing or damaged: run python build_index.py again") from None
        if (index.ntotal, index.d) != vectors.shape:
            raise StageError(f"{index_path} and {vectors_path} do not belong together: run python build_index.py again")
        return cls(index, vectors)

    def nearest(self, query: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k rows nearest to one query, best first, and their cosines in [-1, 1]; fewer when there are fewer.

        query: (D,) float32, any non-zero length; normalised here. allowed: (N,) bool, the rows that may be found.
        Raises ValueError when the query is not finite, zero, or not (D,).
        Source: FAISS wiki, "MetricType and distances" (inner product of unit vectors).
        """
        query = unit(query, self.index.d)
        if allowed is not None and (count := int(np.count_nonzero(allowed))) <= EXACT_ROWS:
            rows = np.flatnonzero(allowed)
            scores = self.vectors[rows] @ query
            best = np.lexsort((rows, -scores))[: min(k, count)]
            return rows[best], scores[best]
        wanted = min(k, self.index.ntotal if allowed is None else count)
        # FAISS keeps a pointer into the bitmap only: it must live as long as the search.
        bitmap = None if allowed is None else np.packbits(allowed, bitorder="little")
        selector = None if bitmap is None else faiss.IDSelectorBitmap(bitmap)
        if not isinstance(self.index, faiss.IndexIVF):
            return self._search(query, wanted, faiss.SearchParameters(sel=selector))
        nprobe = self.index.nprobe
        while True:
            rows, scores = self._search(query, wanted, faiss.SearchParametersIVF(sel=selector, nprobe=nprobe))
            if len(rows) == wanted or nprobe == self.index.nlist:
                return rows, scores
            nprobe = min(4 * nprobe, self.index.nlist)  # the lists probed hold too few rows

    def _search(self, query: np.ndarray, k: int, parameters: faiss.SearchParameters) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = self.index.search(query[None], k, params=parameters)
        found = rows[0] >= 0
        return rows[0][found], scores[0][found]

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


def unit(query: np.ndarray, dimension: int) -> np.ndarray:
    """The query as a float32 unit vector; ValueError when it is not finite, zero, or not (dimension,)."""
    query = np.asarray(query, np.float32)
    if query.shape != (dimension,):
        raise ValueError(f"the query has shape {query.shape}, the index holds vectors of {dimension}")
    length = np.linalg.norm(query)
    if not np.isfinite(length) or length == 0:
        raise ValueError("the query is zero or not finite")
    return query / length
