"""The words of each listing in their order (a forward index), which ranking compares with the words of a query."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from marketplace.files import atomic, reading
from marketplace.files.stages import StageError
from marketplace.retrieval import analysis

CODES, LENGTHS = "forward.u32", "forward_lengths.npy"
MAX_WORDS = 1000  # of a name, and of a description: what comes after says nothing new
ROWS_AT_A_TIME = 16_384  # of an older generation in memory


def code(word: str) -> int:
    """A word's 32-bit number, the same on every machine: two words have the same one by a chance of 1 in 4,000,000,000."""
    return zlib.crc32(word.encode())


def write(folder: Path, listings: Iterable[pd.DataFrame]) -> None:
    """Write the forward index of a generation. listings: name and description, some at a time."""
    lengths, codes = [np.empty((0, 2), np.int32)], _Codes()
    with open(folder / CODES, "wb") as file:
        for block in listings:
            block_codes, block_lengths = _encode(block, codes)
            file.write(block_codes.tobytes())
            lengths.append(block_lengths)
    atomic.write_array(folder / LENGTHS, np.concatenate(lengths))


def update(published: Path, folder: Path, row_before: np.ndarray, listings: Iterable[pd.DataFrame]) -> None:
    """Write the forward index of a generation that follows a published one.

    row_before: (P,) int, the row there of each listing, -1 for one that is new or has changed; listings: those, in their order.
    """
    before, codes = ForwardIndex(published), _Codes()
    encoded = [_encode(block, codes) for block in listings]
    came_codes = np.concatenate([np.empty((0, 2), np.uint32), *(block_codes for block_codes, _ in encoded)])
    lengths = before.lengths[row_before]
    lengths[row_before < 0] = np.concatenate([np.empty((0, 2), np.int32), *(block_lengths for _, block_lengths in encoded)])
    came_written = 0
    with open(folder / CODES, "wb") as file:
        for start in range(0, len(row_before), ROWS_AT_A_TIME):
            rows, totals = row_before[start : start + ROWS_AT_A_TIME], lengths[start : start + ROWS_AT_A_TIME].sum(axis=1)
            stays = np.repeat(rows >= 0, totals)
            came_count = int((~stays).sum())
            block = np.empty((len(stays), 2), np.uint32)
            block[stays] = before.codes_of(rows[rows >= 0])
            block[~stays] = came_codes[came_written : came_written + came_count]
            came_written += came_count
            file.write(block.tobytes())
    atomic.write_array(folder / LENGTHS, lengths)


class _Codes(dict):
    """word -> codes of its exact form and of its stem."""

    def __missing__(self, word: str) -> tuple[int, int]:
        self[word] = found = code(word), code(analysis.stem(word))
        return found


def _encode(listings: pd.DataFrame, codes: _Codes) -> tuple[np.ndarray, np.ndarray]:
    """(W, 2) uint32 codes of all words of some listings, and (n, 2) int32 how many are of each one's name and description."""
    texts = [
        analysis.split(text)[:MAX_WORDS] for pair in zip(listings["name"], listings["description"], strict=True) for text in pair
    ]
    found = [codes[word] for text in texts for word in text]
    return np.array(found, np.uint32).reshape(-1, 2), np.array([*map(len, texts)], np.int32).reshape(-1, 2)


@dataclass(frozen=True)
class ListingWords:
    """Words of N listings. exact, stems: (W,) uint32 codes; listing: (W,) which of the N each is of; in_name: (W,) bool;
    lengths: (N, 2) how many words each one's name and description have."""

    exact: np.ndarray
    stems: np.ndarray
    listing: np.ndarray
    in_name: np.ndarray
    lengths: np.ndarray


class ForwardIndex:
    """The words of one generation's listings; safe to read from many threads."""

    def __init__(self, folder: Path):
        """Raises StageError when files are missing or do not belong together."""
        self.lengths = np.asarray(reading.read_array(folder / LENGTHS))
        self._starts = np.concatenate([[0], self.lengths.sum(axis=1).cumsum(dtype=np.int64)])
        path, total = folder / CODES, int(self._starts[-1])
        if not path.is_file() or path.stat().st_size != 8 * total:
            raise StageError(f"{path} is missing or damaged: run python build_index.py --full")
        self._codes = np.asarray(np.memmap(path, np.uint32, "r", shape=(total, 2))) if total else np.empty((0, 2), np.uint32)
        # As BM25 counts them: a name's words twice.
        self.mean_length = max(float((self.lengths @ [2, 1]).mean()), 1.0) if len(self.lengths) else 1.0

    def __len__(self) -> int:
        return len(self.lengths)

    def codes_of(self, rows: np.ndarray) -> np.ndarray:
        """(W, 2) codes of the words of some listings, one listing after the other."""
        starts, totals = self._starts[rows], self._starts[rows + 1] - self._starts[rows]
        shifts = starts - (totals.cumsum() - totals)
        return self._codes[np.arange(totals.sum()) + np.repeat(shifts, totals)]

    def words_of(self, rows: np.ndarray) -> ListingWords:
        """The words of some listings."""
        lengths = self.lengths[rows]
        codes = self.codes_of(rows)
        in_name = np.repeat(np.tile([True, False], len(rows)), lengths.ravel())
        return ListingWords(codes[:, 0], codes[:, 1], np.repeat(np.arange(len(rows)), lengths.sum(axis=1)), in_name, lengths)


def codes_of(texts: Sequence[str]) -> np.ndarray:
    """(n,) uint32 codes of some words."""
    return np.array([code(text) for text in texts], np.uint32)
