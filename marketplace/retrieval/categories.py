"""The catalogue's category tree: how probable each category is for a query, and how well each listing's path agrees with that."""

import numpy as np
from scipy.sparse import csr_array

from marketplace.cleaning.listings import CATEGORY_SEPARATOR, category_levels


class CategoryTree:
    """Categories by code; a code names a path from the top, such as "A / B".

    codes: (P, depth) int, each listing's path by level, -1 where it has no such level; names: the path of each code.
    classes: the labels of the category models, paths of equal depth; paths: the full paths of table_models.
    """

    def __init__(self, codes: np.ndarray, names: list[str], classes: list[str], paths: list[str]):
        code_of = {name: code for code, name in enumerate(names)}
        prefixes = [_prefixes(name) for name in names]
        above = [(code_of[prefix], code) for code, path in enumerate(prefixes) for prefix in path]
        rows, columns = np.array(above, int).reshape(-1, 2).T
        self._sum_up = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(names), len(names)))
        level = len(category_levels(classes[0]))
        label_of = {name: label for label, name in enumerate(classes)}
        self._label = np.array([label_of.get((path + [None] * level)[level - 1], -1) for path in prefixes], int)
        self._at_label = np.array([len(path) == level for path in prefixes], bool) & (self._label >= 0)
        self._codes = codes[:, level - 1 :]
        levels = (self._codes >= 0).sum(axis=1)
        self._levels = np.where(levels > 0, levels, np.nan)
        self._depth = [len(path) for path in prefixes]
        parents = [(code_of[path[-2]], code) for code, path in enumerate(prefixes) if len(path) > 1 and path[-2] in code_of]
        rows, columns = np.array(parents, int).reshape(-1, 2).T
        self._below = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(names), len(names)))
        deepest = codes[np.arange(len(codes)), np.maximum((codes >= 0).sum(axis=1) - 1, 0)]
        own = np.bincount(deepest[deepest >= 0], minlength=len(names)).astype(float)
        self._ends, self._counts = own > 0, self._sum_up @ own
        # A path that no listing of the catalogue has counts for the longest part of it that one has.
        found = [[code_of[prefix] for prefix in _prefixes(path) if prefix in code_of] for path in paths]
        self._code_of_path = np.array([codes[-1] if codes else -1 for codes in found], int)

    def own_levels(self, listing_row: int) -> np.ndarray:
        """(codes,) 1 for each level of a listing's own path, else 0."""
        probabilities = np.zeros(len(self._label))
        own = self._codes[listing_row]
        probabilities[own[own >= 0]] = 1
        return probabilities

    def predicted(self, labels: np.ndarray, paths: np.ndarray | None = None) -> np.ndarray:
        """(codes,) from the (C,) probabilities of the labels and, below them, the (L,) ones of the full paths; where those are
        None, as the catalogue's listings are spread."""
        inner = self._counts
        if paths is not None:
            found = self._code_of_path >= 0
            inner = self._sum_up @ np.bincount(self._code_of_path[found], paths[found], minlength=len(self._label))
        label_totals = np.zeros(len(labels) + 1)  # the last one: of no label
        label_totals[self._label[self._at_label]] = inner[self._at_label]
        share = np.where(self._at_label, 1, inner / np.maximum(label_totals[self._label], 1e-12))
        return np.where(self._label >= 0, labels[self._label] * share, 0)

    def likeliest(self, probabilities: np.ndarray, k: int) -> list[tuple[int, float]]:
        """At most k codes at which a listing's path is likely to end, the likeliest first, and how probable that is.

        probabilities: (codes,) of predicted(), each of a path and all below it.
        """
        ends = np.where(self._ends, probabilities - self._below @ probabilities, 0)
        best = [code for code in np.argsort(-ends, kind="stable")[:k].tolist() if ends[code] > 0]
        return [(code, float(ends[code])) for code in best]

    def settled(self, probabilities: np.ndarray) -> int | None:
        """The deepest code that is more likely right than not; None where no code is."""
        likely = np.flatnonzero(probabilities > 0.5)
        return max(likely.tolist(), key=lambda code: self._depth[code], default=None)

    def agreement(self, probabilities: np.ndarray, listing_rows: np.ndarray) -> np.ndarray:
        """(N,) in [0, 1]: the mean probability of the levels of each listing's path; NaN for one without a path."""
        by_code = np.append(probabilities, 0)  # the last one: where there is no level
        return by_code[self._codes[listing_rows]].sum(axis=1) / self._levels[listing_rows]


def _prefixes(path: str) -> list[str]:
    """ "A / B / C" -> "A", "A / B", "A / B / C"."""
    levels = category_levels(path)
    return [CATEGORY_SEPARATOR.join(levels[: depth + 1]) for depth in range(len(levels))]
