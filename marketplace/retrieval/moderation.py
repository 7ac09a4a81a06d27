"""What moderators look at, listed in a build: rejects, odd prices, duplicates, listings whose words and photo disagree."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from marketplace.cleaning.listings import CATEGORY_SEPARATOR, category_levels
from marketplace.files import reading
from marketplace.files.stages import StageError
from marketplace.models import photo_model
from marketplace.models.text_model import PathModel
from marketplace.retrieval.catalogue import ROWS_AT_A_TIME, open_connections, read_listings
from marketplace.retrieval.entries import Entries

DATABASE = "moderation.sqlite"
List = Literal["rejected-rows", "rejected-photos", "implausible-prices", "duplicates", "category-disagreements"]
LISTS = get_args(List)
# What an entry tells beside its reason and, where it is about a listing, the listing.
DETAILS: dict[str, tuple[str, ...]] = {
    "rejected-rows": ("source", "record", "id", "raw"),
    "rejected-photos": ("image_id", "source"),
    "implausible-prices": (),
    "duplicates": ("group", "listings"),
    "category-disagreements": ("by_words", "probability_by_words", "by_photo", "probability_by_photo"),
}
SURE = 0.5  # probability that words, and photos, must each give another category for a listing to be told of
BLOCK_ROWS = 4096  # listings whose probabilities are in memory at a time

SCHEMA = """
CREATE TABLE entries (list TEXT NOT NULL, position INTEGER NOT NULL, reason TEXT NOT NULL, row INTEGER, details TEXT NOT NULL,
    PRIMARY KEY (list, position)) WITHOUT ROWID;
CREATE TABLE counts (list TEXT NOT NULL, reason TEXT NOT NULL, entries INTEGER NOT NULL);
"""
# After the rows.
INDEXES = """
CREATE INDEX entries_by_reason ON entries (list, reason, position);
INSERT INTO counts SELECT list, reason, count(*) FROM entries GROUP BY list, reason;
"""


@dataclass(frozen=True)
class Entry:
    """position: its place in its list, from 0; row: of the listing that it is about, None for what was rejected; details: of
    DETAILS."""

    position: int
    reason: str
    row: int | None
    details: dict


# In a build


def write(data_dir: Path, folder: Path, entries: Entries) -> None:
    """List all of it in a generation's folder, whose catalogue and models are there."""
    found = {
        "rejected-rows": _rejected_rows(data_dir / "tabular" / "rejected.csv"),
        "rejected-photos": _rejected_photos(data_dir / "images" / "photos.csv"),
        "implausible-prices": _implausible_prices(folder),
        "duplicates": _duplicates(entries.duplicates),
        "category-disagreements": _disagreements(data_dir, folder, entries),
    }
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(SCHEMA)
        for name in LISTS:
            connection.executemany(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
                (
                    (name, position, reason, row, json.dumps(dict(zip(DETAILS[name], details, strict=True))))
                    for position, (reason, row, *details) in enumerate(found[name])
                ),
            )
        connection.executescript(INDEXES)
        connection.commit()


def _rejected_rows(path: Path) -> Iterator[tuple]:
    for block in reading.read_csv(path, chunksize=ROWS_AT_A_TIME):
        for row in block.itertuples(index=False):
            yield row.reason, None, row.source, row.record, row.id, row.raw


def _rejected_photos(path: Path) -> Iterator[tuple]:
    for block in reading.read_csv(path, usecols=["image_id", "status", "reason", "source"], chunksize=ROWS_AT_A_TIME):
        for row in block[block["status"] == "rejected"].itertuples(index=False):
            yield row.reason, None, row.image_id, row.source


def _implausible_prices(folder: Path) -> Iterator[tuple]:
    start = 0
    for block in read_listings(folder):
        odd = np.flatnonzero(block["price"].notna() & ~block["price_plausible"])
        for row, price in zip(odd.tolist(), block["price"].to_numpy()[odd], strict=True):
            yield "unlikely" if price > 0 else "zero", start + row
        start += len(block)


def _duplicates(groups: np.ndarray) -> Iterator[tuple]:
    """Listings of the same offer, one group after the other."""
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    for number, place in enumerate(np.flatnonzero(sizes > 1)):
        for row in order[starts[place] : starts[place] + sizes[place]].tolist():
            yield "same_offer", row, number, int(sizes[place])


def _disagreements(data_dir: Path, folder: Path, entries: Entries) -> list[tuple]:
    """The surest first."""
    classes = photo_model.Description.load(folder).classes
    by_photo, by_words = _PhotoCategories(data_dir / "embeddings", entries), _WordCategories(folder, classes)
    found = []
    for start in range(0, len(entries.text_vectors), BLOCK_ROWS):
        words, has_words = by_words.probabilities(np.asarray(entries.text_vectors[start : start + BLOCK_ROWS]))
        photo, has_photo = by_photo.probabilities(np.arange(start, start + len(words)))
        labels, sure = [np.argmax(each, axis=1) for each in (words, photo)], [each.max(axis=1) for each in (words, photo)]
        odd = has_words & has_photo & (labels[0] != labels[1]) & (np.minimum(*sure) >= SURE)
        for row in np.flatnonzero(odd):
            told = [(classes[label[row]], round(float(share[row]), 4)) for label, share in zip(labels, sure, strict=True)]
            found.append(("words_and_photo", start + int(row), *told[0], *told[1]))
    reading.release(entries.text_vectors)
    return sorted(found, key=lambda entry: (-min(entry[3], entry[5]), entry[1]))


class _WordCategories:
    """The category that a listing's text vector speaks for: that of its likely paths."""

    def __init__(self, folder: Path, classes: list[str]):
        self._models = PathModel.load(folder)
        depth, label_of = len(category_levels(classes[0])), {name: label for label, name in enumerate(classes)}
        tops = [CATEGORY_SEPARATOR.join(category_levels(path)[:depth]) for path in self._models.paths]
        labelled = [(path, label_of[top]) for path, top in enumerate(tops) if top in label_of]
        paths, labels = np.array(labelled, int).reshape(-1, 2).T
        self._labels = csr_array((np.ones(len(paths), np.float32), (paths, labels)), shape=(len(tops), len(classes)))

    def probabilities(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, C) and (n,) whether there are words at all."""
        return self._models.probabilities(vectors) @ self._labels, vectors.any(axis=1)


class _PhotoCategories:
    """The category that a listing's photos speak for together."""

    def __init__(self, embeddings_dir: Path, entries: Entries):
        self._probabilities = reading.read_array(embeddings_dir / "probabilities.npy")
        at = pd.Index(reading.read_json(embeddings_dir / "image_ids.json")).get_indexer(pd.Index(entries.image_ids))
        photos = np.flatnonzero(at >= 0)
        self._by_listing = photos[np.argsort(entries.owners[photos], kind="stable")]
        self._owners, self._at = entries.owners[self._by_listing], at[self._by_listing]

    def probabilities(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, C) the mean of each listing's photos, and (n,) whether it has any. rows: (n,) consecutive."""
        first, last = np.searchsorted(self._owners, [rows[0], rows[-1] + 1])
        owners, photos = self._owners[first:last] - rows[0], self._at[first:last]
        counts = np.bincount(owners, minlength=len(rows))
        means = csr_array((1 / counts[owners], (owners, np.arange(len(photos)))), shape=(len(rows), len(photos)))
        return means @ np.asarray(self._probabilities[photos]), counts > 0


# In the service


class Moderation:
    """One generation's lists; safe to read from many threads."""

    def __init__(self, folder: Path):
        """Raises StageError when the file is missing."""
        path = folder / DATABASE
        if not path.is_file():
            raise StageError(f"{path} is missing: run python build_index.py again")
        self._connections = open_connections(path)

    def counts(self) -> dict[str, dict[str, int]]:
        """Of each list the number of entries of each reason."""
        found: dict[str, dict[str, int]] = {name: {} for name in LISTS}
        for name, reason, entries in self._read("SELECT list, reason, entries FROM counts ORDER BY list, reason", ()):
            found[name][reason] = entries
        return found

    def page(self, name: List, reason: str | None, k: int, offset: int) -> list[Entry]:
        """Entries of a list in its order, of one reason where one is given."""
        return self._entries(name, reason, "LIMIT ? OFFSET ?", (k, offset))

    def blocks(self, name: List, reason: str | None, rows: int) -> Iterator[list[Entry]]:
        """All of them, some at a time."""
        last = -1
        while block := self._entries(name, reason, "LIMIT ?", (rows,), last):
            yield block
            last = block[-1].position

    def _entries(self, name: List, reason: str | None, limit: str, limits: Sequence[int], after: int = -1) -> list[Entry]:
        query = "SELECT position, reason, row, details FROM entries WHERE list = ? AND position > ?"
        query += " AND reason = ?" if reason is not None else ""
        values = (name, after, *(() if reason is None else (reason,)), *limits)
        found = self._read(f"{query} ORDER BY position {limit}", values)
        return [Entry(position, why, row, json.loads(details)) for position, why, row, details in found]

    def _read(self, query: str, values: Sequence) -> list[tuple]:
        connection = self._connections.get()
        try:
            return connection.execute(query, values).fetchall()
        finally:
            self._connections.put(connection)
