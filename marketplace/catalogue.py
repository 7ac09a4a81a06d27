"""Listings and photos for serving: SQLite with full text, memory-mapped filter columns."""

import contextlib
import itertools
import queue
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from marketplace import storage
from marketplace.errors import StageError
from marketplace.listings import category_levels

DATABASE, FILTERS = "catalogue.sqlite", "filters.json"
COLUMNS = ("price", "category", "town", "county", "product_of_photo")  # each a .npy of the same name
WORD_WEIGHTS = (5.0, 1.0, 2.0)  # of name, description, category in BM25: a title says what a thing is
CONNECTIONS = 8  # to the database, shared by all threads: each query holds one for a millisecond or two
MAX_WORDS = 32  # of a query; the rest is noise
RAREST_WORDS = 4  # tried where no listing holds them all
WORD_SCORES = f"SELECT rowid, -bm25(words, {', '.join(map(str, WORD_WEIGHTS))}) AS score FROM words WHERE words MATCH ?"
PRODUCT_FIELDS = (
    "product_id", "name", "description", "category", "price", "price_plausible", "town", "county", "posted_on",
)  # fmt: skip

SCHEMA = """
CREATE TABLE products (row INTEGER PRIMARY KEY, product_id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, description TEXT NOT NULL,
    category TEXT NOT NULL, price REAL, price_plausible INTEGER, town TEXT, county TEXT, posted_on TEXT);
CREATE TABLE photos (row INTEGER PRIMARY KEY, image_id TEXT NOT NULL UNIQUE);
CREATE VIRTUAL TABLE words USING fts5 (name, description, category, content='products', content_rowid='row',
    tokenize='porter unicode61 remove_diacritics 2');
"""


@dataclass(frozen=True)
class Filters:
    """What a result must be. category: a name at any level of the path, or a path from its start; location: a town, a county,
    or "Town, County"; prices in pounds, both ends included. None: anything."""

    category: str | None = None
    min_price: float | None = None
    max_price: float | None = None
    location: str | None = None


def write(folder: Path, products: pd.DataFrame, image_ids: list[str], product_of_photo: np.ndarray) -> None:
    """Write the catalogue's files into a generation's folder.

    products: PRODUCT_FIELDS, row i is product i; image_ids: N, row i is photo i; product_of_photo: (N,) rows of products.
    """
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.executescript(SCHEMA)
    rows = products[list(PRODUCT_FIELDS)].astype(object).itertuples()
    connection.executemany(f"INSERT INTO products VALUES ({', '.join('?' * (len(PRODUCT_FIELDS) + 1))})", rows)
    connection.executemany("INSERT INTO photos VALUES (?, ?)", enumerate(image_ids))
    connection.execute("INSERT INTO words (words) VALUES ('rebuild')")
    connection.execute("INSERT INTO words (words) VALUES ('optimize')")
    connection.commit()
    connection.close()

    codes: dict[str, dict[str, int]] = {"category": {}, "town": {}, "county": {}}
    paths = [category_levels(path) for path in products["category"]]
    depth = max((len(path) for path in paths), default=1) or 1
    category = np.full((len(products), depth), -1, np.int32)
    for row, path in enumerate(paths):
        for level in range(len(path)):
            category[row, level] = codes["category"].setdefault(" / ".join(path[: level + 1]), len(codes["category"]))
    arrays = {"price": products["price"].to_numpy(np.float32), "category": category}
    for name in ("town", "county"):
        known = codes[name]
        arrays[name] = np.array([known.setdefault(value, len(known)) for value in products[name]], np.int32)
    arrays["product_of_photo"] = np.asarray(product_of_photo, np.int32)
    for name, array in arrays.items():
        storage.write_array(folder / f"{name}.npy", array)
    storage.write_json(folder / FILTERS, {name: list(known) for name, known in codes.items()})


class Catalogue:
    """One generation's listings and photos; safe to read from many threads."""

    def __init__(self, folder: Path):
        self._path = folder / DATABASE
        if not self._path.is_file():
            raise StageError(f"{self._path} is missing: run python build_index.py again")
        # Opened now, all of them: a generation that is no longer current may lose its files while it is still served.
        self._connections: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        uri = f"{self._path.absolute().as_uri()}?mode=ro&immutable=1"
        for _ in range(CONNECTIONS):
            self._connections.put(sqlite3.connect(uri, uri=True, check_same_thread=False))
        self._columns = {name: storage.read_array(folder / f"{name}.npy") for name in COLUMNS}
        self._names: dict[str, list[str]] = storage.read_json(folder / FILTERS)
        self._categories: dict[str, list[int]] = {}
        for code, path in enumerate(self._names["category"]):
            for key in {path.casefold(), category_levels(path)[-1].casefold()}:
                self._categories.setdefault(key, []).append(code)
        self._places = {kind: _by_folded_name(self._names[kind]) for kind in ("town", "county")}
        self.product_of_photo = self._columns["product_of_photo"]
        self.n_products, self.n_photos = len(self._columns["price"]), len(self.product_of_photo)
        # Photo rows by product: those of product p are _photos[_starts[p] : _starts[p + 1]].
        self._photos = np.argsort(self.product_of_photo, kind="stable")
        self._starts = np.searchsorted(self.product_of_photo[self._photos], np.arange(self.n_products + 1))
        counts = [self._one(f"SELECT count(*) FROM {table}")[0] for table in ("products", "photos")]
        if counts != [self.n_products, self.n_photos]:
            raise StageError(
                f"{self._path} and the filter columns beside it do not belong together: run python build_index.py again"
            )

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread uses meanwhile."""
        connection = self._connections.get()
        try:
            yield connection
        finally:
            self._connections.put(connection)

    def _one(self, query: str, *values) -> tuple | None:
        with self._connection() as connection:
            return connection.execute(query, values).fetchone()

    def allowed(self, filters: Filters) -> np.ndarray | None:
        """(P,) bool of the products that pass, or None when everything does."""
        masks = []
        if filters.category is not None:
            wanted = " / ".join(category_levels(filters.category)).casefold()
            masks.append(np.isin(self._columns["category"], self._categories.get(wanted, [])).any(axis=1))
        if filters.min_price is not None:
            masks.append(self._columns["price"] >= np.float32(filters.min_price))
        if filters.max_price is not None:
            masks.append(self._columns["price"] <= np.float32(filters.max_price))
        if filters.location is not None:
            masks.append(self._in_place(filters.location))
        return np.logical_and.reduce(masks) if masks else None

    def _in_place(self, location: str) -> np.ndarray:
        def within(kind: str, name: str) -> np.ndarray:
            return np.isin(self._columns[kind], self._places[kind].get(name.strip().casefold(), []))

        town, comma, county = location.partition(",")
        if comma:
            return within("town", town) & within("county", county)
        return within("town", location) | within("county", location)

    def photos_of(self, product_row: int) -> np.ndarray:
        """Rows of a product's photos."""
        return self._photos[self._starts[product_row] : self._starts[product_row + 1]]

    def product_row(self, product_id: str) -> int | None:
        found = self._one("SELECT row FROM products WHERE product_id = ?", product_id)
        return found[0] if found else None

    def has_photo(self, image_id: str) -> bool:
        return self._one("SELECT 1 FROM photos WHERE image_id = ?", image_id) is not None

    def product(self, product_row: int) -> dict:
        """PRODUCT_FIELDS of one product."""
        query = f"SELECT {', '.join(PRODUCT_FIELDS)} FROM products WHERE row = ?"
        values = self._one(query, int(product_row))
        return dict(zip(PRODUCT_FIELDS, values, strict=True)) | {"price_plausible": bool(values[5])}

    def image_ids(self, photo_rows: np.ndarray) -> list[str]:
        return [self._one("SELECT image_id FROM photos WHERE row = ?", int(row))[0] for row in photo_rows]

    def match_words(self, query: str, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Rows of the k products that match a query's words best by BM25.

        Listings with all the words come first; when they are fewer than k, those with any of the rarest words follow.
        Whatever the query holds is words, never search syntax.
        """
        words = search_words(query)
        if not words:
            return np.empty(0, np.int64)
        found = self._match(" AND ".join(words), k, allowed, set())
        if len(found) < k:
            count = "SELECT count(*) FROM words WHERE words MATCH ?"
            known = [(n, word) for word in words if (n := self._one(count, word)[0])]
            if rarest := [word for _, word in sorted(known)[:RAREST_WORDS]]:
                found += self._match(" OR ".join(rarest), k - len(found), allowed, set(found))
        return np.array(found, np.int64)

    def score_words(self, query: str, rows: np.ndarray) -> np.ndarray:
        """(N,) BM25 scores of the products of `rows` for any of a query's words; 0 for one that holds none of them."""
        words, scores = search_words(query), dict.fromkeys(rows.tolist(), 0.0)
        if words:
            places = ", ".join("?" * len(scores))
            # The plus keeps SQLite from asking FTS5 once for each row, which would count every word's listings each time.
            with self._connection() as connection:
                scores.update(connection.execute(f"{WORD_SCORES} AND +rowid IN ({places})", (" OR ".join(words), *scores)))
        return np.array([scores[row] for row in rows.tolist()], np.float32)

    def _match(self, expression: str, k: int, allowed: np.ndarray | None, known: set[int]) -> list[int]:
        with self._connection() as connection:
            matches = connection.execute(f"{WORD_SCORES} ORDER BY score DESC, rowid", (expression,))
            rows = (row for row, _ in matches if (allowed is None or allowed[row]) and row not in known)
            return list(itertools.islice(rows, k))

    def choices(self) -> dict:
        """What the filters can be set to, with the number of listings of each, for a page's menus."""
        counts = {}
        for kind, names in self._names.items():
            codes = self._columns[kind]
            listings = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
            counts[kind] = dict(sorted(zip(names, listings, strict=True)))
        prices = self._columns["price"]
        price = {"min": float(np.nanmin(prices)), "max": float(np.nanmax(prices))} if len(prices) else None
        return {"categories": counts["category"], "towns": counts["town"], "counties": counts["county"], "price": price}


def search_words(text: str) -> list[str]:
    """The different words of a text, each quoted as FTS5 wants it, at most MAX_WORDS; FTS5 folds their case itself."""
    words = {word.casefold(): word for word in re.findall(r"[^\W_]+", text)}
    return [f'"{word}"' for word in words.values()][:MAX_WORDS]


def _by_folded_name(names: list[str]) -> dict[str, list[int]]:
    codes: dict[str, list[int]] = {}
    for code, name in enumerate(names):
        codes.setdefault(name.casefold(), []).append(code)
    return codes
