"""How an update of the index recognises changed rows: hashes, places of records in a table, and of entries in a generation."""

import hashlib
import io
import itertools
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from marketplace.files import atomic, reading

BLOCK_BYTES = 1 << 24  # of a table read at a time
BLOCK_ROWS = 1_024  # of vectors hashed at a time, in the processor's cache
QUOTE, NEWLINE = b'"\n'


def hashes(names: Iterable[str]) -> np.ndarray:
    """(N,) uint64, the same for the same text on every machine."""
    return pd.util.hash_array(np.array(list(names), object), categorize=False)


def hashed(table: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Columns of a table as a structured (N,) of their hashes, which are read in a moment."""
    found = np.empty(len(table), [(name, np.uint64) for name in columns])
    for name in columns:
        found[name] = hashes(table[name])
    return found


def vector_hashes(vectors: np.ndarray) -> np.ndarray:
    """(N, D) float32 -> (N,) uint64, equal for equal rows: the numbers' bits, two together, times random odd numbers, added up.

    Source: multiply-shift hashing of vectors (Thorup, "High speed hashing for integers and strings", 2015, section 3.5); the
    upper half of each pair is mixed into the lower, as what a product does to the highest bits does not depend on the factor.
    """
    words = (vectors.shape[1] + 1) // 2
    factors = np.random.default_rng(0).integers(2**63, size=words, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    found = np.empty(len(vectors), np.uint64)
    block = np.zeros((min(BLOCK_ROWS, len(vectors)), 2 * words), np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        rows = vectors[start : start + BLOCK_ROWS]
        block[: len(rows), : vectors.shape[1]] = rows
        bits = block[: len(rows)].view(np.uint64)
        found[start : start + len(rows)] = np.einsum("nw,w->n", bits ^ (bits >> np.uint64(31)), factors)
    return found


def record_starts(path: Path) -> np.ndarray:
    """(N + 1,) int64: where each record of a CSV begins, the header among them, and where the last one ends.

    A newline between an odd number of quotes before it and the next one belongs to a field.
    """
    starts, quotes, offset = [np.zeros(1, np.int64)], 0, 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            octets = np.frombuffer(block, np.uint8)
            newlines, block_quotes = np.flatnonzero(octets == NEWLINE), np.flatnonzero(octets == QUOTE)
            outside = (quotes + np.searchsorted(block_quotes, newlines)) % 2 == 0
            starts.append(newlines[outside] + (offset + 1))
            quotes, offset = quotes + len(block_quotes), offset + len(block)
    return np.concatenate(starts)


def write_records(path: Path, csv_path: Path, ids: Iterable[str]) -> None:
    """Write of each record of a CSV what an update asks of it; by read_array() a structured (N,).

    id: hash of the record's id; content: hash of its bytes; start, end: its bytes in the file.
    """
    starts = record_starts(csv_path)[1:]
    id_hashes = hashes(ids)
    records = np.empty(len(id_hashes), [("id", np.uint64), ("content", np.uint64), ("start", np.int64), ("end", np.int64)])
    records["id"], records["start"], records["end"] = id_hashes, starts[:-1], starts[1:]
    with open(csv_path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as octets:
        spans = itertools.pairwise(starts.tolist())
        contents = (hashlib.blake2b(octets[start:end], digest_size=8).digest() for start, end in spans)
        records["content"] = np.frombuffer(b"".join(contents), "<u8")
    atomic.write_array(path, records)


def read_records(csv_path: Path, records: np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    """Some rows of a CSV, as read_csv() reads them. records: what write_records() wrote of all of them."""
    wanted = records[rows]
    spans = zip(wanted["start"].tolist(), wanted["end"].tolist(), strict=True)
    with open(csv_path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as octets:
        text = octets[: records["start"][0]] + b"".join(octets[start:end] for start, end in spans)
    return reading.read_csv(io.BytesIO(text))


def positions(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(n,) int: the position of each of `wanted` in `among`, whose values are distinct; -1 for one that is not there."""
    if np.array_equal(wanted, among):
        return np.arange(len(among))
    return pd.Index(among).get_indexer(wanted)


@dataclass(frozen=True)
class Rows:
    """Where the entries of a table are in a generation. Rows are only ever appended: those of an entry that went, or changed,
    stay as tombstones until the next full build.

    entry_rows: (n,) the row of each entry; added: positions of the entries whose rows are new, in the order of those; removed:
    rows that are tombstones from now on; total: the number of rows.
    """

    entry_rows: np.ndarray
    added: np.ndarray
    removed: np.ndarray
    total: int

    @classmethod
    def all_new(cls, entries: int) -> "Rows":
        """Of a full build: row i is entry i."""
        return cls(np.arange(entries), np.arange(entries), np.empty(0, np.int64), entries)

    @classmethod
    def plan(cls, keys: np.ndarray, before: np.ndarray) -> "Rows":
        """keys: (n,) uint64, different for different entries; before: (rows,) keys of the generation before, 0 for tombstones."""
        live = np.flatnonzero(before)
        at = positions(keys, before[live])
        entry_rows = np.append(live, -1)[at]
        added = np.flatnonzero(at < 0)
        entry_rows[added] = np.arange(len(before), len(before) + len(added))
        gone = np.ones(len(live), bool)
        gone[at[at >= 0]] = False
        return cls(entry_rows, added, live[gone], len(before) + len(added))

    @property
    def before(self) -> int:
        """The number of rows that were there before: the first of those that are new."""
        return self.total - len(self.added)

    def live(self) -> np.ndarray:
        """(total,) bool, False for tombstones."""
        live = np.zeros(self.total, bool)
        live[self.entry_rows] = True
        return live

    def spread(self, values: np.ndarray, fill) -> np.ndarray:
        """Values of the entries (n, ...) -> of the rows (total, ...), `fill` for tombstones."""
        spread = np.full((self.total, *values.shape[1:]), fill, values.dtype)
        spread[self.entry_rows] = values
        return spread
