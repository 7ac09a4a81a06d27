"""Stable 64-bit keys of ids: the numbers by which the engines know listings and photos, whatever their rows."""

import hashlib
from collections.abc import Sequence

import numpy as np

from marketplace.files.stages import StageError


def keys(ids: Sequence[str]) -> np.ndarray:
    """(N,) int64, none negative: of each id the first 63 bits of its blake2b, the same on every machine."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return (np.frombuffer(digests, "<u8") & np.uint64(2**63 - 1)).astype(np.int64)


def check_distinct(ids: Sequence[str], found: np.ndarray) -> None:
    """StageError where two of the ids have the same key: one of them would be served as the other.

    found: (N,) their keys.
    """
    order = np.argsort(found, kind="stable")
    same = np.flatnonzero(np.diff(found[order]) == 0)
    if len(same):
        first, second = (ids[order[place]] for place in (same[0], same[0] + 1))
        raise StageError(f"the ids {first} and {second} have the same key: give one of them another id in the export")


class RowsByKey:
    """The row of each key."""

    def __init__(self, row_keys: np.ndarray):
        """row_keys: (N,) int64, the key of each row, all different."""
        self._order = np.argsort(row_keys).astype(np.int32)
        self._sorted = row_keys[self._order]

    def rows(self, wanted: np.ndarray) -> np.ndarray:
        """(n,) int64 rows; -1 for a key that no row has."""
        if not len(self._sorted):
            return np.full(len(wanted), -1)
        places = np.minimum(np.searchsorted(self._sorted, wanted), len(self._sorted) - 1)
        return np.where(self._sorted[places] == wanted, self._order[places], -1).astype(np.int64)
